"""Pictures keep their bits and their channels."""

from __future__ import annotations

import struct
import tracemalloc
import zlib

import numpy as np
import pytest
import SimpleITK
import tifffile
from numpy.testing import assert_array_equal
from PIL import Image as Pillow
from PIL import TiffImagePlugin

from clearmargin.errors import InputError
from clearmargin.formats import read_image, read_images
from clearmargin.formats.raster import read_label_raster, read_raster, write_raster

RNG = np.random.default_rng(3)
GREY8 = RNG.integers(0, 256, (5, 7)).astype(np.uint8)
GREY16 = RNG.integers(0, 65536, (5, 7)).astype(np.uint16)
RGB8 = RNG.integers(0, 256, (3, 5, 7)).astype(np.uint8)


@pytest.mark.parametrize("name", ["a.png", "a.tif"])
@pytest.mark.parametrize("pixels", [GREY8, GREY16, RGB8], ids=["grey8", "grey16", "rgb8"])
def test_round_trip(name, pixels, tmp_path):
    write_raster(tmp_path / name, pixels)
    image = read_image(tmp_path / name)
    assert image.pixels.dtype == pixels.dtype
    assert_array_equal(image.pixels, pixels.reshape(-1, 5, 7))
    assert image.grid.unit == "px" and image.grid.shape == (5, 7)


def test_alpha_is_dropped(tmp_path):
    alpha = np.full((5, 7, 1), 9, np.uint8)
    Pillow.fromarray(np.concatenate([RGB8.transpose(1, 2, 0), alpha], -1)).save(tmp_path / "a.png")
    assert_array_equal(read_raster(tmp_path / "a.png").pixels, RGB8)
    Pillow.fromarray(np.stack([GREY8, GREY8 // 2], -1), "LA").save(tmp_path / "b.png")
    assert_array_equal(read_raster(tmp_path / "b.png").pixels[0], GREY8)


def test_16_bit_colour_keeps_16_bits(tmp_path):
    colour = RNG.integers(0, 65536, (5, 7, 3)).astype(np.uint16)
    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(colour, isVector=True), str(tmp_path / "a.png"))
    assert_array_equal(read_raster(tmp_path / "a.png").pixels, colour.transpose(2, 0, 1))


def test_a_palette_is_colours_in_a_picture_and_indices_in_labels(tmp_path):
    indices = np.array([[0, 1], [2, 1]], np.uint8)
    picture = Pillow.fromarray(indices, "P")
    picture.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0] + [0] * 759)
    picture.save(tmp_path / "a.png")
    assert_array_equal(read_raster(tmp_path / "a.png").pixels[:, 0, 1], [255, 0, 0])
    assert_array_equal(read_label_raster(tmp_path / "a.png"), indices)


def test_labels_keep_16_bits_and_refuse_what_blurs_them(tmp_path):
    write_raster(tmp_path / "a.png", GREY16)
    labels = read_label_raster(tmp_path / "a.png")
    assert labels.dtype == np.uint16
    assert_array_equal(labels, GREY16)
    write_raster(tmp_path / "a.jpg", GREY8)
    with pytest.raises(InputError, match="JPEG, whose compression changes labels"):
        read_label_raster(tmp_path / "a.jpg")
    write_raster(tmp_path / "b.png", RGB8)
    with pytest.raises(InputError, match="in colour"):
        read_label_raster(tmp_path / "b.png")
    write_raster(tmp_path / "c.png", np.stack([GREY8] * 3))
    assert_array_equal(read_label_raster(tmp_path / "c.png"), GREY8)


def test_pages_of_a_tiff_are_a_stack(tmp_path):
    stack = RNG.integers(0, 65536, (4, 5, 7)).astype(np.uint16)
    tifffile.imwrite(tmp_path / "a.tif", stack, photometric="minisblack")
    image = read_raster(tmp_path / "a.tif")
    assert image.grid.shape == (4, 5, 7) and image.grid.unit == "px"
    assert_array_equal(image.pixels[0], stack)


def test_a_stack_as_wide_as_a_pixel_has_channels_is_no_colour(tmp_path):
    stack = RNG.integers(0, 255, (4, 5, 3)).astype(np.uint8)
    tifffile.imwrite(tmp_path / "a.tif", stack, photometric="minisblack")
    assert read_raster(tmp_path / "a.tif").pixels.shape == (1, 4, 5, 3)


def test_big_endian_tiff(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", GREY16, byteorder=">")
    assert_array_equal(read_raster(tmp_path / "a.tif").pixels[0], GREY16)


def test_a_photograph_is_turned_as_viewers_show_it(tmp_path):
    picture = Pillow.fromarray(RGB8.transpose(1, 2, 0))
    exif = picture.getexif()
    exif[0x0112] = 6  # turn by 90 degrees
    picture.save(tmp_path / "a.jpg", exif=exif)
    assert read_raster(tmp_path / "a.jpg").grid.shape == (7, 5)


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.jpg", "a.bmp"])
def test_damaged_files_are_refused(name, tmp_path):
    write_raster(tmp_path / name, GREY8)
    whole = (tmp_path / name).read_bytes()
    for size in (0, 20, len(whole) // 2):
        (tmp_path / name).write_bytes(whole[:size])
        with pytest.raises(InputError, match=f"'{name}' is not readable"):
            read_raster(tmp_path / name)


def test_what_a_format_would_change_is_not_written(tmp_path):
    for name, pixels in {
        "a.jpg": GREY16,
        "a.png": RGB8.astype(np.uint16),
        "b.png": GREY8.astype(float),
    }.items():
        with pytest.raises(InputError):
            write_raster(tmp_path / name, pixels)
    heat = GREY8.astype(np.float32) / 7
    write_raster(tmp_path / "map.tif", heat)
    assert_array_equal(read_raster(tmp_path / "map.tif").pixels[0], heat)


def test_a_folder_of_pictures_in_name_order(tmp_path):
    for k, name in enumerate(["b.png", "a.png", "c.tif"]):
        write_raster(tmp_path / name, np.full((2, 3), k, np.uint8))
    assert [int(i.pixels[0, 0, 0]) for i in read_images(tmp_path)] == [1, 0, 2]


def test_real_labels(data_root):
    labels = read_label_raster(sorted((data_root / "dsb2018_nuclei" / "labels").iterdir())[0])
    assert labels.dtype == np.uint16 and labels.max() == len(np.unique(labels)) - 1


def test_a_tiff_that_claims_more_strips_than_it_has_bytes(tmp_path):
    import tifffile

    path = tmp_path / "tall.tif"
    tifffile.imwrite(path, np.zeros((24, 20), np.uint8), rowsperstrip=1, metadata=None, compression="zlib")
    with tifffile.TiffFile(path) as tiff:
        at = tiff.pages[0].tags["ImageLength"].valueoffset
    raw = bytearray(path.read_bytes())
    raw[at : at + 4] = (10_000_000).to_bytes(4, "little")
    path.write_bytes(raw)
    with pytest.raises(InputError, match="strips or tiles"):
        read_raster(path)


def test_planar_colour_is_one_picture(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", RGB8, photometric="rgb", planarconfig="separate")
    assert_array_equal(read_raster(tmp_path / "a.tif").pixels, RGB8)


@pytest.mark.parametrize("pixels", [GREY8, GREY16], ids=["8", "16"])
def test_a_tiff_that_counts_from_white_is_turned(tmp_path, pixels):
    """As Pillow shows it, and every viewer."""
    tifffile.imwrite(tmp_path / "a.tif", pixels, photometric="miniswhite")
    top = np.iinfo(pixels.dtype).max
    assert_array_equal(read_raster(tmp_path / "a.tif").pixels[0], top - pixels)
    if pixels is GREY8:
        with Pillow.open(tmp_path / "a.tif") as shown:
            assert_array_equal(read_raster(tmp_path / "a.tif").pixels[0], np.asarray(shown.convert("L")))


def test_pages_of_two_sizes_are_refused_and_a_thumbnail_is_not_a_page(tmp_path):
    with tifffile.TiffWriter(tmp_path / "a.tif") as tiff:
        tiff.write(GREY8, metadata=None)
        tiff.write(GREY8[:3, :4], metadata=None)
    with pytest.raises(InputError, match=r"pages of 2 kinds \(5 x 7, 3 x 4\): save each"):
        read_raster(tmp_path / "a.tif")
    with tifffile.TiffWriter(tmp_path / "b.tif") as tiff:
        tiff.write(GREY8, metadata=None)
        tiff.write(GREY8[:3, :4], subfiletype=1, metadata=None)
    assert_array_equal(read_raster(tmp_path / "b.tif").pixels[0], GREY8)


def test_a_large_picture_is_read_and_the_limit_is_said(tmp_path, monkeypatch):
    """Pillow calls 20,000 x 20,000 an attack; here the limit is in bytes, and it can be raised."""
    Pillow.new("1", (20_000, 20_000)).save(tmp_path / "a.png")
    monkeypatch.setenv("CLEARMARGIN_MAX_GIB", "1")
    with pytest.raises(
        InputError, match=r"1.49 GiB of pixels: more than the limit of 1 GiB; CLEARMARGIN_MAX_GIB"
    ):
        read_raster(tmp_path / "a.png")
    monkeypatch.delenv("CLEARMARGIN_MAX_GIB")
    assert read_raster(tmp_path / "a.png").pixels.shape == (1, 20_000, 20_000)


@pytest.mark.parametrize(
    ("orientation", "shown"),
    [
        (1, GREY8),
        (2, GREY8[:, ::-1]),
        (3, GREY8[::-1, ::-1]),
        (4, GREY8[::-1]),
        (5, GREY8.T),
        (6, np.rot90(GREY8, -1)),  # a quarter to the right
        (7, GREY8[::-1, ::-1].T),
        (8, np.rot90(GREY8)),
    ],
)
def test_a_tiff_is_turned_as_its_orientation_says(tmp_path, orientation, shown):
    """By hand, from TIFF 6.0, section 8: where the first row and the first column are shown."""
    tags = [(274, "H", 1, orientation, True)]
    tifffile.imwrite(tmp_path / "a.tif", GREY8, photometric="minisblack", extratags=tags)
    assert_array_equal(read_raster(tmp_path / "a.tif").pixels[0], shown)


def test_a_tiffs_palette_is_colour_in_pictures_and_values_in_labels(tmp_path):
    picture = Pillow.fromarray(RGB8.transpose(1, 2, 0)).quantize(8)
    picture.save(tmp_path / "a.tif")
    assert_array_equal(
        read_raster(tmp_path / "a.tif").pixels, np.asarray(picture.convert("RGB")).transpose(2, 0, 1)
    )
    assert_array_equal(read_label_raster(tmp_path / "a.tif"), np.asarray(picture))


def test_inks_are_not_taken_for_colours(tmp_path):
    Pillow.fromarray(RGB8.transpose(1, 2, 0)).convert("CMYK").save(tmp_path / "a.tif")
    with pytest.raises(InputError, match=r"holds inks \(CMYK\): save it as RGB"):
        read_raster(tmp_path / "a.tif")


def bits(shape=(20, 30)):
    return RNG.random(shape) > 0.5


@pytest.mark.parametrize("kind", ["group3", "group4", "tiff_ccitt"])
def test_faxes_are_read(tmp_path, kind):
    page = bits()
    Pillow.fromarray(page).save(tmp_path / "a.tif", compression=kind)
    assert_array_equal(read_raster(tmp_path / "a.tif").pixels[0], page)
    assert_array_equal(read_label_raster(tmp_path / "a.tif"), page)


@pytest.mark.parametrize("kind", ["tiff_lzw", "zstd", "lzma", "packbits"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32, "colour"], ids=str)
def test_what_tifffile_alone_does_not_decode_is_read_bit_for_bit(tmp_path, kind, dtype):
    values = RNG.integers(0, 256, (20, 30, 3)).astype(np.uint8)
    if dtype != "colour":
        values = (values[..., 0].astype(np.uint16) * 257 / (7 if dtype == np.float32 else 1)).astype(dtype)
    Pillow.fromarray(values).save(tmp_path / "a.tif", compression=kind)
    pixels = read_raster(tmp_path / "a.tif").pixels
    assert pixels.dtype == values.dtype
    assert_array_equal(pixels, values.transpose(2, 0, 1) if dtype == "colour" else values[None])


def test_pages_compressed_as_lzw_are_a_stack(tmp_path):
    pages = [Pillow.fromarray(GREY16 // k) for k in (1, 2, 3)]
    pages[0].save(tmp_path / "a.tif", compression="tiff_lzw", save_all=True, append_images=pages[1:])
    assert_array_equal(
        read_raster(tmp_path / "a.tif").pixels, np.stack([GREY16 // k for k in (1, 2, 3)])[None]
    )


@pytest.mark.parametrize("big", [False, True], ids=["classic", "BigTIFF"])
def test_many_pages_compressed_as_lzw_are_each_the_first_of_a_copy(big, tmp_path, monkeypatch):
    """Libtiff would walk through all pages before it for each."""
    values = np.random.default_rng(0).integers(0, 2**16, (130, 5, 7)).astype(np.uint16)
    pages = [Pillow.fromarray(page) for page in values]
    path = tmp_path / "a.tif"
    pages[0].save(path, compression="tiff_lzw", save_all=True, append_images=pages[1:], big_tiff=big)
    before, positions = path.read_bytes(), []
    seek = TiffImagePlugin.TiffImageFile.seek
    monkeypatch.setattr(
        TiffImagePlugin.TiffImageFile, "seek", lambda self, k: positions.append(k) or seek(self, k)
    )
    np.testing.assert_array_equal(read_raster(path).pixels, values[None])
    assert positions == [0] * 130
    assert path.read_bytes() == before
    positions.clear()
    with Pillow.open(path) as theirs:  # another way to the same pages
        theirs.seek(129)
        np.testing.assert_array_equal(np.asarray(theirs), values[129])


def test_pages_that_are_alike_are_read_once_before_their_values(tmp_path, monkeypatch):
    values = np.random.default_rng(0).integers(0, 256, (150, 4, 4)).astype(np.uint8)
    with tifffile.TiffWriter(tmp_path / "a.tif") as writer:
        for page in values:
            writer.write(page, contiguous=False, metadata=None)
    pages = []
    made = tifffile.TiffPage.__init__
    monkeypatch.setattr(
        tifffile.TiffPage, "__init__", lambda self, *a, **k: pages.append(0) or made(self, *a, **k)
    )
    np.testing.assert_array_equal(read_raster(tmp_path / "a.tif").pixels, values[None])
    assert len(pages) < 5  # the others are frames, of which only what differs is read


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("white", [False, True])
def test_lzw_is_turned_and_inverted_as_deflate_is(tmp_path, orientation, white):
    """The other way to read: tifffile's, whose turns are tested by hand above."""
    for kind in ("tiff_lzw", "tiff_adobe_deflate"):
        Pillow.fromarray(GREY16).save(
            tmp_path / f"{kind}.tif", compression=kind, tiffinfo={274: orientation, 262: 0 if white else 1}
        )
    pixels = read_raster(tmp_path / "tiff_lzw.tif").pixels
    assert_array_equal(pixels, read_raster(tmp_path / "tiff_adobe_deflate.tif").pixels)


def test_a_jpeg_in_a_tiff_is_what_the_jpeg_alone_is(tmp_path):
    smooth = np.add.outer(np.arange(32), 3 * np.arange(48)).astype(np.uint8)
    colour = np.stack([smooth, smooth.max() - smooth, smooth // 2], -1)
    for picture in (Pillow.fromarray(smooth), Pillow.fromarray(colour)):
        picture.save(tmp_path / "a.jpg", quality=90, subsampling=0)
        picture.save(tmp_path / "a.tif", compression="jpeg", quality=90)
        alone, inside = (read_raster(tmp_path / name).pixels for name in ("a.jpg", "a.tif"))
        assert inside.shape == alone.shape
        assert np.abs(inside.astype(int) - alone).max() <= (0 if picture.mode == "L" else 12)
    with pytest.raises(InputError, match="compressed as JPEG, which changes labels"):
        read_label_raster(tmp_path / "a.tif")


def test_a_compression_that_is_not_decoded_is_named(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", GREY8, photometric="minisblack", metadata=None)
    with tifffile.TiffFile(tmp_path / "a.tif") as tiff:
        at = tiff.pages[0].tags["Compression"].valueoffset
    raw = bytearray((tmp_path / "a.tif").read_bytes())
    raw[at : at + 2] = (34712).to_bytes(2, "little")
    (tmp_path / "a.tif").write_bytes(raw)
    with pytest.raises(
        InputError, match="compressed as JPEG2000 with 1 x 8 bits a pixel, which is not decoded"
    ):
        read_raster(tmp_path / "a.tif")


def png(samples, colour_type):
    """Return a PNG of 16 bits, written by the specification (PNG, 5 and 11)."""
    height, width = samples.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in samples)
    header = struct.pack(">IIBBBBB", width, height, 16, colour_type, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    )


@pytest.mark.parametrize(("colour_type", "samples"), [(0, 1), (2, 3), (4, 2), (6, 4)])
def test_16_bits_of_every_png_are_kept(tmp_path, colour_type, samples):
    values = RNG.integers(0, 65536, (6, 9, samples)).astype(np.uint16)
    raw = png(values, colour_type)
    (tmp_path / "a.png").write_bytes(raw)
    kept = values[..., : 3 if samples >= 3 else 1]
    pixels = read_raster(tmp_path / "a.png").pixels
    assert pixels.dtype == np.uint16
    assert_array_equal(pixels, kept.transpose(2, 0, 1))
    (tmp_path / "a.png").write_bytes(raw[: len(raw) // 2])
    with pytest.raises(InputError, match="damaged or cut off"):
        read_raster(tmp_path / "a.png")


@pytest.mark.parametrize(("axes", "shape"), [("ZCYX", (4, 2, 5, 7)), ("CYX", (3, 5, 7)), ("CYX", (5, 5, 7))])
def test_the_channels_of_a_microscope_are_channels(tmp_path, axes, shape):
    values = RNG.integers(0, 65536, shape).astype(np.uint16)
    tifffile.imwrite(tmp_path / "a.tif", values, imagej=True, metadata={"axes": axes})
    assert_array_equal(read_raster(tmp_path / "a.tif").pixels, np.moveaxis(values, axes.index("C"), 0))


def test_a_deflated_strip_that_becomes_more_than_the_limit_is_refused(tmp_path, monkeypatch):
    """Its header claims 4 pixels, and its one strip holds 64 MiB."""
    monkeypatch.setenv("CLEARMARGIN_MAX_GIB", "0.01")
    packed = zlib.compress(bytes(2**26), 9)
    tifffile.imwrite(tmp_path / "a.tif", np.zeros((2, 2), np.uint8), compression="zlib", metadata=None)
    with tifffile.TiffFile(tmp_path / "a.tif") as tiff:
        tags = tiff.pages[0].tags
        offset, count = tags["StripOffsets"].valueoffset, tags["StripByteCounts"].valueoffset
        width = tags["StripByteCounts"].dtype
    raw = bytearray((tmp_path / "a.tif").read_bytes())
    end = len(raw)
    for at, value in ((offset, end), (count, len(packed))):
        raw[at : at + (2 if width == 3 else 4)] = value.to_bytes(2 if width == 3 else 4, "little")
    (tmp_path / "a.tif").write_bytes(bytes(raw) + packed)
    tracemalloc.start()
    with pytest.raises(InputError, match=r"strip or tile that is more than the limit of 0.01 GiB"):
        read_raster(tmp_path / "a.tif")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**25

"""Hostile files: whole ones of every format that is read, ways to damage them, and what a reader may answer."""

from __future__ import annotations

import gzip
import random
import re
import resource
import time
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np
import pydicom

from clearmargin.core import Code, Grid, InstanceSet, LabelClass, LabelMap, Prediction, Provenance
from clearmargin.datasets.phantom import make_phantom
from clearmargin.datasets.phantom_study import write_phantom_study
from clearmargin.errors import ClearMarginError
from clearmargin.formats import is_video, open_video, read_image
from clearmargin.formats.coco import read_coco_images, write_coco
from clearmargin.formats.dicom.images import index_dicom, read_dicom
from clearmargin.formats.dicom.parametric_map import read_parametric_map, write_parametric_map
from clearmargin.formats.dicom.rtstruct import read_rtstruct, write_rtstruct
from clearmargin.formats.dicom.seg import read_seg_content
from clearmargin.formats.dicom.seg_kinds import write_fractional_seg, write_label_map_seg
from clearmargin.formats.raster import read_label_raster, write_raster
from clearmargin.formats.video import write_video
from clearmargin.formats.volume import read_label_volume, write_volume

MAX_SECONDS = 5.0
MAX_KIB = 2 * 2**20

DICOM_NAMES = [
    "CT_small", "MR_small_RLE", "MR_small_implicit", "MR_small_bigendian", "MR_small_jp2klossless",
    "MR_small_jpeg_ls_lossless", "SC_rgb_jpeg_dcmtk", "SC_rgb_rle_2frame", "SC_rgb_small_odd", "image_dfl",
    "rtstruct", "JPEG2000", "JPGExtended", "rtdose", "test-SR", "liver_1frame", "JPEGLSNearLossless_16",
]  # fmt: skip
REAL_NAMES = [
    "pydicom_data/emri_small_RLE.dcm",
    "highdicom/seg_image_ct_binary.dcm",
    "highdicom/seg_image_ct_true_fractional.dcm",
]
ELEMENTS = [
    "Rows", "Columns", "NumberOfFrames", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation",
    "SamplesPerPixel", "PhotometricInterpretation", "RescaleSlope", "RescaleIntercept", "PixelSpacing",
    "ImagePositionPatient", "ImageOrientationPatient", "SliceThickness", "SOPClassUID", "SeriesInstanceUID",
    "Modality", "SpecificCharacterSet", "PixelPaddingValue", "PlanarConfiguration", "SegmentationType",
    "SegmentNumber", "ReferencedSegmentNumber", "MaximumFractionalValue", "RealWorldValueSlope",
    "ContourData", "ContourGeometricType", "ROINumber", "FrameTime", "TransferSyntaxUID",
    "GridFrameOffsetVector", "SpacingBetweenSlices", "SliceVector", "PhysicalDeltaX", "PhysicalUnitsXDirection",
]  # fmt: skip
VALUES = [
    b"", b"0", b"-1", b"1e308", b"nan", b"inf", b"\xff\xff", b"\x00\x00", b"60000", b"1\\2\\3", b"A" * 70,
    b"\\\\", b"1.2.840.10008.1.2.4.70",
]  # fmt: skip
NUMBERS = [b"0", b"-1", b"60000", b"4294967296", b"1e400", b"nan", b"", b"0.5", b"null", b'"x"', b"[]"]
WORDS = [0, 1, -1, 255, 0x7FFF, 0x8000, 60000, 0x7FFFFFFF, 0x80000000]


@dataclass(frozen=True, kw_only=True)
class Seed:
    """A whole file: what it is, the suffix that readers go by, its bytes."""

    name: str
    suffix: str
    content: bytes


def make_seeds(folder: Path, data_root: Path | None = None) -> list[Seed]:
    """One whole file or more of each format; the real ones of ``data_root`` besides, where there is one."""
    folder.mkdir(parents=True, exist_ok=True)
    _write_derived(folder)
    _write_plain(folder)
    found = [
        Seed(name=file.name, suffix=file.name[file.name.index(".") :], content=file.read_bytes())
        for file in sorted(folder.iterdir())
        if file.is_file()
    ]
    shipped = Path(pydicom.__file__).parent / "data" / "test_files"
    real = [] if data_root is None else [data_root / "dicom_awkward" / name for name in REAL_NAMES]
    for file in (*(shipped / f"{name}.dcm" for name in DICOM_NAMES), *real):
        found.append(Seed(name=file.name, suffix=".dcm", content=file.read_bytes()))
    return found


def _write_derived(folder: Path) -> None:
    """DICOM of every kind that we write, one slice of the CT it belongs to, a DICOMDIR's like, and a zip."""
    phantom = make_phantom(3, shape=(3, 40, 40), spacing=(5.0, 6.0, 6.0))
    study = write_phantom_study(folder / "study", phantom, 1)
    image = read_dicom(study.ct)
    code = Code(value="10200004", scheme="SCT", meaning="Liver")
    kinds = LabelMap(tuple(LabelClass(id=k, name=f"k{k}", type=code, category=code) for k in (1, 2, 3)))
    blocks = np.kron(np.eye(4, dtype=int), np.ones((10, 10), int))
    apart = InstanceSet.from_label_image(image.grid, np.stack([blocks, 0 * blocks, blocks]))
    maps = {"entropy": np.linspace(0, 1, image.pixels[0].size, dtype=np.float32).reshape(image.grid.shape)}
    made_by = Provenance(model="m", weights_sha256="0", config_sha256="0", software="s")
    flat = Prediction(instances=apart, label_map=kinds, provenance=made_by, maps=maps)
    (folder / "ct.dcm").write_bytes(image.source.files[0].read_bytes())
    (folder / "seg.dcm").write_bytes(study.truth.read_bytes())
    write_label_map_seg(folder / "labelmap.dcm", flat, image)
    write_fractional_seg(folder / "fractional.dcm", flat, "entropy", 1, image)
    write_parametric_map(folder / "map.dcm", flat, "entropy", image)
    write_rtstruct(folder / "contours.dcm", flat, image)
    with zipfile.ZipFile(folder / "series.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for file in image.source.files:
            archive.write(file, file.name)


def _write_plain(folder: Path) -> None:
    """Volumes, pictures, clips and COCO."""
    rng = np.random.default_rng(0)
    grid = Grid.from_spacing((4, 10, 12), (3, 1, 1))
    values = rng.integers(-1000, 1000, grid.shape).astype(np.int16)
    for suffix in (".nii", ".nii.gz", ".nrrd", ".mha"):
        write_volume(folder / f"volume{suffix}", values, grid)
    header = b"NRRD0004\ntype: short\ndimension: 3\nsizes: 12 10 4\nencoding: raw\nendian: little\n\n"
    (folder / "raw.nrrd").write_bytes(header + values.tobytes())
    deep = rng.integers(0, 2**16, (24, 20)).astype(np.uint16)
    for name in ("deep.png", "deep.tif"):
        write_raster(folder / name, deep)
    colour = rng.integers(0, 256, (3, 24, 20)).astype(np.uint8)
    for name in ("colour.png", "colour.tif", "colour.jpg", "colour.bmp"):
        write_raster(folder / name, colour)
    from PIL import Image as Pillow

    for name, picture, kind in (
        ("lzw.tif", deep, "tiff_lzw"),
        ("fax.tif", deep > 2**15, "group4"),
        ("jpeg.tif", np.moveaxis(colour, 0, -1), "jpeg"),
        ("zstd.tif", np.moveaxis(colour, 0, -1), "zstd"),
    ):
        Pillow.fromarray(picture).save(folder / name, compression=kind)
    clip = [np.full((3, 32, 32), 20 * k, np.uint8) for k in range(8)]
    write_video(folder / "clip.mkv", clip, 25)
    for name, codec in (("clip.mp4", "libx264"), ("clip.avi", "mpeg4")):
        _write_clip(folder / name, clip, codec)
    code = Code(value="1", scheme="99", meaning="x")
    kinds = LabelMap((LabelClass(id=1, name="k", type=code, category=code),))
    plane = Grid.from_spacing((24, 20))
    some = InstanceSet.from_label_image(plane, np.kron(np.eye(2, dtype=int), np.ones((12, 10), int)))
    write_coco(folder / "runs.json", [("a.png", some)], kinds)
    write_coco(folder / "outlines.json", [("a.png", some)], kinds, polygons=True)


def _write_clip(path: Path, clip: list[Any], codec: str) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25)
        stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
        for pixels in clip:
            frame = av.VideoFrame.from_ndarray(np.moveaxis(pixels, 0, -1).copy(), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def mutated(seed: Seed, rng: random.Random) -> bytes:
    """The file cut off, changed, doubled, or with a field's value replaced by an odd one."""
    whole = seed.content
    if seed.suffix.endswith(".gz") and rng.random() < 0.7:  # else only the checksum would ever be met
        return gzip.compress(_damaged(gzip.decompress(whole), seed, rng), 1)
    return _damaged(whole, seed, rng)


def _damaged(whole: bytes, seed: Seed, rng: random.Random) -> bytes:
    raw = bytearray(whole)
    kind = rng.randrange(5)
    if kind == 0:
        return bytes(raw[: rng.randrange(len(raw))])
    if kind == 1:
        for _ in range(rng.randrange(1, 12)):
            raw[rng.randrange(min(len(raw), 4000))] = rng.randrange(256)
    elif kind == 2:
        at, size = rng.randrange(len(raw)), rng.randrange(1, 400)
        raw[at : at + size] = b"" if rng.random() < 0.5 else bytes(size)
    elif kind == 3:
        at, size = rng.randrange(min(132, len(raw) - 1), len(raw)), rng.randrange(1, 400)
        raw[at:at] = raw[at : at + size]
    elif seed.suffix == ".dcm":
        _odd_elements(raw, rng)
    else:
        _odd_numbers(raw, rng)
    return bytes(raw)


def _odd_elements(raw: bytearray, rng: random.Random) -> None:
    """Give up to three elements an odd value, as explicit VR little endian stores it."""
    for _ in range(rng.randrange(1, 4)):
        tag = int(pydicom.datadict.tag_for_keyword(rng.choice(ELEMENTS)) or 0)
        mark = tag.to_bytes(4, "big")
        at = raw.find(bytes([mark[1], mark[0], mark[3], mark[2]]))
        if at > 0:
            length = int.from_bytes(raw[at + 6 : at + 8], "little")
            value = rng.choice(VALUES)
            value += b" " * (len(value) % 2)
            raw[at + 6 : at + 8 + length] = len(value).to_bytes(2, "little") + value


def _odd_numbers(raw: bytearray, rng: random.Random) -> None:
    """Replace a number of a text header by an odd one, or a word of a binary one."""
    places = [m.span() for m in re.finditer(rb"-?\d+(\.\d+)?", bytes(raw[:4000]))]
    if places and raw[:400].isascii():
        for _ in range(rng.randrange(1, 3)):
            start, end = rng.choice(places)
            raw[start:end] = rng.choice(NUMBERS)
        return
    for _ in range(rng.randrange(1, 4)):
        size = rng.choice((2, 4))
        at = rng.randrange(min(len(raw) - size, 400))
        word = rng.choice(WORDS) & (2 ** (8 * size) - 1)
        raw[at : at + size] = word.to_bytes(size, rng.choice(("little", "big")))


def readers(seed: Seed) -> Iterator[Callable[[Path], object]]:
    """All readers that a file of the seed's suffix may meet."""
    if seed.suffix == ".json":
        yield read_coco_images
        return
    yield read_image
    if seed.suffix in (".dcm", ".zip"):
        yield from (index_dicom, read_seg_content, read_parametric_map, _contours)
    if seed.suffix in (".dcm", ".mp4", ".avi", ".mkv"):
        yield _play
    if seed.suffix in (".png", ".tif", ".jpg", ".bmp"):
        yield read_label_raster
    if seed.suffix in (".nii", ".nii.gz", ".nrrd", ".mha"):
        yield read_label_volume


def _contours(path: Path) -> object:
    return read_rtstruct(path, grid=Grid.from_spacing((3, 64, 64), (5, 1, 1)))


def _play(path: Path) -> None:
    if is_video(path):
        clip = open_video(path)
        for _ in clip.frames():
            pass
        clip.frame(clip.frame_count // 2)


def write_case(seeds: Sequence[Seed], number: int, run: int, folder: Path) -> tuple[Seed, Path]:
    """Write case ``number`` of ``run``: the same two numbers and seeds are the same bytes."""
    rng = random.Random(f"{run}-{number}")
    seed = rng.choice(seeds)
    path = folder / f"case{seed.suffix}"
    path.write_bytes(mutated(seed, rng))
    return seed, path


def answers(seed: Seed, path: Path) -> Counter[str]:
    """Let every reader try the file and count ``read`` and ``refused``.

    Anything but a typed error comes out, and an AssertionError for one that takes too long, fills memory or
    says more than one may.
    """
    counted: Counter[str] = Counter()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for reader in readers(seed):
        start = time.process_time()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                reader(path)
            counted["read"] += 1
        except ClearMarginError as error:
            counted["refused"] += 1
            if "Phantom" in str(error) or str(path.parent) in str(error):
                raise AssertionError("the message names the patient or the folder") from error
        if time.process_time() - start > MAX_SECONDS:
            raise AssertionError(f"more than {MAX_SECONDS:g} s in {reader.__name__}")
    # In KiB. What earlier tests of this process held is not this file's doing.
    if resource.getrusage(resource.RUSAGE_SELF).ru_maxrss > max(before + 2**18, MAX_KIB):
        raise AssertionError("more than 2 GiB")
    return counted

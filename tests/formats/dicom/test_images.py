"""A series is read in place or refused with the reason; SimpleITK and pydicom are the oracles."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pydicom
import pytest
import SimpleITK
from numpy.testing import assert_allclose, assert_array_equal
from scipy import ndimage

from clearmargin.core import Grid
from clearmargin.errors import GeometryError, InputError
from clearmargin.formats import read_image
from clearmargin.formats.dicom import index as dicom_index
from clearmargin.formats.dicom.images import index_dicom, read_dicom
from clearmargin.formats.dicom.scan import quick_header


def test_every_voxel_keeps_its_value_at_its_place(any_grid, write_series, tmp_path):
    stored = np.random.default_rng(1).integers(0, 3000, any_grid.shape)
    write_series(tmp_path, any_grid, stored)
    image = read_dicom(tmp_path)
    assert image.pixels.dtype == np.int16
    # The reader may order slices the other way: values are looked up by world position.
    index = np.stack(np.meshgrid(*[range(n) for n in any_grid.shape], indexing="ij"), -1)
    found = image.grid.to_index(any_grid.to_world(index))
    assert np.abs(found - np.round(found)).max() * max(any_grid.spacing) < 0.01
    assert_array_equal(
        image.pixels[0][tuple(np.round(found).astype(int).transpose(3, 0, 1, 2))], stored - 1024
    )


def test_agrees_with_simpleitk(any_grid, write_series, tmp_path):
    write_series(tmp_path, any_grid)
    image = read_dicom(tmp_path)
    reader = SimpleITK.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(tmp_path)))
    oracle = reader.Execute()
    assert_array_equal(image.pixels[0], SimpleITK.GetArrayFromImage(oracle))
    for z, y, x in [(0, 0, 0), (5, 14, 12), (3, 0, 7)]:
        assert_allclose(
            image.grid.to_world((z, y, x)), oracle.TransformIndexToPhysicalPoint((x, y, z)), atol=1e-3
        )


def test_files_are_kept_in_slice_order_and_out_of_sight(axial, write_series, tmp_path):
    files = write_series(tmp_path, axial)
    image = read_dicom(tmp_path)
    assert list(image.source.files) == files
    assert str(tmp_path) not in repr(image.source) + repr(image) + repr(index_dicom(tmp_path))
    assert image.source.case == read_dicom(files).source.case
    assert image.source.modality == "CT"


def _without(*missing: int):
    return lambda _, z: z not in missing


def test_a_gap_is_named_and_filled_only_when_asked(axial, write_series, tmp_path):
    write_series(tmp_path, axial, change=_without(2, 4))
    with pytest.raises(GeometryError, match=r"4 slices, 2 missing \(gaps after slices 2, 3\).*--allow-gaps"):
        read_dicom(tmp_path)
    filled = read_dicom(tmp_path, allow_gaps=True)
    assert filled.grid.same_as(axial)
    whole = np.arange(np.prod(axial.shape)).reshape(axial.shape) % 2000 - 1024
    kept = [0, 1, 3, 5]
    assert_array_equal(filled.pixels[0][kept], whole[kept])
    assert_array_equal(filled.pixels[0][2], np.rint((whole[1] + whole[3]) / 2))


def test_varying_distances_are_named(axial, write_series, tmp_path):
    def shift(ds, z):
        if z == 5:
            ds.ImagePositionPatient[2] = float(ds.ImagePositionPatient[2]) + 0.9

    write_series(tmp_path, axial, change=shift)
    with pytest.raises(GeometryError, match=r"varying slice distance \(2\.500 to 3\.400 mm"):
        read_dicom(tmp_path)
    assert read_dicom(tmp_path, allow_gaps=True).grid.spacing[1:] == axial.spacing[1:]


def test_duplicate_positions_are_named(axial, write_series, tmp_path):
    write_series(tmp_path / "a", axial)

    def second_phase(ds, _):
        ds.SOPInstanceUID += ".9"

    write_series(tmp_path / "b", axial, change=second_phase)
    with pytest.raises(GeometryError, match="duplicate positions: 6 of 12 slices"):
        read_dicom(tmp_path)


def test_copies_of_one_instance_are_one_slice(axial, write_series, tmp_path):
    write_series(tmp_path / "a", axial)
    write_series(tmp_path / "b", axial)
    assert read_dicom(tmp_path).grid.same_as(axial)


def test_a_localizer_in_the_series_is_named(axial, write_series, tmp_path):
    def turn(ds, z):
        if z == 3:
            ds.ImageOrientationPatient = [0, 1, 0, 0, 0, -1]

    write_series(tmp_path, axial, change=turn)
    with pytest.raises(
        GeometryError, match=r"mixed orientations: 1 of 6 slices .* 1: axial, 5 .* 2: sagittal, 1 "
    ) as caught:
        read_dicom(tmp_path)
    assert isinstance(caught.value, GeometryError)
    assert read_dicom(tmp_path, volume="sagittal").grid.shape == (1, 15, 13)
    with pytest.raises(GeometryError, match=r"1 missing .gap after slice 3"):
        read_dicom(tmp_path, volume="1")


def test_slices_of_two_sizes_are_named(axial, write_series, tmp_path):
    write_series(tmp_path / "a", axial, change=_without(5))
    wide = Grid(shape=(6, 15, 20), affine=axial.affine, unit="mm")
    write_series(tmp_path / "b", wide, change=lambda _, z: z == 5)
    with pytest.raises(GeometryError, match="slices of 2 sizes"):
        read_dicom(tmp_path)


def test_tilt_is_named_and_straightened_only_when_asked(tilted, write_series, tmp_path):
    # A ramp along y, constant in the world: after straightening it must still be constant along z.
    index = np.stack(np.meshgrid(*[range(n) for n in tilted.shape], indexing="ij"), -1)
    ramp = np.round(tilted.to_world(index)[..., 1] * 100).astype(int) + 5000
    write_series(tmp_path, tilted, ramp)
    with pytest.raises(GeometryError, match=r"gantry tilt: .* by 20\.0 degrees.*--allow-tilt"):
        read_dicom(tmp_path)
    image = read_image(tmp_path, allow_tilt=True)
    assert image.grid.is_orthogonal
    assert_allclose(image.grid.spacing, (2.5, 0.8, 0.8), atol=1e-6)
    where = image.grid.to_world(np.argwhere(np.ones(image.grid.shape)))[:, 1].reshape(image.grid.shape)
    expected = where * 100 + 5000 - 1024
    inside = np.zeros(image.grid.shape, bool)
    for z in range(6):  # one pixel inside each slice's own extent
        low, high = tilted.to_world((z, 1, 0))[1], tilted.to_world((z, 13, 0))[1]
        inside[z] = (where[z] >= low) & (where[z] <= high)
    assert inside.mean() > 0.4
    assert np.abs(image.pixels[0][inside] - expected[inside]).max() <= 1.01


def test_the_real_tilted_phantom(data_root):
    folder = data_root / "dicom_ct_gantry_tilt"
    with pytest.raises(GeometryError, match="gantry tilt"):
        read_dicom(folder)
    image = read_dicom(folder, allow_tilt=True)
    assert image.grid.is_orthogonal and image.grid.shape[0] == 10
    for file, z in zip(image.source.files, range(10), strict=True):
        ds = pydicom.dcmread(file)
        place = Grid(
            shape=ds.pixel_array.shape,
            affine=np.array(
                [
                    [0, 0, ds.PixelSpacing[1], ds.ImagePositionPatient[0]],
                    [0, ds.PixelSpacing[0] * ds.ImageOrientationPatient[4], 0, ds.ImagePositionPatient[1]],
                    [1, ds.PixelSpacing[0] * ds.ImageOrientationPatient[5], 0, ds.ImagePositionPatient[2]],
                    [0, 0, 0, 1],
                ]
            ),
            unit="mm",
        )
        world = image.grid.plane(z).to_world(np.argwhere(np.ones(image.grid.shape[1:])))
        lifted = np.c_[world, np.ones(len(world))] @ np.linalg.inv(place.affine).T
        assert np.abs(lifted[:, 0]).max() < 0.01  # still in the slice's own plane
        values = ds.pixel_array * float(ds.RescaleSlope) + float(ds.RescaleIntercept)
        oracle = ndimage.map_coordinates(values, lifted[:, 1:3].T, order=1, cval=np.nan)
        inside = np.isfinite(oracle)
        assert inside.mean() > 0.5
        assert np.abs(image.pixels[0, z].ravel()[inside] - oracle[inside]).max() <= 0.51


def test_one_of_several_series_must_be_chosen(axial, write_series, tmp_path):
    write_series(tmp_path / "a", axial, uid="1.2.826.5")
    small = Grid(shape=(2, 15, 13), affine=axial.affine, unit="mm")

    def mr(ds, _):
        ds.Modality, ds.SeriesDescription = "MR", "T2 CANARY"

    write_series(tmp_path / "b", small, uid="1.2.826.6", change=mr)
    with pytest.raises(
        InputError, match=r"2 series, choose one with --series: 1 \(SeriesNumber 1\): CT volume, 6 x 15 x 13"
    ) as caught:
        read_dicom(tmp_path)
    assert "CANARY" not in str(caught.value)
    for rule, n in {"list:1": 6, "2": 2, "largest": 6, "mr": 2, "1.2.826.5": 6, "t2": 2}.items():
        assert read_image(tmp_path, series=rule).grid.shape[0] == n
    with pytest.raises(InputError, match="no series fits"):
        read_dicom(tmp_path, series="7")


def test_rescale_is_applied_slice_by_slice(axial, write_series, tmp_path):
    def pet(ds, z):
        ds.Modality, ds.RescaleSlope, ds.RescaleIntercept = "PT", str(0.5 + z), "0"

    write_series(tmp_path, axial, np.full(axial.shape, 10), change=pet)
    image = read_dicom(tmp_path)
    assert image.pixels.dtype == np.float32
    assert_array_equal(image.pixels[0, :, 0, 0], [5, 15, 25, 35, 45, 55])


def test_integral_rescales_stay_16_bit_where_they_fit(axial, write_series, tmp_path):
    stored = np.full(axial.shape, -32768)
    write_series(tmp_path, axial, stored)
    assert read_dicom(tmp_path).pixels.dtype == np.int32  # -33792 does not fit
    write_series(tmp_path, axial, stored + 32768)
    assert read_dicom(tmp_path).pixels.dtype == np.int16


def test_padding_becomes_the_lowest_measured_value(axial, write_series, tmp_path):
    stored = np.full(axial.shape, 24)
    stored[:, :2] = -2000
    stored[0, 5, 5] = 20

    def pad(ds, _):
        ds.add_new("PixelPaddingValue", "SS", -2000)

    write_series(tmp_path, axial, stored, change=pad)
    pixels = read_dicom(tmp_path).pixels
    assert_array_equal(np.unique(pixels), [-1004, -1000])
    assert (pixels[:, :, :2] == -1004).all()


@pytest.mark.parametrize("modality", ["DX", "CR", "MG", "XA", "US", "OT"])
@pytest.mark.parametrize(("slope", "intercept"), [(1, 0), (2, -1000)])
def test_monochrome1_is_turned_over_for_grey_levels(
    modality, slope, intercept, axial, write_series, tmp_path
):
    lone = Grid(shape=(1, 15, 13), affine=axial.affine, unit="mm")
    stored = np.arange(15 * 13).reshape(lone.shape)

    def film(ds, _):
        ds.Modality, ds.PhotometricInterpretation = modality, "MONOCHROME1"
        ds.PixelRepresentation, ds.BitsStored, ds.HighBit = 0, 12, 11
        ds.RescaleSlope, ds.RescaleIntercept, ds.RescaleType = str(slope), str(intercept), "US"

    write_series(tmp_path, lone, stored, change=film)
    assert_array_equal(read_dicom(tmp_path).pixels[0], (4095 - stored) * slope + intercept)


@pytest.mark.parametrize("modality", ["CT", "MR", "PT", "NM"])
@pytest.mark.parametrize("intercept", [0, -1000])
def test_monochrome1_leaves_quantities_as_they_are(modality, intercept, axial, write_series, tmp_path):
    """In a CT, display does not turn bone into air: whole series, half a series, whatever the rescale."""
    stored = np.arange(np.prod(axial.shape)).reshape(axial.shape)
    for name, inverted in {"all": range(6), "half": range(3)}.items():

        def invert(ds, z, inverted=inverted):
            ds.Modality, ds.RescaleIntercept = modality, str(intercept)
            if z in inverted:
                ds.PhotometricInterpretation = "MONOCHROME1"

        write_series(tmp_path / name, axial, stored, change=invert)
        assert_array_equal(read_dicom(tmp_path / name).pixels[0], stored + intercept)


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize(("bits", "high"), [(12, 15), (12, 13), (10, 15), (8, 15), (12, 11)])
def test_values_begin_where_the_high_bit_says(signed, bits, high, axial, write_series, tmp_path):
    low = -(2 ** (bits - 1)) if signed else 0
    values = np.random.default_rng(0).integers(low, low + 2**bits, axial.shape)
    noise = np.random.default_rng(1).integers(0, 2**16, axial.shape) << (high + 1)  # overlays hide above

    def place(ds, z):
        ds.BitsStored, ds.HighBit, ds.PixelRepresentation, ds.RescaleIntercept = bits, high, int(signed), "0"
        words = ((values[z] & (2**bits - 1)) << (high + 1 - bits)) | noise[z]
        ds.PixelData = (words & 0xFFFF).astype("<u2").tobytes()

    write_series(tmp_path, axial, change=place)
    assert_array_equal(read_dicom(tmp_path).pixels[0], values)


def test_a_high_bit_that_the_values_belie_is_refused(axial, write_series, tmp_path):
    """Values from bit 0 on under a header that puts them four bits higher: which is right is not known."""

    def wrong(ds, _):
        ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 12, 15, 0

    write_series(tmp_path, axial, np.full(axial.shape, 77), change=wrong)
    with pytest.raises(
        InputError, match="HighBit 15 says that the lowest 4 bits hold no values, and they do"
    ):
        read_dicom(tmp_path)

    def impossible(ds, _):
        ds.BitsStored, ds.HighBit = 12, 7

    write_series(tmp_path, axial, change=impossible)
    with pytest.raises(InputError, match="HighBit does not fit 12 bits stored in 16 allocated"):
        read_dicom(tmp_path)


def test_run_lengths_keep_the_high_bit(axial, write_series, tmp_path):
    values = np.random.default_rng(0).integers(0, 4096, axial.shape)

    def compress(ds, z):
        ds.BitsStored, ds.HighBit, ds.PixelRepresentation, ds.RescaleIntercept = 12, 15, 0, "0"
        ds.PixelData = (values[z] << 4).astype("<u2").tobytes()
        ds.compress(pydicom.uid.RLELossless, generate_instance_uid=False)

    write_series(tmp_path, axial, change=compress)
    assert_array_equal(read_dicom(tmp_path).pixels[0], values)


def test_bits_above_the_stored_ones_are_no_value(axial, write_series, tmp_path):
    def overlay(ds, _):
        ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 12, 11, 0
        values = np.frombuffer(ds.PixelData, "<u2") | 0x8000
        ds.PixelData = values.tobytes()

    write_series(tmp_path, axial, np.full(axial.shape, 77), change=overlay)
    assert (read_dicom(tmp_path).pixels == 77 - 1024).all()


def test_a_series_cut_off_or_without_position_is_refused(axial, write_series, tmp_path):
    files = write_series(tmp_path, axial)
    files[3].write_bytes(files[3].read_bytes()[:-40])
    with pytest.raises(InputError, match="cut off"):
        read_dicom(tmp_path)

    def lost(ds, z):
        if z == 2:
            del ds.ImagePositionPatient

    write_series(tmp_path, axial, change=lost)
    with pytest.raises(GeometryError, match="1 of 6 images without a position"):
        read_dicom(tmp_path)


def test_an_absurd_header_is_refused_before_anything_is_allocated(axial, write_series, tmp_path):
    def claim(ds, _):
        ds.Rows = ds.Columns = 60_000
        ds.NumberOfFrames = 500

    (file, *_) = write_series(tmp_path, axial, change=claim)
    with pytest.raises(InputError, match="60000 x 60000 x 500"):
        read_dicom(file)


def test_no_dicom_at_all(tmp_path):
    (tmp_path / "notes.txt").write_text("nothing here")
    with pytest.raises(InputError, match="no readable DICOM"):
        read_dicom(tmp_path)
    with pytest.raises(InputError, match=r"no file or folder '.*/missing'"):
        read_image(Path(tmp_path / "missing"))


def test_no_identity_in_any_refusal(axial, write_series, tmp_path):
    folder = tmp_path / "CANARY"
    for change in (
        _without(2),
        lambda ds, z: setattr(ds, "RescaleSlope", "0"),
        lambda ds, z: delattr(ds, "Rows"),
    ):
        write_series(folder, axial, change=change)
        with pytest.raises(InputError) as caught:
            read_dicom(folder)
        assert "CANARY" not in str(caught.value) and "1.2.826" not in str(caught.value)
        for file in folder.iterdir():
            file.unlink()


def test_the_quick_header_says_what_pydicom_says(data_root):
    """Elements found without parsing the others are those that a full parse finds, in every file that it takes."""
    wanted, sequences = dicom_index._tag_numbers()
    taken = 0
    for path in sorted((data_root / "dicom_awkward").rglob("*.dcm")):
        quick = quick_header(path, wanted, sequences)
        if quick is None:
            continue
        taken += 1
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            ds = pydicom.dcmread(path, stop_before_pixels=True)
            assert quick.file_meta.TransferSyntaxUID == ds.file_meta.TransferSyntaxUID
            for keyword in wanted.values():
                theirs = ds.get(keyword)
                if theirs is None or keyword in ("SpecificCharacterSet", "PixelPaddingValue"):
                    continue
                if isinstance(quick.get(keyword), list | tuple):
                    assert [str(v) for v in quick.get(keyword)] == [str(v) for v in theirs], (
                        path.name,
                        keyword,
                    )
                elif keyword in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing"):
                    ours = [
                        float(v) for v in quick.get_item(keyword).value.decode().strip("\0 ").split("\\") if v
                    ]
                    assert ours == [float(v) for v in theirs or []], (path.name, keyword)
                elif theirs != "":
                    ours = quick.get(keyword)
                    assert (str(ours) == str(theirs)) or ours == float(theirs), (path.name, keyword)
    assert taken > 80


def test_a_damaged_modality_is_not_quoted():
    from clearmargin.formats.dicom.boundary import modality_of

    for value in ("CT\x08\x00CANARY^NAME", ["CT", "CANARY"], "canary", None, "A" * 40):
        assert modality_of({"Modality": value}) == ""
    assert modality_of({"Modality": "MR"}) == "MR"


def test_a_rescale_beyond_floats_is_refused():
    from clearmargin.formats.dicom.values import FrameScale, to_units

    with pytest.raises(InputError, match="rescale is damaged"):
        to_units(np.ones((2, 2), np.uint16), {}, FrameScale(slope=1e300), np.dtype(np.float32))


def test_a_malformed_element_is_named_and_not_quoted(axial, write_series, tmp_path):
    from clearmargin.formats.dicom.boundary import dicom_boundary, read_header

    (file, *_) = write_series(tmp_path, axial)
    content = file.read_bytes()
    at = content.index(b"\x28\x00\x10\x00US\x02\x00")
    file.write_bytes(content[: at + 6] + b"\x03\x00CNY" + content[at + 10 :])
    with (
        pytest.raises(InputError, match="malformed: Rows holds no value of its kind") as caught,
        dicom_boundary(),
    ):
        _ = read_header(file).Rows
    assert "CNY" not in str(caught.value) and "Error" not in str(caught.value)


def test_refusals_name_what_cannot_be_decoded(axial, write_series, tmp_path):
    lone = Grid(shape=(1, 15, 13), affine=axial.affine, unit="mm")

    def unread(ds, _, syntax="1.2.840.10008.1.2.4.92"):
        ds.PixelData = pydicom.encaps.encapsulate([bytes(100)])
        ds["PixelData"].VR, ds["PixelData"].is_undefined_length = "OB", True
        ds.file_meta.TransferSyntaxUID = pydicom.uid.UID(syntax)

    (file,) = write_series(tmp_path / "part 2", lone, change=unread)
    with pytest.raises(
        InputError, match=r"transfer syntax \(JPEG 2000 Part 2.*\) is one that no decoder here reads"
    ):
        read_dicom(file)
    content = file.read_bytes().replace(b"1.2.840.10008.1.2.4.92", b"1.2.840.10008.1.2.4.99")
    file.write_bytes(content)
    with pytest.raises(InputError, match="transfer syntax is one that is not known here"):
        read_dicom(file)

    def damaged(ds, z):
        unread(ds, z, pydicom.uid.JPEG2000Lossless)

    write_series(tmp_path / "j2k", lone, change=damaged)
    with pytest.raises(InputError, match=r"pixel data \(JPEG 2000 .*Lossless.*\) cannot be decoded"):
        read_dicom(tmp_path / "j2k")

    def floats(ds, _):
        values = np.zeros(15 * 13, "<f4").tobytes()
        del ds.PixelData
        ds.FloatPixelData = values

    write_series(tmp_path / "float", lone, change=floats)
    with pytest.raises(InputError, match="floating-point pixels are read from Parametric Maps only"):
        read_dicom(tmp_path / "float")


def test_a_slice_without_the_others_rescale_is_refused(axial, write_series, tmp_path):
    def forget(ds, z):
        if z == 2:
            del ds.RescaleSlope, ds.RescaleIntercept

    write_series(tmp_path, axial, change=forget)
    with pytest.raises(InputError, match="1 of 6 slices state no RescaleSlope"):
        read_dicom(tmp_path)


def test_of_very_many_series_a_message_lists_some(axial, write_series, tmp_path):
    for k in range(23):
        write_series(
            tmp_path / str(k), Grid(shape=(1, 15, 13), affine=axial.affine, unit="mm"), uid=f"1.2.826.7.{k}"
        )
    with pytest.raises(InputError, match=r"23 series.* \| and 3 more; `clearmargin batch`"):
        read_dicom(tmp_path)

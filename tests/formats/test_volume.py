"""Volumes keep dtype, values and world positions; nibabel and SimpleITK are the oracles."""

from __future__ import annotations

import nibabel
import numpy as np
import pytest
import SimpleITK
from numpy.testing import assert_allclose, assert_array_equal

from clearmargin.core import Grid
from clearmargin.errors import ConfigError, GeometryError, InputError
from clearmargin.formats import read_image
from clearmargin.formats.volume import read_label_volume, read_volume, write_volume


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".nrrd", ".mha"])
@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.int32, np.float32])
def test_round_trip(suffix, dtype, any_grid, tmp_path):
    values = np.arange(np.prod(any_grid.shape)).reshape(any_grid.shape).astype(dtype)
    path = tmp_path / f"volume{suffix}"
    write_volume(path, values, any_grid)
    image = read_image(path)
    assert image.pixels.dtype == dtype
    assert image.grid.same_as(any_grid, tolerance=1e-3)
    assert_array_equal(image.pixels[0], values)


def test_nifti_and_nrrd_of_other_tools_agree(any_grid, tmp_path):
    values = np.arange(np.prod(any_grid.shape), dtype=np.int16).reshape(any_grid.shape)
    write_volume(tmp_path / "a.nii.gz", values, any_grid)
    write_volume(tmp_path / "a.nrrd", values, any_grid)
    nifti = nibabel.load(tmp_path / "a.nii.gz")
    itk = SimpleITK.ReadImage(str(tmp_path / "a.nrrd"))
    for z, y, x in [(0, 0, 0), (5, 14, 12), (2, 7, 1)]:
        world = any_grid.to_world((z, y, x))
        assert_allclose(nifti.affine @ (x, y, z, 1), (-world[0], -world[1], world[2], 1), atol=1e-3)
        assert np.asarray(nifti.dataobj)[x, y, z] == values[z, y, x]
        assert_allclose(itk.TransformIndexToPhysicalPoint((x, y, z)), world, atol=1e-3)
        assert itk[x, y, z] == values[z, y, x]


def test_a_sheared_grid_fits_nifti_only(tilted, tmp_path):
    values = np.zeros(tilted.shape, np.int16)
    write_volume(tmp_path / "a.nii", values, tilted)
    assert read_volume(tmp_path / "a.nii").grid.same_as(tilted, tolerance=1e-3)
    with pytest.raises(GeometryError, match="sheared"):
        write_volume(tmp_path / "a.nrrd", values, tilted)


def test_a_scaled_nifti_becomes_float32(axial, tmp_path):
    stored = np.arange(np.prod(axial.shape), dtype=np.int16).reshape(axial.shape)
    write_volume(tmp_path / "a.nii", stored, axial)
    raw = bytearray((tmp_path / "a.nii").read_bytes())
    raw[112:120] = np.array([0.5, -10], "<f4").tobytes()  # scl_slope, scl_inter
    (tmp_path / "a.nii").write_bytes(raw)
    image = read_volume(tmp_path / "a.nii")
    assert image.pixels.dtype == np.float32
    assert_allclose(image.pixels[0], stored * 0.5 - 10)


def test_units_other_than_millimetres(axial, tmp_path):
    write_volume(tmp_path / "a.nii", np.zeros(axial.shape, np.int16), axial)
    volume = nibabel.load(tmp_path / "a.nii")
    volume.header.set_xyzt_units("micron")
    nibabel.save(volume, tmp_path / "b.nii")
    assert_allclose(read_volume(tmp_path / "b.nii").grid.spacing, np.array(axial.spacing) / 1000)


def test_no_millimetres_are_invented(tmp_path):
    grid = Grid.from_spacing((3, 4, 5))
    for name in ("a.nii", "a.nii.gz"):
        write_volume(tmp_path / name, np.zeros(grid.shape, np.uint8), grid)
        assert read_volume(tmp_path / name).grid.unit == "px"
    header = b"NRRD0004\ntype: uint8\ndimension: 3\nsizes: 5 4 3\nencoding: raw\n\n"
    (tmp_path / "b.nrrd").write_bytes(header + bytes(60))
    assert read_volume(tmp_path / "b.nrrd").grid.unit == "px"


def test_a_fourth_dimension_is_channels(axial, tmp_path):
    values = np.random.default_rng(0).integers(0, 99, (3, *axial.shape)).astype(np.int16)
    for name in ("a.nii.gz", "a.nrrd", "a.mha"):
        write_volume(tmp_path / name, values, axial)
        assert_array_equal(read_volume(tmp_path / name).pixels, values)
        with pytest.raises(InputError, match="is 4-D, with 3 volumes: labels are one"):
            read_label_volume(tmp_path / name)


def test_labels_are_whole_numbers(axial, tmp_path):
    labels = np.zeros(axial.shape, np.float32)
    labels[2, 3, 4] = 7
    write_volume(tmp_path / "a.nii", labels, axial)
    found, grid = read_label_volume(tmp_path / "a.nii")
    assert np.issubdtype(found.dtype, np.integer) and found[2, 3, 4] == 7 and grid.same_as(axial)
    labels[0, 0, 0] = 0.5
    write_volume(tmp_path / "a.nii", labels, axial)
    with pytest.raises(InputError, match="fractions"):
        read_label_volume(tmp_path / "a.nii")


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz", "a.nrrd", "a.mha"])
def test_damaged_files_are_refused(name, axial, tmp_path):
    write_volume(
        tmp_path / name, np.arange(np.prod(axial.shape)).reshape(axial.shape).astype(np.int16), axial
    )
    whole = (tmp_path / name).read_bytes()
    for size in (0, 10, 300, len(whole) // 2):
        (tmp_path / name).write_bytes(whole[:size])
        with pytest.raises(InputError):
            read_volume(tmp_path / name)


def test_absurd_sizes_are_refused_before_allocation(tmp_path):
    header = b"NRRD0004\ntype: short\ndimension: 3\nsizes: 60000 60000 500\nencoding: raw\nendian: little\n\n"
    (tmp_path / "a.nrrd").write_bytes(header)
    with pytest.raises(InputError, match="60000 x 60000 x 500"):
        read_volume(tmp_path / "a.nrrd")


def test_real_volumes(data_root):
    folder = data_root / "mr_tumour_volumes_pyradiomics"
    for name in ("brain1", "brain2", "breast1"):
        image = read_image(folder / f"{name}_image.nrrd")
        labels, grid = read_label_volume(folder / f"{name}_label.nrrd")
        assert grid.same_as(image.grid) and labels.max() >= 1
        oracle = SimpleITK.ReadImage(str(folder / f"{name}_image.nrrd"))
        z, y, x = (n - 1 for n in image.grid.shape)
        assert_allclose(
            image.grid.to_world((z, y, x)), oracle.TransformIndexToPhysicalPoint((x, y, z)), atol=1e-6
        )
    assert read_image(folder / "brain1_image.nrrd").grid.spacing == pytest.approx((6.5, 0.78125, 0.78125))
    organs, grid = read_label_volume(data_root / "ct_organs_totalseg_example" / "example_seg.nii.gz")
    assert grid.same_as(read_image(data_root / "ct_organs_totalseg_example" / "example_ct_sm.nii.gz").grid)
    assert len(np.unique(organs)) > 30


def test_values_that_are_no_labels_and_units_that_are_none_are_refused(tmp_path):
    import nibabel

    volume = nibabel.Nifti1Image(np.array([[[0.0, 1e12]]], np.float32), np.eye(4))
    nibabel.save(volume, tmp_path / "large.nii")
    with pytest.raises(InputError, match="only up to 16777216"):
        read_label_volume(tmp_path / "large.nii")
    raw = bytearray((tmp_path / "large.nii").read_bytes())
    raw[123] = 4  # xyzt_units: the standard has no 4
    (tmp_path / "unit.nii").write_bytes(raw)
    with pytest.raises(InputError, match="unit of length"):
        read_volume(tmp_path / "unit.nii")


A = np.diag([0.7, 0.8, 2.5, 1.0])
RAMP = np.arange(210, dtype=np.int16).reshape(5, 6, 7)


def nifti(path, data, *, sform=None, qform=None, **header):
    volume = nibabel.Nifti1Image(data, None, dtype=data.dtype)
    volume.set_sform(sform, int(sform is not None))
    volume.set_qform(qform, int(qform is not None))
    for name, value in header.items():
        volume.header[name] = value
    nibabel.save(volume, path)
    return path


@pytest.mark.parametrize("step", [0.0, float("nan")])
def test_a_voxel_size_that_is_not_stated_is_not_a_millimetre(tmp_path, step):
    path = nifti(tmp_path / "a.nii", RAMP, qform=A)
    raw = bytearray(path.read_bytes())
    raw[84:88] = np.array(step, "<f4").tobytes()  # pixdim[2], which nibabel mends to 1
    path.write_bytes(raw)
    image = read_volume(path)
    assert image.grid.unit == "px" and image.grid.spacing == (1, 1, 1)
    assert "voxel size is 0 in the file" in image.source.remarks[0]


def test_a_metaimage_without_spacing_is_in_voxels(tmp_path):
    head = "ObjectType = Image\nNDims = 3\nBinaryData = True\n{}DimSize = 7 6 5\nElementType = MET_SHORT\n"
    tail = b"ElementDataFile = LOCAL\n" + RAMP.tobytes()
    for words, unit, spacing in (
        ("", "px", (1, 1, 1)),
        ("ElementSpacing = 1 1 1\n", "mm", (1, 1, 1)),
        ("ElementSize = 0.7 0.8 2.5\n", "mm", (2.5, 0.8, 0.7)),
        ("ElementSpacing = 700 800 2500\nDistanceUnits = um\n", "mm", (2.5, 0.8, 0.7)),
    ):
        (tmp_path / "a.mha").write_bytes(head.format(words).encode() + tail)
        grid = read_volume(tmp_path / "a.mha").grid
        assert grid.unit == unit and grid.spacing == pytest.approx(spacing)


def nrrd(path, *fields):
    lines = [
        "NRRD0004",
        "type: short",
        "dimension: 3",
        "sizes: 7 6 5",
        *fields,
        "encoding: raw",
        "endian: little",
    ]
    path.write_bytes(("\n".join(lines) + "\n\n").encode() + RAMP.tobytes())
    return path


@pytest.mark.parametrize(("unit", "mm"), [("mm", 1.0), ("cm", 10.0), ("um", 1e-3), ("m", 1000.0)])
def test_nrrds_unit_of_length_is_read(tmp_path, unit, mm):
    """Hand-worked: 2.5 mm between slices, said in other units, origin included."""
    steps = [f"({0.7 / mm},0,0)", f"(0,{0.8 / mm},0)", f"(0,0,{2.5 / mm})"]
    path = nrrd(
        tmp_path / "a.nrrd",
        "space: left-posterior-superior",
        f'space units: "{unit}" "{unit}" "{unit}"',
        f"space directions: {' '.join(steps)}",
        f"space origin: ({10 / mm},{20 / mm},{30 / mm})",
    )
    grid = read_volume(path).grid
    assert_allclose(grid.affine[:3, :3][:, ::-1], np.diag([0.7, 0.8, 2.5]), atol=1e-9)
    assert_allclose(grid.to_world((0, 0, 0)), (10, 20, 30), atol=1e-9)


def test_nrrds_spacings_have_a_unit_too_and_strange_ones_are_refused(tmp_path):
    path = nrrd(tmp_path / "a.nrrd", "spacings: 0.07 0.08 0.25", 'units: "cm" "cm" "cm"')
    assert read_volume(path).grid.spacing == pytest.approx((2.5, 0.8, 0.7))
    directions = "space directions: (1,0,0) (0,1,0) (0,0,1)"
    path = nrrd(tmp_path / "b.nrrd", "space: RAS", 'space units: "s" "s" "s"', directions)
    with pytest.raises(InputError, match="lengths in s: expected one unit of length"):
        read_volume(path)


def test_a_distance_that_nrrd_calls_unknown_is_not_a_millimetre(tmp_path):
    """NaN is NRRD's word for it."""
    assert read_volume(nrrd(tmp_path / "a.nrrd", "spacings: 0.5 0.6 nan")).grid.unit == "px"
    directions = "space directions: (0.5,0,0) (0,0.6,0) (nan,nan,nan)"
    assert read_volume(nrrd(tmp_path / "b.nrrd", "space: LPS", directions)).grid.unit == "px"


def test_two_places_in_a_nifti_are_told_and_the_sform_taken(tmp_path):
    moved = A.copy()
    moved[0, 3] = 60
    image = read_volume(nifti(tmp_path / "a.nii", RAMP.T, sform=A, qform=moved))
    assert image.source.remarks == (
        "the file states two places, up to 60 mm apart: the sform was taken and the qform was not",
    )
    assert_allclose(image.grid.to_world((0, 0, 0)), (0, 0, 0), atol=1e-5)
    assert read_volume(nifti(tmp_path / "b.nii", RAMP.T, sform=A, qform=A)).source.remarks == ()


def test_voxels_below_a_micron_are_read(tmp_path):
    path = nifti(tmp_path / "a.nii", RAMP.T, sform=np.diag([0.05, 0.05, 0.1, 1]), xyzt_units=3)
    assert read_volume(path).grid.spacing == pytest.approx((1e-4, 5e-5, 5e-5))


def test_what_is_not_a_volume_is_refused_by_name(tmp_path):
    nibabel.save(nibabel.Nifti1Image(RAMP.astype(np.complex64), np.eye(4)), tmp_path / "c.nii")
    with pytest.raises(InputError, match="complex numbers: save their magnitude"):
        read_volume(tmp_path / "c.nii")
    import nibabel.cifti2 as cifti

    axes = (
        cifti.ScalarAxis(["thickness"]),
        cifti.BrainModelAxis.from_mask(np.ones((2, 2, 2)), affine=np.eye(4)),
    )
    nibabel.save(cifti.Cifti2Image(np.ones((1, 8), np.float32), axes), tmp_path / "x.dscalar.nii")
    with pytest.raises(InputError, match="is Cifti2, not a volume"):
        read_volume(tmp_path / "x.dscalar.nii")
    (tmp_path / "text.nii").write_text("this is not NIfTI " * 40)
    with pytest.raises(InputError, match="does not begin as NIfTI does"):
        read_volume(tmp_path / "text.nii")
    nibabel.save(nibabel.Nifti1Image(RAMP, np.eye(4)), tmp_path / "whole.nii.gz")
    (tmp_path / "cut.nii.gz").write_bytes((tmp_path / "whole.nii.gz").read_bytes()[:-40])
    with pytest.raises(InputError, match="cut off or damaged"):
        read_volume(tmp_path / "cut.nii.gz")


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (np.array([0, -56], np.int8), r"negative values \(the least is -56\).*signed 8 bits"),
        (np.array([0, 2**33], np.int64), "beyond 31 bits"),
        (np.array([0, 2**40], np.float64), "only up to 2147483647"),
        (np.array([0, 2**24 + 2], np.float32), "only up to 16777216"),
        (np.array([0, 0.5], np.float32), "fractions"),
        (np.array([0, np.nan], np.float32), "not finite"),
        (np.array([0, np.inf], np.float64), "not finite"),
    ],
)
def test_values_that_are_not_labels_are_refused(tmp_path, values, said):
    volume = nibabel.Nifti1Image(values.reshape(2, 1, 1), np.eye(4), dtype=values.dtype)
    nibabel.save(volume, tmp_path / "a.nii")
    with pytest.raises(InputError, match=said):
        read_label_volume(tmp_path / "a.nii")


def test_large_labels_in_64_bit_fractions_stay_apart(tmp_path):
    values = np.array([2**24, 2**24 + 1], np.float64).reshape(2, 1, 1)
    nibabel.save(nibabel.Nifti1Image(values, np.eye(4), dtype=np.float64), tmp_path / "a.nii")
    labels, _ = read_label_volume(tmp_path / "a.nii")
    assert labels.ravel().tolist() == [2**24, 2**24 + 1]


def test_integers_beyond_32_bits_are_written_as_they_are(axial, tmp_path):
    values = np.full(axial.shape, 2**33 + 5, np.int64)
    write_volume(tmp_path / "a.nii.gz", values, axial)
    assert int(np.asarray(nibabel.load(tmp_path / "a.nii.gz").dataobj).max()) == 2**33 + 5


def test_values_that_lie_elsewhere_are_not_read(tmp_path):
    (tmp_path / "secret").write_bytes(bytes(420))
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "v.raw").write_bytes(RAMP.tobytes())
    mhd = "ObjectType = Image\nNDims = 3\nElementSpacing = 1 1 1\nDimSize = 7 6 5\nElementType = MET_SHORT\n"
    for name in ("../secret", str(tmp_path / "secret"), "/dev/zero"):
        (folder / "a.mhd").write_text(f"{mhd}ElementDataFile = {name}\n")
        with pytest.raises(InputError, match="from a file in another folder"):
            read_volume(folder / "a.mhd")
        (folder / "a.nhdr").write_text(
            "NRRD0004\ntype: short\ndimension: 3\nsizes: 7 6 5\nencoding: raw\nendian: little\n"
            f"data file: {name}\n\n"
        )
        with pytest.raises(InputError, match="from a file in another folder"):
            read_volume(folder / "a.nhdr")
    (folder / "link.raw").symlink_to(tmp_path / "secret")
    (folder / "a.mhd").write_text(f"{mhd}ElementDataFile = link.raw\n")
    with pytest.raises(InputError, match="a link that leads to another folder"):
        read_volume(folder / "a.mhd")
    (folder / "a.mhd").write_text(f"{mhd}ElementDataFile = v.raw\n")
    assert_array_equal(read_volume(folder / "a.mhd").pixels[0], RAMP)


def test_the_size_limit_is_said_and_can_be_raised(tmp_path, monkeypatch):
    nibabel.save(nibabel.Nifti1Image(np.zeros((64, 64, 64), np.int16), np.eye(4)), tmp_path / "a.nii")
    monkeypatch.setenv("CLEARMARGIN_MAX_GIB", "0.0001")
    with pytest.raises(InputError, match=r"more than the limit of 0.0001 GiB; CLEARMARGIN_MAX_GIB raises it"):
        read_volume(tmp_path / "a.nii")
    monkeypatch.setenv("CLEARMARGIN_MAX_GIB", "1")
    assert read_volume(tmp_path / "a.nii").grid.shape == (64, 64, 64)
    monkeypatch.setenv("CLEARMARGIN_MAX_GIB", "much")
    with pytest.raises(ConfigError, match="expected a number of GiB"):
        read_volume(tmp_path / "a.nii")


def test_a_damaged_qform_beside_a_whole_sform_is_said(tmp_path):
    write_volume(tmp_path / "a.nii", np.zeros((2, 3, 4), np.uint8), Grid.from_spacing((2, 3, 4), (1, 2, 3)))
    raw = bytearray((tmp_path / "a.nii").read_bytes())
    raw[256:260] = np.float32(1e20).tobytes()  # quatern_b, whose square is more than 1
    (tmp_path / "a.nii").write_bytes(raw)
    image = read_volume(tmp_path / "a.nii")
    assert image.grid.spacing == (1, 2, 3) and image.source.remarks == (
        "its qform is damaged: the sform was taken",
    )


def test_a_value_beyond_float32_is_infinite_and_counted(tmp_path):
    values = np.ones((2, 3, 4))
    values[1, 2, 3] = 1e300
    nibabel.save(nibabel.Nifti1Image(values.T, np.eye(4)), tmp_path / "a.nii")
    image = read_volume(tmp_path / "a.nii")
    assert image.pixels.dtype == np.float32 and image.not_finite == 1
    assert np.isinf(image.pixels[0, 1, 2, 3]) and (image.pixels != 1).sum() == 1


def test_an_empty_file_and_a_folder_are_called_what_they_are(tmp_path):
    from clearmargin.formats import read_image

    (tmp_path / "empty.nii").write_bytes(b"")
    with pytest.raises(InputError, match=r"'empty.nii' is empty: it has 0 bytes"):
        read_image(tmp_path / "empty.nii")
    (tmp_path / "folder.nii.gz").mkdir()
    with pytest.raises(InputError, match=r"'folder.nii.gz' is a folder without DICOM"):
        read_image(tmp_path / "folder.nii.gz")

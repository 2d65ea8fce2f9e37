"""Volumes keep dtype, values and world positions; nibabel and SimpleITK are the oracles."""

from __future__ import annotations

import nibabel
import numpy as np
import pytest
import SimpleITK
from numpy.testing import assert_allclose, assert_array_equal

from clearmargin.core import Grid
from clearmargin.errors import GeometryError, InputError
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
    with pytest.raises(InputError, match="beyond 32 bits"):
        read_label_volume(tmp_path / "large.nii")
    raw = bytearray((tmp_path / "large.nii").read_bytes())
    raw[123] = 4  # xyzt_units: the standard has no 4
    (tmp_path / "unit.nii").write_bytes(raw)
    with pytest.raises(InputError, match="unit of length"):
        read_volume(tmp_path / "unit.nii")

"""Masks in the input's own kind, read back by other libraries."""

import nibabel
import numpy as np
import pytest
import SimpleITK
from PIL import Image as Pillow

from clearmargin.core import Grid, Mask
from clearmargin.formats.mask_files import mask_suffix, write_masks

AFFINE = np.array([[0, 0.1, 0.7, -40], [0, 0.8, -0.1, 22], [5, 0, 0, 9], [0, 0, 0, 1.0]])


def boxes(shape, *corners):
    masks = []
    for low, high in corners:
        dense = np.zeros(shape, bool)
        dense[tuple(slice(a, b) for a, b in zip(low, high, strict=True))] = True
        masks.append(Mask.from_dense(dense))
    return masks


@pytest.mark.parametrize(
    ("name", "suffix"),
    [
        ("a.nii", ".nii.gz"),
        ("A.NII.GZ", ".nii.gz"),
        ("a.nhdr", ".nrrd"),
        ("a.mhd", ".mha"),
        ("a.jpg", ".png"),
        ("a.tiff", ".tif"),
    ],
)
def test_a_mask_has_the_inputs_kind(tmp_path, name, suffix):
    shape = (32, 40) if suffix in (".png", ".tif") else (6, 32, 40)
    assert mask_suffix(tmp_path / name, Grid.from_spacing(shape)) == suffix


def test_a_sheared_grid_goes_into_nifti(tmp_path):
    sheared = AFFINE.copy()
    sheared[0, 0] = 1.0
    grid = Grid(shape=(6, 32, 40), affine=sheared, unit="mm")
    assert mask_suffix(tmp_path / "a.nrrd", grid) == ".nii.gz"


@pytest.mark.parametrize("suffix", [".nii.gz", ".nrrd", ".mha"])
def test_a_label_map_lies_where_the_volume_lies(tmp_path, suffix):
    shape = (6, 32, 40)
    steps = np.linalg.qr(AFFINE[:3, :3])[0] * np.array([5.0, 0.8, 0.7])
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = steps, AFFINE[:3, 3]
    grid = Grid(shape=shape, affine=affine, unit="mm")
    masks = boxes(shape, ((1, 2, 3), (4, 9, 11)), ((2, 20, 20), (5, 30, 33)))
    (name,) = write_masks(tmp_path / "instances", suffix, masks, [1, 300], grid)
    assert name == "instances" + suffix
    point = np.array([2, 25, 30])
    world = affine[:3, :3] @ point + affine[:3, 3]
    if suffix == ".nii.gz":
        volume = nibabel.load(tmp_path / name)
        data = np.asarray(volume.dataobj)
        ras = world * (-1, -1, 1)
        index = np.linalg.solve(volume.affine, [*ras, 1])[:3]
        assert data[tuple(np.rint(index).astype(int))] == 300 and np.abs(index - np.rint(index)).max() < 1e-4
    else:
        volume = SimpleITK.ReadImage(str(tmp_path / name))
        data = SimpleITK.GetArrayFromImage(volume)
        assert data[tuple(volume.TransformPhysicalPointToIndex(world.tolist())[::-1])] == 300
    assert {int(v): int((data == v).sum()) for v in np.unique(data)} == {
        0: data.size - 168 - 390,
        1: 168,
        300: 390,
    }


def test_masks_that_overlap_get_a_file_each(tmp_path):
    shape = (32, 40)
    masks = boxes(shape, ((2, 2), (20, 20)), ((10, 10), (30, 30)))
    names = write_masks(tmp_path / "instances", ".png", masks, [1, 2], Grid.from_spacing(shape))
    assert names == ("instances/0001.png", "instances/0002.png")
    for name, mask in zip(names, masks, strict=True):
        np.testing.assert_array_equal(np.asarray(Pillow.open(tmp_path / name)), mask.dense().astype(np.uint8))


def test_masks_of_one_value_may_overlap(tmp_path):
    shape = (32, 40)
    masks = boxes(shape, ((2, 2), (20, 20)), ((10, 10), (30, 30)))
    (name,) = write_masks(tmp_path / "classes", ".png", masks, [3, 3], Grid.from_spacing(shape))
    expected = 3 * (masks[0].dense() | masks[1].dense())
    np.testing.assert_array_equal(np.asarray(Pillow.open(tmp_path / name)), expected)


def test_a_picture_in_a_volumes_format_gets_a_mask_of_one_slice(tmp_path):
    grid = Grid.from_spacing((32, 40), (0.5, 0.4))
    (name,) = write_masks(tmp_path / "instances", ".nrrd", boxes((32, 40), ((2, 3), (20, 21))), [4], grid)
    volume = SimpleITK.ReadImage(str(tmp_path / name))
    assert volume.GetSize() == (40, 32, 1) and volume.GetSpacing()[:2] == (0.4, 0.5)
    assert SimpleITK.GetArrayFromImage(volume)[0, 10, 10] == 4


def test_nothing_detected_is_a_label_map_of_zeros(tmp_path):
    (name,) = write_masks(tmp_path / "instances", ".png", [], [], Grid.from_spacing((32, 40)))
    picture = np.asarray(Pillow.open(tmp_path / name))
    assert picture.shape == (32, 40) and not picture.any()


def test_pages_of_a_tiff_stay_pages(tmp_path):
    import tifffile

    shape = (3, 32, 40)
    masks = boxes(shape, ((1, 2, 3), (3, 9, 11)))
    (name,) = write_masks(tmp_path / "instances", ".tif", masks, [7], Grid.from_spacing(shape))
    np.testing.assert_array_equal(tifffile.imread(tmp_path / name), 7 * masks[0].dense())

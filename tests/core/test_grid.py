import numpy as np
import pytest

from clearmargin.core import Grid

TILTED = np.array([[0, 0, 0.7, -10], [0, 0.7, 0, 20], [5, 1.4, 0, 30], [0, 0, 0, 1]])


def test_index_maps_to_lps_in_array_order():
    grid = Grid.from_spacing((4, 5, 6), (5.0, 0.8, 0.7))
    np.testing.assert_allclose(grid.to_world((1, 2, 3)), (3 * 0.7, 2 * 0.8, 1 * 5.0))
    np.testing.assert_allclose(grid.to_index((2.1, 1.6, 5.0)), (1, 2, 3))
    assert grid.voxel_size == pytest.approx(5.0 * 0.8 * 0.7)


def test_image_lies_in_plane_zero():
    grid = Grid.from_spacing((5, 6), (0.8, 0.7))
    np.testing.assert_allclose(grid.to_world((2, 3)), (2.1, 1.6, 0))
    np.testing.assert_allclose(grid.to_index((2.1, 1.6, 0)), (2, 3))
    assert grid.spacing == (0.8, 0.7)
    assert grid.voxel_size == pytest.approx(0.56)


def test_unknown_spacing_is_px_and_never_mm():
    assert Grid.from_spacing((5, 6)).unit == "px"


def test_shear_is_seen_and_its_volume_is_right():
    grid = Grid(shape=(3, 4, 5), affine=TILTED, unit="mm")
    assert not grid.is_orthogonal
    assert grid.voxel_size == pytest.approx(0.7 * 0.7 * 5)  # a sheared box keeps base times height
    assert Grid.from_spacing((3, 4, 5), (1, 2, 3)).is_orthogonal


def test_slice_lies_where_the_volume_has_it():
    grid = Grid(shape=(3, 4, 5), affine=TILTED, unit="mm")
    np.testing.assert_allclose(grid.plane(2).to_world((1, 3)), grid.to_world((2, 1, 3)))


def test_same_as_compares_corners():
    grid = Grid.from_spacing((10, 100, 100), (5.0, 1.0, 1.0))
    nearly = Grid.from_spacing((10, 100, 100), (5.0, 1.00005, 1.0))
    not_at_all = Grid.from_spacing((10, 100, 100), (5.0, 1.001, 1.0))
    assert grid.same_as(nearly)
    assert not grid.same_as(not_at_all)  # 0.1 mm at the far corner
    assert not grid.same_as(Grid.from_spacing((10, 100, 100)))


@pytest.mark.parametrize(
    "change",
    [
        {"shape": (0, 4, 5)},
        {"shape": (4,)},
        {"unit": "cm"},
        {"affine": np.zeros((4, 4))},
        {"affine": np.eye(3)},
        {"affine": np.full((4, 4), np.nan)},
    ],
)
def test_impossible_grids_are_refused(change):
    with pytest.raises(ValueError, match=r"grid|affine"):
        Grid(**{"shape": (3, 4, 5), "affine": np.eye(4), "unit": "mm"} | change)


def test_affine_cannot_be_changed_afterwards():
    with pytest.raises(ValueError, match="read-only"):
        Grid.from_spacing((3, 4)).affine[0, 0] = 2

"""Landmarks through MONAI's spatial transforms and back, to 0.01 mm."""

import numpy as np
import pytest
import torch
from landmarks import TYPES
from transforms.test_spatial import LOSSLESS, LOSSY, PLANE, VOLUME, coordinates

from clearmargin.core import Image, InstanceSet, Landmarks
from clearmargin.transforms.samples import make_sample, read_instances
from clearmargin.transforms.spatial import augmentation_matrix, fitting_view, resample
from clearmargin.transforms.variation import Variation

EVERY = LOSSLESS | LOSSY


def scene(grid, seed=0):
    """Points a quarter of the image away from its edges, one of them hidden, and one absent."""
    rng = np.random.default_rng(seed)
    low = np.array([n / 4 for n in grid.shape])
    points = rng.uniform(low, 3 * low, (2, 3, grid.ndim))
    landmarks = Landmarks.of(TYPES, points, [[2, 2, 1], [2, 0, 2]])
    return InstanceSet(grid=grid, masks=(), labels=[], scores=[], landmarks=landmarks)


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("grid", [PLANE, VOLUME], ids=["plane", "volume"])
def test_a_transform_and_its_inverse_give_the_points_back(name, grid):
    before = scene(grid)
    image = Image(pixels=coordinates(grid), grid=grid)
    transform = EVERY[name](grid.ndim)
    moved = transform(dict(make_sample(image, before)))
    there = read_instances(moved, grid).landmarks
    # where the image shows the points: their own indices, read from the transformed image
    if there.count == before.landmarks.count:
        world_before = np.sort(grid.to_world(before.landmarks.points)[before.landmarks.visible > 0], axis=0)
        world_after = np.sort(
            read_instances(moved, grid).grid.to_world(there.points)[there.visible > 0], axis=0
        )
        np.testing.assert_allclose(world_after, world_before, atol=0.01)
    back = read_instances(transform.inverse(moved), grid).landmarks
    assert back.visible.tolist() == before.landmarks.visible.tolist()
    np.testing.assert_allclose(grid.to_world(back.points), grid.to_world(before.landmarks.points), atol=0.01)


@pytest.mark.parametrize("flip", [(False, False), (True, False), (False, True), (True, True)])
def test_our_window_shows_each_point_where_its_pixels_are(flip):
    grid = PLANE
    before = scene(grid)
    image = Image(pixels=coordinates(grid), grid=grid)
    matrix = augmentation_matrix(centre=(20, 28), size=(64, 64), scale=1.3, degrees=25, flip=flip)
    window = resample(make_sample(image, before), matrix, (64, 64))
    landmarks = read_instances(window, grid).landmarks
    shown = window["image"].as_tensor().numpy()
    order = [1, 0, 2] if flip in ((True, False), (False, True)) else [0, 1, 2]
    expected = before.landmarks.points[:, order]
    assert landmarks.visible.tolist() == before.landmarks.visible[:, order].tolist()
    for i, k in np.argwhere(landmarks.visible > 0):
        y, x = landmarks.points[i, k]
        y0, x0 = int(y), int(x)
        corners = shown[:, y0 : y0 + 2, x0 : x0 + 2]
        weights = np.outer([1 - (y - y0), y - y0], [1 - (x - x0), x - x0])
        np.testing.assert_allclose((corners * weights).sum(axis=(1, 2)), expected[i, k], atol=0.01)


@pytest.mark.parametrize("flip", [(False, False), (True, True), (False, True)])
def test_a_view_is_undone_exactly(flip):
    matrix, size = fitting_view(PLANE.shape, 0.37, flip=flip)
    before = scene(PLANE).landmarks
    there = before.moved(np.linalg.inv(matrix))
    np.testing.assert_allclose(there.moved(matrix).points, before.points, atol=1e-9)
    assert (there.inside(size).count) == before.count


@pytest.mark.parametrize(
    ("step", "swaps"),
    [
        ({"RandFlipd": {"prob": 1.0, "spatial_axis": 1}}, True),
        ({"RandRotated": {"prob": 1.0, "range_x": 0.3}}, False),
        ({"RandZoomd": {"prob": 1.0, "min_zoom": 1.2, "max_zoom": 1.3}}, False),
        ({"Rand2DElasticd": {"prob": 1.0, "spacing": [20, 20], "magnitude_range": [1, 2]}}, False),
    ],
)
def test_a_configured_transform_moves_points_as_it_moves_pixels(step, swaps):
    grid = PLANE
    before = scene(grid, seed=3)
    indices = torch.from_numpy(coordinates(grid)) / 100
    pixels, after = Variation([step], ndim=2)(indices, before, (0, 0))
    order = [1, 0, 2] if swaps else [0, 1, 2]
    assert after.landmarks.count >= 3
    swapped = before.landmarks.points[:, order]
    for i, k in np.argwhere(after.landmarks.visible > 0):
        y, x = after.landmarks.points[i, k]
        y0, x0 = int(y), int(x)
        corners = pixels.numpy()[:, y0 : y0 + 2, x0 : x0 + 2]
        weights = np.outer([1 - (y - y0), y - y0], [1 - (x - x0), x - x0])
        np.testing.assert_allclose(100 * (corners * weights).sum(axis=(1, 2)), swapped[i, k], atol=0.05)

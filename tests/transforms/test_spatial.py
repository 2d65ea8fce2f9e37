"""Instances and geometry through every spatial transform, and back."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.transforms import (
    Affined,
    CenterSpatialCropd,
    Compose,
    Flipd,
    Orientationd,
    RandAffined,
    RandFlipd,
    RandRotate90d,
    Resized,
    Rotate90d,
    Rotated,
    Spacingd,
    SpatialPadd,
    Zoomd,
)
from scipy import ndimage

from clearmargin.core import Grid, Image, InstanceSet
from clearmargin.errors import InputError
from clearmargin.transforms.samples import KEYS, MODES, make_sample, read_instances
from clearmargin.transforms.spatial import augmentation_matrix, fitting_view, resample
from clearmargin.transforms.tensors import grid_of, to_tensor

PLANE = Grid.from_spacing((40, 56), (0.7, 0.5))
VOLUME = Grid(
    shape=(9, 20, 24),
    affine=np.array([[0, 0.1, 0.8, -40], [0, 0.8, -0.1, 12], [3.0, 0, 0, -7], [0, 0, 0, 1]]),
    unit="mm",
)


def scene(grid, seed):
    """Overlapping boxes, one nested in another, and single pixels, all away from the edge."""
    rng = np.random.default_rng(seed)
    low = np.array([n // 4 for n in grid.shape])
    high = np.array([n - n // 4 for n in grid.shape])
    masks = []
    for _ in range(3):
        a, b = np.sort(rng.integers(low, high, (2, grid.ndim)), axis=0)
        dense = np.zeros(grid.shape, bool)
        dense[tuple(slice(int(i), int(j) + 1) for i, j in zip(a, b, strict=True))] = True
        masks.append(dense)
    outer, inner = np.zeros((2, *grid.shape), bool)
    outer[tuple(slice(int(i), int(j)) for i, j in zip(low, high, strict=True))] = True
    inner[tuple(slice(int(i) + 1, int(j) - 1) for i, j in zip(low, high, strict=True))] = True
    masks += [outer, inner]
    for _ in range(3):
        dot = np.zeros(grid.shape, bool)
        dot[tuple(int(i) for i in rng.integers(low, high))] = True
        masks.append(dot)
    return InstanceSet.from_dense(grid, masks, labels=rng.integers(1, 5, len(masks)))


def coordinates(grid):
    """An image whose channels are its own array indices, float32."""
    return np.stack(np.meshgrid(*[np.arange(n, dtype=np.float32) for n in grid.shape], indexing="ij"))


LOSSLESS = {
    "flip": lambda d: Flipd(KEYS, spatial_axis=list(range(d))),
    "rotate90": lambda d: Rotate90d(KEYS, k=1, spatial_axes=(d - 2, d - 1)),
    "pad": lambda d: SpatialPadd(KEYS, spatial_size=[60] * d if d == 2 else [12, 26, 30]),
}
LOSSY = {
    "zoom out": lambda d: Zoomd(
        KEYS, zoom=0.4, mode=MODES if d == 2 else ("trilinear", "nearest"), keep_size=False
    ),
    "zoom in": lambda d: Zoomd(
        KEYS, zoom=1.7, mode=MODES if d == 2 else ("trilinear", "nearest"), keep_size=False
    ),
    "resize": lambda d: Resized(
        KEYS, spatial_size=[17] * d, mode=MODES if d == 2 else ("trilinear", "nearest")
    ),
    "rotate": lambda d: Rotated(
        KEYS, angle=[0.4] if d == 2 else [0.4, 0.1, 0.0], mode=MODES, keep_size=False
    ),
    "spacing": lambda d: Spacingd(KEYS, pixdim=[2.3] * d, mode=MODES),
    "affine": lambda d: Affined(KEYS, scale_params=[1.5] * d, mode=MODES, padding_mode="zeros"),
}


@pytest.mark.parametrize("grid", [PLANE, VOLUME], ids=["plane", "volume"])
@pytest.mark.parametrize("name", [*LOSSLESS, *LOSSY])
@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_every_instance_survives_a_transform_and_its_inverse(grid, name, seed):
    instances = scene(grid, seed)
    image = Image(pixels=np.zeros((1, *grid.shape), np.float32), grid=grid)
    transform = (LOSSLESS | LOSSY)[name](grid.ndim)
    there = transform(make_sample(image, instances))
    moved = read_instances(there, grid)
    assert [m.area > 0 for m in moved.masks] == [True] * len(instances)
    back = read_instances(transform.inverse(there), grid)
    assert back.grid.same_as(grid)
    np.testing.assert_array_equal(back.labels, instances.labels)
    for ours, theirs in zip(back.masks, instances.masks, strict=True):
        assert ours.area > 0
        if name in LOSSLESS:
            np.testing.assert_array_equal(ours.dense(), theirs.dense())
    if name in LOSSLESS:
        assert [m.area for m in moved.masks] == [m.area for m in instances.masks]


@pytest.mark.parametrize("grid", [PLANE, VOLUME], ids=["plane", "volume"])
@pytest.mark.parametrize("name", [*LOSSLESS, *LOSSY])
def test_the_affine_says_where_each_pixel_came_from(grid, name):
    """What a pixel shows, by interpolation, is the index that its affine maps it to, to 0.01 mm."""
    sample = {"image": to_tensor(coordinates(grid), grid), "layers": to_tensor(coordinates(grid)[:1], grid)}
    moved = (LOSSLESS | LOSSY)[name](grid.ndim)(sample)["image"]
    new, matrix = grid_of(moved, grid)
    index = np.moveaxis(coordinates(new), 0, -1)
    source = index @ matrix[:-1, :-1].T + matrix[:-1, -1]
    inside = ((source >= 0) & (source <= np.array(grid.shape) - 1)).all(axis=-1)
    shown = np.moveaxis(moved.numpy(), 0, -1)
    assert inside.sum() > 50
    wrong_mm = np.abs(shown - source)[inside].max() * max(grid.spacing)
    assert wrong_mm < 0.01
    # and the grid's own world agrees with the source's
    np.testing.assert_allclose(new.to_world(index[inside]), grid.to_world(source[inside]), atol=1e-4)


def test_random_compositions_keep_what_stays_in_view():
    image = Image(pixels=np.zeros((1, *PLANE.shape), np.float32), grid=PLANE)
    transform = Compose(
        [
            RandFlipd(KEYS, prob=0.5, spatial_axis=0),
            RandRotate90d(KEYS, prob=0.5),
            RandAffined(KEYS, prob=1.0, rotate_range=0.5, scale_range=0.3, mode=MODES, padding_mode="zeros"),
        ]
    )
    transform.set_random_state(3)
    for seed in range(10):
        there = transform(make_sample(image, scene(PLANE, seed)))
        assert all(m.area > 0 for m in read_instances(there, PLANE).masks)
        assert all(m.area > 0 for m in read_instances(transform.inverse(there), PLANE).masks)


def test_lazy_transforms_give_the_same_geometry():
    image = Image(pixels=np.zeros((1, *PLANE.shape), np.float32), grid=PLANE)
    steps = [Flipd(KEYS, spatial_axis=1), Zoomd(KEYS, zoom=0.7, mode=MODES, keep_size=False)]
    # A flip names no mode, so that MONAI's one lazy step would interpolate the layers.
    nearest = {"layers": {"mode": "nearest"}}
    lazy = Compose(steps, lazy=True, overrides=nearest)(make_sample(image, scene(PLANE, 0)))
    eager = Compose(steps)(make_sample(image, scene(PLANE, 0)))
    assert grid_of(lazy["layers"], PLANE)[0].same_as(grid_of(eager["layers"], PLANE)[0], tolerance=1e-4)
    assert all(m.area > 0 for m in read_instances(lazy, PLANE).masks)
    with pytest.raises(InputError, match="mode='nearest'"):
        read_instances(Compose(steps, lazy=True)(make_sample(image, scene(PLANE, 0))), PLANE)


def test_what_leaves_the_view_is_empty_not_moved():
    corner = np.zeros(PLANE.shape, bool)
    corner[0, 0] = True
    middle = np.zeros(PLANE.shape, bool)
    middle[20, 28] = True
    image = Image(pixels=np.zeros((1, *PLANE.shape), np.float32), grid=PLANE)
    sample = CenterSpatialCropd(KEYS, roi_size=[10, 10])(
        make_sample(image, InstanceSet.from_dense(PLANE, [corner, middle]))
    )
    assert [m.area for m in read_instances(sample, PLANE).masks] == [0, 1]


def test_orientation_of_a_volume_is_followed():
    image = Image(pixels=np.zeros((1, *VOLUME.shape), np.float32), grid=VOLUME)
    instances = scene(VOLUME, 1)
    moved = read_instances(
        Orientationd(KEYS, axcodes="RAS", labels=None)(make_sample(image, instances)), VOLUME
    )
    for ours, theirs in zip(moved.masks, instances.masks, strict=True):
        centre = moved.grid.to_world(np.argwhere(ours.dense()).mean(axis=0))
        np.testing.assert_allclose(
            centre, VOLUME.to_world(np.argwhere(theirs.dense()).mean(axis=0)), atol=1e-6
        )


VIEWS = {
    "whole": fitting_view(PLANE.shape, 1.0),
    "half": fitting_view(PLANE.shape, 0.5),
    "mirrored, enlarged": fitting_view(PLANE.shape, 1.6, flip=(True, True)),
    "turned window": (
        augmentation_matrix(centre=(19, 30), size=(32, 32), scale=0.8, degrees=33, flip=(False, True)),
        (32, 32),
    ),
}


@pytest.mark.parametrize("name", VIEWS)
def test_our_own_resampling_is_where_its_matrix_says(name):
    matrix, size = VIEWS[name]
    sample = {
        "image": to_tensor(coordinates(PLANE), PLANE),
        "layers": to_tensor(coordinates(PLANE)[:1], PLANE),
    }
    moved = resample(sample, matrix, size)["image"]
    new, found = grid_of(moved, PLANE)
    np.testing.assert_allclose(found, matrix, atol=1e-5)  # MONAI keeps it in float32
    index = np.moveaxis(coordinates(new), 0, -1)
    source = index @ matrix[:2, :2].T + matrix[:2, 2]
    inside = ((source >= 0) & (source <= np.array(PLANE.shape) - 1)).all(axis=-1)
    np.testing.assert_allclose(np.moveaxis(moved.numpy(), 0, -1)[inside], source[inside], atol=1e-3)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_an_axis_of_one_element_is_moved_along_as_far_as_the_matrix_says(axis):
    """A quarter of an element aside, three quarters of its value are left; against scipy's interpolation."""
    rng = np.random.default_rng(0)
    shape = [5, 6, 7]
    shape[axis] = 1
    pixels = rng.random((1, *shape)).astype(np.float32)
    grid = Grid.from_spacing(tuple(shape), (1.0, 1.0, 1.0))
    image = Image(pixels=pixels, grid=grid)
    matrix = np.eye(4)
    matrix[axis, 3] = 0.25
    matrix[(axis + 1) % 3, 3] = -0.5
    moved = resample(make_sample(image, InstanceSet.empty(grid)), matrix, tuple(shape))["image"][0].numpy()
    expected = ndimage.affine_transform(pixels[0], matrix, order=1, mode="grid-constant")
    np.testing.assert_allclose(moved, expected, atol=1e-5)
    assert moved.max() > 0.5


def test_a_fitting_view_begins_at_the_near_edge_and_fits_the_strides():
    matrix, size = fitting_view((40, 56), 0.5)
    assert size == (32, 32)
    # the outer edge of pixel 0 (-0.5) is the outer edge of the view's pixel 0
    np.testing.assert_allclose(matrix @ [-0.5, -0.5, 1], [-0.5, -0.5, 1])
    mirrored, _ = fitting_view((40, 56), 0.5, flip=(True, False))
    np.testing.assert_allclose(mirrored @ [-0.5, -0.5, 1], [39.5, -0.5, 1])

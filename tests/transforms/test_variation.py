"""MONAI's transforms vary a window, and instances follow: overlapping, nested, of a pixel, through all that move."""

from __future__ import annotations

import pickle
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from clearmargin.config import validate
from clearmargin.core import Grid, InstanceSet
from clearmargin.errors import ConfigError, TrainingError
from clearmargin.transforms import catalogue
from clearmargin.transforms.catalogue import allowed, find
from clearmargin.transforms.samples import KEYS, anchor_of
from clearmargin.transforms.settings import AugmentSettings
from clearmargin.transforms.trial import check_transforms, distrust
from clearmargin.transforms.variation import Variation, make_step

PLANE, VOLUME = (64, 80), (12, 32, 40)


def arguments(name, shape):
    """Arguments with which a transform changes a window of a shape."""
    n = len(shape)
    sized = {"spatial_size": list(shape), "rand_size": [4] * n}
    angles = [0.3] if n == 2 else [0.3, 0.05, 0.0]
    given = {
        "AdjustContrastd": {"gamma": 1.5},
        "Affined": {"rotate_params": angles, "scale_params": [1.2] * n},
        "ClipIntensityPercentilesd": {"lower": 5, "upper": 95},
        "Flipd": {"spatial_axis": 1},
        "GaussianSmoothd": {"sigma": 1.0},
        "GibbsNoised": {"alpha": 0.4},
        "GridDistortiond": {"num_cells": 4, "distort_steps": [[1.1, 0.9, 1.2, 1.0, 1.0]] * n},
        "KSpaceSpikeNoised": {"loc": [0, *(k // 4 for k in shape)], "k_intensity": 9.0},
        "MedianSmoothd": {"radius": 1},
        "Rand2DElasticd": {"spacing": [16, 16], "magnitude_range": [1, 3], "rotate_range": 0.2},
        "Rand3DElasticd": {"sigma_range": [3, 4], "magnitude_range": [20, 60]},
        "RandAffined": {
            "rotate_range": 0.5,
            "scale_range": [-0.5, 0.4],
            "shear_range": 0.2,
            "translate_range": [3] * n,
        },
        "RandCoarseDropoutd": {"holes": 2, "spatial_size": [6] * n},
        "RandCoarseShuffled": {"holes": 2, "spatial_size": [6] * n},
        "RandFlipd": {"spatial_axis": 0},
        "RandImageFilterd": {"kernel": "mean", "kernel_size": 3},
        "RandRotate90d": {"spatial_axes": [n - 2, n - 1], "max_k": 3},
        "RandRotated": {"range_x": 0.7},
        "RandScaleIntensityFixedMeand": {"factors": 0.3},
        "RandScaleIntensityd": {"factors": 0.3},
        "RandShiftIntensityd": {"offsets": 0.1},
        "RandSmoothDeformd": {**sized, "def_range": 0.1},
        "RandSmoothFieldAdjustContrastd": sized,
        "RandSmoothFieldAdjustIntensityd": sized,
        "RandStdShiftIntensityd": {"factors": 0.3},
        "RandZoomd": {"min_zoom": 0.4, "max_zoom": 1.5},
        "Rotate90d": {"k": 2, "spatial_axes": [n - 2, n - 1]},
        "Rotated": {"angle": angles if n == 3 else 0.3},
        "SavitzkyGolaySmoothd": {"window_length": 5, "order": 2},
        "ScaleIntensityRangePercentilesd": {"lower": 5, "upper": 95, "b_min": 0.0, "b_max": 1.0},
        "ScaleIntensityRanged": {"a_min": 0.0, "a_max": 1.0, "b_min": 0.1, "b_max": 0.8},
        "ShiftIntensityd": {"offset": 0.1},
        "StdShiftIntensityd": {"factor": 0.3},
        "ThresholdIntensityd": {"threshold": 0.3},
        "Zoomd": {"zoom": 0.6},
    }.get(name, {})
    return given | {"prob": 1.0 if find(name).random else 0.999999}


def fits(name, shape):
    """Whether a transform is for windows of that many axes; the others are refused."""
    return not (name == "Rand2DElasticd" and len(shape) == 3)


EVERY = [(name, shape) for name in allowed() for shape in (PLANE, VOLUME) if fits(name, shape)]
SPATIAL = [(name, shape) for name, shape in EVERY if find(name).kind == "spatial"]


def square(name, shape):
    """Quarter turns keep a window's extents if it is as high as wide."""
    return (*shape[:-1], shape[-2]) if name == "RandRotate90d" else shape


def scene(shape, seed):
    """Overlapping boxes, one nested in another, and single pixels, some of them at the edge."""
    rng = np.random.default_rng(seed)
    masks = []
    for _ in range(3):
        low = rng.integers(0, [max(1, n // 2) for n in shape])
        dense = np.zeros(shape, bool)
        dense[tuple(slice(int(a), int(a) + n // 3) for a, n in zip(low, shape, strict=True))] = True
        masks.append(dense)
    outer, inner = np.zeros((2, *shape), bool)
    outer[tuple(slice(n // 4, n - n // 4) for n in shape)] = True
    inner[tuple(slice(n // 4 + 1, n - n // 4 - 1) for n in shape)] = True
    masks += [outer, inner]
    for _ in range(4):
        dot = np.zeros(shape, bool)
        dot[tuple(int(k) for k in rng.integers(0, shape))] = True
        masks.append(dot)
    return InstanceSet.from_dense(Grid.from_spacing(shape), masks, labels=rng.integers(1, 5, len(masks)))


def alone(step, dense, seed):
    """MONAI's own answer for one instance, which no other is packed beside."""
    item = {KEYS[0]: torch.zeros(1, *dense.shape), KEYS[1]: torch.from_numpy(dense[None].astype(np.float32))}
    return step(item, seed)[KEYS[1]][0].numpy() > 0.5


def blob(step, anchor, shape, seed):
    """A soft spot around a pixel, through the transform as an image: where its brightest pixel is, and how bright."""
    away = sum(
        (axis - a) ** 2
        for axis, a in zip(np.meshgrid(*map(np.arange, shape), indexing="ij"), anchor, strict=True)
    )
    spot = torch.from_numpy(np.exp(-away / 8).astype(np.float32))[None]
    moved = step({KEYS[0]: spot, KEYS[1]: torch.zeros(1, *shape)}, seed)[KEYS[0]][0].numpy()
    return np.array(np.unravel_index(moved.argmax(), shape)), moved.max()


@pytest.mark.parametrize(("name", "shape"), SPATIAL)
@settings(max_examples=4, deadline=None, derandomize=True)
@given(seed=st.integers(0, 2**31))
def test_every_instance_goes_where_it_would_alone_and_none_of_a_pixel_is_lost(name, shape, seed):
    shape = square(name, shape)
    instances = scene(shape, seed)
    given_arguments = arguments(name, shape)
    pixels = torch.rand(1, *shape, generator=torch.Generator().manual_seed(seed))
    variation = Variation([{name: given_arguments}], ndim=len(shape))
    varied, moved = variation(pixels, instances, (seed, 5))
    assert varied.shape == pixels.shape and varied.min() >= 0 and varied.max() <= 1
    np.testing.assert_array_equal(moved.labels, instances.labels)
    of_step = (seed, 5, 2, 0)
    for before, after in zip(instances.masks, moved.masks, strict=True):
        theirs = alone(variation.steps[0], before.dense(), of_step)
        if theirs.any():
            np.testing.assert_array_equal(after.dense(), theirs)
            continue
        place, brightness = blob(variation.steps[0], anchor_of(before), shape, of_step)
        if after.area:
            # the brightest pixel of a stretched spot is itself uncertain by a pixel or two
            assert after.area == 1 and np.abs(np.array(after.origin) - place).max() <= 3
        else:  # nothing of it is in view: at the edge there is at most its rim
            at_edge = any(k in (0, n - 1) for k, n in zip(place, shape, strict=True))
            assert brightness < 0.98 or at_edge


@pytest.mark.parametrize(("name", "shape"), EVERY)
def test_all_that_are_allowed_pass_the_trial_and_vary_by_the_seed_alone(name, shape):
    shape = square(name, shape)
    check_transforms([{name: arguments(name, shape)}], shape)
    variation = Variation([{name: arguments(name, shape)}], ndim=len(shape))
    instances = scene(shape, 1)
    pixels = torch.from_numpy(
        ndimage.gaussian_filter(np.random.default_rng(0).random((1, *shape)), 2)
    ).float()
    before = pixels.clone()
    first = variation(pixels, instances, (3, 8))
    torch.manual_seed(99)
    variation(pixels, instances, (3, 9))
    again = pickle.loads(pickle.dumps(variation))(pixels, instances, (3, 8))
    assert torch.equal(first[0], again[0]) and torch.equal(pixels, before)
    for one, two in zip(first[1].masks, again[1].masks, strict=True):
        np.testing.assert_array_equal(one.dense(), two.dense())
    if find(name).kind == "intensity":
        assert first[1] is instances


def test_a_pixel_that_an_elastic_transform_misses_comes_back_in_its_place():
    """Shrunk to a half, nearest neighbours miss three of four single pixels; all are in view, and all come back."""
    shape = (64, 64)
    dots = []
    for y in range(6, 60, 9):
        for x in range(6, 60, 9):
            dot = np.zeros(shape, bool)
            dot[y, x] = True
            dots.append(dot)
    instances = InstanceSet.from_dense(Grid.from_spacing(shape), dots)
    settings_ = {"spacing": [16, 16], "magnitude_range": [1, 2], "scale_range": [[1.0, 1.0]] * 2, "prob": 1.0}
    variation = Variation([{"Rand2DElasticd": settings_}], ndim=2)
    _, moved = variation(torch.zeros(1, *shape), instances, (0, 0))
    missed = 0
    for before, after in zip(instances.masks, moved.masks, strict=True):
        assert after.area >= 1
        missed += not alone(variation.steps[0], before.dense(), (0, 0, 2, 0)).any()
        place, _ = blob(variation.steps[0], anchor_of(before), shape, (0, 0, 2, 0))
        assert np.abs(np.array(after.origin) - place).max() <= 1
    assert missed > len(dots) / 2


def test_what_leaves_the_window_is_empty_at_its_place():
    shape = (40, 40)
    masks = np.zeros((2, *shape), bool)
    masks[0, 2, 2], masks[1, 20, 20] = True, True
    instances = InstanceSet.from_dense(Grid.from_spacing(shape), masks, labels=[3, 4])
    away = {"Affined": {"translate_params": [10, 10], "prob": 0.999999}}
    _, moved = Variation([away], ndim=2)(torch.zeros(1, *shape), instances, (0, 0))
    assert [m.area for m in moved.masks] == [0, 1] and moved.labels.tolist() == [3, 4]
    assert moved.masks[1].origin == (10, 10)


def test_steps_come_in_order_and_as_often_as_they_say():
    pixels = torch.full((1, 16, 16), 0.25)
    none = InstanceSet.empty(Grid.from_spacing((16, 16)))
    up = {"ShiftIntensityd": {"offset": 0.25, "prob": 0.999999}}
    cut = {"ThresholdIntensityd": {"threshold": 0.375, "prob": 0.999999}}  # what lies below becomes 0
    assert torch.equal(Variation([up, cut], ndim=2)(pixels, none, (0, 0))[0], 2 * pixels)
    assert torch.equal(Variation([cut, up], ndim=2)(pixels, none, (0, 0))[0], pixels)
    seldom = Variation([{"ShiftIntensityd": {"offset": 0.1, "prob": 0.2}}], ndim=2)
    often = sum(not torch.equal(seldom(pixels, none, (0, k))[0], pixels) for k in range(300))
    assert 35 <= often <= 85  # of 60


REFUSED = [
    ("RandBiasField", {}, "did you mean 'RandBiasFieldd'"),
    ("RandBiasFeildd", {}, "did you mean 'RandBiasFieldd'"),
    ("os.system", {}, "MONAI has no dictionary transform 'os.system'"),
    ("RandSpatialCropd", {"roi_size": 8}, "changes the window's extents"),
    ("MixUpd", {"batch_size": 2}, "copy_paste"),
    ("Lambdad", {"func": "$print"}, "it runs code"),
    ("LoadImaged", {}, "does not vary an image"),
    ("MaskIntensityd", {}, "wants a mask"),
    ("RandBiasFieldd", {"coef_range": [0, 0.1]}, "did you mean 'coeff_range'"),
    ("RandBiasFieldd", {"keys": "image"}, "takes no 'keys'"),
    ("RandBiasFieldd", {"coeff_range": "wide"}, "does not take these arguments|fails on a window"),
    ("GaussianSmoothd", {"sigma": 1.0}, "give it a prob between 0 and 1"),
    ("RandAffined", {"prob": 1.0, "padding_mode": "reflection"}, "leave out 'padding_mode'"),
    ("RandAffined", {"prob": 1.0, "mode": "nearest"}, "leave out 'mode'"),
    ("RandAffined", {"prob": 1.0}, "changes nothing"),
    ("RandAffined", {"prob": 1.5, "rotate_range": 0.3}, r"prob is a share in \(0, 1\], not 1.5"),
    ("RandAffined", {"prob": 1.0, "translate_range": [[90, 100], [90, 100]]}, "of the window still shows"),
    (
        "RandAffined",
        {"prob": 1.0, "spatial_size": [32, 32], "rotate_range": 0.3},
        "windows keep their extents",
    ),
    ("RandRotate90d", {"prob": 1.0}, "windows keep their extents"),
    ("Rand3DElasticd", {"sigma_range": [3, 4]}, "missing 1 required"),
]


@pytest.mark.parametrize(("name", "given", "message"), REFUSED)
def test_what_cannot_vary_a_window_is_refused_with_the_reason(name, given, message):
    with pytest.raises(ConfigError, match=message):
        check_transforms([{name: given}], (64, 96))


class FromTheProcess:
    """A transform that draws from the process's generator, and not from its own."""

    def __call__(self, item):
        return item | {KEYS[0]: item[KEYS[0]] + 0.1 * torch.rand(1)}


class Beside:
    """A transform that moves the image by three pixels, and instances by none."""

    def __call__(self, item):
        return item | {KEYS[0]: torch.roll(item[KEYS[0]], 3, dims=-1)}


class Between:
    """A transform that reads labels between pixels."""

    def __call__(self, item):
        return item | {
            KEYS[0]: item[KEYS[0]] * 0.9,
            KEYS[1]: (item[KEYS[1]] + torch.roll(item[KEYS[1]], 1, -1)) / 2,
        }


@pytest.mark.parametrize(
    ("transform", "kind", "message"),
    [
        (FromTheProcess(), "intensity", "does not follow from its seed"),
        (Beside(), "spatial", "of the labels lie elsewhere"),
        (Between(), "spatial", "labels of nothing"),
    ],
)
def test_a_transform_that_cannot_be_trusted_is_found_out(transform, kind, message):
    """As one of a newer MONAI might be; each is caught by its own reason."""
    step = make_step("RandFlipd" if kind == "spatial" else "RandBiasFieldd", {"prob": 1.0}, ndim=2)
    reason = distrust(replace(step, transform=transform), (48, 64))
    assert message in reason


def test_values_that_are_not_finite_end_the_training_with_the_transforms_name():
    step = make_step("RandBiasFieldd", {"prob": 1.0}, ndim=2)
    variation = Variation([], ndim=2)
    broken = replace(step, transform=lambda item: {KEYS[0]: item[KEYS[0]] / 0})
    variation.steps = (broken,)
    with pytest.raises(TrainingError, match="RandBiasFieldd gave values that are not finite in window 4"):
        variation(torch.ones(1, 8, 8), InstanceSet.empty(Grid.from_spacing((8, 8))), (0, 4))


def test_the_settings_take_names_with_arguments_or_without():
    given = {"transforms": ["RandFlipd", {"RandBiasFieldd": {"prob": 0.3}}, {"RandGaussianNoised": None}]}
    assert AugmentSettings.model_validate(given).transforms == (
        {"RandFlipd": {}},
        {"RandBiasFieldd": {"prob": 0.3}},
        {"RandGaussianNoised": {}},
    )
    for wrong in ([{"RandFlipd": {}, "RandZoomd": {}}], "RandFlipd", [3]):
        with pytest.raises(ConfigError, match=r"transforms"):
            validate({"transforms": wrong}, AugmentSettings, name="x.yaml")


def test_no_transform_of_monai_is_without_an_answer():
    """Each dictionary transform of the MONAI that is installed either varies windows, or is refused with a reason."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        every = catalogue._listed()
    assert len(every) > 100 and set(allowed()) <= set(every)
    for name in set(every) - set(allowed()):
        with pytest.raises(ConfigError, match=f"{name} is not for training windows: "):
            find(name)

"""The phantom: what is true of every seed, in geometry one can check by eye."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from clearmargin.datasets.phantom import DISPLAY_WINDOW, PHANTOM_LABELS, Phantom, make_clip, make_phantom
from clearmargin.datasets.phantom_shapes import Canvas, Space, capsule, ellipsoid, smooth_field, union


@pytest.fixture(scope="module")
def phantoms() -> list[Phantom]:
    return [make_phantom(seed, shape=(18, 96, 96), spacing=(7.0, 3.2, 3.2), vessel=True) for seed in range(8)]


def test_one_seed_is_one_phantom_and_another_seed_another(phantoms: list[Phantom]) -> None:
    again = make_phantom(0, shape=(18, 96, 96), spacing=(7.0, 3.2, 3.2), vessel=True)
    assert np.array_equal(again.image.pixels, phantoms[0].image.pixels)
    assert [m.area for m in again.reference.masks] == [m.area for m in phantoms[0].reference.masks]
    assert not np.array_equal(phantoms[1].image.pixels, phantoms[0].image.pixels)


def test_pixels_are_whole_hounsfield_units_that_twelve_bits_hold(phantoms: list[Phantom]) -> None:
    for phantom in phantoms:
        pixels = phantom.image.pixels
        assert pixels.dtype == np.int16 and pixels.shape == (1, 18, 96, 96)
        assert pixels.min() >= -1024 and pixels.max() <= 3071
        assert abs(float(pixels[0, :, :4, :4].mean()) + 1000) < 12, "the corners are air"


def test_the_grid_is_centred_in_millimetres(phantoms: list[Phantom]) -> None:
    grid = phantoms[0].image.grid
    assert grid.unit == "mm" and grid.spacing == (7.0, 3.2, 3.2)
    middle = grid.to_world([(n - 1) / 2 for n in grid.shape])
    assert np.allclose(middle, 0)
    assert phantoms[0].reference.grid.same_as(grid)


def test_every_tumour_lies_inside_the_organ_and_in_no_other_tumour(phantoms: list[Phantom]) -> None:
    for phantom in phantoms:
        masks, labels = phantom.reference.masks, phantom.reference.labels
        organ = masks[0]
        assert labels.tolist() == [1] + [2] * (len(labels) - 2) + [3]
        tumours = masks[1:-1]
        assert 2 <= len(tumours) <= 9
        for i, tumour in enumerate(tumours):
            assert tumour.area >= 4
            assert tumour.intersection(organ) == tumour.area
            assert all(tumour.intersection(other) == 0 for other in (*tumours[:i], masks[-1]))


def test_tumours_are_darker_than_the_organ_and_vessels_brighter(phantoms: list[Phantom]) -> None:
    for phantom in phantoms:
        hu = phantom.image.pixels[0].astype(float)
        masks = phantom.reference.masks
        organ = masks[0].dense()
        lesions = np.any([m.dense() for m in masks[1:-1]], axis=0)
        vessel = masks[-1].dense()
        tissue = hu[organ & ~lesions & ~vessel].mean()
        assert 90 < tissue < 125
        assert 20 < tissue - hu[lesions].mean() < 70, "modest, but there"
        assert hu[vessel & organ].mean() > tissue + 12


def test_some_tumours_touch_and_sizes_vary(phantoms: list[Phantom]) -> None:
    touching, volumes = 0, []
    for phantom in phantoms:
        tumours = [m.dense() for m in phantom.reference.masks[1:-1]]
        volumes += [float(t.sum()) * phantom.image.grid.voxel_size for t in tumours]
        for i, tumour in enumerate(tumours):
            touching += any((ndimage.binary_dilation(tumour) & other).any() for other in tumours[:i])
    assert touching >= 2
    assert min(volumes) < 2_000 and max(volumes) > 8_000, "cubic millimetres"


def test_noise_grows_with_the_option(phantoms: list[Phantom]) -> None:
    quiet = make_phantom(0, shape=(18, 96, 96), spacing=(7.0, 3.2, 3.2), noise_hu=0.0, vessel=True)
    difference = phantoms[0].image.pixels.astype(float) - quiet.image.pixels
    inside = phantoms[0].reference.masks[0].dense()
    assert 8 < difference[0][inside].std() < 16
    assert quiet.reference.masks[0].area == phantoms[0].reference.masks[0].area


def test_a_tiny_field_of_view_keeps_only_what_it_sees() -> None:
    phantom = make_phantom(0, shape=(1, 4, 4), spacing=(2.0, 1.0, 1.0))
    assert all(mask.area for mask in phantom.reference.masks)
    assert phantom.image.pixels.shape == (1, 1, 4, 4)


def test_codes_are_snomed() -> None:
    assert PHANTOM_LABELS.names == ("organ", "tumour", "vessel")
    assert {c.type.scheme for c in PHANTOM_LABELS.classes} == {"SCT"}


def test_a_clip_shows_the_slices_in_the_display_window() -> None:
    clip = make_clip(2, frames=24, size=(96, 96), pixel_mm=3.2)
    assert clip.frames.shape == (24, 96, 96, 3) and clip.frames.dtype == np.uint8
    assert (clip.frames[..., 0] == clip.frames[..., 2]).all()
    assert len(clip.references) == 24
    assert all(r.grid.unit == "px" and r.grid.shape == (96, 96) for r in clip.references)
    assert sum((r.labels == 2).any() for r in clip.references) >= 6
    low, high = DISPLAY_WINDOW
    levels, outside = [], []
    for frame, reference in zip(clip.frames, clip.references, strict=True):
        for mask, label in zip(reference.masks, reference.labels, strict=True):
            if label == 1 and mask.area > 300:
                hu = frame[..., 0][mask.dense()] / 255 * (high - low) + low
                levels.append(float(np.median(hu)))
                outside.append(float((hu < 20).mean()))
    assert 85 < np.median(levels) < 125, "the organ keeps its Hounsfield units through the window"
    assert np.mean(outside) < 0.05, "the masks move with the organ: hardly any fat or air lies in them"


def test_a_clip_has_a_frame() -> None:
    with pytest.raises(ValueError, match="at least one frame"):
        make_clip(0, frames=0)


def test_distances_are_millimetres_on_the_surface_and_the_axis() -> None:
    space = Space.centred((41, 41, 41), (1.0, 1.0, 1.0))
    ball = ellipsoid(space, (0.0, 0.0, 0.0), (8.0, 8.0, 8.0))
    assert ball[20, 20, 28] == pytest.approx(0, abs=1e-4)
    assert ball[20, 20, 38] == pytest.approx(10, abs=1e-4)
    rod = capsule(space, (-10.0, 0.0, 0.0), (10.0, 0.0, 0.0), (3.0, 3.0))
    assert rod[20, 20, 27] == pytest.approx(4, abs=1e-4)
    assert rod[36, 20, 20] == pytest.approx(3, abs=1e-4)
    assert union(ball, rod, 1.0)[20, 20, 20] <= min(ball[20, 20, 20], rod[20, 20, 20])


def test_half_a_voxel_inside_is_half_occupied() -> None:
    space = Space.centred((1, 1, 3), (2.0, 2.0, 2.0))
    canvas = Canvas(hu=np.zeros((1, 1, 3), np.float32), space=space, edge_mm=2.0)
    distance = space.x - np.float32(0)
    assert canvas.occupancy(distance).ravel().tolist() == [1.0, 0.5, 0.0]
    canvas.paint(space, canvas.occupancy(distance), 100.0)
    assert canvas.hu.ravel().tolist() == [100.0, 50.0, 0.0]


def test_a_box_outside_the_grid_is_empty_and_paints_nothing() -> None:
    space = Space.centred((4, 4, 4), (1.0, 1.0, 1.0))
    canvas = Canvas(hu=np.zeros((4, 4, 4), np.float32), space=space, edge_mm=1.0)
    assert space.box((50.0, 0.0, 0.0), (1.0, 1.0, 1.0)).shape[0] == 0
    canvas.ellipsoid((50.0, 0.0, 0.0), (1.0, 1.0, 1.0), 100.0)
    assert not canvas.hu.any()


def test_the_smooth_field_is_about_standard_normal_and_smooth() -> None:
    space = Space.centred((40, 60, 60), (1.0, 1.0, 1.0))
    field = smooth_field(np.random.default_rng(0), space, 6.0)
    assert field.shape == (40, 60, 60) and field.dtype == np.float32
    assert abs(field.mean()) < 0.3 and 0.8 < field.std() < 1.2
    assert np.abs(np.diff(field, axis=2)).max() < 1.0

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from pydantic import ValidationError

from clearmargin.core import Grid, Image
from clearmargin.errors import InputError
from clearmargin.transforms.intensity import _percentiles, narrowest_window, normalise
from clearmargin.transforms.settings import Percentiles, Window, WindowStack
from clearmargin.transforms.view import (
    AugmentSettings,
    ImageSettings,
    PreparedImage,
    augment_intensity,
    planes,
    prepare,
)


def test_window_maps_hounsfield_and_clips():
    values = np.array([-1000, -160, 40, 240, 3000], np.int16)
    np.testing.assert_allclose(normalise(values, Window(low=-160, high=240)), [0, 0, 0.5, 1, 1])


def test_sixteen_bits_are_not_cut_to_eight():
    values = np.arange(0, 4096, dtype=np.uint16)
    assert len(np.unique(normalise(values, Window(low=0, high=4095)))) == 4096


@pytest.mark.parametrize(
    ("settings", "levels"),
    [
        (Window(low=0, high=65535), 65536),
        (WindowStack(windows=((0, 65535), (0, 32767.5))), 65536),
        (Percentiles(low=0, high=100), 65536),
        (Percentiles(low=0, high=100, per_channel=True), 65536),
    ],
)
@pytest.mark.parametrize("dtype", [np.uint16, np.int16])
def test_sixteen_bits_reach_the_network_with_every_level(settings, levels, dtype):
    values = (np.arange(65536).reshape(1, 256, 256) + np.iinfo(dtype).min).astype(dtype)
    if dtype == np.int16 and not isinstance(settings, Percentiles):
        values = values.astype(np.int32) + 32768  # the windows above begin at 0
    image = Image(pixels=values, grid=Grid.from_spacing((256, 256)))
    takes = ImageSettings(intensity=settings, channels=2 if isinstance(settings, WindowStack) else 3)
    assert len(np.unique(prepare(image, takes)[0])) == levels


def test_the_noise_of_a_nearly_black_image_is_not_stretched():
    """Values 0 to 3 in a window of at least 60 end at 3 / 60; values 0 to 120 fill their own."""
    settings = Percentiles(low=0, high=100, least_width=60)
    noise, picture = np.array([[[0, 1, 2, 3]]], np.uint8), np.array([[[0, 30, 60, 120]]], np.uint8)
    np.testing.assert_allclose(normalise(noise, settings), [[[0, 1 / 60, 2 / 60, 3 / 60]]], rtol=1e-6)
    np.testing.assert_allclose(normalise(picture, settings), [[[0, 0.25, 0.5, 1]]])
    np.testing.assert_allclose(normalise(noise + 200, settings), normalise(noise, settings), atol=1e-6)
    own = settings.model_copy(update={"per_channel": True})
    both = np.concatenate([noise, picture])
    np.testing.assert_allclose(normalise(both, own)[:, 0, -1], [3 / 60, 1], rtol=1e-6)


def test_the_width_of_a_window_by_hand():
    ramp = np.arange(101, dtype=np.float64).reshape(1, 1, 101)
    assert narrowest_window(ramp, Percentiles(low=10, high=90, least_width=500)) == 80
    two = np.concatenate([ramp, 3 * ramp])
    assert narrowest_window(two, Percentiles(low=0, high=100)) == 300
    assert narrowest_window(two, Percentiles(low=0, high=100, per_channel=True)) == 100
    flat = np.concatenate([ramp, np.full_like(ramp, 7)])
    assert narrowest_window(flat, Percentiles(low=0, high=100, per_channel=True)) == 100
    assert narrowest_window(np.full((1, 4, 4), 7), Percentiles()) == 0


def test_each_window_is_a_channel_by_hand():
    values = np.array([[[-1000, 0, 500]], [[0, 100, 200]]], np.int16)  # two channels of 1 x 3
    stack = WindowStack(windows=((-1000, 0), (0, 1000)))
    np.testing.assert_allclose(
        normalise(values, stack)[:, 0],
        [[0, 1, 1], [0, 0, 0.5], [1, 1, 1], [0, 0.1, 0.2]],
    )
    with pytest.raises(ValidationError, match="low must lie below high"):
        WindowStack(windows=((0, 1), (3, 3)))


def test_windows_of_a_slice_and_its_neighbours_keep_their_order():
    volume = np.arange(3.0)[None, :, None, None] * 10
    image = Image(pixels=volume, grid=Grid.from_spacing((3, 1, 1), (2, 1, 1)))
    takes = ImageSettings(intensity=WindowStack(windows=((0, 20), (0, 40))), channels=6)
    ready = replace(image, pixels=prepare(image, takes))
    assert planes(ready, takes, 1).pixels[:, 0, 0].tolist() == [0, 0.5, 1, 0, 0.25, 0.5]
    with pytest.raises(
        InputError, match=r"1 channel\(s\) in each of 2 windows in each of 3 slices; the network takes 4"
    ):
        prepare(image, takes.model_copy(update={"channels": 4}))


def test_each_channel_by_its_own_percentiles():
    t1, flair = np.linspace(0, 1000, 101), np.linspace(0, 10, 101)
    both = np.stack([t1, flair, np.full(101, 7.0)])
    own = normalise(both, Percentiles(low=0, high=100, per_channel=True))
    np.testing.assert_allclose(own[0], np.linspace(0, 1, 101), atol=1e-6)
    np.testing.assert_allclose(own[1], own[0], atol=1e-6)
    assert (own[2] == 0).all()
    assert normalise(both, Percentiles(low=0, high=100))[1].max() == pytest.approx(0.01)


@settings(max_examples=60, deadline=None)
@given(
    values=arrays(
        st.sampled_from([np.uint8, np.int8, np.uint16, np.int16, np.int32, np.float32]),
        array_shapes(min_dims=2, max_dims=4, max_side=7),
        elements=st.integers(0, 127),
    ),
    low=st.floats(0, 100),
    high=st.floats(0, 100),
)
def test_counted_percentiles_are_numpys(values, low, high):
    values = values * np.array(
        -200 if values.dtype == np.int16 else 1, values.dtype
    )  # negative, and far apart
    expected = np.percentile(values, (low, high))
    np.testing.assert_allclose(_percentiles(values, (low, high)), expected, rtol=1e-9, atol=1e-9)


def test_percentiles_ignore_outliers_and_constants_are_zero():
    values = np.concatenate([np.linspace(10, 20, 1000), [1e6]]).astype(np.float32)
    scaled = normalise(values, Percentiles(low=0, high=99))
    assert scaled[0] == 0 and scaled[-1] == 1 and 0.4 < scaled[500] < 0.6
    assert (normalise(np.full((4, 4), 7), Percentiles()) == 0).all()


def test_percentiles_that_are_one_value_give_way_to_the_extremes():
    values = np.zeros((1, 100, 100), np.uint8)
    values[0, :2, :2] = 200, 100  # 4 of 10,000: both percentiles are 0
    assert np.unique(normalise(values, Percentiles())).tolist() == [0, 0.5, 1]


@pytest.mark.parametrize(
    ("settings", "channels"),
    [
        (Window(low=10, high=60), 6),
        (WindowStack(windows=((0, 50), (20, 90))), 12),
        (Percentiles(), 6),
        (Percentiles(per_channel=True), 6),
    ],
)
def test_a_volume_that_is_scaled_slice_by_slice_is_the_one_scaled_at_once(settings, channels):
    pixels = np.random.default_rng(0).integers(0, 100, (2, 5, 6, 7), dtype=np.int16)
    pixels[1] *= 3
    image = Image(pixels=pixels, grid=Grid.from_spacing((5, 6, 7), (2, 1, 1)))
    takes = ImageSettings(intensity=settings, channels=channels)
    whole = replace(image, pixels=prepare(image, takes))
    ready = PreparedImage(image, takes)
    for z in (0, 2, 4, 2):
        found, wanted = ready.plane(z), planes(whole, takes, z)
        np.testing.assert_array_equal(found.pixels, wanted.pixels)
        assert found.grid.same_as(wanted.grid)
    assert ready.plane(2) is ready.plane(2)  # the members of an ensemble share it
    alone = takes.model_copy(update={"neighbours": 0, "channels": len(whole.pixels)})
    np.testing.assert_array_equal(PreparedImage(image, alone).slab(1, 4), whole.pixels[:, 1:4])
    assert PreparedImage(image, takes).grid is image.grid


def test_a_slice_is_seen_with_its_neighbours():
    volume = np.arange(3, dtype=np.float32)[None, :, None, None] * np.ones((1, 3, 4, 4), np.float32)
    image = Image(pixels=volume, grid=Grid.from_spacing((3, 4, 4), (2, 1, 1)))
    around, alone = ImageSettings(), ImageSettings(neighbours=0)
    assert planes(image, around, 1).pixels[:, 0, 0].tolist() == [0, 1, 2]
    assert planes(image, around, 0).pixels[:, 0, 0].tolist() == [0, 0, 1]  # the end stands in
    assert planes(image, alone, 2).pixels[:, 0, 0].tolist() == [2, 2, 2]
    np.testing.assert_allclose(planes(image, around, 2).grid.to_world((1, 1)), image.grid.to_world((2, 1, 1)))


def test_sequences_of_a_volume_keep_their_slices_together():
    volume = np.arange(3.0)[None, :, None, None] + np.array([0.0, 10.0])[:, None, None, None]
    image = Image(pixels=volume, grid=Grid.from_spacing((3, 1, 1), (2, 1, 1)))
    seen = planes(image, ImageSettings(channels=6), 1)
    assert seen.pixels[:, 0, 0].tolist() == [0, 1, 2, 10, 11, 12]


def test_channels_that_the_network_does_not_take_are_refused():
    image = Image(pixels=np.zeros((4, 8, 8)), grid=Grid.from_spacing((8, 8)))
    with pytest.raises(InputError, match=r"4 channel\(s\); the network takes 3"):
        prepare(image, ImageSettings())
    assert prepare(image, ImageSettings(channels=4)).shape == (4, 8, 8)
    volume = Image(pixels=np.zeros((2, 3, 8, 8)), grid=Grid.from_spacing((3, 8, 8)))
    with pytest.raises(InputError, match=r"2 channel\(s\) in each of 3 slices; the network takes 4"):
        prepare(volume, ImageSettings(channels=4))


def test_scale_comes_from_spacing_only_where_there_is_one():
    settings = ImageSettings(spacing_mm=0.5)
    assert settings.scale_for(Grid.from_spacing((8, 8), (1.0, 1.0))) == pytest.approx(2.0)
    with pytest.raises(InputError, match="spacing"):
        settings.scale_for(Grid.from_spacing((8, 8)))


def test_settings_that_cannot_work_are_refused():
    with pytest.raises(ValidationError, match="multiples of 32"):
        ImageSettings(crop=(100, 128))
    with pytest.raises(ValidationError, match="not both"):
        ImageSettings(scale=0.5, spacing_mm=1.0)
    with pytest.raises(ValidationError, match="low must lie below high"):
        Window(low=3, high=3)


def test_augmentation_follows_its_generator_and_stays_in_range():
    pixels = torch.rand(1, 16, 16)
    first, again, other = (
        augment_intensity(pixels, AugmentSettings(), np.random.default_rng(s)) for s in (1, 1, 2)
    )
    assert first.shape == (1, 16, 16)
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert first.min() >= 0 and first.max() <= 1
    nothing = AugmentSettings(brightness=0, contrast=0, gamma=0, noise=0)
    torch.testing.assert_close(augment_intensity(pixels, nothing, np.random.default_rng(1))[0], pixels[0])


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_voxel_that_is_not_finite_says_nothing_of_the_others(bad):
    """One of 4,096 values was enough to make the whole image black."""
    values = np.random.default_rng(0).uniform(100, 200, (1, 64, 64)).astype(np.float32)
    broken = values.copy()
    broken[0, 5, 5] = bad
    seen, expected = normalise(broken, Percentiles()), normalise(values, Percentiles())
    others = np.ones((1, 64, 64), bool)
    others[0, 5, 5] = False
    np.testing.assert_allclose(seen[others], expected[others], atol=2e-3)
    assert 0 <= seen[0, 5, 5] <= 1
    assert not normalise(np.full((1, 8, 8), bad, np.float32), Percentiles()).any()

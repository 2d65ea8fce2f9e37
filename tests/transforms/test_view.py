import numpy as np
import pytest
import torch
from pydantic import ValidationError

from clearmargin.core import Grid, Image
from clearmargin.errors import InputError
from clearmargin.transforms.intensity import Percentiles, Window, normalise
from clearmargin.transforms.view import AugmentSettings, ImageSettings, augment_intensity, planes, prepare


def test_window_maps_hounsfield_and_clips():
    values = np.array([-1000, -160, 40, 240, 3000], np.int16)
    np.testing.assert_allclose(normalise(values, Window(low=-160, high=240)), [0, 0, 0.5, 1, 1])


def test_sixteen_bits_are_not_cut_to_eight():
    values = np.arange(0, 4096, dtype=np.uint16)
    assert len(np.unique(normalise(values, Window(low=0, high=4095)))) == 4096


def test_percentiles_ignore_outliers_and_constants_are_zero():
    values = np.concatenate([np.linspace(10, 20, 1000), [1e6]]).astype(np.float32)
    scaled = normalise(values, Percentiles(low=0, high=99))
    assert scaled[0] == 0 and scaled[-1] == 1 and 0.4 < scaled[500] < 0.6
    assert (normalise(np.full((4, 4), 7), Percentiles()) == 0).all()


def test_a_slice_is_seen_with_its_neighbours():
    volume = np.arange(3, dtype=np.float32)[None, :, None, None] * np.ones((1, 3, 4, 4), np.float32)
    image = Image(pixels=volume, grid=Grid.from_spacing((3, 4, 4), (2, 1, 1)))
    assert planes(image, 1, 1).pixels[:, 0, 0].tolist() == [0, 1, 2]
    assert planes(image, 1, 0).pixels[:, 0, 0].tolist() == [0, 0, 1]  # the end stands in
    assert planes(image, 0, 2).pixels[:, 0, 0].tolist() == [2, 2, 2]
    np.testing.assert_allclose(planes(image, 1, 2).grid.to_world((1, 1)), image.grid.to_world((2, 1, 1)))


def test_channels_that_no_network_takes_are_refused():
    image = Image(pixels=np.zeros((4, 8, 8)), grid=Grid.from_spacing((8, 8)))
    with pytest.raises(InputError, match="4 channels"):
        prepare(image, ImageSettings())


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
    assert first.shape == (3, 16, 16)
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert first.min() >= 0 and first.max() <= 1
    nothing = AugmentSettings(brightness=0, contrast=0, gamma=0, noise=0)
    torch.testing.assert_close(augment_intensity(pixels, nothing, np.random.default_rng(1))[0], pixels[0])

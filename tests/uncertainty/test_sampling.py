"""Test-time augmentation undoes its views exactly."""

import numpy as np
import pytest
from bright import bright_segmenter

from clearmargin.core import Grid, Image
from clearmargin.uncertainty.sampling import TTA_VIEWS, predict_with_tta


@pytest.mark.parametrize("shape", [(100, 120), (3, 100, 120)])
def test_views_come_back_to_the_same_place(shape):
    pixels = np.zeros((1, *shape), np.float32)
    pixels[..., 20:60, 70:110] = 1
    image = Image(pixels=pixels, grid=Grid.from_spacing(shape, (1.0,) * len(shape)))
    found = predict_with_tta(bright_segmenter(), image)
    inside = np.zeros(shape, bool)
    inside[..., 22:58, 72:108] = True
    outside = np.ones(shape, bool)
    outside[..., 18:62, 68:112] = False
    assert found.maps["foreground"][inside].min() > 0.99
    assert found.maps["foreground"][outside].max() < 0.01
    assert found.maps["entropy"][inside | outside].max() < 0.1
    np.testing.assert_array_equal(found.instances.masks[0].dense(), pixels[0] > 0)
    assert found.instances.uncertainty["mean_entropy"].shape == (1,)


def test_mirrored_views_alone_agree_to_the_pixel():
    pixels = np.zeros((1, 100, 120), np.float32)
    pixels[0, 20:60, 70:110] = 1
    image = Image(pixels=pixels, grid=Grid.from_spacing((100, 120)))
    found = predict_with_tta(bright_segmenter(), image, TTA_VIEWS[:4])
    np.testing.assert_allclose(found.maps["foreground"] >= 0.5, pixels[0] > 0)
    assert found.maps["entropy"][30:50, 80:100].max() < 1e-6

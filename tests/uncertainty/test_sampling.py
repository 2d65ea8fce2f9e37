"""Test-time augmentation undoes its views exactly."""

import numpy as np
import pytest
from bright import bright_segmenter

from clearmargin.core import Grid, Image
from clearmargin.transforms.view import AugmentSettings
from clearmargin.uncertainty.sampling import augmented, tta_views


@pytest.mark.parametrize("shape", [(100, 120), (3, 100, 120)])
def test_views_come_back_to_the_same_place(shape):
    pixels = np.zeros((1, *shape), np.float32)
    pixels[..., 20:60, 70:110] = 1
    image = Image(pixels=pixels, grid=Grid.from_spacing(shape, (1.0,) * len(shape)))
    found = augmented(bright_segmenter())(image)
    inside = np.zeros(shape, bool)
    inside[..., 22:58, 72:108] = True
    outside = np.ones(shape, bool)
    outside[..., 18:62, 68:112] = False
    # the score of what was found, and nothing of the views' own blur
    np.testing.assert_allclose(found.maps["foreground"][inside], 0.875, atol=1e-3)
    assert found.maps["foreground"][outside].max() < 0.01
    certain = -(0.875 * np.log2(0.875) + 0.125 * np.log2(0.125))
    np.testing.assert_allclose(found.maps["entropy"][inside], certain, atol=5e-3)
    assert found.maps["entropy"][outside].max() < 0.1
    np.testing.assert_array_equal(found.instances.masks[0].dense(), pixels[0] > 0)
    assert found.instances.uncertainty["mean_entropy"].shape == (1,)


def test_mirrored_views_alone_agree_to_the_pixel():
    pixels = np.zeros((1, 100, 120), np.float32)
    pixels[0, 20:60, 70:110] = 1
    image = Image(pixels=pixels, grid=Grid.from_spacing((100, 120)))
    found = augmented(bright_segmenter(), tta_views(AugmentSettings(scale=1)))(image)
    np.testing.assert_allclose(found.maps["foreground"] >= 0.5, pixels[0] > 0)
    np.testing.assert_allclose(found.maps["foreground"][30:50, 80:100], 0.875, atol=1e-5)


def test_views_keep_to_what_training_varied():
    still = tta_views(AugmentSettings(flip_x=False, flip_y=False, scale=1.0))
    assert [(v.flip, v.zoom) for v in still] == [((False, False), 1.0)]
    upright = tta_views(AugmentSettings(flip_y=False, scale=1.1))
    assert {v.flip for v in upright} == {(False, False), (False, True)}
    assert max(v.zoom for v in upright) == pytest.approx(1.1) and min(
        v.zoom for v in upright
    ) == pytest.approx(1 / 1.1)
    assert len(tta_views(AugmentSettings(scale=2.0))) == 8 and upright[0].zoom == 1.0

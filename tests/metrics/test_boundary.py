"""Bands by hand, by property and against the definition."""

from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from clearmargin.errors import ConfigError
from clearmargin.metrics import MaskPair, bands
from clearmargin.metrics.bands import round_band, square_band
from clearmargin.metrics.boundary import boundary_iou, boundary_iou_published, published_band_px, trimap_iou

from .shapes import block

masks = st.tuples(st.integers(1, 5), st.integers(1, 12), st.integers(1, 12), st.integers(0, 2**32 - 1)).map(
    lambda v: ndimage.binary_dilation(np.random.default_rng(v[3]).random(v[:3]) < 0.2)
)


@settings(max_examples=60, deadline=None)
@given(
    masks,
    st.sampled_from([(1.0, 1.0, 1.0), (2.5, 0.8, 0.8), (0.5, 1.0, 3.0)]),
    st.sampled_from([1.0, 1.6, 2.5, 4.0, 30.0]),
    st.booleans(),
)
def test_the_round_band_is_the_distance_transform_cut_off(mask, spacing, width, planar):
    if planar:
        mask, spacing = mask[0], spacing[1:]
    outside = np.pad(mask, 1)
    distances = ndimage.distance_transform_edt(outside, sampling=spacing)[(slice(1, -1),) * mask.ndim]
    for most_rows in (bands._MOST_ROWS, 0):  # the second compares distances instead of rows
        with mock.patch.object(bands, "_MOST_ROWS", most_rows):
            np.testing.assert_array_equal(round_band(mask, spacing, width), mask & (distances <= width))


@settings(max_examples=60, deadline=None)
@given(masks, st.integers(1, 6))
def test_the_square_band_is_what_erosion_removes(mask, width):
    eroded = ndimage.binary_erosion(mask[0], np.ones((3, 3)), iterations=width, border_value=0)
    np.testing.assert_array_equal(square_band(mask[0], width), mask[0] & ~eroded)


def test_boundary_iou_by_hand():
    shape = (20, 20)
    pair = MaskPair.from_arrays(block(shape, (5, 6), (15, 16)), block(shape, (5, 5), (15, 15)), (0.5, 0.5))
    # rings of width 1: 36 pixels each; in common: top and bottom rows, 9 each; no column in common
    assert boundary_iou(pair, 0.5) == 18 / (72 - 18)
    assert boundary_iou(pair, 100.0) == 90 / 110  # all band: plain IoU


def test_trimap_iou_by_hand():
    shape = (20, 20)
    reference, predicted = block(shape, (5, 5), (15, 15)), block(shape, (5, 5), (15, 16))
    pair = MaskPair.from_arrays(predicted, reference, (1.0, 1.0))
    # inner ring 36 in both; outer ring without corners: the prediction holds 10 of it
    assert trimap_iou(pair, 1.0) == 36 / 46


def test_the_trimap_reaches_beyond_the_joint_box_without_effect():
    reference = block((6, 6), (0, 0), (6, 6))
    assert trimap_iou(MaskPair.from_arrays(reference, reference, (1.0, 1.0)), 2.0) == 1


def test_the_published_band():
    assert published_band_px((1080, 1920)) == 44
    assert published_band_px((10, 10)) == 1
    shape = (100, 100)  # band: 3 px
    pair = MaskPair.from_arrays(block(shape, (10, 11), (60, 61)), block(shape, (10, 10), (60, 60)), None)
    ring = 50 * 50 - 44 * 44
    common = 2 * 3 * 49 + 2 * 2 * 44  # the rows of top and bottom, and two of three columns on each side
    assert boundary_iou_published(pair) == pytest.approx(common / (2 * ring - common))


def test_a_thin_object_scores_its_iou_by_the_published_band_and_not_by_a_band_in_mm():
    shape = (1080, 1920)
    pair = MaskPair.from_arrays(
        block(shape, (100, 100), (180, 400)), block(shape, (104, 100), (184, 400)), (0.1, 0.1)
    )
    assert boundary_iou_published(pair) == pytest.approx(76 / 84)
    assert boundary_iou(pair, 0.4) < 0.5


def test_bands_that_hold_nothing_and_volumes_for_the_published_band_are_refused():
    cube = np.ones((3, 3, 3), bool)
    pair = MaskPair.from_arrays(cube, cube, (1.0, 1.0, 1.0))
    with pytest.raises(ConfigError, match="thinner than one element"):
        boundary_iou(pair, 0.5)
    with pytest.raises(ConfigError, match="defined for images"):
        boundary_iou_published(pair)

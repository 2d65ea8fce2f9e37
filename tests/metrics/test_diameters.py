"""Diameters: by hand."""

import numpy as np
import pytest
from scipy import ndimage

from clearmargin.metrics.diameters import drawn_axes, feret_diameter, slice_axes

from .shapes import ball, block


def test_a_block_is_measured_from_corner_to_corner():
    mask = block((6, 20, 20), (1, 2, 3), (5, 5, 7))  # 4 x 3 x 4 elements of 2 x 1 x 1 mm
    assert feret_diameter(mask, (2, 1, 1)) == pytest.approx(np.sqrt(8**2 + 3**2 + 4**2))
    long, short = slice_axes(mask, (2, 1, 1))
    assert long == pytest.approx(5)
    # across the diagonal of a 3 x 4 rectangle, from one long side to the other: 3 / cos, and cos is 4 / 5
    assert short == pytest.approx(3 / (4 / 5))


def test_the_slice_with_the_longest_axis_counts():
    mask = np.zeros((3, 30, 30), bool)
    mask[0, 4:8, 4:8] = True
    mask[1, 10, 2:22] = True
    mask[2, 4:10, 4:10] = True
    long, short = slice_axes(mask, (5, 1, 0.5))
    assert long == pytest.approx(np.hypot(1, 10))
    assert short == pytest.approx(1 / (10 / np.hypot(1, 10)))


def test_a_disc_is_as_wide_as_it_is_long():
    disc = ball((60, 60), (30, 30), 20, (1, 1))
    assert slice_axes(disc, (1, 1)) == pytest.approx((40, 40), rel=0.05)


def test_one_element_and_none():
    one = block((4, 4), (1, 1), (2, 2))
    assert slice_axes(one, (2, 2)) == pytest.approx((np.sqrt(8), np.sqrt(8)))
    assert slice_axes(np.zeros((3, 4, 4), bool), (1, 1, 1)) == (0, 0)
    assert feret_diameter(np.zeros((4, 4), bool), (1, 1)) == 0
    assert slice_axes(np.zeros((0, 0, 0), bool), (1, 1, 1)) == (0, 0)


def test_axes_are_drawn_where_they_are():
    mask = np.zeros((3, 20, 20), bool)
    mask[1, 4:7, 3:7] = True  # 3 x 4 mm, from (4, 3) to (7, 7)
    z, ends = drawn_axes(mask, (5, 1, 1))
    assert z == 1
    corners = {(4.0, 3.0), (7.0, 7.0)}, {(4.0, 7.0), (7.0, 3.0)}
    assert {tuple(e) for e in ends[:2]} in corners
    # The short axis crosses the rectangle's middle at a right angle.
    np.testing.assert_allclose(ends[2:].mean(axis=0), (5.5, 5.0))
    assert (ends[1] - ends[0]) @ (ends[3] - ends[2]) == pytest.approx(0)
    assert np.linalg.norm(ends[3] - ends[2]) == pytest.approx(3 / (4 / 5))
    assert drawn_axes(np.zeros((2, 3, 3), bool), (1, 1, 1)) is None


def test_the_short_axis_of_an_l_lies_within_it():
    """Two arms of 20 x 4: the long axis joins their tips, and the longest line across it is in the elbow."""
    mask = np.zeros((1, 24, 24), bool)
    mask[0, 2:22, 2:6] = mask[0, 18:22, 2:22] = True
    _, ends = drawn_axes(mask, (5, 1, 1))
    # From the corner (2, 2) to (22, 22), or what is as long: both tips' outer corners, (2, 2) is the elbow's far side.
    assert {tuple(e) for e in ends[:2]} == {(2.0, 2.0), (22.0, 22.0)}
    # At 45 degrees the elbow, a square of 4 with its outer corner at (22, 2), is longest across its own diagonal ...
    long, short = ends[1] - ends[0], ends[3] - ends[2]
    assert long @ short == pytest.approx(0, abs=1e-4)
    # ... from the outer corner (22, 2) to the inner one (18, 6).
    assert np.linalg.norm(short) == pytest.approx(4 * np.sqrt(2), abs=1e-4)
    assert {tuple(np.round(e, 3)) for e in ends[2:]} == {(22.0, 2.0), (18.0, 6.0)}
    check_within(mask[0], ends[2:], (1, 1))


@pytest.mark.parametrize("spacing", [(1.0, 1.0), (0.7, 0.9)])
@pytest.mark.parametrize("angle", [0, 25, 90])
def test_an_ellipse_is_as_wide_as_its_short_diameter(angle, spacing):
    turn = np.deg2rad(angle)
    y, x = (np.mgrid[:200, :200] - 99.5) * np.array(spacing)[:, None, None]
    along, across = x * np.cos(turn) + y * np.sin(turn), y * np.cos(turn) - x * np.sin(turn)
    mask = (along / 60) ** 2 + (across / 25) ** 2 <= 1
    long, short = slice_axes(mask, spacing)
    assert long == pytest.approx(120, abs=1.5) and short == pytest.approx(50, abs=1.5)
    _, ends = drawn_axes(mask, spacing)
    check_within(mask, ends[2:], spacing)
    # it crosses the middle
    np.testing.assert_allclose(ends[2:].mean(axis=0), np.array([100, 100]) * spacing, atol=3)


def test_a_gap_ends_the_short_axis():
    """Two strips of 4 with a slit of 1 between them: a line at 16.7 degrees within one strip is 4 / cos long."""
    mask = np.ones((9, 30), bool)
    mask[4] = False
    _, ends = drawn_axes(mask, (1, 1))
    check_within(mask, ends[2:], (1, 1))
    assert np.linalg.norm(ends[3] - ends[2]) == pytest.approx(4 / (30 / np.hypot(9, 30)), abs=1e-4)


def test_no_line_that_is_drawn_by_hand_is_longer():
    """Ragged shapes: of very many lines across the long axis, tried point by point, none is longer."""
    rng = np.random.default_rng(4)
    for _ in range(2):
        mask = ndimage.binary_opening(ndimage.gaussian_filter(rng.normal(size=(30, 40)), 3) > 0.02)
        _, ends = drawn_axes(mask, (1.0, 0.8))
        check_within(mask, ends[2:], (1.0, 0.8))
        along = (ends[1] - ends[0]) / np.linalg.norm(ends[1] - ends[0])
        across, step = np.array([-along[1], along[0]]), 0.05
        longest = 0
        for place in np.arange(-50, 50, 0.1):
            points = place * along + np.arange(-50, 50, step)[:, None] * across
            index = np.floor(points / (1.0, 0.8)).astype(int)
            there = ((index >= 0) & (index < mask.shape)).all(axis=1)
            inside = np.where(there, mask[tuple(np.where(there[:, None], index, 0).T)], False)
            runs = np.diff(np.flatnonzero(np.diff(np.r_[0, inside, 0])))[::2]
            longest = max(longest, runs.max(initial=0))
        short = np.linalg.norm(ends[3] - ends[2])
        assert longest * step - 2 * step <= short <= longest * step + 0.3


def check_within(mask, ends, spacing):
    """Assert that each point of a line between two ends lies in the mask: looked up one by one."""
    for k in np.linspace(1e-4, 1 - 1e-4, 500):
        point = (ends[0] + k * (ends[1] - ends[0])) / np.asarray(spacing)
        nearby = [tuple(np.floor(point + step).astype(int)) for step in ((0, 0), (1e-5, 1e-5), (-1e-5, 1e-5))]
        nearby += [tuple(np.floor(point - step).astype(int)) for step in ((1e-5, 1e-5), (-1e-5, 1e-5))]
        assert any(mask[index] for index in nearby if min(index) >= 0 and all(np.less(index, mask.shape)))

"""Diameters: by hand."""

import numpy as np
import pytest

from clearmargin.metrics.diameters import drawn_axes, feret_diameter, slice_axes

from .shapes import ball, block


def test_a_block_is_measured_from_corner_to_corner():
    mask = block((6, 20, 20), (1, 2, 3), (5, 5, 7))  # 4 x 3 x 4 elements of 2 x 1 x 1 mm
    assert feret_diameter(mask, (2, 1, 1)) == pytest.approx(np.sqrt(8**2 + 3**2 + 4**2))
    long, short = slice_axes(mask, (2, 1, 1))
    assert long == pytest.approx(5)
    # the other two corners of a 3 x 4 rectangle lie 12 / 5 on either side of its diagonal
    assert short == pytest.approx(2 * 12 / 5)


def test_the_slice_with_the_longest_axis_counts():
    mask = np.zeros((3, 30, 30), bool)
    mask[0, 4:8, 4:8] = True
    mask[1, 10, 2:22] = True
    mask[2, 4:10, 4:10] = True
    long, short = slice_axes(mask, (5, 1, 0.5))
    assert long == pytest.approx(np.hypot(1, 10))
    assert short == pytest.approx(2 * 1 * 10 / np.hypot(1, 10))


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
    # The short axis crosses the rectangle's middle at a right angle, 12 / 5 to either side.
    np.testing.assert_allclose(ends[2:].mean(axis=0), (5.5, 5.0))
    assert (ends[1] - ends[0]) @ (ends[3] - ends[2]) == pytest.approx(0)
    assert np.linalg.norm(ends[3] - ends[2]) == pytest.approx(2 * 12 / 5)
    assert drawn_axes(np.zeros((2, 3, 3), bool), (1, 1, 1)) is None

import math

import numpy as np
import pytest

from clearmargin.metrics import measure_pair

from .shapes import ball, block


def test_overlap_by_hand():
    shape = (10, 10)
    found = measure_pair(block(shape, (0, 0), (4, 6)), block(shape, (0, 2), (4, 8)), spacing=(2.0, 0.5))
    # 24 pixels each, 16 in common, 32 in the union; pixels of 1 square millimetre
    assert found["dice"] == pytest.approx(2 / 3)
    assert found["iou"] == 0.5
    assert found["precision"] == found["recall"] == pytest.approx(2 / 3)
    assert found["volume_error"] == 0
    assert found["centroid_error"] == 1.0


def test_volume_and_diameter_in_physical_units():
    shape = (5, 6, 7)
    found = measure_pair(
        block(shape, (1, 1, 1), (4, 5, 5)), block(shape, (1, 1, 1), (3, 5, 5)), spacing=(3.0, 0.5, 0.5)
    )
    assert found["volume_error"] == pytest.approx(16 * 0.75)
    assert found["relative_volume_error"] == 0.5
    assert found["diameter_error"] == pytest.approx(math.hypot(9, 2, 2) - math.hypot(6, 2, 2))


def test_the_diameter_of_one_pixel_is_its_diagonal():
    pixel = block((3, 3), (1, 1), (2, 2))
    found = measure_pair(pixel, np.zeros((3, 3), bool), spacing=(3.0, 4.0))
    assert found["diameter_error"] == 5


@pytest.mark.parametrize("ndim", [2, 3])
def test_the_diameter_of_a_ball(ndim):
    shape, spacing = (40,) * ndim, (0.5,) * ndim
    disc = ball(shape, (9.75,) * ndim, 8, spacing)
    found = measure_pair(disc, np.zeros(shape, bool), spacing=spacing)
    assert found["diameter_error"] == pytest.approx(16, abs=1.0)

"""The point that samples agree on, by the law of total covariance."""

import numpy as np
import pytest

from clearmargin.core import Landmarks, PointType
from clearmargin.core.landmarks import HIDDEN, SEEN
from clearmargin.sampling.points import agreed_points

TYPES = (PointType(name="tip"), PointType(name="joint"))


def sample(*points):
    """Points as ``(type, score, visibility, y, x)`` with a covariance of 4."""
    n = len(points)
    at, visible, scores = np.full((n, 2, 2), np.nan), np.zeros((n, 2), np.int8), np.zeros((n, 2))
    for i, (kind, score, seen, y, x) in enumerate(points):
        at[i, kind], visible[i, kind], scores[i, kind] = (y, x), seen, score
    return Landmarks.of(
        TYPES, at, visible, scores=scores, covariance=np.broadcast_to(4 * np.eye(2), (n, 2, 2, 2))
    )


def test_one_sample_is_itself():
    found = agreed_points([sample((0, 0.5, SEEN, 10, 20), (1, 0.9, HIDDEN, 3, 4))])
    assert found.points[[0, 1], [1, 0]].tolist() == [[3, 4], [10, 20]]
    assert found.visible.tolist() == [[0, HIDDEN], [SEEN, 0]]
    np.testing.assert_allclose(found.covariance[0, 1], 4 * np.eye(2), atol=1e-5)


def test_disagreement_widens_the_covariance():
    # two samples 6 columns apart: their points' variance is 9, each one's own is 4
    found = agreed_points([sample((0, 0.8, SEEN, 10, 20)), sample((0, 0.8, SEEN, 10, 26))])
    assert found.points[0, 0].tolist() == pytest.approx([10, 23])
    np.testing.assert_allclose(found.covariance[0, 0], np.diag([4.0, 13.0]), atol=1e-4)
    assert found.scores[0, 0] == pytest.approx(0.8)


def test_a_sample_that_misses_a_point_lowers_its_score_and_types_stay_apart():
    found = agreed_points(
        [sample((0, 0.9, SEEN, 10, 20)), sample((1, 0.9, SEEN, 10, 20)), sample((0, 0.6, HIDDEN, 10, 20))]
    )
    assert [float(found.scores[i, k]) for i, k in np.argwhere(found.visible > 0)] == pytest.approx([0.5, 0.3])
    assert found.visible[0, 0] == SEEN  # 0.9 of 1.5 say so


def test_points_far_apart_are_two():
    found = agreed_points([sample((0, 0.9, SEEN, 10, 20)), sample((0, 0.7, SEEN, 40, 60))])
    assert len(found) == 2 and found.scores[:, 0].tolist() == pytest.approx([0.45, 0.35])
    assert len(agreed_points([sample(), sample()])) == 0

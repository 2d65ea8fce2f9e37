"""Landmarks as columns: what is refused, moved, mirrored and picked."""

import numpy as np
import pytest
from landmarks import TYPES

from clearmargin.core import Grid, InstanceSet, LabelMap, Landmarks, PointType
from clearmargin.errors import ConfigError


def two():
    points = [[[1, 2], [3, 4], [5, 6]], [[7, 8], [0, 0], [9, 1]]]
    return Landmarks.of(TYPES, points, [[2, 1, 2], [2, 0, 2]])


def test_an_absent_point_has_no_place_and_no_score():
    landmarks = two()
    assert np.isnan(landmarks.points[1, 1]).all() and landmarks.scores[1, 1] == 0
    assert landmarks.count == 5 and len(landmarks) == 2
    assert landmarks.areas.tolist() == [4 * 4, 2 * 7]


@pytest.mark.parametrize(
    ("points", "visible"),
    [
        (np.zeros((1, 2, 2)), [[2, 2]]),
        (np.zeros((1, 3, 2)), [[2, 3, 2]]),
        (np.full((1, 3, 2), np.nan), [[2, 0, 0]]),
        (np.zeros((1, 3, 2)), [[2, 2]]),
    ],
)
def test_columns_that_do_not_fit_are_refused(points, visible):
    with pytest.raises(ValueError, match=r"points|visible|coordinates"):
        Landmarks.of(TYPES, points, visible)


def test_a_mirror_swaps_left_and_right_and_a_turn_does_not():
    landmarks = two()
    mirror = np.array([[1, 0, 0], [0, -1, 9], [0, 0, 1]], float)
    turn = np.array([[0, -1, 9], [1, 0, 0], [0, 0, 1]], float)
    assert landmarks.moved(mirror).points[0].tolist() == [[3, 5], [1, 7], [5, 3]]
    assert landmarks.moved(mirror).visible[0].tolist() == [1, 2, 2]
    assert landmarks.moved(turn).points[0].tolist() == [[7, 1], [5, 3], [3, 5]]
    back = landmarks.moved(mirror).moved(np.linalg.inv(mirror))
    np.testing.assert_allclose(back.points, landmarks.points)


def test_covariance_and_area_go_with_the_matrix():
    landmarks = Landmarks.of(
        TYPES, [[[1, 2]] * 3], [[2, 2, 2]], covariance=[[np.diag([4.0, 1.0])] * 3], areas=[10]
    )
    half = landmarks.moved(np.array([[0, 0.5, 0], [0.5, 0, 0], [0, 0, 1]]))
    np.testing.assert_allclose(half.covariance[0, 0], np.diag([0.25, 1.0]))
    assert half.areas.tolist() == [2.5]


def test_singles_inside_and_thresholds_leave_the_points_they_say():
    landmarks = Landmarks.of(TYPES, two().points, two().visible, scores=[[0.9, 0.2, 0.5], [0.4, 0, 0.6]])
    assert len(landmarks.singles()) == 5
    assert landmarks.singles().count == 5
    assert landmarks.at_least(0.5).visible.tolist() == [[2, 0, 2], [0, 0, 2]]
    assert landmarks.inside((6, 7)).visible.tolist() == [[2, 1, 2]]
    assert len(landmarks.at_least(0.99)) == 0


def test_a_set_carries_its_landmarks_through_select_and_slices():
    volume = Grid.from_spacing((4, 10, 10))
    points = [[[1.2, 3, 4], [1.6, 5, 6], [3, 7, 8]]]
    landmarks = Landmarks.of(TYPES, points, [[2, 2, 1]])
    mask = np.zeros(volume.shape, bool)
    mask[1] = True
    found = InstanceSet(
        grid=volume,
        masks=InstanceSet.from_dense(volume, [mask]).masks,
        labels=[1],
        scores=[1.0],
        landmarks=landmarks,
    )
    assert found.select([]).landmarks is landmarks
    assert found.plane(1)[0].landmarks.points[0, 0].tolist() == [3, 4]
    assert found.plane(2)[0].landmarks.visible.tolist() == [[0, 2, 0]]
    with pytest.raises(ValueError, match="axes"):
        InstanceSet(grid=volume, masks=(), labels=[], scores=[], landmarks=two())


@pytest.mark.parametrize(
    "points",
    [
        (PointType(name="a"), PointType(name="a")),
        (PointType(name="a", mirror="b"), PointType(name="b")),
        (PointType(name="a", mirror="c"),),
    ],
)
def test_names_are_unique_and_mirrors_are_pairs(points):
    with pytest.raises(ConfigError, match=r"unique|mirror"):
        LabelMap((), points)

"""Which instance a point belongs to, in scenes that one can draw."""

import numpy as np
import pytest

from clearmargin.core import Grid, InstanceSet, Landmarks, PointType
from clearmargin.core.belonging import with_owners

TYPES = (PointType(name="tip"), PointType(name="joint"))
GRID = Grid.from_spacing((60, 60))


def singles(*points, grid=GRID):
    """Points as ``(type, score, *indices)``, each an object of its own."""
    at = np.full((len(points), 2, grid.ndim), np.nan)
    visible, scores = np.zeros((len(points), 2), np.int8), np.zeros((len(points), 2))
    for i, (kind, score, *place) in enumerate(points):
        at[i, kind], visible[i, kind], scores[i, kind] = place, 2, score
    spread = np.broadcast_to(np.eye(grid.ndim), (len(points), 2, grid.ndim, grid.ndim))
    return Landmarks.of(TYPES, at, visible, scores=scores, covariance=spread)


def bars(scores=(0.9, 0.9)):
    """A bar down column 30 and one along row 30, 6 pixels wide: they cross in the middle."""
    down, along = np.zeros((60, 60), bool), np.zeros((60, 60), bool)
    down[5:40, 27:33], along[27:33, 5:55] = True, True
    return InstanceSet.from_dense(GRID, [down, along], scores=scores)


def place_of(found, instance, kind):
    (row,) = np.flatnonzero(found.owners == instance)
    return found.points[row, kind].tolist()


def test_each_instance_has_its_own_points():
    found = with_owners(singles((0, 0.9, 6, 30), (1, 0.8, 38, 30), (0, 0.7, 30, 53)), bars())
    assert found.owners.tolist() == [0, 1]
    assert place_of(found, 0, 0) == [6, 30] and place_of(found, 0, 1) == [38, 30]
    assert place_of(found, 1, 0) == [30, 53] and found.visible.tolist() == [[2, 2], [2, 0]]
    assert found.areas.tolist() == [35 * 6, 50 * 6]
    assert found.scores[0].tolist() == pytest.approx([0.9, 0.8])
    np.testing.assert_array_equal(found.covariance[0, 1], np.eye(2))


def test_a_tip_on_both_masks_goes_to_the_one_without():
    # the second bar's tip is where they cross, and its score is higher; the first bar has one that is its alone
    found = with_owners(singles((0, 0.9, 30, 30), (0, 0.6, 6, 30)), bars())
    assert place_of(found, 0, 0) == [6, 30] and place_of(found, 1, 0) == [30, 30]


def test_a_weak_second_look_takes_nothing_from_the_first():
    down = bars().masks[0]
    twice = InstanceSet(grid=GRID, masks=(down, down), labels=np.ones(2, np.int64), scores=[0.95, 0.1])
    found = with_owners(singles((0, 0.9, 6, 30), (0, 0.05, 20, 30), (1, 0.9, 38, 30)), twice)
    assert place_of(found, 0, 0) == [6, 30] and place_of(found, 0, 1) == [38, 30]
    assert place_of(found, 1, 0) == [20, 30]


def test_a_point_beside_a_mask_belongs_to_it_and_one_far_off_to_none():
    # the box of the first bar has a diagonal of 35.5: points belong up to 7.1 from its edge
    found = with_owners(singles((0, 0.9, 45, 30), (1, 0.9, 58, 3)), bars())
    assert found.owners.tolist() == [0, -1]
    assert found.visible.tolist() == [[2, 0], [0, 2]] and np.isnan(found.areas[1])


def test_without_instances_or_points():
    nothing = InstanceSet.empty(GRID)
    assert with_owners(singles((0, 0.9, 3, 3), (0, 0.8, 9, 9)), nothing).owners.tolist() == [-1, -1]
    empty = with_owners(Landmarks.empty(TYPES, 2), bars())
    assert len(empty) == 0 and empty.owners.tolist() == []


def test_distances_are_in_the_grids_unit():
    # slices 5 mm apart: 2 slices are farther than 6 columns
    grid = Grid.from_spacing((20, 20, 20), (5.0, 1.0, 1.0))
    box = np.zeros((20, 20, 20), bool)
    box[5:8, 5:15, 5:15] = True  # 15 x 10 x 10 mm, diagonal 20.6 mm: reach 4.1 mm
    one = InstanceSet.from_dense(grid, [box])
    found = with_owners(singles((0, 1, 6, 10, 20), (1, 1, 10, 10, 10), grid=grid), one)
    assert found.owners.tolist() == [0, -1] and found.visible[0].tolist() == [2, 0]


def test_owners_follow_a_choice_of_instances():
    both = bars()
    found = with_owners(singles((0, 0.9, 6, 30), (0, 0.7, 30, 53)), both)
    held = InstanceSet(grid=GRID, masks=both.masks, labels=both.labels, scores=both.scores, landmarks=found)
    assert held.select([1]).landmarks.owners.tolist() == [-1, 0]
    assert held.select([1, 0]).landmarks.owners.tolist() == [1, 0]
    assert held.select([]).landmarks.owners.tolist() == [-1, -1]
    with pytest.raises(ValueError, match="belong to instance 1, and there are 1"):
        InstanceSet(
            grid=GRID, masks=both.masks[:1], labels=both.labels[:1], scores=both.scores[:1], landmarks=found
        )

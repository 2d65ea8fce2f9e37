"""Which detections become instances."""

import numpy as np

from clearmargin.core import Grid, InstanceSet
from clearmargin.models.repeats import without_repeats

GRID = Grid.from_spacing((40, 40))


def box(y, x, height, width):
    dense = np.zeros(GRID.shape, bool)
    dense[y : y + height, x : x + width] = True
    return dense


def test_a_second_look_at_one_object_goes_and_other_objects_stay():
    whole, shifted = box(5, 5, 20, 20), box(6, 5, 20, 20)
    inside, beside = box(10, 10, 6, 6), box(24, 5, 10, 20)  # nested, and overlapping by one row
    instances = InstanceSet.from_dense(
        GRID,
        [shifted, whole, inside, beside, whole],
        labels=[1, 1, 1, 1, 2],
        scores=[0.6, 0.9, 0.8, 0.7, 0.3],
    )
    kept = without_repeats(instances, 0.5)
    assert [round(float(s), 1) for s in kept.scores] == [
        0.9,
        0.8,
        0.7,
        0.3,
    ]  # another label is another object
    assert len(without_repeats(instances, 1.0)) == 5
    assert len(without_repeats(InstanceSet.empty(GRID), 0.5)) == 0


def test_what_was_dropped_drops_nothing():
    """The middle of three, each overlapping the next, goes with the first; the third stays."""
    row = [box(5, x, 10, 20) for x in (0, 6, 12)]
    kept = without_repeats(InstanceSet.from_dense(GRID, row, scores=[0.9, 0.8, 0.7]), 0.5)
    assert [m.origin[1] for m in kept.masks] == [0, 12]

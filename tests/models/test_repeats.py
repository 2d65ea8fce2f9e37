"""Which detections become instances."""

import numpy as np
import pytest

from clearmargin.core import Grid, InstanceSet
from clearmargin.models.repeats import Suppression, without_repeats

GRID = Grid.from_spacing((40, 40))
REPEATS = Suppression(iou=0.5)
PARTS = Suppression(iou=0.5, share=0.5)


def box(y, x, height, width):
    dense = np.zeros(GRID.shape, bool)
    dense[y : y + height, x : x + width] = True
    return dense


def kept_scores(masks, scores, rule, labels=None):
    instances = InstanceSet.from_dense(GRID, masks, labels=labels or [1] * len(masks), scores=scores)
    return [round(float(s), 2) for s in without_repeats(instances, rule).scores]


def test_a_second_look_at_one_object_goes_and_other_objects_stay():
    whole, shifted = box(5, 5, 20, 20), box(6, 5, 20, 20)
    inside, beside = box(10, 10, 6, 6), box(24, 5, 10, 20)  # nested, and overlapping by one row
    masks, labels, scores = (
        [shifted, whole, inside, beside, whole],
        [1, 1, 1, 1, 2],
        [0.6, 0.9, 0.8, 0.7, 0.3],
    )
    # another label is another object
    assert kept_scores(masks, scores, REPEATS, labels) == [0.9, 0.8, 0.7, 0.3]
    assert len(kept_scores(masks, scores, Suppression(iou=1.0), labels)) == 5
    assert len(without_repeats(InstanceSet.empty(GRID), PARTS)) == 0


def test_what_was_dropped_drops_nothing():
    """The middle of three, each overlapping the next, goes with the first; the third stays."""
    row = [box(5, x, 10, 20) for x in (0, 6, 12)]
    kept = without_repeats(InstanceSet.from_dense(GRID, row, scores=[0.9, 0.8, 0.7]), REPEATS)
    assert [m.origin[1] for m in kept.masks] == [0, 12]


@pytest.mark.parametrize(("column", "goes"), [(10, True), (19, True), (20, False), (30, False)])
def test_a_part_goes_if_more_than_half_of_it_lies_in_the_whole(column, goes):
    """A part 10 wide beside a whole that ends at column 25: 10, 6, 5 and 0 of its columns lie in the whole."""
    whole, part = box(5, 5, 20, 20), box(10, column, 5, 10)
    assert kept_scores([whole, part], [0.9, 0.8], PARTS) == ([0.9] if goes else [0.9, 0.8])
    assert kept_scores([whole, part], [0.9, 0.8], REPEATS) == [0.9, 0.8]


def test_a_better_part_does_not_take_the_whole_with_it():
    """A quarter of the whole lies in the part: both stay, since nothing says which is right."""
    assert kept_scores([box(5, 5, 20, 20), box(5, 5, 10, 10)], [0.8, 0.9], PARTS) == [0.9, 0.8]


def test_several_objects_seen_as_one_go():
    """Two better halves leave nothing of the whole, though neither has an IoU above 0.5 with it."""
    halves, whole = [box(5, 5, 20, 9), box(5, 15, 20, 9)], box(5, 5, 20, 20)
    assert kept_scores([*halves, whole], [0.9, 0.8, 0.7], PARTS) == [0.9, 0.8]
    assert kept_scores([*halves, whole], [0.9, 0.8, 0.7], REPEATS) == [0.9, 0.8, 0.7]


def test_objects_of_two_labels_nest_and_so_do_those_of_a_label_whose_objects_do():
    whole, inside = box(5, 5, 20, 20), box(10, 10, 6, 6)
    assert kept_scores([whole, inside], [0.9, 0.8], PARTS, [1, 2]) == [0.9, 0.8]
    nested = Suppression(iou=0.5, share=0.5, nested=frozenset({1}))
    assert kept_scores([whole, inside], [0.9, 0.8], nested) == [0.9, 0.8]
    assert kept_scores([whole, inside], [0.9, 0.8], nested, [2, 2]) == [0.9]


def test_leaving_out_low_scores_first_changes_nothing_above_them():
    """So one matching serves all thresholds: 200 random boxes, suppressed before and after a threshold."""
    generator = np.random.default_rng(0)
    corners = generator.integers(0, 30, (200, 2))
    masks = [box(y, x, *generator.integers(2, 10, 2)) for y, x in corners]
    every = InstanceSet.from_dense(GRID, masks, scores=generator.permutation(200) / 200)
    kept = without_repeats(every, PARTS)
    strong = without_repeats(every.select(every.scores >= 0.5), PARTS)
    np.testing.assert_array_equal(kept.scores[kept.scores >= 0.5], strong.scores)

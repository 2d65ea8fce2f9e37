"""Landmarks, FROC, counts, splits and merges, surroundings, tissue and task forms: by hand."""

import math

import numpy as np
import pytest

from clearmargin.core import Code, Grid, InstanceSet, LabelClass, LabelMap
from clearmargin.metrics.counting import count_error, split_and_merge, surroundings
from clearmargin.metrics.froc import froc
from clearmargin.metrics.landmarks import landmark_errors
from clearmargin.metrics.tasks import as_boxes, as_layers, as_panoptic, as_semantic
from clearmargin.metrics.tissue import dilated, enclosed_tissue

from .shapes import ball, block, squares


def test_landmarks_by_hand():
    found = landmark_errors(
        [[0, 0], [3, 4], [0, 0], [9, 9], [0, 0]],
        [[0, 1], [0, 0], [5, 5], [0, 0], [7, 7]],
        distance_cap=20.0,
        detected=[True, True, False, True, False],
        existing=[True, True, True, False, False],
    )
    assert found.errors.tolist() == [1, 5, 20, 20, 0]
    assert found.statuses == ("tp", "tp", "fn", "fp", "tn")
    assert found.mean == 11.5
    assert found.success_rate(1.0) == pytest.approx(1 / 3)
    assert found.success_rate(5.0) == pytest.approx(2 / 3)


def test_landmarks_without_any_and_with_nonsense():
    nothing = landmark_errors(np.zeros((0, 3)), np.zeros((0, 3)), distance_cap=1.0)
    assert (nothing.mean, nothing.success_rate(1.0)) == (0, 1)
    with pytest.raises(ValueError, match="two arrays"):
        landmark_errors([[1, 2]], [[1, 2, 3]], distance_cap=1.0)
    with pytest.raises(ValueError, match="finite"):
        landmark_errors([[math.nan, 2]], [[1, 2]], distance_cap=1.0)


def test_froc_by_hand():
    reference = squares(40, (0, 0, 5), (20, 20, 5))
    first = squares(40, (0, 0, 5), (30, 0, 5), (20, 20, 5), scores=[0.9, 0.8, 0.7])
    second = squares(40, (30, 30, 5), scores=[0.6])
    curve = froc([(first, reference), (second, squares(40))])
    assert curve.thresholds == pytest.approx([0.9, 0.8, 0.7, 0.6])
    assert curve.sensitivity.tolist() == [0.5, 0.5, 1.0, 1.0]
    assert curve.false_positives.tolist() == [0, 0.5, 0.5, 1.0]
    assert curve.sensitivity_at(0.25) == 0.5
    assert curve.sensitivity_at(0.5) == 1
    assert curve.mean_sensitivity() == pytest.approx((0.5 + 0.5 + 5) / 7)


def test_froc_counts_equal_scores_together_and_has_its_empty_cases():
    tie = squares(40, (30, 0, 5), (0, 0, 5), scores=[0.5, 0.5])
    assert froc([(tie, squares(40, (0, 0, 5)))]).sensitivity_at(0.5) == 0  # one cannot have the hit alone
    assert froc([(squares(8), squares(8))]).sensitivity_at(1) == 1
    assert froc([(squares(8), squares(8, (1, 1, 2)))]).sensitivity_at(1) == 0
    with pytest.raises(ValueError, match="at least one image"):
        froc([])


def test_counts():
    predicted = squares(20, (0, 0, 3), (5, 5, 3), (10, 10, 3), labels=[1, 1, 2], scores=[0.9, 0.2, 0.8])
    reference = squares(20, (0, 0, 3), labels=[1])
    assert count_error(predicted, reference) == 2
    assert count_error(predicted, reference, score_threshold=0.5) == 1
    assert count_error(predicted, reference, label=2) == 1
    assert count_error(squares(20), squares(20)) == 0


def test_splits_and_merges():
    grid = Grid.from_spacing((20, 20))
    long, left, right = (
        block((20, 20), (0, 0), (4, 12)),
        block((20, 20), (0, 0), (4, 5)),
        block((20, 20), (0, 6), (4, 12)),
    )
    one, two = InstanceSet.from_dense(grid, [long]), InstanceSet.from_dense(grid, [left, right])
    split = split_and_merge(two, one)
    assert (split.splits, split.merges, split.split_references) == (1, 0, (0,))
    merge = split_and_merge(one, two)
    assert (merge.splits, merge.merges, merge.merging_predictions) == (0, 1, (0,))
    assert split_and_merge(squares(20), two).splits == 0


def test_surroundings():
    shape = (30, 30)
    parts = block(shape, (20, 0), (22, 2)) | block(shape, (20, 4), (22, 6))
    masks = [
        block(shape, (0, 0), (10, 10)),
        block(shape, (0, 5), (4, 10)),
        block(shape, (0, 12), (4, 14)),
        parts,
    ]
    found = surroundings(InstanceSet.from_dense(Grid.from_spacing(shape, (0.5, 0.5)), masks), reach=1.5)
    assert found.size.tolist() == [25, 5, 2, 2]
    assert found.neighbours.tolist() == [2, 2, 2, 0]
    assert found.pieces.tolist() == [1, 1, 1, 2]
    assert found.overlap.tolist() == [0.2, 1.0, 0.0, 0.0]


def test_a_mask_is_worth_what_the_box_holds_beside_it():
    grid = Grid.from_spacing((100, 100), (0.5, 0.5))
    disc = ball((100, 100), (24.75, 24.75), 10, (0.5, 0.5))
    row = enclosed_tissue(InstanceSet.from_dense(grid, [disc]), margin=5.0)[0]
    assert row.mask == pytest.approx(math.pi * 100, rel=0.02)
    assert row.box == pytest.approx(400, rel=0.06)
    assert row.mask_with_margin == pytest.approx(math.pi * 225, rel=0.02)
    assert row.box_with_margin == pytest.approx(900, rel=0.05)
    assert row.spared == row.box_with_margin - row.mask_with_margin
    assert enclosed_tissue(squares(8), margin=1.0) == []
    with pytest.raises(ValueError, match="at least 0"):
        enclosed_tissue(squares(8), margin=-1.0)


def test_a_margin_stays_inside_the_image():
    instances = squares(10, (0, 0, 4), spacing=(2.0, 1.0))
    wide = dilated(instances.masks[0], instances.grid, 2.0)
    # 4 x 4, and 2 columns to the right (1 mm each), one row below (2 mm); the corner is too far
    assert wide.area == 4 * 4 + 2 * 4 + 1 * 4
    assert dilated(instances.masks[0], instances.grid, 0.5) is instances.masks[0]


CODE = Code(value="1", scheme="99TEST", meaning="test")
LABELS = LabelMap((
    LabelClass(id=1, name="tumour", type=CODE, category=CODE),
    LabelClass(id=2, name="liver", type=CODE, category=CODE, kind="stuff"),
))  # fmt: skip


def test_the_four_task_forms_of_one_set():
    instances = squares(12, (0, 0, 6), (6, 6, 4), (2, 2, 2), labels=[2, 2, 1], scores=[0.5, 0.7, 0.9])
    semantic = as_semantic(instances)
    assert [int((semantic == k).sum()) for k in range(3)] == [144 - 52, 4, 48]
    layers = as_layers(instances)
    assert layers.shape == (2, 12, 12)
    assert [int((layers == k).sum()) for k in (1, 2, 3)] == [36, 16, 4]
    panoptic = as_panoptic(instances, LABELS)
    assert panoptic.labels.tolist() == [1, 2]
    assert panoptic.instances.tolist() == [2, 0]
    assert [int((panoptic.segments == k).sum()) for k in (1, 2)] == [4, 48]
    assert panoptic.scores == pytest.approx([0.9, 0.7])
    assert [(b.label, b.start, b.stop) for b in as_boxes(instances)][2] == (1, (2, 2), (4, 4))


def test_task_forms_of_nothing():
    assert not as_semantic(squares(5)).any()
    assert not as_panoptic(squares(5), LABELS).segments.any()
    assert as_boxes(squares(5)) == []

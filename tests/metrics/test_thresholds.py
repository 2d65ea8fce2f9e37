"""Score thresholds chosen on matched results, against counts by hand and by StarDist."""

import json
from pathlib import Path

import numpy as np
import pytest

from clearmargin.core import Grid, InstanceSet, Thresholds
from clearmargin.metrics import semantic_dice
from clearmargin.metrics.detection import PrecisionTally, match_masks
from clearmargin.metrics.panoptic import panoptic_quality
from clearmargin.metrics.thresholds import (
    ScoredMatches,
    choose_thresholds,
    dice_by_score,
    match_scores,
    pool,
    score_curve,
)

GRID = Grid.from_spacing((40, 40))
GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "matching.json").read_text())


def square(y, x, side=6):
    dense = np.zeros(GRID.shape, bool)
    dense[y : y + side, x : x + side] = True
    return dense


def found(*rows, labels=None):
    """Instances from ``(score, y, x)``."""
    return InstanceSet.from_dense(
        GRID, [square(y, x) for _, y, x in rows], scores=[s for s, _, _ in rows], labels=labels
    )


def of_labels(runs):
    """Instances of a golden label image of 96 x 96."""
    values = np.repeat(*runs).reshape(96, 96)
    own = [values == k for k in np.unique(values) if k]
    return InstanceSet.from_dense(Grid.from_spacing(values.shape), own)


TRUTH = InstanceSet.from_dense(GRID, [square(2, 2), square(2, 20), square(20, 2)])
# found exactly; a false positive; found with a row beside it (30 of 42 pixels); a false positive
PREDICTED = found((0.9, 2, 2), (0.8, 30, 30), (0.6, 2, 21), (0.3, 12, 12))


def test_counts_at_each_score_by_hand():
    curve = score_curve(match_scores(PREDICTED, TRUTH)[1])
    np.testing.assert_allclose(curve.scores, [0.9, 0.8, 0.6, 0.3], rtol=1e-6)
    assert curve.tp.tolist() == [1, 1, 2, 2]
    assert curve.fp.tolist() == [0, 1, 1, 2]
    assert curve.fn.tolist() == [2, 2, 1, 1]
    np.testing.assert_allclose(curve.precision, [1, 1 / 2, 2 / 3, 2 / 4])
    np.testing.assert_allclose(curve.recall, [1 / 3, 1 / 3, 2 / 3, 2 / 3])
    np.testing.assert_allclose(curve.f1, [2 / 4, 2 / 5, 4 / 6, 4 / 7])
    np.testing.assert_allclose(curve.accuracy, [1 / 3, 1 / 4, 2 / 4, 2 / 5])
    np.testing.assert_allclose(curve.pq, [1 / 2, 1 / 2.5, (1 + 5 / 7) / 3, (1 + 5 / 7) / 3.5])


@pytest.mark.parametrize(("measure", "threshold"), [("pq", 0.45), ("f1", 0.45), ("accuracy", 0.45)])
def test_the_best_threshold_lies_between_what_is_kept_and_what_is_not(measure, threshold):
    assert choose_thresholds([match_scores(PREDICTED, TRUTH)], measure, least=1) == {1: threshold}


def test_measures_can_differ():
    """Ten sure and good predictions, below them fourteen that just match and sixteen that do not."""
    sure = ScoredMatches(scores=np.full(10, 0.9), ious=np.full(10, 0.95), references=24)
    doubtful = ScoredMatches(
        scores=np.full(30, 0.4), ious=np.r_[np.full(14, 0.51), np.zeros(16)], references=0
    )
    images = [{1: pool([sure, doubtful])}]
    # at 0.9: TP 10, FP 0, FN 14; at 0.4: TP 24, FP 16, FN 0
    assert choose_thresholds(images, "accuracy") == {1: 0.4}  # 10 / 24 against 24 / 40
    assert choose_thresholds(images, "f1") == {1: 0.4}  # 20 / 34 against 48 / 64
    assert choose_thresholds(images, "pq") == {1: 0.65}  # 9.5 / 17 = 0.559 against 16.64 / 32 = 0.52


def test_each_class_has_its_own_and_a_rare_one_that_of_all():
    common = ScoredMatches(
        scores=np.r_[np.full(20, 0.9), np.full(40, 0.5)], ious=np.r_[np.ones(20), np.zeros(40)], references=20
    )
    other = ScoredMatches(
        scores=np.r_[np.full(20, 0.3), np.full(5, 0.1)], ious=np.r_[np.ones(20), np.zeros(5)], references=20
    )
    rare = ScoredMatches(scores=np.array([0.2]), ious=np.array([1.0]), references=1)
    chosen = choose_thresholds([{1: common, 2: other}, {3: rare}], "f1")
    assert chosen[1] == 0.7 and chosen[2] == 0.2
    together = score_curve(pool([common, other, rare]))
    assert chosen[3] != 0.1 and together.scores[np.argmax(together.f1)] >= chosen[3]
    predicted_alone = ScoredMatches(scores=np.array([0.8]), ious=np.zeros(1), references=0)
    assert set(choose_thresholds([{1: common, 4: predicted_alone}], "f1")) == {1}


def test_with_nothing_below_the_threshold_is_a_half_or_the_lowest_score():
    for lowest, threshold in ((0.8, 0.5), (0.25, 0.25)):
        sure = ScoredMatches(scores=np.array([0.9, lowest]), ious=np.ones(2), references=12)
        assert choose_thresholds([{1: sure}], "pq", least=1) == {1: threshold}


def test_without_a_match_nothing_is_chosen():
    assert choose_thresholds([], "pq") == {}
    assert choose_thresholds([match_scores(InstanceSet.empty(GRID), TRUTH)], "pq") == {}
    assert choose_thresholds([match_scores(found((0.9, 30, 30)), TRUTH)], "pq") == {}
    curve = score_curve(match_scores(InstanceSet.empty(GRID), TRUTH)[1])
    assert not len(curve.scores) and not len(curve.pq)


def random_scene(seed):
    rng = np.random.default_rng(seed)
    truth = InstanceSet.from_dense(GRID, [square(*p) for p in ((2, 2), (2, 14), (16, 3), (20, 20))])
    rows = [(rng.random(), *rng.integers(0, 34, 2)) for _ in range(8)]
    rows += [
        (rng.random(), y + rng.integers(0, 3), x + rng.integers(0, 3)) for y, x in ((2, 2), (2, 14), (20, 20))
    ]
    return found(*rows), truth


def test_one_matching_serves_every_threshold():
    """Overlapping predictions: the curve is what panoptic quality says of what each threshold keeps."""
    scenes = [random_scene(seed) for seed in range(12)]
    curve = score_curve(pool([match_scores(*scene)[1] for scene in scenes]))
    for k in range(0, len(curve.scores), 5):
        kept = [(p.select(p.scores >= curve.scores[k]), r) for p, r in scenes]
        quality = panoptic_quality(kept)
        assert (curve.tp[k], curve.fn[k]) == (quality.tp, quality.fn)
        # what a better one covers as a whole has no pixel left, and is counted at no threshold
        assert curve.fp[k] == quality.fp
        assert curve.pq[k] == pytest.approx(quality.pq)


def test_dice_is_that_of_what_each_threshold_keeps():
    for seed in range(5):
        predicted, truth = random_scene(seed)
        scores, dices = dice_by_score(predicted, truth, 1)
        assert dices[0] == 0 and (np.diff(scores) <= 0).all()
        for k in range(1, len(scores) + 1):
            kept = predicted.select(predicted.scores >= scores[k - 1])
            assert dices[k] == pytest.approx(semantic_dice(kept, truth, 1))
    assert np.isnan(dice_by_score(predicted, InstanceSet.empty(GRID), 1)[1][0])
    assert dice_by_score(predicted, InstanceSet.empty(GRID), 1)[1][1] == 0


def test_counts_are_stardists():
    tally, matches = PrecisionTally(), []
    for truth, predicted in GOLDEN["runs"]:
        tally.add(match_masks(of_labels(predicted), of_labels(truth)))
        matches.append(match_scores(of_labels(predicted), of_labels(truth))[1])
    counts = tally.counts(Thresholds(0.5))
    for ours, theirs in zip(counts, GOLDEN["counts"], strict=True):
        assert (ours.iou, ours.tp, ours.fp, ours.fn) == tuple(theirs[n] for n in ("iou", "tp", "fp", "fn"))
        for name in ("precision", "recall", "f1", "accuracy"):
            assert getattr(ours, name) == pytest.approx(theirs[name])
    curve = score_curve(pool(matches))
    assert curve.pq[-1] == pytest.approx(GOLDEN["counts"][0]["panoptic_quality"])
    assert curve.accuracy[-1] == pytest.approx(GOLDEN["counts"][0]["accuracy"])


def test_counts_at_thresholds_by_class():
    tally = PrecisionTally()
    truth = InstanceSet.from_dense(GRID, [square(2, 2), square(2, 20)], labels=[1, 2])
    tally.add(match_masks(found((0.9, 2, 2), (0.4, 2, 20), (0.6, 30, 30), labels=[1, 2, 2]), truth))
    at_half = tally.counts(Thresholds(0.5))[0]
    assert (at_half.tp, at_half.fp, at_half.fn) == (1, 1, 1)
    own = tally.counts(Thresholds(0.5, {2: 0.3}), 2)[0]
    assert (own.tp, own.fp, own.fn) == (1, 1, 0)
    empty = PrecisionTally().counts(Thresholds(0.5))[0]
    assert (empty.precision, empty.recall, empty.f1, empty.accuracy) == (1, 1, 1, 1)


def test_thresholds_by_class_and_their_limits():
    scores = found((0.9, 2, 2), (0.4, 2, 20), (0.6, 30, 30), labels=[1, 2, 2])
    assert Thresholds(0.5).reached(scores).tolist() == [0, 2]
    assert Thresholds(0.5, {1: 0.95, 2: 0.4}).reached(scores).tolist() == [1, 2]
    assert Thresholds(0.5, {1: 0.95, 2: 0.4}).lowest == 0.4
    assert Thresholds(0.5).reached(InstanceSet.empty(GRID)).tolist() == []
    with pytest.raises(ValueError, match=r"lies in \[0, 1\], not 1.5"):
        Thresholds(0.5, {1: 1.5})


def test_of_a_handful_of_references_no_threshold_is_chosen():
    """Five found with high scores would put it at 0.7, and hide a sixth at 0.53: the caller's own stays."""
    five = ScoredMatches(
        scores=np.array([0.95, 0.9, 0.9, 0.85, 0.8, 0.65]), ious=np.array([0.8] * 5 + [0.0]), references=5
    )
    assert choose_thresholds([{1: five}], "pq") == {}
    assert 0.65 < choose_thresholds([{1: five}] * 2, "pq")[1] <= 0.8

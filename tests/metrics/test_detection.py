"""Matching, average precision and panoptic quality."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from clearmargin.core import Crowd, Grid, InstanceSet, Mask
from clearmargin.errors import GeometryError
from clearmargin.formats.coco import read_coco_images
from clearmargin.metrics import (
    boundary_average_precision,
    box_average_precision,
    evaluate_instances,
    froc,
    mask_average_precision,
    match_instances,
    match_optimally,
    panoptic_quality,
    semantic_dice,
)
from clearmargin.metrics.detection import detection_limit
from clearmargin.metrics.panoptic import resolve_overlap

from .cases import raw_coco, scene
from .shapes import block, squares


def test_average_precision_by_hand():
    reference = squares(64, (0, 0, 10), (30, 30, 10))
    predicted = squares(64, (0, 0, 10), (50, 0, 10), scores=[0.9, 0.8])
    found = mask_average_precision([(predicted, reference)])
    # one of two found, at the highest score: precision 1 up to recall 0.5, so 51 of the 101 recall points
    assert (found.ap, found.ap50, found.ap75) == pytest.approx((51 / 101,) * 3)
    assert found.ar == 0.5
    assert found.ap_large is None
    assert (found.references, found.predictions) == (2, 2)


def test_scores_that_float32_does_not_tell_apart_keep_their_order():
    """AP depends on the order of scores alone: those near 1 give what the same order near one half gives."""
    reference = squares(64, (0, 0, 8), (0, 20, 8), (20, 0, 8))
    places = [
        (40, 40, 8),
        (0, 0, 8),
        (50, 10, 8),
        (0, 20, 8),
        (20, 0, 8),
    ]  # wrong, right, wrong, right, right
    ranks = np.array([2, 5, 1, 4, 3])
    apart, near = (
        mask_average_precision([(squares(64, *places, scores=list(scores)), reference)]).ap
        for scores in (ranks / 10, 1 - (6 - ranks) * 1e-10)
    )
    assert apart == near == 1


def test_average_precision_without_references():
    grid = squares(8)
    assert mask_average_precision([(squares(8), grid)]).ap == 1
    assert mask_average_precision([(squares(8, (1, 1, 3)), grid)]).ap == 0
    assert boundary_average_precision([(squares(8, (1, 1, 3)), grid)]).ap == 0
    assert mask_average_precision([(squares(8), squares(8, (1, 1, 3)))]).ap == 0


def test_a_band_that_holds_everything_gives_mask_ap_exactly():
    pairs = [scene(seed) for seed in range(12)]
    by_mask, by_band = mask_average_precision(pairs), boundary_average_precision(pairs, band=1e4)
    for name in ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ar"):
        assert getattr(by_band, name) == pytest.approx(getattr(by_mask, name), abs=1e-12)
    assert by_band.by_class == pytest.approx(by_mask.by_class)


def test_boundary_ap_is_at_most_mask_ap():
    pairs = [scene(seed) for seed in range(6)]
    assert 0 < boundary_average_precision(pairs, band=2.0).ap < mask_average_precision(pairs).ap


def test_average_precision_of_volumes_equals_that_of_their_flat_images():
    predicted, reference = scene(5)
    volume = Grid.from_spacing((4, 40, 160))

    def deep(instances):
        return InstanceSet.from_dense(
            volume,
            [m.dense().reshape(volume.shape) for m in instances.masks],
            instances.labels,
            instances.scores,
        )

    flat = InstanceSet(
        grid=reference.grid, masks=reference.masks, labels=reference.labels, scores=reference.scores
    )
    assert mask_average_precision([(deep(predicted), deep(reference))]).ap == pytest.approx(
        mask_average_precision([(predicted, flat)]).ap
    )
    with pytest.raises(ValueError, match="defined for images"):
        box_average_precision([(deep(predicted), deep(reference))])


def test_greedy_takes_the_best_score_first_and_optimal_the_best_sum():
    # the first prediction overlaps both references, the second only the first
    reference = squares(40, (0, 0, 10), (0, 12, 10))
    masks = [block((40, 40), (0, 2), (10, 13)), block((40, 40), (0, 0), (10, 8))]
    predicted = InstanceSet.from_dense(reference.grid, masks, scores=[0.9, 0.8])
    greedy = match_instances(predicted, reference, iou_threshold=0.05)
    assert greedy.pairs.tolist() == [[0, 0]]
    assert greedy.false_positives.tolist() == [1]
    best = match_optimally(predicted, reference, iou_threshold=0.05)
    assert best.pairs.tolist() == [[0, 1], [1, 0]]
    assert not best.false_negatives.size


def test_labels_must_agree_and_sets_may_be_empty():
    reference = squares(20, (0, 0, 5), labels=[1])
    assert not match_instances(squares(20, (0, 0, 5), labels=[2]), reference).pairs.size
    assert match_instances(squares(20), reference).false_negatives.tolist() == [0]
    assert match_instances(reference, squares(20)).false_positives.tolist() == [0]
    with pytest.raises(ValueError, match="threshold"):
        match_instances(reference, reference, iou_threshold=0.0)


def test_evaluate_instances_counts_every_outcome():
    reference = squares(64, (0, 0, 10), (30, 30, 10), spacing=(0.5, 0.5))
    predicted = squares(64, (0, 1, 10), (50, 0, 10), (0, 0, 3), scores=[0.9, 0.8, 0.1], spacing=(0.5, 0.5))
    rows = evaluate_instances(predicted, reference, score_threshold=0.5)
    assert [(r.status, r.predicted, r.reference) for r in rows] == [
        ("tp", 0, 0),
        ("fn", None, 1),
        ("fp", 1, None),
    ]
    assert rows[0].values["hausdorff"] == 0.5
    assert rows[1].values["nsd_1mm"] == 0
    assert rows[1].values["hd95"] == pytest.approx(32 * np.sqrt(2))
    assert rows[0].size == 25
    assert all(np.isfinite(list(r.values.values())).all() for r in rows)
    assert [r.status for r in evaluate_instances(squares(8), squares(8))] == ["tn"]


def test_a_prediction_in_the_ignored_region_gives_no_row():
    reference = squares(20, (0, 0, 5))
    reference = InstanceSet(
        grid=reference.grid, masks=reference.masks, labels=reference.labels, scores=reference.scores,
        ignore=Mask.from_dense(block((20, 20), (10, 10), (20, 20))),
    )  # fmt: skip
    predicted = squares(20, (0, 0, 5), (12, 12, 5), (6, 6, 2))
    assert [r.status for r in evaluate_instances(predicted, reference)] == ["tp", "fp"]
    hidden = squares(20, (14, 14, 3))
    hidden = InstanceSet(
        grid=hidden.grid, masks=hidden.masks, labels=hidden.labels, scores=hidden.scores, ignore=reference.ignore
    )  # fmt: skip
    assert [r.status for r in evaluate_instances(squares(20), hidden)] == ["tn"]
    assert [r.status for r in evaluate_instances(squares(20, (14, 14, 3)), hidden)] == ["tn"]
    assert panoptic_quality([(predicted, reference)]).fp == 1
    quality = panoptic_quality([(squares(20), hidden)])
    assert (quality.pq, quality.fn) == (1, 0)
    assert match_instances(squares(20), hidden).false_negatives.size == 0
    assert mask_average_precision([(predicted, reference)]).ap == pytest.approx(1)


def test_the_ignored_region_is_in_no_iou():
    reference = squares(20, (0, 0, 4))
    reference = InstanceSet(
        grid=reference.grid, masks=reference.masks, labels=reference.labels, scores=reference.scores,
        ignore=Mask.from_dense(block((20, 20), (4, 0), (20, 20))),
    )  # fmt: skip
    predicted = InstanceSet.from_dense(reference.grid, [block((20, 20), (0, 0), (12, 4))])  # 3 times as long
    for match in (match_instances, match_optimally):
        found = match(predicted, reference)
        assert found.pairs.tolist() == [[0, 0]]
        assert found.ious.tolist() == [1]
    assert panoptic_quality([(predicted, reference)]).pq == 1


def test_different_grids_are_refused_with_both_named():
    with pytest.raises(GeometryError, match=r"8 x 8 at 1 x 1 mm.* 9 x 9"):
        evaluate_instances(squares(8), squares(9))


def test_panoptic_quality_by_hand():
    reference = squares(40, (0, 0, 10), (20, 20, 10))
    predicted = squares(40, (0, 0, 9), (30, 0, 4), scores=[0.9, 0.9])
    found = panoptic_quality([(predicted, reference)])
    assert (found.tp, found.fp, found.fn) == (1, 1, 1)
    assert found.sq == pytest.approx(0.81)
    assert found.rq == 0.5
    assert found.pq == pytest.approx(0.405)
    assert panoptic_quality([(squares(8), squares(8))]).pq == 1


def test_an_iou_of_one_half_is_no_match_in_panoptic_quality():
    reference = InstanceSet.from_dense(Grid.from_spacing((10, 10)), [block((10, 10), (0, 0), (2, 4))])
    predicted = InstanceSet.from_dense(reference.grid, [block((10, 10), (0, 0), (2, 2))])
    assert panoptic_quality([(predicted, reference)]).tp == 0
    assert match_instances(predicted, reference).ious.tolist() == [0.5]


def test_overlap_goes_to_the_higher_score_then_to_the_smaller():
    clear = resolve_overlap(squares(20, (0, 0, 10), (5, 5, 10), scores=[0.5, 0.9]))
    assert [m.area for m in clear.masks] == [75, 100]
    nested = resolve_overlap(squares(20, (0, 0, 10), (2, 2, 3)))
    assert [m.area for m in nested.masks] == [91, 9]


def test_stuff_is_one_region():
    reference = squares(20, (0, 0, 4), (10, 10, 4), labels=[2, 2])
    predicted = squares(20, (0, 0, 4), (10, 10, 4), labels=[2, 2], scores=[0.4, 0.6])
    assert panoptic_quality([(predicted, reference)], stuff=frozenset({2})).tp == 1
    assert panoptic_quality([(predicted, reference)]).tp == 2


def test_semantic_dice_joins_the_instances_of_a_class():
    reference = squares(20, (0, 0, 4), (10, 10, 4), labels=[2, 1])
    predicted = squares(20, (0, 0, 4), (0, 2, 4), labels=[2, 2])
    assert semantic_dice(predicted, reference, 2) == pytest.approx(2 * 16 / (16 + 24))
    assert semantic_dice(predicted, reference, 3) == 1
    assert semantic_dice(predicted, reference, 1) == 0


GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "coco_ap.json").read_text())


@pytest.fixture(scope="module")
def raw_pairs(tmp_path_factory):
    """The annotations that pycocotools was given, as we read them from a COCO file and a list of results."""
    folder = tmp_path_factory.mktemp("coco")
    for name, content in zip(("truth", "results"), raw_coco(), strict=True):
        (folder / f"{name}.json").write_text(json.dumps(content))
    truth = read_coco_images(folder / "truth.json")
    found = read_coco_images(folder / "results.json", images=folder / "truth.json")
    return [(p.instances, r.instances) for p, r in zip(found, truth, strict=True)]


@pytest.mark.parametrize(
    ("kind", "function"),
    [
        ("mask", mask_average_precision),
        ("box", box_average_precision),
        ("boundary", boundary_average_precision),
    ],
)
def test_equal_to_pycocotools_on_raw_annotations_with_crowds_of_each_class(kind, function, raw_pairs):
    found = function(raw_pairs)
    for name, value in GOLDEN["values"][kind].items():
        assert getattr(found, name) == pytest.approx(value, abs=1e-9), name


def crowded(reference, *crowds):
    return replace(
        reference, crowds=tuple(Crowd(mask=Mask.from_dense(mask), label=label) for mask, label in crowds)
    )


def test_a_crowd_hides_false_positives_of_its_own_class_alone_and_nothing_between_two_crowds():
    n = 60
    corners = block((n, n), (0, 0), (14, 14)), block((n, n), (46, 46), (60, 60))
    reference = crowded(squares(n, (20, 2, 8)), (corners[0], 1), (corners[1], 1))
    for place, label, status in (((2, 2), 1, []), ((2, 2), 2, ["fp"]), ((30, 30), 1, ["fp"])):
        predicted = squares(n, (20, 2, 8), (*place, 8), labels=[1, label], scores=[0.5, 0.9])
        rows = evaluate_instances(predicted, reference)
        assert [row.status for row in rows] == ["tp", *status]
        assert panoptic_quality([(predicted, reference)]).fp == len(status)
        assert froc([(predicted, reference)]).false_positives[-1] == len(status)
        value = 0.5 if status and label == 1 else 1
        for average in (mask_average_precision, box_average_precision, boundary_average_precision):
            assert average([(predicted, reference)]).ap == pytest.approx(value, abs=0.01)


def test_the_iou_of_a_pair_does_not_know_of_crowds():
    reference = crowded(squares(20, (0, 0, 4)), (block((20, 20), (4, 0), (20, 20)), 1))
    predicted = InstanceSet.from_dense(reference.grid, [block((20, 20), (0, 0), (7, 4))])
    assert match_instances(predicted, reference).ious == pytest.approx(4 / 7)


def test_panoptic_quality_is_a_mean_over_the_classes_of_the_references():
    reference = squares(40, (0, 0, 10), labels=[1])
    predicted = squares(40, (0, 0, 10), (20, 20, 6), labels=[1, 7])
    found = panoptic_quality([(predicted, reference)])
    assert (found.pq, found.fp, found.by_class[7].pq) == (1, 1, 0)
    assert panoptic_quality([(predicted, squares(40))]).pq == 0


@pytest.mark.parametrize("shape", [(60_000, 60_000), (100_000, 100_000), (2000, 2000, 2000)])
def test_average_precision_of_grids_beyond_32_bits(shape):
    grid, n = Grid.from_spacing(shape, (1.0,) * len(shape)), len(shape)
    places = [tuple(s - 40 - 50 * k for s in shape) for k in range(3)] + [
        (10 + 50 * k,) * n for k in range(3)
    ]
    cube = np.ones((30,) * n, bool)

    def at(origins, scores):
        masks = tuple(Mask.from_crop(cube, origin, shape) for origin in origins)
        return InstanceSet(grid=grid, masks=masks, labels=np.ones(6, np.int64), scores=np.array(scores))

    scores = np.linspace(0.9, 0.4, 6)
    truth = at(places, np.ones(6))
    assert mask_average_precision([(at(places, scores), truth)]).ap == 1
    moved = [(places[0][0] + 15, *places[0][1:]), *places[1:]]
    # five of six found, behind one error: at most 5/6 precise, up to recall 5/6
    assert mask_average_precision([(at(moved, scores), truth)]).ap50 == pytest.approx(0.693, abs=1e-3)


def test_an_image_with_more_than_a_hundred_objects_counts_them_all_when_asked():
    places = [(5 * y, 5 * x, 3) for y in range(12) for x in range(12)]
    reference = squares(64, *places)
    predicted = squares(64, *places, scores=list(np.linspace(1, 0.1, 144)))
    assert mask_average_precision([(predicted, reference)]).ap < 0.7
    assert mask_average_precision([(predicted, reference)], max_detections=detection_limit(144)).ap == 1

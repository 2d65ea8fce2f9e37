"""Numbers of a set of cases, put together from what each case leaves."""

import csv

import numpy as np
import pytest

from clearmargin.core import Grid, InstanceSet, Thresholds
from clearmargin.metrics import MeasurementProtocol, mask_average_precision, panoptic_quality
from clearmargin.metrics.case_result import Choices, measure_case
from clearmargin.metrics.results import collect
from clearmargin.report.results import instance_lines, set_lines, write_results

GRID = Grid.from_spacing((20, 40), (0.5, 0.5))
PROTOCOL = MeasurementProtocol(metrics=("dice", "hd95"), tolerances=(1.0,))


def squares(*places, labels, scores=None):
    """Squares of 6 pixels (9 mm^2) with their upper left corners at ``places``."""
    masks = []
    for y, x in places:
        dense = np.zeros(GRID.shape, bool)
        dense[y : y + 6, x : x + 6] = True
        masks.append(dense)
    return InstanceSet.from_dense(GRID, masks, labels=labels, scores=scores)


def case(predicted, reference, number, classes, **more):
    choices = Choices(protocol=PROTOCOL, **more)
    return measure_case(
        predicted, reference, case=f"case-{number}", group=f"group-{number}", classes=classes, choices=choices
    )


def both(**more):
    """Two cases that number liver and tumour the other way round; the second tumour is a false negative."""
    liver, tumour = (2, 2), (10, 20)
    first = case(
        squares(liver, tumour, labels=[1, 2], scores=[0.9, 0.8]),
        squares(liver, tumour, labels=[1, 2]),
        1,
        {1: "liver", 2: "tumour"},
        **more,
    )
    second = case(
        squares(liver, labels=[2], scores=[0.7]),
        squares(liver, tumour, labels=[2, 1]),
        2,
        {1: "tumour", 2: "liver"},
        **more,
    )
    return [first, second]


def test_classes_that_two_cases_number_differently_add_up_by_name():
    results = collect(both(), choices=Choices(protocol=PROTOCOL), classes=("liver", "tumour"))
    # by hand: liver 2 of 2; tumour 1 of 2
    assert results.numbers["pq"] == pytest.approx((1 + 1 / 1.5) / 2)
    assert results.numbers["ap50/liver"] == 1
    assert results.numbers["ap50/tumour"] == pytest.approx(51 / 101)  # COCO's 101 points, recall up to 0.5
    assert results.numbers["semantic_dice/tumour"] == 0.5
    assert results.confusion == {("liver", "liver"): 2, ("tumour", "tumour"): 1, ("tumour", "nothing"): 1}
    assert {name: c[0].fn for name, c in results.detections.items()} == {"all": 1, "liver": 0, "tumour": 1}


def test_numbers_are_those_of_the_functions_of_one_number():
    rng = np.random.default_rng(3)
    pairs, cases = [], []
    for k in range(4):
        there = [
            (int(y), int(x)) for y, x in zip(rng.integers(0, 14, 5), rng.integers(0, 34, 5), strict=True)
        ]
        reference = squares(*there, labels=rng.integers(1, 3, 5))
        predicted = squares(
            *((y, min(34, x + 1)) for y, x in there[:4]), labels=reference.labels[:4], scores=rng.random(4)
        )
        pairs.append((predicted, reference))
        cases.append(case(predicted, reference, k, {1: "a", 2: "b"}))
    results = collect(cases, choices=Choices(protocol=PROTOCOL), classes=("a", "b"))
    assert results.numbers["ap"] == mask_average_precision(pairs).ap
    assert results.numbers["pq"] == panoptic_quality(pairs).pq
    assert results.counts["tp"] + results.counts["fn"] == results.counts["references"] == 20


def test_what_is_below_its_threshold_counts_for_precision_and_curves_alone():
    choices = {"thresholds": Thresholds(0.75)}
    results = collect(
        both(**choices), choices=Choices(protocol=PROTOCOL, **choices), classes=("liver", "tumour")
    )
    assert (results.counts["tp"], results.counts["fn"], results.counts["fp"]) == (2, 2, 0)
    assert results.numbers["ap50/liver"] == 1  # also the liver of score 0.7
    assert results.curves["all"].tp.tolist() == [1, 2, 3]
    assert results.thresholds == {"liver": 0.75, "tumour": 0.75}


def test_tables_hold_what_was_measured_and_where(tmp_path):
    results = collect(both(), choices=Choices(protocol=PROTOCOL), failed={"case-9": "unreadable"})
    (tmp_path / "failures.csv").write_text("an earlier run's")
    write_results(results, tmp_path, plain={"case-1": "ANNA"})
    with (tmp_path / "instances.csv").open() as lines:
        rows = list(csv.DictReader(lines))
    assert [row["case"] for row in rows] == ["ANNA", "ANNA", "case-2", "case-2"]
    assert [row["status"] for row in rows] == ["tp", "tp", "tp", "fn"]
    assert rows[1]["class"] == "tumour" and float(rows[1]["reference_area_mm2"]) == 9
    assert (float(rows[1]["x_index"]), float(rows[1]["y_index"])) == (
        22.5,
        12.5,
    )  # columns 20 to 25, rows 10 to 15
    assert (float(rows[1]["x_mm"]), float(rows[1]["y_mm"])) == (11.25, 6.25)
    assert (tmp_path / "failures.csv").read_text() == "case,why\ncase-9,unreadable\n"
    text = "\n".join([*set_lines(results), *instance_lines(results)])
    assert "2 cases, 1 failed, 4 references, 3 tp, 1 fn" in text and "hd95 (mm)" in text
    written = {path.name for path in tmp_path.iterdir()}
    assert {"matched.csv", "detections.csv", "score_thresholds.png", "paper.tex", "numbers.json"} <= written


def test_predictions_without_scores_have_no_average_precision(tmp_path):
    pair = squares((2, 2), labels=[1]), squares((2, 2), labels=[1])
    one = measure_case(
        *pair, case="c", group="g", classes={}, choices=Choices(protocol=PROTOCOL), scored=False
    )
    results = collect([one], choices=Choices(protocol=PROTOCOL))
    assert results.precision is None and "ap" not in results.numbers and results.curves == {}
    assert results.numbers["pq"] == 1 and results.detections["all"][0].tp == 1
    write_results(results, tmp_path)
    assert not (tmp_path / "score_thresholds.csv").exists()

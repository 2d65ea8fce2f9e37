"""What an evaluation counts over a split."""

import csv
from types import SimpleNamespace

import numpy as np
import pytest
from bright import LABELS

from clearmargin.core import Grid, InstanceSet, Thresholds
from clearmargin.evaluate import evaluate_cases, render, write_tables

GRID = Grid.from_spacing((6, 24, 40), (2, 1, 1))


def rods(*spans, scores=None):
    """Rods through the slices ``z1..z2`` and the columns ``x1..x2``."""
    masks = []
    for z1, z2, x1, x2 in spans:
        dense = np.zeros(GRID.shape, bool)
        dense[z1:z2, 8:16, x1:x2] = True
        masks.append(dense)
    return InstanceSet.from_dense(GRID, masks, scores=scores)


@pytest.mark.parametrize(
    ("predicted", "splits", "merges"),
    [
        (rods((0, 6, 4, 12), (0, 6, 24, 32)), 0, 0),
        (rods((0, 3, 4, 12), (3, 6, 4, 12), (0, 6, 24, 32)), 1, 0),  # a link between two slices is missing
        (rods((0, 2, 4, 12), (2, 4, 4, 12), (4, 6, 4, 12), (0, 6, 24, 32)), 2, 0),
        (rods((0, 6, 4, 32)), 0, 1),
        (rods((0, 3, 4, 12), (3, 6, 4, 12), scores=[0.9, 0.1]), 0, 0),  # below the threshold
    ],
)
def test_splits_and_merges_of_volumes_are_counted(predicted, splits, merges):
    reference = rods((0, 6, 4, 12), (0, 6, 24, 32))
    image = SimpleNamespace(grid=GRID)
    card = SimpleNamespace(classes=LABELS.classes, label_map=LABELS)
    dataset = SimpleNamespace(card=card, read=lambda _: (image, reference))
    cases = [SimpleNamespace(case=f"case-{k}", group=f"group-{k}", strata={}) for k in range(2)]
    found = evaluate_cases(
        lambda _: SimpleNamespace(instances=predicted), dataset, cases, thresholds=Thresholds(0.5)
    )
    assert (found.counts["splits"], found.counts["merges"]) == (2 * splits, 2 * merges)


def test_detections_at_several_iou_and_scores_are_printed_and_written(tmp_path):
    """Rods of 8 columns: one found exactly, one shifted by a column (7 / 9), one false, one below the threshold."""
    reference = rods((0, 6, 4, 12), (0, 6, 24, 32))
    predicted = rods(
        (0, 6, 4, 12), (0, 6, 25, 33), (0, 3, 14, 22), (3, 6, 14, 22), scores=[0.9, 0.8, 0.7, 0.2]
    )
    card = SimpleNamespace(classes=LABELS.classes, label_map=LABELS)
    dataset = SimpleNamespace(card=card, read=lambda _: (SimpleNamespace(grid=GRID), reference))
    found = evaluate_cases(
        lambda _: SimpleNamespace(instances=predicted),
        dataset,
        [SimpleNamespace(case="case-0", group="group-0", strata={})],
        thresholds=Thresholds(0.9, {1: 0.5}),
    )
    counts = {c.iou: (c.tp, c.fp, c.fn) for c in found.detections["all"]}
    assert counts == {0.5: (2, 1, 0), 0.6: (2, 1, 0), 0.7: (2, 1, 0), 0.8: (1, 2, 1), 0.9: (1, 2, 1)}
    assert found.flat()["accuracy@0.5"] == pytest.approx(2 / 3) and found.flat()["f1@0.9"] == 2 / 5
    (name,) = (c.name for c in LABELS.classes)
    text = render(found)
    assert f"least scores: {name} 0.5" in text and "0.5          0.6667     1.0000     0.8000" in text
    write_tables(found, tmp_path)
    with (tmp_path / "detections.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert [row["iou"] for row in rows] == ["0.5", "0.6", "0.7", "0.8", "0.9"]
    assert (rows[3]["tp"], rows[3]["fp"], rows[3]["fn"], rows[3]["recall"]) == ("1", "2", "1", "0.5")
    with (tmp_path / "score_thresholds.csv").open() as stream:
        curve = {row["score_threshold"]: row for row in csv.DictReader(stream)}
    assert [curve[t]["fp"] for t in ("0.10", "0.50", "0.75", "0.85")] == ["2", "1", "0", "0"]
    assert [curve[t]["tp"] for t in ("0.10", "0.50", "0.75", "0.85")] == ["2", "2", "2", "1"]
    assert float(curve["0.75"]["pq"]) == pytest.approx((1 + 7 / 9) / 2, rel=1e-5)
    assert "0.95" not in curve  # nothing has that score
    assert (tmp_path / "score_thresholds.png").stat().st_size > 1000

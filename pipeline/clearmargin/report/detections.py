"""Detections at several IoU and score thresholds, as tables and as a figure."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from clearmargin.files import csv_rows, whole, write_text
from clearmargin.metrics.detection import DetectionCounts
from clearmargin.metrics.thresholds import ScoreCurve

__all__ = ["write_detections"]

_RATIOS = ("precision", "recall", "f1", "accuracy")
_STEP = 0.01  # between the score thresholds of the table


def write_detections(
    folder: Path,
    detections: Mapping[str, Sequence[DetectionCounts]],
    curves: Mapping[str, ScoreCurve],
    thresholds: Mapping[str, float],
) -> None:
    """Write ``detections.csv``; with curves also ``score_thresholds.csv`` and ``score_thresholds.png``.

    Args:
        folder: It exists.
        detections: Counts at each IoU, by class name.
        curves: Counts at each score threshold, by class name; empty if predictions carry no scores.
        thresholds: Those that are used, by class name.
    """
    out = io.StringIO()
    csv_rows(out, [["class", "iou", "tp", "fp", "fn", *_RATIOS]])
    for name, counts in detections.items():
        for c in counts:
            ratios = [f"{getattr(c, ratio):.6g}" for ratio in _RATIOS]
            csv_rows(out, [[name, f"{c.iou:g}", c.tp, c.fp, c.fn, *ratios]])
    write_text(folder / "detections.csv", out.getvalue())
    if not curves:
        return
    from clearmargin.report.figures import score_thresholds  # matplotlib

    out = io.StringIO()
    csv_rows(out, [["class", "score_threshold", "tp", "fp", "fn", *_RATIOS, "pq"]])
    for name, curve in curves.items():
        csv_rows(out, _curve_rows(name, curve))
    write_text(folder / "score_thresholds.csv", out.getvalue())
    with whole(folder / "score_thresholds.png") as draft:
        score_thresholds(curves["all"], sorted(set(thresholds.values()))).savefig(draft)


def _curve_rows(name: str, curve: ScoreCurve) -> list[list[str]]:
    """Return a row for each hundredth of a score that any prediction reaches."""
    rows = []
    for threshold in np.arange(0, 1 + _STEP / 2, _STEP):
        last = int(np.searchsorted(-curve.scores, -threshold, side="right")) - 1
        if last >= 0:
            counts = [f"{values[last]:.0f}" for values in (curve.tp, curve.fp, curve.fn)]
            ratios = [f"{getattr(curve, ratio)[last]:.6g}" for ratio in (*_RATIOS, "pq")]
            rows.append([name, f"{threshold:.2f}", *counts, *ratios])
    return rows

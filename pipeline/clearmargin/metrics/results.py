"""What a set of cases says: the tables and numbers behind `evaluate` and `measure`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

import numpy as np

from clearmargin.core.grid import Unit
from clearmargin.metrics.case_result import CaseResult, Choices
from clearmargin.metrics.detection import (
    AveragePrecision,
    DetectionCounts,
    PrecisionTally,
    detection_limit,
)
from clearmargin.metrics.intervals import size_strata
from clearmargin.metrics.panoptic import PanopticCounts, PanopticQuality, add_counts, quality_of
from clearmargin.metrics.tables import CaseRow, SummaryRow, summarise
from clearmargin.metrics.thresholds import ScoreCurve, ScoredMatches, pool, score_curve

__all__ = ["Results", "collect"]

_FEW_GROUPS = 50  # below which intervals are a little short (docs/metrics.md)
_V = TypeVar("_V")


@dataclass(frozen=True, kw_only=True)
class Results:
    """What was measured of a set of cases.

    Attributes:
        numbers: Numbers of the whole set by name: average precision, panoptic quality, Dice (docs/metrics.md).
        summary: Means over groups with false negatives and false positives at their written values, all together and by
            stratum, with intervals.
        matched: The same of the pairs that match; empty if nothing matched.
        counts: Of cases, failed cases, references, rows by status (tp, fn, fp, tn), and of splits and merges.
        rows: What the means are of, an instance each.
        panoptic: Panoptic quality over all images.
        precision: COCO's mask AP; None if predictions carry no scores. Of a class count as many predictions in an image
            as ``precision.max_detections``: 100, or as many as an image has references.
        box_precision: The same by boxes; None of volumes.
        detections: By class name, and of ``all``: true and false positives, and false negatives, at IoU 0.5 to 0.9.
        curves: By class name, and of ``all``: the same at every score threshold, at an IoU above 0.5; empty without
            scores.
        thresholds: Least score of what is counted, by class name.
        confusion: How many, by reference class and predicted class (`metrics.confusion`).
        unit: Unit of the lengths: ``mm`` or ``px``.
        surface: The surface model.
        failed: Case id and reason of those that could not be read, segmented or measured; no number knows of them.
        notes: What a reader of the numbers should know.
    """

    numbers: Mapping[str, float]
    summary: tuple[SummaryRow, ...]
    matched: tuple[SummaryRow, ...]
    counts: Mapping[str, int]
    rows: tuple[CaseRow, ...]
    panoptic: PanopticQuality
    precision: AveragePrecision | None
    box_precision: AveragePrecision | None
    detections: Mapping[str, tuple[DetectionCounts, ...]]
    curves: Mapping[str, ScoreCurve]
    thresholds: Mapping[str, float]
    confusion: Mapping[tuple[str, str], int]
    unit: Unit
    surface: str
    failed: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def flat(self) -> dict[str, float]:
        """Return every number under one name, as the tracking store takes them."""
        flat = dict(self.numbers)
        for counts in self.detections.get("all", ()):
            flat |= {
                f"{name}@{counts.iou:g}": getattr(counts, name)
                for name in ("precision", "recall", "f1", "accuracy")
            }
        for name, rows in (("matched", self.matched), ("all", self.summary)):
            for row in rows:
                if row.stratum == "all":
                    flat[f"{name}/{row.metric}"] = row.interval.estimate
        return flat


def collect(
    cases: Sequence[CaseResult],
    *,
    choices: Choices,
    classes: Sequence[str] = (),
    by: Sequence[str] | None = None,
    seed: int = 0,
    failed: Mapping[str, str] | None = None,
    notes: Sequence[str] = (),
) -> Results:
    """Put the results of cases together.

    Classes are told apart by name: two cases may count them differently.

    Args:
        cases: At least one, all in one unit, and all images or all volumes.
        choices: What they were measured with; its labels are positions in ``classes``, from 1.
        classes: Names in the order of tables; others follow as cases name them.
        by: Columns to split the summary by; None takes every column in which rows differ.
        seed: Random seed of the bootstrap: the same rows give the same intervals.
        failed: Case id and reason of the cases that are not here.
        notes: To stand with the numbers.
    """
    tally = _Tally(classes, choices)
    for case in cases:
        tally.add(case)
    rows = _rows(cases)
    status = Counter(row.status for row in rows)
    existing = status["tp"] + status["fn"]
    matched = [row for row in rows if row.status == "tp"]
    if by is None:
        # a column in which all rows are alike repeats the table
        by = [name for name in rows[0].strata if len({row.strata.get(name) for row in rows}) > 1]
    rng = np.random.default_rng(seed)
    surface = choices.protocol.surface
    notes = list(notes)
    if len({row.group for row in rows}) < _FEW_GROUPS:
        notes.append(
            "intervals of fewer than 50 groups are a little short: 95 % ones held the truth in 91 % of trials of 25"
        )
    return Results(
        numbers=tally.numbers() | {"miss_rate": status["fn"] / existing if existing else 0.0},
        summary=tuple(summarise(rows, rng=rng, by=by, surface=surface)),
        matched=tuple(summarise(matched, rng=rng, surface=surface)) if matched else (),
        counts={
            "cases": len(cases),
            "failed": len(failed or {}),
            "references": sum(case.references for case in cases),
            **{name: status[name] for name in ("tp", "fn", "fp", "tn")},
            "splits": sum(case.splits for case in cases),
            "merges": sum(case.merges for case in cases),
        },
        rows=rows,
        panoptic=tally.panoptic(),
        precision=tally.precision(tally.masks),
        box_precision=tally.precision(tally.boxes) if cases[0].ndim == 2 else None,
        detections=tally.detections(),
        curves=tally.curves(),
        thresholds=tally.thresholds(),
        confusion=dict(sum((case.confused for case in cases), Counter())),
        unit=cases[0].unit,
        surface=surface,
        failed=dict(failed or {}),
        notes=tuple(notes),
    )


def _rows(cases: Sequence[CaseResult]) -> tuple[CaseRow, ...]:
    """Return the rows of all cases with the stratum ``size``, a tertile of all of them."""
    instances = [row for case in cases for row in case.instances]
    sizes = size_strata(
        [row.size for row in instances],
        f"{cases[0].unit}^{cases[0].ndim}",
        objects=[row.status != "tn" for row in instances],
    )
    return tuple(
        replace(row, strata={"class": row.strata["class"], "size": size} | dict(row.strata))
        for row, size in zip((row for case in cases for row in case.rows), sizes, strict=True)
    )


class _Tally:
    """Numbers of the set, added up by case under labels that all cases share: positions of names, from 1."""

    def __init__(self, classes: Iterable[str], choices: Choices) -> None:
        self._labels = {name: k for k, name in enumerate(classes, start=1)}
        self._choices = choices
        self._scored = False
        self._matches: list[dict[int, ScoredMatches]] = []
        self._slices = PrecisionTally()
        self._panoptic: PanopticCounts = {}
        self._dice: dict[str, list[float]] = {}
        self._volumes = False
        self.masks, self.boxes = PrecisionTally(), PrecisionTally()

    def add(self, case: CaseResult) -> None:
        """Count one case."""
        self._scored = self._scored or case.scored
        self._volumes = case.ndim == 3
        self.masks.add(self._shared(case, case.masks))
        self.boxes.add(self._shared(case, case.boxes or {}))
        for one in case.slices:
            self._slices.add(self._shared(case, one))
        self._matches.append(self._shared(case, case.scores))
        add_counts(self._panoptic, self._shared(case, case.panoptic))
        for label, value in case.dice.items():
            self._dice.setdefault(case.classes[label], []).append(value)

    def _shared(self, case: CaseResult, of_label: Mapping[int, _V]) -> dict[int, _V]:
        return {
            self._labels.setdefault(case.classes[label], len(self._labels) + 1): value
            for label, value in of_label.items()
        }

    def thresholds(self) -> dict[str, float]:
        """Return the least scores by class name; nothing if predictions carry no scores."""
        return {n: self._choices.thresholds.of(k) for n, k in self._labels.items()} if self._scored else {}

    def panoptic(self) -> PanopticQuality:
        """Return the panoptic quality."""
        return quality_of(self._panoptic)

    def precision(self, tally: PrecisionTally, label: int | None = None) -> AveragePrecision | None:
        """Return average precision of all classes or of one; None if predictions carry no scores."""
        # COCO's limit of 100 an image would cap the recall of crowded images
        return tally.result(detection_limit(tally.most_references), label) if self._scored else None

    def numbers(self) -> dict[str, float]:
        """Return all numbers by name, of classes only if there are several."""
        names = self._labels if len(self._labels) > 1 else {}
        numbers: dict[str, float] = {}
        for prefix, tally, shown in (
            ("", self.masks, True), ("box_", self.boxes, not self._volumes), ("slices/", self._slices, self._volumes)
        ):  # fmt: skip
            average = self.precision(tally)
            if average is None or not shown:
                continue
            numbers |= {f"{prefix}{name}": getattr(average, name) for name in ("ap", "ap50", "ap75")}
            for name, label in names.items() if prefix != "box_" else ():
                of_class = tally.result(average.max_detections, label)
                numbers |= {f"{prefix}ap/{name}": of_class.ap, f"{prefix}ap50/{name}": of_class.ap50}
        dice = {name: float(np.mean(self._dice[name])) for name in self._labels if self._dice.get(name)}
        numbers |= {
            "pq": self.panoptic().pq,
            "semantic_dice": float(np.mean(list(dice.values()))) if dice else 0.0,
        }
        return numbers | ({f"semantic_dice/{name}": value for name, value in dice.items()} if names else {})

    def detections(self) -> dict[str, tuple[DetectionCounts, ...]]:
        """Return the counts at several IoU, of all classes together and of each, if there are several."""
        counts = {"all": self.masks.counts(self._choices.thresholds)}
        if len(self._labels) > 1:
            counts |= {n: self.masks.counts(self._choices.thresholds, k) for n, k in self._labels.items()}
        return counts

    def curves(self) -> dict[str, ScoreCurve]:
        """Return the counts at every score threshold, of all classes together and of each, if there are several."""
        if not self._scored:
            return {}
        every = {
            name: pool([image[label] for image in self._matches if label in image])
            for name, label in self._labels.items()
        }
        together = {"all": score_curve(pool(list(every.values())))}
        if len(self._labels) == 1:
            return together
        return together | {name: score_curve(matches) for name, matches in every.items()}

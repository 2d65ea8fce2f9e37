"""How good a model is on the validation split, and the score thresholds that are best there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from clearmargin.core import Grid, InstanceSet, LabelMap, Landmarks, Thresholds
from clearmargin.datasets.cases import Case, Dataset
from clearmargin.metrics.detection import PrecisionTally, detection_limit, match_masks
from clearmargin.metrics.landmark_rows import (
    best_point_threshold,
    landmark_quality,
    point_rows,
    summarise_points,
)
from clearmargin.metrics.panoptic import PanopticCounts, add_counts, panoptic_counts, quality_of
from clearmargin.metrics.thresholds import (
    Measure,
    ScoredMatches,
    choose_thresholds,
    dice_by_score,
    match_scores,
)
from clearmargin.models.segmenter import NetworkSegmenter
from clearmargin.report.points_table import point_numbers

__all__ = ["Validation", "validate"]


@dataclass(frozen=True, kw_only=True)
class Validation:
    """A model on the validation cases.

    Attributes:
        metrics: The ``VALIDATION_METRICS``, and ``detections`` per case; of landmarks their numbers.
        thresholds: The score threshold of each class that was chosen, by its name.
        landmark_threshold: That of landmarks; None if none was chosen.
    """

    metrics: dict[str, float]
    thresholds: dict[str, float] = field(default_factory=dict)
    landmark_threshold: float | None = None


def validate(
    segmenter: NetworkSegmenter,
    dataset: Dataset,
    cases: Sequence[Case],
    *,
    measure: Measure | None,
    landmarks: bool = False,
) -> Validation:
    """Judge a segmenter on ``cases``, without distances.

    Volumes are judged whole, as ``evaluate`` judges them: slices without an object count in nothing. Panoptic quality
    looks at each class by itself.

    Args:
        segmenter: The model.
        dataset: Where the cases are read from.
        cases: At least one.
        measure: Measure that the score thresholds are chosen by; None keeps the segmenter's own. Classes of stuff keep
            theirs in any case: their instances are one region.
        landmarks: Whether the score threshold of landmarks is chosen, by `landmark_quality`; else it is the
            segmenter's.
    """
    seen = _Seen(dataset.card.label_map)
    points: list[tuple[Case, Landmarks, Landmarks, Grid]] = []
    ranked = segmenter.with_threshold(0.0)
    for case in cases:
        image, reference = dataset.read(case)
        predicted = ranked(image).instances
        if segmenter.finds_masks:
            seen.add(predicted, reference)
        if predicted.landmarks is not None and reference.landmarks is not None:
            points.append((case, predicted.landmarks, reference.landmarks, reference.grid))
    chosen_score = best_point_threshold([one[1:] for one in points]) if landmarks else None
    least = segmenter.thresholds.landmarks if chosen_score is None else chosen_score
    rows = [
        row
        for case, ours, theirs, grid in points
        for row in point_rows(ours.at_least(least), theirs, grid=grid, case=case.case, group=case.group)
    ]
    of_points = point_numbers(summarise_points(rows, rng=np.random.default_rng(0)))
    if segmenter.finds_landmarks:
        of_points["landmark_quality"] = landmark_quality(rows)
    if not segmenter.finds_masks:
        detections = sum(row.status != "fn" for row in rows) / len(cases)
        return Validation(metrics=of_points | {"detections": detections}, landmark_threshold=chosen_score)
    thresholds = segmenter.thresholds
    by_label: dict[int, float] = {}
    if measure is not None:
        by_label = choose_thresholds(seen.matches, measure)
        thresholds = replace(thresholds, by_label={**thresholds.by_label, **by_label})
    names = {c.id: c.name for c in dataset.card.classes}
    metrics = seen.precision() | {
        "pq": seen.quality(thresholds),
        "semantic_dice": seen.dice(thresholds),
        "detections": seen.detections(thresholds) / len(cases),
    }
    metrics |= of_points
    return Validation(
        metrics=metrics,
        thresholds={names[label]: value for label, value in by_label.items()},
        landmark_threshold=chosen_score,
    )


class _Seen:
    """What is kept of the cases: numbers for each prediction, and the masks of stuff."""

    def __init__(self, label_map: LabelMap) -> None:
        self._labels = [c.id for c in label_map.classes]
        self._stuff = frozenset(c.id for c in label_map.classes if c.kind == "stuff")
        self._tally = PrecisionTally()
        self._scored: list[tuple[NDArray[np.int64], NDArray[np.float32]]] = []
        self._dices: dict[int, list[tuple[NDArray[np.float64], NDArray[np.float64]]]] = {}
        self._regions: list[tuple[InstanceSet, InstanceSet]] = []
        self.matches: list[dict[int, ScoredMatches]] = []

    def add(self, predicted: InstanceSet, reference: InstanceSet) -> None:
        """Look at one case."""
        self._tally.add(match_masks(predicted, reference))
        self._scored.append((predicted.labels, predicted.scores))
        for label in self._labels:
            self._dices.setdefault(label, []).append(dice_by_score(predicted, reference, label))
        stuff, things = (
            tuple(
                side.select(np.isin(side.labels, list(self._stuff)) == of) for side in (predicted, reference)
            )
            for of in (True, False)
        )
        self.matches.append(match_scores(*things))
        if self._stuff:
            self._regions.append((stuff[0], stuff[1]))

    def precision(self) -> dict[str, float]:
        """Return average precision."""
        average = self._tally.result(detection_limit(self._tally.most_references))
        return {"ap": average.ap, "ap50": average.ap50}

    def detections(self, thresholds: Thresholds) -> int:
        """Return the number of predictions that are kept."""
        return sum(
            int(score >= thresholds.of(int(label)))
            for labels, scores in self._scored
            for label, score in zip(labels, scores, strict=True)
        )

    def quality(self, thresholds: Thresholds) -> float:
        """Return panoptic quality."""
        counts: PanopticCounts = {}
        for image in self.matches:
            for label, matches in image.items():
                kept = matches.ious[matches.scores >= thresholds.of(label)]
                tp = int((kept > 0).sum())
                add_counts(counts, {label: (float(kept.sum()), tp, len(kept) - tp, matches.references - tp)})
        for predicted, reference in self._regions:
            kept_stuff = predicted.select(thresholds.reached(predicted))
            add_counts(counts, panoptic_counts(kept_stuff, reference, stuff=self._stuff))
        return quality_of(counts).pq

    def dice(self, thresholds: Thresholds) -> float:
        """Return the mean over classes of the mean over images; an image without a class is not of its mean."""
        means = []
        for label, images in self._dices.items():
            of_class = [dices[int((scores >= thresholds.of(label)).sum())] for scores, dices in images]
            if not np.isnan(of_class).all():
                means.append(float(np.nanmean(of_class)))
        return float(np.mean(means)) if means else 0.0

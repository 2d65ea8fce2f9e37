"""Score thresholds chosen on matched results, and how a measure depends on them.

An image leaves a few numbers for each prediction and no mask. One matching serves every threshold: a panoptic map gives
each element to the best score, so that leaving out what scores less changes no mask that is kept, and at an IoU above
0.5 no two predictions match one reference. Each class is looked at by itself.

Source: of the matching and PQ, Kirillov et al., "Panoptic segmentation", CVPR 2019.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from clearmargin.core import InstanceSet
from clearmargin.core.reprs import short_repr
from clearmargin.metrics.matching import match_optimally
from clearmargin.metrics.panoptic import resolve_overlap

__all__ = [
    "LEAST_REFERENCES",
    "MEASURES",
    "Measure",
    "ScoreCurve",
    "ScoredMatches",
    "between",
    "choose_thresholds",
    "dice_by_score",
    "match_scores",
    "pool",
    "score_curve",
]

Measure = Literal["pq", "f1", "accuracy"]

LEAST_REFERENCES = 10
"""Of so few a threshold is noise: on five lesions it once hid the sixth, which 0.5 shows."""


@dataclass(frozen=True, kw_only=True, eq=False)
class ScoredMatches:
    """The predictions of one class with what they match, of one image or of many.

    Attributes:
        scores: ``(D,)`` float64, of the predictions that count: none that lies in an ignored region.
        ious: ``(D,)`` float64, with the reference that each matches, above 0.5; 0 for a false positive.
        references: How many there are to be found.
    """

    scores: NDArray[np.float64]
    ious: NDArray[np.float64]
    references: int


@short_repr
@dataclass(frozen=True, kw_only=True, eq=False)
class ScoreCurve:
    """Counts at falling thresholds; each array is ``(n,)``, with an entry for each distinct score.

    Attributes:
        scores: The distinct scores, falling: predictions with at least this one are kept.
        tp: Matched pairs.
        fp: Predictions without a partner.
        fn: References without a partner.
        ious: Sum of the IoU of matched pairs.
    """

    scores: NDArray[np.float64]
    tp: NDArray[np.float64]
    fp: NDArray[np.float64]
    fn: NDArray[np.float64]
    ious: NDArray[np.float64]

    @property
    def precision(self) -> NDArray[np.float64]:
        """TP / (TP + FP)."""
        return self.tp / np.maximum(self.tp + self.fp, 1)

    @property
    def recall(self) -> NDArray[np.float64]:
        """TP / (TP + FN); 0 without references."""
        return self.tp / np.maximum(self.tp + self.fn, 1)

    @property
    def f1(self) -> NDArray[np.float64]:
        """2 TP / (2 TP + FP + FN)."""
        return self.tp / np.maximum(self.tp + (self.fp + self.fn) / 2, 0.5)

    @property
    def accuracy(self) -> NDArray[np.float64]:
        """TP / (TP + FP + FN), StarDist's and the Data Science Bowl's measure."""
        return self.tp / np.maximum(self.tp + self.fp + self.fn, 1)

    @property
    def pq(self) -> NDArray[np.float64]:
        """Panoptic quality: the sum of IoU over TP + FP / 2 + FN / 2."""
        return self.ious / np.maximum(self.tp + (self.fp + self.fn) / 2, 0.5)


MEASURES: dict[Measure, Callable[[ScoreCurve], NDArray[np.float64]]] = {
    "pq": lambda curve: curve.pq,
    "f1": lambda curve: curve.f1,
    "accuracy": lambda curve: curve.accuracy,
}
"""What a threshold can be best for; each higher better."""


def match_scores(predicted: InstanceSet, reference: InstanceSet) -> dict[int, ScoredMatches]:
    """Return one image's matches by label.

    Args:
        predicted: Down to the lowest score that a threshold may have.
        reference: On the same grid. Predictions that lie by more than half in its ignored region, or in the crowds of
            their class, do not count, nor do references that lie in it as a whole.

    Returns:
        An entry for each label that is predicted or there.

    Raises:
        ValueError: The sets lie on grids of different shape.
    """
    matches = {}
    for label in np.union1d(predicted.labels, reference.labels):
        ours, theirs = (
            resolve_overlap(side.select(np.flatnonzero(side.labels == label)))
            for side in (predicted, reference)
        )
        pairs = match_optimally(ours, theirs, iou_threshold=0.5, strict=True)
        ious = np.zeros(len(ours))
        ious[pairs.pairs[:, 0]] = pairs.ious
        counted = np.setdiff1d(np.arange(len(ours)), pairs.ignored)
        matches[int(label)] = ScoredMatches(
            scores=ours.scores[counted].astype(np.float64),
            ious=ious[counted],
            references=len(pairs.pairs) + len(pairs.false_negatives),
        )
    return matches


def pool(matches: Sequence[ScoredMatches]) -> ScoredMatches:
    """Return the matches of several images, or of several classes, as one."""
    return ScoredMatches(
        scores=np.concatenate([np.zeros(0), *(m.scores for m in matches)]),
        ious=np.concatenate([np.zeros(0), *(m.ious for m in matches)]),
        references=sum(m.references for m in matches),
    )


def score_curve(matches: ScoredMatches) -> ScoreCurve:
    """Return the counts at each distinct score; empty arrays without a prediction."""
    order = np.argsort(-matches.scores, kind="stable")
    scores, ious = matches.scores[order], matches.ious[order]
    last = np.flatnonzero(np.append(np.diff(scores) != 0, True)) if len(scores) else np.zeros(0, np.int64)
    tp = np.cumsum(ious > 0)[last].astype(np.float64)
    return ScoreCurve(
        scores=scores[last],
        tp=tp,
        fp=last + 1 - tp,
        fn=matches.references - tp,
        ious=np.cumsum(ious)[last],
    )


def choose_thresholds(
    images: Sequence[Mapping[int, ScoredMatches]], measure: Measure, *, least: int = LEAST_REFERENCES
) -> dict[int, float]:
    """Return for each label the score threshold at which a measure is best.

    It lies halfway between the last score that is kept and the next one, rounded to what still parts them; if there is
    no next one, at the last one or at 0.5, whichever is lower. A label with fewer references than ``least`` takes the
    threshold of all labels together.

    Args:
        images: ``match_scores`` of each.
        measure: ``pq``, ``f1`` or ``accuracy``.
        least: References that a threshold needs.

    Returns:
        An entry for each label that has references; none if nothing matches at any threshold, or if all labels together
        have fewer references than ``least``.
    """
    labels = sorted({label for image in images for label in image})
    own = {label: pool([image[label] for image in images if label in image]) for label in labels}
    everything = pool(list(own.values()))
    together = _best(everything, measure)
    if together is None or everything.references < least:
        return {}
    thresholds = {}
    for label, matches in own.items():
        if matches.references:
            best = _best(matches, measure) if matches.references >= least else together
            thresholds[label] = together if best is None else best
    return thresholds


def _best(matches: ScoredMatches, measure: Measure) -> float | None:
    """Return the best threshold; of equals the highest, None if nothing matches."""
    curve = score_curve(matches)
    if not curve.tp.any():
        return None
    best = int(np.argmax(MEASURES[measure](curve)))
    return between(float(curve.scores[best]), *curve.scores[best + 1 : best + 2].tolist())


def between(kept: float, below: float | None = None) -> float:
    """Return a threshold that keeps one score and not the next one: halfway, in as few digits as part them.

    Without a next one it is the score that is kept, or 0.5, whichever is lower.
    """
    if below is None:
        return min(kept, 0.5)
    for digits in range(2, 8):
        middle = round((kept + below) / 2, digits)
        if below < middle <= kept:
            return middle
    return kept


def dice_by_score(
    predicted: InstanceSet, reference: InstanceSet, label: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return `semantic_dice` of a class for every number of its predictions that can be kept.

    Args:
        predicted: D instances of the label among others.
        reference: On the same grid.
        label: The class.

    Returns:
        ``(D,)`` scores, falling, and ``(D + 1,)`` Dice coefficients: entry k is of the k best predictions. Entry 0 is
        NaN without a reference of the label: an image without the class says nothing of what finds nothing in it.
    """
    ours = predicted.select(np.flatnonzero(predicted.labels == label))
    ours = ours.select(np.argsort(-ours.scores, kind="stable"))
    theirs = reference.select(np.flatnonzero(reference.labels == label))
    free = np.ones(reference.grid.shape, bool)
    unmeasured = reference.unmeasured(label)
    if unmeasured is not None:
        free[unmeasured.slices] &= ~unmeasured.crop
    truth = np.zeros(reference.grid.shape, bool)
    for mask in theirs.masks:
        truth[mask.slices] |= mask.crop & free[mask.slices]
    size, common, area = int(truth.sum()), 0, 0
    dices = [(0.0 if size else 1.0) if len(theirs) else np.nan]
    for mask in ours.masks:
        new = mask.crop & free[mask.slices]
        area += int(new.sum())
        common += int((new & truth[mask.slices]).sum())
        free[mask.slices] &= ~new
        dices.append(2 * common / (area + size) if area + size else 1.0)
    return ours.scores.astype(np.float64), np.array(dices)

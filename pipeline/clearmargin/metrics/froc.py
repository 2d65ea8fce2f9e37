"""Free-response ROC: how much is found at how many false alarms an image."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from clearmargin.core import InstanceSet
from clearmargin.core.reprs import short_repr
from clearmargin.metrics.matching import match_instances

__all__ = ["Froc", "froc"]


@short_repr
@dataclass(frozen=True, kw_only=True, eq=False)
class Froc:
    """A FROC curve.

    Attributes:
        thresholds: ``(n,)`` float64, the distinct scores, falling.
        false_positives: ``(n,)`` float64, false positives per image at each threshold, not falling.
        sensitivity: ``(n,)`` float64, share of references found at each threshold.
        images: Number of images.
        references: Number of references.
    """

    thresholds: NDArray[np.float64]
    false_positives: NDArray[np.float64]
    sensitivity: NDArray[np.float64]
    images: int
    references: int

    def sensitivity_at(self, rate: float) -> float:
        """Return the sensitivity at the lowest threshold with at most ``rate`` false positives an image.

        0 where even the highest score already gives more; 1 if there is no reference.
        """
        if not self.references:
            return 1.0
        allowed = self.sensitivity[self.false_positives <= rate]
        return float(allowed[-1]) if allowed.size else 0.0

    def mean_sensitivity(self, rates: Sequence[float] = (0.125, 0.25, 0.5, 1, 2, 4, 8)) -> float:
        """Return the mean sensitivity at ``rates`` false positives an image (the LUNA16 score by default)."""
        return float(np.mean([self.sensitivity_at(rate) for rate in rates]))


def froc(pairs: Iterable[tuple[InstanceSet, InstanceSet]], *, iou_threshold: float = 0.1) -> Froc:
    """Return the FROC curve of (predicted, reference) pairs, one per image.

    A reference is found when a prediction of its label matches it at ``iou_threshold``, greedily by score,
    each reference once; predictions in the ignored region or a crowd of their class are neither found nor false.

    Raises:
        ValueError: No image at all, or two grids of a pair differ.

    Source: Bunch et al., SPIE 1977; van Ginneken et al., Medical Image Analysis 2010 (mean over seven rates).
    """
    scores: list[float] = []
    hits: list[bool] = []
    images = references = 0
    for predicted, reference in pairs:
        images += 1
        references += len(reference)
        matches = match_instances(predicted, reference, iou_threshold=iou_threshold)
        scores += [float(predicted.scores[i]) for i in (*matches.pairs[:, 0], *matches.false_positives)]
        hits += [True] * len(matches.pairs) + [False] * len(matches.false_positives)
    if not images:
        raise ValueError("a FROC curve needs at least one image")
    thresholds = np.unique(np.array(scores, np.float64))[::-1]
    hit, score = np.array(hits, bool), np.array(scores, np.float64)
    true = np.array([np.count_nonzero(hit & (score >= t)) for t in thresholds], np.float64)
    false = np.array([np.count_nonzero(~hit & (score >= t)) for t in thresholds], np.float64)
    return Froc(
        thresholds=thresholds,
        false_positives=false / images,
        sensitivity=true / max(references, 1),
        images=images,
        references=references,
    )

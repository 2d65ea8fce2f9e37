"""COCO average precision by boundary IoU: our matching on these IoU values, hotcoco's integration."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from clearmargin.core import InstanceSet
from clearmargin.metrics.boundary import boundary_mask, check_band
from clearmargin.metrics.detection import (
    COCO_AREAS,
    AveragePrecision,
    Pairs,
    area_ranges,
    checked,
    without_references,
)
from clearmargin.metrics.matching import ignored_share, iou_matrix, mask_iou

__all__ = ["boundary_average_precision"]

_THRESHOLDS = np.linspace(0.5, 0.95, 10)


def boundary_average_precision(
    pairs: Pairs,
    *,
    band: float | None = None,
    areas: tuple[float, float] = COCO_AREAS,
    max_detections: int = 100,
) -> AveragePrecision:
    """Return COCO's AP with the smaller of mask IoU and boundary IoU in place of mask IoU.

    Args:
        pairs: Two sets on one grid for each image; either may be empty.
        band: Width of the boundary in the grid's unit, Euclidean. None for the published one, 2 % of the
            image's diagonal in pixels by 3 x 3 erosions: at 1080p objects thinner than 88 px then score as by
            mask AP.
        areas: See `mask_average_precision`.
        max_detections: See `mask_average_precision`.

    Raises:
        ValueError: Two grids of a pair differ, or the published band is asked of a volume.

    Source: Cheng et al., "Boundary IoU", CVPR 2021. Matching is COCO's rule on these IoU values, the
    precision-recall integration is hotcoco's.
    """
    cases = checked(pairs)
    limits = area_ranges(areas)
    tallies: dict[tuple[int, str], _Tally] = {}
    predictions = 0
    for predicted, reference in cases:
        predictions += len(predicted)
        check_band(reference.grid, band)
        ious = _boundary_ious(predicted, reference, band)
        sizes = [np.array([m.area for m in side.masks], np.float64) for side in (predicted, reference)]
        crowd = np.array([ignored_share(m, reference.ignore) for m in predicted.masks], np.float64)
        for label in np.union1d(predicted.labels, reference.labels):
            ours = np.flatnonzero(predicted.labels == label)
            ours = ours[np.argsort(-predicted.scores[ours], kind="stable")][:max_detections]
            theirs = np.flatnonzero(reference.labels == label)
            table = np.ascontiguousarray(ious[ours[:, None], theirs])
            for name, (low, high) in limits.items():
                tally = tallies.setdefault((int(label), name), _Tally())
                outside = [(size < low) | (size > high) for size in (sizes[0][ours], sizes[1][theirs])]
                tally.add(predicted.scores[ours], table, crowd[ours], outside[0], outside[1])
    return _from_tallies(tallies, predictions)


def _boundary_ious(predicted: InstanceSet, reference: InstanceSet, band: float | None) -> NDArray[np.float64]:
    """Return the smaller of mask and boundary IoU where labels agree, ``(P, R)``; bands are made when needed."""
    ious = iou_matrix(predicted.masks, reference.masks, predicted.labels[:, None] == reference.labels)
    ours, theirs = (
        cache(lambda k, side=side: boundary_mask(side.masks[k], side.grid, band))
        for side in (predicted, reference)
    )
    for i, j in zip(*np.nonzero(ious >= _THRESHOLDS[0]), strict=True):  # what is lower matches nothing anyway
        ious[i, j] = min(ious[i, j], mask_iou(ours(int(i)), theirs(int(j))))
    return ious


class _Tally:
    """Scores, matches and ignored flags of one class and size over the images, in image order."""

    def __init__(self) -> None:
        self.scores: list[NDArray[np.float32]] = []
        self.matched: list[NDArray[np.bool_]] = []
        self.ignored: list[NDArray[np.bool_]] = []
        self.references = 0

    def add(
        self,
        scores: NDArray[np.float32],
        ious: NDArray[np.float64],
        crowd: NDArray[np.float64],
        small: NDArray[np.bool_],
        other: NDArray[np.bool_],
    ) -> None:
        """Match one image at every threshold; references in ``other`` and predictions in ``small`` do not count."""
        from clearmargin.metrics.coco_kernels import coco_matches

        self.references += int(np.count_nonzero(~other))
        matched, ignored = coco_matches(ious, crowd, other, small, _THRESHOLDS)
        self.scores.append(scores)
        self.matched.append(matched)
        self.ignored.append(ignored)

    def curve(self, t: int) -> tuple[float, float]:
        """Return average precision and recall at threshold number ``t``."""
        from hotcoco import metrics

        scores = np.concatenate(self.scores).astype(np.float64)
        order = np.argsort(-scores, kind="mergesort")
        matched = np.concatenate([m[t] for m in self.matched])[order]
        ignored = np.concatenate([i[t] for i in self.ignored])[order]
        hits = int(np.count_nonzero(matched & ~ignored))
        if not len(scores):
            return 0.0, 0.0
        value = metrics.average_precision(scores[order], matched, num_gt=self.references, ignored=ignored)
        return max(float(value), 0.0), hits / self.references


def _from_tallies(tallies: Mapping[tuple[int, str], _Tally], predictions: int) -> AveragePrecision:
    curves = {
        key: [tally.curve(t) for t in range(len(_THRESHOLDS))]
        for key, tally in tallies.items()
        if tally.references
    }
    precision = {key: np.array([c[0] for c in curve]) for key, curve in curves.items()}
    classes = sorted({label for label, name in precision if name == "all"})
    references = sum(t.references for (_, name), t in tallies.items() if name == "all")
    if not classes:
        return without_references(predictions)

    def mean(name: str) -> float | None:
        rows = [precision[key] for key in precision if key[1] == name]
        return float(np.mean(rows)) if rows else None

    whole = np.array([precision[label, "all"] for label in classes])
    return AveragePrecision(
        ap=float(whole.mean()),
        ap50=float(whole[:, 0].mean()),
        ap75=float(whole[:, 5].mean()),
        ap_small=mean("small"),
        ap_medium=mean("medium"),
        ap_large=mean("large"),
        ar=float(np.mean([[c[1] for c in curves[label, "all"]] for label in classes])),
        by_class=MappingProxyType({label: float(precision[label, "all"].mean()) for label in classes}),
        references=references,
        predictions=predictions,
    )

"""COCO average precision of masks and boxes: COCO's matching, hotcoco's integration.

An image leaves a few numbers for each prediction and no mask, so that a data set of any size is added up image by
image (`PrecisionTally`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from clearmargin.core import InstanceSet, Mask, Thresholds
from clearmargin.core.meeting import meeting_boxes
from clearmargin.metrics.matching import Overlaps, mask_overlaps

__all__ = [
    "COCO_AREAS",
    "COUNT_IOUS",
    "AveragePrecision",
    "DetectionCounts",
    "ImageMatches",
    "PrecisionTally",
    "box_average_precision",
    "detection_limit",
    "mask_average_precision",
    "match_boxes",
    "match_masks",
]

Pairs = Iterable[tuple[InstanceSet, InstanceSet]]

COCO_AREAS = (32.0**2, 96.0**2)
"""COCO's limits between small, medium and large objects, in elements."""

COUNT_IOUS = (0.5, 0.6, 0.7, 0.8, 0.9)
"""IoU from which a detection is right, in `DetectionCounts`."""

_THRESHOLDS = np.linspace(0.5, 0.95, 10)
_RANGES = ("all", "small", "medium", "large")
_LIMIT = 100


@dataclass(frozen=True, kw_only=True)
class AveragePrecision:
    """Average precision over a data set, each in [0, 1].

    None marks a stratum (a size, a class) in which there is no reference: it has no value, and its count says
    so.

    Attributes:
        ap: Mean over IoU 0.50, 0.55, ..., 0.95 and over the classes that have references. Where the whole
            data set has no reference: 1 without any prediction, else 0.
        ap50: At IoU 0.50.
        ap75: At IoU 0.75.
        ap_small: Of small references, and likewise medium and large.
        ap_medium: See ``ap_small``.
        ap_large: See ``ap_small``.
        ar: Average recall, at ``max_detections`` per image and class.
        by_class: ``ap`` for each label that occurs in the references.
        ap50_by_class: ``ap50`` for each of them.
        references: Number of references counted; crowds are not.
        predictions: Number of predictions.
        max_detections: Predictions of a class that count in an image.
    """

    ap: float
    ap50: float
    ap75: float
    ap_small: float | None
    ap_medium: float | None
    ap_large: float | None
    ar: float
    by_class: Mapping[int, float]
    ap50_by_class: Mapping[int, float]
    references: int
    predictions: int
    max_detections: int


@dataclass(frozen=True, kw_only=True)
class DetectionCounts:
    """How many detections are right at an IoU, of those that reach their score threshold.

    Attributes:
        iou: From which a detection is right.
        tp: Detections that are.
        fp: Detections that are not.
        fn: References without a detection.
    """

    iou: float
    tp: int
    fp: int
    fn: int

    @property
    def precision(self) -> float:
        """TP / (TP + FP); 1 without detections."""
        return self.tp / (self.tp + self.fp) if self.tp + self.fp else 1.0

    @property
    def recall(self) -> float:
        """TP / (TP + FN); 1 without references."""
        return self.tp / (self.tp + self.fn) if self.tp + self.fn else 1.0

    @property
    def f1(self) -> float:
        """2 TP / (2 TP + FP + FN); 1 without detections and references."""
        every = 2 * self.tp + self.fp + self.fn
        return 2 * self.tp / every if every else 1.0

    @property
    def accuracy(self) -> float:
        """TP / (TP + FP + FN), the Data Science Bowl's and StarDist's measure; 1 without detections and references."""
        every = self.tp + self.fp + self.fn
        return self.tp / every if every else 1.0


def mask_average_precision(
    pairs: Pairs, *, areas: tuple[float, float] = COCO_AREAS, max_detections: int = _LIMIT
) -> AveragePrecision:
    """Return COCO's mask AP of (predicted, reference) pairs, one per image or volume.

    A crowd is of its class alone; the ignored region is a crowd of every class.

    Args:
        pairs: Two sets on one grid for each image; either may be empty.
        areas: Limits between small, medium and large references, in elements (pixels or voxels).
        max_detections: Predictions of a class that count in an image, the highest scores first.

    Raises:
        ValueError: Two sets of a pair lie on grids of different shape.

    Source: Lin et al., "Microsoft COCO", ECCV 2014; matching after pycocotools, integration by hotcoco.
    """
    return _tallied(pairs, lambda p, r: match_masks(p, r, areas=areas), max_detections)


def box_average_precision(
    pairs: Pairs, *, areas: tuple[float, float] = COCO_AREAS, max_detections: int = _LIMIT
) -> AveragePrecision:
    """Return COCO's box AP of the masks' bounding boxes; for images only. See `mask_average_precision`.

    Raises:
        ValueError: A grid is a volume (boxes in space have no COCO evaluation), or two grids of a pair
            differ.
    """
    return _tallied(pairs, lambda p, r: match_boxes(p, r, areas=areas), max_detections)


def detection_limit(most_references: int) -> int:
    """Return the predictions of a class that count in an image: COCO's 100, or as many as an image has references.

    >>> detection_limit(7), detection_limit(369)
    (100, 369)
    """
    return max(_LIMIT, most_references)


@dataclass(frozen=True, kw_only=True, eq=False)
class ClassMatches:
    """What one image says of one class: D predictions, highest score first.

    Attributes:
        scores: ``(D,)``, float32 or float64.
        matched: ``(A, T, D)`` bool, by range of sizes and threshold.
        ignored: ``(A, T, D)`` bool, whether a prediction is neither right nor wrong.
        references: ``(A,)`` int64, references that count.
    """

    scores: NDArray[np.floating]
    matched: NDArray[np.bool_]
    ignored: NDArray[np.bool_]
    references: NDArray[np.int64]


ImageMatches = Mapping[int, ClassMatches]
"""By label: what an image adds to average precision."""


def match_masks(
    predicted: InstanceSet, reference: InstanceSet, *, areas: tuple[float, float] = COCO_AREAS
) -> ImageMatches:
    """Return one image's matches by mask IoU, for a `PrecisionTally`.

    Raises:
        ValueError: The sets lie on grids of different shape.
    """
    check_shapes(predicted, reference)
    ious = mask_overlaps(predicted, reference)
    sizes = np.array([mask.area for mask in predicted.masks], np.float64)
    return match_by(predicted, reference, ious, mask_shares(predicted, reference), sizes, areas)


def match_boxes(
    predicted: InstanceSet, reference: InstanceSet, *, areas: tuple[float, float] = COCO_AREAS
) -> ImageMatches:
    """Return one image's matches by the IoU of bounding boxes, for a `PrecisionTally`.

    A prediction's size is that of its box, a reference's that of its mask, as in pycocotools. A crowd is its box; of
    the ignored region counts what it really holds.

    Raises:
        ValueError: The grid is a volume, or the sets lie on grids of different shape.
    """
    check_shapes(predicted, reference)
    if reference.grid.ndim != 2:
        raise ValueError(f"box AP is defined for images, not for {reference.grid}")
    ours, theirs = _boxes(predicted.masks), _boxes(reference.masks)
    sizes, areas_of = (
        np.prod(boxes[:, 1] - boxes[:, 0], axis=1).astype(np.float64) for boxes in (ours, theirs)
    )
    rows, columns = meeting_boxes(ours, theirs)
    common = _common(ours[rows], theirs[columns])
    ious = Overlaps.of(
        rows, columns, common / (sizes[rows] + areas_of[columns] - common), (len(ours), len(theirs))
    )
    of_class: dict[int, NDArray[np.float64]] = {}
    for label in np.unique(predicted.labels):
        regions = _boxes([c.mask for c in reference.crowds if c.label == label])
        crowds = _common(ours[:, None], regions[None])
        if reference.ignore is not None:
            held = [np.count_nonzero(reference.ignore.within(mask.slices)) for mask in predicted.masks]
            crowds = np.column_stack([crowds, np.array(held, np.float64)])
        of_class[int(label)] = crowds / np.maximum(sizes, 1)[:, None]
    return match_by(predicted, reference, ious, of_class, sizes, areas)


def mask_shares(predicted: InstanceSet, reference: InstanceSet) -> dict[int, NDArray[np.float64]]:
    """Return by label ``(P, C)``: shares of predictions in each crowd of the label, and in the ignored region."""
    from clearmargin.metrics.matching import ignored_share

    shares = {}
    for label in np.unique(predicted.labels):
        regions = [c.mask for c in reference.crowds if c.label == label]
        regions += [] if reference.ignore is None else [reference.ignore]
        table = np.zeros((len(predicted), len(regions)))
        for i in np.flatnonzero(predicted.labels == label):
            table[i] = [ignored_share(predicted.masks[i], region) for region in regions]
        shares[int(label)] = table
    return shares


def match_by(
    predicted: InstanceSet,
    reference: InstanceSet,
    ious: Overlaps,
    crowds: Mapping[int, NDArray[np.float64]],
    sizes: NDArray[np.float64],
    areas: tuple[float, float],
) -> ImageMatches:
    """Return one image's matches by any IoU.

    Args:
        predicted: P predictions.
        reference: R references.
        ious: P predictions with R references; looked at only where labels agree.
        crowds: By label ``(P, C)``, shares in regions that take any number of predictions.
        sizes: ``(P,)`` sizes of the predictions, in elements.
        areas: See `mask_average_precision`.
    """
    from clearmargin.metrics.coco_kernels import coco_matches

    held = np.array([mask.area for mask in reference.masks], np.float64)
    limits = ((0.0, 1e15), (0.0, areas[0]), areas, (areas[1], 1e15))
    out: dict[int, ClassMatches] = {}
    for label in np.union1d(predicted.labels, reference.labels):
        ours = np.flatnonzero(predicted.labels == label)
        ours = ours[np.argsort(-predicted.scores[ours], kind="stable")]
        theirs = np.flatnonzero(reference.labels == label)
        shares = crowds[int(label)][ours] if len(ours) else np.zeros((0, 0))
        beyond, outside = (
            np.array([(v < low) | (v > high) for low, high in limits]).reshape(len(limits), -1)
            for v in (held[theirs], sizes[ours])
        )
        starts, columns, values = _of_class(ious, ours, theirs)
        matched, ignored = coco_matches(starts, columns, values, shares, beyond, outside, _THRESHOLDS)
        out[int(label)] = ClassMatches(
            scores=predicted.scores[ours],
            matched=matched,
            ignored=ignored,
            references=np.count_nonzero(~beyond, axis=1).astype(np.int64),
        )
    return out


def _of_class(
    ious: Overlaps, ours: NDArray[np.int64], theirs: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
    """Return the overlaps of some predictions, in their order, with some references, as `coco_matches` takes them."""
    starts, pairs = ious.of_rows(ours)
    place = np.full(ious.shape[1], -1, np.int64)
    place[theirs] = np.arange(len(theirs))
    columns = place[ious.columns[pairs]]
    alike = columns >= 0
    return np.concatenate([[0], np.cumsum(alike)])[starts], columns[alike], ious.ious[pairs][alike]


class PrecisionTally:
    """Average precision added up image by image; what it holds is a few numbers for each prediction."""

    def __init__(self) -> None:
        self._images: dict[int, list[ClassMatches]] = {}
        self.most_references = 0

    def add(self, image: ImageMatches) -> None:
        """Count one image."""
        for label, matches in image.items():
            self._images.setdefault(label, []).append(matches)
        total = sum(int(matches.references[0]) for matches in image.values())
        self.most_references = max(self.most_references, total)

    def result(self, max_detections: int = _LIMIT, label: int | None = None) -> AveragePrecision:
        """Return the average precision of the images so far, of one label or of all; see `mask_average_precision`."""
        by_label = {k: images for k, images in self._images.items() if label is None or k == label}
        predictions = sum(len(m.scores) for images in by_label.values() for m in images)
        curves = {
            (label, name): _curves(images, a, max_detections)
            for label, images in by_label.items()
            for a, name in enumerate(_RANGES)
            if sum(int(m.references[a]) for m in images)
        }
        precision = {key: curve[0] for key, curve in curves.items()}
        classes = sorted({label for label, name in curves if name == "all"})
        if not classes:
            return _without_references(predictions, max_detections)

        def mean(name: str) -> float | None:
            rows = [values for (_, of), values in precision.items() if of == name]
            return float(np.mean(rows)) if rows else None

        whole = np.array([precision[label, "all"] for label in classes])
        return AveragePrecision(
            ap=float(whole.mean()),
            ap50=float(whole[:, 0].mean()),
            ap75=float(whole[:, 5].mean()),
            ap_small=mean("small"),
            ap_medium=mean("medium"),
            ap_large=mean("large"),
            ar=float(np.mean([curves[label, "all"][1] for label in classes])),
            by_class=MappingProxyType({label: float(precision[label, "all"].mean()) for label in classes}),
            ap50_by_class=MappingProxyType({label: float(precision[label, "all"][0]) for label in classes}),
            references=sum(int(m.references[0]) for images in by_label.values() for m in images),
            predictions=predictions,
            max_detections=max_detections,
        )

    def counts(self, thresholds: Thresholds, label: int | None = None) -> tuple[DetectionCounts, ...]:
        """Return the counts at each of `COUNT_IOUS`, of one label or of all together.

        Predictions are matched in order of score, so that those below a threshold change no pair above it.
        """
        rows = [int(np.argmin(np.abs(_THRESHOLDS - iou))) for iou in COUNT_IOUS]
        tp, fp, references = np.zeros(len(rows), np.int64), np.zeros(len(rows), np.int64), 0
        for own, images in self._images.items():
            for matches in images if label is None or own == label else ():
                kept = matches.scores >= thresholds.of(own)
                counted = kept & ~matches.ignored[0, rows]
                tp += np.count_nonzero(counted & matches.matched[0, rows], axis=1)
                fp += np.count_nonzero(counted & ~matches.matched[0, rows], axis=1)
                references += int(matches.references[0])
        return tuple(
            DetectionCounts(iou=iou, tp=int(t), fp=int(f), fn=references - int(t))
            for iou, t, f in zip(COUNT_IOUS, tp, fp, strict=True)
        )


def _curves(images: list[ClassMatches], a: int, most: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return average precision and recall at each threshold, both ``(T,)``."""
    from hotcoco import metrics

    references = sum(int(m.references[a]) for m in images)
    scores = np.concatenate([m.scores[:most] for m in images]).astype(np.float64)
    if not len(scores):
        return np.zeros(len(_THRESHOLDS)), np.zeros(len(_THRESHOLDS))
    order = np.argsort(-scores, kind="mergesort")
    matched = np.concatenate([m.matched[a, :, :most] for m in images], axis=1)[:, order]
    ignored = np.concatenate([m.ignored[a, :, :most] for m in images], axis=1)[:, order]
    values = [
        metrics.average_precision(scores[order], matched[t], num_gt=references, ignored=ignored[t])
        for t in range(len(_THRESHOLDS))
    ]
    recall = np.count_nonzero(matched & ~ignored, axis=1) / references
    return np.maximum(np.array(values, np.float64), 0.0), recall


def _without_references(predictions: int, max_detections: int) -> AveragePrecision:
    value = float(predictions == 0)
    return AveragePrecision(
        ap=value, ap50=value, ap75=value, ap_small=None, ap_medium=None, ap_large=None, ar=value,
        by_class=MappingProxyType({}), ap50_by_class=MappingProxyType({}), references=0,
        predictions=predictions, max_detections=max_detections,
    )  # fmt: skip


def _tallied(
    pairs: Pairs, match: Callable[[InstanceSet, InstanceSet], ImageMatches], max_detections: int
) -> AveragePrecision:
    tally = PrecisionTally()
    for predicted, reference in pairs:
        tally.add(match(predicted, reference))
    return tally.result(max_detections)


def check_shapes(predicted: InstanceSet, reference: InstanceSet) -> None:
    """Raise ValueError for two sets on grids of different shape."""
    if predicted.grid.shape != reference.grid.shape:
        raise ValueError(
            f"predicted instances lie on {predicted.grid}, reference instances on {reference.grid}"
        )


def _boxes(masks: Iterable[Mask]) -> NDArray[np.int64]:
    """Return ``(N, 2, 2)`` starts and stops."""
    return np.array([mask.box for mask in masks], np.int64).reshape(-1, 2, 2)


def _common(ours: NDArray[np.int64], theirs: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the areas that boxes ``(..., 2, 2)`` share with those at the same place."""
    low = np.maximum(ours[..., 0, :], theirs[..., 0, :])
    high = np.minimum(ours[..., 1, :], theirs[..., 1, :])
    return np.asarray(np.prod(np.maximum(high - low, 0), axis=-1), np.float64)

"""COCO average precision of masks, boxes and boundaries, accumulated by hotcoco."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from clearmargin.core import InstanceSet, Mask
from clearmargin.metrics.matching import iou_matrix, match_greedily

__all__ = [
    "COCO_AREAS",
    "AveragePrecision",
    "boundary_average_precision",
    "box_average_precision",
    "mask_average_precision",
]

Pairs = Iterable[tuple[InstanceSet, InstanceSet]]

COCO_AREAS = (32.0**2, 96.0**2)
"""COCO's limits between small, medium and large objects, in elements."""

_THRESHOLDS = np.linspace(0.5, 0.95, 10)


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
        ar: Average recall, at ``max_detections`` per image.
        by_class: ``ap`` for each label that occurs in the references.
        references: Number of references counted.
        predictions: Number of predictions.
    """

    ap: float
    ap50: float
    ap75: float
    ap_small: float | None
    ap_medium: float | None
    ap_large: float | None
    ar: float
    by_class: Mapping[int, float]
    references: int
    predictions: int


def mask_average_precision(
    pairs: Pairs, *, areas: tuple[float, float] = COCO_AREAS, max_detections: int = 100
) -> AveragePrecision:
    """Return COCO's mask AP of (predicted, reference) pairs, one pair an image or a volume.

    Volumes are evaluated through their run lengths: the IoU of two masks does not depend on how they are laid
    out, and no dense stack is made.

    Args:
        pairs: Two sets on one grid for each image; either may be empty.
        areas: Limits between small, medium and large references, in elements (pixels or voxels).
        max_detections: Predictions that count in an image, the highest scores first.

    Raises:
        ValueError: Two sets of a pair lie on grids of different shape.

    Source: Lin et al., "Microsoft COCO", ECCV 2014; computed by hotcoco, whose numbers are pycocotools'.
    """
    return _evaluate(list(pairs), "segm", areas, max_detections)


def box_average_precision(
    pairs: Pairs, *, areas: tuple[float, float] = COCO_AREAS, max_detections: int = 100
) -> AveragePrecision:
    """Return COCO's box AP of the masks' bounding boxes; for images only. See `mask_average_precision`.

    Raises:
        ValueError: A grid is a volume (boxes in space have no COCO evaluation), or two grids of a pair
            differ.
    """
    cases = list(pairs)
    for _, reference in cases:
        if reference.grid.ndim != 2:
            raise ValueError(f"box AP is defined for images, not for {reference.grid}")
    return _evaluate(cases, "bbox", areas, max_detections)


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
    from clearmargin.metrics.boundary import boundary_masks

    cases = _checked(pairs)
    limits = _area_ranges(areas)
    tallies: dict[tuple[int, str], _Tally] = {}
    predictions = 0
    for predicted, reference in cases:
        predictions += len(predicted)
        edges = [boundary_masks(instances, band) for instances in (predicted, reference)]
        for label in np.union1d(predicted.labels, reference.labels):
            ours = np.flatnonzero(predicted.labels == label)
            ours = ours[np.argsort(-predicted.scores[ours], kind="stable")][:max_detections]
            theirs = np.flatnonzero(reference.labels == label)
            masks = [predicted.masks[i] for i in ours], [reference.masks[j] for j in theirs]
            ious = np.minimum(
                iou_matrix(*masks), iou_matrix([edges[0][i] for i in ours], [edges[1][j] for j in theirs])
            )
            sizes = [np.array([m.area for m in side], np.float64) for side in masks]
            crowd = np.array([_share(m, reference.ignore) for m in masks[0]])
            for name, (low, high) in limits.items():
                tally = tallies.setdefault((int(label), name), _Tally())
                outside = [(size < low) | (size > high) for size in sizes]
                tally.add(predicted.scores[ours], ious, crowd, outside[0], outside[1])
    return _from_tallies(tallies, predictions)


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
        """Match one image at every threshold; references in ``other`` and predictions in ``small`` do not
        count.
        """
        self.references += int(np.count_nonzero(~other))
        matched = np.zeros((len(_THRESHOLDS), len(scores)), bool)
        ignored = np.zeros_like(matched)
        for t, threshold in enumerate(_THRESHOLDS):
            partners, unwanted = _coco_match(ious, crowd, other, float(threshold))
            matched[t] = partners
            ignored[t] = unwanted | (~partners & small)
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


def _coco_match(
    ious: NDArray[np.float64], crowd: NDArray[np.float64], other: NDArray[np.bool_], threshold: float
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Return which predictions match anything, and which of them match only what does not count.

    References that count are taken first, then those of other sizes, then the ignored region.
    """
    counted = np.where(other, -1.0, ious)
    partners = match_greedily(counted, threshold)
    matched = partners >= 0
    unwanted = np.zeros(len(ious), bool)
    free = np.ones(ious.shape[1], bool)
    for i in np.flatnonzero(~matched):
        usable = np.where(other & free, ious[i], -1.0)
        if usable.size and usable.max() >= min(threshold, 1 - 1e-10):
            free[usable.size - 1 - int(usable[::-1].argmax())] = False
            matched[i] = unwanted[i] = True
        elif crowd[i] >= threshold:
            matched[i] = unwanted[i] = True
    return matched, unwanted


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
        return _without_references(predictions)

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


def _evaluate(
    pairs: Sequence[tuple[InstanceSet, InstanceSet]],
    kind: Literal["segm", "bbox"],
    areas: tuple[float, float],
    max_detections: int,
) -> AveragePrecision:
    from hotcoco import COCO, COCOeval

    cases = _checked(pairs)
    labels = sorted({int(v) for pair in cases for instances in pair for v in instances.labels})
    references = sum(len(reference) for _, reference in cases)
    predictions = sum(len(predicted) for predicted, _ in cases)
    if not references:
        return _without_references(predictions)
    images: list[dict[str, Any]] = []
    truth: list[dict[str, Any]] = []
    found: list[dict[str, Any]] = []
    for number, (predicted, reference) in enumerate(cases, start=1):
        height, width = _flat_size(reference.grid.shape)
        images.append({"id": number, "height": height, "width": width})
        for mask, label in zip(reference.masks, reference.labels, strict=True):
            truth.append(_annotation(mask, int(label), number, len(truth) + 1))
        if reference.ignore is not None and reference.ignore.area:
            truth += [
                _annotation(reference.ignore, label, number, len(truth) + 1 + k) | {"iscrowd": 1}
                for k, label in enumerate(labels)
            ]
        for mask, label, score in zip(predicted.masks, predicted.labels, predicted.scores, strict=True):
            entry = _annotation(mask, int(label), number, len(found) + 1)
            found.append(entry | {"score": float(score)})
    categories = [{"id": label, "name": str(label)} for label in labels]
    base = {"images": images, "categories": categories}
    evaluation = COCOeval(COCO(base | {"annotations": truth}), COCO(base | {"annotations": found}), kind)
    params = evaluation.params
    params.max_dets = [max_detections]
    ranges = _area_ranges(areas)
    params.area_rng = [list(limits) for limits in ranges.values()]
    params.area_rng_lbl = list(ranges)
    evaluation.evaluate()
    evaluation.accumulate()
    return _from_accumulated(evaluation.eval, labels, references, predictions)


def _from_accumulated(
    accumulated: Any, labels: list[int], references: int, predictions: int
) -> AveragePrecision:
    """Read hotcoco's arrays: precision ``(T, R, K, A, M)``, recall ``(T, K, A, M)``; -1 marks what has no
    value.
    """
    precision = np.asarray(accumulated["precision"])[..., -1]
    recall = np.asarray(accumulated["recall"])[..., -1]

    def mean(values: NDArray[np.float64]) -> float | None:
        return float(values[values > -1].mean()) if (values > -1).any() else None

    by_class = {label: mean(precision[:, :, k, 0]) for k, label in enumerate(labels)}
    return AveragePrecision(
        ap=mean(precision[..., 0]) or 0.0,
        ap50=mean(precision[0, ..., 0]) or 0.0,
        ap75=mean(precision[5, ..., 0]) or 0.0,
        ap_small=mean(precision[..., 1]),
        ap_medium=mean(precision[..., 2]),
        ap_large=mean(precision[..., 3]),
        ar=mean(recall[..., 0]) or 0.0,
        by_class=MappingProxyType({label: value for label, value in by_class.items() if value is not None}),
        references=references,
        predictions=predictions,
    )


def _without_references(predictions: int) -> AveragePrecision:
    value = float(predictions == 0)
    return AveragePrecision(
        ap=value, ap50=value, ap75=value, ap_small=None, ap_medium=None, ap_large=None, ar=value,
        by_class=MappingProxyType({}), references=0, predictions=predictions,
    )  # fmt: skip


def _checked(pairs: Pairs) -> list[tuple[InstanceSet, InstanceSet]]:
    cases = list(pairs)
    for predicted, reference in cases:
        if predicted.grid.shape != reference.grid.shape:
            raise ValueError(
                f"predicted instances lie on {predicted.grid}, reference instances on {reference.grid}"
            )
    return cases


def _area_ranges(areas: tuple[float, float]) -> dict[str, tuple[float, float]]:
    return {"all": (0.0, 1e15), "small": (0.0, areas[0]), "medium": areas, "large": (areas[1], 1e15)}


def _share(mask: Mask, ignore: Mask | None) -> float:
    from clearmargin.metrics.matching import ignored_share

    return ignored_share(mask, ignore)


def _flat_size(shape: tuple[int, ...]) -> tuple[int, int]:
    """Return the (height, width) of the image whose columns are the grid's rows, one after the other."""
    return shape[-1], int(np.prod(shape[:-1]))


def _annotation(mask: Mask, label: int, image: int, number: int) -> dict[str, Any]:
    height, width = _flat_size(mask.shape)
    entry: dict[str, Any] = {
        "id": number,
        "image_id": image,
        "category_id": label,
        "segmentation": {"size": [height, width], "counts": flat_runs(mask)},
        "area": float(mask.area),
        "iscrowd": 0,
    }
    if len(mask.shape) == 2:
        (y, x), (bottom, right) = mask.box
        entry["bbox"] = [float(x), float(y), float(right - x), float(bottom - y)]
    return entry


def flat_runs(mask: Mask) -> list[int]:
    """Return the run lengths of the flattened dense mask, zeros first, from the crop alone.

    >>> flat_runs(Mask.from_dense([[0, 1, 1], [1, 0, 0]]))
    [1, 3, 2]
    """
    size = int(np.prod(mask.shape))
    if not mask.area:
        return [size]
    lines = mask.crop.reshape(-1, mask.crop.shape[-1])
    walls = np.diff(np.pad(lines, ((0, 0), (1, 1))).astype(np.int8), axis=1)
    line, start = np.nonzero(walls == 1)
    stop = np.nonzero(walls == -1)[1]
    lead = np.unravel_index(line, mask.crop.shape[:-1])
    base = np.ravel_multi_index(
        (*(i + o for i, o in zip(lead, mask.origin[:-1], strict=True)), np.full(len(line), mask.origin[-1])),
        mask.shape,
    )
    starts, stops = base + start, base + stop
    apart = np.flatnonzero(starts[1:] != stops[:-1])
    edges = np.stack([starts[np.r_[0, apart + 1]], stops[np.r_[apart, len(stops) - 1]]], axis=1).ravel()
    runs = np.diff(np.concatenate([[0], edges, [size]]))
    return [int(n) for n in (runs[:-1] if runs[-1] == 0 else runs)]

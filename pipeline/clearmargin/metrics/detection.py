"""COCO average precision of masks and boxes, by hotcoco."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from clearmargin.core import InstanceSet, Mask

__all__ = [
    "COCO_AREAS",
    "AveragePrecision",
    "box_average_precision",
    "mask_average_precision",
]

Pairs = Iterable[tuple[InstanceSet, InstanceSet]]

COCO_AREAS = (32.0**2, 96.0**2)
"""COCO's limits between small, medium and large objects, in elements."""


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


def _evaluate(
    pairs: Sequence[tuple[InstanceSet, InstanceSet]],
    kind: Literal["segm", "bbox"],
    areas: tuple[float, float],
    max_detections: int,
) -> AveragePrecision:
    from hotcoco import COCO, COCOeval

    cases = checked(pairs)
    labels = sorted({int(v) for pair in cases for instances in pair for v in instances.labels})
    references = sum(len(reference) for _, reference in cases)
    predictions = sum(len(predicted) for predicted, _ in cases)
    if not references:
        return without_references(predictions)
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
            if kind == "bbox":  # a detection's size is its box's, a reference's the mask's, as in pycocotools
                entry["area"] = entry["bbox"][2] * entry["bbox"][3]
            found.append(entry | {"score": float(score)})
    categories = [{"id": label, "name": str(label)} for label in labels]
    base = {"images": images, "categories": categories}
    evaluation = COCOeval(COCO(base | {"annotations": truth}), COCO(base | {"annotations": found}), kind)
    params = evaluation.params
    params.max_dets = [max_detections]
    ranges = area_ranges(areas)
    params.area_rng = [list(limits) for limits in ranges.values()]
    params.area_rng_lbl = list(ranges)
    evaluation.evaluate()
    evaluation.accumulate()
    return _from_accumulated(evaluation.eval, labels, references, predictions)


def _from_accumulated(
    accumulated: Any, labels: list[int], references: int, predictions: int
) -> AveragePrecision:
    """Read hotcoco's arrays: precision ``(T, R, K, A, M)``, recall ``(T, K, A, M)``; -1 marks what has no value."""
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


def without_references(predictions: int) -> AveragePrecision:
    value = float(predictions == 0)
    return AveragePrecision(
        ap=value, ap50=value, ap75=value, ap_small=None, ap_medium=None, ap_large=None, ar=value,
        by_class=MappingProxyType({}), references=0, predictions=predictions,
    )  # fmt: skip


def checked(pairs: Pairs) -> list[tuple[InstanceSet, InstanceSet]]:
    cases = list(pairs)
    for predicted, reference in cases:
        if predicted.grid.shape != reference.grid.shape:
            raise ValueError(
                f"predicted instances lie on {predicted.grid}, reference instances on {reference.grid}"
            )
    return cases


def area_ranges(areas: tuple[float, float]) -> dict[str, tuple[float, float]]:
    return {"all": (0.0, 1e15), "small": (0.0, areas[0]), "medium": areas, "large": (areas[1], 1e15)}


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


def flat_runs(mask: Mask) -> bytes:
    """Return COCO's compressed run lengths of the flattened dense mask, from the crop alone.

    >>> flat_runs(Mask.from_dense([[0, 1, 1], [1, 0, 0]]))  # 1 zero, 3 ones, 2 zeros
    b'132'
    """
    from clearmargin.metrics.coco_kernels import run_length_bytes

    volume = mask.crop if mask.crop.ndim == 3 else mask.crop[None]
    z, y, x = mask.origin if mask.crop.ndim == 3 else (0, *mask.origin)
    depth, height, width = mask.shape if mask.crop.ndim == 3 else (1, *mask.shape)
    return run_length_bytes(volume, (z, y, x), (depth, height, width)).tobytes()

"""Which predicted instance is which reference instance."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from clearmargin.core import InstanceSet, Mask
from clearmargin.core.reprs import short_repr

__all__ = [
    "Matches",
    "ignored_share",
    "iou_matrix",
    "mask_iou",
    "match_greedily",
    "match_instances",
    "match_optimally",
    "neutral_share",
]


@short_repr
@dataclass(frozen=True, kw_only=True, eq=False)
class Matches:
    """A one-to-one matching of two sets of instances.

    Attributes:
        pairs: ``(k, 2)`` int64, positions of the predicted and the reference instance.
        ious: ``(k,)`` float64, each pair's IoU.
        false_positives: Positions of the predictions without a partner, int64.
        false_negatives: Positions of the references without a partner, int64; one that lies in the ignored region as a
            whole is not missed.
        ignored: Positions of the predictions without a partner that lie in the reference's ignored region, or in a
            crowd of their class, by half of their area or more: neither right nor wrong.
    """

    pairs: NDArray[np.int64]
    ious: NDArray[np.float64]
    false_positives: NDArray[np.int64]
    false_negatives: NDArray[np.int64]
    ignored: NDArray[np.int64]


def match_instances(predicted: InstanceSet, reference: InstanceSet, *, iou_threshold: float = 0.5) -> Matches:
    """Match as COCO does: predictions in order of score, each to the best free reference of its label.

    A pair needs an IoU of at least ``iou_threshold`` outside the reference's ignored region. Ties in score
    keep the order of the set. Either set may be empty.

    Raises:
        ValueError: The sets lie on grids of different shape, or the threshold is not in (0, 1].

    Source: Lin et al., "Microsoft COCO", ECCV 2014, and pycocotools' evaluation.
    """
    ious = _comparable_ious(predicted, reference, iou_threshold)
    order = np.argsort(-predicted.scores, kind="stable")
    partners = match_greedily(ious[order], iou_threshold)
    pairs = [(int(i), int(j)) for i, j in zip(order, partners, strict=True) if j >= 0]
    shares = [
        neutral_share(m, int(v), reference) for m, v in zip(predicted.masks, predicted.labels, strict=True)
    ]
    return _matches(reference, pairs, ious, np.array(shares) >= 0.5)


def match_optimally(
    predicted: InstanceSet, reference: InstanceSet, *, iou_threshold: float = 0.5, strict: bool = False
) -> Matches:
    """Match so that the sum of IoU over pairs at or above ``iou_threshold`` is the largest possible.

    Scores play no part. ``strict`` asks for an IoU above the threshold, as panoptic quality does at 0.5, and for
    more than half of a prediction in all that is not measured of its class together. IoU is taken outside the
    reference's ignored region. Either set may be empty.

    Raises:
        ValueError: The sets lie on grids of different shape, or the threshold is not in (0, 1].

    Source: Kuhn, "The Hungarian method", 1955, by ``scipy.optimize.linear_sum_assignment``.
    """
    from scipy.optimize import linear_sum_assignment

    ious = _comparable_ious(predicted, reference, iou_threshold)
    allowed = ious > iou_threshold if strict else ious >= iou_threshold
    rows, columns = linear_sum_assignment(np.where(allowed, ious, 0.0), maximize=True)
    pairs = [(int(i), int(j)) for i, j in zip(rows, columns, strict=True) if allowed[i, j]]
    each = list(zip(predicted.masks, (int(v) for v in predicted.labels), strict=True))
    if strict:
        regions = {label: reference.unmeasured(label) for _, label in each}
        neutral = np.array([ignored_share(mask, regions[label]) for mask, label in each]) > 0.5
    else:
        neutral = np.array([neutral_share(mask, label, reference) for mask, label in each]) >= 0.5
    return _matches(reference, pairs, ious, neutral)


def match_greedily(ious: NDArray[np.float64], threshold: float) -> NDArray[np.int64]:
    """Return each row's column by COCO's rule, -1 for none; rows are ``(P, R)`` predictions in order of score.

    Of equal IoU the later reference wins, as in pycocotools.
    """
    partners = np.full(len(ious), -1, np.int64)
    free = np.ones(ious.shape[1], bool)
    for i, row in enumerate(ious):
        usable = np.where(free, row, -1.0)
        if usable.size and usable.max() >= min(threshold, 1 - 1e-10):
            j = usable.size - 1 - int(usable[::-1].argmax())
            partners[i] = j
            free[j] = False
    return partners


def iou_matrix(
    predicted: Sequence[Mask], reference: Sequence[Mask], pairs: NDArray[np.bool_] | None = None
) -> NDArray[np.float64]:
    """Return the IoU of every predicted with every reference mask, ``(P, R)`` float64.

    Two empty masks have 0, as has what ``pairs`` (``(P, R)`` bool) leaves out. Boxes are compared first, so
    that only masks that can meet are looked at.
    """
    ious = np.zeros((len(predicted), len(reference)))
    if not ious.size:
        return ious
    ours, theirs = (np.array([m.box for m in masks]) for masks in (predicted, reference))
    meet = np.all((ours[:, None, 0] < theirs[:, 1]) & (theirs[:, 0] < ours[:, None, 1]), axis=-1)
    for i, j in zip(*np.nonzero(meet if pairs is None else meet & pairs), strict=True):
        ious[i, j] = mask_iou(predicted[i], reference[j])
    return ious


def mask_iou(predicted: Mask, reference: Mask) -> float:
    """Return intersection over union of two masks of one grid; 0 where they do not meet, both empty included."""
    from clearmargin.metrics.coco_kernels import common_count

    common = common_count(*_spatial(predicted), *_spatial(reference))
    return common / (predicted.area + reference.area - common) if common else 0.0


def _spatial(mask: Mask) -> tuple[NDArray[np.bool_], tuple[int, int, int]]:
    """Return crop and origin with three axes."""
    if mask.crop.ndim == 2:
        return mask.crop[None], (0, mask.origin[0], mask.origin[1])
    return mask.crop, (mask.origin[0], mask.origin[1], mask.origin[2])


def ignored_share(mask: Mask, ignore: Mask | None) -> float:
    """Return the share of ``mask`` that lies in ``ignore``; 0 for an empty mask or no ignored region."""
    if ignore is None or not mask.area:
        return 0.0
    return mask.intersection(ignore) / mask.area


def neutral_share(mask: Mask, label: int, reference: InstanceSet) -> float:
    """Return the largest share of a prediction in the ignored region or in one crowd of its class; 0 for none."""
    crowds = [crowd.mask for crowd in reference.crowds if crowd.label == label]
    return max((ignored_share(mask, region) for region in (reference.ignore, *crowds)), default=0.0)


def _comparable_ious(predicted: InstanceSet, reference: InstanceSet, threshold: float) -> NDArray[np.float64]:
    """Return the IoU matrix with 0 where labels differ, and refuse what cannot be compared."""
    if predicted.grid.shape != reference.grid.shape:
        raise ValueError(
            f"predicted instances lie on {predicted.grid}, reference instances on {reference.grid}"
        )
    if not 0 < threshold <= 1:
        raise ValueError(f"an IoU threshold lies in (0, 1], not {threshold}")
    ours, theirs = (_outside(masks, reference.ignore) for masks in (predicted.masks, reference.masks))
    return iou_matrix(ours, theirs, predicted.labels[:, None] == reference.labels)


def _outside(masks: Sequence[Mask], ignore: Mask | None) -> Sequence[Mask]:
    """Return the masks without what lies in ``ignore``."""
    if ignore is None:
        return masks
    return [
        Mask.from_crop(m.crop & ~ignore.within(m.slices), m.origin, m.shape) if m.overlaps(ignore) else m
        for m in masks
    ]


def _matches(
    reference: InstanceSet,
    matches: list[tuple[int, int]],
    ious: NDArray[np.float64],
    neutral: NDArray[np.bool_],
) -> Matches:
    pairs = np.array(sorted(matches), np.int64).reshape(-1, 2)
    left = np.setdiff1d(np.arange(len(ious)), pairs[:, 0])
    skipped = neutral[left] if left.size else np.zeros(0, bool)
    unfound = np.setdiff1d(np.arange(len(reference)), pairs[:, 1])
    countable = [ignored_share(reference.masks[j], reference.ignore) < 1 for j in unfound]
    return Matches(
        pairs=pairs,
        ious=ious[pairs[:, 0], pairs[:, 1]],
        false_positives=left[~skipped],
        false_negatives=unfound[countable] if unfound.size else unfound,
        ignored=left[skipped],
    )

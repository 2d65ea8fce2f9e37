"""Which predicted instance is which reference instance."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from clearmargin.core import InstanceSet, Mask
from clearmargin.core.meeting import meeting
from clearmargin.core.reprs import short_repr

__all__ = [
    "Matches",
    "Overlaps",
    "ignored_share",
    "iou_matrix",
    "mask_iou",
    "mask_overlaps",
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


@short_repr
@dataclass(frozen=True, kw_only=True, eq=False)
class Overlaps:
    """The pairs of P predictions and R references that overlap: few, however many objects an image holds.

    Attributes:
        shape: ``(P, R)``.
        rows: ``(K,)`` int64, the predictions, ascending.
        columns: ``(K,)`` int64, the references, ascending for each prediction.
        ious: ``(K,)`` float64, above 0; all other pairs have 0.
    """

    shape: tuple[int, int]
    rows: NDArray[np.int64]
    columns: NDArray[np.int64]
    ious: NDArray[np.float64]

    @staticmethod
    def of(
        rows: NDArray[np.int64], columns: NDArray[np.int64], ious: NDArray[np.float64], shape: tuple[int, int]
    ) -> Overlaps:
        """Return those of the pairs, in any order and each at most once, whose IoU is above 0."""
        order = np.lexsort((columns, rows))
        order = order[ious[order] > 0]
        return Overlaps(shape=shape, rows=rows[order], columns=columns[order], ious=ious[order])

    @staticmethod
    def from_dense(table: NDArray[np.float64]) -> Overlaps:
        """Return the pairs of a table ``(P, R)`` that are above 0."""
        rows, columns = np.nonzero(table > 0)
        return Overlaps(
            shape=(len(table), table.shape[1]), rows=rows, columns=columns, ious=table[rows, columns]
        )

    def dense(self) -> NDArray[np.float64]:
        """Return the table ``(P, R)``."""
        table = np.zeros(self.shape)
        table[self.rows, self.columns] = self.ious
        return table

    def of_rows(self, rows: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return ``(len(rows) + 1,)`` where the pairs of each of ``rows`` start, and the positions of those pairs."""
        first, last = (np.searchsorted(self.rows, rows, side) for side in ("left", "right"))
        counts = last - first
        starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        return starts, np.arange(starts[-1]) + np.repeat(first - starts[:-1], counts)


def match_instances(predicted: InstanceSet, reference: InstanceSet, *, iou_threshold: float = 0.5) -> Matches:
    """Match as COCO does: predictions in order of score, each to the best free reference of its label.

    A pair needs an IoU of at least ``iou_threshold`` outside the reference's ignored region. Ties in score
    keep the order of the set. Either set may be empty.

    Raises:
        ValueError: The sets lie on grids of different shape, or the threshold is not in (0, 1].

    Source: Lin et al., "Microsoft COCO", ECCV 2014, and pycocotools' evaluation.
    """
    overlaps = _comparable_overlaps(predicted, reference, iou_threshold)
    order = np.argsort(-predicted.scores, kind="stable")
    partners = match_greedily(overlaps, order, iou_threshold)
    shares = [
        neutral_share(m, int(v), reference) for m, v in zip(predicted.masks, predicted.labels, strict=True)
    ]
    return _matches(reference, partners[partners >= 0], overlaps, np.array(shares) >= 0.5)


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
    overlaps = _comparable_overlaps(predicted, reference, iou_threshold)
    allowed = overlaps.ious > iou_threshold if strict else overlaps.ious >= iou_threshold
    pairs = _assigned(overlaps, np.flatnonzero(allowed))
    each = list(zip(predicted.masks, (int(v) for v in predicted.labels), strict=True))
    if strict:
        regions = {label: reference.unmeasured(label) for _, label in each}
        neutral = np.array([ignored_share(mask, regions[label]) for mask, label in each]) > 0.5
    else:
        neutral = np.array([neutral_share(mask, label, reference) for mask, label in each]) >= 0.5
    return _matches(reference, pairs, overlaps, neutral)


def _assigned(overlaps: Overlaps, allowed: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the pairs, positions in ``overlaps``, of the largest sum of IoU: each side at most once.

    Objects that no chain of allowed pairs joins are assigned apart, since a table of all of an image may not fit.
    """
    from scipy.optimize import linear_sum_assignment
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    if not len(allowed):
        return allowed
    total = sum(overlaps.shape)
    ends = (overlaps.rows[allowed], overlaps.columns[allowed] + overlaps.shape[0])
    _, parts = connected_components(
        coo_array((np.ones(len(allowed)), ends), shape=(total, total)), directed=False
    )
    part = parts[ends[0]]
    order = np.argsort(part, kind="stable")
    pairs = []
    for group in np.split(allowed[order], np.flatnonzero(np.diff(part[order])) + 1):
        if len(group) == 1:
            pairs.append(group)
            continue
        (rows, i), (columns, j) = (
            np.unique(side[group], return_inverse=True) for side in (overlaps.rows, overlaps.columns)
        )
        table, position = np.zeros((len(rows), len(columns))), np.full((len(rows), len(columns)), -1)
        table[i, j], position[i, j] = overlaps.ious[group], group
        assigned = position[linear_sum_assignment(table, maximize=True)]
        pairs.append(assigned[assigned >= 0])
    return np.sort(np.concatenate(pairs))


def match_greedily(overlaps: Overlaps, order: NDArray[np.int64], threshold: float) -> NDArray[np.int64]:
    """Return each prediction's pair by COCO's rule, a position in ``overlaps``, -1 for none; ``(P,)``.

    Predictions choose in ``order``. Of equal IoU the later reference wins, as in pycocotools.
    """
    partners = np.full(overlaps.shape[0], -1, np.int64)
    free = np.ones(overlaps.shape[1], bool)
    starts, pairs = overlaps.of_rows(order)
    least = min(threshold, 1 - 1e-10)
    columns, ious = overlaps.columns.tolist(), overlaps.ious.tolist()
    for i, first, last in zip(order.tolist(), starts[:-1].tolist(), starts[1:].tolist(), strict=True):
        best = least
        for k in pairs[first:last].tolist():
            if ious[k] >= best and free[columns[k]]:
                best, partners[i] = ious[k], k
        if partners[i] >= 0:
            free[columns[partners[i]]] = False
    return partners


def iou_matrix(
    predicted: Sequence[Mask], reference: Sequence[Mask], pairs: NDArray[np.bool_] | None = None
) -> NDArray[np.float64]:
    """Return the IoU of every predicted with every reference mask, ``(P, R)`` float64.

    Two empty masks have 0, as has what ``pairs`` (``(P, R)`` bool) leaves out. Boxes are compared first, so
    that only masks that can meet are looked at.
    """
    rows, columns = meeting(predicted, reference)
    if pairs is not None:
        asked = pairs[rows, columns]
        rows, columns = rows[asked], columns[asked]
    return _ious_of(predicted, reference, rows, columns).dense()


def mask_overlaps(predicted: InstanceSet, reference: InstanceSet) -> Overlaps:
    """Return the pairs of one label that overlap, with their IoU."""
    rows, columns = meeting(predicted.masks, reference.masks)
    alike = predicted.labels[rows] == reference.labels[columns]
    return _ious_of(predicted.masks, reference.masks, rows[alike], columns[alike])


def _ious_of(
    predicted: Sequence[Mask], reference: Sequence[Mask], rows: NDArray[np.int64], columns: NDArray[np.int64]
) -> Overlaps:
    each = zip(rows.tolist(), columns.tolist(), strict=True)
    ious = np.array([mask_iou(predicted[i], reference[j]) for i, j in each], np.float64)
    return Overlaps.of(rows, columns, ious, (len(predicted), len(reference)))


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


def _comparable_overlaps(predicted: InstanceSet, reference: InstanceSet, threshold: float) -> Overlaps:
    """Return the overlaps of pairs of one label, and refuse what cannot be compared."""
    if predicted.grid.shape != reference.grid.shape:
        raise ValueError(
            f"predicted instances lie on {predicted.grid}, reference instances on {reference.grid}"
        )
    if not 0 < threshold <= 1:
        raise ValueError(f"an IoU threshold lies in (0, 1], not {threshold}")
    if reference.ignore is not None:
        predicted, reference = (
            replace(side, masks=tuple(_outside(side.masks, reference.ignore)), landmarks=None)
            for side in (predicted, reference)
        )
    return mask_overlaps(predicted, reference)


def _outside(masks: Sequence[Mask], ignore: Mask) -> list[Mask]:
    """Return the masks without what lies in ``ignore``."""
    return [
        Mask.from_crop(m.crop & ~ignore.within(m.slices), m.origin, m.shape) if m.overlaps(ignore) else m
        for m in masks
    ]


def _matches(
    reference: InstanceSet, matched: NDArray[np.int64], overlaps: Overlaps, neutral: NDArray[np.bool_]
) -> Matches:
    """Return the matching of pairs of ``overlaps``, and what each other object is."""
    matched = np.sort(matched)  # by prediction
    pairs = np.stack([overlaps.rows[matched], overlaps.columns[matched]], axis=1)
    left = np.setdiff1d(np.arange(overlaps.shape[0]), pairs[:, 0])
    skipped = neutral[left] if left.size else np.zeros(0, bool)
    unfound = np.setdiff1d(np.arange(len(reference)), pairs[:, 1])
    countable = [ignored_share(reference.masks[j], reference.ignore) < 1 for j in unfound]
    return Matches(
        pairs=pairs,
        ious=overlaps.ious[matched],
        false_positives=left[~skipped],
        false_negatives=unfound[countable] if unfound.size else unfound,
        ignored=left[skipped],
    )

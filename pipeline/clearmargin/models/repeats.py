"""Second looks at one object, and looks at a part of it, which a network may return beside the first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from clearmargin.core import InstanceSet, Mask
from clearmargin.metrics.matching import iou_matrix

__all__ = ["Suppression", "first_looks", "without_repeats"]


@dataclass(frozen=True, kw_only=True)
class Suppression:
    """Which masks show what better masks of their label show already.

    Attributes:
        iou: A mask goes if its IoU with one better mask is above this: a second look at one object.
        share: A mask goes if a larger share of it lies in better masks, all together: a part of an object, or several
            objects seen as one. 1 keeps all of them.
        nested: Labels whose objects lie in one another: ``share`` is not asked of them.
    """

    iou: float
    share: float = 1.0
    nested: frozenset[int] = frozenset()


def without_repeats(instances: InstanceSet, rule: Suppression) -> InstanceSet:
    """Return the instances, best score first, less those that show what better ones of their label show.

    What is left out suppresses nothing, and what scores less never decides over what scores more. Objects may still
    overlap, and those of two labels nest.
    """
    return instances.select(first_looks(instances.masks, instances.labels, instances.scores, rule))


def first_looks(
    masks: Sequence[Mask], labels: NDArray[np.int64], scores: NDArray[np.float32], rule: Suppression
) -> NDArray[np.int64]:
    """Return the positions of ``without_repeats``, for N masks with ``(N,)`` labels and scores."""
    if not masks:
        return np.zeros(0, np.int64)
    order = np.argsort(-scores, kind="stable")
    ious = iou_matrix(masks, masks, labels[:, None] == labels)
    shown = _Shown(masks)
    first: list[int] = []
    for i in order:
        label = int(labels[i])
        repeats = bool(first) and ious[i, first].max() > rule.iou
        if repeats or (label not in rule.nested and shown.share(masks[i], label) > rule.share):
            continue
        first.append(int(i))
        shown.add(masks[i], label)
    return np.array(first, np.int64)


class _Shown:
    """What the masks so far show, by label, on the part of the grid that any mask reaches."""

    def __init__(self, masks: Sequence[Mask]) -> None:
        lows, highs = (np.array([mask.box[end] for mask in masks], np.int64) for end in (0, 1))
        self._low = lows.min(axis=0)
        self._size = tuple(highs.max(axis=0) - self._low)
        self._by_label: dict[int, NDArray[np.bool_]] = {}

    def share(self, mask: Mask, label: int) -> float:
        """Return the share of a mask that is shown already; 0 for an empty one."""
        if label not in self._by_label or not mask.area:
            return 0.0
        return float(self._by_label[label][self._place(mask)][mask.crop].sum() / mask.area)

    def add(self, mask: Mask, label: int) -> None:
        """Show a mask."""
        if label not in self._by_label:
            self._by_label[label] = np.zeros(self._size, bool)
        self._by_label[label][self._place(mask)] |= mask.crop

    def _place(self, mask: Mask) -> tuple[slice, ...]:
        return tuple(
            slice(s.start - low, s.stop - low) for s, low in zip(mask.slices, self._low.tolist(), strict=True)
        )

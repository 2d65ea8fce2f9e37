"""Which masks can meet: by their boxes, without a look at every pair."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from clearmargin.core.mask import Mask

__all__ = ["meeting", "meeting_boxes"]

_FEW = 2**14  # pairs of boxes that are compared outright
_AT_ONCE = 2**20  # candidates that are looked at in one go


def meeting(ours: Sequence[Mask], theirs: Sequence[Mask]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return positions ``(K,)`` in both sequences of masks whose boxes share an element, all masks of one grid.

    Pairs come in order of ``ours``, then of ``theirs``; an empty mask meets none. Time and memory go with the masks
    and the pairs, not with the product of both numbers.

    Examples:
        >>> square, dot = Mask.from_dense([[1, 1], [1, 1]]), Mask.from_dense([[0, 0], [0, 1]])
        >>> [positions.tolist() for positions in meeting([square, dot], [dot])]
        [[0, 1], [0, 0]]
    """
    return meeting_boxes(_boxes(ours), _boxes(theirs))


def meeting_boxes(
    ours: NDArray[np.int64], theirs: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return `meeting` of boxes ``(N, 2, ndim)``, starts and stops; a box without an element meets none.

    Boxes are put into the cells of a lattice whose step is their mean extent, and compared with those of the same
    cell. A pair that shares several cells counts in the one that holds the first corner of what both share.
    """
    if len(ours) * len(theirs) <= _FEW:
        meet = np.all((ours[:, None, 0] < theirs[:, 1]) & (theirs[:, 0] < ours[:, None, 1]), axis=-1)
        meet &= np.all(ours[:, 0] < ours[:, 1], axis=1)[:, None] & np.all(theirs[:, 0] < theirs[:, 1], axis=1)
        rows, columns = np.nonzero(meet)
        return rows, columns
    every = np.concatenate([ours, theirs])
    every = every[np.all(every[:, 0] < every[:, 1], axis=1)]
    if not len(every):
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    step = np.maximum(np.ceil((every[:, 1] - every[:, 0]).mean(axis=0)), 1).astype(np.int64)
    cells = tuple(int(n) for n in every[:, 1].max(axis=0) // step + 1)
    (first_cells, first), (second_cells, second) = (_in_cells(boxes, step, cells) for boxes in (ours, theirs))
    low, high = (np.searchsorted(second_cells, first_cells, side) for side in ("left", "right"))
    counts = high - low
    pairs: list[tuple[NDArray[np.int64], NDArray[np.int64]]] = []
    ends = np.cumsum(counts)
    start = 0
    while start < len(counts):
        before = int(ends[start - 1]) if start else 0
        stop = max(start + 1, int(np.searchsorted(ends, before + _AT_ONCE, "right")))
        span = counts[start:stop]
        at = np.repeat(np.arange(start, stop), span)
        i = first[at]
        j = second[np.arange(len(at)) - np.repeat(np.cumsum(span) - span, span) + low[at]]
        corner = np.maximum(ours[i, 0], theirs[j, 0])
        meet = np.all(corner < np.minimum(ours[i, 1], theirs[j, 1]), axis=1)
        meet &= np.ravel_multi_index(tuple((corner // step).T), cells) == first_cells[at]
        pairs.append((i[meet], j[meet]))
        start = stop
    none = (np.zeros(0, np.int64),) * 2
    i, j = (np.concatenate(sides) for sides in zip(none, *pairs, strict=True))
    order = np.lexsort((j, i))
    return i[order], j[order]


def _boxes(masks: Sequence[Mask]) -> NDArray[np.int64]:
    if not masks:
        return np.zeros((0, 2, 1), np.int64)
    return np.array([mask.box for mask in masks], np.int64)


def _in_cells(
    boxes: NDArray[np.int64], step: NDArray[np.int64], cells: tuple[int, ...]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the cells that boxes reach, ascending, and beside each the position of the box."""
    held = np.flatnonzero(np.all(boxes[:, 0] < boxes[:, 1], axis=1))
    low, high = boxes[held, 0] // step, (boxes[held, 1] - 1) // step
    spans = high - low + 1
    counts = spans.prod(axis=1)
    at = np.repeat(np.arange(len(held)), counts)
    rest = np.arange(len(at)) - np.repeat(np.cumsum(counts) - counts, counts)
    index = np.zeros((len(at), boxes.shape[2]), np.int64)
    for axis in reversed(range(boxes.shape[2])):
        index[:, axis] = low[at, axis] + rest % spans[at, axis]
        rest = rest // spans[at, axis]
    numbers = np.asarray(np.ravel_multi_index(tuple(index.T), cells), np.int64)
    order = np.argsort(numbers, kind="stable")
    return numbers[order], held[at][order]

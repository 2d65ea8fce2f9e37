"""What COCO's evaluation does for each mask and each image: compiled."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from clearmargin.compiled import compiled

__all__ = ["coco_matches", "common_count"]


@compiled
def common_count(
    first: NDArray[np.bool_],
    first_origin: tuple[int, int, int],
    second: NDArray[np.bool_],
    second_origin: tuple[int, int, int],
) -> int:
    """Return how many elements two crops ``(Z, Y, X)`` of one grid have in common."""
    z0, z1 = _meeting(first_origin[0], first.shape[0], second_origin[0], second.shape[0])
    y0, y1 = _meeting(first_origin[1], first.shape[1], second_origin[1], second.shape[1])
    x0, x1 = _meeting(first_origin[2], first.shape[2], second_origin[2], second.shape[2])
    if x1 <= x0:
        return 0
    count = 0
    for z in range(z0, z1):
        for y in range(y0, y1):
            a = first[z - first_origin[0], y - first_origin[1], x0 - first_origin[2] : x1 - first_origin[2]]
            b = second[
                z - second_origin[0], y - second_origin[1], x0 - second_origin[2] : x1 - second_origin[2]
            ]
            for x in range(len(a)):
                count += a[x] & b[x]
    return count


@compiled
def _meeting(start: int, extent: int, other_start: int, other_extent: int) -> tuple[int, int]:
    """Return where two intervals meet, first and one past the last; the second is not the larger where nowhere."""
    return max(start, other_start), min(start + extent, other_start + other_extent)


@compiled
def coco_matches(
    starts: NDArray[np.int64],
    columns: NDArray[np.int64],
    ious: NDArray[np.float64],
    crowds: NDArray[np.float64],
    uncounted: NDArray[np.bool_],
    outside: NDArray[np.bool_],
    thresholds: NDArray[np.float64],
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Match one image's predictions of one class, in order of score, at each threshold, by COCO's rule.

    Args:
        starts: ``(D + 1,)`` where the overlaps of each prediction start in the next two.
        columns: ``(K,)`` references, ascending for each prediction.
        ious: ``(K,)`` with them; what overlaps nothing matches nothing.
        crowds: ``(D, C)`` share of each prediction in each of C crowds, which take any number of predictions.
        uncounted: ``(A, G)`` references outside each range of sizes: taken, as crowds are, only by what finds no
            other.
        outside: ``(A, D)`` predictions outside each range: not false where they match nothing.
        thresholds: ``(T,)``.

    Returns:
        ``(A, T, D)`` whether a prediction matches, and ``(A, T, D)`` whether it does not count.

    Source: pycocotools, ``COCOeval.evaluateImg``.
    """
    ranges, total = outside.shape
    references = uncounted.shape[1]
    matched = np.zeros((ranges, len(thresholds), total), np.bool_)
    ignored = np.zeros((ranges, len(thresholds), total), np.bool_)
    for a in range(ranges):
        for t in range(len(thresholds)):
            free = np.ones(references, np.bool_)
            for d in range(total):
                for last in (False, True):
                    best = min(thresholds[t], 1 - 1e-10)
                    partner = -1
                    for k in range(starts[d], starts[d + 1]):
                        g = columns[k]
                        if uncounted[a, g] == last and free[g] and ious[k] >= best:
                            best = ious[k]
                            partner = g
                    if last:
                        for c in range(crowds.shape[1]):
                            if crowds[d, c] >= best:
                                best = crowds[d, c]
                                partner = references
                    if partner >= 0:
                        if partner < references:
                            free[partner] = False
                        matched[a, t, d] = True
                        ignored[a, t, d] = last
                        break
                if not matched[a, t, d]:
                    ignored[a, t, d] = outside[a, d]
    return matched, ignored

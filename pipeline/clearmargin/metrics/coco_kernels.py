"""What COCO's evaluation does for each mask and each image: compiled."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from clearmargin.compiled import compiled

__all__ = ["coco_matches", "common_count", "run_length_bytes"]


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
def run_length_bytes(
    crop: NDArray[np.bool_], origin: tuple[int, int, int], shape: tuple[int, int, int]
) -> NDArray[np.uint8]:
    """Return the COCO-compressed run lengths of the flattened dense mask, from its crop ``(Z, Y, X)`` alone.

    Source: the variable-length code of pycocotools, ``common/maskApi.c`` (``rleToString``).
    """
    runs = np.empty(2 * crop.size + 3, np.int64)
    n = 0
    last = 0  # end of what is written so far
    for z in range(crop.shape[0]):
        for y in range(crop.shape[1]):
            base = ((origin[0] + z) * shape[1] + origin[1] + y) * shape[2] + origin[2]
            held = False
            start = 0
            for x in range(crop.shape[2] + 1):
                now = x < crop.shape[2] and crop[z, y, x]
                if now and not held:
                    start = base + x
                elif held and not now:
                    if n and start == last:  # goes on from the row above
                        runs[n - 1] += base + x - start
                    else:
                        runs[n] = start - last
                        runs[n + 1] = base + x - start
                        n += 2
                    last = base + x
                held = now
    size = shape[0] * shape[1] * shape[2]
    if last < size or n == 0:
        runs[n] = size - last
        n += 1
    out = np.empty(10 * n, np.uint8)
    length = 0
    for i in range(n):
        value = runs[i] - (runs[i - 2] if i > 2 else 0)
        more = True
        while more:
            byte = value & 0x1F
            value >>= 5
            more = value != -1 if byte & 0x10 else value != 0
            out[length] = (byte | 0x20 if more else byte) + 48
            length += 1
    return out[:length]


@compiled
def coco_matches(
    ious: NDArray[np.float64],
    crowd: NDArray[np.float64],
    uncounted: NDArray[np.bool_],
    outside: NDArray[np.bool_],
    thresholds: NDArray[np.float64],
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Match one image's predictions of one class, in order of score, at each threshold, by COCO's rule.

    Args:
        ious: ``(D, G)``.
        crowd: ``(D,)`` share of each prediction in the ignored region, which takes any number of predictions.
        uncounted: ``(G,)`` references of another size: taken only by what finds no other.
        outside: ``(D,)`` predictions of another size: not false where they match nothing.
        thresholds: ``(T,)``.

    Returns:
        ``(T, D)`` whether a prediction matches, and ``(T, D)`` whether it does not count.
    """
    total, references = ious.shape
    matched = np.zeros((len(thresholds), total), np.bool_)
    ignored = np.zeros((len(thresholds), total), np.bool_)
    for t in range(len(thresholds)):
        free = np.ones(references, np.bool_)
        for d in range(total):
            for wanted in (False, True):
                best = min(thresholds[t], 1 - 1e-10)
                partner = -1
                for g in range(references):
                    if free[g] and uncounted[g] == wanted and ious[d, g] >= best:
                        best = ious[d, g]
                        partner = g
                if partner >= 0:
                    free[partner] = False
                    matched[t, d] = True
                    ignored[t, d] = wanted
                    break
            if not matched[t, d]:
                if crowd[d] >= min(thresholds[t], 1 - 1e-10):
                    matched[t, d] = True
                    ignored[t, d] = True
                else:
                    ignored[t, d] = outside[d]
    return matched, ignored

"""What reading COCO's masks does for each number in them: compiled."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from clearmargin.compiled import compiled

__all__ = ["box_of_runs", "outline_length", "runs_of_text", "unpack_runs"]

_MAX_SHIFT = 60


@compiled
def runs_of_text(text: NDArray[np.uint8]) -> tuple[NDArray[np.int64], bool]:
    """Return the counts of COCO's compressed run lengths ``(K,)``, and whether the text is whole.

    5 bits a character, from the third count on as differences.

    Source: pycocotools, ``common/maskApi.c``, ``rleFrString``.
    """
    counts = np.zeros(len(text), np.int64)
    known, position = 0, 0
    while position < len(text):
        value, shift, more = np.int64(0), 0, True
        while more:
            if position == len(text) or shift >= _MAX_SHIFT:
                return counts[:0], False
            digit = np.int64(text[position]) - 48
            value |= (digit & 0x1F) << shift
            more = (digit & 0x20) != 0
            position, shift = position + 1, shift + 5
            if not more and digit & 0x10:
                value |= np.int64(-1) << shift
        counts[known] = value + (counts[known - 2] if known > 2 else 0)
        known += 1
    return counts[:known], True


@compiled
def box_of_runs(counts: NDArray[np.int64], height: int, width: int) -> tuple[int, int, int, int]:
    """Return top, left, bottom and right, the last two exclusive, of column-major runs that start with zeros.

    All 0 if no pixel is held; the bottom is -1 if the runs do not add up to the picture.
    """
    total = height * width
    top, left, bottom, right = height, width, 0, 0
    at = 0
    for k in range(len(counts)):
        count = counts[k]
        if count < 0 or count > total - at:
            return 0, 0, -1, 0
        if k % 2 == 1 and count > 0:
            first, last = at // height, (at + count - 1) // height
            left, right = min(left, first), max(right, last + 1)
            if first == last:
                top, bottom = min(top, at - first * height), max(bottom, at + count - first * height)
            else:
                top, bottom = 0, height  # it ends one column at the bottom and begins the next at the top
        at += count
    if at != total:
        return 0, 0, -1, 0
    return (top, left, bottom, right) if right else (0, 0, 0, 0)


@compiled
def unpack_runs(counts: NDArray[np.int64], height: int, box: tuple[int, int, int, int]) -> NDArray[np.bool_]:
    """Return the crop of a box of `box_of_runs`, which holds all of the runs."""
    top, left, bottom, right = box
    crop = np.zeros((bottom - top, right - left), np.bool_)
    at = 0
    for k in range(len(counts)):
        if k % 2 == 1:
            x, y = at // height, at % height
            for _ in range(counts[k]):
                crop[y - top, x - left] = True
                y += 1
                if y == height:
                    x, y = x + 1, 0
        at += counts[k]
    return crop


@compiled
def outline_length(points: NDArray[np.float64]) -> float:
    """Return the pixels along a closed outline ``(N, 2)``; infinite if a coordinate is."""
    length = 0.0
    for k in range(len(points)):
        x, y = points[k]
        if not (np.isfinite(x) and np.isfinite(y)):
            return np.inf
        length += max(abs(x - points[k - 1, 0]), abs(y - points[k - 1, 1]), 1.0)
    return length

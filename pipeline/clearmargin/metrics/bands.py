"""Bands along the inside of a mask's edge: compiled."""

# ruff: noqa: PLR0912 -- what is compiled is written flat

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from clearmargin.metrics.compiled import compiled

__all__ = ["round_band", "square_band"]


def round_band(
    mask: NDArray[np.bool_], spacing: tuple[float, ...], width: float, *, edge: bool = True
) -> NDArray[np.bool_]:
    """Return the elements of ``mask`` within Euclidean distance ``width`` of an element it does not hold.

    Args:
        mask: ``(Z, Y, X)`` or ``(Y, X)``.
        spacing: Length of a step along each axis.
        width: In the same unit; a hair (1e-9 of it) is allowed for rounding.
        edge: Whether what lies outside the array counts as not held.
    """
    volume = np.ascontiguousarray(mask if mask.ndim == 3 else mask[None])
    steps = np.array(spacing if mask.ndim == 3 else (np.inf, *spacing), np.float64)
    reach = width * (1 + 1e-9)
    return _round_band(volume, steps, reach, edge, mask.ndim == 2).reshape(mask.shape)


def square_band(mask: NDArray[np.bool_], width: int) -> NDArray[np.bool_]:
    """Return the pixels of ``mask`` ``(Y, X)`` that ``width`` erosions by a 3 x 3 square remove.

    What lies outside the array counts as not held.
    """
    return _square_band(np.ascontiguousarray(mask), width)


@compiled
def _round_band(
    mask: NDArray[np.bool_], steps: NDArray[np.float64], reach: float, edge: bool, planar: bool
) -> NDArray[np.bool_]:
    """Exact by passes along x, y and z over squared distances, each cut off at ``reach``."""
    depth, height, width = mask.shape
    far = 1e30
    limit = reach * reach
    squared = np.empty((depth, height, width), np.float64)
    for z in range(depth):
        for y in range(height):
            gap = 0 if edge else width + height + depth + 1 << 20
            for x in range(width):
                gap = gap + 1 if mask[z, y, x] else 0
                squared[z, y, x] = gap
            gap = 0 if edge else width + height + depth + 1 << 20
            for x in range(width - 1, -1, -1):
                gap = gap + 1 if mask[z, y, x] else 0
                d = min(squared[z, y, x], gap) * steps[2]
                squared[z, y, x] = d * d if d * d <= limit else far
    most_y, most_z = int(reach / steps[1]), 0 if planar else int(reach / steps[0])
    line = np.empty(max(height, depth), np.float64)
    for z in range(depth):
        for x in range(width):
            for y in range(height):
                line[y] = squared[z, y, x]
            for y in range(height):
                if line[y] > 0:
                    squared[z, y, x] = _lowest(line, y, height, most_y, steps[1], edge)
    if not planar:
        for y in range(height):
            for x in range(width):
                for z in range(depth):
                    line[z] = squared[z, y, x]
                for z in range(depth):
                    if line[z] > 0:
                        squared[z, y, x] = _lowest(line, z, depth, most_z, steps[0], edge)
    out = np.empty((depth, height, width), np.bool_)
    for z in range(depth):
        for y in range(height):
            for x in range(width):
                out[z, y, x] = 0 < squared[z, y, x] <= limit
    return out


@compiled
def _lowest(line: NDArray[np.float64], at: int, n: int, most: int, step: float, edge: bool) -> float:
    """Return the least of ``line[k] + ((k - at) step)^2`` up to ``most`` away; outside the line it is 0 or
    far.
    """
    best = float(line[at])
    for k in range(1, most + 1):
        away = k * step * (k * step)
        if away >= best:
            break
        before = line[at - k] if at >= k else (0.0 if edge else 1e30)
        after = line[at + k] if at + k < n else (0.0 if edge else 1e30)
        best = min(best, before + away, after + away)
    return best


@compiled
def _square_band(mask: NDArray[np.bool_], width: int) -> NDArray[np.bool_]:
    """Keep what lies at chessboard distance ``width`` or less of a pixel not held: two passes of running
    counts.
    """
    height, length = mask.shape
    deep = np.zeros((height, length), np.bool_)
    for y in range(height):
        left = 0
        run = 0
        for x in range(length):  # deep: the whole row segment x - width .. x + width is held
            run = run + 1 if mask[y, x] else 0
            if run >= 2 * width + 1:
                deep[y, x - width] = True
        left += run
    out = mask.copy()
    for x in range(length):
        run = 0
        for y in range(height):
            run = run + 1 if deep[y, x] else 0
            if run >= 2 * width + 1:
                out[y - width, x] = False
    return out

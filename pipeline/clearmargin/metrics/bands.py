"""Bands along the inside of a mask's edge: compiled."""

# ruff: noqa: PLR0912 -- what is compiled is written flat

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from clearmargin.compiled import compiled
from clearmargin.core.slack import with_slack

__all__ = ["round_band", "square_band"]

_MOST_ROWS = 400  # rows in a ball from which measuring distances is cheaper than comparing rows


def round_band(
    mask: NDArray[np.bool_], spacing: tuple[float, ...], width: float, *, edge: bool = True
) -> NDArray[np.bool_]:
    """Return the elements of ``mask`` within Euclidean distance ``width`` of an element it does not hold.

    Args:
        mask: ``(Z, Y, X)`` or ``(Y, X)``.
        spacing: Length of a step along each axis.
        width: In the same unit (`with_slack`).
        edge: Whether what lies outside the array counts as not held.
    """
    volume = np.ascontiguousarray(mask if mask.ndim == 3 else mask[None])
    steps = spacing if mask.ndim == 3 else (2 * width, *spacing)  # one plane: the next would be out of reach
    reach = with_slack(width)
    most = [min(int(reach / step), n) for step, n in zip(steps, volume.shape, strict=True)]
    if (2 * most[0] + 1) * (2 * most[1] + 1) <= _MOST_ROWS and reach / steps[-1] < 254:
        band = _row_band(volume, _half_widths(steps, reach, most[0], most[1]), edge)
    else:
        band = _measured_band(volume, np.array(steps, np.float64), reach, edge, mask.ndim == 2)
    return band.reshape(mask.shape)


@lru_cache(maxsize=64)
def _half_widths(steps: tuple[float, ...], reach: float, most_z: int, most_y: int) -> NDArray[np.int64]:
    """Return ``(2 most_z + 1, 2 most_y + 1)`` how far along x the ball reaches in each row; -1 for not at all."""
    z, y = np.ogrid[-most_z : most_z + 1, -most_y : most_y + 1]
    left = reach**2 - (z * steps[0]) ** 2 - (y * steps[1]) ** 2
    return np.where(left < 0, -1, np.sqrt(np.maximum(left, 0)) / steps[2]).astype(np.int64)


def square_band(mask: NDArray[np.bool_], width: int) -> NDArray[np.bool_]:
    """Return the pixels of ``mask`` ``(Y, X)`` that ``width`` erosions by a 3 x 3 square remove.

    What lies outside the array counts as not held.
    """
    return _square_band(np.ascontiguousarray(mask), width)


@compiled
def _row_band(mask: NDArray[np.bool_], widths: NDArray[np.int64], edge: bool) -> NDArray[np.bool_]:
    """Compare each row around an element with how far along it the ball reaches: sixteen and more at a time."""
    depth, height, width = mask.shape
    most_z, most_y = widths.shape[0] // 2, widths.shape[1] // 2
    gaps = np.empty((depth, height, width), np.uint8)
    for z in range(depth):
        for y in range(height):
            row = gaps[z, y]
            gap = 0 if edge else 255
            for x in range(width):
                gap = min(gap + 1, 255) if mask[z, y, x] else 0
                row[x] = gap
            gap = 0 if edge else 255
            for x in range(width - 1, -1, -1):
                gap = min(gap + 1, 255) if mask[z, y, x] else 0
                row[x] = min(row[x], gap)
    near = np.zeros((depth, height, width), np.bool_)
    for z in range(depth):
        for y in range(height):
            out = near[z, y]
            for k in range(-most_z, most_z + 1):
                for j in range(-most_y, most_y + 1):
                    if widths[k + most_z, j + most_y] < 0:
                        continue
                    if z + k < 0 or z + k >= depth or y + j < 0 or y + j >= height:
                        if edge:
                            out[:] = True
                        continue
                    half = np.uint8(widths[k + most_z, j + most_y])
                    row = gaps[z + k, y + j]
                    for x in range(width):
                        out[x] |= row[x] <= half
    return near & mask


@compiled
def _measured_band(
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
    """Return the least of ``line[k] + ((k - at) step)^2`` up to ``most`` away; outside the line it is 0 or far."""
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
    """Keep what lies at chessboard distance ``width`` or less of a pixel not held: two passes of running counts."""
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

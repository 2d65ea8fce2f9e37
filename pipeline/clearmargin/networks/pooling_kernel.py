"""The inner loops of reading regions on a CPU."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from clearmargin.compiled import compiled
from clearmargin.networks.pooling import SAMPLES

__all__ = ["pool_regions", "sample_points"]


@compiled
def pool_regions(
    tables: tuple[NDArray[np.float32], ...],
    extents: NDArray[np.int64],
    strides: NDArray[np.float32],
    rois: NDArray[np.float32],
    levels: NDArray[np.int64],
    size: int,
    pooled: NDArray[np.float32],
) -> None:
    """Write into ``pooled``, ``(R, C, size * size)``, the mean of each bin's samples.

    Args:
        tables: Of L maps, ``(B * h * w, C)`` each: the pixels of its images, one after the other.
        extents: ``(L, 2)``, each map's height and width.
        strides: ``(L,)``, network pixels per pixel of each map.
        rois: ``(R, 5)``: image, ``x1 y1 x2 y2`` in network pixels.
        levels: ``(R,)``, the map of each.
        size: Bins along each axis.
        pooled: ``(R, C, size * size)``.
    """
    taps = 2 * SAMPLES  # each sample lies between two pixels
    columns, rows = np.empty(size * taps, np.int64), np.empty(size * taps, np.int64)
    across, down = np.empty(size * taps, np.float32), np.empty(size * taps, np.float32)
    bins = np.empty((size * size, pooled.shape[1]), np.float32)
    for r in range(len(rois)):
        level = min(max(levels[r], 0), len(strides) - 1)  # a box that is not a number has none
        table, stride = tables[level], strides[level]
        height, width = extents[level]
        _find_taps(rois[r, 1] / stride, rois[r, 3] / stride, width, columns, across)
        _find_taps(rois[r, 2] / stride, rois[r, 4] / stride, height, rows, down)
        first = np.int64(rois[r, 0]) * height * width
        for b in range(size * size):
            y, x = b // size * taps, b % size * taps
            sums = bins[b]
            sums[:] = 0
            for i in range(y, y + taps):
                row = first + rows[i] * width
                # four neighbours at once: a pixel's channels are read and added to as vectors
                p0, p1 = table[row + columns[x]], table[row + columns[x + 1]]
                p2, p3 = table[row + columns[x + 2]], table[row + columns[x + 3]]
                w0, w1 = down[i] * across[x], down[i] * across[x + 1]
                w2, w3 = down[i] * across[x + 2], down[i] * across[x + 3]
                for c in range(len(sums)):
                    sums[c] += w0 * p0[c] + w1 * p1[c] + w2 * p2[c] + w3 * p3[c]
        for c in range(pooled.shape[1]):
            for b in range(size * size):
                pooled[r, c, b] = bins[b, c]


@compiled
def sample_points(
    table: NDArray[np.float32], width: int, points: NDArray[np.float32], sampled: NDArray[np.float32]
) -> None:
    """Write a map's bilinear values at points into ``sampled``, ``(R, P, C)``.

    Beyond the outermost centres values stay as they are there. What is not a number stays none.

    Args:
        table: ``(h * w, C)``, the map's pixels, row by row.
        width: Width of the map.
        points: ``(R, P, 2)``, ``x y`` in the map's pixels; pixel k covers [k, k + 1).
        sampled: ``(R, P, C)``.
    """
    height = len(table) // width
    for r in range(len(points)):
        for p in range(points.shape[1]):
            x0, x1, right = _between(points[r, p, 0], width)
            y0, y1, below = _between(points[r, p, 1], height)
            p0, p1 = table[y0 * width + x0], table[y0 * width + x1]
            p2, p3 = table[y1 * width + x0], table[y1 * width + x1]
            w0, w1 = (1 - below) * (1 - right), (1 - below) * right
            w2, w3 = below * (1 - right), below * right
            values = sampled[r, p]
            for c in range(len(values)):
                values[c] = w0 * p0[c] + w1 * p1[c] + w2 * p2[c] + w3 * p3[c]


@compiled
def _between(place: np.float32, extent: int) -> tuple[int, int, np.float32]:
    """Return the two pixels along an axis that a place lies between, and the second one's share."""
    where = place - np.float32(0.5)
    if not where > 0:
        return 0, 0, np.float32(0) * where
    if where >= extent - 1:
        return extent - 1, extent - 1, np.float32(0)
    before = int(where)
    return before, before + 1, where - np.float32(before)


@compiled
def _find_taps(
    low: float, high: float, extent: int, places: NDArray[np.int64], weights: NDArray[np.float32]
) -> None:
    """Write the pixels that one axis of a region reads, two for each sample, and their weights.

    Samples more than a pixel outside count as 0, those less far as the outermost pixel, as in torchvision. What is
    no number stays none.
    """
    samples = len(places) // 2
    for k in range(samples):
        where = low - np.float32(0.5) + (high - low) * np.float32((k + 0.5) / samples)
        places[2 * k] = places[2 * k + 1] = 0
        weights[2 * k] = weights[2 * k + 1] = 0 * where
        if -1 <= where <= extent:
            where = min(max(where, np.float32(0)), np.float32(extent - 1))
            before = int(where)
            share = where - np.float32(before)
            places[2 * k], places[2 * k + 1] = before, min(before + 1, extent - 1)
            weights[2 * k] = (np.float32(1) - share) / SAMPLES
            weights[2 * k + 1] = share / SAMPLES

"""Exact distances between two sets of lattice points.

Most surfaces lie close together, so the rows around a query are looked at first, nearest row first; each row
knows how far its next target is (`row_gaps`), and the search ends at the first row that is farther away than
what was found. What is not settled after some hundred rows, where surfaces are far apart, is handed with its
bound to a tree of boxes over the targets in Morton order. Both are exact, and both give the same numbers.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from clearmargin.compiled import compiled

__all__ = ["nearest_distances", "run_parts"]

_LEAF = 8  # points in a leaf of the tree
_ROWS = 512  # rows looked at before the tree is asked
_FAR = 255  # a gap of this many elements or more
_WORTH_A_THREAD = 20_000  # queries; a thread's start costs about 50 microseconds
_CORES = min(os.cpu_count() or 1, 8)

Steps = tuple[float, float, float]


def nearest_distances(
    queries: NDArray[np.int32],
    targets: NDArray[np.int32],
    shape: tuple[int, int, int],
    spacing: Steps,
    skip: NDArray[np.bool_] | None = None,
) -> NDArray[np.float64]:
    """Return each query's Euclidean distance to the nearest target, ``(m,)`` float64 in units of ``spacing``.

    Args:
        queries: ``(m, 3)`` int32 lattice points within ``shape``.
        targets: ``(n, 3)`` int32, n at least 1, in raster order.
        shape: Extent of the lattice.
        spacing: Length of a step along each axis.
        skip: ``(m,)`` bool, queries known to lie on a target; None for none.
    """
    known = np.zeros(len(queries), bool) if skip is None else skip
    steps = np.array(spacing, np.float64)
    gaps = _row_gaps(targets, shape)
    rows, squares = _row_offsets(spacing)
    squared = np.zeros(len(queries))
    open_ended = np.zeros(len(queries), bool)
    run_parts(
        lambda part: _search_rows(
            queries[part], known[part], gaps, rows, squares, steps, squared[part], open_ended[part]
        ),
        len(queries),
    )
    left = np.flatnonzero(open_ended)
    if left.size:
        left = left[np.argsort(_morton_keys(queries[left]), kind="stable")]
        ordered = targets[np.argsort(_morton_keys(targets), kind="stable")]
        boxes = _boxes(ordered, 1 << max(0, (len(ordered) + _LEAF - 1) // _LEAF - 1).bit_length())
        bounds, points = squared[left], queries[left]
        run_parts(lambda part: _search_tree(points[part], ordered, boxes, steps, bounds[part]), len(left))
        squared[left] = bounds
    return np.sqrt(squared)


def run_parts(work: Callable[[slice], None], n: int) -> None:
    """Call ``work`` on slices that make up ``range(n)``, in threads where there is enough to do."""
    threads = min(_CORES, max(1, n // _WORTH_A_THREAD))
    cuts = [n * k // threads for k in range(threads + 1)]
    parts = [slice(a, b) for a, b in pairwise(cuts)]
    if threads == 1:
        work(parts[0])
        return
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(work, parts))


@lru_cache(maxsize=64)
def _row_offsets(spacing: Steps) -> tuple[NDArray[np.int32], NDArray[np.float64]]:
    """Return ``(K, 2)`` row offsets (z, y), nearest first, and their squared distances, complete up to the last."""
    reach = 40
    z, y = np.meshgrid(np.arange(-reach, reach + 1), np.arange(-reach, reach + 1), indexing="ij")
    squares = (z * spacing[0]) ** 2 + (y * spacing[1]) ** 2
    whole = min((reach * spacing[0]) ** 2, (reach * spacing[1]) ** 2)  # beyond it the square leaves rows out
    order = np.argsort(squares, axis=None, kind="stable")[:_ROWS]
    order = order[squares.ravel()[order] <= whole]
    return np.column_stack([z.ravel()[order], y.ravel()[order]]).astype(np.int32), squares.ravel()[order]


def _row_gaps(targets: NDArray[np.int32], shape: tuple[int, int, int]) -> NDArray[np.uint8]:
    """Return for every lattice point how far the nearest target in its row is, in elements, at most 255."""
    gaps = np.full(shape, _FAR, np.uint8)
    _fill_gaps(targets, gaps)
    return gaps


@compiled
def _fill_gaps(targets: NDArray[np.int32], gaps: NDArray[np.uint8]) -> None:
    width = gaps.shape[2]
    for i in range(len(targets)):
        z, y, x = targets[i, 0], targets[i, 1], targets[i, 2]
        row = gaps[z, y]
        first = i == 0 or targets[i - 1, 1] != y or targets[i - 1, 0] != z
        last = i + 1 == len(targets) or targets[i + 1, 1] != y or targets[i + 1, 0] != z
        row[x] = 0
        if first:
            for k in range(1, min(x, 254) + 1):
                row[x - k] = k
        stop = width - 1 if last else targets[i + 1, 2]
        half = stop - x if last else (stop - x) // 2
        for k in range(1, min(half, 254) + 1):
            row[x + k] = k
        if not last:
            for k in range(1, min(stop - x - half - 1, 254) + 1):
                row[stop - k] = k


@compiled
def _search_rows(
    queries: NDArray[np.int32],
    skip: NDArray[np.bool_],
    gaps: NDArray[np.uint8],
    rows: NDArray[np.int32],
    squares: NDArray[np.float64],
    steps: NDArray[np.float64],
    squared: NDArray[np.float64],
    open_ended: NDArray[np.bool_],
) -> None:
    """Write each query's squared distance, and whether a nearer target may lie beyond the rows looked at."""
    depth, height = gaps.shape[0], gaps.shape[1]
    sure = (255 * steps[2]) ** 2
    along = steps[2] * steps[2]
    for q in range(len(queries)):
        if skip[q]:
            continue
        z, y, x = queries[q, 0], queries[q, 1], queries[q, 2]
        best = np.inf
        settled = False
        for k in range(len(rows)):
            if squares[k] >= best:
                settled = True
                break
            to_z, to_y = z + rows[k, 0], y + rows[k, 1]
            if to_z < 0 or to_z >= depth or to_y < 0 or to_y >= height:
                continue
            gap = np.float64(gaps[to_z, to_y, x])
            if gap < 255:
                best = min(best, squares[k] + gap * gap * along)
        squared[q] = best
        open_ended[q] = not settled or best > sure


@compiled
def _morton_keys(points: NDArray[np.int32]) -> NDArray[np.uint64]:
    """Return the place of each lattice point of up to 21 bits along the Morton curve."""
    keys = np.empty(len(points), np.uint64)
    for i in range(len(points)):
        key = np.uint64(0)
        for axis in range(3):
            v = np.uint64(points[i, axis]) & np.uint64(0x1FFFFF)
            v = (v | (v << np.uint64(32))) & np.uint64(0x1F00000000FFFF)
            v = (v | (v << np.uint64(16))) & np.uint64(0x1F0000FF0000FF)
            v = (v | (v << np.uint64(8))) & np.uint64(0x100F00F00F00F00F)
            v = (v | (v << np.uint64(4))) & np.uint64(0x10C30C30C30C30C3)
            v = (v | (v << np.uint64(2))) & np.uint64(0x1249249249249249)
            key |= v << np.uint64(axis)
        keys[i] = key
    return keys


@compiled
def _boxes(points: NDArray[np.int32], leaves: int) -> NDArray[np.int32]:
    """Return ``(2 * leaves, 6)`` low and high corners; box ``i`` holds boxes ``2i`` and ``2i + 1``, leaves last."""
    far = np.int32(1 << 28)
    boxes = np.empty((2 * leaves, 6), np.int32)
    for leaf in range(leaves):
        box = boxes[leaves + leaf]
        box[:] = far  # an empty leaf is far from everything
        for i in range(leaf * _LEAF, min(len(points), leaf * _LEAF + _LEAF)):
            for axis in range(3):
                v = points[i, axis]
                box[axis] = v if i == leaf * _LEAF else min(box[axis], v)
                box[3 + axis] = v if i == leaf * _LEAF else max(box[3 + axis], v)
    for node in range(leaves - 1, 0, -1):
        left, right = boxes[2 * node], boxes[2 * node + 1]
        for axis in range(3):
            boxes[node, axis] = min(left[axis], right[axis])
            boxes[node, 3 + axis] = (
                left[3 + axis] if right[axis] == far else max(left[3 + axis], right[3 + axis])
            )
    return boxes


@compiled
def _to_box(z: int, y: int, x: int, boxes: NDArray[np.int32], node: int, steps: NDArray[np.float64]) -> float:
    """Return the squared distance from a point to a box; 0 inside."""
    dz = max(boxes[node, 0] - z, z - boxes[node, 3], 0) * steps[0]
    dy = max(boxes[node, 1] - y, y - boxes[node, 4], 0) * steps[1]
    dx = max(boxes[node, 2] - x, x - boxes[node, 5], 0) * steps[2]
    return float(dz * dz + dy * dy + dx * dx)


@compiled
def _search_tree(
    queries: NDArray[np.int32],
    points: NDArray[np.int32],
    boxes: NDArray[np.int32],
    steps: NDArray[np.float64],
    squared: NDArray[np.float64],
) -> None:
    """Lower each query's squared distance to the exact one; every query starts from its neighbour's answer."""
    leaves = len(boxes) // 2
    stack = np.empty(64, np.int64)
    bounds = np.empty(64, np.float64)
    nearest = 0
    for q in range(len(queries)):
        z, y, x = queries[q, 0], queries[q, 1], queries[q, 2]
        dz, dy = (points[nearest, 0] - z) * steps[0], (points[nearest, 1] - y) * steps[1]
        dx = (points[nearest, 2] - x) * steps[2]
        best = min(squared[q], dz * dz + dy * dy + dx * dx)
        top = 1
        stack[0] = 1
        bounds[0] = 0.0
        while top:
            top -= 1
            node = stack[top]
            if bounds[top] >= best:
                continue
            while node < leaves:  # go down the nearer side, keep the other for later
                left, right = 2 * node, 2 * node + 1
                to_left = _to_box(z, y, x, boxes, left, steps)
                to_right = _to_box(z, y, x, boxes, right, steps)
                near, far, to_near, to_far = left, right, to_left, to_right
                if to_right < to_left:
                    near, far, to_near, to_far = right, left, to_right, to_left
                if to_far < best:
                    stack[top] = far
                    bounds[top] = to_far
                    top += 1
                if to_near >= best:
                    break
                node = near
            else:
                first = (node - leaves) * _LEAF
                for i in range(first, min(len(points), first + _LEAF)):
                    dz = (points[i, 0] - z) * steps[0]
                    dy = (points[i, 1] - y) * steps[1]
                    dx = (points[i, 2] - x) * steps[2]
                    d = dz * dz + dy * dy + dx * dx
                    if d < best:
                        best = d
                        nearest = i
        squared[q] = best

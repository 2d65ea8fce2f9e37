"""Exact distances between two sets of lattice points.

Most surfaces lie close together, so the rows around a query are looked at first, nearest row first; each row
knows how far its next target is, and the search ends at the first row that is farther away than what was found. What is
not settled after some hundred rows, where surfaces are far apart, gets its distance by passes along x, y and z over the
boxes of these queries and of the targets. Both are exact, and both give the same numbers.
"""

# ruff: noqa: PLR0912 -- what is compiled is written flat

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from clearmargin.compiled import compiled

__all__ = ["nearest_distances", "run_parts", "use_threads"]

_ROWS = 60  # rows looked at before the passes are made
_FAR = 255  # a gap of this many elements or more
_WORTH_A_THREAD = 20_000  # queries; a thread's start costs about 50 microseconds
_threads = min(os.cpu_count() or 1, 8)

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
    rows, squares = _row_offsets(spacing)
    box = _box(targets)
    squared = np.zeros(len(queries))
    open_ended = _beyond(queries, known, box, steps, squares[-1])
    if not open_ended.all():
        gaps = _row_gaps(targets, shape)
        run_parts(
            lambda part: _search_rows(
                queries[part], known[part], gaps, rows, squares, steps, squared[part], open_ended[part]
            ),
            len(queries),
        )
    left = np.flatnonzero(open_ended)
    if left.size:
        squared[left] = _by_passes(queries[left], targets, box, steps)
    return np.sqrt(squared)


def use_threads(most: int) -> None:
    """Use at most so many threads from now on: a process that is one of several needs one."""
    global _threads  # noqa: PLW0603 -- of the process, not of a call
    _threads = most


def run_parts(work: Callable[[slice], None], n: int, worth: int = _WORTH_A_THREAD) -> None:
    """Call ``work`` on slices that make up ``range(n)``, in threads if there are ``worth`` for each."""
    threads = min(_threads, max(1, n // worth))
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
def _box(points: NDArray[np.int32]) -> NDArray[np.int64]:
    """Return ``(2, 3)`` first and last indices of points, at least one."""
    box = np.empty((2, 3), np.int64)
    box[0] = points[0]
    box[1] = points[0]
    for i in range(len(points)):
        for axis in range(3):
            v = points[i, axis]
            box[0, axis] = min(box[0, axis], v)
            box[1, axis] = max(box[1, axis], v)
    return box


@compiled
def _beyond(
    queries: NDArray[np.int32],
    skip: NDArray[np.bool_],
    box: NDArray[np.int64],
    steps: NDArray[np.float64],
    limit: float,
) -> NDArray[np.bool_]:
    """Return which queries lie farther from the targets' box than rows are looked at."""
    out = np.zeros(len(queries), np.bool_)
    for i in range(len(queries)):
        squared = 0.0
        for axis in range(3):
            v = queries[i, axis]
            away = max(box[0, axis] - v, v - box[1, axis], 0) * steps[axis]
            squared += away * away
        out[i] = squared > limit and not skip[i]
    return out


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
        if skip[q] or open_ended[q]:
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


def _by_passes(
    queries: NDArray[np.int32],
    targets: NDArray[np.int32],
    box: NDArray[np.int64],
    steps: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Return squared distances by passes along x, y and z; time and memory grow with the two boxes."""
    around = _box(queries)
    depth = int(box[1, 0] - box[0, 0]) + 1
    height, width = (int(v) + 1 for v in (around[1] - around[0])[1:])
    planes = np.empty((height, width, depth))  # along z last, as the queries read it
    starts = np.searchsorted(targets[:, 0], np.arange(box[0, 0], box[1, 0] + 2))
    run_parts(
        lambda part: _pass_planes(targets, starts, part.start, part.stop, box, around, steps, planes),
        depth,
        max(1, _WORTH_A_THREAD * 10 // (height * width + 1)),
    )
    squared = np.empty(len(queries))
    run_parts(
        lambda part: _pass_columns(queries[part], planes, box, around, steps, squared[part]), len(queries)
    )
    return squared


@compiled
def _pass_planes(
    targets: NDArray[np.int32],
    starts: NDArray[np.int64],
    first: int,
    stop: int,
    box: NDArray[np.int64],
    around: NDArray[np.int64],
    steps: NDArray[np.float64],
    planes: NDArray[np.float64],
) -> None:
    """Write for planes ``first`` to ``stop`` of the targets' box the squared distance to their targets.

    Source: Felzenszwalb and Huttenlocher, "Distance transforms of sampled functions", Theory of Computing 2012.
    """
    tall = box[1, 1] - box[0, 1] + 1
    height, width = planes.shape[0], planes.shape[1]
    left = around[0, 2]
    along = np.empty((width, tall))  # squared distances within each row of the plane that holds targets
    held = np.empty(tall, np.int64)
    vertex = np.empty(tall, np.float64)
    value = np.empty(tall, np.float64)
    until = np.empty(tall + 1, np.float64)
    for plane in range(first, stop):
        rows = 0
        i = starts[plane]
        end = starts[plane + 1]
        while i < end:
            y = targets[i, 1]
            j = i
            while j < end and targets[j, 1] == y:
                j += 1
            k = i
            for x in range(width):
                at = x + left
                while k + 1 < j and abs(targets[k + 1, 2] - at) <= abs(targets[k, 2] - at):
                    k += 1
                away = (targets[k, 2] - at) * steps[2]
                along[x, rows] = away * away
            held[rows] = y
            rows += 1
            i = j
        for x in range(width):
            if rows == 0:
                for y in range(height):
                    planes[y, x, plane] = np.inf
                continue
            n = 0  # the lower envelope of the rows' parabolas
            for r in range(rows):
                here = held[r] * steps[1]
                cost = along[x, r]
                from_here = -np.inf
                while n > 0:
                    before = vertex[n - 1]
                    from_here = (cost - value[n - 1] + here * here - before * before) / (2 * (here - before))
                    if from_here > until[n - 1]:
                        break
                    n -= 1
                if n == 0:
                    from_here = -np.inf
                vertex[n] = here
                value[n] = cost
                until[n] = from_here
                n += 1
            k = 0
            for y in range(height):
                place = (y + around[0, 1]) * steps[1]
                while k + 1 < n and until[k + 1] < place:
                    k += 1
                away = place - vertex[k]
                planes[y, x, plane] = value[k] + away * away


@compiled
def _pass_columns(
    queries: NDArray[np.int32],
    planes: NDArray[np.float64],
    box: NDArray[np.int64],
    around: NDArray[np.int64],
    steps: NDArray[np.float64],
    squared: NDArray[np.float64],
) -> None:
    """Write each query's squared distance: the least over the planes, the nearest planes first."""
    depth = planes.shape[2]
    for q in range(len(queries)):
        z = queries[q, 0] - box[0, 0]
        column = planes[queries[q, 1] - around[0, 1], queries[q, 2] - around[0, 2]]
        best = np.inf
        nearest = max(0, min(z, depth - 1))
        for k in range(nearest, depth):
            away = (k - z) * steps[0]
            if away * away >= best:
                break
            best = min(best, column[k] + away * away)
        for k in range(nearest - 1, -1, -1):
            away = (z - k) * steps[0]
            if away * away >= best:
                break
            best = min(best, column[k] + away * away)
        squared[q] = best

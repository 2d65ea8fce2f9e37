"""Exact distances between two sets of lattice points, by a tree of boxes over the points in Morton order.

Every query starts from the answer of its neighbour in the same order, so that the bound is tight before the
first box is opened: the cost per point hardly depends on how far the sets are apart, or on how large the
image is.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from clearmargin.metrics.compiled import compiled

__all__ = ["PointTree", "distances", "morton_order"]

_LEAF = 8  # points in a leaf
_WORTH_A_THREAD = 20_000  # queries; a thread's start costs about 50 microseconds


@dataclass(frozen=True, kw_only=True, eq=False)
class PointTree:
    """Lattice points and the boxes over them.

    Attributes:
        points: ``(n, 3)`` int32, n at least 1, in an order in which neighbours lie close (`morton_order`).
        boxes: ``(2 * leaves, 6)`` int32: low and high corners. Box ``i`` holds boxes ``2i`` and ``2i + 1``;
            the second half are the leaves, of eight points each.
    """

    points: NDArray[np.int32]
    boxes: NDArray[np.int32]

    @staticmethod
    def of(points: NDArray[np.int32]) -> PointTree:
        """Build the tree over ``points``, ``(n, 3)`` int32 with n at least 1, already in Morton order."""
        leaves = 1 << max(0, (len(points) + _LEAF - 1) // _LEAF - 1).bit_length()
        return PointTree(points=points, boxes=_boxes(points, leaves))


def morton_order(points: NDArray[np.int32]) -> NDArray[np.intp]:
    """Return the permutation that sorts ``(n, 3)`` lattice points of up to 21 bits along the Morton curve."""
    return np.argsort(_morton_keys(points), kind="stable")


def distances(
    queries: NDArray[np.int32], skip: NDArray[np.bool_], tree: PointTree, spacing: tuple[float, float, float]
) -> NDArray[np.float64]:
    """Return each query's Euclidean distance to the nearest point of ``tree``, ``(m,)`` in units of
    ``spacing``.

    Args:
        queries: ``(m, 3)`` int32 lattice points in Morton order.
        skip: ``(m,)`` bool, queries whose distance is known to be 0.
        tree: The other set.
        spacing: Length of a step along each axis.
    """
    out = np.zeros(len(queries))
    steps = np.array(spacing, np.float64)
    threads = min(os.cpu_count() or 1, 8, max(1, len(queries) // _WORTH_A_THREAD))
    cuts = np.linspace(0, len(queries), threads + 1).astype(int)

    def part(k: int) -> None:
        a, b = int(cuts[k]), int(cuts[k + 1])
        _query(queries[a:b], skip[a:b], tree.points, tree.boxes, steps, out[a:b])

    if threads == 1:
        part(0)
    else:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(part, range(threads)))
    return out


@compiled
def _morton_keys(points: NDArray[np.int32]) -> NDArray[np.uint64]:
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
    far = np.int32(1 << 28)
    boxes = np.empty((2 * leaves, 6), np.int32)
    for leaf in range(leaves):
        box = boxes[leaves + leaf]
        box[:3] = far  # an empty leaf is far from everything
        box[3:] = far
        for i in range(leaf * _LEAF, min(len(points), leaf * _LEAF + _LEAF)):
            for axis in range(3):
                v = points[i, axis]
                if i == leaf * _LEAF:
                    box[axis] = v
                    box[3 + axis] = v
                else:
                    box[axis] = min(box[axis], v)
                    box[3 + axis] = max(box[3 + axis], v)
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
def _query(
    queries: NDArray[np.int32],
    skip: NDArray[np.bool_],
    points: NDArray[np.int32],
    boxes: NDArray[np.int32],
    steps: NDArray[np.float64],
    out: NDArray[np.float64],
) -> None:
    leaves = len(boxes) // 2
    stack = np.empty(64, np.int64)
    bounds = np.empty(64, np.float64)
    nearest = 0
    for q in range(len(queries)):
        if skip[q]:
            continue
        z, y, x = queries[q, 0], queries[q, 1], queries[q, 2]
        dz, dy, dx = (points[nearest, 0] - z) * steps[0], (points[nearest, 1] - y) * steps[1], 0.0
        dx = (points[nearest, 2] - x) * steps[2]
        best = dz * dz + dy * dy + dx * dx
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
        out[q] = np.sqrt(best)

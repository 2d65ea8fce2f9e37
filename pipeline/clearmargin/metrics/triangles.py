"""Distances from points to a mesh of small triangles."""

# ruff: noqa: PLR0911 -- a point is nearest to a corner, an edge or the face

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from clearmargin.compiled import compiled

__all__ = ["to_triangles"]


def to_triangles(
    points: NDArray[np.float64], triangles: NDArray[np.float64], candidates: int
) -> NDArray[np.float64]:
    """Return each point's distance to the nearest of the triangles whose centres are the nearest.

    Args:
        points: ``(n, 3)``.
        triangles: ``(m, 3, 3)`` corners, of about equal size; m at least 1. Two corners may be equal.
        candidates: How many triangles are tried for each point.

    Returns:
        ``(n,)`` float64.
    """
    from scipy.spatial import cKDTree

    near = cKDTree(triangles.mean(axis=1)).query(points, k=min(candidates, len(triangles)))[1]
    return _least(points, triangles, np.asarray(near, np.int64).reshape(len(points), -1))


@compiled
def _least(
    points: NDArray[np.float64], triangles: NDArray[np.float64], near: NDArray[np.int64]
) -> NDArray[np.float64]:
    out = np.empty(len(points))
    for i in range(len(points)):
        best = np.inf
        for k in near[i]:
            best = min(best, _squared(points[i], triangles[k, 0], triangles[k, 1], triangles[k, 2]))
        out[i] = np.sqrt(best)
    return out


@compiled
def _dot(u: NDArray[np.float64], v: NDArray[np.float64]) -> float:
    return float(u[0] * v[0] + u[1] * v[1] + u[2] * v[2])


@compiled
def _squared(
    p: NDArray[np.float64], a: NDArray[np.float64], b: NDArray[np.float64], c: NDArray[np.float64]
) -> float:
    """Return the squared distance from ``p`` to triangle ``abc``, by the region its projection falls in."""
    ab, ac, ap = b - a, c - a, p - a
    d1, d2 = _dot(ab, ap), _dot(ac, ap)
    if d1 <= 0 and d2 <= 0:
        return _dot(ap, ap)
    bp = p - b
    d3, d4 = _dot(ab, bp), _dot(ac, bp)
    if d3 >= 0 and d4 <= d3:
        return _dot(bp, bp)
    vc = d1 * d4 - d3 * d2
    if vc <= 0 and d1 >= 0 and d3 <= 0:
        off = ap - d1 / (d1 - d3) * ab
        return _dot(off, off)
    cp = p - c
    d5, d6 = _dot(ab, cp), _dot(ac, cp)
    if d6 >= 0 and d5 <= d6:
        return _dot(cp, cp)
    vb = d5 * d2 - d1 * d6
    if vb <= 0 and d2 >= 0 and d6 <= 0:
        off = ap - d2 / (d2 - d6) * ac
        return _dot(off, off)
    va = d3 * d6 - d5 * d4
    if va <= 0 and d4 - d3 >= 0 and d5 - d6 >= 0:
        off = bp - (d4 - d3) / ((d4 - d3) + (d5 - d6)) * (c - b)
        return _dot(off, off)
    scale = 1 / (va + vb + vc)
    off = ap - vb * scale * ab - vc * scale * ac
    return _dot(off, off)

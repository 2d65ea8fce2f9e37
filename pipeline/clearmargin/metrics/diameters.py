"""Diameters of one mask: the largest in space, and the long and short axis in one slice."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

__all__ = ["drawn_axes", "feret_diameter", "slice_axes"]


def feret_diameter(mask: NDArray[np.bool_], spacing: Sequence[float]) -> float:
    """Return the largest distance between two outer corners of elements, in the spacing's unit; empty: 0.

    Args:
        mask: ``(Y, X)`` or ``(Z, Y, X)`` bool.
        spacing: Spacing of each axis.

    Source: Feret, 1930.
    """
    if not mask.any():
        return 0.0
    hull = _hull(mask, spacing)
    return float(np.linalg.norm(np.subtract(*hull[list(_farthest(hull))])))


def slice_axes(mask: NDArray[np.bool_], spacing: Sequence[float]) -> tuple[float, float]:
    """Return long and short axis, in the spacing's unit; empty: 0 and 0.

    The long axis is the largest distance between two outer corners of elements of one slice (the last two
    axes), in the slice where it is largest; the short axis is the mask's extent across it, in that slice.

    Args:
        mask: ``(Y, X)`` or ``(Z, Y, X)`` bool.
        spacing: Spacing of each axis.

    Source: after Eisenhauer et al., RECIST 1.1, 2009; the short axis is there drawn by hand.
    """
    axes = drawn_axes(mask, spacing)
    if axes is None:
        return 0.0, 0.0
    long, short = (float(np.linalg.norm(np.subtract(*ends))) for ends in (axes[1][:2], axes[1][2:]))
    return long, short


def drawn_axes(mask: NDArray[np.bool_], spacing: Sequence[float]) -> tuple[int, NDArray[np.float64]] | None:
    """Return long and short axis (`slice_axes`) as lines: the slice, and their ends; None if the mask is empty.

    The short axis is drawn across the long one, where the two elements that are farthest apart across it lie on the
    average.

    Returns:
        The slice's index, and ``(4, 2)`` points ``(y, x)`` in the spacing's unit from the outer corner of the first
        element: both ends of the long axis, and both of the short one.
    """
    slices = mask if mask.ndim == 3 else mask[None]
    longest, best = 0.0, None
    for z, plane in enumerate(slices):
        if not plane.any():
            continue
        hull = _hull(plane, spacing[-2:])
        ends = hull[list(_farthest(hull))]
        long = float(np.linalg.norm(ends[1] - ends[0]))
        if long <= longest:
            continue
        along = (ends[1] - ends[0]) / long
        across = np.array([-along[1], along[0]])
        sides = hull[[int((hull @ across).argmin()), int((hull @ across).argmax())]]
        middle = along * float((sides @ along).mean())
        short = [middle + across * float(side @ across) for side in sides]
        longest, best = long, (z, np.array([*ends, *short]))
    return best


def _hull(mask: NDArray[np.bool_], spacing: Sequence[float]) -> NDArray[np.float64]:
    """Return the corners of the convex hull of the elements, ``(N, ndim)``."""
    from scipy.spatial import ConvexHull

    corners: NDArray[np.float64] = _line_ends(mask) * np.asarray(spacing, np.float64)
    hull: NDArray[np.float64] = corners[ConvexHull(corners).vertices]
    return hull


def _farthest(hull: NDArray[np.float64]) -> tuple[int, int]:
    from scipy.spatial.distance import cdist

    blocks = np.array_split(np.arange(len(hull)), len(hull) // 500 + 1)  # bounds the memory on large balls
    longest = (-1.0, 0, 0)
    for block in blocks:
        apart = cdist(hull[block], hull)
        i, j = np.unravel_index(int(apart.argmax()), apart.shape)
        longest = max(longest, (float(apart[i, j]), int(block[i]), int(j)))
    return longest[1], longest[2]


def _line_ends(mask: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Return the outer corners of the first and last element of each row: their hull is the mask's hull."""
    rows = mask.any(axis=-1)
    index = np.argwhere(rows)
    lines = mask[rows]
    first = lines.argmax(axis=1)
    last = mask.shape[-1] - lines[:, ::-1].argmax(axis=1)
    ends = np.concatenate([np.column_stack([index, first]), np.column_stack([index, last])]).astype(
        np.float64
    )
    lead = mask.ndim - 1
    shifts = np.array(np.meshgrid(*[(0, 1)] * lead, indexing="ij")).reshape(lead, -1).T
    return np.unique(np.concatenate([ends + np.concatenate([shift, [0]]) for shift in shifts]), axis=0)

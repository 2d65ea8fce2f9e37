"""Diameters of one mask: the largest in space, and the long and short axis in one slice."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

__all__ = ["drawn_axes", "feret_diameter", "slice_axes"]

_LINES_AT_ONCE = 64


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
    axes), in the slice where it is largest; the short axis is the longest line within the mask at a right angle to
    it, in that slice.

    Args:
        mask: ``(Y, X)`` or ``(Z, Y, X)`` bool.
        spacing: Spacing of each axis.

    Source: after Eisenhauer et al., RECIST 1.1, 2009; both axes are there drawn by hand.
    """
    axes = drawn_axes(mask, spacing)
    if axes is None:
        return 0.0, 0.0
    long, short = (float(np.linalg.norm(np.subtract(*ends))) for ends in (axes[1][:2], axes[1][2:]))
    return long, short


def drawn_axes(mask: NDArray[np.bool_], spacing: Sequence[float]) -> tuple[int, NDArray[np.float64]] | None:
    """Return long and short axis (`slice_axes`) as lines: the slice, and their ends; None if the mask is empty.

    Of equally long short axes it is the one nearest to the middle of the long one.

    Returns:
        The slice's index, and ``(4, 2)`` points ``(y, x)`` in the spacing's unit from the outer corner of the first
        element: both ends of the long axis, and both of the short one.
    """
    slices = mask if mask.ndim == 3 else mask[None]
    longest = 0.0
    best: tuple[int, NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]] | None = None
    for z, plane in enumerate(slices):
        if not plane.any():
            continue
        hull = _hull(plane, spacing[-2:])
        ends = hull[list(_farthest(hull))]
        long = float(np.linalg.norm(ends[1] - ends[0]))
        if long <= longest:
            continue
        along = (ends[1] - ends[0]) / long
        longest, best = long, (z, hull, ends, along)
    if best is None:
        return None
    z, hull, ends, along = best
    short = _longest_across(slices[z], spacing[-2:], hull, along, float(ends.mean(0) @ along))
    return z, np.array([*ends, *short])


def _longest_across(
    plane: NDArray[np.bool_],
    spacing: Sequence[float],
    hull: NDArray[np.float64],
    along: NDArray[np.float64],
    middle: float,
) -> NDArray[np.float64]:
    """Return the ends of the longest line within the mask at a right angle to a direction, ``(2, 2)``.

    A line's length changes linearly between two corners of the border, so the longest is at a corner, on one of its
    sides. No line is longer than the hull's there: lines are tried from the hull's longest on, until no other can win.

    Args:
        plane: ``(Y, X)`` bool, not empty.
        spacing: Of its elements.
        hull: The corners of its convex hull, in order around it.
        along: The direction, of length 1.
        middle: Of equally long lines, the one nearest to here along the direction.
    """
    sizes, across = np.asarray(spacing, np.float64), np.array([-along[1], along[0]])
    padded = np.pad(plane, 1).astype(np.int8)
    around = padded[:-1, :-1] + padded[1:, :-1] + padded[:-1, 1:] + padded[1:, 1:]
    corners = np.unique(np.round((np.argwhere((around > 0) & (around < 4)) * sizes) @ along, 9))
    beside = 1e-6 * sizes.min()
    places = np.concatenate([[middle], corners - beside, corners + beside])
    bounds = _hull_lengths(hull, along, across, places)
    order = np.lexsort([np.abs(places - middle), -bounds.round(6)])
    length, distance, ends = -1.0, np.inf, np.zeros((2, 2))
    for start in range(0, len(order), _LINES_AT_ONCE):
        tried = order[start : start + _LINES_AT_ONCE]
        if bounds[tried[0]] < length - beside:
            break
        begins, lasts = _longest_parts(plane, sizes, along, across, places[tried])
        lengths, distances = lasts - begins, np.abs(places[tried] - middle)
        longest = max(length, float(lengths.max()))
        for k in np.flatnonzero(lengths >= longest - 10 * beside):
            if lengths[k] > length + 10 * beside or distances[k] < distance:
                length, distance = float(lengths[k]), float(distances[k])
                ends = np.array([places[tried[k]] * along + s * across for s in (begins[k], lasts[k])])
    return ends


def _hull_lengths(
    hull: NDArray[np.float64],
    along: NDArray[np.float64],
    across: NDArray[np.float64],
    places: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Return how long the lines across a direction are within a convex hull; 0 beside it."""
    t, s = hull @ along, hull @ across
    t_next, s_next = np.roll(t, -1), np.roll(s, -1)
    steps = np.where(np.abs(t_next - t) > 1e-12, t_next - t, np.inf)
    share = (places[:, None] - t) / steps
    met = (share >= 0) & (share <= 1) & np.isfinite(steps)
    crossed = s + share * (s_next - s)
    most = np.where(met, crossed, -np.inf).max(axis=1)
    least = np.where(met, crossed, np.inf).min(axis=1)
    return np.where(met.any(axis=1), most - least, 0.0)


def _longest_parts(
    plane: NDArray[np.bool_],
    sizes: NDArray[np.float64],
    along: NDArray[np.float64],
    across: NDArray[np.float64],
    places: NDArray[np.float64],
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return where the longest part within the mask of each line across a direction begins and ends; empty: 0, 0."""
    # Where each line crosses from one element to the next, as a distance along the line.
    crossings = [
        (np.arange(count + 1) * size - places[:, None] * along[axis]) / across[axis]
        for axis, (count, size) in enumerate(zip(plane.shape, sizes, strict=True))
        if abs(across[axis]) > 1e-12
    ]
    cuts = np.sort(np.concatenate(crossings, axis=1), axis=1)
    first, last = cuts[:, :-1], cuts[:, 1:]
    points = places[:, None, None] * along + ((first + last) / 2)[..., None] * across
    index = np.floor(points / sizes).astype(np.int64)
    there = ((index >= 0) & (index < plane.shape)).all(axis=-1)
    inside = there & plane[tuple(np.where(there[..., None], index, 0).transpose(2, 0, 1))]
    # Through a corner two crossings fall together: what is between them is as what is before.
    steps = np.where(last - first > 1e-9, np.arange(first.shape[1]), 0)
    inside = np.take_along_axis(inside, np.maximum.accumulate(steps, axis=1), axis=1)
    before = np.pad(inside, ((0, 0), (1, 0)))[:, :-1]
    begins = np.maximum.accumulate(np.where(inside & ~before, first, -np.inf), axis=1)
    lengths = np.where(inside, last - begins, 0.0)
    line, end = np.arange(len(places)), lengths.argmax(axis=1)
    ended = last[line, end]
    return ended - lengths[line, end], ended


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

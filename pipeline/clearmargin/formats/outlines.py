"""Outlines of masks as polygons, and back: many slices at once, for contours by the ten thousand."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

__all__ = ["filled", "outlines", "overlaid"]

_BLOCK = 2**25  # cells looked at together

# By which corners of a square of four pixels (1, 2 above, 4, 8 below) are inside: the sides that an outline enters and
# leaves by, the inside on its right. Sides: 0 top, 1 bottom, 2 left, 3 right. Two pixels that only touch at a corner
# are apart, so their squares (6 and 9) have two lines: the second is below.
_ENTERS = np.array([0, 2, 0, 2, 1, 1, 0, 1, 3, 2, 0, 2, 3, 3, 0, 0])
_LEAVES = np.array([0, 0, 3, 3, 2, 0, 3, 3, 1, 0, 1, 1, 2, 0, 2, 0])
_SECOND = {6: (1, 2), 9: (3, 1)}


def outlines(crop: NDArray[np.bool_]) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.int64]]:
    """Return the closed polygons around the True pixels of each slice, holes included.

    They run half way between the centres of pixels inside and outside; points in the middle of a straight run are left
    out. Pixels that touch at a corner only are apart.

    Args:
        crop: ``(Z, Y, X)``.

    Returns:
        ``(P, 2)`` points (y, x) in pixels from the centre of the first one; ``(C,)`` how many of them each polygon has;
        ``(C,)`` each polygon's slice, in growing order. All empty if nothing is True.
    """
    slices = max(1, _BLOCK // max(1, crop[0].size if len(crop) else 1))
    parts = [_outlines(crop[z : z + slices], z) for z in range(0, len(crop), slices)]
    if not parts:
        return np.zeros((0, 2)), np.zeros(0, np.int64), np.zeros(0, np.int64)
    points, counts, places = (np.concatenate(column) for column in zip(*parts, strict=True))
    return points, counts, places


def _outlines(
    crop: NDArray[np.bool_], first: int
) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.int64]]:
    inside = np.pad(crop.view(np.uint8), ((0, 0), (1, 1), (1, 1)))
    corners = inside[:, :-1, :-1] | inside[:, :-1, 1:] << 1 | inside[:, 1:, :-1] << 2 | inside[:, 1:, 1:] << 3
    cells = np.flatnonzero((corners != 0) & (corners != 15))
    codes = corners.ravel()[cells]
    starts, ends = _side(cells, _ENTERS[codes], corners.shape), _side(cells, _LEAVES[codes], corners.shape)
    for code, (enters, leaves) in _SECOND.items():
        saddles = cells[codes == code]
        starts = np.append(starts, _side(saddles, np.full(len(saddles), enters), corners.shape))
        ends = np.append(ends, _side(saddles, np.full(len(saddles), leaves), corners.shape))
    starts_order = np.argsort(starts)
    sides = starts[starts_order]
    after = np.searchsorted(sides, ends[starts_order])  # each side is entered by one line and left by one
    order, counts = _rounds(after.tolist())
    if not counts:
        return np.zeros((0, 2)), np.zeros(0, np.int64), np.zeros(0, np.int64)
    around = sides[order]
    rows, columns = corners.shape[1] + 1, corners.shape[2] + 1
    place, vertical = np.divmod(around, 2)
    z, rest = np.divmod(place, rows * columns)
    y, x = np.divmod(rest, columns)
    points = np.stack((y - 1 + 0.5 * vertical, x - 1 + 0.5 * (1 - vertical)), axis=1)
    lengths = np.array(counts)
    keep = _turns(points, lengths)
    polygon = np.repeat(np.arange(len(lengths)), lengths)
    starts_at = np.concatenate(([0], np.cumsum(lengths)[:-1]))
    return points[keep], np.bincount(polygon[keep], minlength=len(lengths)), z[starts_at] + first


def _side(cells: NDArray[np.int64], sides: NDArray[np.int64], shape: tuple[int, ...]) -> NDArray[np.int64]:
    """Return the number of a cell's side, the same for both cells that share it.

    It is twice the number of the pixel at its upper or left end, plus 1 if it lies between a pixel and the one below.
    """
    z, rest = np.divmod(cells, shape[1] * shape[2])
    y, x = np.divmod(rest, shape[2])
    pixel = (z * (shape[1] + 1) + y + (sides == 1)) * (shape[2] + 1) + x + (sides == 3)
    numbers: NDArray[np.int64] = 2 * pixel + (sides >= 2)
    return numbers


def _rounds(after: list[int]) -> tuple[list[int], list[int]]:
    """Return all positions, cycle by cycle, and the cycles' lengths; ``after`` is a permutation."""
    seen = bytearray(len(after))
    order: list[int] = []
    counts = []
    for start in range(len(after)):
        if seen[start]:
            continue
        before, at = len(order), start
        while not seen[at]:
            seen[at] = 1
            order.append(at)
            at = after[at]
        counts.append(len(order) - before)
    return order, counts


def _turns(points: NDArray[np.float64], counts: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Return which points of closed polygons lie where the direction changes."""
    last = np.cumsum(counts) - 1
    following = np.arange(1, len(points) + 1)
    following[last] = last - counts + 1
    steps = points[following] - points
    previous = np.empty(len(points), np.int64)
    previous[following] = np.arange(len(points))
    changed: NDArray[np.bool_] = (steps != steps[previous]).any(axis=1)
    return changed


def filled(
    points: NDArray[np.float64],
    counts: NDArray[np.int64],
    places: NDArray[np.int64],
    shape: tuple[int, int, int],
) -> NDArray[np.bool_]:
    """Return the pixels whose centres an odd number of a slice's polygons hold: their exclusive or.

    Args:
        points: ``(P, 2)`` (y, x) in pixels.
        counts: ``(C,)`` points of each polygon.
        places: ``(C,)`` each one's slice.
        shape: ``(Z, Y, X)`` of the result; what lies beyond is cut off.
    """
    crossings, rows, columns = _crossings(points, counts)
    z = places[crossings]
    kept = (rows >= 0) & (rows < shape[1]) & (columns < shape[2])
    column = np.maximum(columns[kept], 0)
    flat = (z[kept] * shape[1] + rows[kept]) * shape[2] + column
    toggles = (np.bincount(flat, minlength=int(np.prod(shape))) & 1).astype(np.uint8).reshape(shape)
    return np.bitwise_xor.accumulate(toggles, axis=2).view(np.bool_)


def _crossings(
    points: NDArray[np.float64], counts: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Return where polygons cross rows of pixel centres: polygon, row, and first column at or behind the crossing."""
    last = np.cumsum(counts) - 1
    following = np.arange(1, len(points) + 1)
    following[last] = last - counts + 1
    polygon = np.repeat(np.arange(len(counts)), counts)
    (y0, x0), (y1, x1) = points.T, points[following].T
    low, high = np.ceil(np.minimum(y0, y1)).astype(np.int64), np.ceil(np.maximum(y0, y1)).astype(np.int64)
    spans = high - low
    edge = np.repeat(np.arange(len(points)), spans)
    rows = np.arange(len(edge)) - np.repeat(np.cumsum(spans) - spans, spans) + low[edge]
    share = (rows - y0[edge]) / (y1[edge] - y0[edge])
    columns = np.ceil(x0[edge] + share * (x1[edge] - x0[edge])).astype(np.int64)
    return polygon[edge], rows, columns


def overlaid(polygons: Sequence[NDArray[np.float64]], shape: tuple[int, int]) -> NDArray[np.bool_]:
    """Return the pixels of closed contours of one slice: nested ones are holes and islands, others are united.

    A contour within another one is a hole in it, one within that hole an island, and so on. Contours that partly
    overlap are united, and the same contour stored twice counts once.

    Args:
        polygons: ``(P, 2)`` points (y, x) of each, at least one.
        shape: ``(Y, X)``.
    """
    counts = np.array([len(p) for p in polygons])
    which, rows, columns = _crossings(np.concatenate(polygons), counts)
    inside = (rows >= 0) & (rows < shape[0])
    which, rows, columns = which[inside], rows[inside], np.clip(columns[inside], 0, shape[1])
    order = np.lexsort((columns, rows, which))
    which, rows, columns = which[order], rows[order], columns[order]
    layers = np.zeros((shape[0], shape[1] + 1), np.int64)  # how many contours hold each pixel
    signs = 1 - 2 * (np.arange(len(rows)) % 2)  # a contour's crossings of a row open and close in turn
    np.add.at(layers, (rows, columns), signs)
    layers = layers.cumsum(axis=1)[:, :-1]
    if layers.max(initial=0) < 2:
        held: NDArray[np.bool_] = layers > 0
        return held
    if len(polygons) == 2:  # an object with a hole, mostly: what both hold is all of the smaller one
        areas = np.bincount(which, weights=columns * signs, minlength=2)
        if areas[0] != areas[1] and (layers == 2).sum() == -areas.max():
            ring: NDArray[np.bool_] = layers == 1
            return ring
    parts = [_part(polygon, shape) for polygon in polygons]
    return _by_depth([part for part in parts if part is not None], shape)


_Part = tuple[int, int, NDArray[np.bool_]]  # first row, first column, pixels


def _part(polygon: NDArray[np.float64], shape: tuple[int, int]) -> _Part | None:
    """Return the pixels of one contour, cut tight; None if it holds none."""
    low = np.clip(np.floor(polygon.min(axis=0)), 0, shape).astype(np.int64)
    high = np.clip(np.ceil(polygon.max(axis=0)) + 1, low, shape).astype(np.int64)
    size = (1, int(high[0] - low[0]), int(high[1] - low[1]))
    (mask,) = filled(polygon - low, np.array([len(polygon)]), np.zeros(1, np.int64), size)
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(rows):
        return None
    tight = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    return int(low[0] + rows[0]), int(low[1] + columns[0]), tight


def _by_depth(parts: Sequence[_Part], shape: tuple[int, int]) -> NDArray[np.bool_]:
    """Return the pixels of contours, each added or taken away by how many others it lies within."""
    corners = np.array([(y, x, y + mask.shape[0], x + mask.shape[1]) for y, x, mask in parts])
    depths = []
    for i, part in enumerate(parts):
        around = (corners[:, :2] <= corners[i, :2]).all(axis=1) & (corners[:, 2:] >= corners[i, 2:]).all(
            axis=1
        )
        others = [j for j in np.flatnonzero(around).tolist() if j != i and _lies_within(part, parts[j])]
        copies = [j for j in others if np.array_equal(parts[j][2], part[2])]
        if any(j < i for j in copies):
            continue  # stored before
        first = {(*parts[j][:2], parts[j][2].tobytes()) for j in others if j not in copies}
        depths.append((len(first), i))
    result: NDArray[np.bool_] = np.zeros(shape, bool)
    for depth, i in sorted(depths):
        y, x, mask = parts[i]
        target = result[y : y + mask.shape[0], x : x + mask.shape[1]]
        target[mask] = depth % 2 == 0
    return result


def _lies_within(part: _Part, other: _Part) -> bool:
    """Return whether ``other``, whose box holds ``part``'s, holds each of its pixels."""
    y, x, mask = part
    top, left, wide = other
    there = wide[y - top : y - top + mask.shape[0], x - left : x - left + mask.shape[1]]
    return not (mask & ~there).any()

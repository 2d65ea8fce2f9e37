"""Surface distances of small masks in one compiled call: for them, what many calls cost is most of the time.

The elements are those of `elements`, and the distances those of `nearest`, to the last bit; they are found by looking
through the other mask's elements row by row, outwards from the row of the query.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from clearmargin.compiled import compiled
from clearmargin.metrics.elements import scan_plane, scan_volume

__all__ = ["MOST_ELEMENTS", "small_surfaces"]

MOST_ELEMENTS = 4096
"""Elements of the joint box up to which looking through the other mask's elements is the quickest."""

_Side = tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.int8]]


@compiled
def small_surfaces(
    predicted: NDArray[np.bool_],
    reference: NDArray[np.bool_],
    table: NDArray[np.float64],
    steps: tuple[float, float, float],
    planar: bool,
) -> tuple[_Side, _Side]:
    """Return the distances, areas and sides of the elements of two masks, each by ascending distance.

    Args:
        predicted: ``(Z, Y, X)``, or ``(1, Y, X)`` of an image, the joint box; holds something.
        reference: Reference of the same shape; holds something.
        table: Area of an element by its code.
        steps: Length of a step along each axis; of an image, the first is not used.
        planar: Whether it is an image: a volume of one slice has faces above and below.
    """
    one, two = _with_margin(predicted, planar), _with_margin(reference, planar)
    own, own_codes, own_sides = _elements(one, two)
    other, other_codes, other_sides = _elements(two, one)
    return (
        _in_order(_distances(own, own_sides, other, steps), table[own_codes], own_sides),
        _in_order(_distances(other, other_sides, own, steps), table[other_codes], other_sides),
    )


@compiled
def _in_order(distances: NDArray[np.float64], areas: NDArray[np.float64], sides: NDArray[np.int8]) -> _Side:
    order = np.argsort(distances)
    return distances[order], areas[order], sides[order]


@compiled
def _with_margin(crop: NDArray[np.bool_], planar: bool) -> NDArray[np.uint8]:
    """Return `elements.padded` of a mask."""
    depth, height, width = crop.shape
    deep = 0 if planar else 1
    out = np.zeros((depth + 2 * deep, height + 2, (width + 17) // 8 * 8), np.uint8)
    for z in range(depth):
        for y in range(height):
            for x in range(width):
                out[z + deep, y + 1, x + 1] = crop[z, y, x]
    return out


@compiled
def _elements(
    own: NDArray[np.uint8], other: NDArray[np.uint8]
) -> tuple[NDArray[np.int32], NDArray[np.uint8], NDArray[np.int8]]:
    most = own.size
    places, codes, sides = np.empty((most, 3), np.int32), np.empty(most, np.uint8), np.empty(most, np.int8)
    words = own.view(np.uint64)
    if own.shape[0] == 1:
        n = scan_plane(own, words, other, places, codes, sides)
    else:
        n = scan_volume(own, words, other, places, codes, sides)
    return places[:n], codes[:n], sides[:n]


@compiled
def _distances(
    queries: NDArray[np.int32],
    sides: NDArray[np.int8],
    targets: NDArray[np.int32],
    steps: tuple[float, float, float],
) -> NDArray[np.float64]:
    """Return each query's distance to the nearest target; both are in raster order."""
    out = np.zeros(len(queries))
    along = steps[2] * steps[2]
    flat = (
        queries[0, 0] == targets[0, 0]
        and queries[-1, 0] == targets[-1, 0]
        and queries[0, 0] == queries[-1, 0]
    )
    start = 0
    for q in range(len(queries)):
        z, y, x = queries[q, 0], queries[q, 1], queries[q, 2]
        while start < len(targets) and (
            targets[start, 0] < z or (targets[start, 0] == z and targets[start, 1] < y)
        ):
            start += 1
        if sides[q] == 0:
            continue
        best = np.inf
        for direction in (1, -1):
            t = start if direction == 1 else start - 1
            while 0 <= t < len(targets):
                dz, dy = (targets[t, 0] - z) * steps[0], (targets[t, 1] - y) * steps[1]
                rows = dz * dz + dy * dy
                if (rows if flat else dz * dz) >= best:
                    break
                if rows < best:
                    dx = np.float64(targets[t, 2] - x)
                    best = min(best, rows + dx * dx * along)
                t += direction
        out[q] = np.sqrt(best)
    return out

"""Where two masks' surface elements lie: compiled scans over the joint box."""

# ruff: noqa: PLR1714 -- what is compiled is written flat

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from clearmargin.compiled import compiled

__all__ = ["bounding_box", "find_elements", "padded", "scan_plane", "scan_volume"]

_ONES = np.uint64(0x0101010101010101)
_WORTH_A_THREAD = 1_000_000  # elements of the joint box


@compiled
def bounding_box(volume: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Return ``(3, 2)`` first and one-past-last indices of what is not zero in ``(Z, Y, X)``; all 0 when empty."""
    depth, height, width = volume.shape
    box = np.zeros((3, 2), np.int64)
    z0, z1, y0, y1, x0, x1 = depth, 0, height, 0, width, 0
    for z in range(depth):
        for y in range(height):
            row = volume[z, y]
            seen = np.uint8(0)
            for x in range(width):
                seen |= row[x]
            if seen:
                z0, z1 = min(z0, z), z + 1
                y0, y1 = min(y0, y), max(y1, y + 1)
                x = 0
                while row[x] == 0:
                    x += 1
                x0 = min(x0, x)
                x = width
                while row[x - 1] == 0:
                    x -= 1
                x1 = max(x1, x)
    if z1:
        box[0, 0], box[0, 1] = z0, z1
        box[1, 0], box[1, 1] = y0, y1
        box[2, 0], box[2, 1] = x0, x1
    return box


def padded(crop: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Return ``crop`` as 0 and 1 with an empty margin of one before and at least one after each axis.

    Images get one axis of extent 1 in front, without margin. Rows are a multiple of eight long, with eight
    spare elements, so that the scan can look at eight at once.
    """
    rows = tuple(n + 2 for n in crop.shape[:-1]) if crop.ndim == 3 else (1, crop.shape[0] + 2)
    out = np.zeros((*rows, (crop.shape[-1] + 2 + 15) // 8 * 8), np.uint8)
    inner = (slice(1, -1),) * (crop.ndim - 1) + (slice(1, crop.shape[-1] + 1),)
    (out if crop.ndim == 3 else out[0])[inner] = crop
    return out


Elements = tuple[NDArray[np.int32], NDArray[np.uint8], NDArray[np.int8]]


def find_elements(first: NDArray[np.uint8], second: NDArray[np.uint8]) -> tuple[Elements, Elements]:
    """Return the surface elements of two masks, both given by `padded`, in raster order.

    Returns:
        For each mask ``(n, 3)`` int32 places on the grid of voxel corners, where place ``(z, y, x)`` is the
        corner before voxel ``(z, y, x)`` of the crop; ``(n,)`` uint8 codes; and ``(n,)`` int8 sides: +1 where
        the element lies outside the other mask, -1 inside it, 0 on its surface.
    """
    if first.size < _WORTH_A_THREAD:
        return _elements_of(first, second), _elements_of(second, first)
    with ThreadPoolExecutor(2) as pool:
        one, two = pool.submit(_elements_of, first, second), pool.submit(_elements_of, second, first)
        return one.result(), two.result()


def _elements_of(own: NDArray[np.uint8], other: NDArray[np.uint8]) -> Elements:
    scan = scan_plane if own.shape[0] == 1 else scan_volume
    words = own.view(np.uint64)
    n = scan(own, words, other, np.zeros((0, 3), np.int32), np.zeros(0, np.uint8), np.zeros(0, np.int8))
    places, codes, sides = np.empty((n, 3), np.int32), np.empty(n, np.uint8), np.empty(n, np.int8)
    scan(own, words, other, places, codes, sides)
    return places, codes, sides


@compiled
def scan_volume(
    own: NDArray[np.uint8],
    words: NDArray[np.uint64],
    other: NDArray[np.uint8],
    places: NDArray[np.int32],
    codes: NDArray[np.uint8],
    sides: NDArray[np.int8],
) -> int:
    """Write the elements of a volume, or only count them where the outputs have no room."""
    writing = len(codes) > 0
    n = 0
    for z in range(own.shape[0] - 1):
        for y in range(own.shape[1] - 1):
            a, b, c, d = words[z, y], words[z, y + 1], words[z + 1, y], words[z + 1, y + 1]
            r, s, t, u = own[z, y], own[z, y + 1], own[z + 1, y], own[z + 1, y + 1]
            for block in range(words.shape[2] - 1):
                first = a[block]
                if b[block] == first and c[block] == first and d[block] == first:
                    x = 8 * block + 8
                    edge = r[x] + s[x] + t[x] + u[x]
                    if (first == 0 and edge == 0) or (first == _ONES and edge == 4):
                        continue
                for x in range(8 * block, 8 * block + 8):
                    code = (
                        128 * r[x] + 64 * r[x + 1] + 32 * s[x] + 16 * s[x + 1]
                        + 8 * t[x] + 4 * t[x + 1] + 2 * u[x] + u[x + 1]
                    )  # fmt: skip
                    if code == 0 or code == 255:
                        continue
                    if writing:
                        around = (
                            np.int64(other[z, y, x]) + other[z, y, x + 1] + other[z, y + 1, x]
                            + other[z, y + 1, x + 1] + other[z + 1, y, x] + other[z + 1, y, x + 1]
                            + other[z + 1, y + 1, x] + other[z + 1, y + 1, x + 1]
                        )  # fmt: skip
                        places[n, 0], places[n, 1], places[n, 2] = z, y, x
                        codes[n] = code
                        sides[n] = 1 if around == 0 else (-1 if around == 8 else 0)
                    n += 1
    return n


@compiled
def scan_plane(
    own: NDArray[np.uint8],
    words: NDArray[np.uint64],
    other: NDArray[np.uint8],
    places: NDArray[np.int32],
    codes: NDArray[np.uint8],
    sides: NDArray[np.int8],
) -> int:
    """Write the elements of an image, or only count them where the outputs have no room."""
    writing = len(codes) > 0
    n = 0
    for y in range(own.shape[1] - 1):
        a, b = words[0, y], words[0, y + 1]
        r, s = own[0, y], own[0, y + 1]
        for block in range(words.shape[2] - 1):
            first = a[block]
            if b[block] == first:
                edge = r[8 * block + 8] + s[8 * block + 8]
                if (first == 0 and edge == 0) or (first == _ONES and edge == 2):
                    continue
            for x in range(8 * block, 8 * block + 8):
                code = 8 * r[x] + 4 * r[x + 1] + 2 * s[x] + s[x + 1]
                if code == 0 or code == 15:
                    continue
                if writing:
                    around = (
                        np.int64(other[0, y, x])
                        + other[0, y, x + 1]
                        + other[0, y + 1, x]
                        + other[0, y + 1, x + 1]
                    )
                    places[n, 0], places[n, 1], places[n, 2] = 0, y, x
                    codes[n] = code
                    sides[n] = 1 if around == 0 else (-1 if around == 4 else 0)
                n += 1
    return n

"""Tiles of a view, in the plane or in space: where they lie, and what they share."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Tile", "TileGrid", "lay_tiles"]


@dataclass(frozen=True, kw_only=True)
class Tile:
    """A part of a view, ``low`` to ``high`` (exclusive), ``(y, x)`` or ``(z, y, x)`` in its pixels."""

    low: tuple[int, ...]
    high: tuple[int, ...]

    @property
    def size(self) -> tuple[int, ...]:
        """Its extents."""
        return tuple(b - a for a, b in zip(self.low, self.high, strict=True))

    def shared(self, other: Tile) -> tuple[slice, ...] | None:
        """Return what both tiles hold, as slices of the view; None if that is nothing."""
        low = [max(a, b) for a, b in zip(self.low, other.low, strict=True)]
        high = [min(a, b) for a, b in zip(self.high, other.high, strict=True)]
        if any(a >= b for a, b in zip(low, high, strict=True)):
            return None
        return tuple(slice(a, b) for a, b in zip(low, high, strict=True))

    def is_cut(self, box: tuple[tuple[int, ...], tuple[int, ...]], view: tuple[int, ...]) -> bool:
        """Return whether a box touches an edge of the tile beyond which the view goes on."""
        return any(
            (start <= low and low > 0) or (stop >= high and high < extent)
            for start, stop, low, high, extent in zip(*box, self.low, self.high, view, strict=True)
        )

    def trust(self, part: tuple[slice, ...], view: tuple[int, ...]) -> NDArray[np.float32]:
        """Return how far each pixel of a part of the tile lies from the nearest edge that cuts the view.

        A network knows least about what lies at such an edge.
        """
        along = []
        for axis, within in enumerate(part):
            centres = np.arange(within.start, within.stop) + 0.5
            first, last = self.low[axis], self.high[axis]
            near = centres - first if first > 0 else np.inf
            far = last - centres if last < view[axis] else np.inf
            along.append(np.minimum(np.minimum(near, far), np.full(len(centres), float(max(view)))))
        nearest: NDArray[np.float64] = functools.reduce(np.minimum, np.ix_(*along))
        return nearest.astype(np.float32)


def lay_tiles(view: tuple[int, ...], tile: tuple[int, ...], overlap: tuple[int, ...]) -> tuple[Tile, ...]:
    """Return tiles that cover a view, row by row, in space slice by slice.

    Neighbours share at least ``overlap`` pixels on each axis; the last ones end with the view. No tile is larger than
    the view.
    """
    starts = []
    for extent, size, shared in zip(view, tile, overlap, strict=True):
        last = max(extent - size, 0)
        starts.append([*range(0, last, size - shared), last])
    return tuple(
        Tile(low=low, high=tuple(min(a + n, e) for a, n, e in zip(low, tile, view, strict=True)))
        for low in itertools.product(*starts)
    )


class TileGrid:
    """Tiles by where they lie, for views of thousands of them."""

    def __init__(self, tiles: Sequence[Tile]) -> None:
        self._tiles = tuple(tiles)
        self._lows, self._highs = (
            np.array([getattr(t, end) for t in tiles], np.int64) for end in ("low", "high")
        )

    def after(self, index: int) -> list[int]:
        """Return the positions, above ``index``, of the tiles that share something with that one."""
        tile = self._tiles[index]
        lows, highs = self._lows[index + 1 :], self._highs[index + 1 :]
        meets = ((lows < np.array(tile.high)) & (highs > np.array(tile.low))).all(axis=1)
        positions: list[int] = (np.flatnonzero(meets) + index + 1).tolist()
        return positions

    def holding(self, box: tuple[tuple[int, ...], tuple[int, ...]]) -> list[Tile]:
        """Return the tiles that hold a box, start and stop."""
        inside = ((self._lows <= np.array(box[0])) & (self._highs >= np.array(box[1]))).all(axis=1)
        return [self._tiles[k] for k in np.flatnonzero(inside)]

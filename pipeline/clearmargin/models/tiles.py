"""Tiles of a view: where they lie, and what they share."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Tile", "lay_tiles"]


@dataclass(frozen=True, kw_only=True)
class Tile:
    """A part of a view, ``low`` to ``high`` (exclusive), ``(y, x)`` in its pixels."""

    low: tuple[int, int]
    high: tuple[int, int]

    @property
    def size(self) -> tuple[int, int]:
        """``(Y, X)``."""
        return self.high[0] - self.low[0], self.high[1] - self.low[1]

    def shared(self, other: Tile) -> tuple[slice, ...] | None:
        """Return what both tiles hold, as slices of the view; None if that is nothing."""
        low = [max(a, b) for a, b in zip(self.low, other.low, strict=True)]
        high = [min(a, b) for a, b in zip(self.high, other.high, strict=True)]
        if any(a >= b for a, b in zip(low, high, strict=True)):
            return None
        return tuple(slice(a, b) for a, b in zip(low, high, strict=True))

    def holds(self, box: tuple[tuple[int, ...], tuple[int, ...]]) -> bool:
        """Return whether a box, start and stop, lies in the tile."""
        return all(
            a <= start and stop <= b for start, stop, a, b in zip(*box, self.low, self.high, strict=True)
        )

    def is_cut(self, box: tuple[tuple[int, ...], tuple[int, ...]], view: tuple[int, int]) -> bool:
        """Return whether a box touches an edge of the tile beyond which the view goes on."""
        return any(
            (start <= low and low > 0) or (stop >= high and high < extent)
            for start, stop, low, high, extent in zip(*box, self.low, self.high, view, strict=True)
        )

    def trust(self, part: tuple[slice, ...], view: tuple[int, int]) -> NDArray[np.float32]:
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
        distance: NDArray[np.float32] = np.minimum(along[0][:, None], along[1]).astype(np.float32)
        return distance


def lay_tiles(view: tuple[int, int], tile: tuple[int, int], overlap: int) -> tuple[Tile, ...]:
    """Return tiles that cover a view, row by row.

    Neighbours share at least ``overlap`` pixels; the last ones end with the view. No tile is larger than the view.
    """
    starts = []
    for extent, size in zip(view, tile, strict=True):
        last = max(extent - size, 0)
        starts.append([*range(0, last, size - overlap), last])
    return tuple(
        Tile(low=(y, x), high=(min(y + tile[0], view[0]), min(x + tile[1], view[1])))
        for y in starts[0]
        for x in starts[1]
    )

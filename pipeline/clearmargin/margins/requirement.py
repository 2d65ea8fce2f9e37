"""The margin that one matched object would have needed: the score that conformal margins are made of.

A face of the true surface has a true element inside and another element outside. An outer margin covers the
face if the grown prediction holds the inside one; an inner margin covers it if the shrunk prediction
does not hold the outside one. An object is covered as a whole if every element is right and not its surface alone: the
true object lies within the grown prediction (outer), the shrunk prediction within the true object (inner), as sets.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from clearmargin.core import Grid, Mask
from clearmargin.margins.reach import (
    EdgeScale,
    check_right_angles,
    depth,
    distance_outside,
    face_areas,
)

__all__ = ["SIDES", "Needed", "Side", "needed_margin"]

Side = Literal["outer", "inner"]
SIDES: tuple[Side, ...] = get_args(Side)

_MOST = 64  # steps of the share that is kept of an object; what is dropped is rounded up


@dataclass(frozen=True, kw_only=True, eq=False)
class Needed:
    """What one matched object needed on one side.

    Attributes:
        whole: The smallest margin that covers it as a whole: in the grid's unit, or in scales of the edge.
        distances: ``(K,)`` float64, rising: the margins at which more of the true surface is covered.
        outside: ``(K,)`` float64 in (0, 1], falling: the share of the true surface, by area of its faces, that is
            outside with any margin under each of ``distances``.
    """

    whole: float
    distances: NDArray[np.float64]
    outside: NDArray[np.float64]

    def share_outside(self, margin: float) -> float:
        """Return the share of the true surface that a margin leaves outside."""
        k = int(np.searchsorted(self.distances, margin, side="right"))
        return float(self.outside[k]) if k < len(self.outside) else 0.0


def needed_margin(
    predicted: Mask,
    reference: Mask,
    grid: Grid,
    side: Side,
    *,
    scale: EdgeScale | None = None,
    ignore: Mask | None = None,
) -> Needed:
    """Return what one pair needs; all of it 0 if nothing is asked for.

    Args:
        predicted: Not empty.
        reference: Not empty, on the same grid.
        grid: Its axes are at right angles.
        side: ``outer``: the true object lies within the predicted one grown by the margin. ``inner``: the predicted
            one shrunk by the margin lies within the true one.
        scale: The predicted edge's; margins are then in scales. None for one margin all around.
        ignore: Region in which nothing is asked for.

    Raises:
        GeometryError: The grid is sheared.
        ValueError: A mask is empty.
    """
    check_right_angles(grid)
    if not (predicted.area and reference.area):
        raise ValueError("a matched pair has two masks that are not empty")
    box, origin = _joint_box(predicted, reference)
    ours, theirs = (np.pad(mask.within(box), 1) for mask in (predicted, reference))
    asked = np.ones(ours.shape, bool) if ignore is None else ~np.pad(ignore.within(box), 1)
    reach = distance_outside if side == "outer" else depth
    distances = reach(ours, grid.spacing, scale, origin)
    wrong = (theirs if side == "outer" else ours & ~theirs) & asked
    areas = face_areas(theirs, grid.spacing, inside=side == "outer") * asked
    steps, outside = _steps(distances[areas > 0], areas[areas > 0])
    return Needed(whole=float(distances[wrong].max(initial=0.0)), distances=steps, outside=outside)


def _steps(
    distances: NDArray[np.float64], areas: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return where the covered share of the area grows, and the share that is left just below."""
    far = distances > 0
    if not far.any():
        return np.zeros(0), np.zeros(0)
    steps, place = np.unique(distances[far], return_inverse=True)
    held = np.bincount(place, areas[far])
    outside = np.cumsum(held[::-1])[::-1] / areas.sum()
    if len(steps) > _MOST:  # each part of the edge waits for the next step that is kept
        kept = np.unique(np.linspace(0, len(steps) - 1, _MOST).round().astype(int))
        first = np.concatenate([[0], kept[:-1] + 1])
        steps, outside = steps[kept], outside[first]
    return steps, outside


def _joint_box(first: Mask, second: Mask) -> tuple[tuple[slice, ...], tuple[int, ...]]:
    """Return the box of both masks, and the index of its first element once it is padded by one."""
    starts = np.minimum(first.box[0], second.box[0])
    stops = np.maximum(first.box[1], second.box[1])
    box = tuple(slice(int(a), int(b)) for a, b in zip(starts, stops, strict=True))
    return box, tuple(int(a) - 1 for a in starts)

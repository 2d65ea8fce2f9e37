"""Landmarks that lie far from where the others of their type do, beside the other points of their object."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from clearmargin.core import Grid, Landmarks

__all__ = ["FarPoint", "far_points"]

_TIMES = 6.0  # the median distance: about 7 standard deviations in the plane
_FEWEST = 10  # points of a type, to know where they lie


@dataclass(frozen=True, kw_only=True)
class FarPoint:
    """A landmark to look at.

    Attributes:
        case: Case id.
        object: Its number in the case, from 1 on.
        point: Name of its type.
        away: How far it lies from its type's usual place, in the grid's unit.
        typical: The median of that distance.
    """

    case: str
    object: int
    point: str
    away: float
    typical: float


def far_points(sets: Sequence[tuple[str, Grid, Landmarks]]) -> list[FarPoint]:
    """Return the points over six times as far from their type's usual place as its median point, farthest first.

    A place is the offset from the mean of the other points of the object; a case with at most one point of each type
    is one object. The usual place is the median over all objects. Of an object only the point that is worst is
    returned, since it moves the mean of the others.

    Args:
        sets: Case id, grid and landmarks of each case, of the same types.

    Returns:
        None of a type with fewer than ten points that have another beside them.
    """
    places: dict[int, list[tuple[tuple[int, int], NDArray[np.float64]]]] = {}
    for number, (_, grid, landmarks) in enumerate(sets):
        alone = (landmarks.visible > 0).sum(axis=0).max(initial=0) <= 1
        shown = np.argwhere(landmarks.visible > 0)
        world = grid.to_world(landmarks.points[landmarks.visible > 0])
        for at, (i, k) in enumerate(shown.tolist()):
            beside = (shown[:, 0] == i) | alone
            beside[at] = False
            if beside.any():
                places.setdefault(k, []).append(((number, i), world[at] - world[beside].mean(axis=0)))
    worst: dict[tuple[int, int], FarPoint] = {}
    for k, of_type in places.items():
        offsets = np.array([offset for _, offset in of_type])
        away = np.linalg.norm(offsets - np.median(offsets, axis=0), axis=1)
        typical = float(np.median(away))
        if len(away) < _FEWEST or not typical:
            continue
        for (number, i), distance in zip((owner for owner, _ in of_type), away.tolist(), strict=True):
            case, _, landmarks = sets[number]
            name = landmarks.types[k].name
            one = FarPoint(case=case, object=i + 1, point=name, away=distance, typical=typical)
            alone = (landmarks.visible > 0).sum(axis=0).max(initial=0) <= 1
            key = (number, -1 if alone else i)
            if distance > _TIMES * typical and (key not in worst or _ratio(worst[key]) < _ratio(one)):
                worst[key] = one
    return sorted(worst.values(), key=_ratio, reverse=True)


def _ratio(one: FarPoint) -> float:
    return one.away / one.typical

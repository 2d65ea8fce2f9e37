"""Landmarks that lie far from the other points of their object, as those of their type seldom do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from clearmargin.core import Grid, Landmarks

__all__ = ["FarPoint", "far_points"]

_MOST, _TIMES = 0.9, 2.0  # nine in ten lie within a length, and none should lie beyond twice that
_FEWEST = 10  # points of a type, to know how far they lie


@dataclass(frozen=True, kw_only=True)
class FarPoint:
    """A landmark to look at.

    Attributes:
        case: Case id.
        object: Its number in the case, from 1 on.
        point: Name of its type.
        away: Distance from the mean of the object's other points, in the grid's unit.
        usual: Nine in ten points of its type lie within it.
    """

    case: str
    object: int
    point: str
    away: float
    usual: float

    @property
    def ratio(self) -> float:
        """Distance over the usual one."""
        return self.away / self.usual


def far_points(sets: Sequence[tuple[str, Grid, Landmarks]]) -> list[FarPoint]:
    """Return the points over twice as far from their object's others as nine in ten of their type, farthest first.

    A case with at most one point of each type is one object. The direction does not count, so that objects may lie
    turned. Of an object only the point that is worst is returned, since it moves the mean of the others.

    Args:
        sets: Case id, grid and landmarks of each case, of the same types.

    Returns:
        None of a type with fewer than ten points that have another beside them.
    """
    distances: dict[int, list[tuple[tuple[int, int], int, float]]] = {}
    for number, (_, grid, landmarks) in enumerate(sets):
        alone = (landmarks.visible > 0).sum(axis=0).max(initial=0) <= 1
        shown = np.argwhere(landmarks.visible > 0)
        world = grid.to_world(landmarks.points[landmarks.visible > 0])
        for at, (i, k) in enumerate(shown.tolist()):
            beside = (shown[:, 0] == i) | alone
            beside[at] = False
            if beside.any():
                away = float(np.linalg.norm(world[at] - world[beside].mean(axis=0)))
                distances.setdefault(k, []).append(((number, -1 if alone else i), i, away))
    worst: dict[tuple[int, int], FarPoint] = {}
    for k, of_type in distances.items():
        usual = float(np.quantile([away for _, _, away in of_type], _MOST))
        if len(of_type) < _FEWEST or not usual:
            continue
        for owner, i, away in of_type:
            case, _, landmarks = sets[owner[0]]
            one = FarPoint(case=case, object=i + 1, point=landmarks.types[k].name, away=away, usual=usual)
            if one.ratio > _TIMES and (owner not in worst or worst[owner].ratio < one.ratio):
                worst[owner] = one
    return sorted(worst.values(), key=lambda one: one.ratio, reverse=True)

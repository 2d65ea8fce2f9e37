"""Which instance a point belongs to: the one in whose region, or beside whose region, it lies."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from clearmargin.core.grid import Grid
from clearmargin.core.instances import InstanceSet
from clearmargin.core.landmarks import ABSENT, Landmarks
from clearmargin.core.mask import Mask

__all__ = ["REACH", "with_owners"]

REACH = 0.2
"""How far beside an instance's mask its points may lie, as a share of the diagonal of the mask's box."""


def with_owners(landmarks: Landmarks, instances: InstanceSet) -> Landmarks:
    """Return landmarks as objects that belong to instances: at most one point of a type per instance.

    A pair of a point and an instance is worth the product of their scores, less the share of `REACH` by which the
    point lies beside the mask; beyond it they are no pair. Of each type the pairs are those whose worth together is
    largest. So of two crossing instruments each has a tip of its own, although one tip lies on both masks; and a weak
    second look at an instrument does not take the points of the first.

    Args:
        landmarks: Points on the instances' grid; how they were grouped does not count.
        instances: In whose order the objects come, with the areas of their masks; points of none follow, alone.

    Source: Kuhn, "The Hungarian method for the assignment problem", 1955 (`scipy.optimize.linear_sum_assignment`).
    """
    from scipy.optimize import linear_sum_assignment

    singles = landmarks.singles()
    n, types = len(instances), (singles.visible > ABSENT).argmax(axis=1)
    rows = np.arange(len(singles))
    nearness = (
        np.stack(
            [_nearness(mask, singles.points[rows, types], instances.grid) for mask in instances.masks], axis=1
        )
        if n and len(singles)
        else np.zeros((len(singles), n))
    )
    worth = nearness * singles.scores[rows, types][:, None] * instances.scores[None]
    owner = np.full(len(singles), -1, np.int64)
    for k in range(len(singles.types)):
        own = np.flatnonzero(types == k)
        for i, j in zip(*linear_sum_assignment(worth[own], maximize=True), strict=True):
            if worth[own[i], j] > 0:
                owner[own[i]] = j
    return _grouped(singles, types, owner, instances)


def _nearness(mask: Mask, points: NDArray[np.float64], grid: Grid) -> NDArray[np.float64]:
    """Return 1 for points in a mask, falling to 0 at `REACH` beside it, ``(P,)``."""
    from scipy.spatial import cKDTree

    elements = grid.to_world(np.argwhere(mask.crop) + np.array(mask.origin))
    if not len(elements):
        return np.zeros(len(points))
    reach = REACH * float(np.linalg.norm(np.multiply(mask.crop.shape, grid.spacing)))
    within = max(grid.spacing) * np.sqrt(grid.ndim) / 2  # of the centre of an element that a point lies in
    reach = max(reach, within)
    apart, _ = cKDTree(elements).query(grid.to_world(points), distance_upper_bound=reach + within)
    nearness: NDArray[np.float64] = np.clip(1 - (np.asarray(apart, np.float64) - within) / reach, 0, 1)
    return nearness


def _grouped(
    singles: Landmarks, types: NDArray[np.int64], owner: NDArray[np.int64], instances: InstanceSet
) -> Landmarks:
    """Return an object per instance that owns a point, then one per point without an owner."""
    owning = np.unique(owner[owner >= 0])
    alone = np.flatnonzero(owner < 0)
    row = np.concatenate([np.searchsorted(owning, owner[owner >= 0]), len(owning) + np.arange(len(alone))])
    order = np.concatenate([np.flatnonzero(owner >= 0), alone])
    count = len(owning) + len(alone)

    def gathered(column: NDArray[Any]) -> NDArray[Any]:
        fill = np.nan if column.dtype == np.float64 else 0
        rows = np.full((count, *column.shape[1:]), fill, column.dtype)
        rows[row, types[order]] = column[order, types[order]]
        return rows

    return Landmarks(
        types=singles.types,
        points=gathered(singles.points),
        visible=gathered(singles.visible),
        scores=gathered(singles.scores),
        covariance=None if singles.covariance is None else gathered(singles.covariance),
        areas=np.array(
            [*(float(instances.masks[j].area) for j in owning), *np.full(len(alone), np.nan)], np.float64
        ),
        owners=np.concatenate([owning, np.full(len(alone), -1)]).astype(np.int64),
    )

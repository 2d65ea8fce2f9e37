"""Grids that share their elements: SEGs of one series, a crop of a volume, a volume stored the other way."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from clearmargin.core.grid import Grid
from clearmargin.core.instances import Crowd, InstanceSet
from clearmargin.core.mask import Mask

__all__ = ["Placement", "joined", "placed", "placement"]

_BESIDE = 0.05  # of an element: how far elements may lie beside each other


@dataclass(frozen=True, kw_only=True, eq=False)
class Placement:
    """Where the indices of one grid lie on another: ``turn @ index + shift``, whole numbers.

    Attributes:
        turn: ``(n, n)`` int64, one entry of 1 or -1 in each row and column.
        shift: ``(n,)`` int64.
    """

    turn: NDArray[np.int64]
    shift: NDArray[np.int64]


def placement(grid: Grid, onto: Grid) -> Placement | None:
    """Return where the elements of ``grid`` are among those of ``onto``, continued in all directions; None for nowhere.

    Pictures, whose unit is px, have no place in the world: only two of one shape are the same.
    """
    if grid.ndim != onto.ndim or grid.unit != onto.unit:
        return None
    n = grid.ndim
    if grid.unit == "px":
        same = grid.same_as(onto)
        return Placement(turn=np.eye(n, dtype=np.int64), shift=np.zeros(n, np.int64)) if same else None
    if n == 2:
        aligned = grid.shape == onto.shape and grid.same_as(onto)
        return Placement(turn=np.eye(2, dtype=np.int64), shift=np.zeros(2, np.int64)) if aligned else None
    there = np.linalg.inv(onto.affine) @ grid.affine
    turn, shift = np.round(there[:3, :3]).astype(np.int64), np.round(there[:3, 3]).astype(np.int64)
    if not (np.abs(turn).sum(axis=0) == 1).all() or not (np.abs(turn).sum(axis=1) == 1).all():
        return None
    corners = _corners(grid.shape)
    off = corners @ there[:3, :3].T + there[:3, 3] - (corners @ turn.T + shift)
    return Placement(turn=turn, shift=shift) if np.abs(off).max() <= _BESIDE else None


def joined(grid: Grid, where: Placement, shape: tuple[int, ...]) -> Grid:
    """Return ``grid``, continued so that it also holds another of ``shape`` that lies at ``where`` on it."""
    ends = _corners(shape) @ where.turn.T + where.shift
    low = np.minimum(ends.min(axis=0), 0)
    high = np.maximum(ends.max(axis=0), np.array(grid.shape) - 1)
    if not low.any() and (high + 1 == grid.shape).all():
        return grid
    affine = grid.affine.copy()
    n = grid.ndim
    affine[:3, 3] += affine[:3, 3 - n : 3] @ low
    return Grid(shape=tuple(int(v) for v in high - low + 1), affine=affine, unit=grid.unit)


def placed(instances: InstanceSet, grid: Grid) -> InstanceSet:
    """Return the instances on another grid of the same elements; what lies outside it is lost.

    Raises:
        ValueError: The two grids do not share their elements.
    """
    where = placement(instances.grid, grid)
    if where is None:
        raise ValueError(f"{instances.grid} and {grid} do not share their elements")
    if (
        instances.grid.shape == grid.shape
        and (where.turn == np.eye(grid.ndim)).all()
        and not where.shift.any()
    ):
        return replace(instances, grid=grid)

    def put(mask: Mask) -> Mask:
        axes = np.abs(where.turn).argmax(axis=1)  # which of its axes becomes each of the grid's
        signs = where.turn.sum(axis=1)
        if not mask.crop.size:
            return Mask(shape=grid.shape, origin=(0,) * grid.ndim, crop=np.zeros((0,) * grid.ndim, bool))
        crop = np.transpose(mask.crop, axes)[tuple(slice(None, None, int(s)) for s in signs)]
        first = np.array(mask.origin)[axes]
        last = first + np.array(mask.crop.shape)[axes] - 1
        origin = where.shift + np.where(signs > 0, first, -last)
        return Mask.from_crop(crop, tuple(int(v) for v in origin), grid.shape)

    return replace(
        instances,
        grid=grid,
        masks=tuple(put(mask) for mask in instances.masks),
        ignore=None if instances.ignore is None else put(instances.ignore),
        crowds=tuple(Crowd(mask=put(crowd.mask), label=crowd.label) for crowd in instances.crowds),
    )


def _corners(shape: tuple[int, ...]) -> NDArray[np.int64]:
    """Return ``(2^n, n)`` indices of the outermost elements."""
    return np.stack(np.meshgrid(*[(0, n - 1) for n in shape], indexing="ij"), -1).reshape(-1, len(shape))

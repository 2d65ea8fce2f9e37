"""Shapes whose surface is known in closed form, drawn on grids."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from clearmargin.core import Grid, InstanceSet


def ball(
    shape: tuple[int, ...], centre: tuple[float, ...], radius: float, spacing: tuple[float, ...]
) -> NDArray[np.bool_]:
    """Return the elements whose centre lies within ``radius`` of ``centre``, both in units of ``spacing``."""
    axes = np.meshgrid(
        *[np.arange(n) * s for n, s in zip(shape, spacing, strict=True)], indexing="ij", sparse=True
    )
    squared = sum((axis - c) ** 2 for axis, c in zip(axes, centre, strict=True))
    return np.asarray(squared <= radius**2)


def block(shape: tuple[int, ...], start: tuple[int, ...], stop: tuple[int, ...]) -> NDArray[np.bool_]:
    """Return the elements of the box ``start`` to ``stop``, stop exclusive."""
    out = np.zeros(shape, bool)
    out[tuple(slice(a, b) for a, b in zip(start, stop, strict=True))] = True
    return out


def squares(
    n: int,
    *places: tuple[int, int, int],
    labels: list[int] | None = None,
    scores: list[float] | None = None,
    spacing: tuple[float, float] | None = (1.0, 1.0),
) -> InstanceSet:
    """Return squares given as (y, x, side) on an n x n grid."""
    masks = [block((n, n), (y, x), (y + side, x + side)) for y, x, side in places]
    return InstanceSet.from_dense(Grid.from_spacing((n, n), spacing), masks, labels, scores)

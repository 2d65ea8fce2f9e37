"""Predicted landmarks and the true points that they belong to: what a calibration keeps of them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from clearmargin.core import Grid, Landmarks
from clearmargin.core.landmarks import SEEN, VISIBILITIES
from clearmargin.metrics.landmark_rows import pair_points

__all__ = ["ObservedPoints", "PairedPoint", "basis_of", "paired_points"]

Matrix = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, eq=False)
class ObservedPoints:
    """The landmarks of one case, as predicted and as they are.

    Attributes:
        group: The case's group.
        predicted: Every point, down to score 0.
        reference: Of the same types.
        grid: Of both.
    """

    group: str
    predicted: Landmarks
    reference: Landmarks
    grid: Grid


@dataclass(frozen=True, kw_only=True, eq=False)
class PairedPoint:
    """One predicted landmark whose partner is known.

    Attributes:
        group: The group that it belongs to.
        point: Name of its type.
        seen: Whether it is predicted as seen.
        visibility: Of its partner: ``seen`` or ``hidden``.
        error: ``(ndim,)`` from the prediction to its partner, in the grid's unit.
        spread: ``(ndim, ndim)``, its covariance in that unit squared; None if it has none.
    """

    group: str
    point: str
    seen: bool
    visibility: str
    error: Matrix
    spread: Matrix | None


def paired_points(cases: Iterable[ObservedPoints], least: float) -> list[PairedPoint]:
    """Return the predicted points of a score of ``least`` or more that have a partner (`pair_points`)."""
    rows = []
    for case in cases:
        kept = case.predicted.at_least(least)
        basis = basis_of(case.grid)
        for (i, k), (p, _) in pair_points(kept, case.reference, case.grid).items():
            spread = None if kept.covariance is None else basis @ kept.covariance[p, k] @ basis.T
            rows.append(
                PairedPoint(
                    group=case.group,
                    point=kept.types[k].name,
                    seen=bool(kept.visible[p, k] == SEEN),
                    visibility=VISIBILITIES[case.reference.visible[i, k]],
                    error=basis @ (case.reference.points[i, k] - kept.points[p, k]),
                    spread=spread,
                )
            )
    return rows


def basis_of(grid: Grid) -> Matrix:
    """Return the matrix from steps of indices to lengths in the grid's unit, in a basis at right angles.

    Any such basis serves: regions and errors are turned together.
    """
    basis: Matrix = np.linalg.qr(grid.affine[:3, 3 - grid.ndim : 3])[1]
    return basis

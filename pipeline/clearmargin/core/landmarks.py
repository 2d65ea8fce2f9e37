"""Landmarks: named points of objects, seen, hidden or absent, on a grid of their own or beside instances."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from clearmargin.core.labels import PointType, mirrored_order

__all__ = ["ABSENT", "HIDDEN", "SEEN", "VISIBILITIES", "Landmarks"]

ABSENT, HIDDEN, SEEN = 0, 1, 2
"""Visibility of a point, with COCO's codes: not labelled; labelled and hidden; labelled and seen."""
VISIBILITIES = ("absent", "hidden", "seen")

_SQUARES = ("covariance", "regions")


@dataclass(frozen=True, kw_only=True, eq=False)
class Landmarks:
    """N objects with K points each, as columns of equal length; pixel centres lie at whole numbers.

    Attributes:
        types: The K types of points, as the label map lists them.
        points: ``(N, K, ndim)`` float64 array indices, ``(y, x)`` or ``(z, y, x)``; NaN where absent.
        visible: ``(N, K)`` int8: ``ABSENT``, ``HIDDEN`` or ``SEEN``.
        scores: ``(N, K)`` float32 in [0, 1]; 1 for reference annotations, 0 where absent.
        covariance: ``(N, K, ndim, ndim)`` float64, in squared indices; NaN where absent. None if it is not known.
        regions: ``(N, K, ndim, ndim)`` float64, in squared indices; NaN where absent. The region of point ``p`` is
            ``(x - p)' inv(regions) (x - p) <= 1``, an ellipse or ellipsoid; None if it was not calibrated.
        areas: ``(N,)`` float64, pixels (voxels) that each object takes, which COCO scales errors by; NaN if unknown.
        owners: ``(N,)`` int64, position of the instance that each object belongs to, -1 for none of them; None if
            nobody asked.
    """

    types: tuple[PointType, ...]
    points: NDArray[np.float64]
    visible: NDArray[np.int8]
    scores: NDArray[np.float32]
    covariance: NDArray[np.float64] | None = None
    regions: NDArray[np.float64] | None = None
    areas: NDArray[np.float64]
    owners: NDArray[np.int64] | None = None

    def __post_init__(self) -> None:
        points = np.array(self.points, np.float64)
        if points.ndim != 3 or points.shape[1] != len(self.types) or points.shape[2] not in (2, 3):
            raise ValueError(f"points are (N, {len(self.types)}, 2 or 3), not {points.shape}")
        n, k, ndim = points.shape
        visible = np.array(self.visible, np.int8)
        scores = np.array(self.scores, np.float32)
        areas = np.array(self.areas, np.float64)
        for name, column, shape in (
            ("visible", visible, (n, k)),
            ("scores", scores, (n, k)),
            ("areas", areas, (n,)),
        ):
            if column.shape != shape:
                raise ValueError(f"{name} has shape {column.shape}; the points need {shape}")
        if n and (visible.min() < ABSENT or visible.max() > SEEN):
            raise ValueError("visible holds 0 (absent), 1 (hidden) and 2 (seen)")
        labelled = visible > ABSENT
        if not np.isfinite(points[labelled]).all():
            raise ValueError("a point that is not absent has finite coordinates")
        if n and not (np.isfinite(scores).all() and scores.min() >= 0 and scores.max() <= 1):
            raise ValueError("scores lie in [0, 1]")
        points[~labelled] = np.nan
        scores[~labelled] = 0
        columns: dict[str, NDArray[Any]] = {
            "points": points,
            "visible": visible,
            "scores": scores,
            "areas": areas,
        }
        for name in _SQUARES:
            if getattr(self, name) is None:
                continue
            squares = np.array(getattr(self, name), np.float64)
            if squares.shape != (n, k, ndim, ndim):
                raise ValueError(f"{name} has shape {squares.shape}; the points need {(n, k, ndim, ndim)}")
            squares[~labelled] = np.nan
            columns[name] = squares
        if self.owners is not None:
            columns["owners"] = np.array(self.owners, np.int64)
            if columns["owners"].shape != (n,):
                raise ValueError(f"owners has shape {columns['owners'].shape}; the points need {(n,)}")
        for name, column in columns.items():
            column.flags.writeable = False
            object.__setattr__(self, name, column)

    @staticmethod
    def of(
        types: tuple[PointType, ...],
        points: ArrayLike,
        visible: ArrayLike,
        *,
        scores: ArrayLike | None = None,
        covariance: ArrayLike | None = None,
        areas: ArrayLike | None = None,
    ) -> Landmarks:
        """Return landmarks; scores default to 1, areas to those of the boxes around each object's points."""
        at, seen = np.array(points, np.float64), np.asarray(visible, np.int8)
        if seen.shape != at.shape[:2]:
            raise ValueError(f"visible has shape {seen.shape}; the points need {at.shape[:2]}")
        return Landmarks(
            types=types,
            points=at,
            visible=seen,
            scores=np.ones(seen.shape, np.float32) if scores is None else np.asarray(scores, np.float32),
            covariance=None if covariance is None else np.asarray(covariance, np.float64),
            areas=_box_areas(at, seen) if areas is None else np.asarray(areas, np.float64),
        )

    @staticmethod
    def empty(types: tuple[PointType, ...], ndim: int) -> Landmarks:
        """Return the landmarks of no object."""
        k = len(types)
        return Landmarks.of(types, np.zeros((0, k, ndim)), np.zeros((0, k), np.int8))

    def __len__(self) -> int:
        return len(self.points)

    @property
    def ndim(self) -> int:
        """2 or 3."""
        return int(self.points.shape[2])

    @property
    def count(self) -> int:
        """Number of points that are not absent."""
        return int((self.visible > ABSENT).sum())

    def select(self, index: ArrayLike) -> Landmarks:
        """Return the objects that ``index`` picks: a bool array ``(N,)`` or integer positions, in that order."""
        picks = np.asarray(index)
        picks = np.flatnonzero(picks) if picks.dtype == np.bool_ else picks.astype(np.int64)
        return replace(
            self,
            points=self.points[picks],
            visible=self.visible[picks],
            scores=self.scores[picks],
            covariance=None if self.covariance is None else self.covariance[picks],
            regions=None if self.regions is None else self.regions[picks],
            areas=self.areas[picks],
            owners=None if self.owners is None else self.owners[picks],
        )

    def only(self, keep: NDArray[np.bool_]) -> Landmarks:
        """Return the landmarks with the points outside ``keep``, ``(N, K)``, absent; objects without any are gone."""
        visible = np.where(keep, self.visible, np.int8(ABSENT)).astype(np.int8)
        return replace(self, visible=visible).select((visible > ABSENT).any(axis=1))

    def at_least(self, score: float) -> Landmarks:
        """Return the landmarks with the points of a lower score absent; objects without any are gone."""
        return self.only(self.scores >= np.float32(score))

    def inside(self, shape: tuple[int, ...]) -> Landmarks:
        """Return the landmarks with the points outside an image of ``shape`` absent; objects without any are gone."""
        with np.errstate(invalid="ignore"):
            within: NDArray[np.bool_] = (self.points >= -0.5) & (self.points <= np.array(shape) - 0.5)
        return self.only(np.asarray(within.all(axis=2), bool))

    def moved(self, matrix: NDArray[np.float64]) -> Landmarks:
        """Return the landmarks on another grid; a matrix that mirrors swaps left and right as the types say.

        Args:
            matrix: ``(ndim + 1, ndim + 1)``, from indices of this grid to indices of the other.
        """
        there = self.reindexed(matrix)
        if np.linalg.det(matrix[:-1, :-1]) >= 0:
            return there
        order = mirrored_order(self.types)
        return replace(
            there,
            points=there.points[:, order],
            visible=there.visible[:, order],
            scores=there.scores[:, order],
            covariance=None if there.covariance is None else there.covariance[:, order],
            regions=None if there.regions is None else there.regions[:, order],
        )

    def reindexed(self, matrix: NDArray[np.float64]) -> Landmarks:
        """Return the landmarks in other indices of the same places, where left stays left; ``matrix`` as in `moved`."""
        linear = matrix[:-1, :-1]
        spread, reach = (
            None if s is None else linear @ s @ linear.T for s in (self.covariance, self.regions)
        )
        return replace(
            self,
            points=self.points @ linear.T + matrix[:-1, -1],
            covariance=spread,
            regions=reach,
            areas=self.areas * abs(float(np.linalg.det(linear))),
        )

    def plane(self, z: int) -> Landmarks:
        """Return the points of a volume that are nearest to slice ``z``, as ``(y, x)``; regions as their shadows."""
        with np.errstate(invalid="ignore"):
            here = self.only(np.rint(self.points[..., 0]) == z)
        return replace(
            here,
            points=here.points[..., 1:],
            covariance=None if here.covariance is None else here.covariance[..., 1:, 1:],
            regions=None if here.regions is None else here.regions[..., 1:, 1:],
            areas=np.full(len(here), np.nan),
        )

    def owned_by(self, positions: NDArray[np.int64]) -> Landmarks:
        """Return the landmarks with owners after a choice of instances.

        Args:
            positions: Former position of each instance that is left; objects of others belong to none.
        """
        if self.owners is None:
            return self
        after = {int(before): k for k, before in enumerate(positions)}
        return replace(self, owners=np.array([after.get(int(o), -1) for o in self.owners], np.int64))

    def singles(self) -> Landmarks:
        """Return each point as an object of its own, in order: what knows no objects is compared so."""
        n, k = np.nonzero(self.visible > ABSENT)
        rows = self.select(n)
        keep = np.zeros(rows.visible.shape, bool)
        keep[np.arange(len(n)), k] = True
        return rows.only(keep)

    def __repr__(self) -> str:
        return f"Landmarks({self.count} point(s) of {len(self)} object(s), {len(self.types)} type(s))"


def _box_areas(points: NDArray[np.float64], visible: NDArray[np.int8]) -> NDArray[np.float64]:
    areas = np.full(len(points), np.nan)
    for i, (at, seen) in enumerate(zip(points, visible, strict=True)):
        labelled = at[seen > ABSENT]
        if len(labelled) > 1:
            area = float(np.prod(np.ptp(labelled, axis=0)))
            areas[i] = area if area > 0 else np.nan
    return areas

"""How far an edge must move: exact distances on the grid, and masks grown or shrunk by them.

Distances go from element centre to element centre in the grid's unit. An outer margin m turns a mask P into
the elements within m of P; an inner margin takes from P the elements within m of what P does not hold. What
is outside the image is held by no mask, and nothing grows beyond it.

With a local scale s the margin at an edge element q is m s(q) instead of m. The grown mask is the union of the
balls of radius m s(q) around the edge elements, so that it grows with m at every element, and the smallest m
that reaches an element is ``min over q of |x - q| / s(q)``: that number is calibrated, and that number is
applied, so nothing is lost between the two. For exact and fast distances s is rounded up to a ladder of four
steps an octave below the instance's largest, and there is one distance transform a step.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from clearmargin.core import Grid, Mask
from clearmargin.core.slack import with_slack
from clearmargin.errors import GeometryError

__all__ = ["EdgeScale", "depth", "distance_outside", "face_areas", "grow", "shrink"]

_STEPS = 4  # of the scale's ladder, an octave


@dataclass(frozen=True, kw_only=True, eq=False)
class EdgeScale:
    """How doubtful the edge of one predicted instance is, and where.

    Attributes:
        points: ``(K, ndim)`` float64, array indices on the grid (fractions allowed) of points of the contour.
        sigma: ``(K,)`` float64, at least 0: the edge's standard deviation there, in the grid's unit.
        floor: Positive, in the grid's unit: added everywhere, so that an all-certain edge has scale ``floor``
            and the margin is the same all around.

    An edge element takes the value of the point nearest to it. No point at all is an all-certain edge.
    """

    points: NDArray[np.float64]
    sigma: NDArray[np.float64]
    floor: float

    def __post_init__(self) -> None:
        points, sigma = np.asarray(self.points, np.float64), np.asarray(self.sigma, np.float64)
        if points.ndim != 2 or sigma.shape != (len(points),):
            raise ValueError(f"points {points.shape} and sigma {sigma.shape}: one value per point is needed")
        if not (np.isfinite(sigma).all() and (sigma >= 0).all() and np.isfinite(points).all()):
            raise ValueError("an edge's standard deviation is finite and at least 0")
        if not 0 < self.floor < math.inf:
            raise ValueError(f"a floor is positive, not {self.floor}")
        object.__setattr__(self, "points", points)
        object.__setattr__(self, "sigma", sigma)

    def at(self, index: NDArray[np.integer], spacing: tuple[float, ...]) -> NDArray[np.float64]:
        """Return the scale at elements ``(E, ndim)`` of the grid, ``(E,)``, on the ladder."""
        if not len(self.points):
            return np.full(len(index), self.floor)
        from scipy.spatial import cKDTree

        steps = np.asarray(spacing)
        _, nearest = cKDTree(self.points * steps).query(index * steps)
        rungs = np.floor(np.log2(self.largest / (self.sigma[nearest] + self.floor)) * _STEPS + 1e-9)
        scale: NDArray[np.float64] = self.largest * 2 ** (-rungs / _STEPS)
        return scale

    @property
    def largest(self) -> float:
        """The scale where the edge is most doubtful; the ladder starts there and goes down."""
        return float(self.sigma.max(initial=0.0)) + self.floor


def distance_outside(
    held: NDArray[np.bool_],
    spacing: tuple[float, ...],
    scale: EdgeScale | None = None,
    origin: tuple[int, ...] | None = None,
) -> NDArray[np.float64]:
    """Return for each element the smallest margin with which ``held`` reaches it; 0 in ``held``.

    Args:
        held: Any box that holds the whole instance, and at least one element of it.
        spacing: Length of a step along each axis.
        scale: None for one margin all around.
        origin: Index of the box's first element on the grid that ``scale`` speaks of; None for zeros.

    Source: Felzenszwalb and Huttenlocher, Theory of Computing 2012, by ``scipy.ndimage``; the scaled one by
    definition.
    """
    from scipy import ndimage

    if scale is None:
        distances: NDArray[np.float64] = ndimage.distance_transform_edt(~held, sampling=spacing)
        return distances
    edge = held & ~ndimage.binary_erosion(held)
    return np.where(held, 0.0, _scaled_distance(edge, spacing, scale, origin))


def depth(
    held: NDArray[np.bool_],
    spacing: tuple[float, ...],
    scale: EdgeScale | None = None,
    origin: tuple[int, ...] | None = None,
) -> NDArray[np.float64]:
    """Return for each element of ``held`` the smallest margin that takes it away; 0 outside of it.

    The box's outermost elements must not be held: pad by one. Arguments are those of `distance_outside`; the
    sources are the elements just outside the edge.
    """
    from scipy import ndimage

    if scale is None:
        distances: NDArray[np.float64] = ndimage.distance_transform_edt(held, sampling=spacing)
        return distances
    around = ndimage.binary_dilation(held) & ~held
    return np.where(held, _scaled_distance(around, spacing, scale, origin), 0.0)


def _scaled_distance(
    sources: NDArray[np.bool_], spacing: tuple[float, ...], scale: EdgeScale, origin: tuple[int, ...] | None
) -> NDArray[np.float64]:
    """Return the least distance to a source, divided by that source's scale."""
    from scipy import ndimage

    index = np.argwhere(sources)
    scales = scale.at(index + np.asarray(origin or (0,) * sources.ndim), spacing)
    best = np.full(sources.shape, np.inf)
    for value in np.unique(scales):
        away = np.ones(sources.shape, bool)
        away[tuple(index[scales == value].T)] = False
        np.minimum(best, ndimage.distance_transform_edt(away, sampling=spacing) / value, out=best)
    return best


def face_areas(held: NDArray[np.bool_], spacing: tuple[float, ...], *, inside: bool) -> NDArray[np.float64]:
    """Return for each element the area (length, in the plane) of the faces it shares with the other side.

    Args:
        held: A box whose outermost elements are not held.
        spacing: Length of a step along each axis.
        inside: Count a face for the element within ``held``, else for the one outside. Both have one total.
    """
    out = np.zeros(held.shape)
    for axis, step in enumerate(spacing):
        area = math.prod(spacing) / step
        change = np.diff(held.astype(np.int8), axis=axis)
        low = (slice(None),) * axis + (slice(None, -1),)
        high = (slice(None),) * axis + (slice(1, None),)
        enters, leaves = (high, low) if inside else (low, high)
        out[enters] += area * (change == 1)
        out[leaves] += area * (change == -1)
    return out


def grow(mask: Mask, grid: Grid, margin: float, scale: EdgeScale | None = None) -> Mask:
    """Return the elements that an outer margin reaches, ``mask`` included; an empty mask stays empty.

    Args:
        mask: On ``grid``.
        grid: Its axes are at right angles.
        margin: In the grid's unit, or in scales if there is one.
        scale: Of this instance; None for one margin all around.

    Raises:
        GeometryError: The grid is sheared.
    """
    check_right_angles(grid)
    if not mask.area:
        return mask
    most = margin * (1 if scale is None else scale.largest)
    box = tuple(
        slice(max(0, s.start - math.ceil(most / step)), min(n, s.stop + math.ceil(most / step)))
        for s, step, n in zip(mask.slices, grid.spacing, mask.shape, strict=True)
    )
    origin = tuple(s.start for s in box)
    reached = distance_outside(mask.within(box), grid.spacing, scale, origin) <= with_slack(margin)
    return Mask.from_crop(reached, origin, mask.shape)


def shrink(mask: Mask, grid: Grid, margin: float, scale: EdgeScale | None = None) -> Mask:
    """Return what an inner margin leaves of ``mask``; arguments and refusals as `grow`. May be empty."""
    check_right_angles(grid)
    if not mask.area:
        return mask
    origin = tuple(o - 1 for o in mask.origin)
    kept = depth(np.pad(mask.crop, 1), grid.spacing, scale, origin) > with_slack(margin)
    return Mask.from_crop(kept, origin, mask.shape)


def check_right_angles(grid: Grid) -> None:
    """Raise GeometryError for a sheared grid, on which a step along each axis gives no distance."""
    if not grid.is_orthogonal:
        raise GeometryError(f"the axes of {grid} are not at right angles: resample the image first")

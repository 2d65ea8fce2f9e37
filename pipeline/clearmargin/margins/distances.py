"""Least distances between masks, points and ellipses, in the grid's unit and exact on any grid."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from clearmargin.core import Grid, Mask

__all__ = ["distance_between", "distance_to_ellipsoid", "distance_to_point", "ellipsoid_distance"]

Points = NDArray[np.float64]


def distance_between(one: Mask, other: Mask, grid: Grid) -> float:
    """Return the least distance between element centres of two masks; 0 if they share one, NaN if one is empty."""
    from scipy.spatial import cKDTree

    if not one.area or not other.area:
        return float("nan")
    if one.overlaps(other):
        return 0.0
    apart, _ = cKDTree(_edge(one, grid)).query(_edge(other, grid))
    return float(apart.min())


def ellipsoid_distance(places: Points, centre: Points, squares: Points) -> Points:
    """Return the distance of each place to the ellipse (ellipsoid) ``x' inv(squares) x <= 1`` about a centre, ``(N,)``.

    Args:
        places: ``(N, D)``.
        centre: ``(D,)``.
        squares: ``(D, D)``; axes of no length are points.

    Source: Eberly, "Distance from a point to an ellipse, an ellipsoid, or a hyperellipsoid", Geometric Tools, 2013: the
    root of a falling function, by bisection.
    """
    values, axes = np.linalg.eigh(squares)
    semi = np.maximum(values, 0)  # squared semi-axes
    turned = (places - centre) @ axes
    least = np.maximum(semi, 1e-300)
    outside = ((turned**2) / least).sum(axis=1) > 1
    low, high = np.zeros(len(places)), np.sqrt(((turned**2) * semi).sum(axis=1)) + 1e-300
    for _ in range(100):
        middle = (low + high) / 2
        beyond = ((turned**2) * semi / (middle[:, None] + least) ** 2).sum(axis=1) > 1
        low, high = np.where(beyond, middle, low), np.where(beyond, high, middle)
    foot = turned * semi / (high[:, None] + least)
    return np.where(outside, np.linalg.norm(turned - foot, axis=1), 0.0)


def _edge(mask: Mask, grid: Grid) -> Points:
    """Return the places ``(E, 3)`` of the elements at the edge of a mask."""
    from scipy.ndimage import binary_erosion

    inner = binary_erosion(np.pad(mask.crop, 1))[(slice(1, -1),) * mask.crop.ndim]
    return grid.to_world(np.argwhere(mask.crop & ~inner) + np.array(mask.origin))


def distance_to_point(mask: Mask, place: Points, grid: Grid) -> float:
    """Return the least distance of element centres to a place ``(ndim,)`` in indices.

    0 if the element around it is held; NaN for an empty mask.
    """
    if not mask.area:
        return float("nan")
    index = np.rint(place).astype(int)
    low = index - np.array(mask.origin)
    if (low >= 0).all() and (low < mask.crop.shape).all() and mask.crop[tuple(low)]:
        return 0.0
    return float(np.linalg.norm(_edge(mask, grid) - grid.to_world(place), axis=1).min())


def distance_to_ellipsoid(mask: Mask, place: Points, squares: Points, grid: Grid) -> float:
    """Return the least distance of element centres to the ellipse ``x' inv(squares) x <= 1`` about a place.

    Place and squares are in indices. 0 if the element around the place is held; NaN for an empty mask.
    """
    if not mask.area or distance_to_point(mask, place, grid) == 0:
        return 0.0 if mask.area else float("nan")
    steps = grid.affine[:3, 3 - grid.ndim : 3]
    away = ellipsoid_distance(_edge(mask, grid), grid.to_world(place), steps @ squares @ steps.T)
    return float(away.min())

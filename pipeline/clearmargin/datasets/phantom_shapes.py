"""Soft shapes in millimetres: signed distances, their occupancies, and smooth random fields."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Canvas", "Field", "Point", "Space", "capsule", "ellipse", "ellipsoid", "smooth_field", "union"]

Field = NDArray[np.float32]
Point = tuple[float, float, float]
"""Millimetres in array order, ``(z, y, x)``; z to the head, y to the back, x to the patient's left."""


@dataclass(frozen=True, kw_only=True)
class Space:
    """Coordinates of a box of the rendering grid.

    Attributes:
        z: ``(Z, 1, 1)`` float32, millimetres.
        y: ``(1, Y, 1)`` float32.
        x: ``(1, 1, X)`` float32.
        window: Where the box lies in the whole array.
    """

    z: Field
    y: Field
    x: Field
    window: tuple[slice, slice, slice]

    @staticmethod
    def centred(shape: tuple[int, int, int], spacing: Point) -> Space:
        """Return the space of a grid whose middle is the origin."""
        axes = [
            ((np.arange(n) - (n - 1) / 2) * s).astype(np.float32) for n, s in zip(shape, spacing, strict=True)
        ]
        z, y, x = axes
        window = (slice(0, shape[0]), slice(0, shape[1]), slice(0, shape[2]))
        return Space(z=z[:, None, None], y=y[None, :, None], x=x[None, None, :], window=window)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Extents ``(Z, Y, X)``; an extent is 0 where the box lies outside the grid."""
        return (self.z.shape[0], self.y.shape[1], self.x.shape[2])

    def box(self, centre: Point, reach: Point) -> Space:
        """Return the part of this space within ``reach`` of ``centre``, cut off at the grid's edge."""
        cuts = []
        for axis, c, r in zip((self.z, self.y, self.x), centre, reach, strict=True):
            line = axis.ravel()
            first, last = np.searchsorted(line, c - r), np.searchsorted(line, c + r, side="right")
            cuts.append(slice(int(first), int(max(first, last))))
        a, b, c_ = cuts
        at = tuple(slice(w.start + s.start, w.start + s.stop) for w, s in zip(self.window, cuts, strict=True))
        return Space(z=self.z[a], y=self.y[:, b], x=self.x[:, :, c_], window=(at[0], at[1], at[2]))


@dataclass(frozen=True, kw_only=True)
class Canvas:
    """A volume in Hounsfield units that shapes are painted on, one over the other.

    Attributes:
        hu: ``(Z, Y, X)`` float32, changed in place.
        space: Its coordinates.
        edge_mm: Width over which an edge goes from outside to inside: a pixel, for partial volume.
    """

    hu: Field
    space: Space
    edge_mm: float

    def occupancy(self, distance: NDArray[np.floating]) -> Field:
        """Return how much of each voxel lies inside, 0 to 1, for signed distances (negative inside) in mm."""
        inside: Field = distance.astype(np.float32) * np.float32(-1 / self.edge_mm)
        inside += np.float32(0.5)
        return np.clip(inside, 0, 1, out=inside)

    def paint(self, where: Space, occupancy: Field, value: float | NDArray[np.floating]) -> None:
        """Mix ``value`` (HU) into the box ``where`` as far as ``occupancy`` (broadcast to the box) says."""
        under = self.hu[where.window]
        under += occupancy * (np.asarray(value, np.float32) - under)

    def ellipsoid(self, centre: Point, radii: Point, value: float, limit: Field | None = None) -> None:
        """Paint an ellipsoid; ``limit`` is a signed distance on the whole space that it may not leave."""
        where = self.space.box(centre, (radii[0] + 2, radii[1] + 2, radii[2] + 2))
        distance = ellipsoid(where, centre, radii)
        if limit is not None:
            distance = np.maximum(distance, limit[where.window])
        self.paint(where, self.occupancy(distance), value)


def ellipsoid(space: Space, centre: Point, radii: Point) -> Field:
    """Return the approximate signed distance in mm to an axis-aligned ellipsoid; exact on its surface."""
    parts = [
        (axis - np.float32(c)) / np.float32(r)
        for axis, c, r in zip((space.z, space.y, space.x), centre, radii, strict=True)
    ]
    u, v, w = parts
    k0 = np.sqrt((u * u + v * v) + w * w)
    steep = [(p / np.float32(r)) ** 2 for p, r in zip(parts, radii, strict=True)]
    k1 = np.sqrt((steep[0] + steep[1]) + steep[2])
    distance: Field = k0 * (k0 - 1) / np.maximum(k1, np.float32(1e-6))
    return distance


def ellipse(space: Space, centre: tuple[float, float], radii: tuple[float, float]) -> Field:
    """Return ``(1, Y, X)``: the approximate signed distance in mm to an elliptic column along z."""
    flat = Space(z=np.zeros((1, 1, 1), np.float32), y=space.y, x=space.x, window=space.window)
    return ellipsoid(flat, (0.0, *centre), (1.0, *radii))


def capsule(space: Space, start: Point, end: Point, radii: tuple[float, float]) -> Field:
    """Return the signed distance in mm to a rod with round ends whose radius changes along it."""
    axis = [e - s for s, e in zip(start, end, strict=True)]
    length = max(sum(a * a for a in axis), 1e-6)
    rel = [g - np.float32(s) for g, s in zip((space.z, space.y, space.x), start, strict=True)]
    along = (rel[0] * axis[0] + rel[1] * axis[1] + rel[2] * axis[2]) / length
    along = np.clip(along, 0, 1).astype(np.float32)
    square = sum((r - along * np.float32(a)) ** 2 for r, a in zip(rel, axis, strict=True))
    distance: Field = np.sqrt(square) - (np.float32(radii[0]) + along * np.float32(radii[1] - radii[0]))
    return distance


def union(first: Field, second: Field, blend_mm: float) -> Field:
    """Return the signed distance of both shapes together, their seam rounded over ``blend_mm``."""
    h = np.clip(np.float32(0.5) + (second - first) * np.float32(0.5 / blend_mm), 0, 1)
    merged: Field = second + (first - second) * h - np.float32(blend_mm) * h * (1 - h)
    return merged


def smooth_field(rng: np.random.Generator, space: Space, scale_mm: float) -> Field:
    """Return a smooth random field, about standard normal, that varies over ``scale_mm``.

    Random numbers on a coarse lattice, spread by Gaussian weights along each axis in turn: the tensor product
    makes it a few matrix products, however fine the grid. Of shape ``space.shape``.
    """
    weights = []
    for axis in (space.z, space.y, space.x):
        line = axis.ravel().astype(np.float64)
        low, high = (line[0], line[-1]) if line.size else (0.0, 0.0)
        knots = np.arange(math.floor(low / scale_mm) - 1, math.ceil(high / scale_mm) + 2) * scale_mm
        w = np.exp(-0.5 * ((line[:, None] - knots[None, :]) / (0.6 * scale_mm)) ** 2)
        weights.append((w / np.sqrt((w * w).sum(1, keepdims=True))).astype(np.float32))
    lattice = rng.standard_normal([w.shape[1] for w in weights], dtype=np.float32)
    field: Field = np.tensordot(weights[2], lattice, axes=(1, 2))  # X, Z', Y'
    field = np.tensordot(weights[1], field, axes=(1, 2))  # Y, X, Z'
    return np.ascontiguousarray(np.tensordot(weights[0], field, axes=(1, 2)))  # Z, Y, X

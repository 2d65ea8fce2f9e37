"""The phantom's organ and what is in it: two lobes, a tree of vessels, and tumours of which some touch."""

from __future__ import annotations

import math

import numpy as np

from clearmargin.datasets.phantom_shapes import (
    Canvas,
    Field,
    Point,
    Space,
    capsule,
    ellipsoid,
    smooth_field,
    union,
)

__all__ = ["organ_distance", "paint_tumours", "paint_vessels"]


def organ_distance(space: Space, rng: np.random.Generator) -> Field:
    """Return the organ's signed distance before its neighbours press on it: two lobes, a bit uneven."""
    at = rng.normal(0, 3, 6)
    right = ellipsoid(space, (-4.0 + at[0], -2.0 + at[1], -62.0 + at[2]), (72.0, 72.0, 58.0))
    left = ellipsoid(space, (14.0 + at[3], -40.0 + at[4], 6.0 + 2 * at[5]), (40.0, 34.0, 58.0))
    return union(right, left, 14.0) + np.float32(2.8) * smooth_field(rng, space, 26.0)


def paint_vessels(canvas: Canvas, organ: Field, rng: np.random.Generator) -> Field:
    """Paint the portal and the hepatic veins; return their occupancy on the whole space."""
    total = np.zeros_like(canvas.hu)
    trees: list[tuple[Point, Point, float]] = [((-8.0, 2.0, -22.0), (0.1, -0.25, -1.0), 6.2)]
    trees += [((46.0, 10.0, -26.0), (-0.6, y, x), 5.0) for y, x in ((0.1, -1.0), (-0.8, -0.6), (-0.8, 0.45))]
    growing = [(start, _unit(along), radius) for start, along, radius in trees]
    while growing:
        start, along, radius = growing.pop()
        length = float(rng.uniform(11, 19)) * (0.55 + radius / 7)
        end = tuple(float(s + length * a) for s, a in zip(start, along, strict=True))
        tip = (end[0], end[1], end[2])
        middle = tuple((s + e) / 2 for s, e in zip(start, tip, strict=True))
        where = canvas.space.box((middle[0], middle[1], middle[2]), (length, length, length))
        rod = np.maximum(capsule(where, start, tip, (radius, radius * 0.8)), organ[where.window] + 1.5)
        np.maximum(total[where.window], canvas.occupancy(rod), out=total[where.window])
        for share in rng.uniform(0.62, 0.86, 2) if radius > 1.5 else ():
            turned = tuple(a + d for a, d in zip(along, rng.normal(0, 0.52, 3), strict=True))
            growing.append((tip, _unit((turned[0], turned[1], turned[2])), radius * float(share)))
    canvas.paint(canvas.space, total, float(rng.uniform(165, 182)))
    return total


def _unit(direction: Point) -> Point:
    z, y, x = direction
    length = math.sqrt(z * z + y * y + x * x) or 1.0
    return (z / length, y / length, x / length)


def paint_tumours(
    canvas: Canvas, organ: Field, count: int, radius_mm: tuple[float, float], rng: np.random.Generator
) -> list[tuple[Space, Field]]:
    """Paint ``count`` tumours inside the organ, some against another; return each one's box and occupancy."""
    taken = np.zeros_like(canvas.hu)
    painted: list[tuple[Space, Field]] = []
    placed: list[tuple[Point, float]] = []
    radii = np.sort(np.exp(rng.uniform(math.log(radius_mm[0]), math.log(radius_mm[1]), count)))[::-1]
    for radius in radii:
        centre = _place(canvas.space, organ, float(radius), placed, rng)
        if centre is None:
            continue
        placed.append((centre, float(radius)))
        where = canvas.space.box(centre, (radius * 1.7, radius * 1.7, radius * 1.7))
        stretch = rng.uniform(0.82, 1.2, 3)
        shape = ellipsoid(where, centre, (radius * stretch[0], radius * stretch[1], radius * stretch[2]))
        for _ in range(int(rng.integers(0, 3))):  # lobules
            off = rng.normal(0, 0.45 * radius, 3)
            bud = ellipsoid(
                where, (centre[0] + off[0], centre[1] + off[1], centre[2] + off[2]), (radius * 0.7,) * 3
            )
            shape = union(shape, bud, 0.3 * float(radius))
        shape = shape + np.float32(0.13 * radius) * smooth_field(rng, where, 0.8 * float(radius))
        shape = np.maximum(shape, organ[where.window] + 0.8)
        inside = np.minimum(canvas.occupancy(shape), 1 - taken[where.window])
        taken[where.window] += inside
        level = float(rng.uniform(40, 64))
        grain = 3.5 * smooth_field(rng, where, 4.0)
        rim = 14 * np.exp(-((shape + 1.2) ** 2) / 2.5)  # an enhancing margin, which also parts two that touch
        core = -22 * np.clip(-shape / np.float32(radius) - 0.55, 0, 0.4) / 0.4 * float(rng.random() < 0.5)
        canvas.paint(where, inside, level + grain + rim + core)
        painted.append((where, inside))
    return painted


def _place(
    space: Space, organ: Field, radius: float, placed: list[tuple[Point, float]], rng: np.random.Generator
) -> Point | None:
    """Return a centre deep enough in the organ, or None if there is none; a third touch another."""
    deep = np.flatnonzero(organ.ravel()[::7] < -0.75 * radius) * 7
    if deep.size == 0:
        return None
    tries = rng.choice(deep, 60)
    z, y, x = np.unravel_index(tries, organ.shape)
    points = np.stack([space.z.ravel()[z], space.y.ravel()[y], space.x.ravel()[x]], 1)
    gaps = np.full(len(points), np.inf)
    for centre, other in placed:
        gaps = np.minimum(gaps, np.linalg.norm(points - np.asarray(centre), axis=1) - other - radius)
    clearance = 0.0 if placed and rng.random() < 0.35 else 6.0
    free = np.flatnonzero(gaps > clearance)
    if clearance == 0.0:
        best = int(np.argmin(np.abs(gaps + 0.12 * radius)))
    elif free.size:
        best = int(free[0])
    else:
        return None
    return (float(points[best, 0]), float(points[best, 1]), float(points[best, 2]))

"""Pairs of shapes whose surface distances are known from their formulas; no mask is looked at for the truth.

A surface is sampled evenly, and the distance of a sample to the other surface is its formula's: exact for boxes,
balls and ellipses of one centre alike but for the density of the samples.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np

Point = tuple[float, ...]


@dataclass(frozen=True)
class Box:
    """Whole elements from ``start`` to ``stop``, so that its faces are theirs."""

    start: tuple[int, ...]
    stop: tuple[int, ...]

    def mask(self, shape, spacing):
        out = np.zeros(shape, bool)
        out[tuple(slice(a, b) for a, b in zip(self.start, self.stop, strict=True))] = True
        return out

    def ends(self, spacing):
        return np.array(self.start) * spacing, np.array(self.stop) * spacing

    def samples(self, spacing, per_side=60):
        low, high = self.ends(spacing)
        n = len(low)
        grid = (np.arange(per_side) + 0.5) / per_side
        points, weights = [], []
        for axis in range(n):
            others = [k for k in range(n) if k != axis]
            flat = np.stack(
                np.meshgrid(*[low[k] + grid * (high[k] - low[k]) for k in others], indexing="ij"), -1
            )
            flat = flat.reshape(-1, n - 1)
            for side in (low, high):
                points.append(np.insert(flat, axis, side[axis], axis=1))
                weights.append(np.full(len(flat), np.prod((high - low)[others]) / len(flat)))
        return np.concatenate(points), np.concatenate(weights)

    def distance(self, points, spacing):
        low, high = self.ends(spacing)
        outside = np.maximum(np.maximum(low - points, points - high), 0)
        inside = np.minimum(points - low, high - points).min(axis=1)
        far = np.linalg.norm(outside, axis=1)
        return np.where(far > 0, far, np.abs(inside))


@dataclass(frozen=True)
class Ball:
    """Elements whose centre lies within ``radius`` of ``centre``, both in the unit of the spacing."""

    centre: Point
    radius: float

    def mask(self, shape, spacing):
        axes = np.meshgrid(
            *[(np.arange(n) + 0.5) * s for n, s in zip(shape, spacing, strict=True)],
            indexing="ij",
            sparse=True,
        )
        return np.asarray(sum((a - c) ** 2 for a, c in zip(axes, self.centre, strict=True)) <= self.radius**2)

    def samples(self, spacing, n=4000):
        i = np.arange(n) + 0.5
        if len(self.centre) == 2:
            turn = 2 * np.pi * i / n
            unit = np.stack([np.cos(turn), np.sin(turn)], -1)
            whole = 2 * np.pi * self.radius
        else:
            polar, turn = np.arccos(1 - 2 * i / n), np.pi * (1 + 5**0.5) * i
            unit = np.stack([np.cos(turn) * np.sin(polar), np.sin(turn) * np.sin(polar), np.cos(polar)], -1)
            whole = 4 * np.pi * self.radius**2
        return np.array(self.centre) + self.radius * unit, np.full(n, whole / n)

    def distance(self, points, spacing):
        return np.abs(np.linalg.norm(points - np.array(self.centre), axis=1) - self.radius)


@dataclass(frozen=True)
class Case:
    name: str
    shape: tuple[int, ...]
    spacing: tuple[float, ...]
    predicted: Box | Ball
    reference: Box | Ball
    tolerances: tuple[float, ...]

    def masks(self):
        return self.predicted.mask(self.shape, self.spacing), self.reference.mask(self.shape, self.spacing)

    def truth(self) -> dict[str, float]:
        """Every distance that METRICS knows, and NSD by tolerance."""
        sides = []
        for own, other in ((self.predicted, self.reference), (self.reference, self.predicted)):
            points, weights = own.samples(self.spacing)
            sides.append((other.distance(points, self.spacing), weights))
        values = {
            "hausdorff": max(
                _largest(self.predicted, self.reference, self), _largest(self.reference, self.predicted, self)
            ),
            "hd95": max(_percentile(d, w, 0.95) for d, w in sides),
            "assd": sum(d @ w for d, w in sides) / sum(w.sum() for _, w in sides),
            "masd": sum(d @ w / w.sum() for d, w in sides) / 2,
        }
        for tolerance in self.tolerances:
            near = sum(w[d <= tolerance * (1 + 1e-9)].sum() for d, w in sides)
            values[f"nsd_{tolerance:g}mm"] = near / sum(w.sum() for _, w in sides)
        return values


def _largest(own, other, case):
    points, _ = own.samples(case.spacing)
    if isinstance(own, Box):
        points = np.concatenate(
            [points, np.array(list(itertools.product(*zip(*own.ends(case.spacing), strict=True))))]
        )
    return float(other.distance(points, case.spacing).max())


def _percentile(distances, weights, share):
    order = np.argsort(distances)
    running = np.cumsum(weights[order])
    return float(distances[order][np.searchsorted(running, share * running[-1] - 1e-9)])


def closed_forms() -> list[Case]:  # noqa: PLR0912 -- a list
    """Return squares, cubes, slabs, single elements, discs and balls, nested and moved, on even and uneven grids."""
    cases = []
    for spacing in ((1.0, 1.0), (0.8, 0.8), (0.5, 1.5)):
        for inner, outer in ((8, 12), (10, 16), (4, 6), (20, 22)):
            a, b = (40 - inner) // 2, (40 - outer) // 2
            apart = tuple((a - b) * s for s in spacing)
            cases.append(Case(
                f"nested squares {inner} in {outer} at {spacing}", (40, 40), spacing,
                Box((a, a), (a + inner,) * 2), Box((b, b), (b + outer,) * 2),
                (min(apart) / 2, *sorted(set(apart))),
            ))  # fmt: skip
        for step in ((0, 1), (0, 3), (2, 2)):
            far = max(k * s for k, s in zip(step, spacing, strict=True))
            cases.append(Case(
                f"square moved by {step} at {spacing}", (40, 40), spacing, Box((10, 10), (22, 22)),
                Box((10 + step[0], 10 + step[1]), (22 + step[0], 22 + step[1])), (far / 3, far),
            ))  # fmt: skip
    for spacing in ((1.0, 1.0, 1.0), (0.8, 0.8, 0.8), (2.5, 0.8, 0.8)):
        for inner, outer in ((6, 10), (8, 10), (4, 8)):
            a, b = (24 - inner) // 2, (24 - outer) // 2
            apart = tuple((a - b) * s for s in spacing)
            cases.append(Case(
                f"nested cubes {inner} in {outer} at {spacing}", (24,) * 3, spacing,
                Box((a,) * 3, (a + inner,) * 3), Box((b,) * 3, (b + outer,) * 3),
                (min(apart) / 2, *sorted(set(apart))),
            ))  # fmt: skip
        for step in ((0, 0, 1), (0, 2, 0), (1, 0, 0), (2, 2, 2)):
            far = max(k * s for k, s in zip(step, spacing, strict=True))
            stop = tuple(15 + k for k in step)
            cases.append(Case(
                f"cube moved by {step} at {spacing}", (24,) * 3, spacing, Box((5,) * 3, (15,) * 3),
                Box(tuple(5 + k for k in step), stop), (far / 3, far),
            ))  # fmt: skip
        for thick, gap in ((1, 3), (2, 5), (1, 0)):
            second = 6 + thick + gap
            far = (thick + gap) * spacing[0]
            cases.append(Case(
                f"slabs {thick} thick, {gap} between, at {spacing}", (24,) * 3, spacing,
                Box((6, 2, 2), (6 + thick, 22, 22)), Box((second, 2, 2), (second + thick, 22, 22)), (far,),
            ))  # fmt: skip
        for step in ((0, 0, 0), (0, 0, 1), (0, 1, 0), (3, 0, 0), (1, 1, 1), (0, 3, 4)):
            far = float(np.linalg.norm(np.array(step) * spacing))
            cases.append(Case(
                f"one element and one {step} on at {spacing}", (16,) * 3, spacing, Box((5,) * 3, (6,) * 3),
                Box(tuple(5 + k for k in step), tuple(6 + k for k in step)), (far,),
            ))  # fmt: skip
    for spacing in ((1.0, 1.0), (0.5, 0.5), (0.5, 1.0)):
        middle = tuple(32.2 * s for s in spacing)
        unit = max(spacing)
        for inner, outer in ((8, 11), (12, 14), (20, 26)):
            gap = (outer - inner) * unit / 1
            for k in (0.35, 1.65):
                cases.append(Case(
                    f"discs {inner} in {outer} at {spacing}, {k}", (64, 64) if unit == spacing[0] else (128, 64),
                    spacing,
                    Ball((middle[0] if unit == spacing[0] else 2 * middle[0], middle[1]), inner * unit),
                    Ball((middle[0] if unit == spacing[0] else 2 * middle[0], middle[1]), outer * unit), (k * gap,),
                ))  # fmt: skip
    for spacing in ((1.0, 1.0, 1.0), (0.7, 0.7, 0.7), (2.0, 1.0, 1.0)):
        shape = tuple(round(48 / s) for s in spacing)
        for inner, outer in ((7, 10), (10, 12), (14, 19)):
            for move in ((0.0, 0.0, 0.0), (0.3, 0.6, 0.1)):
                centre = (24.1, 24.3, 23.8)
                gap = outer - inner
                cases.append(Case(
                    f"balls {inner} in {outer} moved {move} at {spacing}", shape, spacing,
                    Ball(tuple(c + m for c, m in zip(centre, move, strict=True)), inner), Ball(centre, outer),
                    (0.4 * gap, 1.6 * gap),
                ))  # fmt: skip
    return cases

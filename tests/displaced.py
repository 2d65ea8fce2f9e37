"""Groups whose true edges are known: smooth random shapes, and predictions of them with edges out of place.

An instance is star-shaped: its edge lies at a random smooth radius in each direction. The predicted edge is
off by sigma(direction) times a smooth standard normal field, plus an offset that a whole group shares, so that
instances of a group are alike and groups are not. Sigma is large around one direction, as where an edge is
blurred, and small elsewhere.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from clearmargin.core import Grid, InstanceSet
from clearmargin.margins.guarantees import least_factor
from clearmargin.margins.margins import MatchedObject
from clearmargin.margins.reach import EdgeScale
from clearmargin.margins.requirement import SIDES, needed_margin
from clearmargin.margins.width import features_of
from clearmargin.metrics.matching import Matches, match_instances

Array = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Group:
    """One image or volume, a group of its own."""

    name: str
    predicted: InstanceSet
    reference: InstanceSet
    scales: list[EdgeScale]


@dataclass(frozen=True, kw_only=True)
class Setting:
    """Where groups come from; lengths in mm.

    ``members`` 0: the local sigma is known. Otherwise it is the spread of so many edges drawn from the same
    law, as an ensemble's members give it.
    """

    shape: tuple[int, ...] = (72, 72)
    spacing: tuple[float, ...] | None = (0.31, 0.23)
    radius: tuple[float, float] = (1.6, 3.2)
    sharp: float = 0.08
    blurred: float = 0.7
    shared: float = 0.05
    most: int = 4
    members: int = 0
    floor: float = 0.05


# Several elements to an error: distances on a coarse lattice tie, and ties cover more than was asked for.
PLANE = Setting(
    shape=(112, 112), spacing=(0.15, 0.12), radius=(1.6, 3.0), sharp=0.12, blurred=0.9, floor=0.12
)
SPACE = Setting(
    shape=(22, 52, 52),
    spacing=(0.6, 0.27, 0.27),
    radius=(2.2, 3.4),
    sharp=0.2,
    blurred=1.5,
    shared=0.1,
    most=2,
    floor=0.25,
)


@dataclass(frozen=True, kw_only=True)
class Pool:
    """Groups and their matches."""

    groups: list[Group]
    matches: list[Matches]

    def objects(self) -> list[MatchedObject]:
        """Return what each matched object needed, all around and with the setting's floor."""
        return [
            _object(group, int(i), int(j))
            for group, matches in zip(self.groups, self.matches, strict=True)
            for i, j in matches.pairs
        ]


def _object(group: Group, i: int, j: int) -> MatchedObject:
    predicted, grid, scale = group.predicted, group.predicted.grid, group.scales[i]
    pair = predicted.masks[i], group.reference.masks[j], grid
    mean = float(np.mean(scale.at(np.round(scale.points).astype(int), grid.spacing)))
    return MatchedObject(
        group=group.name,
        features=features_of(
            size=predicted.masks[i].area * grid.voxel_size,
            score=0.9,
            label=int(predicted.labels[i]),
            edge_sd=float(scale.sigma.mean()),
            element=float(np.prod(grid.spacing) ** (1 / grid.ndim)),
        ),
        needed={
            (side, floor): needed_margin(*pair, side, scale=None if floor is None else scale)
            for side in SIDES
            for floor in (None, scale.floor)
        },
        mean_scale={scale.floor: mean},
    )


def pool(n: int, setting: Setting, seed: int) -> Pool:
    groups = displaced_groups(n, setting, seed)
    return Pool(groups=groups, matches=[match_instances(u.predicted, u.reference) for u in groups])


def displaced_groups(n: int, setting: Setting, seed: int) -> list[Group]:
    return [displaced_group(np.random.default_rng([seed, k]), f"group-{k}", setting) for k in range(n)]


def displaced_group(rng: np.random.Generator, name: str, setting: Setting) -> Group:
    grid = Grid.from_spacing(setting.shape, setting.spacing)
    steps = np.array(grid.spacing)
    extent = np.array(setting.shape) * steps
    at = np.stack(np.meshgrid(*[np.arange(s) for s in setting.shape], indexing="ij"), -1) * steps
    offset = rng.normal(0, setting.shared)
    true, drawn, scales, labels = [], [], [], []
    corners = np.stack(np.meshgrid(*[(0.27, 0.73)] * grid.ndim, indexing="ij"), -1).reshape(-1, grid.ndim)
    for place in rng.permutation(len(corners))[: rng.integers(1, setting.most + 1)]:
        centre = corners[place] * extent
        size = rng.uniform(*setting.radius)
        away = np.linalg.norm(at - centre, axis=-1)
        near = away < 1.5 * size + 3 * setting.blurred  # nothing is farther out
        directions = (at[near] - centre) / np.maximum(away[near], 1e-9)[:, None]
        wobble, blur = _waves(rng, grid.ndim), rng.normal(size=grid.ndim)
        blur /= np.linalg.norm(blur)
        sharp = setting.sharp * rng.uniform(0.7, 1.4)

        def sigma(u: Array, blur: Array = blur, sharp: float = sharp) -> Array:
            return sharp + (setting.blurred - sharp) * np.clip(2 * u @ blur - 1, 0, 1)

        errors = [_waves(rng, grid.ndim, 2.5) for _ in range(1 + setting.members)]
        radius = size * (1 + 0.1 * wobble(directions))
        for masks, edge in (
            (true, radius),
            (drawn, radius + offset + sigma(directions) * errors[0](directions)),
        ):
            mask = np.zeros(setting.shape, bool)
            mask[near] = away[near] <= edge
            masks.append(mask)
        labels.append(1 + int(size > np.mean(setting.radius)))
        around = _directions(grid.ndim)
        local = sigma(around)
        if setting.members:
            local = np.std([local * e(around) for e in errors[1:]], axis=0, ddof=1)
        edge = size * (1 + 0.1 * wobble(around)) + offset + sigma(around) * errors[0](around)
        points = (centre + around * edge[:, None]) / steps
        scales.append(EdgeScale(points=points, sigma=local, floor=setting.floor))
    return Group(
        name=name,
        predicted=InstanceSet.from_dense(grid, drawn, labels),
        reference=InstanceSet.from_dense(grid, true, labels),
        scales=scales,
    )


def _waves(rng: np.random.Generator, ndim: int, rate: float = 1.5, terms: int = 12):
    """Return a smooth, nearly standard normal field on directions: a sum of random plane waves."""
    vectors, phases = rng.normal(0, rate, (terms, ndim)), rng.uniform(0, 2 * np.pi, terms)
    weights = rng.normal(size=terms) * np.sqrt(2 / terms)

    def field(u: Array) -> Array:
        return np.cos(u @ vectors.T + phases) @ weights

    return field


def _directions(ndim: int) -> Array:
    """Return group vectors all around: 96 in the plane, 300 in space."""
    if ndim == 2:
        angle = np.arange(96) * 2 * np.pi / 96
        return np.column_stack([np.sin(angle), np.cos(angle)])
    k = np.arange(300) + 0.5
    height, angle = 1 - 2 * k / 300, np.pi * (1 + 5**0.5) * k
    flat = np.sqrt(1 - height**2)
    return np.column_stack([height, flat * np.sin(angle), flat * np.cos(angle)])


def over_splits(losses, n: int, alpha: float, splits: int, seed: int = 0) -> tuple[float, float, float]:
    """Mean and standard deviation of the coverage of the groups left out of n, and the mean factor."""
    rng = np.random.default_rng(seed)
    shares, factors = [], []
    for _ in range(splits):
        order = rng.permutation(losses.n)
        factors.append(least_factor(losses.select(order[:n]), alpha))
        shares.append(1 - losses.select(order[n:]).at(np.array(factors[-1:])).mean())
    return float(np.mean(shares)), float(np.std(shares)), float(np.mean(factors))

"""Pairs and scenes that golden numbers of other tools were made from; no tool is imported here."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from clearmargin.core import Grid, InstanceSet, Mask

Pair = tuple[NDArray[np.bool_], NDArray[np.bool_], tuple[float, ...]]


def _ball(
    shape: tuple[int, ...], centre: tuple[float, ...], radius: float, spacing: tuple[float, ...]
) -> NDArray[np.bool_]:
    axes = np.meshgrid(
        *[np.arange(n) * s for n, s in zip(shape, spacing, strict=True)], indexing="ij", sparse=True
    )
    return np.asarray(sum((a - c) ** 2 for a, c in zip(axes, centre, strict=True)) <= radius**2)


def golden_pairs() -> dict[str, Pair]:
    """Return (predicted, reference, spacing) by name."""
    flat, deep = (64, 80), (24, 40, 40)
    notched = _ball(deep, (30, 16, 16), 14, (2.5, 0.8, 0.8))
    notched[8:12, :18, :18] = False
    speck = _ball(flat, (16, 20), 10, (0.5, 0.5))
    speck[60, 76] = True
    edge = np.zeros(flat, bool)
    edge[:20, :30] = True
    return {
        "discs": (_ball(flat, (16, 21), 9, (0.5, 0.5)), _ball(flat, (15, 20), 10, (0.5, 0.5)), (0.5, 0.5)),
        "far speck": (speck, _ball(flat, (16, 20), 10, (0.5, 0.5)), (0.5, 0.5)),
        "at the image's edge": (edge, np.roll(edge, (3, 5), (0, 1)), (1.0, 2.0)),
        "anisotropic balls": (
            _ball(deep, (30, 16, 15), 12, (2.5, 0.8, 0.8)),
            _ball(deep, (28, 15, 16), 13, (2.5, 0.8, 0.8)),
            (2.5, 0.8, 0.8),
        ),
        "notch": (notched, _ball(deep, (30, 16, 16), 14, (2.5, 0.8, 0.8)), (2.5, 0.8, 0.8)),
    }


def scene(seed: int, n: int = 160, k: int = 8) -> tuple[InstanceSet, InstanceSet]:
    """Return discs, moved and resized discs for them, some missed, some of another class; half with ignored tissue."""
    rng = np.random.default_rng(seed)
    y, x = np.ogrid[:n, :n]

    def disc(cy, cx, a, b):
        return ((y - cy) / a) ** 2 + ((x - cx) / b) ** 2 <= 1

    reference, predicted, labels, found, scores = [], [], [], [], []
    for _ in range(k):
        cy, cx = rng.uniform(20, n - 20, 2)
        a, b = rng.uniform(3, 60 if rng.random() < 0.3 else 25, 2)
        label = int(rng.integers(1, 4))
        reference.append(disc(cy, cx, a, b))
        labels.append(label)
        if rng.random() < 0.85:
            predicted.append(disc(*(np.array([cy, cx]) + rng.normal(0, 2, 2)), a * rng.uniform(0.85, 1.2), b))
            found.append(label if rng.random() < 0.9 else 1)
            scores.append(float(np.round(rng.random(), 2)))
    grid = Grid.from_spacing((n, n))
    truth = InstanceSet.from_dense(grid, reference, labels)
    if rng.random() < 0.5:
        corner = np.zeros((n, n), bool)
        corner[: n // 3, : n // 2] = True
        truth = InstanceSet(
            grid=grid, masks=truth.masks, labels=truth.labels, scores=truth.scores,
            ignore=Mask.from_dense(corner),
        )  # fmt: skip
    return InstanceSet.from_dense(grid, predicted, found, scores), truth

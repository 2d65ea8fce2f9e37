"""Pairs of masks that golden numbers of other tools were made from; no tool is imported here."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

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

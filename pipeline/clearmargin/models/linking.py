"""Instances of neighbouring slices, linked to instances of the volume."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from clearmargin.core import Grid, InstanceSet, Mask

__all__ = ["link_slices"]


def link_slices(slices: Sequence[InstanceSet], grid: Grid, *, min_iou: float = 0.2) -> InstanceSet:
    """Return 3-D instances from the 2-D ones of each slice.

    An instance goes on in the next slice as the instance of the same label that it overlaps best; the pairs of
    two slices are chosen together so that the sum of their IoU is largest (Hungarian method). Pairs below
    ``min_iou`` are not linked, and nothing is linked across a slice without the instance. Instances may overlap.

    Args:
        slices: One set for each slice of ``grid``, in order.
        grid: The volume's.
        min_iou: Least overlap of two cuts of one object.

    Returns:
        Instances on ``grid``, best score first. A score is the mean of the cuts' scores, weighted by area;
        so are the uncertainty columns.
    """
    from scipy.optimize import linear_sum_assignment

    if len(slices) != grid.shape[0]:
        raise ValueError(f"{len(slices)} slices for a grid of {grid.shape[0]}")
    chains: list[list[tuple[int, int]]] = []  # (slice, position in its set)
    open_chains: dict[int, int] = {}  # position in the previous slice -> chain
    for z, current in enumerate(slices):
        previous = slices[z - 1] if z else None
        linked: dict[int, int] = {}
        if previous is not None and len(previous) and len(current):
            iou = _iou(previous, current)
            for a, b in zip(*linear_sum_assignment(-iou), strict=True):
                if iou[a, b] >= min_iou:
                    linked[int(b)] = open_chains[int(a)]
        for b in range(len(current)):
            if b not in linked:
                linked[b] = len(chains)
                chains.append([])
            chains[linked[b]].append((z, b))
        open_chains = linked
    return _join(chains, slices, grid)


def _iou(first: InstanceSet, second: InstanceSet) -> NDArray[np.float64]:
    """Return ``(N, M)`` IoU of instances in neighbouring planes; 0 between labels."""
    iou = np.zeros((len(first), len(second)))
    for a, mask in enumerate(first.masks):
        for b, other in enumerate(second.masks):
            if first.labels[a] == second.labels[b] and mask.overlaps(other):
                common = mask.intersection(other)
                iou[a, b] = common / (mask.area + other.area - common)
    return iou


def _join(chains: list[list[tuple[int, int]]], slices: Sequence[InstanceSet], grid: Grid) -> InstanceSet:
    masks, labels, scores = [], [], []
    columns: dict[str, list[float]] = {name: [] for s in slices for name in s.uncertainty}
    for chain in chains:
        cuts = [slices[z].masks[i] for z, i in chain]
        low = np.min([c.box[0] for c in cuts], axis=0)
        high = np.max([c.box[1] for c in cuts], axis=0)
        crop = np.zeros((len(chain), *(high - low)), bool)
        for k, cut in enumerate(cuts):
            crop[k] = cut.within(tuple(slice(int(a), int(b)) for a, b in zip(low, high, strict=True)))
        masks.append(Mask.from_crop(crop, (chain[0][0], int(low[0]), int(low[1])), grid.shape))
        weights = np.array([c.area for c in cuts], np.float64)
        labels.append(int(slices[chain[0][0]].labels[chain[0][1]]))
        scores.append(float(np.average([slices[z].scores[i] for z, i in chain], weights=weights)))
        for name, column in columns.items():
            column.append(
                float(np.average([slices[z].uncertainty[name][i] for z, i in chain], weights=weights))
            )
    joined = InstanceSet(
        grid=grid,
        masks=tuple(masks),
        labels=np.array(labels, np.int64),
        scores=np.array(scores, np.float32),
        uncertainty={name: np.array(column, np.float32) for name, column in columns.items()},
    )
    return joined.select(np.argsort(-joined.scores, kind="stable"))

"""Instances of neighbouring slices, linked to instances of the volume."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from clearmargin.core import Grid, InstanceSet, Mask
from clearmargin.core.meeting import meeting

__all__ = ["link_slices"]


def link_slices(
    slices: Sequence[InstanceSet], grid: Grid, *, min_iou: float = 0.2, gap: int = 0
) -> InstanceSet:
    """Return 3-D instances from the 2-D ones of each slice.

    An instance goes on in the next slice as the instance of the same label that it overlaps best; the pairs of
    two slices are chosen together so that the sum of their IoU is largest (Hungarian method). Pairs below
    ``min_iou`` are not linked. What found no partner may link across up to ``gap`` slices without the instance,
    the nearest slice first; its mask is interpolated there, since an object that lies above and below a slice
    passes through it, and one of two pieces would have a wrong volume and a surface that is not there.
    Instances may overlap.

    Args:
        slices: One set for each slice of ``grid``, in order.
        grid: The volume's.
        min_iou: Least overlap of two cuts of one object.
        gap: Most slices in a row that may be bridged.

    Returns:
        Instances on ``grid``, best score first. A score is the mean of the cuts' scores, weighted by area;
        so are the uncertainty columns. Interpolated cuts have no weight.

    Source: of the interpolation, Raya and Udupa, "Shape-based interpolation of multidimensional objects", IEEE
        Transactions on Medical Imaging 9 (1990).
    """
    if len(slices) != grid.shape[0]:
        raise ValueError(f"{len(slices)} slices for a grid of {grid.shape[0]}")
    chains: list[list[tuple[int, int]]] = []  # (slice, position in its set)
    for z, current in enumerate(slices):
        free = list(range(len(current)))
        for reach in range(1, gap + 2):
            ends = [k for k, chain in enumerate(chains) if chain[-1][0] == z - reach]
            for chain, b in _linked([chains[k][-1] for k in ends], free, slices, z, min_iou):
                chains[ends[chain]].append((z, b))
                free.remove(b)
        chains += [[(z, b)] for b in free]
    return _join(chains, slices, grid)


def _linked(
    ends: list[tuple[int, int]], free: list[int], slices: Sequence[InstanceSet], z: int, min_iou: float
) -> list[tuple[int, int]]:
    """Return pairs of a position in ``ends``, cuts of one earlier slice, and an instance of slice ``z``."""
    from scipy.optimize import linear_sum_assignment

    if not ends or not free:
        return []
    iou = _iou(slices[ends[0][0]].select([i for _, i in ends]), slices[z].select(free))
    pairs = zip(*linear_sum_assignment(-iou), strict=True)
    return [(int(a), free[int(b)]) for a, b in pairs if iou[a, b] >= min_iou]


def _iou(first: InstanceSet, second: InstanceSet) -> NDArray[np.float64]:
    """Return ``(N, M)`` IoU of instances in neighbouring planes; 0 between labels."""
    iou = np.zeros((len(first), len(second)))
    for a, b in zip(*(side.tolist() for side in meeting(first.masks, second.masks)), strict=True):
        if first.labels[a] == second.labels[b]:
            mask, other = first.masks[a], second.masks[b]
            common = mask.intersection(other)
            iou[a, b] = common / (mask.area + other.area - common) if common else 0.0
    return iou


def _join(chains: list[list[tuple[int, int]]], slices: Sequence[InstanceSet], grid: Grid) -> InstanceSet:
    masks, labels, scores = [], [], []
    columns: dict[str, list[float]] = {name: [] for s in slices for name in s.uncertainty}
    for chain in chains:
        cuts = [slices[z].masks[i] for z, i in chain]
        low = np.min([c.box[0] for c in cuts], axis=0)
        high = np.max([c.box[1] for c in cuts], axis=0)
        box = tuple(slice(int(a), int(b)) for a, b in zip(low, high, strict=True))
        first = chain[0][0]
        crop = np.zeros((chain[-1][0] - first + 1, *(high - low)), bool)
        for (z, _), cut in zip(chain, cuts, strict=True):
            crop[z - first] = cut.within(box)
        for (before, _), (after, _) in pairwise(chain):
            if after > before + 1:
                crop[before - first + 1 : after - first] = _between(
                    crop[before - first], crop[after - first], after - before - 1, grid.spacing[1:]
                )
        masks.append(Mask.from_crop(crop, (first, int(low[0]), int(low[1])), grid.shape))
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


def _between(
    first: NDArray[np.bool_], last: NDArray[np.bool_], count: int, spacing: tuple[float, ...]
) -> NDArray[np.bool_]:
    """Return ``count`` cuts between two, ``(count, Y, X)``: where their signed distances' weighted mean is inside."""
    near, far = (_signed_distance(cut, spacing) for cut in (first, last))
    shares = np.arange(1, count + 1)[:, None, None] / (count + 1)
    inside: NDArray[np.bool_] = (1 - shares) * near + shares * far > 0
    return inside


def _signed_distance(cut: NDArray[np.bool_], spacing: tuple[float, ...]) -> NDArray[np.float64]:
    """Return the distance to the nearest pixel of the other side, positive inside."""
    from scipy.ndimage import distance_transform_edt

    padded = np.pad(cut, 1)  # a cut that fills its box has an outside too
    signed = distance_transform_edt(padded, spacing) - distance_transform_edt(~padded, spacing)
    whole: NDArray[np.float64] = signed[1:-1, 1:-1]
    return whole

"""Label layers: overlapping instances as few integer images, so that they can pass through array transforms."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from clearmargin.core.grid import Grid
from clearmargin.core.instances import InstanceSet, masks_by_number
from clearmargin.core.mask import Mask
from clearmargin.core.meeting import meeting

__all__ = ["pack_layers", "unpack_layers"]


def pack_layers(instances: InstanceSet) -> NDArray[np.int32]:
    """Return ``(L, *grid.shape)`` int32 layers in which no two instances share an element.

    Value ``i + 1`` in some layer marks instance ``i``; 0 is background. L is at least 1. Where instances do not
    overlap, L is 1. Layers are chosen by DSATUR (Brelaz, CACM 1979), which is exact for bipartite overlap
    graphs and never needs more than one layer above the largest number of neighbours.
    """
    colours = _colour(_overlap_graph(instances.masks))
    layers = np.zeros((max(colours, default=0) + 1, *instances.grid.shape), np.int32)
    for i, (mask, colour) in enumerate(zip(instances.masks, colours, strict=True)):
        layers[colour][mask.slices][mask.crop] = i + 1
    return layers


def unpack_layers(
    layers: NDArray[np.integer], grid: Grid, labels: NDArray[np.int64], scores: NDArray[np.float32]
) -> InstanceSet:
    """Return the instances of ``layers`` (``(L, *grid.shape)``) in their first order.

    An instance that the layers no longer hold has an empty mask: callers see the loss, nothing moves up.
    """
    masks = [Mask.from_crop(np.zeros((0,) * grid.ndim, bool), (0,) * grid.ndim, grid.shape)] * len(labels)
    for layer in layers:
        for position, mask in enumerate(masks_by_number(layer)):
            if mask is not None:
                masks[position] = mask
    return InstanceSet(grid=grid, masks=tuple(masks), labels=labels, scores=scores)


def _overlap_graph(masks: tuple[Mask, ...]) -> list[set[int]]:
    """Return each mask's overlapping neighbours."""
    neighbours: list[set[int]] = [set() for _ in masks]
    firsts, seconds = meeting(masks, masks)
    later = firsts < seconds
    for i, j in zip(firsts[later].tolist(), seconds[later].tolist(), strict=True):
        if masks[i].overlaps(masks[j]):
            neighbours[i].add(j)
            neighbours[j].add(i)
    return neighbours


def _colour(neighbours: list[set[int]]) -> list[int]:
    """Return a colour per vertex by DSATUR: the vertex with the most differently coloured neighbours first."""
    colours = [-1] * len(neighbours)
    seen: list[set[int]] = [set() for _ in neighbours]
    left = {i for i, near in enumerate(neighbours) if near}
    for i in range(len(neighbours)):
        if i not in left:
            colours[i] = 0
    while left:
        i = max(left, key=lambda k: (len(seen[k]), len(neighbours[k]), -k))
        colour = next(c for c in range(len(neighbours)) if c not in seen[i])
        colours[i] = colour
        left.remove(i)
        for j in neighbours[i]:
            seen[j].add(colour)
    return colours

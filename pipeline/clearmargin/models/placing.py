"""From a network's pixels back to the source's grid: as probabilities, thresholded once."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from clearmargin.core import Mask
from clearmargin.models.network import Detections

__all__ = ["foreground", "place", "place_volume", "threshold"]

_SLAB = 8  # slices of a volume that are placed at once


def place(
    mask: Tensor, region: Tensor, matrix: NDArray[np.float64], shape: tuple[int, int]
) -> tuple[NDArray[np.float32], tuple[int, int]]:
    """Return one probability mask on the source's grid.

    Args:
        mask: ``(h, w)`` probabilities that span ``region`` edge to edge.
        region: ``(4,)`` ``x1 y1 x2 y2`` in network pixels; pixel k covers [k, k + 1).
        matrix: ``(3, 3)``, from network indices ``(y, x, 1)`` to source indices, pixel centres at whole numbers.
        shape: ``(Y, X)`` of the source.

    Returns:
        A float32 crop of the source's grid and its origin; the crop is empty where nothing falls on the grid.
        Values between the mask's samples are bilinear; beyond its edges it falls to 0 within one sample.
    """
    h, w = mask.shape
    x1, y1, x2, y2 = (float(v) for v in region)
    step_y, step_x = (y2 - y1) / h, (x2 - x1) / w
    # One sample beyond each edge is where the padded mask reaches 0.
    corners = np.array(
        [
            [y, x, 1.0]
            for y in (y1 - step_y - 0.5, y2 + step_y - 0.5)
            for x in (x1 - step_x - 0.5, x2 + step_x - 0.5)
        ]
    )
    on_source = (corners @ matrix.T)[:, :2]
    low = np.maximum(np.floor(on_source.min(axis=0)).astype(int), 0)
    high = np.minimum(np.ceil(on_source.max(axis=0)).astype(int) + 1, shape)
    if (high <= low).any() or step_y <= 0 or step_x <= 0:
        return np.zeros((0, 0), np.float32), (0, 0)
    inverse = np.linalg.inv(matrix)
    ys, xs = np.meshgrid(np.arange(low[0], high[0]), np.arange(low[1], high[1]), indexing="ij")
    network_y = inverse[0, 0] * ys + inverse[0, 1] * xs + inverse[0, 2]
    network_x = inverse[1, 0] * ys + inverse[1, 1] * xs + inverse[1, 2]
    # Sample k of the padded mask lies at k - 0.5 steps from the region's edge.
    sample_y = (network_y + 0.5 - y1) / step_y + 0.5
    sample_x = (network_x + 0.5 - x1) / step_x + 0.5
    # align_corners: whole numbers are samples, -1 is the first one and +1 the last of the h + 2, w + 2.
    where = torch.from_numpy(np.stack([sample_x / (w + 1), sample_y / (h + 1)], -1) * 2 - 1)
    padded = F.pad(mask.detach().cpu().double(), (1, 1, 1, 1))
    placed = F.grid_sample(padded[None, None], where[None], align_corners=True, padding_mode="zeros")
    return placed[0, 0].numpy().astype(np.float32), (int(low[0]), int(low[1]))


def threshold(crop: NDArray[np.float32], origin: tuple[int, int], shape: tuple[int, int]) -> Mask:
    """Return the mask of the elements with a probability of at least one half."""
    return Mask.from_crop(crop >= 0.5, origin, shape)


def foreground(
    detections: Detections, matrix: NDArray[np.float64], shape: tuple[int, int], classes: int
) -> NDArray[np.float32]:
    """Return each source pixel's probability that some instance of a class covers it, ``(K, Y, X)``.

    An instance counts with score times mask probability, and the strongest one at a pixel counts there:
    detections that overlap are mostly second looks at one object, which independence would count twice.
    0 where nothing was found. Classes are apart, since a tumour's edge lies inside its organ.
    """
    found = np.zeros((classes, *shape), np.float32)
    every = zip(detections.masks, detections.regions, detections.scores, detections.labels, strict=True)
    for mask, region, score, label in every:
        crop, (y, x) = place(mask, region, matrix, shape)
        part = found[int(label) - 1, y : y + crop.shape[0], x : x + crop.shape[1]]
        np.maximum(part, crop * float(score), out=part)
    return found


def place_volume(
    probabilities: NDArray[np.float32],
    origin: tuple[int, ...],
    matrix: NDArray[np.float64],
    shape: tuple[int, ...],
) -> tuple[NDArray[np.float32], tuple[int, int, int]]:
    """Return one crop of a network's volume on the source's grid, trilinear.

    Args:
        probabilities: ``(d, h, w)``, a sample for each network voxel.
        origin: Network index of its first sample.
        matrix: ``(4, 4)``, from network indices to source indices, scales and shifts alone (``volume_view``).
        shape: ``(Z, Y, X)`` of the source.

    Returns:
        A float32 crop of the source's grid and its origin; empty where nothing falls on the grid. Beyond the
        crop's outer samples it falls to 0 within one sample.
    """
    scale, shift = np.diag(matrix)[:3], matrix[:3, 3]
    low, grids = [], []
    for axis in range(3):
        first, extent = origin[axis], probabilities.shape[axis]
        start = max(int(np.floor(scale[axis] * (first - 1) + shift[axis])), 0)
        stop = min(int(np.ceil(scale[axis] * (first + extent) + shift[axis])) + 1, shape[axis])
        if stop <= start:
            return np.zeros((0, 0, 0), np.float32), (0, 0, 0)
        low.append(start)
        samples = (np.arange(start, stop) - shift[axis]) / scale[axis] - first + 1  # of the padded crop
        grids.append(torch.from_numpy(samples / (extent + 1) * 2 - 1))
    padded = F.pad(torch.from_numpy(probabilities).double(), (1,) * 6)[None, None]
    placed = np.zeros(tuple(len(g) for g in grids), np.float32)
    for start in range(0, len(placed), _SLAB):  # three coordinates a voxel: an organ's would be gigabytes
        z, y, x = torch.meshgrid(grids[0][start : start + _SLAB], *grids[1:], indexing="ij")
        where = torch.stack([x, y, z], -1)[None]
        slab = F.grid_sample(padded, where, align_corners=True, padding_mode="zeros")
        placed[start : start + _SLAB] = slab[0, 0].numpy()
    return placed, (low[0], low[1], low[2])

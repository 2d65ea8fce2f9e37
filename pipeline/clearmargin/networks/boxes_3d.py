"""Boxes in space, ``x1 y1 z1 x2 y2 z2`` in network voxels (voxel k covers [k, k + 1)), and what lies in them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["box_iou", "boxes_of", "decode", "encode", "pool_levels", "pool_regions", "suppress", "within"]

_BIN = 1.5  # map voxels that a bin of a region should span
_LONGEST = 4.0  # change of a box's extent, as a factor in logarithms: none is moved out of all proportion


def boxes_of(masks: Tensor) -> Tensor:
    """Return the boxes of ``(N, D, H, W)`` masks, ``(N, 6)`` float32; 0 for a mask that holds nothing."""
    boxes = torch.zeros((len(masks), 6), device=masks.device)
    if len(masks):
        held = masks > 0
        for edge, others in ((0, (1, 2)), (1, (1, 3)), (2, (2, 3))):
            line = held.any(others[1]).any(others[0]).float()  # along x, y or z
            boxes[:, edge] = line.argmax(1).float()
            boxes[:, edge + 3] = line.shape[1] - line.flip(1).argmax(1).float()
        boxes *= held.flatten(1).any(1)[:, None]
    return boxes


def box_iou(first: Tensor, second: Tensor) -> Tensor:
    """Return the IoU of each of N boxes with each of M, ``(N, M)``; 0 for an empty one."""
    low = torch.maximum(first[:, None, :3], second[None, :, :3])
    high = torch.minimum(first[:, None, 3:], second[None, :, 3:])
    common = (high - low).clamp(min=0).prod(2)
    sizes = [(b[:, 3:] - b[:, :3]).clamp(min=0).prod(1) for b in (first, second)]
    return common / (sizes[0][:, None] + sizes[1][None] - common).clamp(min=1e-6)


def encode(boxes: Tensor, anchors: Tensor) -> Tensor:
    """Return how anchors are moved and stretched to become boxes, both ``(N, 6)``."""
    extents, sizes = anchors[:, 3:] - anchors[:, :3], boxes[:, 3:] - boxes[:, :3]
    moved = (boxes[:, :3] + boxes[:, 3:] - anchors[:, :3] - anchors[:, 3:]) / (2 * extents)
    return torch.cat([moved, (sizes / extents).log()], 1)


def decode(changes: Tensor, anchors: Tensor) -> Tensor:
    """Return the boxes that ``encode`` gives these changes of; in 32 bits, since 16 would round them to voxels."""
    changes = changes.float()
    extents = anchors[:, 3:] - anchors[:, :3]
    centres = (anchors[:, :3] + anchors[:, 3:]) / 2 + changes[:, :3] * extents
    half = extents * changes[:, 3:].clamp(-_LONGEST, _LONGEST).exp() / 2
    return torch.cat([centres - half, centres + half], 1)


def within(boxes: Tensor, size: Sequence[int]) -> Tensor:
    """Return boxes cut to a window of ``size`` (Z, Y, X)."""
    most = boxes.new_tensor([*size[::-1]] * 2)
    return torch.minimum(boxes.clamp(min=0), most)


def suppress(boxes: Tensor, scores: Tensor, *, iou: float, most: int) -> Tensor:
    """Return the positions of at most ``most`` boxes, best score first, none above ``iou`` with a better one."""
    order = scores.argsort(descending=True, stable=True)
    # On the CPU: a decision a box is a kernel a box on a GPU.
    overlaps = (box_iou(boxes[order], boxes[order]) > iou).cpu().numpy()
    kept: list[int] = []
    for i in range(len(order)):
        if not overlaps[i, kept].any():
            kept.append(i)
            if len(kept) == most:
                break
    return order[torch.tensor(kept, dtype=torch.int64, device=order.device)]


def pool_regions(
    maps: Tensor, boxes: Sequence[Tensor], size: tuple[int, int, int], extent: Sequence[int]
) -> Tensor:
    """Return what maps hold at the centres of each box's bins, trilinear, ``(R, C, *size)``.

    Args:
        maps: ``(B, C, d, h, w)``; they span the window edge to edge.
        boxes: For each window ``(R_i, 6)``.
        size: Bins (Z, Y, X).
        extent: Extents (Z, Y, X) of the window in network voxels.
    """
    parts = [maps.new_zeros((0, maps.shape[1], *size))]
    shares = [(torch.arange(n, device=maps.device, dtype=torch.float32) + 0.5) / n for n in size]
    for one, own in zip(maps, boxes, strict=True):
        if not len(own):
            continue
        lines = []
        for axis in range(3):
            low, high = own[:, 2 - axis, None], own[:, 5 - axis, None]
            lines.append(2 * (low + shares[axis] * (high - low)) / extent[axis] - 1)
        shape = (len(own), *size)
        grid = torch.stack(
            [
                lines[2][:, None, None, :].expand(shape),
                lines[1][:, None, :, None].expand(shape),
                lines[0][:, :, None, None].expand(shape),
            ],
            dim=-1,
        )
        read = F.grid_sample(
            one[None].float(), grid.flatten(0, 1)[None], align_corners=False, padding_mode="border"
        )
        parts.append(torch.unflatten(read[0], 1, (len(own), size[0])).transpose(0, 1).to(maps.dtype))
    return torch.cat(parts)


def pool_levels(
    maps: Sequence[Tensor],
    boxes: Sequence[Tensor],
    bins: int,
    extent: Sequence[int],
    steps: Sequence[Sequence[int]],
) -> Tensor:
    """Return ``(R, C, bins, bins, bins)`` of each region, from the map whose voxels fit its bins.

    Args:
        maps: One ``(B, C, d, h, w)`` per level.
        boxes: For each window ``(R_i, 6)``.
        bins: Along each axis.
        extent: Extents (Z, Y, X) of the window in network voxels.
        steps: Extents (Z, Y, X) of each level's voxels in network voxels.
    """
    counts = [len(b) for b in boxes]
    every = torch.cat(list(boxes))
    sides = (every[:, 3:] - every[:, :3]).clamp(min=1e-3).log().mean(1)
    fitting = every.new_tensor([math.log(_BIN * bins) + float(np.log(s).mean()) for s in steps])
    levels = (sides[:, None] - fitting[None]).abs().argmin(1)
    parts, places = [], []
    for level, one in enumerate(maps):
        picked = [b[own == level] for b, own in zip(boxes, torch.split(levels, counts), strict=True)]
        if sum(map(len, picked)):
            parts.append(pool_regions(one, picked, (bins,) * 3, extent))
            places.append(torch.where(levels == level)[0])
    if not parts:
        return maps[0].new_zeros((0, maps[0].shape[1], bins, bins, bins))
    return torch.cat(parts)[torch.cat(places).argsort()]

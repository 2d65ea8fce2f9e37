"""Features of regions, each from the map that fits its size (Lin et al., CVPR 2017): two ways to the same numbers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import roi_align
from torchvision.ops.poolers import LevelMapper

__all__ = ["RegionPool", "align_regions", "look_up_regions"]

_SAMPLES = 2  # a bin's samples along each axis


class RegionPool(nn.Module):
    """Pools regions out of maps with half-pixel alignment; it has no weights.

    Attributes:
        pool: ``align_regions``, torchvision's operator, which has gradients and runs on every device; beside a
            runtime ``look_up_regions``, which is several times as fast on a CPU.
    """

    def __init__(self, strides: Sequence[int]) -> None:
        """Build it for maps of these strides, finest first, each twice the one before."""
        super().__init__()
        self.strides = tuple(strides)
        first = self.strides[0].bit_length() - 1
        last = self.strides[-1].bit_length() - 1
        self.levels = LevelMapper(first, last, canonical_scale=224, canonical_level=4, eps=1e-6)
        self.pool = align_regions

    def forward(self, maps: Sequence[Tensor], boxes: Sequence[Tensor], size: int) -> Tensor:
        """Return ``(R, C, size, size)`` features of all boxes.

        Args:
            maps: ``(B, C, h, w)`` at each of the strides.
            boxes: For each image ``(R_i, 4)``, ``x1 y1 x2 y2`` in network pixels.
            size: Bins along each axis.
        """
        rois = torch.cat(
            [torch.cat([b.new_full((len(b), 1), float(i)), b], dim=1) for i, b in enumerate(boxes)]
        ).to(maps[0].dtype)
        if not len(rois):
            return maps[0].new_zeros((0, maps[0].shape[1], size, size))
        return self.pool(maps, self.strides, rois, self.levels(list(boxes)), size)


def align_regions(
    maps: Sequence[Tensor], strides: Sequence[int], rois: Tensor, levels: Tensor, size: int
) -> Tensor:
    """Return ``(R, C, size, size)``: each bin the mean of 2 x 2 bilinear samples.

    Args:
        maps: ``(B, C, h, w)`` at each of the strides.
        strides: Network pixels per pixel of each map.
        rois: ``(R, 5)``, at least one: image, ``x1 y1 x2 y2`` in network pixels.
        levels: ``(R,)``, the map of each.
        size: Bins along each axis.
    """
    parts, places = [], []
    for level, (features, stride) in enumerate(zip(maps, strides, strict=True)):
        chosen = torch.where(levels == level)[0]
        if len(chosen):
            parts.append(roi_align(features, rois[chosen], (size, size), 1 / stride, _SAMPLES, aligned=True))
            places.append(chosen)
    return torch.cat(parts)[torch.cat(places).argsort()]


def look_up_regions(
    maps: Sequence[Tensor], strides: Sequence[int], rois: Tensor, levels: Tensor, size: int
) -> Tensor:
    """Return what ``align_regions`` returns, on a CPU and without gradients: weighted sums of a table's rows.

    A bin is a weighted sum of 16 of the map's pixels, and a pixel's channels are a row of the table: vectors, where
    torchvision's operator on the CPU goes through channels one number at a time.
    """
    table, firsts = _table(maps)
    extents = torch.tensor([m.shape[-2:] for m in maps], dtype=torch.int32)[levels]
    boxes = rois[:, 1:] / torch.tensor([float(s) for s in strides])[levels][:, None] - 0.5
    columns, across = _taps(boxes[:, 0], boxes[:, 2], extents[:, 1], size)
    rows, down = _taps(boxes[:, 1], boxes[:, 3], extents[:, 0], size)
    starts = firsts[levels] + rois[:, 0].int() * extents[:, 0] * extents[:, 1]
    rows = starts[:, None, None] + rows * extents[:, 1, None, None]
    places = rows[:, :, None, :, None] + columns[:, None, :, None, :]
    weights = down[:, :, None, :, None] * across[:, None, :, None, :]
    bins = F.embedding_bag(
        places.reshape(-1, places.shape[-1] ** 2),
        table,
        per_sample_weights=weights.reshape(-1, places.shape[-1] ** 2),
        mode="sum",
    )
    return bins.reshape(len(rois), size, size, -1).permute(0, 3, 1, 2)


def _table(maps: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Return all pixels of all maps as rows of channels, and each map's first row."""
    counts = [m.shape[0] * m.shape[2] * m.shape[3] for m in maps]
    table = maps[0].new_empty((sum(counts), maps[0].shape[1]))
    for rows, features in zip(torch.split(table, counts), maps, strict=True):
        pixels = features.flatten(2).transpose(1, 2)
        rows.view_as(pixels).copy_(pixels)
    return table, torch.tensor([0, *counts[:-1]]).cumsum(0).int()


def _taps(low: Tensor, high: Tensor, extent: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Return the pixels that each bin of each region reads along one axis, and their weights.

    Args:
        low: ``(R,)``, the region's near edge in the map's pixels, whose centres are at whole numbers.
        high: ``(R,)``, its far edge.
        extent: ``(R,)``, of the map.
        size: Bins.

    Returns:
        ``(R, size, 2 * samples)`` each. Samples more than a pixel outside count as 0, those less far as the
        outermost pixel, as in torchvision.
    """
    steps = (torch.arange(size * _SAMPLES) + 0.5) / (size * _SAMPLES)
    where = low[:, None] + (high - low)[:, None] * steps
    inside = (where >= -1) & (where <= extent[:, None])
    where = where.clamp(min=0).minimum(extent[:, None] - 1)
    before = where.int()
    share = where - before
    after = (before + 1).minimum(extent[:, None] - 1)
    weights = torch.stack([1 - share, share], dim=-1) * (inside / _SAMPLES)[..., None]
    taps = torch.stack([before, after], dim=-1)
    return taps.reshape(len(low), size, -1), weights.reshape(len(low), size, -1)

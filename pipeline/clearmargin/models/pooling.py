"""Features of regions, each from the map that fits its size (Lin et al., CVPR 2017): two ways to the same numbers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torchvision.ops import roi_align
from torchvision.ops.poolers import LevelMapper

__all__ = ["SAMPLES", "RegionPool", "Regions", "align_regions", "look_up_regions"]

SAMPLES = 2  # a bin's samples along each axis

Read = Callable[[Tensor, Tensor, int], Tensor]
"""From ``(R, 5)`` rois, at least one, their maps ``(R,)`` and bins along each axis to ``(R, C, size, size)``."""


class RegionPool(nn.Module):
    """Pools regions out of maps with half-pixel alignment; it has no weights.

    Attributes:
        reader: Makes maps ready: ``align_regions``, torchvision's operator, which has gradients and runs on every
            device; beside a runtime ``look_up_regions``, which is several times as fast on a CPU.
    """

    def __init__(self, strides: Sequence[int]) -> None:
        """Build it for maps of these strides, finest first, each twice the one before."""
        super().__init__()
        self.strides = tuple(strides)
        first = self.strides[0].bit_length() - 1
        last = self.strides[-1].bit_length() - 1
        self.levels = LevelMapper(first, last, canonical_scale=224, canonical_level=4, eps=1e-6)
        self.reader: Callable[[Sequence[Tensor], Sequence[int]], Read] = align_regions

    def forward(self, maps: Sequence[Tensor]) -> Regions:
        """Return maps to pool regions from, as often as wanted: ``(B, C, h, w)`` at each of the strides."""
        return Regions(like=maps[0], levels=self.levels, read=self.reader(maps, self.strides))


@dataclass(frozen=True, kw_only=True)
class Regions:
    """The maps of a batch as regions are read from them.

    Attributes:
        like: One of the maps.
        levels: Which map fits a box.
        read: What reads them.
    """

    like: Tensor
    levels: LevelMapper
    read: Read

    def __call__(self, boxes: Sequence[Tensor], size: int) -> Tensor:
        """Return ``(R, C, size, size)`` features of all boxes.

        Args:
            boxes: For each image ``(R_i, 4)``, ``x1 y1 x2 y2`` in network pixels.
            size: Bins along each axis.
        """
        rois = torch.cat(
            [torch.cat([b.new_full((len(b), 1), float(i)), b], dim=1) for i, b in enumerate(boxes)]
        ).to(self.like.dtype)
        if not len(rois):
            return self.like.new_zeros((0, self.like.shape[1], size, size))
        return self.read(rois, self.levels(list(boxes)), size)


def align_regions(maps: Sequence[Tensor], strides: Sequence[int]) -> Read:
    """Return what gives each bin the mean of 2 x 2 bilinear samples, with torchvision's operator.

    Args:
        maps: ``(B, C, h, w)`` at each of the strides.
        strides: Network pixels per pixel of each map.
    """
    return partial(_align, maps, strides)


def look_up_regions(maps: Sequence[Tensor], strides: Sequence[int]) -> Read:
    """Return what gives the same numbers as ``align_regions``, on a CPU, in 32 bits and without gradients.

    A bin is a weighted sum of 16 of the map's pixels. The maps are turned into one table of pixels, so that a pixel's
    channels are a row, and sums are of vectors, where torchvision's operator on the CPU goes through channels one
    number at a time.
    """
    pixels = [m.shape[0] * m.shape[2] * m.shape[3] for m in maps]
    table = torch.empty((sum(pixels), maps[0].shape[1]), dtype=torch.float32)
    for rows, images in zip(torch.split(table, pixels), maps, strict=True):
        for own, image in zip(rows.chunk(len(images)), images, strict=True):
            own.copy_(image.flatten(1).t())  # of matrices torch has a fast transposition
    return partial(
        _look_up,
        table,
        np.cumsum([0, *pixels[:-1]]),
        np.array([m.shape[2:] for m in maps], np.int64),
        np.array(strides, np.float32),
    )


def _align(maps: Sequence[Tensor], strides: Sequence[int], rois: Tensor, levels: Tensor, size: int) -> Tensor:
    parts, places = [], []
    for level, (features, stride) in enumerate(zip(maps, strides, strict=True)):
        chosen = torch.where(levels == level)[0]
        if len(chosen):
            parts.append(roi_align(features, rois[chosen], (size, size), 1 / stride, SAMPLES, aligned=True))
            places.append(chosen)
    return torch.cat(parts)[torch.cat(places).argsort()]


def _look_up(
    table: Tensor,
    firsts: NDArray[np.int64],
    extents: NDArray[np.int64],
    strides: NDArray[np.float32],
    rois: Tensor,
    levels: Tensor,
    size: int,
) -> Tensor:
    from clearmargin.models.pooling_kernel import pool_regions

    pooled = torch.empty((len(rois), table.shape[1], size * size), dtype=torch.float32)
    pool_regions(
        table.numpy(),
        firsts,
        extents,
        strides,
        rois.contiguous().numpy(),
        levels.numpy(),
        size,
        pooled.numpy(),
    )
    return pooled.view(len(rois), -1, size, size)

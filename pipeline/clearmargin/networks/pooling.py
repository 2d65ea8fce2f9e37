"""Features of regions, each from the map that fits its size (Lin et al., CVPR 2017): two ways to the same numbers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torchvision.ops import roi_align
from torchvision.ops.poolers import LevelMapper

from clearmargin.networks.point_rend import features_at, in_image

__all__ = ["SAMPLES", "AlignedMaps", "Maps", "RegionPool", "Regions", "TabledMaps"]

SAMPLES = 2  # a bin's samples along each axis


class Maps(Protocol):
    """A batch's maps, made ready to be read."""

    def pool(self, rois: Tensor, levels: Tensor, size: int) -> Tensor:
        """Return of ``(R, 5)`` rois, at least one, the mean of 2 x 2 bilinear samples a bin, ``(R, C, size, size)``.

        ``levels``, ``(R,)``, says which map a roi is read from.
        """
        ...

    def at(self, boxes: Sequence[Tensor], points: Tensor) -> Tensor:
        """Return the finest map's values at points of boxes, ``(R, P, C)``; as ``features_at``."""
        ...


class RegionPool(nn.Module):
    """Reads regions out of maps with half-pixel alignment; it has no weights.

    Attributes:
        reader: Makes maps ready, ``(B, C, h, w)`` at each of the strides: ``AlignedMaps``, torch's operators, which
            have gradients and run on every device; beside a runtime ``TabledMaps``, several times as fast on a CPU.
    """

    def __init__(self, strides: Sequence[int]) -> None:
        """Build it for maps of these strides, finest first, each twice the one before."""
        super().__init__()
        self.strides = tuple(strides)
        first = self.strides[0].bit_length() - 1
        last = self.strides[-1].bit_length() - 1
        self.levels = LevelMapper(first, last, canonical_scale=224, canonical_level=4, eps=1e-6)
        self.reader: Callable[[Sequence[Tensor], Sequence[int]], Maps] = AlignedMaps

    def forward(self, maps: Sequence[Tensor]) -> Regions:
        """Return maps to read regions from, as often as wanted: ``(B, C, h, w)`` at each of the strides."""
        return Regions(like=maps[0], levels=self.levels, maps=self.reader(maps, self.strides))


@dataclass(frozen=True, kw_only=True)
class Regions:
    """The maps of a batch as regions are read from them.

    Attributes:
        like: One of the maps.
        levels: Which map fits a box.
        maps: All of them.
    """

    like: Tensor
    levels: LevelMapper
    maps: Maps

    def __call__(self, boxes: Sequence[Tensor], size: int) -> Tensor:
        """Return ``(R, C, size, size)`` features of all boxes.

        Args:
            boxes: For each image ``(R_i, 4)``, ``x1 y1 x2 y2`` in network pixels.
            size: Bins along each axis.
        """
        rois = torch.cat(
            [torch.cat([b.new_full((len(b), 1), float(i)), b], dim=1) for i, b in enumerate(boxes)]
        )
        # 16 bits, in which automatic precision has its maps, would round boxes to as much as 4 pixels
        rois = rois.to(torch.promote_types(self.like.dtype, torch.float32))
        if not len(rois):
            return self.like.new_zeros((0, self.like.shape[1], size, size))
        return self.maps.pool(rois, self.levels(list(boxes)), size)

    def at(self, boxes: Sequence[Tensor], points: Tensor) -> Tensor:
        """Return ``(R, P, C)`` features of the finest map.

        Args:
            boxes: As above.
            points: ``(R, P, 2)``, ``x y`` in [0, 1] of the boxes.
        """
        return self.maps.at(boxes, points)


@dataclass(frozen=True)
class AlignedMaps:
    """Maps read by torchvision's and torch's operators.

    Attributes:
        maps: ``(B, C, h, w)`` at each of the strides.
        strides: Network pixels per pixel of each map.
    """

    maps: Sequence[Tensor]
    strides: Sequence[int]

    def pool(self, rois: Tensor, levels: Tensor, size: int) -> Tensor:
        """As of ``Maps``."""
        parts, places = [], []
        for level, (features, stride) in enumerate(zip(self.maps, self.strides, strict=True)):
            of_level = torch.where(levels == level)[0]
            if len(of_level):
                read = roi_align(features, rois[of_level], (size, size), 1 / stride, SAMPLES, aligned=True)
                parts.append(read)
                places.append(of_level)
        return torch.cat(parts)[torch.cat(places).argsort()]

    def at(self, boxes: Sequence[Tensor], points: Tensor) -> Tensor:
        """As of ``Maps``."""
        return features_at(self.maps[0], boxes, points, self.strides[0])


class TabledMaps:
    """Maps as tables of pixels: the same numbers on a CPU, in 32 bits and without gradients.

    A pixel's channels are a row, and a sample is a sum of a few rows, as vectors, where torch's operators on the CPU go
    through channels one number at a time.
    """

    def __init__(self, maps: Sequence[Tensor], strides: Sequence[int]) -> None:
        """Make the tables, of maps channels last without a copy; as of ``AlignedMaps``."""
        self._extents: NDArray[np.int64] = np.array([m.shape[2:] for m in maps], np.int64)
        self._strides = np.array(strides, np.float32)
        self._channels = int(maps[0].shape[1])
        self._tables: tuple[NDArray[np.float32], ...] = tuple(
            m.permute(0, 2, 3, 1).reshape(-1, self._channels).float().numpy() for m in maps
        )

    def pool(self, rois: Tensor, levels: Tensor, size: int) -> Tensor:
        """As of ``Maps``."""
        from clearmargin.networks.pooling_kernel import pool_regions

        pooled = torch.empty((len(rois), self._channels, size * size), dtype=torch.float32)
        pool_regions(
            self._tables,
            self._extents,
            self._strides,
            rois.contiguous().numpy(),
            levels.numpy(),
            size,
            pooled.numpy(),
        )
        return pooled.view(len(rois), -1, size, size)

    def at(self, boxes: Sequence[Tensor], points: Tensor) -> Tensor:
        """As of ``Maps``."""
        from clearmargin.networks.pooling_kernel import sample_points

        height, width = (int(n) for n in self._extents[0])
        size = (width * float(self._strides[0]), height * float(self._strides[0]))
        sampled = torch.empty((*points.shape[:2], self._channels), dtype=torch.float32)
        counts = [len(own) for own in boxes]
        parts = (torch.split(one, counts) for one in (points, sampled))
        for image, (own, inside, out) in enumerate(zip(boxes, *parts, strict=True)):
            pixels = self._tables[0][image * height * width : (image + 1) * height * width]
            where = in_image(inside, own, size) * inside.new_tensor((width, height))
            sample_points(pixels, width, where.float().contiguous().numpy(), out.numpy())
        return sampled

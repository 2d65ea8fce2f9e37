"""Masks of whole images, cut down to what they hold: 300 of them at full size are gigabytes."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["crop_masks"]

_FLOOR = 0.05  # what is less probable everywhere around an instance is not carried to the source's grid


def crop_masks(masks: Tensor, stride: float) -> tuple[tuple[Tensor, ...], Tensor]:
    """Return each mask's part above 0.05 with a margin of one pixel, and where it lies.

    Args:
        masks: ``(N, h, w)`` probabilities that span an image, pixel k covering ``[k, k + 1) * stride``.
        stride: Network pixels per mask pixel.

    Returns:
        N crops ``(h_i, w_i)``, 1 x 1 for a mask that holds nothing, and ``(N, 4)`` float32 ``x1 y1 x2 y2`` in
        network pixels: ``masks`` and ``regions`` of ``Detections``.
    """
    held = masks > _FLOOR
    rows, columns = held.any(dim=2).cpu(), held.any(dim=1).cpu()
    crops, regions = [], []
    for mask, row, column in zip(masks, rows, columns, strict=True):
        y1, y2 = _extent(row)
        x1, x2 = _extent(column)
        crops.append(mask[y1:y2, x1:x2].clone())  # a view would hold the whole masks
        regions.append([x1 * stride, y1 * stride, x2 * stride, y2 * stride])
    return tuple(crops), torch.tensor(regions, dtype=torch.float32, device=masks.device).reshape(-1, 4)


def _extent(line: Tensor) -> tuple[int, int]:
    """Return the half-open range of what is true, one wider on each side if there is room."""
    places = torch.nonzero(line)[:, 0]
    if len(places) == 0:
        return 0, 1
    return max(int(places[0]) - 1, 0), min(int(places[-1]) + 2, len(line))

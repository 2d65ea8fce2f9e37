"""Volumes larger than what a network sees at a time: overlapping windows, averaged."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from monai.data.utils import compute_importance_map, dense_patch_slices
from monai.inferers import sliding_window_inference
from numpy.typing import NDArray
from pydantic import Field, model_validator
from torch import Tensor

from clearmargin.memory import trim_heap
from clearmargin.networks.network import Slab
from clearmargin.networks.semantic_cc import UNetSettings
from clearmargin.networks.window_plan import window_objection
from clearmargin.transforms.settings import VolumeView

__all__ = ["UNet3DSettings", "windowed_probabilities"]


class UNet3DSettings(UNetSettings, VolumeView):
    """Options of a U-shaped network that sees a volume window by window."""

    overlap: float = Field(
        0.5, ge=0, lt=1, description="overlap of neighbouring windows at inference, as a share"
    )
    windows: int = Field(
        1, ge=1, description="windows per forward pass at inference; more are quicker on a GPU"
    )
    strides: tuple[tuple[int, int, int], ...] | None = Field(
        None,
        description="factor (Z, Y, X) between each level and the next, 1 or 2; null halves every axis each time",
    )

    @model_validator(mode="after")
    def _fits(self) -> UNet3DSettings:
        reason = window_objection(self.patch, self.halved(3), self.levels)
        if reason:
            raise ValueError(reason)
        uneven = self.strides is not None and any(1 in one for one in self.strides)
        if self.architecture == "segresnet" and uneven:
            raise ValueError("segresnet halves every axis: take dynunet, or leave strides out")
        return self

    def halved(self, dimensions: int) -> list[tuple[int, ...]]:
        """Return the factor between each level and the next, of each axis."""
        return super().halved(dimensions) if self.strides is None else list(self.strides)


def windowed_probabilities(
    network: Callable[[Tensor], Tensor], slab: Slab, depth: int, settings: UNet3DSettings
) -> NDArray[np.float32]:
    """Return each channel's probability, ``(K, D, H, W)``, of one volume of any extent.

    Windows of ``settings.patch`` overlap, and their probabilities are averaged, the middle of a window counting
    most (MONAI's sliding window with Gaussian weights). A smaller volume is filled up with 0. One row of windows
    after the other: beside the result, no more than a window's slices are held.

    Args:
        network: From windows ``(B, C, d, h, w)`` to logits ``(B, K, d, h, w)``.
        slab: Returns the slices from its first up to its second argument, ``(C, d, H, W)``.
        depth: Number of slices D.
        settings: The windows.
    """
    extent = min(settings.patch[0], depth)
    step = max(1, int(extent * (1 - settings.overlap)))
    weight = compute_importance_map((extent,), mode="gaussian")
    weights = torch.zeros(depth)
    every: Tensor | None = None
    for (z,) in dense_patch_slices((depth,), (extent,), (step,)):
        row = _row(network, slab(z.start, z.stop), settings).cpu()
        if every is None:
            every = torch.zeros(row.shape[0], depth, *row.shape[2:])
        # The weights of a window are one Gaussian an axis, so that what is averaged within slices can be
        # averaged over slices afterwards.
        every[:, z] += row.mul_(weight[:, None, None])
        weights[z] += weight
        del row
        trim_heap()
    if every is None:
        raise ValueError(f"a volume has at least one slice, not {depth}")
    return every.div_(weights[:, None, None]).clamp_(0, 1).numpy()


def _row(network: Callable[[Tensor], Tensor], volume: Tensor, settings: UNet3DSettings) -> Tensor:
    """Return each channel's probability, ``(K, d, H, W)``, of a window's slices, ``(C, d, H, W)``."""
    probabilities: Tensor = sliding_window_inference(
        volume[None],
        roi_size=settings.patch,
        sw_batch_size=settings.windows,
        predictor=lambda window: network(window).float().sigmoid(),
        overlap=settings.overlap,
        mode="gaussian",
    )
    return probabilities[0]

"""The semantic baseline in space: windows of a volume, and the probability of each class at each voxel.

Networks of planes see a volume slice by slice, and their cuts are linked. This one sees voxels.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np
import torch
from monai.data.utils import compute_importance_map, dense_patch_slices
from monai.inferers import sliding_window_inference
from numpy.typing import NDArray
from pydantic import Field, model_validator
from torch import Tensor, nn

from clearmargin.errors import ConfigError
from clearmargin.memory import trim_heap
from clearmargin.networks.dropout import dropping
from clearmargin.networks.foreground import class_unions
from clearmargin.networks.network import VolumeTargets
from clearmargin.networks.semantic_cc import UNetSettings, build_unet, semantic_losses
from clearmargin.transforms.settings import VolumeView

__all__ = ["SemanticCC3D", "SemanticCC3DConfig"]

Slab = Callable[[int, int], Tensor]


class SemanticCC3DConfig(UNetSettings, VolumeView):
    """Options of the semantic baseline in space."""

    network: Literal["semantic_cc_3d"] = "semantic_cc_3d"
    overlap: float = Field(
        0.5, ge=0, lt=1, description="overlap of neighbouring windows at inference, as a share"
    )
    windows: int = Field(
        1, ge=1, description="windows per forward pass at inference; more are quicker on a GPU"
    )

    @model_validator(mode="after")
    def _fits(self) -> SemanticCC3DConfig:
        step = 2 ** (self.levels - 1)
        if any(n < step or n % step for n in self.patch):
            raise ValueError(
                f"with {self.levels} levels the extents of patch are multiples of {step}, not {self.patch}"
            )
        if self.mask_loss.edge:
            raise ValueError("mask_loss.edge is for networks of planes")
        return self


class SemanticCC3D(nn.Module):
    """As ``SemanticCC``, in space: one foreground probability for each class and voxel.

    It has ``probabilities`` in place of ``detect``: a volume's instances come of all its windows together.
    """

    parts = ("unet",)

    def __init__(self, config: SemanticCC3DConfig, *, classes: int, channels: int, pretrained: bool) -> None:
        """Build it; ``pretrained`` changes nothing, since nothing is published for these networks."""
        super().__init__()
        if classes < 1:
            raise ConfigError(f"semantic_cc_3d needs at least one class, not {classes}")
        self.config = config
        self.classes = classes
        self.unet = build_unet(config, dimensions=3, channels=channels, classes=classes)

    def losses(self, volumes: Tensor, targets: list[VolumeTargets]) -> dict[str, Tensor]:
        """Return ``cross_entropy`` and ``dice`` of ``volumes``, ``(B, C, D, H, W)`` in [0, 1]."""
        unions = [class_unions(t.masks, t.labels, self.classes) for t in targets]
        with dropping(self):
            return semantic_losses(self.unet(volumes), torch.stack(unions), self.config.mask_loss)

    def probabilities(self, slab: Slab, depth: int) -> NDArray[np.float32]:
        """Return each class's probability, ``(K, D, H, W)``, of one volume of any extent.

        Windows of ``config.patch`` overlap, and their probabilities are averaged, the middle of a window counting
        most (MONAI's sliding window with Gaussian weights). A smaller volume is filled up with 0. One row of windows
        after the other: beside the result, no more than a window's slices are held.

        Args:
            slab: Returns the slices from its first up to its second argument, ``(C, d, H, W)``.
            depth: Number of slices D.
        """
        extent = min(self.config.patch[0], depth)
        step = max(1, int(extent * (1 - self.config.overlap)))
        weight = compute_importance_map((extent,), mode="gaussian")
        weights = torch.zeros(depth)
        every: Tensor | None = None
        for (z,) in dense_patch_slices((depth,), (extent,), (step,)):
            row = self._row(slab(z.start, z.stop)).cpu()
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

    def _row(self, volume: Tensor) -> Tensor:
        """Return each class's probability, ``(K, d, H, W)``, of a window's slices, ``(C, d, H, W)``."""
        probabilities: Tensor = sliding_window_inference(
            volume[None],
            roi_size=self.config.patch,
            sw_batch_size=self.config.windows,
            predictor=lambda window: self.unet(window).float().sigmoid(),
            overlap=self.config.overlap,
            mode="gaussian",
        )
        return probabilities[0]

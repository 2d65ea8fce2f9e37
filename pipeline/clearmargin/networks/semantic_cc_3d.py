"""The semantic baseline in space: windows of a volume, and the probability of each class at each voxel.

Networks of planes see a volume slice by slice, and their cuts are linked. This one sees voxels.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar, Literal

import numpy as np
import torch
from monai.data.utils import compute_importance_map, dense_patch_slices
from monai.inferers import sliding_window_inference
from numpy.typing import NDArray
from pydantic import Field, model_validator
from torch import Tensor

from clearmargin.errors import ConfigError
from clearmargin.memory import trim_heap
from clearmargin.networks.dropout import dropping
from clearmargin.networks.network import Slab, VolumeNetwork, VolumeTargets
from clearmargin.networks.planning import Choice, Facts, Sees, Shown
from clearmargin.networks.semantic_cc import UNetSettings, build_unet, start_unet, unet_losses
from clearmargin.networks.window_plan import window_choices, window_objection
from clearmargin.transforms.settings import VolumeView

__all__ = ["SemanticCC3D", "SemanticCC3DConfig"]


class SemanticCC3DConfig(UNetSettings, VolumeView):
    """Options of the semantic baseline in space."""

    unread: ClassVar[tuple[str, ...]] = (
        "image.scale", "image.spacing_mm", "image.crop", "image.neighbours", "augment.aim", "augment.copy_paste",
        "prediction.mask_nms", "prediction.containment", "prediction.nested", "prediction.link_iou",
        "prediction.link_gap", "prediction.tile", "prediction.tile_overlap",
    )  # fmt: skip

    sees: ClassVar[Sees] = "volumes"

    network: Literal["semantic_cc_3d"] = "semantic_cc_3d"
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
    def _fits(self) -> SemanticCC3DConfig:
        if (
            self.strides is not None
            and self.architecture == "segresnet"
            and any(1 in one for one in self.strides)
        ):
            raise ValueError("segresnet halves every axis: take dynunet, or leave strides out")
        reason = window_objection(self.patch, self.halved(3), self.levels)
        if reason:
            raise ValueError(reason)
        if self.mask_loss.edge:
            raise ValueError("mask_loss.edge is for networks of planes")
        return self

    def halved(self, dimensions: int) -> list[tuple[int, ...]]:
        """Return the factor between each level and the next, of each axis."""
        return super().halved(dimensions) if self.strides is None else list(self.strides)

    @classmethod
    def objection(cls, facts: Facts, scale: float) -> str | None:
        """Return why the network cannot work on such data; None if it can."""
        if facts.ndim == 2:
            return "it takes volumes, and these are pictures"
        return super().objection(facts, scale)

    @classmethod
    def choices(cls, facts: Facts, shown: Shown) -> Iterator[Choice]:
        """Yield the settings that fit the data."""
        yield from window_choices(facts, shown)
        yield from super().choices(facts, shown)


class SemanticCC3D(VolumeNetwork):
    """As ``SemanticCC``, in space: one foreground probability for each class and voxel.

    It has ``probabilities`` in place of ``detect``: a volume's instances come of all its windows together.
    """

    parts = ("unet",)

    def __init__(self, config: SemanticCC3DConfig, *, classes: int, channels: int, pretrained: bool) -> None:
        """Build it; ``pretrained`` starts from ``config.weights``, if there are any."""
        super().__init__()
        if classes < 1:
            raise ConfigError(f"semantic_cc_3d needs at least one class, not {classes}")
        self.config = self.view = config
        self.smallest, self.detections = config.smallest, config.detections
        self.classes = classes
        self.unet = build_unet(config, dimensions=3, channels=channels, classes=config.outputs(classes))
        start_unet(self.unet, config, pretrained=pretrained)
        self.eval()

    def losses(self, images: Tensor, targets: list[VolumeTargets]) -> dict[str, Tensor]:
        """Return the losses of ``SemanticCC`` of ``images``, ``(B, C, D, H, W)`` in [0, 1]."""
        with dropping(self):
            return unet_losses(self.unet(images), targets, self.classes, self.config)

    def probabilities(self, slab: Slab, depth: int) -> NDArray[np.float32]:
        """Return each class's probability, ``(K, D, H, W)``, of one volume of any extent; its cores too, if learnt.

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
        """Return the maps, ``(K, d, H, W)``, of a window's slices, ``(C, d, H, W)``."""
        probabilities: Tensor = sliding_window_inference(
            volume[None],
            roi_size=self.config.patch,
            sw_batch_size=self.config.windows,
            predictor=lambda window: self.unet(window).float().sigmoid(),
            overlap=self.config.overlap,
            mode="gaussian",
        )
        return probabilities[0]

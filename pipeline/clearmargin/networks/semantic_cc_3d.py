"""The semantic baseline in space: windows of a volume, and the probability of each class at each voxel.

Networks of planes see a volume slice by slice, and their cuts are linked. This one sees voxels.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import model_validator
from torch import Tensor

from clearmargin.errors import ConfigError
from clearmargin.networks.dropout import dropping
from clearmargin.networks.network import Slab, VolumeNetwork, VolumeTargets
from clearmargin.networks.planning import Choice, Facts, Sees, Shown
from clearmargin.networks.semantic_cc import SemanticSettings, level_logits, semantic_unet, unet_losses
from clearmargin.networks.window_plan import window_choices
from clearmargin.networks.windows import UNet3DSettings, windowed_probabilities

__all__ = ["SemanticCC3D", "SemanticCC3DConfig"]


class SemanticCC3DConfig(SemanticSettings, UNet3DSettings):
    """Options of the semantic baseline in space."""

    unread: ClassVar[tuple[str, ...]] = (
        "image.scale", "image.spacing_mm", "image.crop", "image.neighbours", "augment.aim", "augment.copy_paste",
        "prediction.mask_nms", "prediction.containment", "prediction.nested", "prediction.link_iou",
        "prediction.link_gap", "prediction.tile", "prediction.tile_overlap",
    )  # fmt: skip

    sees: ClassVar[Sees] = "volumes"

    network: Literal["semantic_cc_3d"] = "semantic_cc_3d"

    @model_validator(mode="after")
    def _of_volumes(self) -> SemanticCC3DConfig:
        if self.mask_loss.edge:
            raise ValueError("mask_loss.edge is for networks of planes")
        return self

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
        yield Choice("model.deep_supervision", 0, "with it as many minutes gave the same")
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
        self.cuts_maps = config.targets != "classes"
        self.smallest, self.detections = config.smallest, config.detections
        self.classes = classes
        self.unet = semantic_unet(
            config, dimensions=3, channels=channels, classes=classes, pretrained=pretrained
        )
        self.eval()

    def losses(self, images: Tensor, targets: list[VolumeTargets]) -> dict[str, Tensor]:
        """Return the losses of ``SemanticCC`` of ``images``, ``(B, C, D, H, W)`` in [0, 1]."""
        with dropping(self):
            return unet_losses(level_logits(self.unet, images), targets, self.classes, self.config)

    def probabilities(self, slab: Slab, depth: int) -> NDArray[np.float32]:
        """Return each class's probability, ``(K, D, H, W)``, of one volume of any extent; its cores too, if learnt."""
        return windowed_probabilities(self.unet, slab, depth, self.config)

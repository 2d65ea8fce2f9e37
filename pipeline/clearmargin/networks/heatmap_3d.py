"""Landmarks of volumes as heat maps in space: one channel per type of point, at the resolution that is shown."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor, nn

from clearmargin.errors import ConfigError, InputError
from clearmargin.networks.dropout import dropping
from clearmargin.networks.heatmap import landmark_choices
from clearmargin.networks.network import PointDetections, Slab, VolumeNetwork, VolumeTargets
from clearmargin.networks.peaks import HeatSettings, decode_peaks, heat_channels, heat_losses
from clearmargin.networks.planning import Choice, Facts, Learns, Sees, Shown
from clearmargin.networks.semantic_cc import build_unet, start_unet
from clearmargin.networks.window_plan import window_choices
from clearmargin.networks.windows import UNet3DSettings, windowed_probabilities

__all__ = ["Heatmap3D", "Heatmap3DConfig"]

_PRIOR = 0.001  # of a voxel's heat, before anything is learnt
_NARROWEST = 0.6  # network voxels: a narrower Gaussian may fall between two slices


class Heatmap3DConfig(UNet3DSettings, HeatSettings):
    """Options of the network of landmarks in space."""

    unread: ClassVar[tuple[str, ...]] = (
        "image.scale", "image.spacing_mm", "image.crop", "image.neighbours", "augment.aim", "augment.copy_paste",
        "prediction.mask_nms", "prediction.containment", "prediction.nested", "prediction.link_iou",
        "prediction.link_gap", "prediction.tile", "prediction.tile_overlap", "training.threshold_measure",
    )  # fmt: skip
    learns: ClassVar[Learns] = "landmarks"
    sees: ClassVar[Sees] = "volumes"

    network: Literal["heatmap_3d"] = "heatmap_3d"
    sigma: float = Field(
        2.0,
        ge=1,
        description="standard deviation of the Gaussian that a point is in training, in network voxels",
    )
    sigma_mm: float | None = Field(
        None,
        gt=0,
        description="the same in mm, along each axis by its spacing, and no less than 0.6 voxels; replaces sigma",
    )

    @classmethod
    def objection(cls, facts: Facts, scale: float) -> str | None:
        """Return why the network cannot work on such data; None if it can."""
        return "it takes volumes, and these are pictures: heatmap sees them" if facts.ndim == 2 else None

    @classmethod
    def choices(cls, facts: Facts, shown: Shown) -> Iterator[Choice]:
        """Yield the settings that fit the data."""
        yield from window_choices(facts, shown)
        yield from landmark_choices(facts, "model")
        if facts.unit == "mm":
            widest = 2 * float(np.median(facts.spacings))
            yield Choice(
                "model.sigma_mm", round(widest, 2), "two pixels of a slice, and as wide across slices"
            )

    def widths(self, voxel: Sequence[float] | None) -> tuple[float, float, float]:
        """Return the Gaussian's standard deviation along each axis, in network voxels.

        Args:
            voxel: Size of a network voxel in mm; None if it is not known.

        Raises:
            InputError: The width is in mm, and the size of a voxel is not known.
        """
        if self.sigma_mm is None:
            return (self.sigma,) * 3
        if voxel is None:
            raise InputError(
                "the heat maps have a width in mm (model.sigma_mm), and the volume has no spacing: give it one, or "
                "train with model.sigma"
            )
        z, y, x = (max(self.sigma_mm / size, _NARROWEST) for size in voxel)
        return z, y, x


class Heatmap3D(VolumeNetwork):
    """A U-shaped network with a heat map for each type of point, learnt as `clearmargin.networks.heatmap.Heatmap` does.

    Source: Payer et al., "Integrating spatial configuration into heatmap regression based CNNs for landmark
    localization", Medical Image Analysis 54 (2019), its local appearance part, with cross-entropy in place of squares.
    """

    parts = ("unet",)
    finds_masks, finds_landmarks = False, True
    smallest, detections = 1, 0

    def __init__(self, config: Heatmap3DConfig, *, classes: int, channels: int, pretrained: bool) -> None:
        """Build it for ``classes`` types of points; ``pretrained`` starts from ``config.weights``, if there are any."""
        super().__init__()
        if classes < 1:
            raise ConfigError(
                "heatmap_3d: expected at least one type of landmark under the card's points, got none"
            )
        self.config = self.view = config
        self.classes = classes
        self.unet = build_unet(
            config, dimensions=3, channels=channels, classes=heat_channels(config, classes)
        )
        _start_empty(self.unet, classes)
        start_unet(self.unet, config, pretrained=pretrained)
        self.eval()

    def losses(self, images: Tensor, targets: list[VolumeTargets]) -> dict[str, Tensor]:
        """Return the losses of `heat_losses`. Seen and hidden points are learnt alike."""
        sigmas = [self.config.widths(_known(t.voxel)) for t in targets]
        with dropping(self):
            logits = self.unet(images).float()
        return heat_losses(logits, [t.points for t in targets], sigmas, self.classes)

    def probabilities(self, slab: Slab, depth: int) -> NDArray[np.float32]:
        """Return the heat maps, and then how likely a point there is hidden, of one volume of any extent."""
        return windowed_probabilities(self.unet, slab, depth, self.config)

    def points(self, maps: NDArray[np.float32], voxel: tuple[float, float, float] | None) -> PointDetections:
        """Return the peaks of each heat map, at most ``most`` of a type."""
        return decode_peaks(
            maps[: self.classes],
            sigma=self.config.widths(voxel),
            most=self.config.most,
            hidden=maps[self.classes :] if self.config.visibility else None,
        )


def _known(voxel: Tensor) -> list[float] | None:
    sizes: list[float] = voxel.flatten().tolist()
    return sizes if all(math.isfinite(size) for size in sizes) else None


def _start_empty(unet: nn.Module, types: int) -> None:
    """Let heat maps begin near 0: a volume is nearly all background, which would be learnt before any point."""
    last = [m for m in unet.modules() if isinstance(m, nn.Conv3d)][-1]
    if last.bias is not None:
        with torch.no_grad():
            last.bias[:types] = math.log(_PRIOR / (1 - _PRIOR))

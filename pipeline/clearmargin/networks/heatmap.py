"""Landmarks as heat maps: one channel per type of point, whose peaks are the points."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar, Literal

from pydantic import Field
from torch import Tensor

from clearmargin.errors import ConfigError
from clearmargin.networks.foreground import ForegroundHead
from clearmargin.networks.network import Detections, PlaneNetwork, PointDetections, Targets, learning
from clearmargin.networks.peaks import HeatSettings, decode_peaks, heat_channels, heat_losses
from clearmargin.networks.planning import Choice, Facts, Learns, Shown
from clearmargin.networks.pyramid import Pyramid, PyramidSettings

__all__ = [
    "Heatmap",
    "HeatmapConfig",
    "PlaneHeatSettings",
    "landmark_choices",
    "plane_losses",
    "plane_points",
]

_STRIDE = 2  # network pixels per pixel of a heat map


class PlaneHeatSettings(HeatSettings):
    """Options of heat maps of pictures."""

    sigma: float = Field(
        4.0,
        ge=2,
        description="standard deviation of the Gaussian that a point is in training, in network pixels: about how "
        "far labels scatter, and no less than 2; in mm with image.spacing_mm, which is a network pixel's size",
    )


class HeatmapConfig(PyramidSettings, PlaneHeatSettings):
    """Options of the network of landmarks."""

    unread: ClassVar[tuple[str, ...]] = (
        "augment.copy_paste",
        "prediction.mask_nms",
        "prediction.containment",
        "training.threshold_measure",
    )
    learns: ClassVar[Learns] = "landmarks"

    network: Literal["heatmap"] = "heatmap"

    @classmethod
    def objection(cls, facts: Facts, scale: float) -> str | None:
        """Return why the network cannot work on such data; None if it can."""
        return "it sees pictures, and these are volumes: heatmap_3d sees them" if facts.ndim == 3 else None

    @classmethod
    def choices(cls, facts: Facts, shown: Shown) -> Iterator[Choice]:
        """Yield the settings that fit the data."""
        yield from landmark_choices(facts, "model")


class Heatmap(PlaneNetwork):
    """A backbone with its pyramid and a head at half the image's resolution, one channel per type of point.

    It learns the Gaussian around each point by the cross-entropy of every pixel, a proper score, so that the heat map
    tends to the probability-weighted mean of such Gaussians: as wide as the network is in doubt.

    Source: Tompson et al., NeurIPS 2014; several points of a type as the peaks of Zhou et al., "Objects as points",
    arXiv:1904.07850.
    """

    parts = ("pyramid", "heat")
    finds_masks, finds_landmarks = False, True

    def __init__(self, config: HeatmapConfig, *, classes: int, channels: int, pretrained: bool) -> None:
        """Build it for ``classes`` types of points."""
        super().__init__()
        if classes < 1:
            raise ConfigError(
                "heatmap: expected at least one type of landmark under the card's points, got none"
            )
        self.config, self.classes = config, classes
        width = config.fpn_channels
        self.pyramid = Pyramid(config, channels=channels, pretrained=pretrained, finest=4)
        self.heat = ForegroundHead(channels, (width,) * 4, heat_channels(config, classes))
        self.eval()

    def losses(self, images: Tensor, targets: list[Targets]) -> dict[str, Tensor]:
        """Return the losses of `heat_losses`. Seen and hidden points are learnt alike; a type without a point teaches
        the background.
        """
        with learning(self.pyramid):
            logits = self._logits(images)
        return plane_losses(logits, targets, self.config, self.classes)

    def detect(self, images: Tensor, *, maps: bool = False) -> list[Detections]:
        """Return the peaks of each heat map as landmarks, at most ``most`` of a type; there are no masks."""
        points = plane_points(self._logits(images), self.config, self.classes)
        return [Detections.without_masks(one, images.device) for one in points]

    def _logits(self, images: Tensor) -> Tensor:
        if images.shape[-2] % 32 or images.shape[-1] % 32:
            raise ValueError(f"images of {tuple(images.shape[-2:])}: both extents must be multiples of 32")
        logits: Tensor = self.heat(images, self.pyramid(images)).float()
        return logits


def plane_losses(
    logits: Tensor, targets: list[Targets], settings: PlaneHeatSettings, types: int
) -> dict[str, Tensor]:
    """Return `heat_losses` of a head at half the image's resolution."""
    points = [t.points for t in targets]
    sigmas = [settings.sigma / _STRIDE] * len(points)
    return heat_losses(logits.float(), points, sigmas, types, stride=_STRIDE)


def plane_points(logits: Tensor, settings: PlaneHeatSettings, types: int) -> list[PointDetections]:
    """Return the landmarks of each image, from the logits of a head at half its resolution."""
    every = logits.float().sigmoid().cpu().numpy()
    return [
        decode_peaks(
            one[:types],
            sigma=settings.sigma / _STRIDE,
            most=settings.most,
            stride=_STRIDE,
            hidden=one[types:] if settings.visibility else None,
        )
        for one in every
    ]


def landmark_choices(facts: Facts, section: str) -> Iterator[Choice]:
    """Yield the settings of heat maps that fit the data, below a section of the configuration."""
    most = facts.most_points
    yield Choice(f"{section}.most", max(1, most), f"an image has up to {most} point(s) of a type")
    if facts.both_visibilities:
        yield Choice(f"{section}.visibility", True, "the card has seen and hidden points")

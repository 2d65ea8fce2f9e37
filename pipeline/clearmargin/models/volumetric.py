"""Volumes seen whole: the semantic baseline in space, and the segmenter that goes through a volume with it.

Networks of planes see a volume slice by slice, and their cuts are linked. This one sees voxels: its windows, its
probabilities and its components are 3-D.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from monai.inferers import sliding_window_inference
from numpy.typing import NDArray
from pydantic import Field, model_validator
from torch import Tensor, nn

from clearmargin.core import Grid, Image, InstanceSet, Prediction
from clearmargin.errors import ConfigError, InputError
from clearmargin.models.components import Component, connected_components
from clearmargin.models.network import VolumeTargets
from clearmargin.models.placing import Crop, place_volume, threshold
from clearmargin.models.segmenter import NetworkSegmenter, PlaneDetections, View
from clearmargin.models.semantic_cc import UNetSettings, build_unet, class_unions, semantic_losses
from clearmargin.transforms.samples import KEYS
from clearmargin.transforms.spatial import resample, volume_view
from clearmargin.transforms.tensors import to_tensor
from clearmargin.transforms.view import VolumeView, prepare, to_channels

__all__ = ["SemanticCC3D", "SemanticCC3DConfig", "VolumeDetections", "VolumeSegmenter"]

log = logging.getLogger(__name__)


class SemanticCC3DConfig(UNetSettings, VolumeView):
    """Options of the semantic baseline in space."""

    network: Literal["semantic_cc_3d"] = "semantic_cc_3d"
    overlap: float = Field(0.5, ge=0, lt=1, description="of neighbouring windows in prediction")
    windows: int = Field(2, ge=1, description="that are predicted at once")

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
        wanted = [class_unions(t.masks, t.labels, self.classes) for t in targets]
        return semantic_losses(self.unet(volumes), torch.stack(wanted), self.config.mask_loss)

    def probabilities(self, volume: Tensor) -> Tensor:
        """Return each class's probability, ``(K, D, H, W)``, of one volume ``(C, D, H, W)`` of any extent.

        Windows of ``config.patch`` overlap, and their probabilities are averaged, the middle of a window counting
        most (MONAI's sliding window with Gaussian weights). A smaller volume is filled up with 0.
        """
        found: Tensor = sliding_window_inference(
            volume[None],
            roi_size=self.config.patch,
            sw_batch_size=self.config.windows,
            predictor=lambda window: self.unet(window).float().sigmoid(),
            overlap=self.config.overlap,
            mode="gaussian",
        )
        return found[0].clamp(0, 1)


@dataclass(frozen=True, kw_only=True)
class VolumeDetections:
    """What the network found in a volume, and the way back.

    Attributes:
        components: Each with its label, best first, in network voxels.
        matrix: ``(4, 4)``, from network indices to the volume's.
        grid: The volume's.
    """

    components: tuple[tuple[int, Component], ...]
    matrix: NDArray[np.float64]
    grid: Grid

    @property
    def labels(self) -> NDArray[np.int64]:
        """Of each component, ``(N,)``."""
        return np.array([label for label, _ in self.components], np.int64)

    @property
    def scores(self) -> NDArray[np.float32]:
        """Of each component, ``(N,)``."""
        return np.array([component.score for _, component in self.components], np.float32)

    def placed(self, index: int) -> Crop:
        """Return a component's probabilities on the volume's grid."""
        _, component = self.components[index]
        return place_volume(component.probabilities, component.origin, self.matrix, self.grid.shape)

    def instances(self) -> InstanceSet:
        """Return the instances on the volume's grid, best score first, without those that hold no voxel there."""
        masks = [threshold(*self.placed(k), self.grid.shape) for k in range(len(self.components))]
        every = InstanceSet(grid=self.grid, masks=tuple(masks), labels=self.labels, scores=self.scores)
        return every.select(np.array([m.area > 0 for m in masks], bool))


class VolumeSegmenter(NetworkSegmenter):
    """A network of volumes with what it needs to be shown one."""

    def __call__(self, image: Image) -> Prediction:
        """Segment a volume: components on the network's grid, thresholded as probabilities on the volume's.

        Raises:
            InputError: It is no volume, or channels or spacing are not what the model needs.
        """
        found = self.find(image)
        with self.clock("masks"):
            return self.predicted(found.instances())

    def find(self, image: Image) -> VolumeDetections:
        """Return the components above the score threshold; as the call that segments."""
        network: SemanticCC3D = self.network  # type: ignore[assignment]
        with self.clock("transform"):
            matrix, shown = self._shown(image, network.config)
        with self.clock("network"), torch.inference_mode():
            maps = network.probabilities(shown.to(self.device)).cpu().numpy()
        with self.clock("masks"):
            return VolumeDetections(
                components=self._components(maps, image.source.case), matrix=matrix, grid=image.grid
            )

    def _components(self, maps: NDArray[np.float32], case: str) -> tuple[tuple[int, Component], ...]:
        config = self.network.config  # type: ignore[attr-defined]
        found: list[tuple[int, Component]] = []
        specks = 0
        for label, one in enumerate(maps, start=1):
            components, dropped = connected_components(one, config.smallest)
            found += [(label, c) for c in components if c.score >= self.choice.score_threshold]
            specks += dropped
        if specks:
            log.debug("%s: %d component(s) of fewer than %d voxels dropped", case, specks, config.smallest)
        return tuple(sorted(found, key=lambda pair: -pair[1].score)[: config.detections])

    def detect(self, image: Image, view: View) -> Iterator[PlaneDetections]:
        """Refuse: there are no planes to look at in other ways.

        Raises:
            ConfigError: Always.
        """
        raise ConfigError(
            "test-time augmentation is for networks of planes; this model sees volumes: leave --uncertainty out"
        )

    def _shown(self, image: Image, view: VolumeView) -> tuple[NDArray[np.float64], Tensor]:
        """Return the matrix from network indices to the volume's, and what the network sees, ``(C, D, H, W)``."""
        if image.grid.ndim != 3:
            raise InputError(f"{image.source.case} is a picture, and the model takes volumes")
        settings = self.image.model_copy(update={"neighbours": 0})
        pixels = to_channels(prepare(image, settings), settings.channels)
        matrix, size = volume_view(image.grid.shape, view.scales_for(image.grid))
        sample = resample({"image": to_tensor(pixels, image.grid)}, matrix, size, keys=KEYS[:1])
        return matrix, sample["image"].as_tensor()

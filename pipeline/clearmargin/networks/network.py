"""What a trainer and a segmenter need of a network."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from typing import Any, ClassVar, Literal, Self, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from clearmargin.transforms.settings import VolumeView

__all__ = [
    "LAYOUTS",
    "Detections",
    "Network",
    "PlaneNetwork",
    "PointDetections",
    "Slab",
    "Targets",
    "VolumeNetwork",
    "VolumeTargets",
    "WindowNetwork",
    "learning",
]

T = TypeVar("T", bound="Targets | VolumeTargets")

LAYOUTS = {2: torch.channels_last, 3: torch.channels_last_3d}
"""Memory layouts by the dimensions of what a network sees."""

Slab = Callable[[int, int], Tensor]
"""From a first and a last slice to the slices between them."""


@dataclass(frozen=True, kw_only=True)
class Targets:
    """The instances of one training image, in network pixels; pixel k covers [k, k + 1).

    Attributes:
        boxes: ``(N, 4)`` float32, ``x1 y1 x2 y2``, the far edges exclusive.
        labels: ``(N,)`` int64, 1..K.
        masks: ``(N, H, W)`` uint8, 0 or 1.
        points: ``(P, 4)`` float32: type (0..K-1), row, column and visibility (``HIDDEN`` or ``SEEN``) of each landmark;
            the centre of the first pixel is (0, 0).
        cores: ``(K, H, W)`` float32, what the network's ``encode`` makes of the masks; empty without one.
    """

    boxes: Tensor
    labels: Tensor
    masks: Tensor
    points: Tensor = field(default_factory=lambda: torch.zeros((0, 4), dtype=torch.float32))
    cores: Tensor = field(default_factory=lambda: torch.zeros(0))

    @staticmethod
    def from_masks(
        masks: Tensor, labels: Tensor, points: Tensor | None = None, cores: Tensor | None = None
    ) -> Targets:
        """Return targets with the boxes of ``masks`` (``(N, H, W)`` uint8, none of them empty)."""
        boxes = torch.zeros((len(masks), 4), dtype=torch.float32)
        if len(masks):
            rows, columns = masks.any(dim=2), masks.any(dim=1)
            for edge, line in ((0, columns), (1, rows)):
                size = line.shape[1]
                boxes[:, edge] = line.float().argmax(dim=1).float()
                boxes[:, edge + 2] = size - line.flip(1).float().argmax(dim=1).float()
        points = torch.zeros((0, 4), dtype=torch.float32) if points is None else points
        cores = torch.zeros(0) if cores is None else cores
        return Targets(boxes=boxes, labels=labels, masks=masks, points=points, cores=cores)

    def to(self, device: torch.device) -> Targets:
        """Return the targets on ``device``."""
        return _each(self, lambda t: t.to(device, non_blocking=True))

    def pin_memory(self) -> Targets:
        """Return the targets in page-locked memory, as a loader asks for that feeds a GPU."""
        return _each(self, Tensor.pin_memory)


@dataclass(frozen=True, kw_only=True)
class VolumeTargets:
    """The instances of one training window of a volume.

    Attributes:
        labels: ``(N,)`` int64, 1..K.
        masks: ``(N, D, H, W)`` uint8, 0 or 1.
        cores: As of ``Targets``, ``(K, D, H, W)``.
        points: ``(P, 5)`` float32: type, slice, row, column and visibility of each landmark, as of `Targets`.
        voxel: ``(1, 3)`` float32, size of a network voxel along each axis, in mm; NaN if the spacing is not known.
    """

    labels: Tensor
    masks: Tensor
    cores: Tensor = field(default_factory=lambda: torch.zeros(0))
    points: Tensor = field(default_factory=lambda: torch.zeros((0, 5), dtype=torch.float32))
    voxel: Tensor = field(default_factory=lambda: torch.full((1, 3), torch.nan))

    def to(self, device: torch.device) -> VolumeTargets:
        """Return the targets on ``device``."""
        return _each(self, lambda t: t.to(device, non_blocking=True))

    def pin_memory(self) -> VolumeTargets:
        """Return the targets in page-locked memory, as a loader asks for that feeds a GPU."""
        return _each(self, Tensor.pin_memory)


def _each(targets: T, change: Callable[[Tensor], Tensor]) -> T:
    """Return targets with each tensor changed."""
    names = [f.name for f in fields(targets)]
    changed: dict[str, Any] = {name: change(getattr(targets, name)) for name in names}
    return replace(targets, **changed)


@dataclass(frozen=True, kw_only=True)
class PointDetections:
    """Landmarks that a network found in one image or volume, best score first, in network pixels (voxels).

    Attributes:
        types: ``(P,)`` int64, 0..K-1.
        points: ``(P, ndim)`` float64 indices; the centre of the first pixel is at 0.
        scores: ``(P,)`` float32 in [0, 1].
        covariance: ``(P, ndim, ndim)`` float64, of the probability around each point.
        visible: ``(P,)`` int8, ``HIDDEN`` or ``SEEN``.
    """

    types: NDArray[np.int64]
    points: NDArray[np.float64]
    scores: NDArray[np.float32]
    covariance: NDArray[np.float64]
    visible: NDArray[np.int8]


@dataclass(frozen=True, kw_only=True)
class Detections:
    """What a network found in one image, best score first, in network pixels; or in a volume, in its voxels.

    Attributes:
        boxes: ``(N, 4)`` float32, ``x1 y1 x2 y2``; in space ``(N, 6)``, ``x1 y1 z1 x2 y2 z2``, and ``regions`` too.
        labels: ``(N,)`` int64, 1..K.
        scores: ``(N,)`` float32 in [0, 1].
        masks: N float32 probability masks ``(h, w)``, in space ``(d, h, w)``, at any resolution: one tensor where all
            have one, else N.
        regions: ``(N, 4)`` float32: the part of the image that each of ``masks`` spans, edge to edge. The box
            for a two-stage network, the instance's crop (``crop_masks``) for one that predicts whole masks.
        foreground: ``(K, h, w)`` float32 (``(K, d, h, w)``), the probability that a pixel belongs to each class, at any
            resolution; it spans the image edge to edge, and has no edge where a box or a crop has one. None if not
            asked for.
        landmarks: None for a network that does not look for them.
        beyond: Number of instances that were left out, since the network returns so many at most.
    """

    boxes: Tensor
    labels: Tensor
    scores: Tensor
    masks: Tensor | tuple[Tensor, ...]
    regions: Tensor
    foreground: Tensor | None = None
    landmarks: PointDetections | None = None
    beyond: int = 0

    @staticmethod
    def without_masks(landmarks: PointDetections, device: torch.device) -> Detections:
        """Return landmarks alone."""
        return Detections(
            boxes=torch.zeros((0, 4), device=device),
            labels=torch.zeros(0, dtype=torch.int64, device=device),
            scores=torch.zeros(0, device=device),
            masks=(),
            regions=torch.zeros((0, 4), device=device),
            landmarks=landmarks,
        )


class Network(nn.Module, ABC):
    """A trainable instance segmenter: a module with ``losses`` in place of ``forward``.

    It is always in evaluation mode, whatever ``train`` is told: ``losses`` alone learns, within `learning`. So no
    result depends on a mode that somebody left behind.

    Attributes:
        dimensions: 2 if it sees planes, 3 if it sees volumes.
        parts: Paths of the modules, from tensors to tensors, that inference spends its time in. A runtime can compute
            them in torch's place.
        map_layer: Path of the layer that gives each class's logits of maps, and nothing of instances; None without one.
        cuts_maps: Whether its instances are parts of its maps, cut where they meet.
        finds_masks: Whether its detections have masks.
        finds_landmarks: Whether its detections have landmarks.
    """

    map_layer: str | None = None
    cuts_maps: bool = False
    finds_masks: bool = True
    finds_landmarks: bool = False
    dimensions: ClassVar[Literal[2, 3]]
    parts: tuple[str, ...]

    def train(self, mode: bool = True) -> Self:
        """Stay in evaluation mode."""
        return super().train(False)

    @property
    def layout(self) -> torch.memory_format:
        """The memory layout that its convolutions are quickest with, of weights and images."""
        return LAYOUTS[self.dimensions]

    @abstractmethod
    def losses(self, images: Tensor, targets: list[Any]) -> dict[str, Tensor]:
        """Return named scalar losses.

        Args:
            images: ``(B, C, H, W)`` or ``(B, C, D, H, W)``, in [0, 1].
            targets: ``Targets`` of each plane, or ``VolumeTargets`` of each volume.
        """

    def beside_runtime(self) -> None:
        """Make ready for a runtime that computes ``parts``; by default there is nothing to do."""


class PlaneNetwork(Network):
    """A network that sees planes: pictures, and the slices of volumes."""

    dimensions = 2

    @abstractmethod
    def detect(self, images: Tensor, *, maps: bool = False) -> list[Detections]:
        """Return what is in each of ``images``, ``(B, C, H, W)`` in [0, 1]; with ``foreground`` if ``maps``."""


class VolumeNetwork(Network):
    """A network that sees volumes, window by window; its instances are parts of its probabilities.

    Attributes:
        classes: Number of classes K.
        view: Window and voxel size that it is shown.
        smallest: Parts of fewer network voxels are dropped.
        detections: Largest number of instances per volume.
    """

    dimensions = 3
    classes: int
    view: VolumeView
    smallest: int
    detections: int

    @abstractmethod
    def probabilities(self, slab: Slab, depth: int) -> NDArray[np.float32]:
        """Return each class's probability of one volume of any extent: ``(K, D, H, W)``.

        A network that parts objects of a class adds the maps of their cores: ``(2 K, D, H, W)``.

        Args:
            slab: Returns the slices from its first up to its second argument, ``(C, d, H, W)`` in [0, 1].
            depth: Number of slices D.
        """

    def points(self, maps: NDArray[np.float32], voxel: tuple[float, float, float] | None) -> PointDetections:
        """Return the landmarks of a volume whose ``probabilities`` are heat maps.

        Args:
            maps: As ``probabilities`` gives them.
            voxel: Size of a network voxel in mm; None if it is not known.
        """
        raise ValueError(f"{type(self).__name__} finds no landmarks")


class WindowNetwork(Network):
    """A network that sees volumes, and detects objects in each window, as a network of planes does in a plane.

    Attributes:
        view: Window and voxel size that it is shown.
        overlap: Of neighbouring windows, as a share.
    """

    dimensions = 3
    view: VolumeView
    overlap: float

    @abstractmethod
    def detect(self, images: Tensor, *, maps: bool = False) -> list[Detections]:
        """Return what is in each of ``images``, ``(B, C, D, H, W)`` in [0, 1]; with ``foreground`` if ``maps``.

        A window may be smaller than ``view.patch`` where the volume is.
        """


@contextmanager
def learning(module: nn.Module) -> Iterator[None]:
    """Put a module of a network into training mode, and back into evaluation mode."""
    module.train()
    try:
        yield
    finally:
        module.eval()

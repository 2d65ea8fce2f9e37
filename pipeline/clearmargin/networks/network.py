"""What a trainer and a segmenter need of a network."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, Self, runtime_checkable

import torch
from torch import Tensor, nn

__all__ = ["BesideRuntime", "Detections", "Network", "Targets", "VolumeTargets"]


@dataclass(frozen=True, kw_only=True)
class Targets:
    """The instances of one training image, in network pixels; pixel k covers [k, k + 1).

    Attributes:
        boxes: ``(N, 4)`` float32, ``x1 y1 x2 y2``, the far edges exclusive.
        labels: ``(N,)`` int64, 1..K.
        masks: ``(N, H, W)`` uint8, 0 or 1.
    """

    boxes: Tensor
    labels: Tensor
    masks: Tensor

    @staticmethod
    def from_masks(masks: Tensor, labels: Tensor) -> Targets:
        """Return targets with the boxes of ``masks`` (``(N, H, W)`` uint8, none of them empty)."""
        boxes = torch.zeros((len(masks), 4), dtype=torch.float32)
        if len(masks):
            rows, columns = masks.any(dim=2), masks.any(dim=1)
            for edge, line in ((0, columns), (1, rows)):
                size = line.shape[1]
                boxes[:, edge] = line.float().argmax(dim=1).float()
                boxes[:, edge + 2] = size - line.flip(1).float().argmax(dim=1).float()
        return Targets(boxes=boxes, labels=labels, masks=masks)

    def to(self, device: torch.device) -> Targets:
        """Return the targets on ``device``."""
        return Targets(
            boxes=self.boxes.to(device), labels=self.labels.to(device), masks=self.masks.to(device)
        )


@dataclass(frozen=True, kw_only=True)
class VolumeTargets:
    """The instances of one training window of a volume.

    Attributes:
        labels: ``(N,)`` int64, 1..K.
        masks: ``(N, D, H, W)`` uint8, 0 or 1.
    """

    labels: Tensor
    masks: Tensor

    def to(self, device: torch.device) -> VolumeTargets:
        """Return the targets on ``device``."""
        return VolumeTargets(labels=self.labels.to(device), masks=self.masks.to(device))


@dataclass(frozen=True, kw_only=True)
class Detections:
    """What a network found in one image, best score first, in network pixels.

    Attributes:
        boxes: ``(N, 4)`` float32, ``x1 y1 x2 y2``.
        labels: ``(N,)`` int64, 1..K.
        scores: ``(N,)`` float32 in [0, 1].
        masks: N float32 probability masks ``(h, w)``, at any resolution: one tensor where all have one, else N.
        regions: ``(N, 4)`` float32: the part of the image that each of ``masks`` spans, edge to edge. The box
            for a two-stage network, the instance's crop (``crop_masks``) for one that predicts whole masks.
        foreground: ``(K, h, w)`` float32, the probability that a pixel belongs to each class, at any resolution; it
            spans the image edge to edge, and has no edge where a box or a crop has one. None if not asked for.
    """

    boxes: Tensor
    labels: Tensor
    scores: Tensor
    masks: Tensor | tuple[Tensor, ...]
    regions: Tensor
    foreground: Tensor | None = None


class Network(Protocol):
    """A trainable instance segmenter: an ``nn.Module`` with two methods in place of ``forward``.

    What either returns never depends on ``training``.

    """

    @property
    def parts(self) -> tuple[str, ...]:
        """Paths of the modules, from tensors to tensors, that ``detect`` spends its time in.

        They are what a runtime can compute in torch's place.
        """
        ...

    def losses(self, images: Tensor, targets: list[Targets]) -> dict[str, Tensor]:
        """Return named scalar losses; ``images`` are ``(B, C, H, W)`` in [0, 1]."""
        ...

    def detect(self, images: Tensor, *, maps: bool = False) -> list[Detections]:
        """Return what is in each of ``images``, ``(B, C, H, W)`` in [0, 1]; with ``foreground`` if ``maps``."""
        ...

    def to(self, device: torch.device) -> Self:
        """As ``nn.Module``."""
        ...

    def parameters(self) -> Iterator[nn.Parameter]:
        """As ``nn.Module``."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """As ``nn.Module``."""
        ...

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> Any:
        """As ``nn.Module``."""
        ...


@runtime_checkable
class BesideRuntime(Protocol):
    """A network that does the rest of its work otherwise where a runtime computes its parts."""

    def beside_runtime(self) -> None:
        """Make ready for it."""
        ...

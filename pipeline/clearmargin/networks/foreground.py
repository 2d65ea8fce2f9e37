"""The probability of each class at each pixel of an image: what maps are made of. It knows no boxes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clearmargin.networks.network import Network, Targets

__all__ = [
    "RATE",
    "ForegroundHead",
    "class_unions",
    "divide_map_logits",
    "foreground_loss",
    "foreground_probability",
    "forget_foreground",
    "has_foreground_head",
    "knows_foreground",
    "strongest",
]

RATE = 3.0
"""Learning rate of a head, as a multiple of the network's, whose backbone begins pretrained."""

_NAME = "foreground"  # of the head in a network
_WIDTH, _STEM = 32, 16
_PRIOR = 0.05  # of the foreground, before anything is learnt


class ForegroundHead(nn.Module):
    """From an image and its maps to logits of each class, at half the image's resolution.

    Maps at a quarter of the resolution know what lies where, but not to the pixel: its edge is read off the image.
    Each pixel's channels are normalised, so that it learns in some hundred steps; what a pixel gets does not hang on
    how much of the image is seen with it, as it would with statistics of the image.

    Source: the semantic branch of Kirillov et al., "Panoptic feature pyramid networks", CVPR 2019, made light.
    """

    def __init__(self, channels: int, inputs: Sequence[int], classes: int) -> None:
        """Build it for images of so many channels, and maps of these channels, finest first."""
        super().__init__()
        self.stem = nn.Sequential(_layer(channels, _STEM, stride=2), _layer(_STEM, _STEM))
        self.levels = nn.ModuleList(nn.Conv2d(width, _WIDTH, 1) for width in inputs)
        self.smooth = _layer(_WIDTH, _WIDTH)
        self.fuse = _layer(_WIDTH + _STEM, _WIDTH)
        self.decide = nn.Conv2d(_WIDTH, classes, 1)
        nn.init.constant_(self.decide.bias, math.log(_PRIOR / (1 - _PRIOR)))  # type: ignore[arg-type]

    def forward(self, images: Tensor, maps: list[Tensor]) -> Tensor:
        """Return ``(B, K, h, w)`` logits of images and maps ``(B, C, h, w)``, each next map about half as large."""
        merged = self.levels[-1](maps[-1])
        for level, finer in zip(reversed(self.levels[:-1]), reversed(maps[:-1]), strict=True):
            merged = level(finer) + _stretched(merged, finer.shape[-2:])
        seen = self.stem(images)
        merged = _stretched(self.smooth(F.relu(merged)), seen.shape[-2:])
        logits: Tensor = self.decide(self.fuse(torch.cat([merged, seen], 1)))
        return logits


class _PixelNorm(nn.LayerNorm):
    """Layer normalisation of each pixel's channels."""

    def forward(self, maps: Tensor) -> Tensor:
        """Return ``(B, C, h, w)`` maps normalised over ``C``."""
        return super().forward(maps.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def _layer(inputs: int, outputs: int, *, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1), _PixelNorm(outputs), nn.ReLU()
    )


def foreground_loss(
    head: nn.Module, images: Tensor, maps: Sequence[Tensor], targets: Sequence[Targets]
) -> Tensor:
    """Return the cross-entropy of each class's presence in each pixel of the images, a scalar.

    A proper score of each pixel, at the pixels' own resolution: what is least where the probability is true. No
    gradient reaches the maps, so that instances are learnt as if the head were not there.
    """
    logits = head(images, [m.detach() for m in maps])
    classes = logits.shape[1]
    unions = torch.stack([class_unions(t.masks, t.labels, classes) for t in targets])
    return F.binary_cross_entropy_with_logits(_stretched(logits.float(), unions.shape[-2:]), unions.float())


def foreground_probability(head: nn.Module, images: Tensor, maps: Sequence[Tensor]) -> Tensor:
    """Return each class's probability at each of the images' pixels, ``(B, K, H, W)`` float32."""
    return _stretched(head(images, list(maps)).float(), images.shape[-2:]).sigmoid()


def forget_foreground(network: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Leave out the head of a network whose weights, of an earlier version, are without it: it cannot make maps."""
    if hasattr(network, _NAME) and not any(key.startswith(f"{_NAME}.") for key in state):
        setattr(network, _NAME, None)


def knows_foreground(network: object) -> bool:
    """Return whether a network can make maps."""
    return getattr(network, _NAME, network) is not None


def has_foreground_head(network: object) -> bool:
    """Return whether a network makes its maps with a part of its own."""
    return isinstance(getattr(network, _NAME, None), nn.Module)


def divide_map_logits(network: Network, temperatures: Sequence[float]) -> None:
    """Divide each class's logits of a network's maps by a temperature, in the weights of the layer that makes them.

    So whatever computes the layer, here or in a runtime, gives the scaled map. Instances stay as they are.

    Args:
        network: One with a ``map_layer``.
        temperatures: One per class; above 1 a map is less sure. A probability of one half stays.
    """
    layer = network.get_submodule(str(network.map_layer))
    with torch.no_grad():
        for values in layer.parameters():  # a kernel and a bias, both by class
            by_class = torch.as_tensor(temperatures, dtype=values.dtype, device=values.device)
            values.div_(by_class.reshape(-1, *(1,) * (values.ndim - 1)))


def class_unions(masks: Tensor, labels: Tensor, classes: int) -> Tensor:
    """Return where some instance of each class lies, ``(K, *shape)`` uint8, from ``(N, *shape)`` masks."""
    unions = masks.new_zeros((classes, *masks.shape[1:]))
    for label, mask in zip(labels.tolist(), masks, strict=True):
        torch.maximum(unions[label - 1], mask, out=unions[label - 1])
    return unions


def strongest(into: Tensor, masks: Tensor, scores: Tensor, labels: Tensor) -> Tensor:
    """Raise probabilities to those of instances that a network sees in the whole image; return them.

    An instance counts with score times mask probability, and the strongest one at a pixel counts there:
    detections that overlap are mostly second looks at one object, which independence would count twice.

    Args:
        into: ``(K, h, w)``, 0 before the first instance.
        masks: ``(N, h, w)`` probabilities, not cut to a box or a crop.
        scores: ``(N,)``.
        labels: ``(N,)``, 1..K.
    """
    for mask, score, label in zip(masks, scores, labels.tolist(), strict=True):
        torch.maximum(into[label - 1], mask * score, out=into[label - 1])
    return into


def _stretched(maps: Tensor, size: Sequence[int]) -> Tensor:
    # half-pixel centres: each pixel becomes those that cover the same square
    return F.interpolate(maps, (size[0], size[1]), mode="bilinear", align_corners=False)

"""Semantic segmentation and connected components: the baseline that every instance segmenter has to beat."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from monai.networks.nets import DynUNet, SegResNet
from pydantic import Field, model_validator
from torch import Tensor, nn

from clearmargin.errors import ConfigError
from clearmargin.networks.components import Component, class_components
from clearmargin.networks.cores import CoreMaps, Encode, TargetKind
from clearmargin.networks.dropout import dropping, switch_dropout
from clearmargin.networks.foreground import class_unions
from clearmargin.networks.losses import MaskLossSettings, dice_loss, mask_loss
from clearmargin.networks.network import Detections, PlaneNetwork, Targets, VolumeTargets
from clearmargin.networks.planning import BORDER, Choice, Facts, NetworkSettings, Shown, mask_loss_choice

__all__ = [
    "SemanticCC",
    "SemanticCCConfig",
    "SemanticSettings",
    "UNetSettings",
    "build_unet",
    "level_logits",
    "semantic_unet",
    "start_unet",
    "unet_losses",
]

log = logging.getLogger(__name__)


class UNetSettings(NetworkSettings):
    """Options of a U-shaped network, in the plane and in space."""

    architecture: Literal["dynunet", "segresnet"] = "dynunet"
    weights: str | None = Field(
        None, description="path of a MONAI bundle of this architecture, or of a state dict, to start from"
    )
    filters: int = Field(
        16,
        ge=8,
        multiple_of=8,
        description="filters of the finest level; each further level has twice as many",
    )
    levels: int = Field(5, ge=3, le=6, description="resolutions, each half of the one before")
    dropout: float = Field(
        0.0, ge=0, lt=1, description="dropout rate in training and for predict --uncertainty dropout"
    )

    def halved(self, dimensions: int) -> list[tuple[int, ...]]:
        """Return the factor between each level and the next, of each axis."""
        return [(2,) * dimensions] * (self.levels - 1)


class SemanticSettings(UNetSettings):
    """Options of a semantic network and its components, in the plane and in space."""

    smallest: int = Field(
        16, ge=1, description="components of fewer network pixels (voxels) are dropped as specks"
    )
    targets: TargetKind = Field(
        "classes",
        description="cue that parts objects of a class that touch: none (classes), cores within a border of one width "
        "(border), or cores by the depth within each object (distance)",
    )
    border: float = Field(
        BORDER,
        gt=0,
        description="width of the border that parts objects, in network pixels; for targets: border",
    )
    deep_supervision: int = Field(
        0,
        ge=0,
        description="coarser levels that are held to the reference too in training, by maps of their own; of dynunet, "
        "at most levels - 2",
    )
    mask_loss: MaskLossSettings = MaskLossSettings(dice=1.0)
    detections: int = Field(100, ge=1, description="most instances of one image")

    @model_validator(mode="after")
    def _has_levels(self) -> SemanticSettings:
        if self.deep_supervision and self.architecture != "dynunet":
            raise ValueError(f"deep_supervision is for dynunet, not {self.architecture}")
        if self.border != BORDER and self.targets != "border":
            raise ValueError(f"border is for targets: border, not {self.targets}")
        if self.deep_supervision > self.levels - 2:
            raise ValueError(
                f"deep_supervision is at most levels - 2, here {self.levels - 2}, not {self.deep_supervision}"
            )
        return self

    def outputs(self, classes: int) -> int:
        """Return how many maps the network has: each class's probability, and its cores if they are learnt."""
        return classes if self.targets == "classes" else 2 * classes

    def encode(self, classes: int) -> Encode | None:
        """Return what draws the cores of a window's instances; None if they are not learnt."""
        if self.targets == "classes":
            return None
        return CoreMaps(kind=self.targets, classes=classes, border=self.border)

    @classmethod
    def objection(cls, facts: Facts, scale: float) -> str | None:
        """Return why the network cannot work on such data; None if it can."""
        targets, lost = _best_targets(facts.lost[cls.sees])
        if lost < 0.1:
            return None
        return (
            f"{100 * lost:.0f} % of the objects lie over or in another of their class, and it would join them or cut "
            f"them up, with targets: {targets} as with the others"
        )

    @classmethod
    def choices(cls, facts: Facts, shown: Shown) -> Iterator[Choice]:
        """Yield the settings that fit the data."""
        yield from super().choices(facts, shown)
        yield _targets_choice(facts.lost[cls.sees])
        yield from mask_loss_choice(facts, shown, cls().mask_loss)


class SemanticCCConfig(SemanticSettings):
    """Options of the semantic baseline; the defaults train on two CPU cores."""

    network: Literal["semantic_cc"] = "semantic_cc"


_WORTH = 0.01  # of the objects, from which on a kind of targets is taken for what it gives back


def _best_targets(lost: Mapping[TargetKind, float]) -> tuple[TargetKind, float]:
    """Return the first kind of targets that loses about as little as any, and the share that it loses."""
    least = min(lost.values())
    return next((kind, share) for kind, share in lost.items() if share <= least + _WORTH)


def _targets_choice(lost: Mapping[TargetKind, float]) -> Choice:
    best, _ = _best_targets(lost)
    shares = ", ".join(f"{kind} {100 * share:.0f} %" for kind, share in lost.items())
    return Choice("model.targets", best, f"of the training references these would be lost: {shares}")


class SemanticCC(PlaneNetwork):
    """A U-shaped network with one foreground probability for each class; its connected parts are the instances.

    Classes may overlap, so a tumour stays inside its organ. Two instances of one class that touch are one, unless
    ``targets`` lets it learn their cores, from which they are parted.
    """

    parts = ("unet",)

    def __init__(self, config: SemanticCCConfig, *, classes: int, channels: int, pretrained: bool) -> None:
        """Build it; ``pretrained`` starts from ``config.weights``, if there are any."""
        super().__init__()
        if classes < 1:
            raise ConfigError(f"semantic_cc needs at least one class, not {classes}")
        self.config = config
        self.cuts_maps = config.targets != "classes"
        self.classes = classes
        self.unet = semantic_unet(
            config, dimensions=2, channels=channels, classes=classes, pretrained=pretrained
        )
        self.eval()

    def losses(self, images: Tensor, targets: list[Targets]) -> dict[str, Tensor]:
        """Return ``cross_entropy`` and ``dice`` of each class of each image against the union of its instances.

        A class without an instance teaches the background through the former alone; it has no Dice to improve. With
        cores, ``core_cross_entropy`` and ``core_dice`` likewise.
        """
        with dropping(self):
            return unet_losses(level_logits(self.unet, images), targets, self.classes, self.config)

    def detect(self, images: Tensor, *, maps: bool = False) -> list[Detections]:
        """Return each class's components; their masks hold the class's probabilities, at full resolution."""
        every = self.unet(images).float().sigmoid()
        detections = [self._instances(p, images.device) for p in every]
        return (
            [replace(one, foreground=p[: self.classes]) for one, p in zip(detections, every, strict=True)]
            if maps
            else detections
        )

    def _instances(self, probabilities: Tensor, device: torch.device) -> Detections:
        components, specks, beyond = class_components(
            probabilities.cpu().numpy(),
            self.classes,
            smallest=self.config.smallest,
            most=self.config.detections,
        )
        if specks:
            log.debug("%d component(s) of fewer than %d pixels dropped", specks, self.config.smallest)
        parts = [component for _, component in components]
        boxes = torch.tensor([[*c.low[::-1], *c.high[::-1]] for c in parts], dtype=torch.float32)
        regions = torch.tensor([_region(c) for c in parts], dtype=torch.float32)
        return Detections(
            boxes=boxes.reshape(-1, 4).to(device),
            labels=torch.tensor([label for label, _ in components], dtype=torch.int64, device=device),
            scores=torch.tensor([c.score for c in parts], dtype=torch.float32, device=device),
            masks=tuple(torch.from_numpy(c.probabilities).to(device) for c in parts),
            regions=regions.reshape(-1, 4).to(device),
            beyond=beyond,
        )


def build_unet(
    config: UNetSettings, *, dimensions: int, channels: int, classes: int, deep_supervision: int = 0
) -> nn.Module:
    """Return MONAI's DynUNet or SegResNet with ``classes`` logits for each pixel or voxel.

    A DynUNet has maps of so many coarser levels for its training too (``level_logits``).

    Extents of what it is shown are multiples of ``2 ** (levels - 1)``, or of the product of its strides. GroupNorm
    throughout: it does not depend on the batch or the mode, and stands a deepest level of one pixel, which nnU-Net's
    InstanceNorm does not.

    Source: Isensee et al., "nnU-Net", Nature Methods 2021; Myronenko, BrainLes 2018, without the autoencoder.
    """
    levels = config.levels
    strides = config.halved(dimensions)
    norm = ("GROUP", {"num_groups": 8})
    dropout = config.dropout or None
    if config.architecture == "segresnet":
        segresnet: nn.Module = SegResNet(
            spatial_dims=dimensions,
            init_filters=config.filters,
            in_channels=channels,
            out_channels=classes,
            norm=norm,
            dropout_prob=dropout,
            blocks_down=(1, *(2,) * (levels - 2), 4),
            blocks_up=(1,) * (levels - 1),
        )
        return switch_dropout(segresnet)
    dynunet = _DynUNet(
        spatial_dims=dimensions,
        in_channels=channels,
        out_channels=classes,
        kernel_size=_kernels(strides),
        strides=[(1,) * dimensions, *strides],
        upsample_kernel_size=strides,
        filters=[min(config.filters * 2**level, 320) for level in range(levels)],
        norm_name=norm,
        dropout=dropout,
        deep_supervision=deep_supervision > 0,
        deep_supr_num=max(1, deep_supervision),
    )
    return switch_dropout(dynunet)


def semantic_unet(
    config: SemanticSettings, *, dimensions: int, channels: int, classes: int, pretrained: bool
) -> nn.Module:
    """Return the network of a semantic model of K ``classes``, with the maps of its cores and of coarser levels.

    Raises:
        InputError: ``pretrained``, and ``config.weights`` are of another architecture.
    """
    unet = build_unet(
        config,
        dimensions=dimensions,
        channels=channels,
        classes=config.outputs(classes),
        deep_supervision=config.deep_supervision,
    )
    start_unet(unet, config, pretrained=pretrained)
    return unet


def _kernels(strides: Sequence[tuple[int, ...]]) -> list[tuple[int, ...]]:
    """Return each level's kernel: 1 along an axis that is coarser than the others still, else 3.

    An axis is coarser until it is halved for the first time, as in nnU-Net; the deepest level sees all axes.
    """
    halved = np.cumsum(np.array(strides) > 1, axis=0) > 0
    kernels = [tuple(3 if here else 1 for here in level) for level in halved.tolist()]
    return [*kernels, (3,) * halved.shape[1]]


def start_unet(unet: nn.Module, config: UNetSettings, *, pretrained: bool) -> None:
    """Load the weights that a configuration names into its network.

    Raises:
        InputError: They are of another architecture.
    """
    if pretrained and config.weights is not None:
        from clearmargin.networks.bundle_weights import load_unet

        load_unet(unet, Path(config.weights), config.architecture)


class _DynUNet(DynUNet):  # type: ignore[misc]
    """MONAI's network with each weight under one name.

    Its own forward pass goes through ``skip_layers``, which name every weight a second time: a file of weights
    would be twice as large, and safetensors refuses to write it.
    """

    def __init__(self, **options: object) -> None:
        super().__init__(**options)
        del self.skip_layers

    def forward(self, images: Tensor) -> Tensor:
        *_, finest = self._features(images)
        logits: Tensor = self.output_block(finest)
        return logits

    def levels(self, images: Tensor) -> list[Tensor]:
        """Return the logits of the finest level, then of each coarser one with a map of its own."""
        *coarser, finest = self._features(images)
        heads = self.deep_supervision_heads if self.deep_supervision else ()
        return [
            self.output_block(finest),
            *(head(features) for head, features in zip(heads, reversed(coarser), strict=False)),
        ]

    def _features(self, images: Tensor) -> list[Tensor]:
        """Return what each level hands on upwards, the coarsest first."""
        skipped = [self.input_block(images)]
        for downsample in self.downsamples:
            skipped.append(downsample(skipped[-1]))
        features = [self.bottleneck(skipped[-1])]
        for upsample, skip in zip(self.upsamples, reversed(skipped), strict=True):
            features.append(upsample(features[-1], skip))
        return features


def level_logits(unet: nn.Module, images: Tensor) -> list[Tensor]:
    """Return a U-shaped network's logits of each level that is held to the reference, finest first."""
    return unet.levels(images) if isinstance(unet, _DynUNet) else [unet(images)]


def unet_losses(
    logits: Sequence[Tensor],
    targets: Sequence[Targets | VolumeTargets],
    classes: int,
    config: SemanticSettings,
) -> dict[str, Tensor]:
    """Return the losses of the classes' maps against their instances, and of the cores' maps if they are learnt.

    Each level counts half of the one above it, and all together 1; a coarse one is held to the share of each of its
    elements that the reference covers.

    Args:
        logits: One tensor per level, finest first, ``(B, K, *shape)``; ``(B, 2 K, *shape)`` if cores are learnt.
        targets: Of each image, with cores if the network has any.
        classes: K.
        config: The network's.

    Source of deep supervision: Isensee et al., "nnU-Net", Nature Methods 2021.
    """
    aims = {"": torch.stack([class_unions(t.masks, t.labels, classes) for t in targets])}
    if config.targets != "classes":
        if any(len(t.cores) != classes for t in targets):
            raise ValueError(f"targets: {config.targets} needs the cores of {classes} classes: see encode")
        aims["core_"] = torch.stack([t.cores for t in targets])
    losses: dict[str, Tensor] = {}
    whole = sum(0.5**level for level in range(len(logits)))
    for level, every in enumerate(logits):
        for k, (prefix, aim) in enumerate(aims.items()):
            own = every[:, k * classes : (k + 1) * classes]
            terms = semantic_losses(own, _coarse(aim, own.shape[2:]), config.mask_loss)
            for name, value in terms.items():
                losses[prefix + name] = losses.get(prefix + name, 0) + 0.5**level / whole * value
    return losses


def _coarse(aims: Tensor, shape: Sequence[int]) -> Tensor:
    """Return the mean of ``aims``, ``(B, K, ...)``, within each element of a grid of ``shape``."""
    if tuple(aims.shape[2:]) == tuple(shape):
        return aims
    return F.interpolate(aims.float(), tuple(shape), mode="area")


def semantic_losses(logits: Tensor, unions: Tensor, settings: MaskLossSettings) -> dict[str, Tensor]:
    """Return the terms of ``mask_loss``, Dice apart and over the classes that are there; 0 if none is.

    Args:
        logits: ``(B, K, H, W)`` or ``(B, K, D, H, W)``; edge weights are for the former.
        unions: The same shape, in [0, 1].
        settings: Which terms.
    """
    rows = logits.shape[-1]
    height = logits[0, 0].numel() // rows
    every, aims = (x.float().reshape(-1, height, rows) for x in (logits, unions))
    there = aims.flatten(1).any(1)
    dice = dice_loss(every[there], aims[there]).mean() if there.any() else every.sum() * 0
    return {
        "cross_entropy": mask_loss(every, aims, settings.model_copy(update={"dice": 0.0})),
        "dice": settings.dice * dice,
    }


def _region(component: Component) -> list[int]:
    y, x = component.origin
    height, width = component.probabilities.shape
    return [x, y, x + width, y + height]

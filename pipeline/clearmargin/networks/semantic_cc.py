"""Semantic segmentation and connected components: the baseline that every instance segmenter has to beat."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Literal

import torch
from monai.networks.nets import DynUNet, SegResNet
from pydantic import Field
from torch import Tensor, nn

from clearmargin.errors import ConfigError
from clearmargin.networks.components import Component, connected_components
from clearmargin.networks.dropout import dropping, switch_dropout
from clearmargin.networks.foreground import class_unions
from clearmargin.networks.losses import MaskLossSettings, dice_loss, mask_loss
from clearmargin.networks.network import Detections, PlaneNetwork, Targets
from clearmargin.networks.planning import Choice, Facts, NetworkSettings, Shown, mask_loss_choice

__all__ = [
    "SemanticCC",
    "SemanticCCConfig",
    "SemanticSettings",
    "UNetSettings",
    "build_unet",
    "semantic_losses",
    "start_unet",
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

    def check_extents(self, patch: tuple[int, ...]) -> None:
        """Refuse a window that cannot be halved as often as the levels ask for.

        Raises:
            ValueError: With the step that its extents have to be multiples of.
        """
        step = 2 ** (self.levels - 1)
        if any(n < step or n % step for n in patch):
            raise ValueError(
                f"with {self.levels} levels the extents of patch are multiples of {step}, not {patch}"
            )


class SemanticSettings(UNetSettings):
    """Options of a semantic network and its components, in the plane and in space."""

    smallest: int = Field(
        16, ge=1, description="components of fewer network pixels (voxels) are dropped as specks"
    )
    mask_loss: MaskLossSettings = MaskLossSettings(dice=1.0)
    detections: int = Field(100, ge=1, description="most instances of one image")

    @classmethod
    def objection(cls, facts: Facts, scale: float) -> str | None:
        """Return why the network cannot work on such data; None if it can."""
        if facts.touching < 0.1:
            return None
        return f"{100 * facts.touching:.0f} % of the objects touch another of their class, and it would join them"

    @classmethod
    def choices(cls, facts: Facts, shown: Shown) -> Iterator[Choice]:
        """Yield the settings that fit the data."""
        yield from super().choices(facts, shown)
        yield from mask_loss_choice(facts, shown, cls().mask_loss)


class SemanticCCConfig(SemanticSettings):
    """Options of the semantic baseline; the defaults train on two CPU cores."""

    network: Literal["semantic_cc"] = "semantic_cc"


class SemanticCC(PlaneNetwork):
    """A U-shaped network with one foreground probability for each class; its connected parts are the instances.

    Classes may overlap, so a tumour stays inside its organ. Two instances of one class that touch are one.
    """

    parts = ("unet",)

    def __init__(self, config: SemanticCCConfig, *, classes: int, channels: int, pretrained: bool) -> None:
        """Build it; ``pretrained`` starts from ``config.weights``, if there are any."""
        super().__init__()
        if classes < 1:
            raise ConfigError(f"semantic_cc needs at least one class, not {classes}")
        self.config = config
        self.classes = classes
        self.unet = build_unet(config, dimensions=2, channels=channels, classes=classes)
        start_unet(self.unet, config, pretrained=pretrained)
        self.eval()

    def losses(self, images: Tensor, targets: list[Targets]) -> dict[str, Tensor]:
        """Return ``cross_entropy`` and ``dice`` of each class of each image against the union of its instances.

        A class without an instance teaches the background through the former alone; it has no Dice to improve.
        """
        unions = [class_unions(t.masks, t.labels, self.classes) for t in targets]
        with dropping(self):
            return semantic_losses(self.unet(images), torch.stack(unions), self.config.mask_loss)

    def detect(self, images: Tensor, *, maps: bool = False) -> list[Detections]:
        """Return each class's components; their masks hold the class's probabilities, at full resolution."""
        every = self.unet(images).float().sigmoid()
        detections = [self._instances(p, images.device) for p in every]
        return (
            [replace(one, foreground=p) for one, p in zip(detections, every, strict=True)]
            if maps
            else detections
        )

    def _instances(self, probabilities: Tensor, device: torch.device) -> Detections:
        found: list[tuple[int, Component]] = []
        specks = 0
        for label, one in enumerate(probabilities.cpu().numpy(), start=1):
            components, dropped = connected_components(one, self.config.smallest)
            found += [(label, component) for component in components]
            specks += dropped
        if specks:
            log.debug("%d component(s) of fewer than %d pixels dropped", specks, self.config.smallest)
        found = sorted(found, key=lambda pair: -pair[1].score)[: self.config.detections]
        parts = [component for _, component in found]
        boxes = torch.tensor([[*c.low[::-1], *c.high[::-1]] for c in parts], dtype=torch.float32)
        regions = torch.tensor([_region(c) for c in parts], dtype=torch.float32)
        return Detections(
            boxes=boxes.reshape(-1, 4).to(device),
            labels=torch.tensor([label for label, _ in found], dtype=torch.int64, device=device),
            scores=torch.tensor([c.score for c in parts], dtype=torch.float32, device=device),
            masks=tuple(torch.from_numpy(c.probabilities).to(device) for c in parts),
            regions=regions.reshape(-1, 4).to(device),
        )


def build_unet(config: UNetSettings, *, dimensions: int, channels: int, classes: int) -> nn.Module:
    """Return MONAI's DynUNet or SegResNet with ``classes`` logits for each pixel or voxel.

    Extents of what it is shown are multiples of ``2 ** (levels - 1)``. GroupNorm throughout: it does not depend on
    the batch or the mode, and stands a deepest level of one pixel, which nnU-Net's InstanceNorm does not.

    Source: Isensee et al., "nnU-Net", Nature Methods 2021; Myronenko, BrainLes 2018, without the autoencoder.
    """
    levels = config.levels
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
        kernel_size=[3] * levels,
        strides=[1] + [2] * (levels - 1),
        upsample_kernel_size=[2] * (levels - 1),
        filters=[min(config.filters * 2**level, 320) for level in range(levels)],
        norm_name=norm,
        dropout=dropout,
    )
    return switch_dropout(dynunet)


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
        skipped = [self.input_block(images)]
        for downsample in self.downsamples:
            skipped.append(downsample(skipped[-1]))
        features = self.bottleneck(skipped[-1])
        for upsample, skip in zip(self.upsamples, reversed(skipped), strict=True):
            features = upsample(features, skip)
        logits: Tensor = self.output_block(features)
        return logits


def semantic_losses(logits: Tensor, unions: Tensor, settings: MaskLossSettings) -> dict[str, Tensor]:
    """Return the terms of ``mask_loss``, Dice apart and over the classes that are there; 0 if none is.

    Args:
        logits: ``(B, K, H, W)`` or ``(B, K, D, H, W)``; edge weights are for the former.
        unions: The same shape, 0 or 1.
        settings: Which terms.
    """
    rows = logits.shape[-1]
    height = logits[0, 0].numel() // rows
    found, wanted = (x.float().reshape(-1, height, rows) for x in (logits, unions))
    there = wanted.flatten(1).any(1)
    dice = dice_loss(found[there], wanted[there]).mean() if there.any() else found.sum() * 0
    return {
        "cross_entropy": mask_loss(found, wanted, settings.model_copy(update={"dice": 0.0})),
        "dice": settings.dice * dice,
    }


def _region(component: Component) -> list[int]:
    y, x = component.origin
    height, width = component.probabilities.shape
    return [x, y, x + width, y + height]

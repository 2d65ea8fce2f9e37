"""EoMT, the encoder-only mask transformer (Kerssies et al., CVPR 2025), on transformers' parts."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from clearmargin.errors import ConfigError
from clearmargin.networks.backbones import read_weights
from clearmargin.networks.network import Detections, PlaneNetwork, Targets
from clearmargin.networks.queries import QueryLogits, QuerySettings, query_detections, query_losses
from clearmargin.networks.vit_weights import load_vit

try:
    from transformers import EomtConfig as Architecture
    from transformers import EomtForUniversalSegmentation
except ImportError as error:
    raise ConfigError(
        f"eomt needs the package transformers: pip install 'clearmargin[transformers]' ({error})"
    ) from None

__all__ = ["EoMT", "EoMTConfig"]


class EoMTConfig(QuerySettings):
    """Options of EoMT; the defaults are a ViT-S, which wants pretrained weights to learn from few images."""

    network: Literal["eomt"] = "eomt"
    weights: str | None = Field(
        None, description="path of a state dict: a timm ViT such as DINOv2, or EoMT under transformers' names"
    )
    width: int = Field(384, ge=32, multiple_of=32)
    layers: int = Field(12, ge=1)
    query_layers: int = Field(3, ge=1, description="number of last layers that the queries go through")
    heads: int = Field(6, ge=1, description="attention heads per layer; a divisor of width")
    registers: int = Field(4, ge=0, description="register tokens of the ViT; DINOv2's has 4 or none")
    patch: Literal[8, 16, 32] = 16
    image_size: int = Field(
        256, ge=64, multiple_of=32, description="side for which position embeddings are held"
    )
    masked_attention: bool = Field(True, description="queries see the patches of their own mask alone")


class EoMT(PlaneNetwork):
    """A plain ViT, whose last layers see queries beside the patches; no decoder.

    Pictures of any extent that is a multiple of ``patch``: position embeddings are resampled, so that a network
    pixel means the same at every size. Nothing is looked up or loaded by name, and there is no dropout.
    """

    def __init__(self, config: EoMTConfig, *, classes: int, channels: int, pretrained: bool) -> None:
        super().__init__()
        if classes < 1:
            raise ConfigError(f"eomt needs at least one class, not {classes}")
        if config.width % config.heads:
            raise ConfigError(f"width {config.width} is not a multiple of heads {config.heads}")
        if config.query_layers > config.layers:
            raise ConfigError(f"query_layers {config.query_layers} is more than layers {config.layers}")
        self.config = config
        self.vit = EomtForUniversalSegmentation(_architecture(config, classes, channels))
        self.stride = config.patch / 2**self.vit.config.num_upscale_blocks
        if pretrained and config.weights is not None:
            load_vit(self.vit, read_weights(Path(config.weights)))
        # Everything but the position embeddings, which are resampled to each picture's size, and small heads.
        layers = (f"vit.layers.{index}" for index in range(config.layers))
        self.parts = ("vit.embeddings.patch_embeddings", *layers, "vit.upscale_block")
        self.eval()

    def losses(self, images: Tensor, targets: list[Targets]) -> dict[str, Tensor]:
        """Return ``classes``, ``masks`` and ``dice``, each summed over the predictions before and after each layer.

        Images without an instance teach the queries to be none. Points are drawn from torch's global generator.
        """
        return query_losses(self._layers(images), targets, self.vit.criterion, self.config)

    def detect(self, images: Tensor, *, maps: bool = False) -> list[Detections]:
        """Return the queries that hold an instance, with masks at a quarter of the resolution; they may overlap."""
        return query_detections(self._layers(images)[-1], self.stride, self.config, maps=maps)

    def _layers(self, images: Tensor) -> list[QueryLogits]:
        """Return the logits before each of the queries' layers, and behind the last."""
        vit, logits = self.vit, []
        grid = (images.shape[-2] // self.config.patch, images.shape[-1] // self.config.patch)
        tokens = self._embed(images, grid)
        for index, layer in enumerate(vit.layers):
            allowed = None
            if index == len(vit.layers) - self.config.query_layers:
                tokens = torch.cat([vit.query.weight.expand(len(images), -1, -1), tokens], dim=1)
            if index >= len(vit.layers) - self.config.query_layers:
                logits.append(self._predict(tokens, grid))
                if self.config.masked_attention:
                    allowed = self._allowed(logits[-1][1], grid, tokens.shape[1])
            tokens = layer(tokens, allowed)
        return [*logits, self._predict(tokens, grid)]

    def _embed(self, images: Tensor, grid: tuple[int, int]) -> Tensor:
        """Return ``(B, 1 + registers + patches, width)``; ImageNet's mean and spread, averaged over its channels."""
        parts = self.vit.embeddings
        patches = parts.patch_embeddings((images - 0.45) / 0.225)
        side = self.config.image_size // self.config.patch
        places = parts.position_embeddings.weight
        if grid != (side, side):
            square = places.T.reshape(1, -1, side, side)
            places = F.interpolate(square, size=grid, mode="bicubic", align_corners=False)[0].flatten(1).T
        prefix = [p.expand(len(images), -1, -1) for p in (parts.cls_token, parts.register_tokens)]
        return torch.cat([*prefix, patches + places], dim=1)

    def _predict(self, tokens: Tensor, grid: tuple[int, int]) -> QueryLogits:
        queries, rest = self.vit.layernorm(tokens).split(
            [self.config.queries, tokens.shape[1] - self.config.queries], dim=1
        )
        patches = rest[:, 1 + self.config.registers :].transpose(1, 2).unflatten(2, grid)
        masks = torch.einsum("bqc,bchw->bqhw", self.vit.mask_head(queries), self.vit.upscale_block(patches))
        return self.vit.class_predictor(queries), masks

    def _allowed(self, masks: Tensor, grid: tuple[int, int], tokens: int) -> Tensor:
        """Return ``(B, 1, tokens, tokens)`` bool: which token sees which. Class and registers are always seen."""
        inside = F.interpolate(masks.detach(), size=grid, mode="bilinear") > 0
        allowed = torch.ones((len(masks), 1, tokens, tokens), dtype=torch.bool, device=masks.device)
        queries = self.config.queries
        allowed[:, 0, :queries, queries + 1 + self.config.registers :] = inside.flatten(2)
        return allowed


def _architecture(config: EoMTConfig, classes: int, channels: int) -> Architecture:
    return Architecture(
        hidden_size=config.width,
        num_hidden_layers=config.layers,
        num_blocks=config.query_layers,
        num_attention_heads=config.heads,
        num_register_tokens=config.registers,
        image_size=config.image_size,
        patch_size=config.patch,
        num_channels=channels,
        num_upscale_blocks=config.patch.bit_length() - 3,  # to masks at a quarter of the resolution
        hidden_dropout_prob=0.0,
        attention_dropout=0.0,
        drop_path_rate=0.0,
        **config.architecture(classes),
    )

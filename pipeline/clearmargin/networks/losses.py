"""Losses of masks that several networks share."""

from __future__ import annotations

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from clearmargin.config import Settings

__all__ = ["MaskLossSettings", "dice_loss", "edge_weights", "mask_loss"]


class MaskLossSettings(Settings):
    """What a mask is held to; the terms are added, and the default is plain cross-entropy."""

    cross_entropy: float = Field(1.0, ge=0, description="weight of the binary cross-entropy")
    dice: float = Field(0.0, ge=0, description="weight of the Dice loss: for small or thin objects")
    edge: float = Field(
        0.0, ge=0, description="further weight of pixels at the reference's edge in the cross-entropy"
    )
    edge_width: int = Field(1, ge=1, description="pixels on each side that count as edge")
    logit_margin: float | None = Field(
        None, gt=0, description="logits beyond it cost their excess, against overconfidence; about 10"
    )


def mask_loss(logits: Tensor, targets: Tensor, settings: MaskLossSettings) -> Tensor:
    """Return the loss of N masks, a scalar; 0 (with a gradient of 0) for none.

    Args:
        logits: ``(N, h, w)``.
        targets: ``(N, h, w)`` in [0, 1]; resampled masks have values between.
        settings: Which terms.

    Source of the margin: Liu et al., "The devil is in the margin", CVPR 2022, for a sigmoid.
    """
    if len(logits) == 0:
        return logits.sum() * 0
    loss = logits.new_zeros(())
    if settings.cross_entropy:
        weights = 1 + settings.edge * edge_weights(targets, settings.edge_width) if settings.edge else None
        cost = F.binary_cross_entropy_with_logits(logits, targets, weight=weights, reduction="sum")
        loss = loss + settings.cross_entropy * cost / (targets.numel() if weights is None else weights.sum())
    if settings.dice:
        loss = loss + settings.dice * dice_loss(logits, targets).mean()
    if settings.logit_margin is not None:
        loss = loss + F.relu(logits.abs() - settings.logit_margin).mean()
    return loss


def dice_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Return one minus the soft Dice of each mask, ``(N,)`` in [0, 1); the squares' form.

    Source: Milletari et al., "V-Net", 3DV 2016.
    """
    probabilities, masks = logits.sigmoid().flatten(1), targets.flatten(1)
    common = (probabilities * masks).sum(1)
    return 1 - (2 * common + 1e-3) / ((probabilities**2).sum(1) + (masks**2).sum(1) + 1e-3)


def edge_weights(targets: Tensor, width: int) -> Tensor:
    """Return 1 for the pixels within ``width`` of the masks' edges (chessboard distance), 0 elsewhere."""
    inside = (targets >= 0.5).to(targets.dtype)[:, None]
    size = 2 * width + 1
    grown = F.max_pool2d(inside, size, 1, width)
    shrunk = -F.max_pool2d(F.pad(-inside, (width,) * 4, value=-1.0), size, 1)
    edges: Tensor = (grown - shrunk)[:, 0]
    return edges

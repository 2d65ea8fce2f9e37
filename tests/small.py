"""One small configuration of each network: what the contract of all networks is tested on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from clearmargin.networks.network import Targets

SIZE = 128


@dataclass(frozen=True, kw_only=True)
class Small:
    """A network that learns one picture within seconds.

    Attributes:
        model: The ``model`` section of a configuration.
        learning_rate: Of AdamW.
        steps: After so many the loss is about a tenth of what it was.
    """

    model: dict[str, Any]
    learning_rate: float = 2e-3
    steps: int = 80


SMALL: dict[str, Small] = {
    "mask_rcnn": Small(
        model={
            "network": "mask_rcnn",
            "fpn_channels": 32,
            "box_features": 64,
            "mask_channels": 32,
            "rpn_proposals": 50,
        },
        steps=110,
    ),
    "yolact": Small(
        model={
            "network": "yolact",
            "fpn_channels": 32,
            "head_channels": 32,
            "prototypes": 8,
            "prototype_channels": 32,
        },
        steps=60,
    ),
    "solov2": Small(
        model={
            "network": "solov2",
            "fpn_channels": 32,
            "head_channels": 32,
            "branch_channels": 32,
            "mask_channels": 32,
        },
        steps=30,
    ),
    "semantic_cc": Small(model={"network": "semantic_cc", "filters": 8, "levels": 4}, steps=60),
    "mask2former": Small(
        model={
            "network": "mask2former",
            "queries": 8,
            "encoder_layers": 1,
            "decoder_layers": 3,
            "points": 1024,
        },
        steps=45,
    ),
    "eomt": Small(
        model={
            "network": "eomt",
            "queries": 8,
            "width": 96,
            "layers": 4,
            "query_layers": 2,
            "heads": 4,
            "patch": 8,
            "image_size": 64,
            "points": 1024,
        },
        learning_rate=1e-3,
        steps=40,
    ),
}


def scene() -> tuple[torch.Tensor, Targets]:
    """Return a picture of two bright boxes, ``(3, SIZE, SIZE)``, and its targets."""
    masks = torch.zeros(2, SIZE, SIZE, dtype=torch.uint8)
    masks[0, 20:60, 30:80] = 1
    masks[1, 70:110, 60:110] = 1
    image = (masks.amax(0) * 0.7 + 0.15)[None].repeat(3, 1, 1).float()
    return image, Targets.from_masks(masks, torch.ones(2, dtype=torch.int64))


def no_targets() -> Targets:
    """Return the targets of a picture without an instance."""
    return Targets.from_masks(
        torch.zeros(0, SIZE, SIZE, dtype=torch.uint8), torch.zeros(0, dtype=torch.int64)
    )

"""What networks of object queries share: a class and a mask for each query, matched to the instances one to one."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from clearmargin.networks.crops import crop_masks
from clearmargin.networks.foreground import strongest
from clearmargin.networks.network import Detections, Targets
from clearmargin.networks.planning import Choice, Facts, NetworkSettings, Shown, thin

__all__ = ["Criterion", "QueryLogits", "QuerySettings", "query_detections", "query_losses"]

QueryLogits = tuple[Tensor, Tensor]  # classes (B, Q, K + 1), the last "no object"; masks (B, Q, h, w)

# transformers' names of the terms, and ours
_TERMS = {"loss_cross_entropy": "classes", "loss_mask": "masks", "loss_dice": "dice"}


class QuerySettings(NetworkSettings):
    """Options of the queries, their losses and what is kept of them."""

    queries: int = Field(
        32, ge=1, description="largest number of instances that can be detected; more cost little"
    )
    class_weight: float = Field(
        2.0, ge=0, description="weight of the class's cross-entropy, in loss and matching"
    )
    mask_weight: float = Field(
        5.0, ge=0, description="weight of the mask's cross-entropy, in loss and matching"
    )
    dice_weight: float = Field(5.0, ge=0, description="weight of the mask's Dice loss, in loss and matching")
    no_object_weight: float = Field(0.1, gt=0, description="class-loss weight of queries without an instance")
    points: int = Field(
        4096,
        ge=64,
        description="number of points at which masks are compared; three quarters lie at their edges",
    )
    score_threshold: float = Field(0.05, ge=0, lt=1)
    detections: int = Field(100, ge=1, description="most instances of one image")

    def architecture(self, classes: int) -> dict[str, Any]:
        """Return these options under transformers' names."""
        return {
            "num_labels": classes,
            "num_queries": self.queries,
            "class_weight": self.class_weight,
            "mask_weight": self.mask_weight,
            "dice_weight": self.dice_weight,
            "no_object_weight": self.no_object_weight,
            "train_num_points": self.points,
        }

    @classmethod
    def objection(cls, facts: Facts, scale: float) -> str | None:
        """Return why the network cannot work on such data; None if it can."""
        return thin(facts, scale)

    @classmethod
    def choices(cls, facts: Facts, shown: Shown) -> Iterator[Choice]:
        """Yield the settings that fit the data."""
        yield from super().choices(facts, shown)
        extents = np.median(facts.shapes, axis=0) * shown.scale
        share = float(np.prod([min(1.0, n / extent) for n, extent in zip(shown.crop, extents, strict=True)]))
        most = int(facts.counts.max())
        queries = max(20, 10 * math.ceil(1.5 * most * share / 10))
        window = f"each finds one object, and a window has up to about {math.ceil(most * share)}"
        yield Choice("model.queries", queries, window)
        if most > queries:
            why = f"an image has up to {most} objects, which is more than queries"
            yield Choice("prediction.tile", list(shown.crop), why)
            yield Choice("prediction.tile_overlap", 32 * max(1, min(shown.crop) // 64), "half a tile")


class Criterion(Protocol):
    """transformers' ``Mask2FormerLoss`` and ``EomtLoss``."""

    def __call__(
        self,
        masks_queries_logits: Tensor,
        class_queries_logits: Tensor,
        mask_labels: list[Tensor],
        class_labels: list[Tensor],
    ) -> dict[str, Tensor]:
        """Match queries and instances by the Hungarian method, and return the terms by transformers' names."""
        ...


def query_losses(
    layers: list[QueryLogits], targets: list[Targets], criterion: Criterion, settings: QuerySettings
) -> dict[str, Tensor]:
    """Return ``classes``, ``masks`` and ``dice``, weighted, summed over the layers that predict.

    Each layer is matched anew. Without an instance the queries learn to be none, and the other terms are 0.
    """
    labels = [t.labels - 1 for t in targets]
    weights = {"classes": settings.class_weight, "masks": settings.mask_weight, "dice": settings.dice_weight}
    sums: dict[str, Tensor] = {}
    # The matching goes through NumPy, which knows no bfloat16, and costs of 1e-3 decide it.
    with torch.autocast(layers[0][0].device.type, enabled=False):
        for classes, masks in layers:
            references = [t.masks.to(torch.float32) for t in targets]
            terms = criterion(masks.float(), classes.float(), references, labels)
            for theirs, ours in _TERMS.items():
                sums[ours] = sums.get(ours, classes.new_zeros(())) + weights[ours] * terms[theirs]
    return sums


def query_detections(
    logits: QueryLogits, stride: float, settings: QuerySettings, *, maps: bool = False
) -> list[Detections]:
    """Return each image's pairs of a query and a class, best first.

    A pair's score is the class's probability, among all classes and "no object", times the mean probability of
    the mask where it is at least one half; 0 for a mask that is nowhere so.

    Args:
        logits: Logits of the last layer.
        stride: Network pixels per mask pixel.
        settings: Threshold and most detections.
        maps: Whether to give ``foreground``, of whole masks.

    Source: Cheng et al., "Masked-attention mask transformer", CVPR 2022 (instance inference).
    """
    pairs = zip(logits[0].float(), logits[1].float(), strict=True)
    return [_one(classes, masks, stride, settings, maps=maps) for classes, masks in pairs]


def _one(
    class_logits: Tensor, mask_logits: Tensor, stride: float, settings: QuerySettings, *, maps: bool
) -> Detections:
    masks = mask_logits.sigmoid()
    held = (masks >= 0.5).to(masks.dtype)
    confidence = (masks * held).sum((1, 2)) / held.sum((1, 2)).clamp(min=1)
    scores = class_logits.softmax(-1)[:, :-1] * confidence[:, None]
    ranked, order = scores.flatten().sort(descending=True, stable=True)
    order = order[ranked >= settings.score_threshold][: settings.detections]
    queries, labels = order // scores.shape[1], order % scores.shape[1] + 1
    crops, regions = crop_masks(masks[queries], stride)
    none = masks.new_zeros((scores.shape[1], *masks.shape[1:]))
    return Detections(
        boxes=_boxes(masks[queries], stride),
        labels=labels,
        scores=scores.flatten()[order],
        masks=crops,
        regions=regions,
        foreground=strongest(none, masks[queries], scores.flatten()[order], labels) if maps else None,
    )


def _boxes(masks: Tensor, stride: float) -> Tensor:
    """Return ``(N, 4)``: the boxes of what is at least one half; 0 0 0 0 if nothing is."""
    held = (masks >= 0.5).to(torch.uint8).cpu()
    boxes = Targets.from_masks(held, torch.zeros(len(held), dtype=torch.int64)).boxes
    return (boxes * held.any(dim=2).any(dim=1)[:, None] * stride).to(masks.device)

"""Masks refined where they are in doubt: PointRend (Kirillov et al., CVPR 2020)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["PointHead", "features_at", "in_image", "refine", "sample_at", "uncertain_points"]

_OVERSAMPLING, _IMPORTANT = 3, 0.75  # the paper's k and beta
_BAND = 4  # points decided in a step, for each pixel of the finished mask's height and width
_FADE = 0.4  # of the doubt of the last point that is decided


class PointHead(nn.Module):
    """A perceptron that decides single points from fine features and the coarse mask."""

    def __init__(self, features: int, hidden: int, classes: int, *, layers: int = 3) -> None:
        super().__init__()
        # The coarse logits are shown to every layer, as in the paper.
        widths = [features] + [hidden] * layers
        self.hidden = nn.ModuleList(nn.Linear(width + classes, hidden) for width in widths[:-1])
        self.predictor = nn.Linear(hidden + classes, classes)

    def forward(self, features: Tensor, coarse: Tensor) -> Tensor:
        """Return logits ``(R, P, K)`` of P points in each of R regions.

        Args:
            features: ``(R, P, C)`` fine features at the points.
            coarse: ``(R, P, K)`` the coarse mask's logits there.
        """
        for layer in self.hidden:
            features = F.relu(layer(torch.cat([features, coarse], 2)))
        logits: Tensor = self.predictor(torch.cat([features, coarse], 2))
        return logits


def uncertain_points(logits: Tensor, count: int) -> Tensor:
    """Return points to learn from, ``(R, count, 2)`` as ``x y`` in [0, 1] of the region: most where it is in doubt.

    Args:
        logits: ``(R, h, w)``, of the regions' own classes.
        count: Points of each region; three quarters are the least certain of three times as many random ones.
    """
    exact = torch.promote_types(logits.dtype, torch.float32)  # 16 bits have 256 places along a region
    many = torch.rand((len(logits), _OVERSAMPLING * count, 2), device=logits.device, dtype=exact)
    important = int(_IMPORTANT * count)
    doubt = -sample_at(logits[:, None], many)[:, 0].abs()
    doubtful = doubt.topk(important, dim=1).indices
    picked = many.gather(1, doubtful[..., None].expand(-1, -1, 2))
    rest = torch.rand((len(logits), count - important, 2), device=logits.device, dtype=exact)
    return torch.cat([picked, rest], 1)


def sample_at(maps: Tensor, points: Tensor) -> Tensor:
    """Return the maps' values at points, bilinear, ``(R, C, P)``.

    Args:
        maps: ``(R, C, h, w)``; pixel k covers ``[k, k + 1) / w`` of the width.
        points: ``(R, P, 2)``, ``x y`` in [0, 1]; beyond the outermost centres values stay as they are there.
    """
    if len(maps) == 0:
        return maps.new_zeros((0, maps.shape[1], points.shape[1]))
    sampled: Tensor = F.grid_sample(
        maps, 2 * points[:, :, None] - 1, align_corners=False, padding_mode="border"
    )
    return sampled[..., 0]


def features_at(features: Tensor, boxes: Sequence[Tensor], points: Tensor, stride: float) -> Tensor:
    """Return the features of an image's batch at points of its boxes, ``(R, P, C)``.

    Args:
        features: ``(B, C, h, w)``.
        boxes: For each image ``(R_i, 4)``, ``x1 y1 x2 y2`` in network pixels.
        points: ``(R, P, 2)`` in [0, 1] of the boxes.
        stride: Network pixels per feature.
    """
    size = (features.shape[3] * stride, features.shape[2] * stride)
    parts = [features.new_zeros((0, points.shape[1], features.shape[1]))]
    for one, own, inside in zip(features, boxes, torch.split(points, [len(b) for b in boxes]), strict=True):
        if len(own):
            flat = in_image(inside, own, size).reshape(1, -1, 2)
            parts.append(sample_at(one[None], flat)[0].t().reshape(*inside.shape[:2], -1))
    return torch.cat(parts)


def in_image(points: Tensor, boxes: Tensor, size: tuple[float, float]) -> Tensor:
    """Return points of boxes as points of the image, all in [0, 1].

    Args:
        points: ``(R, P, 2)``.
        boxes: ``(R, 4)``.
        size: The image's width and height, in the boxes' unit.
    """
    low, high = boxes[:, None, :2], boxes[:, None, 2:]
    return (low + points * (high - low)) / points.new_tensor(size)


def refine(
    head: PointHead,
    fine: Callable[[Tensor], Tensor],
    labels: Tensor,
    coarse: Tensor,
    steps: int,
) -> Tensor:
    """Return one image's masks at ``2 ** steps`` times their resolution, ``(R, h, w)`` logits.

    Each step doubles the masks and decides the least certain points anew: twice as many as pixels lie along the border
    of the finished mask. The most certain of these keep more and more of what they had, the last one all of it: which
    of two that are nearly alike comes last is a matter of rounding, and must not show.

    Args:
        head: The trained head.
        fine: From points ``(R, P, 2)``, ``x y`` in [0, 1] of the masks, to the fine features there, ``(R, P, C)``.
        labels: ``(R,)``, each mask's class.
        coarse: ``(R, K, h, w)`` coarse logits of all classes.
        steps: Doublings; 0 returns the coarse masks.
    """
    rows = torch.arange(len(labels), device=labels.device)
    masks = coarse[rows, labels]
    count = _BAND * sum(masks.shape[1:]) * 2**steps
    for _ in range(steps if len(masks) else 0):
        masks = F.interpolate(masks[:, None], scale_factor=2, mode="bilinear", align_corners=False)[:, 0]
        height, width = masks.shape[1:]
        flat = masks.flatten(1)
        nearness, doubtful = (-flat.abs()).topk(min(count, flat.shape[1]), dim=1, sorted=False)
        points = torch.stack(
            [(doubtful % width + 0.5) / width, (doubtful // width + 0.5) / height], dim=2
        ).to(masks.dtype)
        decided = head(fine(points), sample_at(coarse, points).transpose(1, 2))[rows, :, labels]
        last = -nearness.amin(1, keepdim=True)
        share = ((last + nearness) / (_FADE * last).clamp(min=torch.finfo(last.dtype).tiny)).clamp(max=1)
        decided = torch.lerp(flat.gather(1, doubtful), decided.to(flat.dtype), share)
        masks = flat.scatter(1, doubtful, decided).reshape(-1, height, width)
    return masks

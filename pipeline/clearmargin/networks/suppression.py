"""Of several detections of one object, one: suppression by boxes and by masks, each class by itself."""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision.ops import box_iou

__all__ = ["fast_nms", "matrix_nms", "soft_nms"]

_PIXELS = 2**16  # of each mask, compared at a time


def fast_nms(boxes: Tensor, scores: Tensor, labels: Tensor, *, threshold: float) -> Tensor:
    """Return the indices of the boxes that no better box of their class overlaps, best first.

    A box that is itself suppressed still suppresses others: that is what makes it one matrix operation, and
    why it keeps a little less than plain suppression does.

    Args:
        boxes: ``(N, 4)``, ``x1 y1 x2 y2``.
        scores: ``(N,)``.
        labels: ``(N,)`` int64.
        threshold: Largest IoU with a better box.

    Source: Bolya et al., "YOLACT", ICCV 2019, section 3.3.
    """
    order = scores.argsort(descending=True, stable=True)
    if len(order) == 0:
        return order
    overlaps = _box_overlaps(boxes[order], labels[order])
    return order[overlaps.triu(1).amax(dim=0) <= threshold]


def matrix_nms(masks: Tensor, scores: Tensor, labels: Tensor, *, sigma: float) -> Tensor:
    """Return the scores, ``(N,)``, decayed by what better masks of the class overlap; Gaussian decay.

    Each better mask i would decay j by ``exp(-iou(i, j)^2 / sigma)``, less so the more i is itself overlapped
    by one that is better still. The strongest decay counts.

    Args:
        masks: ``(N, h, w)`` bool.
        scores: ``(N,)``; nothing is decayed by an equal score that comes later.
        labels: ``(N,)`` int64.
        sigma: The paper's 0.5 takes an exact repeat to 0.14 of its score.

    Source: Wang et al., "SOLOv2", NeurIPS 2020, section 3.3.
    """
    if len(scores) == 0:
        return scores
    order = scores.argsort(descending=True, stable=True)
    overlaps = (_mask_overlaps(masks[order]) * _same(labels[order])).triu(1)
    covered = overlaps.amax(dim=0)  # of each mask, by the best one before it
    # exp(-iou^2 / sigma) / exp(-covered^2 / sigma), and 1 for what is not better
    decay = torch.exp((covered[:, None] ** 2 - overlaps**2) / sigma)
    before = torch.ones_like(decay, dtype=torch.bool).triu(1)
    decayed = scores[order] * decay.masked_fill(~before, 1.0).amin(dim=0)
    return torch.empty_like(scores).scatter(0, order, decayed)


def soft_nms(
    boxes: Tensor, scores: Tensor, labels: Tensor, *, sigma: float, threshold: float
) -> tuple[Tensor, Tensor]:
    """Return the indices of the boxes that keep their place and their decayed scores, best first.

    Each box that is taken multiplies the scores of the others of its class by ``exp(-iou^2 / sigma)``.

    Args:
        boxes: ``(N, 4)``, ``x1 y1 x2 y2``.
        scores: ``(N,)`` in [0, 1].
        labels: ``(N,)`` int64.
        sigma: The paper's is 0.5.
        threshold: What falls below this score is left out.

    Source: Bodla et al., "Soft-NMS", ICCV 2017.
    """
    # One box after the other, each a decision: on the CPU, where a decision costs nothing.
    left = scores.detach().cpu().clone()
    factors = torch.exp(-(_box_overlaps(boxes.detach().cpu(), labels.cpu()) ** 2) / sigma)
    kept: list[int] = []
    final: list[float] = []
    for _ in range(len(left)):
        best = int(left.argmax())
        if left[best] < threshold:
            break
        kept.append(best)
        final.append(float(left[best]))
        left = left * factors[best]
        left[kept] = -1.0
    return (
        torch.tensor(kept, dtype=torch.int64, device=scores.device),
        torch.tensor(final, dtype=scores.dtype, device=scores.device),
    )


def _box_overlaps(boxes: Tensor, labels: Tensor) -> Tensor:
    """Return IoUs ``(N, N)``, 0 between classes and for boxes without area."""
    ious: Tensor = box_iou(boxes, boxes).nan_to_num(0.0)
    return ious * _same(labels)


def _mask_overlaps(masks: Tensor) -> Tensor:
    """Return IoUs ``(N, N)``, 0 for empty masks."""
    # In parts: whole masks of a large image as numbers are four times their gigabytes.
    common = torch.zeros((len(masks), len(masks)), device=masks.device)
    for part in torch.split(masks.flatten(1), _PIXELS, dim=1):
        pixels = part.float()
        common += pixels @ pixels.T
    areas = common.diagonal()
    return common / (areas[:, None] + areas[None] - common).clamp(min=1.0)


def _same(labels: Tensor) -> Tensor:
    return (labels[:, None] == labels[None]).float()

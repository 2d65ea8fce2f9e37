"""Anchors in space: on which level each lies, where they are, and which show an object."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from clearmargin.networks.boxes_3d import box_iou
from clearmargin.networks.planning import Choice, Facts

__all__ = ["Extent", "anchor_choice", "anchors_by_level", "anchors_of", "shown_objects", "some_of"]

_ACROSS = 4.0  # map voxels that an anchor should span
_BEST = 8  # anchors that an object is learnt from at least
_POOL = 20  # random negatives for each that is learnt from: the hardest of them are

Extent = tuple[float, float, float]
"""(Z, Y, X) in network voxels."""


def anchor_choice(facts: Facts) -> Choice:
    """Return anchors: as wide as the objects' planes, and as deep as they are wide in the grid's unit."""
    flat = float(np.median(facts.distances / facts.spacings.mean(axis=1)))
    across = np.quantile(facts.boxes, (0.15, 0.5, 0.9), axis=0)
    # Most planes of an object are not its widest.
    anchors = [
        [round(max(2.0, n), 1) for n in (float(np.sqrt(y * x)) / flat, 1.1 * y, 1.1 * x)] for y, x in across
    ]
    reason = f"objects are {' '.join(f'{y:.0f}x{x:.0f}' for y, x in across)} voxels across in planes (15, 50, 90 %)"
    return Choice("model.anchors", anchors, f"{reason}, and slices lie {flat:.1f} voxels apart")


def anchors_by_level(anchors: Sequence[Extent], steps: Sequence[Sequence[int]]) -> dict[int, list[Extent]]:
    """Return the anchors of each level that has some; the finest level has none."""
    levels: dict[int, list[Extent]] = {}
    for anchor in anchors:
        across = [
            abs(float(np.mean(np.log(anchor)) - np.mean(np.log(step))) - math.log(_ACROSS))
            for step in steps[1:]
        ]
        levels.setdefault(1 + int(np.argmin(across)), []).append(anchor)
    return dict(sorted(levels.items()))


def anchors_of(answers: Tensor, steps: Sequence[int], shapes: Sequence[Extent]) -> Tensor:
    """Return a level's anchors in the order of its answers, ``(d h w A, 6)``."""
    lines = [
        (torch.arange(n, device=answers.device, dtype=torch.float32) + 0.5) * step
        for n, step in zip(answers.shape[2:], steps, strict=True)
    ]
    centres = torch.stack(torch.meshgrid(*lines, indexing="ij"), -1).flatten(0, 2).flip(1)[:, None]
    half = torch.tensor(shapes, device=answers.device, dtype=torch.float32).flip(1)[None] / 2
    return torch.cat([centres - half, centres + half], 2).flatten(0, 1)


def shown_objects(logits: Tensor, anchors: Tensor, truth: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the anchors that show an object, which one each shows, and those that show none.

    An object has its best anchors, however little they fit, and all that fit it well. Of the others the hardest of a
    random pool are taken, at most three times as many.
    """
    best, match = (
        logits.new_zeros(len(anchors)),
        torch.zeros(len(anchors), dtype=torch.int64, device=logits.device),
    )
    shows = torch.zeros(len(anchors), dtype=torch.bool, device=logits.device)
    if len(truth):
        overlap = box_iou(anchors, truth)
        best, match = overlap.max(1)
        shows = best >= 0.5
        for n, top in enumerate(overlap.topk(min(_BEST, len(anchors)), dim=0).indices.t()):
            own = top[overlap[top, n] > 0]
            match[own], shows[own] = n, True
    positive = some_of(torch.where(shows)[0], 64)
    count = max(32, 3 * len(positive))
    others = some_of(torch.where(~shows & (best < 0.3))[0], _POOL * count)
    hardest = others[logits[others].topk(min(count, len(others))).indices]
    return positive, match[positive], hardest


def some_of(rows: Tensor, most: int) -> Tensor:
    """Return at most so many of the rows, drawn by torch's global generator."""
    return rows[torch.randperm(len(rows))[:most].to(rows.device)]

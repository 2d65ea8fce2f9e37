"""Mask R-CNN in space (He et al., ICCV 2017): boxes of a window of a volume, and a mask within each.

Objects of one class may touch, overlap and nest: each has a box and a mask of its own. The maps come of a U-shaped
network whose finest level also says what class each voxel is of, which teaches it edges, as nnDetection does.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from monai.networks.blocks.dynunet_block import UnetBasicBlock, UnetUpBlock
from pydantic import Field, model_validator
from torch import Tensor, nn

from clearmargin.errors import ConfigError
from clearmargin.networks.anchors_3d import (
    Extent,
    anchor_choice,
    anchors_by_level,
    anchors_of,
    shown_objects,
    some_of,
)
from clearmargin.networks.boxes_3d import (
    box_iou,
    boxes_of,
    decode,
    encode,
    pool_levels,
    pool_regions,
    suppress,
    within,
)
from clearmargin.networks.foreground import class_unions
from clearmargin.networks.losses import MaskLossSettings, mask_loss
from clearmargin.networks.network import Detections, VolumeTargets, WindowNetwork
from clearmargin.networks.planning import Choice, Facts, NetworkSettings, Sees, Shown
from clearmargin.networks.rows import by_rows
from clearmargin.networks.semantic_cc import semantic_losses
from clearmargin.networks.window_plan import window_choices, window_objection
from clearmargin.transforms.settings import VolumeView

__all__ = ["MaskRCNN3D", "MaskRCNN3DConfig"]

_NORM = ("GROUP", {"num_groups": 8})
_SHOWS = 0.4  # IoU from which a box shows an object


class MaskRCNN3DConfig(NetworkSettings, VolumeView):
    """Options of Mask R-CNN in space; the defaults train on two CPU cores."""

    unread: ClassVar[tuple[str, ...]] = (
        "image.scale", "image.spacing_mm", "image.crop", "image.neighbours", "augment.aim", "augment.copy_paste",
        "prediction.link_iou", "prediction.link_gap", "prediction.tile", "prediction.tile_overlap",
    )  # fmt: skip
    sees: ClassVar[Sees] = "volumes"

    network: Literal["mask_rcnn_3d"] = "mask_rcnn_3d"
    filters: int = Field(
        16,
        ge=8,
        multiple_of=8,
        description="filters of the finest level; each further level has twice as many",
    )
    levels: int = Field(4, ge=3, le=6, description="resolutions, the finest one the network's voxels")
    strides: tuple[tuple[int, int, int], ...] | None = Field(
        None,
        description="factor (Z, Y, X) between each level and the next, 1 or 2; null halves every axis each time",
    )
    overlap: float = Field(
        0.5, gt=0, lt=1, description="overlap of neighbouring windows at inference, as a share"
    )
    width: int = Field(32, ge=8, multiple_of=8, description="channels of the maps that regions are read from")
    anchors: tuple[Extent, ...] = Field(
        ((8, 8, 8), (16, 16, 16), (32, 32, 32)),
        min_length=1,
        description="extents (Z, Y, X) of the anchors, in network voxels; each lies on the level that fits it",
    )
    proposals: int = Field(64, ge=8, description="proposals kept per window")
    proposal_nms: float = Field(0.6, gt=0, le=1)
    box_features: int = Field(128, ge=16)
    box_samples: int = Field(48, ge=8, description="proposals per window that the box head learns from")
    box_nms: float = Field(0.4, gt=0, le=1, description="box IoU above which the lower score is dropped")
    mask_size: int = Field(14, ge=4, le=28, description="voxels of a mask's coarse half, along each axis")
    mask_channels: int = Field(24, ge=8, multiple_of=8)
    mask_samples: int = Field(
        8, ge=1, description="positive proposals per window that the mask head learns from"
    )
    mask_loss: MaskLossSettings = MaskLossSettings(dice=1.0)
    score_threshold: float = Field(0.05, ge=0, lt=1)
    detections: int = Field(100, ge=1, description="largest number of instances per window")

    @model_validator(mode="after")
    def _fits(self) -> MaskRCNN3DConfig:
        reason = window_objection(self.patch, self.halved(), self.levels)
        if reason:
            raise ValueError(reason)
        if self.mask_loss.edge:
            raise ValueError("mask_loss.edge is for networks of planes")
        if any(n <= 0 for anchor in self.anchors for n in anchor):
            raise ValueError(f"anchors have extents above 0, not {self.anchors}")
        return self

    def halved(self) -> list[tuple[int, ...]]:
        """Return the factor between each level and the next, of each axis."""
        return [(2, 2, 2)] * (self.levels - 1) if self.strides is None else list(self.strides)

    @classmethod
    def objection(cls, facts: Facts, scale: float) -> str | None:
        """Return why the network cannot work on such data; None if it can."""
        return "it takes volumes, and these are pictures" if facts.ndim == 2 else None

    @classmethod
    def choices(cls, facts: Facts, shown: Shown) -> Iterator[Choice]:
        """Yield the settings that fit the data."""
        yield from window_choices(facts, shown)
        yield from super().choices(facts, shown)
        yield anchor_choice(facts)


@dataclass(frozen=True, kw_only=True)
class _Samples:
    """What the box head learns from, by window: boxes, their labels (0: none), and their rows among all objects."""

    boxes: list[Tensor]
    labels: list[Tensor]
    matches: list[Tensor]


class MaskRCNN3D(WindowNetwork):
    """Region proposals, then a class, a box and a mask for each, in windows of a volume."""

    parts = ("maps", "proposer", "box_branch", "mask_branch", "voxels")
    map_layer = "voxels"

    def __init__(self, config: MaskRCNN3DConfig, *, classes: int, channels: int, pretrained: bool) -> None:
        """Build it; there are no weights for ``pretrained`` to start from."""
        super().__init__()
        if classes < 1:
            raise ConfigError(f"mask_rcnn_3d needs at least one class, not {classes}")
        self.config = self.view = config
        self.overlap = config.overlap
        self.classes = classes
        self.steps = np.cumprod(
            [(1, 1, 1), *config.halved()], axis=0
        ).tolist()  # of each level, in network voxels
        self.maps = _Maps(config, channels)
        self.anchored = anchors_by_level(config.anchors, self.steps)
        self.proposer = _Proposer(config.width, self.anchored)
        self.box_branch = _BoxBranch(config.width * 5**3, config.box_features, classes)
        self.mask_branch = _MaskBranch(config.width, config.filters, config.mask_channels, classes)
        self.voxels = nn.Conv3d(config.filters, classes, 1)
        self.eval()

    def losses(self, images: Tensor, targets: list[VolumeTargets]) -> dict[str, Tensor]:
        """Return ``objectness``, ``proposals``, ``classes``, ``boxes``, ``masks`` and ``foreground``.

        Windows without an instance teach the background; ``proposals``, ``boxes`` and ``masks`` are then 0.
        """
        maps = self.maps(images)
        size = images.shape[2:]
        truths = [boxes_of(t.masks) for t in targets]
        logits, changes, anchors = self._propose(maps)
        objectness, moves = [], []
        for own, moved, truth in zip(logits, changes, truths, strict=True):
            positive, matched, negative = shown_objects(own.detach(), anchors, truth)
            truly = torch.cat([torch.ones_like(own[positive]), torch.zeros_like(own[negative])])
            sampled = torch.cat([positive, negative])
            objectness.append(F.binary_cross_entropy_with_logits(own[sampled], truly))
            moves.append((moved[positive] - encode(truth[matched], anchors[positive])).abs())
        proposals = [
            torch.cat([truth, self._likeliest(one, moved, anchors, size)])
            for one, moved, truth in zip(logits.detach(), changes.detach(), truths, strict=True)
        ]
        samples = self._samples(proposals, targets, truths)
        scores, shifts = self.box_branch(pool_levels(maps[1:], samples.boxes, 5, size, self.steps[1:]))
        labels = torch.cat(samples.labels)
        held = labels > 0
        aims = torch.cat(truths)[torch.cat(samples.matches)[held]]
        offsets = encode(aims, torch.cat(samples.boxes)[held])
        unions = torch.stack([class_unions(t.masks, t.labels, self.classes) for t in targets])
        voxels = semantic_losses(self.voxels(maps[0]), unions, MaskLossSettings(dice=1.0))
        return {
            "objectness": torch.stack(objectness).mean(),
            "proposals": torch.cat(moves).sum() / max(1, sum(map(len, moves))),
            "classes": F.cross_entropy(scores.float(), labels),
            "boxes": (shifts[held] - offsets).abs().sum() / max(1, len(labels)),
            "masks": self._mask_loss(maps, samples, targets),
            "foreground": voxels["cross_entropy"] + voxels["dice"],
        }

    def detect(self, images: Tensor, *, maps: bool = False) -> list[Detections]:
        """Return what is in each window, with masks of twice ``mask_size``; ``foreground`` is each voxel's class."""
        size = images.shape[2:]
        padded = F.pad(
            images, [n for e, s in zip(size[::-1], self.steps[-1][::-1], strict=True) for n in (0, -e % s)]
        )
        features = self.maps(padded)
        extent = padded.shape[2:]
        logits, changes, anchors = self._propose(features)
        proposals = [
            self._likeliest(one, moved, anchors, size) for one, moved in zip(logits, changes, strict=True)
        ]
        scores, shifts = self.box_branch(pool_levels(features[1:], proposals, 5, extent, self.steps[1:]))
        counts = [len(p) for p in proposals]
        detected = [
            self._detected(*one, size)
            for one in zip(
                proposals, scores.float().softmax(1).split(counts), shifts.split(counts), strict=True
            )
        ]
        masks = self._masks(features, [boxes for boxes, _, _ in detected], extent)
        every = self.voxels(features[0]).float().sigmoid()[..., : size[0], : size[1], : size[2]]
        detections = []
        for i, (boxes, kept, labels) in enumerate(detected):
            own = masks[i][torch.arange(len(labels), device=labels.device), labels - 1]
            detections.append(
                Detections(
                    boxes=boxes,
                    labels=labels,
                    scores=kept,
                    masks=own.float().sigmoid(),
                    regions=boxes,
                    foreground=every[i] if maps else None,
                )
            )
        return detections

    def _propose(self, maps: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Return logits ``(B, A)`` and changes ``(B, A, 6)`` of all anchors, and the anchors ``(A, 6)``."""
        logits, changes, anchors = [], [], []
        for (level, shapes), answers in zip(
            self.anchored.items(), self.proposer([maps[level] for level in self.anchored]), strict=True
        ):
            split = answers.float().unflatten(1, (len(shapes), 7)).permute(0, 3, 4, 5, 1, 2).flatten(1, 4)
            logits.append(split[..., 0])
            changes.append(split[..., 1:])
            anchors.append(anchors_of(answers, self.steps[level], shapes))
        return torch.cat(logits, 1), torch.cat(changes, 1), torch.cat(anchors)

    def _likeliest(self, logits: Tensor, changes: Tensor, anchors: Tensor, size: Sequence[int]) -> Tensor:
        """Return one window's proposals, ``(R, 6)``, best first."""
        scores, best = logits.topk(min(4 * self.config.proposals, len(logits)))
        boxes = within(decode(changes[best], anchors[best]), size)
        solid = ((boxes[:, 3:] - boxes[:, :3]) >= 1).all(1)
        boxes, scores = boxes[solid], scores[solid]
        return boxes[suppress(boxes, scores, iou=self.config.proposal_nms, most=self.config.proposals)]

    @torch.no_grad()
    def _samples(
        self, proposals: list[Tensor], targets: list[VolumeTargets], truths: list[Tensor]
    ) -> _Samples:
        """Return what the box head learns from: a third of it shows objects, if there are enough."""
        boxes, labels, matches = [], [], []
        before = 0
        for every, target, truth in zip(proposals, targets, truths, strict=True):
            overlap, match = (
                every.new_zeros(len(every)),
                torch.zeros(len(every), dtype=torch.int64, device=every.device),
            )
            if len(truth):
                overlap, match = box_iou(every, truth).max(1)
            positive = some_of(torch.where(overlap >= _SHOWS)[0], self.config.box_samples // 3)
            negative = some_of(torch.where(overlap < _SHOWS)[0], self.config.box_samples - len(positive))
            sampled = torch.cat([positive, negative])
            label = torch.zeros_like(match[sampled])
            label[: len(positive)] = target.labels[match[positive]]
            boxes.append(every[sampled])
            labels.append(label)
            matches.append(match[sampled] + before)
            before += len(truth)
        return _Samples(boxes=boxes, labels=labels, matches=matches)

    def _masks(self, maps: Sequence[Tensor], boxes: list[Tensor], extent: Sequence[int]) -> list[Tensor]:
        """Return each window's mask logits, ``(R_i, K, n, n, n)`` with n twice ``mask_size``."""
        coarse = self.config.mask_size
        counts = [len(b) for b in boxes]
        if not sum(counts):
            return [maps[0].new_zeros((0, self.classes, 1, 1, 1)) for _ in boxes]
        fine = pool_regions(maps[0], boxes, (2 * coarse,) * 3, extent)
        pooled = pool_levels(maps[1:], boxes, coarse, extent, self.steps[1:])
        return list(torch.split(by_rows(self.mask_branch, pooled, fine), counts))

    def _mask_loss(self, maps: Sequence[Tensor], samples: _Samples, targets: list[VolumeTargets]) -> Tensor:
        rows = [torch.where(label > 0)[0][: self.config.mask_samples] for label in samples.labels]
        boxes = [b[r] for b, r in zip(samples.boxes, rows, strict=True)]
        if not sum(map(len, boxes)):
            return maps[0].sum() * 0
        labels, matches = (
            torch.cat([one[r] for one, r in zip(every, rows, strict=True)])
            for every in (samples.labels, samples.matches)
        )
        extent = targets[0].masks.shape[1:]
        logits = torch.cat(self._masks(maps, boxes, extent))
        own = logits[torch.arange(len(labels), device=labels.device), labels - 1].float()
        truth = torch.cat([t.masks for t in targets])[matches, None].float()
        aims = pool_regions(
            truth, list(torch.cat(boxes)[:, None]), (own.shape[1], own.shape[2], own.shape[3]), extent
        )[:, 0]
        return mask_loss(own.flatten(1, 2), aims.flatten(1, 2), self.config.mask_loss)

    def _detected(
        self, proposals: Tensor, scores: Tensor, shifts: Tensor, size: Sequence[int]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return one window's boxes, scores and labels, best first."""
        boxes = within(decode(shifts, proposals), size)
        rows, columns = torch.where(scores[:, 1:] >= self.config.score_threshold)
        boxes, kept, labels = boxes[rows], scores[rows, columns + 1], columns + 1
        solid = ((boxes[:, 3:] - boxes[:, :3]) >= 1).all(1)
        boxes, kept, labels = boxes[solid], kept[solid], labels[solid]
        # Classes lie apart, so that boxes of two never suppress one another.
        apart = boxes + labels[:, None] * (2.0 * max(size))
        first = suppress(apart, kept, iou=self.config.box_nms, most=self.config.detections)
        return boxes[first], kept[first], labels[first]


class _Maps(nn.Module):
    """A U-shaped network, and the decoder's levels: the finest as it is, the others of one width."""

    def __init__(self, config: MaskRCNN3DConfig, channels: int) -> None:
        super().__init__()
        filters = [min(config.filters * 2**level, 256) for level in range(config.levels)]
        strides = [(1, 1, 1), *config.halved()]
        options = {"kernel_size": 3, "norm_name": _NORM}
        self.down = nn.ModuleList(
            UnetBasicBlock(3, before, own, stride=stride, **options)
            for before, own, stride in zip([channels, *filters], filters, strides, strict=False)
        )
        self.up = nn.ModuleList(
            UnetUpBlock(3, filters[k], filters[k - 1], stride=1, upsample_kernel_size=strides[k], **options)
            for k in range(config.levels - 1, 0, -1)
        )
        self.lateral = nn.ModuleList(nn.Conv3d(n, config.width, 1) for n in filters[1:])

    def forward(self, images: Tensor) -> list[Tensor]:
        """Return maps of each level, finest first."""
        skips = []
        for block in self.down:
            images = block(images)
            skips.append(images)
        maps = [skips[-1]]
        for block, skip in zip(self.up, reversed(skips[:-1]), strict=True):
            maps.append(block(maps[-1], skip))
        maps.reverse()
        return [maps[0], *(lateral(one) for lateral, one in zip(self.lateral, maps[1:], strict=True))]


class _Proposer(nn.Module):
    """From the maps of the levels that have anchors to a logit and six changes of each anchor."""

    def __init__(self, width: int, anchored: Mapping[int, Sequence[Extent]]) -> None:
        super().__init__()
        self.shared = nn.Sequential(
            nn.Conv3d(width, width, 3, padding=1), nn.GroupNorm(8, width), nn.LeakyReLU(0.01)
        )
        self.decide = nn.ModuleList(nn.Conv3d(width, 7 * len(shapes), 1) for shapes in anchored.values())
        for layer in self.decide:
            nn.init.normal_(layer.weight, std=0.01)  # type: ignore[arg-type]
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        """Return ``(B, 7 A, d, h, w)`` of each level with A anchors."""
        return [decide(self.shared(one)) for one, decide in zip(maps, self.decide, strict=True)]


class _BoxBranch(nn.Module):
    """From a region's features to a class, 0 for none, and six changes of its box."""

    def __init__(self, inputs: int, features: int, classes: int) -> None:
        super().__init__()
        self.hidden = nn.Sequential(
            nn.Linear(inputs, features), nn.ReLU(), nn.Linear(features, features), nn.ReLU()
        )
        self.classify, self.move = nn.Linear(features, classes + 1), nn.Linear(features, 6)
        nn.init.normal_(self.move.weight, std=0.001)

    def forward(self, pooled: Tensor) -> tuple[Tensor, Tensor]:
        """Return ``(R, K + 1)`` logits and ``(R, 6)`` changes of ``(R, C, n, n, n)``."""
        hidden = self.hidden(pooled.flatten(1))
        return self.classify(hidden), self.move(hidden)


class _MaskBranch(nn.Module):
    """From a region's coarse and fine features to a mask of each class, as fine as the latter."""

    def __init__(self, inputs: int, fine: int, channels: int, classes: int) -> None:
        super().__init__()
        self.coarse = nn.Sequential(_layer(inputs, channels), _layer(channels, channels))
        self.upscale = nn.ConvTranspose3d(channels, 8, 2, 2)
        self.fine = nn.Conv3d(fine, 8, 1)
        self.decide = nn.Sequential(_layer(16, 16), nn.Conv3d(16, classes, 1))

    def forward(self, coarse: Tensor, fine: Tensor) -> Tensor:
        """Return ``(R, K, 2 n, 2 n, 2 n)`` logits of ``(R, C, n, n, n)`` and ``(R, F, 2 n, 2 n, 2 n)``."""
        logits: Tensor = self.decide(torch.cat([self.upscale(self.coarse(coarse)), self.fine(fine)], 1))
        return logits


def _layer(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv3d(inputs, outputs, 3, padding=1), nn.GroupNorm(8, outputs), nn.LeakyReLU(0.01)
    )

"""Mask R-CNN (He et al., ICCV 2017) on torchvision's parts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field, PositiveFloat
from torch import Tensor, nn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.roi_heads import RoIHeads, fastrcnn_loss
from torchvision.models.detection.rpn import RPNHead
from torchvision.ops import roi_align
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from clearmargin.errors import ConfigError
from clearmargin.networks.foreground import ForegroundHead, foreground_loss, foreground_probability
from clearmargin.networks.heatmap import PlaneHeatSettings, landmark_choices, plane_losses, plane_points
from clearmargin.networks.losses import MaskLossSettings, mask_loss
from clearmargin.networks.network import Detections, PlaneNetwork, PointDetections, Targets, learning
from clearmargin.networks.peaks import heat_channels
from clearmargin.networks.planning import Choice, Facts, Shown, anchor_choices, mask_loss_choice
from clearmargin.networks.point_rend import (
    PointHead,
    in_image,
    refine,
    sample_at,
    uncertain_points,
)
from clearmargin.networks.pooling import RegionPool, Regions, TabledMaps
from clearmargin.networks.proposals import ProposalNetwork
from clearmargin.networks.pyramid import Pyramid, PyramidSettings, separable
from clearmargin.networks.rows import by_rows
from clearmargin.networks.suppression import soft_nms
from clearmargin.networks.threads import torch_threads

__all__ = ["MaskRCNN", "MaskRCNNConfig", "followed", "masks_within"]

_STRIDES = (4, 8, 16, 32)
_CANDIDATES = 1000  # boxes of an image that soft-NMS looks at
_GROWTH = 0.25  # of a region's extent, at a side that its mask reaches
_DOUBT = 0.1  # around one half: how surely it does


_LONG = 2.5  # an object's box side over its thickness, from which on boxes end short of it
_FEW_TOUCH = 0.25  # share of objects that touch: a mask that is followed joins them


class LandmarkSettings(PlaneHeatSettings):
    """Options of the landmarks' head."""

    weight: float = Field(0.5, gt=0, description="weight of its losses beside those of instances")


class MaskRCNNConfig(PyramidSettings):
    """Options of Mask R-CNN; the defaults train on two CPU cores."""

    network: Literal["mask_rcnn"] = "mask_rcnn"
    separable: bool = Field(
        True,
        description="depthwise and pointwise convolutions in place of dense 3 x 3 ones in the pyramid, the proposal "
        "head and the mask head: as good in as much time of training, and quicker",
    )
    anchor_sizes: tuple[PositiveFloat, ...] = Field((16, 32, 64, 128, 256), min_length=5, max_length=5)
    anchor_ratios: tuple[PositiveFloat, ...] = Field((0.5, 1.0, 2.0), min_length=1)
    rpn_proposals: int | None = Field(
        None,
        ge=1,
        description="proposals kept per level and image; null: 15 per instance of `detections`, from 100 to 500",
    )
    rpn_nms: float = Field(0.7, gt=0, le=1)
    box_features: int = Field(256, ge=16)
    box_samples: int = Field(128, ge=8, description="proposals per image that the box head learns from")
    mask_layers: int = Field(2, ge=1)
    mask_channels: int = Field(96, ge=16)
    mask_samples: int = Field(
        20, ge=1, description="positive proposals per image that the mask head learns from"
    )
    mask_looks: int = Field(
        0,
        ge=0,
        le=8,
        description="times that the region of a mask is widened to the sides that it reaches, and read again: for "
        "long objects, which boxes cut off; where objects touch it joins them",
    )
    mask_loss: MaskLossSettings = MaskLossSettings()
    point_steps: int = Field(
        2,
        ge=0,
        le=3,
        description="most doublings of a mask's 28 x 28 at inference; 0 leaves the point head out",
    )
    point_samples: int = Field(196, ge=16, description="points of a mask that the point head learns from")
    point_channels: int = Field(96, ge=16)
    box_nms: float = Field(0.5, gt=0, le=1, description="box IoU above which the lower score is dropped")
    soft_nms: float | None = Field(
        None,
        gt=0,
        description="sigma of soft-NMS, which lowers scores in place of box_nms: for crowds; about 0.5",
    )
    score_threshold: float = Field(0.05, ge=0, lt=1)
    detections: int = Field(100, ge=1, description="largest number of instances per image")
    landmarks: LandmarkSettings | None = Field(
        None, description="head for the card's landmarks, as that of heatmap; null: none"
    )

    @classmethod
    def choices(cls, facts: Facts, shown: Shown) -> Iterator[Choice]:
        """Yield the settings that fit the data."""
        yield from super().choices(facts, shown)
        yield from anchor_choices(facts, shown)
        length = float(np.median(facts.sides / np.maximum(facts.thickness, 1)))
        if length >= _LONG and facts.touching < _FEW_TOUCH:
            reason = f"objects are {length:.1f} times as long as thick, which boxes cut off, and seldom touch"
            yield Choice("model.mask_looks", 3, reason)
        yield from mask_loss_choice(facts, shown, cls().mask_loss)
        if facts.most_points:
            yield from landmark_choices(facts, "model.landmarks")


class MaskRCNN(PlaneNetwork):
    """Region proposals, then a box, a class and a mask for each, refined at its edge (``point_rend``).

    Every region is pooled with half-pixel alignment (``aligned=True``), features and mask targets alike;
    torchvision's own model leaves it off, which shifts its masks by half a pixel.
    """

    parts: tuple[str, ...] = ("pyramid", "rpn.head", "box_branch", "mask_branch", "point_head", "foreground")
    map_layer = "foreground.decide"

    def __init__(
        self, config: MaskRCNNConfig, *, classes: int, channels: int, pretrained: bool, points: int = 0
    ) -> None:
        super().__init__()
        if classes < 1:
            raise ConfigError(f"mask_rcnn needs at least one class, not {classes}")
        if config.landmarks is not None and points < 1:
            raise ConfigError(
                "mask_rcnn: model.landmarks asks for landmarks, and the card has no points: leave it out"
            )
        self.points = points
        self.finds_landmarks = config.landmarks is not None
        self.config = config
        width = config.fpn_channels
        self.pyramid = Pyramid(config, channels=channels, pretrained=pretrained, extra=LastLevelMaxPool())
        anchors = AnchorGenerator(
            tuple((size,) for size in config.anchor_sizes), (config.anchor_ratios,) * len(config.anchor_sizes)
        )
        proposals = config.rpn_proposals or min(max(15 * config.detections, 100), 500)
        keep = {"training": 2 * proposals, "testing": proposals}
        self.rpn = ProposalNetwork(
            anchors,
            RPNHead(width, len(config.anchor_ratios)),
            fg_iou_thresh=0.7,
            bg_iou_thresh=0.3,
            batch_size_per_image=256,
            positive_fraction=0.5,
            pre_nms_top_n=keep,
            post_nms_top_n=keep,
            nms_thresh=config.rpn_nms,
        )
        self.box_branch = nn.Sequential(
            TwoMLPHead(width * 7 * 7, config.box_features),
            FastRCNNPredictor(config.box_features, classes + 1),
        )
        mask_head = MaskRCNNHeads(width, (config.mask_channels,) * config.mask_layers, 1)
        self.mask_branch = nn.Sequential(
            mask_head,
            _MaskPredictor(config.mask_channels, config.mask_channels, classes + 1),
        )
        if config.separable:
            self.rpn.head.conv[0][0] = separable(width)  # small first: proposals begin as anchors
            for layer in mask_head:
                layer[0] = separable(layer[0].in_channels, layer[0].out_channels, unit_gain=True)
        self.point_head = PointHead(width, config.point_channels, classes + 1) if config.point_steps else None
        # torchvision's proposal sampling and box decoding; its pooling and mask loss are replaced below
        self.roi_heads = RoIHeads(
            box_roi_pool=None,
            box_head=None,
            box_predictor=None,
            fg_iou_thresh=0.5,
            bg_iou_thresh=0.5,
            batch_size_per_image=config.box_samples,
            positive_fraction=0.5,
            bbox_reg_weights=None,
            score_thresh=config.score_threshold,
            # soft-NMS sees what hard suppression would drop
            nms_thresh=config.box_nms if config.soft_nms is None else 1.0,
            detections_per_img=config.detections if config.soft_nms is None else _CANDIDATES,
        )
        # last, so that what instances are made of starts as it would without it
        self.foreground = ForegroundHead(channels, (width,) * len(_STRIDES), classes)
        self.heat = (
            None
            if config.landmarks is None
            else ForegroundHead(channels, (width,) * len(_STRIDES), heat_channels(config.landmarks, points))
        )
        if self.heat is not None:
            self.parts = (*self.parts, "heat")
        self.pool = RegionPool(_STRIDES)
        self._threads: int | None = None
        self.eval()

    def beside_runtime(self) -> None:
        """Make ready for a CPU on which a runtime computes the parts, with threads of its own.

        What is left to torch is small, and torch's threads, which wait by spinning, would hold the cores of the
        runtime's.
        """
        self.pool.reader = TabledMaps
        self._threads = 1

    def losses(self, images: Tensor, targets: list[Targets]) -> dict[str, Tensor]:
        """Return ``objectness``, ``proposals``, ``classes``, ``boxes``, ``masks``, ``points`` and ``foreground``.

        Images without an instance teach the background; ``masks`` and ``points`` are then 0. With landmarks also the
        losses of `heat_losses`, weighted.
        """
        with learning(self.pyramid):
            features = self._features(images)
        references = [{"boxes": t.boxes, "labels": t.labels, "masks": t.masks} for t in targets]
        proposals, rpn = self._propose(images, features, references)
        proposals, matched, labels, regression = self.roi_heads.select_training_samples(proposals, references)
        regions = self._regions(features)
        logits, deltas = self.box_branch(regions(proposals, 7))
        classes, boxes = fastrcnn_loss(logits, deltas, labels, regression)
        return {
            "objectness": rpn["loss_objectness"],
            "proposals": rpn["loss_rpn_box_reg"],
            "classes": classes,
            "boxes": boxes,
            **self._mask_losses(features, regions, proposals, matched, labels, targets),
            "foreground": foreground_loss(self.foreground, images, self._levels(features), targets),
            **self._landmark_losses(images, features, targets),
        }

    def _landmark_losses(
        self, images: Tensor, features: dict[str, Tensor], targets: list[Targets]
    ) -> dict[str, Tensor]:
        settings = self.config.landmarks
        if self.heat is None or settings is None:
            return {}
        logits = self.heat(images, self._levels(features))
        losses = plane_losses(logits, targets, settings, self.points)
        return {name: settings.weight * loss for name, loss in losses.items()}

    def detect(self, images: Tensor, *, maps: bool = False) -> list[Detections]:
        """Return detections with masks of 28 x 28, doubled until a pixel has a sample of its own.

        They span their boxes, or with ``mask_looks`` regions that are wider on the sides that they reach.
        """
        with torch_threads(self._threads):
            return self._detect(images, maps=maps)

    def _detect(self, images: Tensor, *, maps: bool) -> list[Detections]:
        features = self._features(images)
        proposals, _ = self._propose(images, features, None)
        regions = self._regions(features)
        logits, deltas = self.box_branch(regions(proposals, 7))
        size = (int(images.shape[-2]), int(images.shape[-1]))
        per_image = self.roi_heads.postprocess_detections(logits, deltas, proposals, [size] * len(proposals))
        every = foreground_probability(self.foreground, images, self._levels(features)) if maps else None
        landmarks = self._landmarks(images, features)
        detections = []
        for i, one in enumerate(zip(*per_image, strict=True)):
            boxes, scores, labels = self._suppress(*one)
            place = _Place(image=i, images=len(proposals), size=size)
            within, coarse = self._follow(regions, boxes, labels, place)
            masks = self._masks(regions, place.alone(within), labels, coarse)
            detections.append(
                Detections(
                    boxes=boxes,
                    labels=labels,
                    scores=scores.clamp(0, 1),
                    masks=masks,
                    regions=within,
                    foreground=None if every is None else every[i],
                    landmarks=landmarks[i],
                )
            )
        return detections

    def _landmarks(self, images: Tensor, features: dict[str, Tensor]) -> Sequence[PointDetections | None]:
        if self.heat is None or self.config.landmarks is None:
            return [None] * len(images)
        return plane_points(self.heat(images, self._levels(features)), self.config.landmarks, self.points)

    def _suppress(self, boxes: Tensor, scores: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        if self.config.soft_nms is None:  # torchvision has done it
            return boxes, scores, labels
        kept, lowered = soft_nms(
            boxes, scores, labels, sigma=self.config.soft_nms, threshold=self.config.score_threshold
        )
        kept, lowered = kept[: self.config.detections], lowered[: self.config.detections]
        return boxes[kept], lowered, labels[kept]

    def _features(self, images: Tensor) -> dict[str, Tensor]:
        return {str(level): features for level, features in enumerate(self.pyramid(images))}

    def _propose(
        self, images: Tensor, features: dict[str, Tensor], targets: list[dict[str, Tensor]] | None
    ) -> tuple[list[Tensor], dict[str, Tensor]]:
        size = (int(images.shape[-2]), int(images.shape[-1]))
        # Inside torchvision the mode decides how many proposals are kept and whether a loss is made.
        with nullcontext() if targets is None else learning(self.rpn):
            proposals, losses = self.rpn(ImageList(images, [size] * len(images)), features, targets)
        return list(proposals), losses

    def _levels(self, features: dict[str, Tensor]) -> list[Tensor]:
        return [features[str(level)] for level in range(len(_STRIDES))]

    def _regions(self, features: dict[str, Tensor]) -> Regions:
        """Return the features to pool regions from, each from the level that fits its size."""
        regions: Regions = self.pool(self._levels(features))
        return regions

    def _coarse(self, regions: Regions, boxes: list[Tensor]) -> Tensor:
        """Return coarse mask logits of the boxes, ``(R, K + 1, 28, 28)``."""
        return by_rows(self.mask_branch, regions(boxes, 14))

    def _follow(
        self, regions: Regions, boxes: Tensor, labels: Tensor, place: _Place
    ) -> tuple[Tensor, Tensor]:
        """Return the regions that one image's masks lie in, and the coarse logits there.

        A region is widened to the sides that its mask reaches, as long as it does and ``mask_looks`` allows.
        """
        if not len(labels):
            return boxes, boxes.new_zeros((0, 0, 0, 0))
        within = boxes
        coarse = self._coarse(regions, place.alone(within))
        rows = torch.arange(len(labels), device=labels.device)
        changed = rows
        for _ in range(self.config.mask_looks):
            own = coarse[changed, labels[changed]].sigmoid()
            grown = followed(within[changed], own, place.size)
            moved = (grown != within[changed]).any(1)
            changed, grown = changed[moved], grown[moved]
            if not len(changed):
                break
            within = within.index_copy(0, changed, grown)
            coarse = coarse.index_copy(0, changed, self._coarse(regions, place.alone(grown)))
        return within, coarse

    def _masks(
        self, regions: Regions, own: list[Tensor], labels: Tensor, coarse: Tensor
    ) -> tuple[Tensor, ...]:
        """Return one image's mask probabilities, each of its own class; larger regions have finer ones."""
        if len(labels) == 0:
            return ()
        boxes = torch.cat(own)
        if self.point_head is None:
            return tuple(coarse[torch.arange(len(labels)), labels].sigmoid().float())
        # A mask finer than the network's pixels would cost time and show nothing.
        sides = (boxes[:, 2:] - boxes[:, :2]).amax(1) / coarse.shape[-1]
        steps = sides.log2().ceil().clamp(0, self.config.point_steps)
        masks: dict[int, Tensor] = {}
        for step in range(self.config.point_steps + 1):
            rows = torch.where(steps == step)[0]
            fine = partial(regions.at, [b[rows] if len(b) else b for b in own])
            refined = refine(self.point_head, fine, labels[rows], coarse[rows], step)
            masks |= zip(rows.tolist(), refined.sigmoid().float(), strict=True)
        return tuple(masks[i] for i in range(len(labels)))

    def _mask_losses(
        self,
        features: dict[str, Tensor],
        regions: Regions,
        proposals: list[Tensor],
        matched: list[Tensor],
        labels: list[Tensor],
        targets: list[Targets],
    ) -> dict[str, Tensor]:
        boxes, classes, picked = [], [], []
        for proposal, match, label in zip(proposals, matched, labels, strict=True):
            positive = torch.where(label > 0)[0]
            positive = positive[torch.randperm(len(positive))[: self.config.mask_samples].to(positive.device)]
            boxes.append(proposal[positive])
            classes.append(label[positive])
            picked.append(match[positive])
        class_of_region = torch.cat(classes)
        if len(class_of_region) == 0:
            nothing = features["0"].sum() * 0
            return {"masks": nothing} | ({} if self.point_head is None else {"points": nothing})
        references = [
            t.masks[own, None].to(features["0"].dtype) for t, own in zip(targets, picked, strict=True)
        ]
        region_masks = torch.cat(
            [masks_within(masks, own) for masks, own in zip(references, boxes, strict=True)]
        )
        coarse = self._coarse(regions, boxes)
        logits = coarse[torch.arange(len(class_of_region), device=class_of_region.device), class_of_region]
        losses = {"masks": mask_loss(logits, region_masks, self.config.mask_loss)}
        if self.point_head is not None:
            points = uncertain_points(logits.detach(), self.config.point_samples)
            size = (references[0].shape[3], references[0].shape[2])
            on_image = in_image(points, torch.cat(boxes), size)
            truth = sample_at(torch.cat(references), on_image)[:, 0]
            decided = self.point_head(regions.at(boxes, points), sample_at(coarse, points).transpose(1, 2))[
                torch.arange(len(class_of_region), device=class_of_region.device), :, class_of_region
            ]
            losses["points"] = F.binary_cross_entropy_with_logits(decided, truth)
        return losses


class _MaskPredictor(MaskRCNNPredictor):  # type: ignore[misc]
    """torchvision's last layers of masks, with their weights: twice the size, then a pixel's logits from its features.

    A transposed convolution of 2 x 2 in steps of 2 mixes no neighbours, so that it is four plain ones, and what
    follows it too: the small logits are put in their places instead of the wide features.
    """

    def forward(self, pooled: Tensor) -> Tensor:
        """Return ``(R, K, 2 h, 2 w)`` logits of ``(R, C, h, w)``."""
        double, decide = self.conv5_mask, self.mask_fcn_logits
        corners = double.weight.permute(2, 3, 1, 0).flatten(0, 2)[..., None, None]
        features = F.conv2d(pooled, corners, double.bias.repeat(4)).relu_()
        logits = F.conv2d(features, decide.weight.repeat(4, 1, 1, 1), decide.bias.repeat(4), groups=4)
        regions, _, height, width = logits.shape
        by_class = logits.view(regions, 4, -1, height, width).transpose(1, 2)
        return F.pixel_shuffle(by_class.flatten(1, 2), 2)


@dataclass(frozen=True, kw_only=True)
class _Place:
    """One image of a batch: its position, the number of images, and their height and width in network pixels."""

    image: int
    images: int
    size: tuple[int, int]

    def alone(self, boxes: Tensor) -> list[Tensor]:
        """Return the image's boxes as of a batch in which no other image has any."""
        return [boxes if k == self.image else boxes[:0] for k in range(self.images)]


def followed(regions: Tensor, masks: Tensor, size: tuple[int, int]) -> Tensor:
    """Return regions that are wider on the sides that their masks reach, as far as the image goes.

    A side is reached as far as the most probable pixel of the mask's outermost row or column says: not at all up to
    0.4, wholly from 0.6 on, when the region grows by a quarter of its extent there. Between them it grows by a share:
    which of two that are nearly alike is reached is a matter of rounding, and must not show.

    Args:
        regions: ``(R, 4)``, ``x1 y1 x2 y2``.
        masks: ``(R, h, w)`` probabilities; they span the regions edge to edge.
        size: The image's height and width, in the regions' unit.
    """
    edges = torch.stack(
        [
            masks[:, :, 0].amax(1),
            masks[:, 0].amax(1),
            masks[:, :, -1].amax(1),
            masks[:, -1].amax(1),
        ],
        dim=1,
    )
    reached = ((edges - (0.5 - _DOUBT)) / (2 * _DOUBT)).clamp(0, 1)
    extents = (regions[:, 2:] - regions[:, :2]).repeat(1, 2)
    outwards = regions.new_tensor([-1, -1, 1, 1])
    most = regions.new_tensor([size[1], size[0], size[1], size[0]])
    grown = regions + outwards * _GROWTH * reached.to(regions.dtype) * extents
    return torch.minimum(grown.clamp(min=0), most)


def masks_within(masks: Tensor, boxes: Tensor) -> Tensor:
    """Return each of ``masks`` (``(R, 1, H, W)``) as 28 x 28 of its box, ``(R, 28, 28)``."""
    rois = torch.cat(
        [torch.arange(len(boxes), device=boxes.device, dtype=boxes.dtype)[:, None], boxes], dim=1
    )
    targets: Tensor = roi_align(masks, rois, (28, 28), 1.0, -1, aligned=True)
    return targets[:, 0]

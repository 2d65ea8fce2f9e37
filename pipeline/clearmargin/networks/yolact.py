"""YOLACT (Bolya et al., ICCV 2019): prototypes of the whole image, and coefficients for each box."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field, PositiveFloat
from torch import Tensor, nn
from torchvision.models.detection._utils import BoxCoder, Matcher
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.ops import box_iou, clip_boxes_to_image
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

from clearmargin.errors import ConfigError
from clearmargin.networks.foreground import ForegroundHead, foreground_loss, foreground_probability
from clearmargin.networks.losses import MaskLossSettings, mask_loss
from clearmargin.networks.network import Detections, PlaneNetwork, Targets, learning
from clearmargin.networks.planning import Choice, Facts, Shown, anchor_choices, mask_loss_choice, thin
from clearmargin.networks.pyramid import Pyramid, PyramidSettings
from clearmargin.networks.suppression import fast_nms

__all__ = ["YOLACT", "Protonet", "YOLACTConfig"]

_STRIDES = (8, 16, 32, 64, 128)
_STRIDE = 4  # of the prototypes
_IGNORED = -1


class YOLACTConfig(PyramidSettings):
    """Options of YOLACT; the defaults train on two CPU cores.

    The paper's, on ResNet and images of 550 pixels: ``fpn_channels``, ``head_channels`` and
    ``prototype_channels`` 256, ``prototypes`` 32, ``prototype_layers`` 3, ``anchor_sizes`` 24 to 384.
    """

    network: Literal["yolact"] = "yolact"
    anchor_sizes: tuple[PositiveFloat, ...] = Field(
        (16, 32, 64, 128, 256),
        min_length=5,
        max_length=5,
        description="anchor sizes in network pixels, for strides 8 to 128",
    )
    anchor_ratios: tuple[PositiveFloat, ...] = Field(
        (0.5, 1.0, 2.0), min_length=1, description="height over width"
    )
    head_channels: int = Field(96, ge=16)
    prototypes: int = Field(16, ge=1)
    prototype_channels: int = Field(64, ge=16)
    prototype_layers: int = Field(2, ge=1, description="convolutions before the upsampling to stride 4")
    negative_ratio: int = Field(3, ge=1, description="hardest background anchors per anchor with an object")
    least_negatives: int = Field(
        32, ge=1, description="background anchors per image that the classes learn from, objects or none"
    )
    mask_samples: int = Field(
        100, ge=1, description="anchors with an object that masks are learnt from, per image"
    )
    box_weight: float = Field(1.5, ge=0)
    mask_weight: float = Field(6.125, ge=0)
    semantic_weight: float = Field(1.0, ge=0)
    mask_loss: MaskLossSettings = MaskLossSettings()
    box_nms: float = Field(0.5, gt=0, le=1, description="box IoU above which the lower score is dropped")
    candidates: int = Field(1000, ge=1, description="best boxes of an image that Fast NMS looks at")
    score_threshold: float = Field(0.05, ge=0, lt=1)
    detections: int = Field(100, ge=1, description="most instances of one image")

    @classmethod
    def objection(cls, facts: Facts, scale: float) -> str | None:
        """Return why the network cannot work on such data; None if it can."""
        return thin(facts, scale)

    @classmethod
    def choices(cls, facts: Facts, shown: Shown) -> Iterator[Choice]:
        """Yield the settings that fit the data."""
        yield from super().choices(facts, shown)
        yield from anchor_choices(facts, shown)
        yield from mask_loss_choice(facts, shown, cls().mask_loss)


class YOLACT(PlaneNetwork):
    """Each anchor gets a class, a box and the weights with which the image's prototypes add up to its mask.

    Both extents of an image are multiples of 32, so that every map spans it edge to edge.
    """

    parts = ("pyramid", "protonet", "head", "foreground")
    map_layer = "foreground.decide"

    def __init__(self, config: YOLACTConfig, *, classes: int, channels: int, pretrained: bool) -> None:
        super().__init__()
        if classes < 1:
            raise ConfigError(f"yolact needs at least one class, not {classes}")
        self.config, self.classes = config, classes
        width = config.fpn_channels
        self.pyramid = Pyramid(
            config, channels=channels, pretrained=pretrained, finest=8, extra=LastLevelP6P7(width, width)
        )
        self.protonet = Protonet(
            width, config.prototype_channels, config.prototype_layers, outputs=config.prototypes
        )
        self.head = _Head(config, classes)
        self.semantic = nn.Conv2d(width, classes, 1)  # shapes the features in training, and is not used after
        self.anchors = AnchorGenerator(
            tuple((size,) for size in config.anchor_sizes), (config.anchor_ratios,) * len(_STRIDES)
        )
        self.coder = BoxCoder((10.0, 10.0, 5.0, 5.0))  # SSD's variances 0.1 and 0.2
        # last, so that what instances are made of starts as it would without it
        self.foreground = ForegroundHead(channels, (config.prototypes, width, width, width), classes)
        self.matcher = Matcher(0.5, 0.4, allow_low_quality_matches=True)
        self.eval()

    def losses(self, images: Tensor, targets: list[Targets]) -> dict[str, Tensor]:
        """Return the losses ``classes``, ``boxes``, ``masks``, ``semantics`` and ``foreground``, weighted.

        Images without an instance teach the background; ``boxes`` and ``masks`` are then 0.
        """
        with learning(self.pyramid):
            features = self._features(images)
        logits, deltas, coefficients = self.head(features)
        anchors = self._anchors(features)
        matched = torch.stack([self._match(anchors, target) for target in targets])
        prototypes = self.protonet(features[0])
        return {
            "classes": self._class_loss(logits, matched, targets),
            "boxes": self.config.box_weight * self._box_loss(deltas, anchors, matched, targets),
            "masks": self.config.mask_weight * self._mask_loss(prototypes, coefficients, matched, targets),
            "semantics": self.config.semantic_weight * self._semantic_loss(features[0], targets),
            "foreground": foreground_loss(self.foreground, images, [prototypes, *features[:3]], targets),
        }

    def detect(self, images: Tensor, *, maps: bool = False) -> list[Detections]:
        """Return detections with masks at stride 4, cut at their boxes."""
        features = self._features(images)
        outputs = self.head(features)
        anchors, prototypes = self._anchors(features), self.protonet(features[0])
        size = (int(images.shape[-2]), int(images.shape[-1]))
        detections = [
            self._detect(logits, deltas, coefficients, own, anchors, size)
            for logits, deltas, coefficients, own in zip(*outputs, prototypes, strict=True)
        ]
        if not maps:
            return detections
        foreground = foreground_probability(self.foreground, images, [prototypes, *features[:3]])
        return [replace(one, foreground=own) for one, own in zip(detections, foreground, strict=True)]

    def _features(self, images: Tensor) -> list[Tensor]:
        if images.shape[-2] % 32 or images.shape[-1] % 32:
            raise ValueError(f"images of {tuple(images.shape[-2:])}: both extents must be multiples of 32")
        features: list[Tensor] = self.pyramid(images)
        return features

    def _anchors(self, features: list[Tensor]) -> Tensor:
        """Return the boxes ``(A, 4)`` that the head's outputs belong to, centred in the maps' pixels."""
        self.anchors.set_cell_anchors(torch.float32, features[0].device)
        grids = [list(f.shape[-2:]) for f in features]
        levels = self.anchors.grid_anchors(grids, [[stride, stride] for stride in _STRIDES])
        # torchvision centres them on the pixels' corners
        return torch.cat([boxes + stride / 2 for boxes, stride in zip(levels, _STRIDES, strict=True)])

    def _match(self, anchors: Tensor, target: Targets) -> Tensor:
        """Return the instance of each anchor, ``(A,)``: -1 for background, -2 for neither."""
        if len(target.boxes) == 0:
            return torch.full((len(anchors),), -1, dtype=torch.int64, device=anchors.device)
        matched: Tensor = self.matcher(box_iou(target.boxes, anchors))
        return matched

    def _class_loss(self, logits: Tensor, matched: Tensor, targets: list[Targets]) -> Tensor:
        """Return softmax cross-entropy of the anchors with an object and the hardest without one.

        Source: online hard example mining, 3 : 1, as Liu et al., "SSD", ECCV 2016.
        """
        labels = torch.stack([_labels(match, target) for match, target in zip(matched, targets, strict=True)])
        costs = F.cross_entropy(
            logits.flatten(0, 1), labels.flatten(), reduction="none", ignore_index=_IGNORED
        )
        costs = costs.view(labels.shape)
        positive, negative = labels > 0, labels == 0
        negative_count = (self.config.negative_ratio * positive.sum(dim=1)).clamp(
            min=self.config.least_negatives
        )
        rank = costs.detach().masked_fill(~negative, -1.0).argsort(dim=1, descending=True).argsort(dim=1)
        sample = positive | (negative & (rank < negative_count[:, None]))
        # The paper divides by the objects' anchors, of which there may be none: so many there are at 3 : 1.
        share = sample.sum().clamp(min=1) / (1 + self.config.negative_ratio)
        return costs[sample].sum() / share

    def _box_loss(self, deltas: Tensor, anchors: Tensor, matched: Tensor, targets: list[Targets]) -> Tensor:
        predictions, references = [], []
        for delta, match, target in zip(deltas, matched, targets, strict=True):
            positive = match >= 0
            predictions.append(delta[positive])
            references.append(self.coder.encode_single(target.boxes[match[positive]], anchors[positive]))
        every = torch.cat(predictions)
        return F.smooth_l1_loss(every, torch.cat(references), reduction="sum") / max(len(every), 1)

    def _mask_loss(
        self, prototypes: Tensor, coefficients: Tensor, matched: Tensor, targets: list[Targets]
    ) -> Tensor:
        """Return the mean over anchors of the mask loss inside the reference's box, divided by its area.

        The box is taken one prototype pixel larger than the paper's: a predicted box that is a little large
        lets those pixels in, so they are taught too.
        """
        total, count = (coefficients.sum() + prototypes.sum()) * 0, 0
        for maps, weights, match, target in zip(prototypes, coefficients, matched, targets, strict=True):
            positive = torch.where(match >= 0)[0]
            order = torch.randperm(len(positive))[: self.config.mask_samples].to(positive.device)
            positive = positive[order]
            for instance in sorted(set(match[positive].tolist())):
                instance_weights = weights[positive[match[positive] == instance]]
                rows, columns = _window(target.boxes[instance], maps.shape[-2:], margin=1)
                logits = torch.einsum("nk,kyx->nyx", instance_weights, maps[:, rows, columns])
                coverage = _coverage(target.masks[instance : instance + 1], rows, columns).expand_as(logits)
                total = total + len(instance_weights) * mask_loss(logits, coverage, self.config.mask_loss)
                count += len(instance_weights)
        return total / max(count, 1)

    def _semantic_loss(self, finest: Tensor, targets: list[Targets]) -> Tensor:
        """Return the cross-entropy of each class's presence in each pixel of the finest map."""
        logits = self.semantic(finest).float()
        presence = logits.new_zeros(logits.shape)
        for image, target in enumerate(targets):
            for label in set(target.labels.tolist()):
                union = target.masks[target.labels == label].amax(dim=0)
                presence[image, label - 1] = F.avg_pool2d(union[None].float(), _STRIDES[0])[0]
        return F.binary_cross_entropy_with_logits(logits, presence)

    def _detect(
        self,
        logits: Tensor,
        deltas: Tensor,
        coefficients: Tensor,
        prototypes: Tensor,
        anchors: Tensor,
        size: tuple[int, int],
    ) -> Detections:
        every = logits.softmax(dim=-1)[:, 1:]
        places, labels = torch.where(every > self.config.score_threshold)
        scores, best = every[places, labels].sort(descending=True, stable=True)
        best = best[: self.config.candidates]
        places, labels, scores = places[best], labels[best] + 1, scores[: self.config.candidates]
        boxes = clip_boxes_to_image(self.coder.decode_single(deltas[places], anchors[places]), size)
        whole = ((boxes[:, 2:] - boxes[:, :2]) >= 1).all(dim=1)
        boxes, places, labels, scores = boxes[whole], places[whole], labels[whole], scores[whole]
        kept = fast_nms(boxes, scores, labels, threshold=self.config.box_nms)[: self.config.detections]
        masks, regions = _masks(prototypes, coefficients[places[kept]], boxes[kept])
        return Detections(
            boxes=boxes[kept], labels=labels[kept], scores=scores[kept], masks=masks, regions=regions
        )


class Protonet(nn.Module):
    """From the finest map of the pyramid, at stride 8, to prototypes at stride 4, each at least 0."""

    def __init__(self, inputs: int, width: int, layers: int, *, outputs: int) -> None:
        super().__init__()
        self.before = nn.ModuleList(
            nn.Conv2d(inputs if layer == 0 else width, width, 3, padding=1) for layer in range(layers)
        )
        self.after = nn.Conv2d(width, width, 3, padding=1)
        self.prototypes = nn.Conv2d(width, outputs, 1)

    def forward(self, finest: Tensor) -> Tensor:
        """Return ``(B, k, 2 h, 2 w)`` float32 prototypes of ``(B, C, h, w)``."""
        maps = finest
        for layer in self.before:
            maps = F.relu(layer(maps))
        # half-pixel centres: each pixel becomes four that cover the same square
        maps = F.interpolate(maps, scale_factor=2, mode="bilinear", align_corners=False)
        return F.relu(self.prototypes(F.relu(self.after(maps)))).float()


class _Head(nn.Module):
    """One convolution that all branches share, and one for each; the same weights for all levels."""

    def __init__(self, config: YOLACTConfig, classes: int) -> None:
        super().__init__()
        each, width = len(config.anchor_ratios), config.head_channels
        self.shared = nn.Conv2d(config.fpn_channels, width, 3, padding=1)
        self.classes = nn.Conv2d(width, each * (classes + 1), 3, padding=1)
        self.boxes = nn.Conv2d(width, each * 4, 3, padding=1)
        self.coefficients = nn.Conv2d(width, each * config.prototypes, 3, padding=1)
        self.outputs = (classes + 1, 4, config.prototypes)

    def forward(self, features: list[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Return class logits ``(B, A, K + 1)``, box codes ``(B, A, 4)``, coefficients ``(B, A, k)`` in [-1, 1]."""
        shared = [F.relu(self.shared(level)) for level in features]
        branches = (self.classes, self.boxes, self.coefficients)
        logits, deltas, coefficients = (
            torch.cat([_by_anchor(branch(level), outputs) for level in shared], dim=1)
            for branch, outputs in zip(branches, self.outputs, strict=True)
        )
        return logits, deltas, coefficients.tanh()


def _by_anchor(maps: Tensor, outputs: int) -> Tensor:
    """Return ``(B, h * w * anchors, outputs)`` float32 of ``(B, anchors * outputs, h, w)``, in the anchors' order."""
    return maps.permute(0, 2, 3, 1).reshape(len(maps), -1, outputs).float()


def _labels(matched: Tensor, target: Targets) -> Tensor:
    """Return each anchor's label: 0 for background, -1 if it is left out."""
    labels = torch.where(matched == Matcher.BELOW_LOW_THRESHOLD, 0, _IGNORED)
    positive = matched >= 0
    labels[positive] = target.labels[matched[positive]]
    return labels


def _window(box: Tensor, shape: torch.Size, *, margin: int) -> tuple[slice, slice]:
    """Return the prototypes' rows and columns that a box touches, at least one of each, and ``margin`` more."""
    x1, y1, x2, y2 = (float(v) / _STRIDE for v in box)
    slices = []
    for low, high, extent in ((y1, y2, shape[0]), (x1, x2, shape[1])):
        first = min(max(math.floor(low) - margin, 0), extent - 1)
        slices.append(slice(first, min(max(math.ceil(high) + margin, first + 1), extent)))
    return slices[0], slices[1]


def _coverage(masks: Tensor, rows: slice, columns: slice) -> Tensor:
    """Return how much of each prototype pixel of a window the masks cover, in [0, 1]."""
    y, x = (slice(s.start * _STRIDE, s.stop * _STRIDE) for s in (rows, columns))
    return F.avg_pool2d(masks[:, y, x].float(), _STRIDE)


def _masks(prototypes: Tensor, coefficients: Tensor, boxes: Tensor) -> tuple[tuple[Tensor, ...], Tensor]:
    """Return each detection's mask inside its box, and the part of the image that it spans.

    The box is rounded outward to whole prototype pixels: inside the pixel that the box's edge runs through, the
    mask draws the border, not the box.
    """
    masks, regions = [], []
    for weights, box in zip(coefficients, boxes, strict=True):
        rows, columns = _window(box, prototypes.shape[-2:], margin=0)
        masks.append(torch.einsum("k,kyx->yx", weights, prototypes[:, rows, columns]).sigmoid())
        regions.append([columns.start, rows.start, columns.stop, rows.stop])
    spans = torch.tensor(regions, dtype=torch.float32, device=boxes.device).reshape(-1, 4) * _STRIDE
    return tuple(masks), spans

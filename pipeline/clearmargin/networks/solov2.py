"""SOLOv2 (Wang et al., NeurIPS 2020): each grid cell says what is centred in it, and how to find its mask."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn
from torchvision.ops import masks_to_boxes, sigmoid_focal_loss
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from clearmargin.errors import ConfigError
from clearmargin.networks.crops import crop_masks
from clearmargin.networks.foreground import strongest
from clearmargin.networks.losses import MaskLossSettings, mask_loss
from clearmargin.networks.network import Detections, PlaneNetwork, Targets, learning
from clearmargin.networks.planning import Choice, Facts, Shown, mask_loss_choice, sides_across, thin
from clearmargin.networks.pyramid import Pyramid, PyramidSettings
from clearmargin.networks.suppression import matrix_nms

__all__ = ["MaskBranch", "SOLOv2", "SOLOv2Config", "assign_cells", "with_coordinates"]

_STRIDE = 4  # of the masks
_AT_ONCE = 16  # whole masks drawn at a time: 300 of them on a large image are gigabytes
_PRIOR = 0.01  # probability of a class in a cell before anything is learnt (Lin et al., ICCV 2017)


class SOLOv2Config(PyramidSettings):
    """Options of SOLOv2; the defaults train on two CPU cores.

    The paper's, on ResNet and images whose shorter side is 800: ``fpn_channels`` 256, ``head_channels`` 512,
    ``head_layers`` 4 (2 in SOLOv2-Light), ``branch_channels`` 128, ``mask_channels`` 256, ``candidates`` 500,
    ``grid_extent`` null, ``scale_ranges`` up to 96, 48-192, 96-384, 192-768 and from 384.
    """

    network: Literal["solov2"] = "solov2"
    grids: tuple[int, ...] = Field(
        (40, 36, 24, 16, 12), min_length=5, max_length=5, description="cells along each axis, strides 4 to 64"
    )
    grid_extent: int | None = Field(
        256,
        ge=32,
        description="network pixels that grids are meant for: a larger image has more cells, of the same size; "
        "null: grids, whatever the image",
    )
    scale_ranges: tuple[tuple[float, float], ...] = Field(
        ((0, 32), (16, 64), (32, 128), (64, 256), (128, 100_000)),
        min_length=5,
        max_length=5,
        description="square roots of box areas, network pixels, that each level learns",
    )
    centre: float = Field(
        0.2, gt=0, le=1, description="extent of the region whose cells learn an object, relative to its box"
    )
    head_channels: int = Field(96, ge=16, multiple_of=16)
    head_layers: int = Field(2, ge=1)
    branch_channels: int = Field(64, ge=16, multiple_of=16, description="width of the mask branch")
    mask_channels: int = Field(
        64, ge=16, multiple_of=16, description="mask features, and weights of a kernel"
    )
    mask_samples: int = Field(
        200, ge=1, description="cells with an object that masks are learnt from, per image"
    )
    mask_weight: float = Field(3.0, ge=0)
    mask_loss: MaskLossSettings = MaskLossSettings(cross_entropy=0.0, dice=1.0)
    peak_window: int = Field(
        2,
        ge=1,
        le=3,
        description="cells per side among which only the strongest of a class counts; 1 keeps all",
    )
    nms_sigma: float = Field(0.5, gt=0, description="width of Matrix NMS's decay; smaller decays more")
    candidates: int = Field(300, ge=1, description="best cells of an image whose masks are drawn")
    score_threshold: float = Field(0.05, ge=0, lt=1)
    detections: int = Field(100, ge=1, description="most instances of one image")

    @classmethod
    def objection(cls, facts: Facts, scale: float) -> str | None:
        """Return why the network cannot work on such data; None if it can."""
        reasons = [thin(facts, scale)]
        if facts.nested >= 0.02:
            reasons.append(
                f"{100 * facts.nested:.0f} % of the objects lie in another one, and of two with one centre it finds one"
            )
        return "; ".join(reason for reason in reasons if reason) or None

    @classmethod
    def choices(cls, facts: Facts, shown: Shown) -> Iterator[Choice]:
        """Yield the settings that fit the data."""
        yield from super().choices(facts, shown)
        low, high, said = sides_across(facts, shown)
        edges = [float(4 * max(1, round(e / 4))) for e in np.geomspace(max(16.0, low), max(high, 8 * low), 4)]
        ranges = [[0.0, 2 * edges[0]], *([e, 4 * e] for e in edges[:3]), [edges[3], 100_000.0]]
        yield Choice("model.scale_ranges", ranges, said)
        yield from mask_loss_choice(facts, shown, cls().mask_loss)


class SOLOv2(PlaneNetwork):
    """A grid of cells at each level; the cell at an object's centre has its class and the weights of its mask.

    Both extents of an image are multiples of 32, so that every map spans it edge to edge.
    """

    parts = (
        "pyramid",
        "mask_branch",
        "head.class_tower",
        "head.kernel_tower",
        "head.classes",
        "head.kernels",
    )

    def __init__(self, config: SOLOv2Config, *, classes: int, channels: int, pretrained: bool) -> None:
        super().__init__()
        if classes < 1:
            raise ConfigError(f"solov2 needs at least one class, not {classes}")
        self.config, self.classes = config, classes
        self.pyramid = Pyramid(config, channels=channels, pretrained=pretrained, extra=LastLevelMaxPool())
        self.head = _Head(config, classes)
        self.mask_branch = MaskBranch(
            config.fpn_channels, config.branch_channels, outputs=config.mask_channels
        )
        self.eval()

    def losses(self, images: Tensor, targets: list[Targets]) -> dict[str, Tensor]:
        """Return the losses ``classes`` and ``masks``, weighted.

        Images without an instance teach the background; ``masks`` is then 0.
        """
        with learning(self.pyramid):
            features = self._features(images)
        size = _size(images)
        logits, kernels = self._cells(features, size)
        grids = self.grids(size)
        owners = torch.stack(
            [assign_cells(t, size, grids, self.config.scale_ranges, self.config.centre) for t in targets]
        )
        flat = torch.cat([level.flatten(2) for level in logits], dim=2).transpose(1, 2)
        return {
            "classes": self._class_loss(flat, owners, targets),
            "masks": self.config.mask_weight
            * self._mask_loss(self.mask_branch(features[:4]), kernels, owners, targets),
        }

    def detect(self, images: Tensor, *, maps: bool = False) -> list[Detections]:
        """Return detections with masks at stride 4, each cut to what it holds."""
        features = self._features(images)
        logits, kernels = self._cells(features, _size(images))
        scores = torch.cat(
            [peaks(level.sigmoid(), self.config.peak_window).flatten(2) for level in logits], dim=2
        ).transpose(1, 2)
        branch = self.mask_branch(features[:4])
        return [self._detect(*one, maps=maps) for one in zip(scores, kernels, branch, strict=True)]

    def grids(self, size: tuple[int, int]) -> list[tuple[int, int]]:
        """Return rows and columns of each level's grid on an image of ``size``."""
        extent = self.config.grid_extent
        if extent is None:
            return [(cells, cells) for cells in self.config.grids]
        rows, columns = ([max(1, round(n * cells / extent)) for cells in self.config.grids] for n in size)
        return list(zip(rows, columns, strict=True))

    def _features(self, images: Tensor) -> list[Tensor]:
        if images.shape[-2] % 32 or images.shape[-1] % 32:
            raise ValueError(f"images of {tuple(images.shape[-2:])}: both extents must be multiples of 32")
        features: list[Tensor] = self.pyramid(images)
        return features

    def _cells(self, features: list[Tensor], size: tuple[int, int]) -> tuple[list[Tensor], Tensor]:
        """Return each level's class logits ``(B, K, S, S)``, and all cells' kernels ``(B, cells, E)``."""
        levels = [self.head(level, grid) for level, grid in zip(features, self.grids(size), strict=True)]
        kernels = torch.cat([kernel.flatten(2) for _, kernel in levels], dim=2).transpose(1, 2)
        return [logits for logits, _ in levels], kernels

    def _class_loss(self, logits: Tensor, owners: Tensor, targets: list[Targets]) -> Tensor:
        reference = torch.zeros_like(logits)
        for image, target in enumerate(targets):
            cells = torch.where(owners[image] >= 0)[0]
            reference[image, cells, target.labels[owners[image, cells]] - 1] = 1
        cost: Tensor = sigmoid_focal_loss(logits, reference, alpha=0.25, gamma=2.0, reduction="sum")
        return cost / (owners >= 0).sum().clamp(min=1)

    def _mask_loss(self, maps: Tensor, kernels: Tensor, owners: Tensor, targets: list[Targets]) -> Tensor:
        """Return the mean over cells of the mask loss; a mask's target is how much of each pixel it covers."""
        total, count = kernels.sum() * 0, 0
        for features, kernel, owner, target in zip(maps, kernels, owners, targets, strict=True):
            cells = torch.where(owner >= 0)[0]
            cells = cells[torch.randperm(len(cells))[: self.config.mask_samples].to(cells.device)]
            logits = apply_kernels(kernel[cells], features)
            seen, which = owner[cells].unique(return_inverse=True)
            expected = (
                F.avg_pool2d(target.masks[seen].float(), _STRIDE)[which] if len(cells) else logits.detach()
            )
            total = total + len(cells) * mask_loss(logits, expected, self.config.mask_loss)
            count += len(cells)
        return total / max(count, 1)

    def _detect(self, scores: Tensor, kernels: Tensor, features: Tensor, *, maps: bool = False) -> Detections:
        cells, labels = torch.where(scores > self.config.score_threshold)
        confidences, best = scores[cells, labels].sort(descending=True, stable=True)
        best, confidences = best[: self.config.candidates], confidences[: self.config.candidates]
        cells, labels = cells[best], labels[best] + 1
        inside, maskness = _inside(kernels[cells], features)
        confidences = matrix_nms(inside, confidences * maskness, labels, sigma=self.config.nms_sigma)
        kept = confidences.argsort(descending=True, stable=True)
        kept = kept[(confidences > self.config.score_threshold)[kept] & inside.flatten(1).any(dim=1)[kept]]
        kept = kept[: self.config.detections]
        picked = kernels[cells[kept]]
        masks, regions = _crops(picked, features)
        return Detections(
            boxes=_boxes(inside[kept]),
            labels=labels[kept],
            scores=confidences[kept],
            masks=masks,
            regions=regions,
            foreground=self._foreground(picked, features, confidences[kept], labels[kept]) if maps else None,
        )

    def _foreground(self, kernels: Tensor, features: Tensor, scores: Tensor, labels: Tensor) -> Tensor:
        """Return each class's probability, ``(K, h, w)``: of whole masks, a few in memory at once."""
        probability = features.new_zeros((self.classes, *features.shape[1:]))
        parts = (torch.split(t, _AT_ONCE) for t in (kernels, scores, labels))
        for own, score, label in zip(*parts, strict=True):
            strongest(probability, apply_kernels(own, features).sigmoid(), score, label)
        return probability


class MaskBranch(nn.Module):
    """The pyramid's maps at strides 4 to 32 as one at stride 4; the coarsest is given its coordinates.

    Source: the semantic branch of Kirillov et al., "Panoptic feature pyramid networks", CVPR 2019.
    """

    def __init__(self, inputs: int, width: int, *, outputs: int) -> None:
        super().__init__()
        self.levels = nn.ModuleList([_layer(inputs, width)])
        for level in (1, 2, 3):
            first = inputs + 2 if level == 3 else inputs
            steps = [(_layer(width if step else first, width), _double()) for step in range(level)]
            self.levels.append(nn.Sequential(*(part for step in steps for part in step)))
        self.merge = _layer(width, outputs, size=1)

    def forward(self, features: list[Tensor]) -> Tensor:
        """Return ``(B, E, h, w)`` float32 of four maps, the first ``(B, C, h, w)``, each next half as large."""
        shown = [*features[:3], with_coordinates(features[3])]
        maps = [level(map_) for level, map_ in zip(self.levels, shown, strict=True)]
        merged: Tensor = self.merge(torch.stack(maps).sum(dim=0))
        return merged.float()


class _Head(nn.Module):
    """A tower of convolutions for the classes and one for the kernels; the same weights for all levels."""

    def __init__(self, config: SOLOv2Config, classes: int) -> None:
        super().__init__()
        width, layers = config.head_channels, range(config.head_layers)
        inputs = config.fpn_channels
        self.class_tower = nn.Sequential(*(_layer(width if i else inputs, width) for i in layers))
        self.kernel_tower = nn.Sequential(*(_layer(width if i else inputs + 2, width) for i in layers))
        self.classes = nn.Conv2d(width, classes, 3, padding=1)
        self.kernels = nn.Conv2d(width, config.mask_channels, 3, padding=1)
        for layer in (self.classes, self.kernels):
            nn.init.normal_(layer.weight, std=0.01)
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
        nn.init.constant_(self.classes.bias, -math.log((1 - _PRIOR) / _PRIOR))  # type: ignore[arg-type]

    def forward(self, level: Tensor, grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Return class logits ``(B, K, *grid)`` and kernels ``(B, E, *grid)``, float32, of one map."""
        cells = F.interpolate(level, grid, mode="bilinear", align_corners=False)
        logits = self.classes(self.class_tower(cells))
        kernels = self.kernels(self.kernel_tower(with_coordinates(cells)))
        return logits.float(), kernels.float()


def with_coordinates(maps: Tensor) -> Tensor:
    """Return ``(B, C + 2, h, w)``: the maps, then x and y of the pixels' centres, -1 to 1 from edge to edge.

    Source: Liu et al., "CoordConv", NeurIPS 2018.
    """
    count, _, rows, columns = maps.shape
    y, x = ((torch.arange(n, device=maps.device) * 2 + 1) / n - 1 for n in (rows, columns))
    both = torch.stack([x[None].expand(rows, -1), y[:, None].expand(-1, columns)]).to(maps.dtype)
    return torch.cat([maps, both[None].expand(count, -1, -1, -1)], dim=1)


def apply_kernels(kernels: Tensor, features: Tensor) -> Tensor:
    """Return mask logits ``(N, h, w)``: N kernels ``(N, E)`` as 1 x 1 convolutions of ``(E, h, w)``."""
    return torch.einsum("ne,eyx->nyx", kernels, features)


def _inside(kernels: Tensor, features: Tensor) -> tuple[Tensor, Tensor]:
    """Return the masks at one half, ``(N, h, w)`` bool, and their maskness ``(N,)``: how sure each is where it lies."""
    inside, maskness = (
        [features.new_zeros((0, *features.shape[1:]), dtype=torch.bool)],
        [features.new_zeros(0)],
    )
    for part in torch.split(kernels, _AT_ONCE):
        masks = apply_kernels(part, features).sigmoid()
        inside.append(masks > 0.5)
        area = inside[-1].sum(dim=(1, 2)).clamp(min=1)
        maskness.append((masks * inside[-1]).sum(dim=(1, 2)) / area)
    return torch.cat(inside), torch.cat(maskness)


def _crops(kernels: Tensor, features: Tensor) -> tuple[tuple[Tensor, ...], Tensor]:
    """Return the masks' crops and regions, as ``crop_masks`` does, a few whole masks in memory at once."""
    crops: list[Tensor] = []
    regions = [features.new_zeros((0, 4))]
    for part in torch.split(kernels, _AT_ONCE):
        cut, where = crop_masks(apply_kernels(part, features).sigmoid(), _STRIDE)
        crops += cut
        regions.append(where)
    return tuple(crops), torch.cat(regions)


def peaks(scores: Tensor, window: int) -> Tensor:
    """Return the scores ``(B, K, S, S)``, 0 where a neighbour has a higher one.

    The window of 2 looks to the left and above alone, which thins out less than one of 3.
    """
    highest = F.max_pool2d(scores, window, stride=1, padding=window // 2)
    return scores * (scores == highest[..., : scores.shape[-2], : scores.shape[-1]])


def assign_cells(
    target: Targets,
    size: tuple[int, int],
    grids: list[tuple[int, int]],
    scale_ranges: tuple[tuple[float, float], ...],
    centre: float,
) -> Tensor:
    """Return the instance that each cell learns, ``(cells,)`` int64, -1 for none; the levels one after another.

    An object belongs to the levels whose range holds the square root of its box's area. There, it owns the
    cells that meet a rectangle around its centre of mass, ``centre`` as large as its box: the cell with its
    centre at least. Where two objects claim a cell, the smaller has it, which is likely to own no other.
    """
    boxes = target.boxes.cpu()
    extents = (boxes[:, 2:] - boxes[:, :2]).tolist()
    centres = _centres(target.masks).tolist()
    largest_first = sorted(range(len(extents)), key=lambda i: -extents[i][0] * extents[i][1])
    levels = []
    for (rows, columns), (low, high) in zip(grids, scale_ranges, strict=True):
        owner = torch.full((rows, columns), -1, dtype=torch.int64)
        for i in largest_first:
            (width, height), (x, y) = extents[i], centres[i]
            if low <= math.sqrt(width * height) <= high:
                owner[
                    _cells(y, centre * height, rows / size[0], rows),
                    _cells(x, centre * width, columns / size[1], columns),
                ] = i
        levels.append(owner.flatten())
    return torch.cat(levels).to(target.boxes.device)


def _cells(middle: float, extent: float, per_pixel: float, count: int) -> slice:
    """Return the cells along an axis that meet ``extent`` pixels around ``middle``; one at least."""
    first = min(max(math.floor((middle - extent / 2) * per_pixel), 0), count - 1)
    return slice(first, max(math.ceil((middle + extent / 2) * per_pixel), first + 1))


def _centres(masks: Tensor) -> Tensor:
    """Return the centres of mass ``(N, 2)``, x and y; pixel k's own centre is k + 0.5."""
    centres = []
    for profile in (masks.sum(dim=1).double(), masks.sum(dim=2).double()):
        places = torch.arange(profile.shape[1], device=masks.device) + 0.5
        centres.append((profile * places).sum(dim=1) / profile.sum(dim=1))
    return torch.stack(centres, dim=1).cpu()


def _boxes(inside: Tensor) -> Tensor:
    """Return the boxes of masks ``(N, h, w)``, none of them empty, in network pixels."""
    boxes: Tensor = masks_to_boxes(inside)
    boxes[:, 2:] += 1
    return boxes * _STRIDE


def _layer(inputs: int, outputs: int, size: int = 3) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, size, padding=size // 2, bias=False),
        nn.GroupNorm(16, outputs),
        nn.ReLU(inplace=True),
    )


def _double() -> nn.Module:
    # half-pixel centres: each pixel becomes four that cover the same square
    return nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False)


def _size(images: Tensor) -> tuple[int, int]:
    return int(images.shape[-2]), int(images.shape[-1])

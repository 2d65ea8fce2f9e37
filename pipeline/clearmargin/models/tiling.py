"""Large images and volumes, looked at tile by tile; an object on a seam is one object.

Two parts belong to one object where the tiles that saw them agree: both tiles see the strip that they share, so an
object that crosses it shows the same cut there in both. Nothing is decided by nearness, so objects that touch at a
seam stay apart, and an object of any length is joined part by part.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from clearmargin.core import Mask
from clearmargin.metrics.matching import iou_matrix
from clearmargin.models.placing import Crop, place, place_view, threshold
from clearmargin.models.repeats import Suppression, first_looks
from clearmargin.models.tiled_points import join_points
from clearmargin.models.tiles import Tile, TileGrid, lay_tiles
from clearmargin.networks.network import Detections, PointDetections

__all__ = ["find_in_tiles"]

_AGREE = 0.5  # least IoU of two views of one cut


@dataclass(frozen=True, kw_only=True, eq=False)
class _Part:
    """One detection of one tile, its mask and region on the view."""

    tile: Tile
    mask: Mask
    label: int
    score: float
    probabilities: Tensor
    region: Tensor
    box: Tensor


def find_in_tiles(
    look: Callable[[tuple[int, ...], tuple[int, ...]], Detections],
    view: tuple[int, ...],
    tile: tuple[int, ...],
    overlap: tuple[int, ...],
    *,
    rule: Suppression,
) -> Detections:
    """Return what is found in a view that is looked at in tiles, in the view's pixels, best score first.

    Within a tile, repeats and parts of an object go by ``rule``. Parts of one label are joined where a connected piece
    of one, in the strip that two tiles share, has an IoU of at least 0.5 with a piece of the other, pieces paired so
    that the sum of their IoU is largest (Hungarian method). A joined mask is the mean of the tiles' probabilities, each
    weighted by the distance to its tile's cut edges; its score is the mean of the parts' scores, weighted by area, as
    for slices linked to a volume. A part that its tile cut, and that another tile sees whole and does not find, is left
    out. The foreground is the mean of the tiles', weighted by the same distance, where they give it. Landmarks are
    joined by `join_points`.

    Args:
        look: From the first pixel ``(y, x)`` and the size of a tile to its detections, in the tile's pixels; in space
            ``(z, y, x)``, and tiles come slice by slice.
        view: Extents of the view.
        tile: Extents of a tile.
        overlap: Least number of pixels that neighbours share on each axis; below the extents of a tile.
        rule: Which detections of a tile show what a better one shows.
    """
    if not all(0 < shared < extent for shared, extent in zip(overlap, tile, strict=True)):
        raise ValueError(f"tiles of {tile} cannot share {overlap} pixels")
    tiles = lay_tiles(view, tile, overlap)
    if len(tiles) == 1:
        return look(tiles[0].low, view)
    parts: list[_Part] = []
    blend: _Blend | None = None
    points: list[tuple[Tile, PointDetections]] = []
    beyond = 0
    for t in tiles:
        detections = look(t.low, t.size)
        beyond += detections.beyond
        parts += _parts(detections, t, view, rule)
        if detections.foreground is not None:
            blend = blend or _Blend(len(detections.foreground), view)
            blend.add(detections.foreground, t)
        if detections.landmarks is not None:
            points.append((t, detections.landmarks))
    objects = [[parts[i] for i in group] for group in _groups(parts)]
    grid = TileGrid(tiles)
    joined = _detections(
        [
            _join(members, view) if len(members) > 1 else members[0]
            for members in objects
            if not _is_refuted(members, grid, view)
        ],
        len(view),
    )
    return replace(
        joined,
        foreground=None if blend is None else blend.mean(),
        landmarks=join_points(points, view) if points else None,
        beyond=beyond,
    )


class _Blend:
    """The tiles' probabilities of each of a view's pixels as one, added up tile by tile."""

    def __init__(self, classes: int, view: tuple[int, ...]) -> None:
        self._view = view
        self._total = np.zeros((classes, *view), np.float32)
        self._weight = np.zeros(view, np.float32)

    def add(self, foreground: Tensor, tile: Tile) -> None:
        """Count a tile's, ``(K, *shape)``, most where it lies farthest from the edges that cut the view."""
        here = tuple(slice(a, b) for a, b in zip(tile.low, tile.high, strict=True))
        trust = tile.trust(here, self._view)
        self._weight[here] += trust
        for total, one in zip(self._total, foreground, strict=True):  # a class at a time, for memory
            total[here] += trust * place_view(one[None], tile.size, np.eye(len(tile.size) + 1), tile.size)[0]

    def mean(self) -> Tensor:
        """Return ``(K, *view)``."""
        self._total /= self._weight
        return torch.from_numpy(self._total)


def _parts(detections: Detections, tile: Tile, view: tuple[int, ...], rule: Suppression) -> list[_Part]:
    """Return a tile's detections on the view, without repeats."""
    shift = torch.tensor([*tile.low[::-1]] * 2, dtype=torch.float32)
    labels, scores = detections.labels.cpu().numpy(), detections.scores.float().cpu().numpy()
    masks = []
    for mask, region in zip(detections.masks, detections.regions, strict=True):
        crop, corner = place(mask, region, np.eye(len(view) + 1), tile.size)
        masks.append(threshold(crop, tuple(np.add(corner, tile.low).tolist()), view))
    # What no pixel is likely to hold still has its place in a map of probabilities.
    held = np.array([m.area > 0 for m in masks], bool)
    solid = np.flatnonzero(held)
    kept = solid[first_looks([masks[i] for i in solid], labels[solid], scores[solid], rule)]
    return [
        _Part(
            tile=tile,
            mask=masks[i],
            label=int(labels[i]),
            score=float(scores[i]),
            probabilities=detections.masks[int(i)].detach().float().cpu(),
            region=detections.regions[int(i)].float().cpu() + shift,
            box=detections.boxes[int(i)].float().cpu() + shift,
        )
        for i in (*kept, *np.flatnonzero(~held))
    ]


def _groups(parts: list[_Part]) -> list[list[int]]:
    """Return the positions of the parts of each object."""
    leader = list(range(len(parts)))

    def find(i: int) -> int:
        while leader[i] != i:
            leader[i] = leader[leader[i]]
            i = leader[i]
        return i

    by_tile: dict[Tile, list[int]] = {}
    for i, part in enumerate(parts):
        by_tile.setdefault(part.tile, []).append(i)
    tiles = list(by_tile)
    grid = TileGrid(tiles)
    for k, first in enumerate(tiles):
        for second in (tiles[j] for j in grid.after(k)):
            strip = first.shared(second)
            if strip is None:
                continue
            for a, b in _same(parts, by_tile[first], by_tile[second], strip):
                leader[find(a)] = find(b)
    groups: dict[int, list[int]] = {}
    for i in range(len(parts)):
        groups.setdefault(find(i), []).append(i)
    return list(groups.values())


def _same(
    parts: list[_Part], first: list[int], second: list[int], strip: tuple[slice, ...]
) -> Iterator[tuple[int, int]]:
    """Yield the pairs of parts, one of each tile, that show the same cut in the strip that the tiles share."""
    ours, theirs = (
        [(i, piece) for i in side for piece in _pieces(parts[i].mask, strip)] for side in (first, second)
    )
    labels = [np.array([parts[i].label for i, _ in side], np.int64) for side in (ours, theirs)]
    ious = iou_matrix([m for _, m in ours], [m for _, m in theirs], labels[0][:, None] == labels[1])
    for a, b in zip(*linear_sum_assignment(ious, maximize=True), strict=True):
        if ious[a, b] >= _AGREE:
            yield ours[a][0], theirs[b][0]


def _pieces(mask: Mask, strip: tuple[slice, ...]) -> list[Mask]:
    """Return the connected pieces of a mask within a strip.

    A ring that reaches into a tile twice is two parts there and one part in the next: each piece finds its own.
    """
    low = [max(a.start, b.start) for a, b in zip(mask.slices, strip, strict=True)]
    high = [min(a.stop, b.stop) for a, b in zip(mask.slices, strip, strict=True)]
    if any(a >= b for a, b in zip(low, high, strict=True)):
        return []
    numbered, count = ndimage.label(mask.within(tuple(slice(a, b) for a, b in zip(low, high, strict=True))))
    return [
        Mask.from_crop(
            numbered[box] == k + 1, tuple(a + b.start for a, b in zip(low, box, strict=True)), mask.shape
        )
        for k, box in zip(range(count), ndimage.find_objects(numbered), strict=True)
    ]


def _is_refuted(members: list[_Part], grid: TileGrid, view: tuple[int, ...]) -> bool:
    """Return whether each part of an object was cut by its tile while a tile without a part of it sees it whole."""
    own = {part.tile for part in members}

    def refuted(part: _Part) -> bool:
        box = part.mask.box
        if part.mask.area == 0 or not part.tile.is_cut(box, view):
            return False
        return any(t not in own and not t.is_cut(box, view) for t in grid.holding(box))

    return all(refuted(part) for part in members)


def _join(members: list[_Part], view: tuple[int, ...]) -> _Part:
    """Return one part for the parts of one object."""
    probabilities, corner = _mean(members, view)
    axes = len(view)
    boxes = torch.stack([m.box for m in members])
    areas = np.array([m.mask.area for m in members], np.float64)
    return replace(
        members[0],
        score=float(np.average([m.score for m in members], weights=areas)),
        probabilities=torch.from_numpy(probabilities),
        region=torch.tensor([*corner[::-1], *np.add(corner, probabilities.shape)[::-1]], dtype=torch.float32),
        box=torch.cat([boxes[:, :axes].amin(dim=0), boxes[:, axes:].amax(dim=0)]),
    )


def _mean(members: list[_Part], view: tuple[int, ...]) -> Crop:
    """Return the tiles' mean probability, weighted by their trust, as a crop of the view and its first pixel.

    A tile speaks for all of its pixels: where it saw the object but not here, it says 0.
    """
    placed = [(m.tile, *place(m.probabilities, m.region, np.eye(len(view) + 1), view)) for m in members]
    low = np.min([corner for _, _, corner in placed], axis=0)
    high = np.max([np.add(corner, crop.shape) for _, crop, corner in placed], axis=0)
    whole = Tile(low=tuple(low.tolist()), high=tuple(high.tolist()))
    total, weight = np.zeros(whole.size, np.float32), np.zeros(whole.size, np.float32)
    for tile in dict.fromkeys(m.tile for m in members):
        here = tile.shared(whole)
        if here is None:  # rounded away at the tile's edge
            continue
        canvas = np.zeros([h.stop - h.start for h in here], np.float32)
        for other, crop, corner in placed:
            if other == tile:
                _raise(canvas, crop, tuple(a - h.start for a, h in zip(corner, here, strict=True)))
        trust = tile.trust(here, view)
        inside = tuple(slice(h.start - o, h.stop - o) for h, o in zip(here, whole.low, strict=True))
        total[inside] += trust * canvas
        weight[inside] += trust
    np.divide(total, weight, out=total, where=weight > 0)
    return total, whole.low


def _raise(canvas: NDArray[np.float32], crop: NDArray[np.float32], corner: tuple[int, ...]) -> None:
    """Raise a canvas to a crop that may reach beyond it."""
    low = [max(c, 0) for c in corner]
    high = [min(c + n, size) for c, n, size in zip(corner, crop.shape, canvas.shape, strict=True)]
    if all(a < b for a, b in zip(low, high, strict=True)):
        part = canvas[tuple(slice(a, b) for a, b in zip(low, high, strict=True))]
        seen = tuple(slice(a - c, b - c) for a, b, c in zip(low, high, corner, strict=True))
        np.maximum(part, crop[seen], out=part)


def _detections(parts: list[_Part], axes: int) -> Detections:
    ranked = sorted(parts, key=lambda part: -part.score)
    return Detections(
        boxes=torch.stack([p.box for p in ranked]) if ranked else torch.zeros(0, 2 * axes),
        labels=torch.tensor([p.label for p in ranked], dtype=torch.int64),
        scores=torch.tensor([p.score for p in ranked], dtype=torch.float32),
        masks=tuple(p.probabilities for p in ranked),
        regions=torch.stack([p.region for p in ranked]) if ranked else torch.zeros(0, 2 * axes),
    )

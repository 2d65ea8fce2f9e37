"""A network of volumes with what it needs to be shown one: its instances are 3-D components."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from clearmargin.core import Grid, Image, InstanceSet, Landmarks, PointType
from clearmargin.errors import InputError
from clearmargin.models.placing import Crop, place_slice, place_volume, threshold
from clearmargin.models.repeats import Suppression
from clearmargin.models.segmenter import Look, NetworkSegmenter, View, placed_points
from clearmargin.networks.components import Component, class_components
from clearmargin.networks.network import PointDetections, VolumeNetwork
from clearmargin.transforms.samples import KEYS
from clearmargin.transforms.spatial import resample, volume_view
from clearmargin.transforms.tensors import to_tensor
from clearmargin.transforms.view import PreparedImage

__all__ = ["VolumeDetections", "VolumeSegmenter"]

log = logging.getLogger(__name__)

_PIECE = 4  # slices resampled at once: MONAI's coordinates take four to eight times what the slices do


@dataclass(frozen=True, kw_only=True)
class VolumeDetections:
    """What the network found in a volume, and the way back.

    Attributes:
        maps: ``(K, D, H, W)`` float32 probabilities, in network voxels.
        matrix: ``(4, 4)``, from network indices to the volume's.
        grid: The volume's.
        found: Label and component of each instance, best score first.
        points: Landmarks, in network voxels; None if they were not looked for.
        types: Of the landmarks.
    """

    maps: NDArray[np.float32]
    matrix: NDArray[np.float64]
    grid: Grid
    found: tuple[tuple[int, Component], ...]
    points: PointDetections | None = None
    types: tuple[PointType, ...] = ()

    @property
    def labels(self) -> NDArray[np.int64]:
        """One per component, ``(N,)``."""
        return np.array([label for label, _ in self.found], np.int64)

    @property
    def scores(self) -> NDArray[np.float32]:
        """One per component, ``(N,)``."""
        return np.array([component.score for _, component in self.found], np.float32)

    def placed(self, index: int) -> Crop:
        """Return a component's probabilities on the volume's grid."""
        _, component = self.found[index]
        return place_volume(component.probabilities, component.origin, self.matrix, self.grid.shape)

    def instances(self, rule: Suppression) -> InstanceSet:
        """Return the components as instances on the volume's grid; those of one class never overlap."""
        masks = [threshold(*self.placed(k), self.grid.shape) for k in range(len(self.found))]
        every = InstanceSet(grid=self.grid, masks=tuple(masks), labels=self.labels, scores=self.scores)
        kept = every.select(np.array([m.area > 0 for m in masks], bool))
        return replace(kept, landmarks=self.landmarks())

    def landmarks(self) -> Landmarks | None:
        """Return the points on the volume's grid, each an object of its own; None if they were not looked for."""
        return None if self.points is None else placed_points(self.points, self.types, self.matrix, self.grid)

    def foreground(self) -> Iterator[NDArray[np.float32]]:
        """Yield each slice's probability of each class, ``(K, Y, X)`` on the volume's grid."""
        for z in range(self.grid.shape[0]):
            yield np.stack([place_slice(one, z, self.matrix, self.grid.shape) for one in self.maps])


@dataclass(frozen=True, kw_only=True)
class VolumeSegmenter(NetworkSegmenter):
    """A network of volumes with what it needs to be shown one."""

    network: VolumeNetwork

    def prepared(self, image: Image) -> PreparedImage:
        """Return the volume with the intensities that the network is shown.

        Raises:
            InputError: It is not a volume, or channels are not what the model needs.
        """
        if image.grid.ndim != 3:
            raise InputError(f"{image.source.case} is a picture, and the model takes volumes")
        with self.stage("transform"):
            return PreparedImage(image, self.image.model_copy(update={"neighbours": 0}))

    def looks(self, ready: PreparedImage, view: View, *, maps: bool = False) -> Iterator[Look]:
        """Yield one look at the whole volume: components on the network's grid. It has its maps, asked for or not.

        Raises:
            InputError: The spacing is not what the model needs.
        """
        yield self._look(ready, view)  # kept in no name here: a suspended generator would hold it

    def _look(self, ready: PreparedImage, view: View) -> VolumeDetections:
        z, y, x = self.network.view.scales_for(ready.grid)
        scales = (z, y * view.zoom, x * view.zoom)
        matrix, (depth, height, width) = volume_view(ready.grid.shape, scales, flip=view.flip)

        def slab(start: int, stop: int) -> Tensor:
            with self.stage("transform"):
                pieces = [
                    _slices(ready, matrix, (k, min(k + _PIECE, stop)), (height, width))
                    for k in range(start, stop, _PIECE)
                ]
                return torch.cat(pieces, dim=1).to(self.device)

        with self.clock("network"), torch.inference_mode():
            maps = self.network.probabilities(slab, depth)
        if not self.network.finds_landmarks:
            return self._components(maps, matrix, ready)
        voxel = None
        if ready.grid.unit == "mm":
            sizes = zip(ready.grid.spacing, (z, y, x), strict=True)
            vz, vy, vx = (size / scale for size, scale in sizes)
            voxel = (vz, vy, vx)
        points = self.network.points(maps, voxel)
        return VolumeDetections(
            maps=maps, matrix=matrix, grid=ready.grid, found=(), points=points, types=self.label_map.points
        )

    def _components(
        self, maps: NDArray[np.float32], matrix: NDArray[np.float64], ready: PreparedImage
    ) -> VolumeDetections:
        network = self.network
        found, specks = class_components(
            maps, network.classes, smallest=network.smallest, most=network.detections
        )
        if specks:
            log.debug(
                "%s: %d component(s) of fewer than %d voxels dropped",
                ready.source.case,
                specks,
                network.smallest,
            )
        return VolumeDetections(
            maps=maps[: network.classes], matrix=matrix, grid=ready.grid, found=tuple(found)
        )


def _slices(
    ready: PreparedImage, matrix: NDArray[np.float64], extent: tuple[int, int], size: tuple[int, int]
) -> Tensor:
    """Return the slices from ``extent[0]`` up to ``extent[1]`` that the network sees, ``(C, d, *size)``."""
    start, stop = extent
    depth = ready.grid.shape[0]
    first, last = (matrix[0, 0] * k + matrix[0, 3] for k in (start, stop - 1))
    low = max(
        min(math.floor(first), depth - 2), 0
    )  # the last voxel of a size rounded up may lie beyond the end
    pixels = ready.slab(low, min(max(math.ceil(last), low) + 1, depth))
    moved = matrix.copy()
    moved[0, 3] = first - low
    grid = Grid.from_spacing(pixels.shape[1:])
    sample = {"image": to_tensor(pixels, grid)}
    shown: Tensor = resample(sample, moved, (stop - start, *size), keys=KEYS[:1])["image"].as_tensor()
    return shown

"""Networks of volumes with what they need to be shown one: their instances are 3-D components, or stitched windows."""

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
from clearmargin.models.placing import Crop, place, place_slice, place_volume, threshold
from clearmargin.models.repeats import Suppression, without_repeats
from clearmargin.models.segmenter import Look, NetworkSegmenter, View, placed_points
from clearmargin.models.tiling import find_in_tiles
from clearmargin.networks.components import Component, class_components
from clearmargin.networks.network import Detections, PointDetections, Slab, VolumeNetwork, WindowNetwork
from clearmargin.networks.planning import Sees
from clearmargin.transforms.samples import KEYS
from clearmargin.transforms.settings import VolumeView
from clearmargin.transforms.spatial import resample, volume_view
from clearmargin.transforms.tensors import to_tensor
from clearmargin.transforms.view import PreparedImage

__all__ = ["VolumeDetections", "VolumeSegmenter", "WindowDetections", "WindowSegmenter"]

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
class WindowDetections:
    """What the network found in a volume's windows, stitched, and the way back.

    Attributes:
        found: In network voxels.
        matrix: ``(4, 4)``, from network indices to the volume's.
        extent: ``(Z, Y, X)`` of what the network was shown, in its voxels.
        grid: The volume's.
    """

    found: Detections
    matrix: NDArray[np.float64]
    extent: tuple[int, ...]
    grid: Grid

    @property
    def labels(self) -> NDArray[np.int64]:
        """One per detection, ``(N,)``."""
        return self.found.labels.cpu().numpy()

    @property
    def scores(self) -> NDArray[np.float32]:
        """One per detection, ``(N,)``."""
        return self.found.scores.cpu().numpy()

    def placed(self, index: int) -> Crop:
        """Return a detection's probabilities on the volume's grid."""
        return place(self.found.masks[index], self.found.regions[index], self.matrix, self.grid.shape)

    def instances(self, rule: Suppression) -> InstanceSet:
        """Return the instances on the volume's grid, best score first, less those that ``rule`` leaves out."""
        masks = [threshold(*self.placed(k), self.grid.shape) for k in range(len(self.found.scores))]
        every = InstanceSet(grid=self.grid, masks=tuple(masks), labels=self.labels, scores=self.scores)
        return without_repeats(every.select(np.array([m.area > 0 for m in masks], bool)), rule)

    def landmarks(self) -> Landmarks | None:
        """Return None: no network of windows looks for points."""
        return None

    def foreground(self) -> Iterator[NDArray[np.float32]]:
        """Yield each slice's probability of each class, ``(K, Y, X)`` on the volume's grid.

        Raises:
            ValueError: The look was made without ``maps``.
        """
        if self.found.foreground is None:
            raise ValueError("a look without maps has no foreground")
        maps = self.found.foreground.cpu().numpy()
        for z in range(self.grid.shape[0]):
            yield np.stack([place_slice(one, z, self.matrix, self.grid.shape) for one in maps])


@dataclass(frozen=True, kw_only=True)
class _SpaceSegmenter(NetworkSegmenter):
    """What segmenters of volumes share: a volume's slices as its network sees them."""

    network: VolumeNetwork | WindowNetwork

    @property
    def sees(self) -> Sees:
        """Volumes."""
        return "volumes"

    @property
    def resamples(self) -> bool:
        """Whether ``model.spacing_mm`` is set."""
        return self.network.view.spacing_mm is not None

    def prepared(self, image: Image) -> PreparedImage:
        """Return the volume with the intensities that the network is shown.

        Raises:
            InputError: It is not a volume, or channels are not what the model needs.
        """
        if image.grid.ndim != 3:
            raise InputError(f"{image.source.case} is a picture, and the model takes volumes")
        with self.stage("transform"):
            return PreparedImage(image, self.image.model_copy(update={"neighbours": 0}))

    def _shown(
        self, ready: PreparedImage, view: View, seen: VolumeView
    ) -> tuple[NDArray[np.float64], tuple[int, int, int], Slab]:
        """Return the matrix from network indices to the volume's, the extents there, and what gives its slices."""
        z, y, x = seen.scales_for(ready.grid)
        matrix, size = volume_view(ready.grid.shape, (z, y * view.zoom, x * view.zoom), flip=view.flip)

        def slab(start: int, stop: int) -> Tensor:
            with self.stage("transform"):
                pieces = [
                    _slices(ready, matrix, (k, min(k + _PIECE, stop)), size[1:])
                    for k in range(start, stop, _PIECE)
                ]
                return torch.cat(pieces, dim=1).to(self.device)

        return matrix, size, slab


@dataclass(frozen=True, kw_only=True)
class WindowSegmenter(_SpaceSegmenter):
    """A network that detects objects in windows of volumes, with what it needs to be shown one."""

    network: WindowNetwork

    def looks(self, ready: PreparedImage, view: View, *, maps: bool = False) -> Iterator[Look]:
        """Yield one look at the whole volume, its windows stitched (``find_in_tiles``).

        Raises:
            InputError: The spacing is not what the model needs.
        """
        yield self._look(ready, view, maps=maps)

    def _look(self, ready: PreparedImage, view: View, *, maps: bool) -> WindowDetections:
        matrix, size, slab = self._shown(ready, view, self.network.view)
        row: dict[tuple[int, int], Tensor] = {}  # the slices of the windows that lie side by side

        def look(corner: tuple[int, ...], extent: tuple[int, ...]) -> Detections:
            ends = (corner[0], corner[0] + extent[0])
            if ends not in row:
                row.clear()
                row[ends] = slab(*ends)
            y, x = (slice(a, a + n) for a, n in zip(corner[1:], extent[1:], strict=True))
            with self.clock("network"), torch.inference_mode():
                (detections,) = self.network.detect(row[ends][None, :, :, y, x], maps=maps)
            return detections

        patch = self.network.view.patch
        shared = tuple(min(max(1, round(n * self.network.overlap)), n - 1) for n in patch)
        stitched = find_in_tiles(look, size, patch, shared, rule=self.suppression)
        return WindowDetections(found=stitched, matrix=matrix, extent=size, grid=ready.grid)


@dataclass(frozen=True, kw_only=True)
class VolumeSegmenter(_SpaceSegmenter):
    """A network of volumes with what it needs to be shown one."""

    network: VolumeNetwork

    def looks(self, ready: PreparedImage, view: View, *, maps: bool = False) -> Iterator[Look]:
        """Yield one look at the whole volume: components on the network's grid. It has its maps, asked for or not.

        Raises:
            InputError: The spacing is not what the model needs.
        """
        yield self._look(ready, view)  # kept in no name here: a suspended generator would hold it

    def _look(self, ready: PreparedImage, view: View) -> VolumeDetections:
        matrix, (depth, _, _), slab = self._shown(ready, view, self.network.view)
        with self.clock("network"), torch.inference_mode():
            maps = self.network.probabilities(slab, depth)
        if not self.network.finds_landmarks:
            return self._components(maps, matrix, ready)
        voxel = None
        if ready.grid.unit == "mm":
            sizes = zip(ready.grid.spacing, self.network.view.scales_for(ready.grid), strict=True)
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
        components, specks, beyond = class_components(
            maps, network.classes, smallest=network.smallest, most=network.detections
        )
        if beyond:
            log.warning(
                "%s: %d instance(s) more than model.detections (%d) are left out",
                ready.source.case,
                beyond,
                network.detections,
            )
        if specks:
            log.debug(
                "%s: %d component(s) of fewer than %d voxels dropped",
                ready.source.case,
                specks,
                network.smallest,
            )
        return VolumeDetections(
            maps=maps[: network.classes], matrix=matrix, grid=ready.grid, found=tuple(components)
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

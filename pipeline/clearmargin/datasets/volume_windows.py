"""Windows of volumes, for networks that see them whole."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from clearmargin.core import Image, InstanceSet
from clearmargin.datasets.cases import Case, Dataset
from clearmargin.datasets.samples import Windows, point_targets, seen_masks, window_centre
from clearmargin.errors import InputError
from clearmargin.networks.cores import Encode
from clearmargin.networks.network import VolumeTargets
from clearmargin.transforms.samples import read_instances
from clearmargin.transforms.settings import AugmentSettings, ImageSettings, VolumeView
from clearmargin.transforms.spatial import resample, volume_augmentation
from clearmargin.transforms.view import augment_intensity

__all__ = ["VolumeWindows"]


class VolumeWindows(Windows):
    """As ``Windows``, of ``view.patch`` voxels; turned and mirrored within the slices alone."""

    _dimensions = 3

    def __init__(
        self,
        dataset: Dataset,
        cases: Sequence[Case],
        image: ImageSettings,
        augment: AugmentSettings,
        *,
        view: VolumeView,
        at_points: bool = False,
        seed: int,
        cache_bytes: int,
        encode: Encode | None = None,
    ) -> None:
        # Neighbouring slices are not channels where the network sees the volume.
        image = image.model_copy(update={"neighbours": 0})
        super().__init__(dataset, cases, image, augment, seed=seed, cache_bytes=cache_bytes, encode=encode)
        self.view, self.at_points = view, at_points

    def __getitem__(self, position: int) -> tuple[Tensor, VolumeTargets]:  # type: ignore[override]
        """Return window ``position``, ``(C, D, H, W)`` in [0, 1], and its targets.

        Raises:
            InputError: The case is a picture.
        """
        generator = np.random.default_rng((self.seed, position))
        read = self._load(self.walks.case_at(position))
        image, instances = read.image, read.instances
        if image.grid.ndim != 3 or read.sample is None:
            raise InputError(f"{image.source.case} is a picture, and the network takes volumes")
        zoom = float(np.exp(generator.uniform(-1, 1) * np.log(self.augment.scale)))
        z, y, x = self.view.scales_for(image.grid)
        matrix = self._matrix(image.grid.shape, instances, (z, y * zoom, x * zoom), generator)
        window = resample(read.sample, matrix, self.view.patch)
        pixels = augment_intensity(window["image"].as_tensor(), self.augment, generator)
        pixels, seen = self.variation(pixels, read_instances(window, image.grid), (self.seed, position))
        if len(pixels) == 1:
            pixels = pixels.repeat(self.image.channels, 1, 1, 1)
        masks, labels, cores = seen_masks(seen, self.encode)
        voxel = torch.full((1, 3), torch.nan)
        if image.grid.unit == "mm":
            sizes = zip(image.grid.spacing, (z, y, x), strict=True)
            voxel = torch.tensor([[size / scale for size, scale in sizes]], dtype=torch.float32)
        return pixels.contiguous(), VolumeTargets(
            labels=labels, masks=masks, cores=cores, points=point_targets(seen), voxel=voxel
        )

    def _seen_whole(self, image: Image) -> bool:
        return image.grid.ndim == 3

    def _matrix(
        self,
        shape: tuple[int, ...],
        instances: InstanceSet,
        scales: tuple[float, float, float],
        generator: np.random.Generator,
    ) -> NDArray[np.float64]:
        augment = self.augment
        degrees = float(generator.uniform(-augment.rotate_degrees, augment.rotate_degrees))
        if augment.rotate90:
            degrees += 90.0 * int(generator.integers(4))
        flips = generator.random(2) < 0.5
        aim = None
        landmarks = instances.landmarks
        if self.at_points and landmarks is not None and landmarks.count:
            if generator.random() < augment.foreground:
                points = landmarks.points[landmarks.visible > 0]
                aim = points[generator.integers(len(points))]
        elif len(instances) and generator.random() < augment.foreground:
            mask = instances.masks[int(generator.integers(len(instances)))]
            if mask.area:
                # Any voxel of it: the middle of a large organ would show its edge in no window.
                elements = np.argwhere(mask.crop)
                aim = elements[generator.integers(len(elements))] + np.array(mask.origin)
        centre = [
            window_centre(extent, n / scale, None if aim is None else float(aim[axis]), generator)
            for axis, (extent, n, scale) in enumerate(zip(shape, self.view.patch, scales, strict=True))
        ]
        return volume_augmentation(
            centre=tuple(centre),
            size=self.view.patch,
            scales=scales,
            degrees=degrees,
            flip=(bool(flips[0]) and augment.flip_y, bool(flips[1]) and augment.flip_x),
        )

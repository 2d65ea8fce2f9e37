"""Training samples: windows of a data set's images, drawn and augmented from (seed, position) alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset as TorchDataset

from clearmargin.core import Grid, Image, InstanceSet
from clearmargin.datasets.balance import Walks
from clearmargin.datasets.cases import Case, Dataset
from clearmargin.networks.cores import Encode
from clearmargin.networks.network import Targets
from clearmargin.transforms.copy_paste import paste
from clearmargin.transforms.samples import Sample, make_sample, read_instances
from clearmargin.transforms.settings import AugmentSettings, ImageSettings
from clearmargin.transforms.spatial import augmentation_matrix, resample
from clearmargin.transforms.variation import Variation
from clearmargin.transforms.view import augment_intensity, planes, prepare

__all__ = ["Read", "Windows", "collate", "point_targets", "seen_masks", "window_centre"]


@dataclass(frozen=True, kw_only=True)
class Read:
    """A case as it is kept between its windows.

    Attributes:
        image: With pixels in [0, 1].
        instances: On its grid.
        sample: Both, where windows are cut from all of the image: its layers and anchors are found once.
    """

    image: Image
    instances: InstanceSet
    sample: Sample | None

    @property
    def bytes(self) -> int:
        """Memory that it takes; a sample's image is the image's own."""
        crowds = tuple(crowd.mask for crowd in self.instances.crowds)
        ignored = crowds if self.instances.ignore is None else (self.instances.ignore, *crowds)
        arrays = (self.image.pixels, *(m.crop for m in (*self.instances.masks, *ignored)))
        layers = 0 if self.sample is None else self.sample["layers"].nbytes
        return sum(int(array.nbytes) for array in arrays) + layers


class Windows(TorchDataset[Any]):
    """An endless row of windows; window ``k`` is a function of (seed, k) and nothing else.

    So a resumed run, any number of workers and any number of processes see the same samples.
    """

    _dimensions = 2

    def __init__(
        self,
        dataset: Dataset,
        cases: Sequence[Case],
        image: ImageSettings,
        augment: AugmentSettings,
        *,
        seed: int,
        cache_bytes: int,
        encode: Encode | None = None,
    ) -> None:
        self.encode = encode
        self.dataset, self.cases, self.image, self.augment = dataset, tuple(cases), image, augment
        self.seed = seed
        self.variation = Variation(augment.transforms, ndim=self._dimensions)
        self.walks = Walks(np.ones(len(self.cases)), seed=seed)
        self._cache: dict[int, Read] = {}
        self._cache_left = cache_bytes

    def classes_of(self, index: int) -> frozenset[int]:
        """Return the classes that a case holds; it is read, and kept for the windows as far as the cache goes."""
        return frozenset(int(label) for label in self._load(index).instances.labels)

    def repeat_by(self, factors: NDArray[np.float64]) -> None:
        """Let each case come as often as its factor says, in place of once a walk."""
        self.walks = Walks(factors, seed=self.seed)

    def __getitem__(self, position: int) -> tuple[Tensor, Targets]:
        """Return window ``position`` (any whole number from 0 on), ``(C, H, W)`` in [0, 1], and its targets."""
        generator = np.random.default_rng((self.seed, position))
        pixels, instances = self._draw(self.walks.case_at(position), self.augment, generator)
        if self.augment.copy_paste:
            pixels, instances = self._with_pasted(
                pixels, instances, np.random.default_rng((self.seed, position, 1))
            )
        pixels = augment_intensity(pixels, self.augment, generator)
        pixels, instances = self.variation(pixels, instances, (self.seed, position))
        if len(pixels) == 1:
            pixels = pixels.repeat(self.image.channels, 1, 1)
        return pixels.contiguous(), _targets(instances, self.encode)

    def _draw(
        self, index: int, augment: AugmentSettings, generator: np.random.Generator
    ) -> tuple[Tensor, InstanceSet]:
        """Return a window of a case before its intensity is changed, and its instances."""
        sample, grid = _plane_sample(self._load(index), self.image, augment, generator)
        window = self._window(sample, grid, augment, generator)
        return window["image"].as_tensor(), read_instances(window, grid)

    def _with_pasted(
        self, pixels: Tensor, own: InstanceSet, generator: np.random.Generator
    ) -> tuple[Tensor, InstanceSet]:
        """Return a window with some instances of another: scaled, turned and mirrored as any window is."""
        if generator.random() >= self.augment.copy_paste:
            return pixels, own
        aimed = self.augment.model_copy(update={"foreground": 1.0})
        donor, others = self._draw(int(generator.integers(len(self.cases))), aimed, generator)
        seen = np.flatnonzero([m.area > 0 for m in others.masks])
        if len(seen) == 0:
            return pixels, own
        pasted = seen[generator.random(len(seen)) < 0.5]
        if len(pasted) == 0:
            pasted = seen[generator.integers(len(seen), size=1)]
        most = max(len(pixels), len(donor))  # grey beside colour
        laid, instances = paste(
            pixels.expand(most, -1, -1).numpy(),
            own,
            donor.expand(most, -1, -1).numpy(),
            others.select(pasted),
        )
        return torch.from_numpy(laid), instances

    def _load(self, index: int) -> Read:
        if index not in self._cache:
            image, instances = self.dataset.read(self.cases[index])
            image = replace(image, pixels=prepare(image, self.image))
            sample = make_sample(image, instances) if self._seen_whole(image) else None
            read = Read(image=image, instances=instances, sample=sample)
            if read.bytes > self._cache_left:
                return read
            self._cache_left -= read.bytes
            self._cache[index] = read
        return self._cache[index]

    def _seen_whole(self, image: Image) -> bool:
        """Return whether windows are cut from all of the image, and not from one of its slices."""
        return image.grid.ndim == 2

    def _window(
        self, sample: Sample, grid: Grid, augment: AugmentSettings, generator: np.random.Generator
    ) -> dict[str, Any]:
        size = self.image.crop
        scale = self.image.scale_for(grid)
        scale *= float(np.exp(generator.uniform(-1, 1) * np.log(augment.scale)))
        degrees = float(generator.uniform(-augment.rotate_degrees, augment.rotate_degrees))
        if augment.rotate90:
            degrees += 90.0 * int(generator.integers(4))
        flips = generator.random(2) < 0.5
        anchor = _anchor(sample, augment, generator)
        centre = [
            window_centre(extent, n / scale, None if anchor is None else float(anchor[axis]), generator)
            for axis, (extent, n) in enumerate(zip(grid.shape, size, strict=True))
        ]
        matrix = augmentation_matrix(
            centre=(centre[0], centre[1]),
            size=size,
            scale=scale,
            degrees=degrees,
            flip=(bool(flips[0]) and augment.flip_y, bool(flips[1]) and augment.flip_x),
        )
        return resample(sample, matrix, size)


def collate(items: Sequence[tuple[Tensor, Targets]]) -> tuple[Tensor, list[Targets]]:
    """Return a batch ``(B, C, H, W)`` and its targets."""
    return torch.stack([image for image, _ in items]), _Together(targets for _, targets in items)


class _Together(list[Any]):
    """The targets of a batch, which pass from a worker as one tensor a field, and come out as a list.

    Between processes each tensor is a file of its own, and the one that computes waits while it is opened: measured,
    11 ms for a batch of four.
    """

    def __reduce__(self) -> tuple[Any, ...]:
        if not self:
            return list, ()
        kind = type(self[0])
        names = [field.name for field in fields(kind)]
        each = {name: torch.cat([getattr(t, name) for t in self]) for name in names}
        return _apart, (kind, each, {name: [len(getattr(t, name)) for t in self] for name in names})


def _apart(kind: type[Any], each: dict[str, Tensor], counts: dict[str, list[int]]) -> list[Any]:
    split = {name: torch.split(tensor, counts[name]) for name, tensor in each.items()}
    return [kind(**dict(zip(split, parts, strict=True))) for parts in zip(*split.values(), strict=True)]


def window_centre(extent: int, window: float, anchor: float | None, generator: np.random.Generator) -> float:
    """Return where a window of ``window`` image pixels is centred along an axis of ``extent`` pixels.

    Windows stay inside the image where they fit, and hold the anchor if there is one.
    """
    low, high = sorted((window / 2 - 0.5, extent - 0.5 - window / 2))
    if anchor is not None:
        low, high = max(low, anchor - window / 2 + 1), min(high, anchor + window / 2 - 1)
        if low > high:
            return anchor
    return float(generator.uniform(low, high))


def _anchor(
    sample: Sample, augment: AugmentSettings, generator: np.random.Generator
) -> NDArray[np.float64] | None:
    """Return what a window aims at, as often as it does: an instance, or a landmark if there is none; else None."""
    landmarks = sample["landmarks"]
    pointed = landmarks is not None and landmarks.count
    if not (len(sample["anchors"]) or pointed) or generator.random() >= augment.foreground:
        return None
    if len(sample["anchors"]):
        anchor: NDArray[np.float64] = sample["anchors"][_aimed_at(sample["labels"], augment, generator)]
        return anchor
    if landmarks is None:
        return None
    points = landmarks.points[landmarks.visible > 0]
    one: NDArray[np.float64] = points[generator.integers(len(points))]
    return one


def _aimed_at(labels: NDArray[np.int64], augment: AugmentSettings, generator: np.random.Generator) -> int:
    """Return the position of the instance that a window aims at, of at least one."""
    if augment.aim == "instance":
        return int(generator.integers(len(labels)))
    there = np.unique(labels)
    of_class = np.flatnonzero(labels == there[generator.integers(len(there))])
    return int(of_class[generator.integers(len(of_class))])


def _plane_sample(
    read: Read, settings: ImageSettings, augment: AugmentSettings, generator: np.random.Generator
) -> tuple[Sample, Grid]:
    """Return an image, or one slice of a volume (with an instance as often as asked for), and its grid."""
    image, instances = read.image, read.instances
    if read.sample is not None:
        return read.sample, image.grid
    depth = image.grid.shape[0]
    z = int(generator.integers(depth))
    if len(instances) and generator.random() < augment.foreground:
        mask = instances.masks[_aimed_at(instances.labels, augment, generator)]
        z = int(generator.integers(mask.box[0][0], max(mask.box[1][0], mask.box[0][0] + 1)))
    plane = planes(image, settings, z)
    return make_sample(plane, instances.plane(z)[0]), plane.grid


def _targets(instances: InstanceSet, encode: Encode | None) -> Targets:
    """Return what is still in view as targets."""
    masks, labels, cores = seen_masks(instances, encode)
    return Targets.from_masks(masks, labels, point_targets(instances), cores)


def seen_masks(instances: InstanceSet, encode: Encode | None) -> tuple[Tensor, Tensor, Tensor]:
    """Return the masks in view, ``(N, *shape)`` uint8, their labels, and what is encoded of them."""
    seen = [i for i, mask in enumerate(instances.masks) if mask.area]
    dense: NDArray[np.uint8] = np.zeros((len(seen), *instances.grid.shape), np.uint8)
    for row, i in enumerate(seen):
        dense[row][instances.masks[i].slices] = instances.masks[i].crop
    labels = instances.labels[seen].copy()
    cores = np.zeros(0, np.float32) if encode is None else encode(dense, labels, instances.grid.spacing)
    return torch.from_numpy(dense), torch.from_numpy(labels), torch.from_numpy(cores)


def point_targets(instances: InstanceSet) -> Tensor:
    """Return the landmarks in view, seen and hidden, as rows of type, indices and visibility."""
    landmarks = instances.landmarks
    if landmarks is None:
        return torch.zeros((0, 2 + instances.grid.ndim), dtype=torch.float32)
    labelled = landmarks.visible > 0
    types = np.nonzero(labelled)[1].astype(np.float64)
    rows = np.column_stack([types, landmarks.points[labelled], landmarks.visible[labelled]])
    return torch.from_numpy(rows.astype(np.float32))

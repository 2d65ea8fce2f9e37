"""What a data set is like: sizes, spacing, objects, overlap; what a plan is made from."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from clearmargin.core import Grid, Image, InstanceSet, Mask
from clearmargin.core.landmarks import HIDDEN, SEEN
from clearmargin.core.reprs import short_repr
from clearmargin.datasets.cases import Case, Dataset
from clearmargin.datasets.separability import KINDS, lost_instances, near, touch
from clearmargin.errors import InputError
from clearmargin.networks.cores import TargetKind
from clearmargin.networks.planning import Sees
from clearmargin.transforms.turning import axis_codes

__all__ = ["Fingerprint", "Relations", "check_channels", "relations", "take_fingerprint", "thickness_of"]

_WITHIN = 0.9  # an object of which so much lies in another one is nested in it
_VALUES = 20_000  # foreground and background values kept of each case


@short_repr
@dataclass(frozen=True, kw_only=True)
class Fingerprint:
    """A data set's training cases in numbers. Lengths are in pixels of the planes that a 2-D network sees.

    Attributes:
        cases: How many were looked at.
        of: How many the split has.
        ndim: 2 or 3.
        channels: Channels of the images; the largest where they differ.
        bits: Bits of the stored values.
        shapes: ``(cases, 2)`` ``(Y, X)`` of the planes.
        depths: Slices of each case; 1 for images.
        spacings: ``(cases, 2)`` in-plane spacing in ``unit``.
        unit: ``mm`` or ``px``.
        elongation: Median distance of slices over the pixel size in them; 1 for images.
        counts: Instances in each plane that has one.
        boxes: ``(N, 2)`` height and width of each instance in a plane.
        areas: ``(N,)`` pixels.
        thickness: ``(N,)`` diameter of the largest disc that fits into each instance.
        nested: Share of instances that lie in another one.
        overlapping: Share of instances that share a pixel with another one.
        touching: Share of instances that touch or overlap another one of their class.
        lost: Share of the instances that each kind of targets of a semantic network cannot give back, though it knew
            them exactly: in planes and, of volumes, in space.
        distances: ``(cases,)`` from slice to slice in ``unit``; the pixel size for images.
        totals: ``(cases,)`` instances of each case.
        spans: ``(M,)`` slices that each instance of a volume reaches through; none for images.
        classes: Instances of each class, by name.
        values: 0.5, 5, 50, 95 and 99.5 % quantiles of the values inside instances.
        has_masks: Whether instances are masks; else they are the boxes around each object's landmarks.
        most_points: Largest number of landmarks of one type in an image; 0 without landmarks.
        both_visibilities: Whether there are seen and hidden landmarks.
    """

    cases: int
    of: int
    ndim: int
    channels: int
    bits: int
    shapes: NDArray[np.int64]
    depths: NDArray[np.int64]
    spacings: NDArray[np.float64]
    unit: str
    elongation: float
    counts: NDArray[np.int64]
    boxes: NDArray[np.int64]
    areas: NDArray[np.int64]
    thickness: NDArray[np.float64]
    nested: float
    overlapping: float
    touching: float
    lost: dict[Sees, dict[TargetKind, float]]
    distances: NDArray[np.float64]
    totals: NDArray[np.int64]
    spans: NDArray[np.int64]
    classes: dict[str, int]
    values: tuple[float, ...]
    has_masks: bool = True
    most_points: int = 0
    both_visibilities: bool = False

    @property
    def sides(self) -> NDArray[np.float64]:
        """Square root of each instance's box area: what anchors and scale ranges are chosen by."""
        sides: NDArray[np.float64] = np.sqrt(self.boxes.prod(axis=1).astype(np.float64))
        return sides


@dataclass(frozen=True)
class Relations:
    """The instances of one plane, how they lie to each other, and how many each kind of targets loses."""

    instances: InstanceSet
    nested: int
    overlapping: int
    touching: int
    lost: Mapping[TargetKind, int]


def take_fingerprint(
    dataset: Dataset, *, most: int = 100, advance: Callable[[], object] = lambda: None
) -> Fingerprint:
    """Return the fingerprint of a data set's training cases.

    Args:
        dataset: Data set of a card.
        most: Cases that are looked at, evenly spread; of a volume, the planes with instances, 16 at most.
        advance: Called after each case.

    Raises:
        ConfigError: There is no training case. InputError: A case cannot be read.
    """
    every = dataset.split("train")
    cases = every[:: -(-len(every) // most)]
    images: list[dict[str, Any]] = []
    relations: list[Relations] = []
    channels: set[int] = set()
    for case in cases:
        facts, seen = _look(dataset, case, channels)
        dataset = replace(dataset, axes=dataset.axes or facts["axes"])  # all as the first one is stored
        images.append(facts)
        relations += seen
        advance()
    masks = [mask for plane in relations for mask in plane.instances.masks]
    labels = np.concatenate([plane.instances.labels for plane in relations] or [np.zeros(0, np.int64)])
    values = np.concatenate([one["values"] for one in images])
    count = max(1, len(masks))
    return Fingerprint(
        cases=len(cases),
        of=len(every),
        ndim=max(one["ndim"] for one in images),
        channels=max(one["channels"] for one in images),
        bits=max(one["bits"] for one in images),
        shapes=np.array([one["shape"] for one in images], np.int64),
        depths=np.array([one["depth"] for one in images], np.int64),
        spacings=np.array([one["spacing"] for one in images]),
        unit=images[0]["unit"],
        elongation=float(np.median([one["elongation"] for one in images])),
        counts=np.array([len(plane.instances) for plane in relations], np.int64),
        boxes=np.array([mask.crop.shape for mask in masks], np.int64).reshape(-1, 2),
        areas=np.array([mask.area for mask in masks], np.int64),
        thickness=np.array([thickness_of(mask) for mask in masks]),
        nested=sum(plane.nested for plane in relations) / count,
        overlapping=sum(plane.overlapping for plane in relations) / count,
        touching=sum(plane.touching for plane in relations) / count,
        lost={
            "planes": _shares([plane.lost for plane in relations], len(masks)),
            "volumes": _shares([one["lost"] for one in images], sum(len(one["spans"]) for one in images)),
        },
        distances=np.array([one["distance"] for one in images]),
        totals=np.array([one["total"] for one in images], np.int64),
        spans=np.array([n for one in images for n in one["spans"]], np.int64),
        classes={c.name: int((labels == c.id).sum()) for c in dataset.card.classes},
        values=tuple(np.quantile(values, (0.005, 0.05, 0.5, 0.95, 0.995))) if len(values) else (),
        has_masks=any(one["masks"] for one in images),
        most_points=max(one["points"] for one in images),
        both_visibilities={HIDDEN, SEEN} <= set().union(*(one["visible"] for one in images)),
    )


def _look(dataset: Dataset, case: Case, channels: set[int]) -> tuple[dict[str, Any], list[Relations]]:
    image, reference = dataset.read(case)
    check_channels(channels, image)
    grid, landmarks = image.grid, reference.landmarks
    instances = _boxes(reference) if landmarks is not None and not len(reference) else reference
    facts = {
        "ndim": grid.ndim,
        "axes": axis_codes(grid),
        "channels": image.pixels.shape[0],
        "bits": 8 * image.pixels.dtype.itemsize,
        "shape": grid.shape[-2:],
        "depth": grid.shape[0] if grid.ndim == 3 else 1,
        "spacing": grid.spacing[-2:],
        "unit": grid.unit,
        "distance": grid.spacing[0],
        "total": len(instances),
        "spans": [m.box[1][0] - m.box[0][0] for m in instances.masks if m.area] if grid.ndim == 3 else [],
        "lost": lost_instances(instances) if grid.ndim == 3 else {},
        "elongation": grid.spacing[0] / float(np.sqrt(np.prod(grid.spacing[1:]))) if grid.ndim == 3 else 1.0,
        "values": _inside(image, instances),
        "masks": len(reference) > 0,
        "visible": set() if landmarks is None else set(np.unique(landmarks.visible).tolist()),
        "points": 0 if landmarks is None else int((landmarks.visible > 0).sum(axis=0).max(initial=0)),
    }
    return facts, [relations(plane) for plane in _planes(grid, instances) if len(plane)]


def check_channels(before: set[int], image: Image) -> None:
    """Add a volume's number of channels to those ``before``: a network has one. Pictures in grey and colour may mix.

    Raises:
        InputError: The volumes before have another number.
    """
    own = image.pixels.shape[0]
    if image.grid.ndim != 3:
        return
    if before - {own}:
        raise InputError(
            f"{image.source.case}: its image has {own} channel(s), other volumes of the card have "
            f"{min(before - {own})}: each volume of a 4-D file is a channel, so write the ones that are meant by "
            "themselves"
        )
    before.add(own)


def _shares(lost: Sequence[Mapping[TargetKind, int]], of: int) -> dict[TargetKind, float]:
    return {kind: sum(one.get(kind, 0) for one in lost) / max(1, of) for kind in KINDS}


def _boxes(reference: InstanceSet) -> InstanceSet:
    """Return the boxes around each object's landmarks as instances of class 1."""
    masks = []
    if reference.landmarks is not None:
        for points in reference.landmarks.points:
            inside = np.rint(points[np.isfinite(points).all(axis=1)]).astype(int)
            inside = np.clip(inside, 0, np.array(reference.grid.shape) - 1)
            low, high = inside.min(axis=0), inside.max(axis=0) + 1
            masks.append(
                Mask.from_crop(np.ones(high - low, bool), tuple(int(v) for v in low), reference.grid.shape)
            )
    return InstanceSet(
        grid=reference.grid,
        masks=tuple(masks),
        labels=np.ones(len(masks), np.int64),
        scores=np.ones(len(masks), np.float32),
    )


def _planes(grid: Grid, instances: InstanceSet) -> list[InstanceSet]:
    if grid.ndim == 2:
        return [instances]
    held = sorted({z for m in instances.masks if m.area for z in range(m.box[0][0], m.box[1][0])})
    return [instances.plane(z)[0] for z in held[:: max(1, len(held) // 16)]]


def _inside(image: Image, instances: InstanceSet) -> NDArray[np.float64]:
    """Return an even sample of the values inside the instances."""
    parts = [image.pixels[0][m.slices][m.crop].astype(np.float64) for m in instances.masks if m.area]
    values = np.concatenate(parts) if parts else np.zeros(0)
    return values[:: max(1, len(values) // _VALUES)]


def relations(plane: InstanceSet) -> Relations:
    """Return how many instances of a plane are nested in another, overlap another, touch one of their class."""
    kept = plane.select(np.array([m.area > 0 for m in plane.masks], bool))
    nested, overlapping, touching = set(), set(), set()
    for i, a in enumerate(kept.masks):
        for j, b in enumerate(kept.masks):
            if i == j or not near(a, b):
                continue
            common = a.intersection(b) if a.overlaps(b) else 0
            if common:
                overlapping.add(i)
            if common >= _WITHIN * a.area:
                nested.add(i)
            if kept.labels[i] == kept.labels[j] and (common or touch(a, b)):
                touching.add(i)
    return Relations(kept, len(nested), len(overlapping), len(touching), lost_instances(kept))


def thickness_of(mask: Mask) -> float:
    """Return the diameter of the largest disc that fits in, in pixels; 1 for a line of single pixels."""
    deepest = ndimage.distance_transform_edt(np.pad(mask.crop, 1)).max()
    return float(2 * deepest - 1)

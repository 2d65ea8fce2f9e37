"""Connected parts of a probability map: where a semantic network's instances come from."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from clearmargin.networks.cores import CORE, SURE

__all__ = ["Component", "class_components", "connected_components"]

_LESS = np.float32(1e-6)  # by which the later of two parts that touch has less of what lies between them
_RIM = 8  # elements of background carried around a component: its edge, and the doubt beyond it


@dataclass(frozen=True, kw_only=True, eq=False)
class Component:
    """One connected part of a map, of any number of dimensions.

    Attributes:
        probabilities: A float32 crop of the map with a rim of background; 0 where another component lies.
        origin: Index of the crop's first element.
        low: First index of the component on each axis.
        high: Its last index plus one.
        score: Mean probability within the component, at least 0.5.
    """

    probabilities: NDArray[np.float32]
    origin: tuple[int, ...]
    low: tuple[int, ...]
    high: tuple[int, ...]
    score: float


def class_components(
    maps: NDArray[np.float32], classes: int, *, smallest: int, most: int
) -> tuple[list[tuple[int, Component]], int, int]:
    """Return the instances of every class, at most ``most``, best first; how many specks and how many more instances
    are left out.

    Args:
        maps: ``(K, *shape)`` probabilities of the classes, or ``(2 K, *shape)``: then of their cores, too.
        classes: K.
        smallest: As of `connected_components`.
        most: Largest number of instances.

    Returns:
        Label, from 1 on, and component of each.
    """
    instances: list[tuple[int, Component]] = []
    specks = 0
    for index in range(classes):
        cores = maps[classes + index] if len(maps) > classes else None
        components, dropped = connected_components(maps[index], smallest, cores)
        instances += [(index + 1, component) for component in components]
        specks += dropped
    best = sorted(instances, key=lambda pair: -pair[1].score)[:most]
    return best, specks, len(instances) - len(best)


def connected_components(
    probabilities: NDArray[np.float32], smallest: int, cores: NDArray[np.float32] | None = None
) -> tuple[list[Component], int]:
    """Return the face-connected parts with a probability of at least one half, best first.

    What is below one half keeps its probability in the rim of each component beside it. So the edge, which lies
    between an element inside and one outside, is where the whole map has it, at whatever resolution the crop is
    sampled afterwards: cutting the component out as it stands would move its edge outwards by half an element.

    A part with several cores is flooded from each of them (seeded watershed of the map of cores, by faces), and each
    basin is a component; a part without one is a component as it stands. Between two basins one has what
    the other lacks, so that on a finer grid they neither overlap nor leave a gap.

    Args:
        probabilities: Probabilities of one class, ``(Y, X)`` or ``(Z, Y, X)``, in [0, 1].
        smallest: Components of fewer elements are specks. A basin of fewer is flooded by its neighbours.
        cores: Of the same shape: face-connected elements of at least one half (`CORE`) are a core if one of them
            reaches `SURE` (`CoreMaps`). None parts nothing.

    Returns:
        The components, none if nothing reaches one half, and the number of specks that were left out.
    """
    from scipy import ndimage

    parts, count = _numbered(probabilities >= 0.5)
    if cores is not None:
        parts, count = _parted(parts, count, cores, smallest)
    components = [
        _cut_out(probabilities, parts, number, place, meet=cores is not None)
        for number, place in enumerate(ndimage.find_objects(parts), start=1)
        if np.count_nonzero(parts[place] == number)
        >= smallest  # np.bincount would copy the volume to 64 bits
    ]
    return sorted(components, key=lambda c: -c.score), count - len(components)


def _numbered(mask: NDArray[np.bool_]) -> tuple[NDArray[np.integer], int]:
    """Return the number of each element's part, from 1 on, and how many there are; in 16 bits where they are enough."""
    from scipy import ndimage

    try:
        parts, count = ndimage.label(mask, output=np.uint16)
    except RuntimeError:  # more than 65,535 parts
        parts, count = ndimage.label(mask)
    return parts, int(count)


def _parted(
    parts: NDArray[np.integer], count: int, cores: NDArray[np.float32], smallest: int
) -> tuple[NDArray[np.integer], int]:
    """Return parts, numbered from 1 on, and their number, with those that hold several cores divided."""
    from scipy import ndimage

    divided = parts.astype(np.int32)
    for number, place in enumerate(ndimage.find_objects(parts), start=1):
        own = parts[place] == number
        seeds = _cores(cores[place], own)
        if len(np.unique(seeds)) < 3:  # none of them, and one
            continue
        basins = _flooded(cores[place], seeds, own, smallest)
        for basin in np.unique(basins[own])[1:].tolist():  # the first keeps the number
            count += 1
            divided[place][own & (basins == basin)] = count
    return divided, count


def _cores(cores: NDArray[np.float32], within: NDArray[np.bool_]) -> NDArray[np.int32]:
    """Return the number of each core at its elements, 0 elsewhere; a region that is sure nowhere is not a core."""
    from scipy import ndimage

    seeds, several = ndimage.label(within & (cores >= CORE))
    if several:
        sure = np.append(False, ndimage.maximum(cores, seeds, np.arange(1, several + 1)) >= SURE)
        seeds = np.where(sure[seeds], seeds, 0)
    return seeds  # type: ignore[no-any-return]


def _flooded(
    cores: NDArray[np.float32], seeds: NDArray[np.int32], within: NDArray[np.bool_], smallest: int
) -> NDArray[np.int32]:
    """Return which seed floods each element; none has fewer than ``smallest``, unless all have."""
    from skimage.segmentation import watershed

    basins = watershed(-cores, seeds, mask=within)
    sizes = np.bincount(basins[within], minlength=seeds.max() + 1)
    enough = sizes >= smallest
    enough[sizes.argmax()] = True
    if enough[np.unique(seeds)[1:]].all():
        return basins  # type: ignore[no-any-return]
    return watershed(-cores, np.where(enough[seeds], seeds, 0), mask=within)  # type: ignore[no-any-return]


def _cut_out(
    probabilities: NDArray[np.float32],
    parts: NDArray[np.integer],
    number: int,
    place: tuple[slice, ...],
    *,
    meet: bool,
) -> Component:
    grown = tuple(
        slice(max(s.start - _RIM, 0), min(s.stop + _RIM, extent))
        for s, extent in zip(place, parts.shape, strict=True)
    )
    around = parts[grown]
    own = around == number
    crop = probabilities[grown]
    kept = np.where(own | (around == 0), crop, np.float32(0))
    if meet:
        beside = _beside(own) & (around > 0)
        rest = 1 - crop[beside] - np.where(around[beside] < number, _LESS, np.float32(0))
        kept[beside] = np.clip(rest, 0, np.float32(0.5) - _LESS)
    return Component(
        probabilities=kept,
        origin=tuple(s.start for s in grown),
        low=tuple(s.start for s in place),
        high=tuple(s.stop for s in place),
        score=float(crop[own].mean(dtype=np.float64)),
    )


def _beside(own: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return the elements that have a face, an edge or a corner in common with one of ``own``, and are not of it."""
    from scipy import ndimage

    return ndimage.binary_dilation(own, np.ones((3,) * own.ndim, bool)) & ~own  # type: ignore[no-any-return]

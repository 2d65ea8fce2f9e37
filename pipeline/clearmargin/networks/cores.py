"""What parts the objects of a class that touch: a map that is 1 in the core of each and 0 at its edge."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

__all__ = ["CORE", "SURE", "CoreMaps", "Encode", "TargetKind"]

Encode = Callable[[NDArray[np.uint8], NDArray[np.int64], tuple[float, ...]], NDArray[np.float32]]
"""From masks ``(N, *shape)``, labels and spacing to what else a network learns of a window, ``(K, *shape)``."""

TargetKind = Literal["classes", "border", "distance"]
"""What a semantic network learns beside its classes: nothing, or the cores of objects by one of two measures."""

CORE = 0.5
"""Value from which on an element is of a core."""

SURE = 0.6
"""Value that a core has to reach somewhere; else it is noise. True cores reach 1."""


@dataclass(frozen=True, kw_only=True)
class CoreMaps:
    """Draws the cores of instances.

    An element's depth is its distance to the nearest element outside its instance, between centres, less half an
    element. It is measured in the grid's spacing, so that thick slices count as what they are. The map is the depth
    over ``border``'s twice the border width, at most 1, or over ``distance``'s greatest depth of the instance.
    Elements whose faces touch another instance of the class are 0, however thick a slice is. So flooding the map from
    the cores meets where the instances do, and needs no spacing.

    What it cannot part: an instance all of whose elements touch another one, and one that overlaps another
    so far that their cores are connected. An instance whose core is in pieces (a dumbbell by ``distance``)
    becomes several.

    Attributes:
        kind: ``border`` or ``distance``.
        classes: Number of classes K.
        border: Width of the border, in elements along the grid's finest axis. An instance that is thinner than twice
            it has its core at its deepest.

    Source: Caicedo et al., "Nucleus segmentation across imaging experiments", Nature Methods 2019, for the border;
    Naylor et al., "Segmentation of nuclei in histopathology images by deep regression of the distance map", IEEE TMI
    2019, for the distance.
    """

    kind: Literal["border", "distance"]
    classes: int
    border: float

    def __call__(
        self, masks: NDArray[np.uint8], labels: NDArray[np.int64], spacing: tuple[float, ...]
    ) -> NDArray[np.float32]:
        """Return the cores of each class, ``(K, *shape)`` in [0, 1]; 0 outside the instances.

        Args:
            masks: ``(N, *shape)``, 0 or 1.
            labels: ``(N,)``, 1..K.
            spacing: Of each axis, in any unit. An instance that the array's edge cuts has no border there, since
                nobody knows what lies beyond.
        """
        cores = np.zeros((self.classes, *masks.shape[1:]), np.float32)
        steps = tuple(s / min(spacing) for s in spacing)
        for label in np.unique(labels).tolist():
            own = np.flatnonzero(labels == label)
            touching = _touching(masks[own])
            for mask in masks[own]:
                place = _box(mask)
                if place is not None:
                    into = cores[label - 1][place]
                    drawn = self._core(mask, place, touching[place], steps)
                    np.maximum(into, drawn, out=into)
        return cores

    def _core(
        self,
        mask: NDArray[np.uint8],
        place: tuple[slice, ...],
        touching: NDArray[np.bool_],
        steps: tuple[float, ...],
    ) -> NDArray[np.float32]:
        depth = _depth(mask, place, steps)
        free = np.where(touching, 0, depth)
        if free.any():
            depth = free
        deepest = float(depth.max())
        full = deepest if self.kind == "distance" else min(2 * self.border, deepest)
        return np.minimum(depth / full, 1).astype(np.float32)


def _box(mask: NDArray[np.uint8]) -> tuple[slice, ...] | None:
    """Return the part of an array that holds what is not 0; None if nothing is."""
    from scipy import ndimage

    (place,) = ndimage.find_objects(mask, max_label=1)
    return place  # type: ignore[no-any-return]


def _touching(masks: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Return the elements one of whose faces is that of an element of another of ``masks``."""
    owner = np.zeros(masks.shape[1:], np.int32)
    for number, mask in enumerate(masks, start=1):
        owner[mask > 0] = number
    touching = np.zeros(owner.shape, bool)
    for axis in range(owner.ndim):
        before, after = ((slice(None),) * axis + (part,) for part in (slice(None, -1), slice(1, None)))
        met = (owner[before] != owner[after]) & (owner[before] > 0) & (owner[after] > 0)
        touching[before] |= met
        touching[after] |= met
    return touching


def _depth(
    mask: NDArray[np.uint8], place: tuple[slice, ...], steps: tuple[float, ...]
) -> NDArray[np.float64]:
    """Return how deep each element of a box lies in the instance; 0 outside of it."""
    from scipy import ndimage

    known = [(int(s.start > 0), int(s.stop < n)) for s, n in zip(place, mask.shape, strict=True)]
    inside = np.pad(mask[place] > 0, known)
    if inside.all():  # nothing of its edge is seen
        return np.ones(mask[place].shape)
    depth = ndimage.distance_transform_edt(inside, sampling=steps)
    crop = depth[tuple(slice(low, n - high) for (low, high), n in zip(known, depth.shape, strict=True))]
    return np.where(crop > 0, crop - 0.5, 0)

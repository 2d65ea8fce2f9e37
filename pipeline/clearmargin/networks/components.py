"""Connected parts of a probability map: where a semantic network's instances come from."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Component", "connected_components"]

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


def connected_components(probabilities: NDArray[np.float32], smallest: int) -> tuple[list[Component], int]:
    """Return the face-connected parts with a probability of at least one half, best first.

    What is below one half keeps its probability in the rim of each component beside it. So the edge, which lies
    between an element inside and one outside, is where the whole map has it, at whatever resolution the crop is
    sampled afterwards: cutting the component out as it stands would move its edge outwards by half an element.

    Args:
        probabilities: Probabilities of one class, ``(Y, X)`` or ``(Z, Y, X)``, in [0, 1].
        smallest: Components of fewer elements are specks.

    Returns:
        The components, none if nothing reaches one half, and the number of specks that were left out.
    """
    from scipy import ndimage

    parts, count = _numbered(probabilities >= 0.5)
    components = [
        _cut_out(probabilities, parts, number, place)
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


def _cut_out(
    probabilities: NDArray[np.float32], parts: NDArray[np.integer], number: int, place: tuple[slice, ...]
) -> Component:
    grown = tuple(
        slice(max(s.start - _RIM, 0), min(s.stop + _RIM, extent))
        for s, extent in zip(place, parts.shape, strict=True)
    )
    own = parts[grown] == number
    crop = probabilities[grown]
    return Component(
        probabilities=np.where(own | (parts[grown] == 0), crop, np.float32(0)),
        origin=tuple(s.start for s in grown),
        low=tuple(s.start for s in place),
        high=tuple(s.stop for s in place),
        score=float(crop[own].mean(dtype=np.float64)),
    )

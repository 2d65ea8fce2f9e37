"""One colour per instance: the same in overlays, DICOM SEG, RTSTRUCT and viewers."""

from __future__ import annotations

import colorsys

import numpy as np
from numpy.typing import NDArray

__all__ = ["class_colour", "instance_colours"]

RGB = tuple[int, int, int]

# Hues of the first classes, told apart by most colour-blind readers too; later ones lie a golden angle apart.
_HUES = (0.09, 0.56, 0.42, 0.90, 0.15, 0.64, 0.03, 0.75)


def class_colour(label: int) -> RGB:
    """Return the RGB of a class id (1..K), of which its instances take shades.

    >>> class_colour(1) != class_colour(2)
    True
    """
    return _rgb(_hue(label), 0.85, 1.0)


def instance_colours(labels: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Return ``(N, 3)`` uint8 RGB: the hue of an instance's class, in a shade of its own.

    The first instance of a class has the class's own colour. The next ones take their hue (a sixteenth of the circle
    wide), saturation and brightness from a Halton sequence, so that neighbours in a list differ most.

    Args:
        labels: ``(N,)`` class ids; none give an array of shape ``(0, 3)``.
    """
    counts: dict[int, int] = {}
    colours = np.zeros((len(labels), 3), np.uint8)
    for i, label in enumerate(labels.tolist()):
        rank = counts.get(label, 0)
        counts[label] = rank + 1
        if rank == 0:
            colours[i] = class_colour(label)
            continue
        shift = (_halton(rank, 5) - 0.5) / 16
        colours[i] = _rgb(_hue(label) + shift, 0.45 + 0.55 * _halton(rank, 3), 0.55 + 0.45 * _halton(rank, 2))
    return colours


def _hue(label: int) -> float:
    return _HUES[label - 1] if 1 <= label <= len(_HUES) else (0.09 + 0.618034 * label) % 1.0


def _halton(index: int, base: int) -> float:
    """Return element ``index`` of van der Corput's sequence: digits in ``base`` mirrored at the point."""
    value, share = 0.0, 1.0
    while index:
        index, digit = divmod(index, base)
        share /= base
        value += digit * share
    return value


def _rgb(hue: float, saturation: float, value: float) -> RGB:
    red, green, blue = colorsys.hsv_to_rgb(hue % 1.0, saturation, value)
    return round(255 * red), round(255 * green), round(255 * blue)

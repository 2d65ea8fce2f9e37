"""An image as a person sees it: windowed, RGB, large enough to look at."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from clearmargin.core import Image

__all__ = ["SOFT_TISSUE", "Picture", "display", "enlarge", "enlargement"]

Picture = NDArray[np.uint8]
"""``(Y, X, 3)`` RGB."""

SOFT_TISSUE = (-160.0, 240.0)
"""Hounsfield units from black to white for a CT when no window is named: width 400 at level 40."""

_LEAST_SIDE = 512  # a small slice is enlarged by whole factors until its shorter side reaches this


def display(image: Image, z: int | None = None, window: tuple[float, float] | None = None) -> Picture:
    """Return a slice of a volume, or an image, as 8-bit RGB of the same ``(Y, X)``.

    Args:
        image: One channel, or three as RGB; of other numbers of channels the first is shown.
        z: The slice of a volume; by default its middle one. Ignored for an image.
        window: Values shown as black and as white. By default 0 and 255 for 8-bit pixels, the soft-tissue
            window for a CT, and else the 1st and 99th percentile of what is shown.

    Raises:
        ValueError: If there is no slice ``z``, or the window's end is not above its start.
    """
    planes = image.pixels
    if image.grid.ndim == 3:
        depth = image.grid.shape[0]
        chosen = depth // 2 if z is None else z
        if not 0 <= chosen < depth:
            raise ValueError(f"slice {chosen} of a volume of {depth}")
        planes = planes[:, chosen]
    planes = planes if planes.shape[0] == 3 else planes[:1]
    low, high = window or _default_window(image, planes)
    if not high > low:
        raise ValueError(f"a window goes from black up to white, not from {low} to {high}")
    grey = np.clip((planes.astype(np.float32) - low) * (255 / (high - low)), 0, 255)
    rgb = np.moveaxis(np.broadcast_to(np.round(grey), (3, *grey.shape[1:])), 0, -1)
    return np.ascontiguousarray(np.nan_to_num(rgb)).astype(np.uint8)


def enlargement(shape: tuple[int, int]) -> int:
    """Return the whole factor by which a picture of ``shape`` is enlarged to be looked at; 1 for large ones.

    >>> enlargement((192, 192)), enlargement((1024, 1280))
    (3, 1)
    """
    return max(1, -(-_LEAST_SIDE // min(shape)) if min(shape) < _LEAST_SIDE else 1)


def enlarge(array: NDArray[np.generic], factor: int) -> NDArray[np.generic]:
    """Return ``(Y, X, ...)`` with every pixel repeated ``factor`` times along both axes."""
    return np.repeat(np.repeat(array, factor, axis=0), factor, axis=1)


def _default_window(image: Image, planes: NDArray[np.generic]) -> tuple[float, float]:
    if planes.dtype == np.uint8:
        return 0.0, 255.0
    if image.source.modality == "CT":
        return SOFT_TISSUE
    finite = planes[np.isfinite(planes)].astype(np.float64)
    if finite.size == 0:
        return 0.0, 1.0
    low, high = np.percentile(finite, (1, 99))
    return (float(low), float(high)) if high > low else (float(low) - 0.5, float(low) + 0.5)

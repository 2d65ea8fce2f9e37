"""An image as a person sees it: windowed, RGB, large enough to look at."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from clearmargin.core import Image

__all__ = ["SOFT_TISSUE", "Picture", "display", "display_window", "enlarge", "enlargement"]

Picture = NDArray[np.uint8]
"""``(Y, X, 3)`` RGB."""

SOFT_TISSUE = (-160.0, 240.0)
"""Hounsfield units from black to white for a CT when no window is named: width 400 at level 40."""

_LEAST_SIDE = 512  # a small slice is enlarged by whole factors until its shorter side reaches this
_MOST_SIDE = 16384  # and no side becomes longer


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
        index = depth // 2 if z is None else z
        if not 0 <= index < depth:
            raise ValueError(f"slice {index} of a volume of {depth}")
        planes = planes[:, index]
    planes = planes if planes.shape[0] == 3 else planes[:1]
    low, high = window or _default_window(image, planes)
    if not high > low:
        raise ValueError(f"a window goes from black up to white, not from {low} to {high}")
    grey = np.clip((planes.astype(np.float32) - low) * (255 / (high - low)), 0, 255)
    rgb = np.moveaxis(np.broadcast_to(np.round(grey), (3, *grey.shape[1:])), 0, -1)
    return np.ascontiguousarray(np.nan_to_num(rgb)).astype(np.uint8)


def display_window(image: Image) -> tuple[float, float]:
    """Return the values that `display` shows as black and white if none are named, for all of an image."""
    return _default_window(image, image.pixels if image.pixels.shape[0] == 3 else image.pixels[:1])


def enlargement(shape: tuple[int, int], aspect: float = 1.0) -> tuple[int, int]:
    """Return the whole factors, of rows and columns, by which a picture of ``shape`` is enlarged to be looked at.

    Args:
        shape: ``(Y, X)``.
        aspect: Height of a pixel over its width: true proportions are kept to 3 %, or as near as a factor of 8 comes.

    >>> enlargement((192, 192)), enlargement((1024, 1280)), enlargement((192, 192), aspect=1.5)
    ((3, 3), (1, 1), (6, 4))
    >>> enlargement((1024, 1024), aspect=1.5)
    (3, 2)

    A strip is not enlarged beyond what can be looked at:

    >>> enlargement((1, 100_000)), enlargement((4, 4000)), enlargement((512, 512), aspect=1e6)
    ((1, 1), (4, 4), (1, 1))
    """
    least = max(1, min(-(-_LEAST_SIDE // min(shape)), _MOST_SIDE // max(shape)))
    if abs(aspect - 1) < 0.02:
        return least, least
    pairs = [
        (max(1, round(n * aspect)), n) if aspect > 1 else (n, max(1, round(n / aspect)))
        for n in range(1, max(8, least) + 1)
    ]
    pairs = [p for p in pairs if max(p[0] * shape[0], p[1] * shape[1]) <= _MOST_SIDE] or [(1, 1)]
    large = [p for p in pairs if min(shape[0] * p[0], shape[1] * p[1]) >= _LEAST_SIDE] or pairs[-1:]
    errors = {p: abs(p[0] / p[1] / aspect - 1) for p in large}
    return next((p for p in large if errors[p] <= 0.03), min(errors, key=lambda p: errors[p]))


def enlarge(array: NDArray[np.generic], factors: tuple[int, int]) -> NDArray[np.generic]:
    """Return ``(Y, X, ...)`` with every row and every column repeated so many times."""
    return np.repeat(np.repeat(array, factors[0], axis=0), factors[1], axis=1)


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

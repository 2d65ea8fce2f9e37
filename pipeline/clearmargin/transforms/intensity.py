"""Intensity: from the values an image was read with to [0, 1], through MONAI."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
from monai.transforms import ScaleIntensityRange
from numpy.typing import NDArray

from clearmargin.transforms.settings import Percentiles, Window, WindowStack

__all__ = ["Scaling", "channels_made", "narrowest_window", "normalise", "scaling_of"]


Scaling = Callable[[NDArray[Any]], NDArray[np.float32]]
"""From the values of an image, ``(C, ...)``, to [0, 1]."""


def channels_made(settings: Window | WindowStack | Percentiles) -> int:
    """Return how many channels ``normalise`` makes of one."""
    return len(settings.windows) if isinstance(settings, WindowStack) else 1


def normalise(pixels: NDArray[Any], settings: Window | WindowStack | Percentiles) -> NDArray[np.float32]:
    """Return ``pixels`` in [0, 1] as float32; what lies outside the window is clipped.

    Args:
        pixels: ``(C, ...)``, any dtype.
        settings: A stack of K windows makes K channels of each, those of the first channel first.

    A constant image (channel, where each has its own) becomes 0 under percentiles. Values that are not finite have no
    part in percentiles; NaN becomes 0, an infinity the window's end.
    """
    return scaling_of(pixels, settings)(pixels)


def scaling_of(pixels: NDArray[Any], settings: Window | WindowStack | Percentiles) -> Scaling:
    """Return what brings these pixels, or any part of them that has all channels, into [0, 1] as ``normalise`` does.

    So a volume's percentiles are found once, and its slices are scaled when they are looked at.
    """
    if isinstance(settings, WindowStack):
        return partial(_in_windows, windows=settings.windows)
    if isinstance(settings, Window):
        return partial(_in_window, window=(settings.low, settings.high))
    if settings.per_channel:
        return partial(_by_channel, windows=[_window_of(channel, settings) for channel in pixels])
    return partial(_in_window, window=_window_of(pixels, settings))


def narrowest_window(pixels: NDArray[Any], settings: Percentiles) -> float:
    """Return the width of an image's percentile window, in its values; of several channels' the least that is not 0.

    0 for a constant image. ``least_width`` has no part in it.
    """
    own = settings.model_copy(update={"least_width": None})
    parts = pixels if settings.per_channel else (pixels,)
    windows = [window for window in (_window_of(part, own) for part in parts) if window is not None]
    return min((high - low for low, high in windows), default=0.0)


_Bounds = tuple[float, float]


def _window_of(values: NDArray[Any], settings: Percentiles) -> _Bounds | None:
    """Return the percentiles, or the extremes where the percentiles are one value; None for constant values.

    A window that is narrower than the settings' least width ends higher: so the noise of a nearly black image stays
    nearly black.
    """
    low, high = _percentiles(values, (settings.low, settings.high))
    if low == high:
        finite = values[np.isfinite(values)] if values.dtype.kind == "f" else values
        low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)
    return None if low == high else (low, max(high, low + (settings.least_width or 0.0)))


def _percentiles(values: NDArray[Any], shares: tuple[float, float]) -> _Bounds:
    """Return numpy's percentiles, linear between elements; integers of up to 16 bits are counted, not sorted."""
    if values.dtype.kind == "f":  # what is not finite says nothing of the others
        finite = values[np.isfinite(values)]
        values = finite if len(finite) else np.zeros(1, values.dtype)
    if values.dtype.kind not in "iu" or values.dtype.itemsize > 2:
        low, high = (float(v) for v in np.percentile(values, shares))
        return low, high
    least = int(values.min())
    counts = np.zeros(int(values.max()) - least + 1, np.int64)
    for plane in values.reshape(
        -1, *values.shape[-2:]
    ):  # one at a time: 64 bits a value are much for a volume
        counts += np.bincount(plane.ravel().astype(np.intp) - least, minlength=len(counts))
    upto = counts.cumsum()
    bounds = []
    for share in shares:
        place = share / 100 * (upto[-1] - 1)
        below, above = np.searchsorted(upto, (math.floor(place), math.ceil(place)), side="right")
        bounds.append(float(least + below + (above - below) * (place % 1)))
    return bounds[0], bounds[1]


def _in_window(pixels: NDArray[Any], window: _Bounds | None) -> NDArray[np.float32]:
    # The 16-bit values are kept up to here: a float16 or 8-bit shortcut would lose CT's resolution.
    values = np.asarray(pixels, dtype=np.float32)
    if window is None:
        return np.zeros_like(values)
    scaled = np.asarray(ScaleIntensityRange(*window, 0.0, 1.0, clip=True)(values), dtype=np.float32)
    return np.nan_to_num(scaled, copy=False) if pixels.dtype.kind == "f" else scaled


def _in_windows(pixels: NDArray[Any], windows: Sequence[_Bounds]) -> NDArray[np.float32]:
    return np.stack([_in_window(channel, window) for channel in pixels for window in windows])


def _by_channel(pixels: NDArray[Any], windows: Sequence[_Bounds | None]) -> NDArray[np.float32]:
    return np.stack([_in_window(c, window) for c, window in zip(pixels, windows, strict=True)])

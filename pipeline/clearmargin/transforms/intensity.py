"""Intensity: from the values an image was read with to [0, 1], through MONAI."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import numpy as np
from monai.transforms import ScaleIntensityRange, ScaleIntensityRangePercentiles
from numpy.typing import NDArray
from pydantic import Field, model_validator

from clearmargin.config import Settings

__all__ = ["Intensity", "Percentiles", "Window", "WindowStack", "channels_made", "normalise"]


class Window(Settings):
    """A fixed window, such as -100..200 Hounsfield units, or 0..255 for 8-bit colour."""

    kind: Literal["window"] = "window"
    low: float
    high: float

    @model_validator(mode="after")
    def _ordered(self) -> Window:
        if not self.low < self.high:
            raise ValueError("low must lie below high")
        return self


class WindowStack(Settings):
    """Several windows of the same values, each a channel, such as soft tissue, lung and bone of a CT."""

    kind: Literal["windows"] = "windows"
    windows: tuple[tuple[float, float], ...] = Field(min_length=1, description="low and high of each")

    @model_validator(mode="after")
    def _ordered(self) -> WindowStack:
        if any(not low < high for low, high in self.windows):
            raise ValueError("low must lie below high in each window")
        return self


class Percentiles(Settings):
    """A window from the image's own percentiles: for MR, microscopy, ultrasound."""

    kind: Literal["percentiles"] = "percentiles"
    low: float = Field(0.5, ge=0, le=100)
    high: float = Field(99.5, ge=0, le=100)
    per_channel: bool = Field(
        False, description="each channel by its own: for several MR sequences; colour keeps its hue without"
    )


Intensity = Annotated[Window | WindowStack | Percentiles, Field(discriminator="kind")]


def channels_made(settings: Window | WindowStack | Percentiles) -> int:
    """Return how many channels ``normalise`` makes of one."""
    return len(settings.windows) if isinstance(settings, WindowStack) else 1


def normalise(pixels: NDArray[Any], settings: Window | WindowStack | Percentiles) -> NDArray[np.float32]:
    """Return ``pixels`` in [0, 1] as float32; what lies outside the window is clipped.

    Args:
        pixels: ``(C, ...)``, any dtype.
        settings: A stack of K windows makes K channels of each, those of the first channel first.

    A constant image (channel, where each has its own) becomes 0 under percentiles.
    """
    # The 16-bit values are kept up to here: a float16 or 8-bit shortcut would lose CT's resolution.
    values = np.asarray(pixels, dtype=np.float32)
    if isinstance(settings, WindowStack):
        return np.stack([_windowed(c, low, high) for c in values for low, high in settings.windows])
    if isinstance(settings, Window):
        return _windowed(values, settings.low, settings.high)
    if settings.per_channel:
        return np.stack([_by_percentiles(c, settings) for c in values])
    return _by_percentiles(values, settings)


def _windowed(values: NDArray[np.float32], low: float, high: float) -> NDArray[np.float32]:
    return _numbers(ScaleIntensityRange(low, high, 0.0, 1.0, clip=True)(values))


def _by_percentiles(values: NDArray[np.float32], settings: Percentiles) -> NDArray[np.float32]:
    if values.min() == values.max():
        return np.zeros_like(values)
    return _numbers(ScaleIntensityRangePercentiles(settings.low, settings.high, 0.0, 1.0, clip=True)(values))


def _numbers(scaled: Any) -> NDArray[np.float32]:
    return np.nan_to_num(np.asarray(scaled, dtype=np.float32))

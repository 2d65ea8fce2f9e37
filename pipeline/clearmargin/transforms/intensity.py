"""Intensity: from the values an image was read with to [0, 1], through MONAI."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import numpy as np
from monai.transforms import ScaleIntensityRange, ScaleIntensityRangePercentiles
from numpy.typing import NDArray
from pydantic import Field, model_validator

from clearmargin.config import Settings

__all__ = ["Intensity", "Percentiles", "Window", "normalise"]


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


class Percentiles(Settings):
    """A window from the image's own percentiles, all channels together: for MR, microscopy, ultrasound."""

    kind: Literal["percentiles"] = "percentiles"
    low: float = Field(0.5, ge=0, le=100)
    high: float = Field(99.5, ge=0, le=100)


Intensity = Annotated[Window | Percentiles, Field(discriminator="kind")]


def normalise(pixels: NDArray[Any], settings: Window | Percentiles) -> NDArray[np.float32]:
    """Return ``pixels`` (any shape, any dtype) in [0, 1] as float32; what lies outside the window is clipped.

    A constant image becomes 0 under percentiles.
    """
    # The 16-bit values are kept up to here: a float16 or 8-bit shortcut would lose CT's resolution.
    values = np.asarray(pixels, dtype=np.float32)
    if isinstance(settings, Window):
        scaled = ScaleIntensityRange(settings.low, settings.high, 0.0, 1.0, clip=True)(values)
    elif values.min() == values.max():
        return np.zeros_like(values)
    else:
        scaled = ScaleIntensityRangePercentiles(settings.low, settings.high, 0.0, 1.0, clip=True)(values)
    return np.nan_to_num(np.asarray(scaled, dtype=np.float32))

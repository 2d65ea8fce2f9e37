"""How images are shown and varied, as settings: no torch and no MONAI, so that a configuration is checked at once."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field, field_validator, model_validator

from clearmargin.config import Settings
from clearmargin.core import Grid
from clearmargin.errors import InputError

__all__ = [
    "AugmentSettings",
    "ImageSettings",
    "Intensity",
    "Percentiles",
    "VolumeView",
    "Window",
    "WindowStack",
]


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
    windows: tuple[tuple[float, float], ...] = Field(
        min_length=1, description="low and high value of each window"
    )

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
        False, description="window per channel, for several MR sequences; false keeps the hue of colours"
    )
    least_width: float | None = Field(
        None,
        ge=0,
        description="least width of the window, in the images' values, so that noise is not stretched; none: train "
        "takes the 5 % quantile of its images' windows",
    )

    @model_validator(mode="after")
    def _ordered(self) -> Percentiles:
        if not self.low < self.high:
            raise ValueError(f"low must lie below high, not {self.low:g} and {self.high:g} %")
        return self


Intensity = Annotated[Window | WindowStack | Percentiles, Field(discriminator="kind")]


class ImageSettings(Settings):
    """What of an image reaches the network. Saved with the model: prediction sees what training saw."""

    intensity: Intensity = Percentiles()
    scale: float = Field(1.0, gt=0, le=8, description="network pixels per image pixel")
    spacing_mm: float | None = Field(
        None, gt=0, description="in-plane size of a network pixel; replaces scale"
    )
    crop: tuple[int, int] = Field((256, 256), description="training window (Y, X) in network pixels")
    channels: int = Field(
        3,
        ge=1,
        description="channels that the network sees, windows and neighbours included; a single channel is repeated",
    )
    neighbours: int = Field(
        1, ge=0, le=1, description="neighbouring slices on each side that a slice is shown with"
    )
    axes: str | None = Field(
        None,
        description="directions in which the indices of slices, rows and columns rise in the volumes that the network "
        "sees, such as SPL (head, back, left) for axial DICOM; volumes stored otherwise are turned; none: train takes "
        "the most common of its volumes",
    )

    @model_validator(mode="after")
    def _fits_strides(self) -> ImageSettings:
        if any(n < 64 or n % 32 for n in self.crop):
            raise ValueError(f"crop extents are multiples of 32 from 64 on, not {self.crop}")
        if self.spacing_mm is not None and self.scale != 1.0:
            raise ValueError("give spacing_mm or scale, not both")
        return self

    @field_validator("axes")
    @classmethod
    def _names_each_axis(cls, axes: str | None) -> str | None:
        pairs = ("LR", "AP", "IS")
        if axes and not (len(axes) == 3 and all(sum(code in pair for code in axes) == 1 for pair in pairs)):
            raise ValueError(f"expected three letters, one of L R, one of A P and one of I S, not {axes!r}")
        return axes

    def scale_for(self, plane: Grid) -> float:
        """Return network pixels per image pixel for a 2-D grid.

        Raises:
            InputError: ``spacing_mm`` is set and the image's spacing is not known.
        """
        if self.spacing_mm is None:
            return self.scale
        if plane.unit != "mm":
            raise InputError(
                "the model works at a spacing in mm, and the image has none: give it one, or train with image.scale"
            )
        return float(np.sqrt(plane.spacing[0] * plane.spacing[1]) / self.spacing_mm)


_Size = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class VolumeView(Settings):
    """How a volume is shown to a network of volumes; ``image.scale``, ``crop`` and ``neighbours`` are for planes."""

    patch: tuple[int, int, int] = Field((32, 96, 96), description="window (Z, Y, X) in network voxels")
    spacing_mm: tuple[_Size, _Size, _Size] | None = Field(
        None, description="size (Z, Y, X) of a network voxel; null keeps each volume's own voxels"
    )

    def scales_for(self, grid: Grid) -> tuple[float, float, float]:
        """Return network voxels per voxel on each axis.

        Raises:
            InputError: ``spacing_mm`` is set and the volume's spacing is not known.
        """
        if self.spacing_mm is None:
            return 1.0, 1.0, 1.0
        if grid.unit != "mm":
            raise InputError(
                "the model works at a spacing in mm, and the volume has none: give it one, or train without "
                "model.spacing_mm"
            )
        z, y, x = (own / target for own, target in zip(grid.spacing, self.spacing_mm, strict=True))
        return z, y, x


class AugmentSettings(Settings):
    """Random changes in training; every draw comes from (seed, epoch, position)."""

    flip_x: bool = True
    flip_y: bool = True
    rotate90: bool = True
    rotate_degrees: float = Field(15.0, ge=0, le=180)
    scale: float = Field(1.25, ge=1, le=3, description="zoom between 1/scale and scale")
    brightness: float = Field(0.1, ge=0, le=1)
    contrast: float = Field(0.2, ge=0, le=1)
    gamma: float = Field(0.2, ge=0, le=1)
    noise: float = Field(0.02, ge=0, le=1, description="largest standard deviation of added noise")
    foreground: float = Field(0.8, ge=0, le=1, description="share of windows that aim at an instance")
    aim: Literal["instance", "class"] = Field(
        "instance",
        description="any instance alike, or first any class of the image alike, then one of its instances",
    )
    repeat_threshold: float | None = Field(
        None,
        gt=0,
        le=1,
        description="a case with a class that fewer cases hold is seen more often; none: all alike",
    )
    copy_paste: float = Field(
        0.0,
        ge=0,
        le=1,
        description="share of windows with instances of another; senseless for nested anatomy",
    )
    transforms: tuple[dict[str, dict[str, Any]], ...] = Field(
        (),
        description="dictionary transforms of MONAI by name with their arguments, in order, after all of the above",
    )

    @field_validator("transforms", mode="before")
    @classmethod
    def _named(cls, value: Any) -> Any:
        """Take a bare name, or a name without arguments, for one with none."""
        if not isinstance(value, list | tuple):
            return value
        steps = [{step: {}} if isinstance(step, str) else step for step in value]
        return [
            {name: given or {} for name, given in step.items()} if isinstance(step, dict) else step
            for step in steps
        ]

    @field_validator("transforms")
    @classmethod
    def _one_each(cls, value: tuple[dict[str, dict[str, Any]], ...]) -> tuple[dict[str, dict[str, Any]], ...]:
        if any(len(step) != 1 for step in value):
            raise ValueError("an entry is one name with its arguments, such as RandBiasFieldd: {prob: 0.3}")
        return value

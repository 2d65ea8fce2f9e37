"""How an image is shown to a 2-D network: channels, intensity, scale, and the settings that say so."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, model_validator
from torch import Tensor

from clearmargin.config import Settings
from clearmargin.core import Grid, Image, Source
from clearmargin.errors import InputError
from clearmargin.transforms.intensity import (
    Intensity,
    Percentiles,
    Scaling,
    channels_made,
    normalise,
    scaling_of,
)

__all__ = [
    "AugmentSettings",
    "ImageSettings",
    "PreparedImage",
    "VolumeView",
    "augment_intensity",
    "planes",
    "prepare",
    "to_channels",
]

_Number = TypeVar("_Number", bound=np.generic)


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
        description="that the network sees, windows and neighbours counted; a single one is repeated",
    )
    neighbours: int = Field(
        1, ge=0, le=1, description="slices on each side that a volume's slice is seen with"
    )

    @model_validator(mode="after")
    def _fits_strides(self) -> ImageSettings:
        if any(n < 64 or n % 32 for n in self.crop):
            raise ValueError(f"crop extents are multiples of 32 from 64 on, not {self.crop}")
        if self.spacing_mm is not None and self.scale != 1.0:
            raise ValueError("give spacing_mm or scale, not both")
        return self

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


class VolumeView(Settings):
    """How a volume is shown to a network of volumes; ``image.scale``, ``crop`` and ``neighbours`` are for planes."""

    patch: tuple[int, int, int] = Field((32, 96, 96), description="window (Z, Y, X) in network voxels")
    spacing_mm: tuple[float, float, float] | None = Field(
        None, description="size (Z, Y, X) of a network voxel; none takes each volume's own voxels"
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
        z, y, x = (own / wanted for own, wanted in zip(grid.spacing, self.spacing_mm, strict=True))
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


def prepare(image: Image, settings: ImageSettings) -> NDArray[np.float32]:
    """Return the pixels in [0, 1], ``(C, *shape)``: the image's channels, each in every window.

    Raises:
        InputError: With its windows and its slices' neighbours, C is neither 1 nor what the network takes.
    """
    _check_channels(image, settings)
    return normalise(image.pixels, settings.intensity)


class PreparedImage:
    """An image as a network is shown it, at every view of it.

    A volume's intensities are found from all of it, as in training: a slice's own percentiles would be others. Its
    slices are scaled when they are asked for, and so no second volume of floats is kept.
    """

    def __init__(self, image: Image, settings: ImageSettings) -> None:
        """Find the intensities.

        Raises:
            InputError: As of ``prepare``.
        """
        _check_channels(image, settings)
        self._settings = settings
        self._scaled = scaling_of(image.pixels, settings.intensity)
        self._image = image
        self._last: tuple[int, Image] | None = None

    @property
    def grid(self) -> Grid:
        """The image's."""
        return self._image.grid

    @property
    def source(self) -> Source:
        """The image's."""
        return self._image.source

    def plane(self, z: int) -> Image:
        """Return a slice with its neighbours, as ``planes``; an image is its own plane. The last one is kept."""
        if self._last is None or self._last[0] != z:
            self._last = z, planes(self._image, self._settings, z, self._scaled)
        return self._last[1]

    def slab(self, start: int, stop: int) -> NDArray[np.float32]:
        """Return the slices from ``start`` up to ``stop`` of a volume, ``(C, d, Y, X)``."""
        pixels = self._scaled(self._image.pixels[:, start:stop])
        return to_channels(pixels, self._settings.channels)


def planes(image: Image, settings: ImageSettings, z: int, scaled: Scaling | None = None) -> Image:
    """Return slice ``z`` of a volume with its neighbours as channels, 2.5-D; each channel's slices in order.

    At the ends the last slice stands in for the one that is not there. An image is its own plane.

    Args:
        image: With pixels in [0, 1], or else with ``scaled``.
        settings: Say how many neighbours and channels.
        z: The slice.
        scaled: Brings the pixels into [0, 1].
    """
    pixels, grid = image.pixels, image.grid
    if grid.ndim == 3:
        reach = settings.neighbours
        pixels = pixels[:, np.clip(np.arange(z - reach, z + reach + 1), 0, grid.shape[0] - 1)]
        grid = grid.plane(z)
    if scaled is not None:
        pixels = scaled(pixels)
    pixels = to_channels(pixels.reshape(-1, *grid.shape), settings.channels)
    return replace(image, pixels=pixels, grid=grid)


def _check_channels(image: Image, settings: ImageSettings) -> None:
    slices = 1 + 2 * settings.neighbours if image.grid.ndim == 3 else 1
    windows = channels_made(settings.intensity)
    found = image.pixels.shape[0] * windows * slices
    if found not in (1, settings.channels):
        each = (f" in each of {windows} windows" if windows > 1 else "") + (
            f" in each of {slices} slices" if slices > 1 else ""
        )
        raise InputError(
            f"{image.source.case} has {image.pixels.shape[0]} channel(s){each}; "
            f"the network takes {settings.channels} (image.channels)"
        )


def to_channels(pixels: NDArray[_Number], channels: int) -> NDArray[_Number]:
    """Return as many channels: a single one is repeated."""
    return np.repeat(pixels, channels, axis=0) if pixels.shape[0] == 1 else pixels


def augment_intensity(pixels: Tensor, settings: AugmentSettings, generator: np.random.Generator) -> Tensor:
    """Return ``pixels`` (``(C, H, W)`` in [0, 1]) with contrast, brightness, gamma and noise changed."""
    gain, shift, power, sigma = generator.uniform(-1, 1, 4)
    values = (pixels - 0.5) * (1 + gain * settings.contrast) + 0.5 + shift * settings.brightness
    values = values.clamp(0, 1) ** float(np.exp(power * settings.gamma))
    if settings.noise:
        noise = generator.standard_normal(tuple(values.shape), dtype=np.float32)
        values = values + torch.from_numpy(noise) * float(abs(sigma) * settings.noise)
    changed: Tensor = values.clamp(0, 1)
    return changed

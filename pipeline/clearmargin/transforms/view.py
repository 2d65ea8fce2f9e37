"""How an image is shown to a 2-D network: channels, intensity, scale, and the settings that say so."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from clearmargin.core import Grid, Image, Source
from clearmargin.errors import InputError
from clearmargin.formats.limits import max_bytes, raise_it
from clearmargin.transforms.intensity import Scaling, channels_made, normalise, scaling_of
from clearmargin.transforms.settings import AugmentSettings, ImageSettings

__all__ = [
    "PreparedImage",
    "augment_intensity",
    "planes",
    "prepare",
    "to_channels",
]

_Number = TypeVar("_Number", bound=np.generic)


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
            InputError: As of ``prepare``; or its slices take more memory than is allowed.
        """
        _check_channels(image, settings)
        size = 4 * settings.channels * math.prod(image.grid.shape[-2:])
        if size > max_bytes():
            raise InputError(
                f"{image.source.case} takes {size / 2**30:.3g} GiB as the network sees it, {settings.channels} "
                f"channel(s) of float32: {raise_it()}"
            )
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
    channels = image.pixels.shape[0] * windows * slices
    if channels not in (1, settings.channels):
        each = (f" in each of {windows} windows" if windows > 1 else "") + (
            f" in each of {slices} slices" if slices > 1 else ""
        )
        number = image.pixels.shape[0]
        four_d = image.grid.ndim == 3 and number > 1
        raise InputError(
            f"{image.source.case} has {number} channel(s){each}; the network takes {settings.channels} (image.channels)"
            + (
                ": each volume of a 4-D file is a channel, so write the one that is meant by itself"
                if four_d
                else ""
            )
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

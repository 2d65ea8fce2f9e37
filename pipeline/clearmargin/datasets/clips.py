"""Frames of clips as cases: a few clips kept open and read forward, and masks from blurred grey levels."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clearmargin.core import Image
from clearmargin.errors import InputError
from clearmargin.formats import open_video
from clearmargin.formats.video import Clip

__all__ = ["Clips", "nearest_levels"]

_MOST_OPEN = 8  # a clip and its mask videos, and a few to spare
_REACH = 32  # decoding so many frames forward costs less than a verified seek, which starts at a key frame


@dataclass(eq=False)
class _Reading:
    """A clip, the frames that follow the last one read from its start, and that one."""

    clip: Clip
    following: Iterator[Image] | None = None
    last: Image | None = field(default=None, repr=False)


class Clips:
    """The last few clips that were read, open where they were left: reading in order needs no seek.

    Memory does not grow with the number of clips. A copy in another process, forked or pickled, starts with
    none open; threads take turns. Its errors name no file: the caller knows the case.
    """

    def __init__(self) -> None:
        """Open nothing yet."""
        self._begin()

    def __reduce__(self) -> tuple[Any, ...]:
        """Travel to another process without what is open."""
        return Clips, ()

    def frame_count(self, path: Path) -> int:
        """Return how many frames the clip's container holds; InputError if it is not a video."""
        with self._turn():
            return self._reading(path).clip.frame_count

    def frame(self, path: Path, number: int) -> Image:
        """Return frame ``number`` from 0 of the clip at ``path``.

        Raises:
            InputError: Not a video, no such frame, or it is damaged.
        """
        with self._turn():
            reading = self._reading(path)
            pixels = _forward(reading, number)
            if pixels is not None:
                return pixels
            try:
                return reading.clip.frame(number)
            except InputError:
                raise InputError(f"frame {number} is damaged or not there") from None

    def _begin(self) -> None:
        self._open: OrderedDict[Path, _Reading] = OrderedDict()
        self._lock = threading.Lock()
        self._process = os.getpid()

    def _turn(self) -> threading.Lock:
        # A forked process shares the file positions of its parent: it opens its own.
        if self._process != os.getpid():
            self._begin()
        return self._lock

    def _reading(self, path: Path) -> _Reading:
        if path not in self._open:
            try:  # without threads: workers are forked while clips are half read
                self._open[path] = _Reading(open_video(path, threads=False))
            except InputError:
                raise InputError("a file is not readable as a video") from None
        self._open.move_to_end(path)
        while len(self._open) > _MOST_OPEN:
            self._open.popitem(last=False)
        return self._open[path]


def _forward(reading: _Reading, number: int) -> Image | None:
    """Return the frame by reading on to it; None where it lies behind, too far ahead, or is damaged."""
    at = -1 if reading.last is None else _number(reading.last)
    if reading.last is not None and number == at:
        return reading.last
    if number == 0:
        reading.following, at = None, -1
    if not at < number <= at + _REACH:
        return None
    if reading.following is None:
        reading.following = reading.clip.frames()
    with suppress(StopIteration):
        while at < number:
            reading.last = next(reading.following)
            at = _number(reading.last)
    return reading.last if at == number else None


def _number(image: Image) -> int:
    if image.source.frame is None:
        raise ValueError("a clip's frames are numbered")
    return image.source.frame


def nearest_levels(
    pixels: NDArray[np.generic], levels: Mapping[int, str], tolerance: int
) -> dict[str, NDArray[np.bool_]]:
    """Return the mask of each class that occurs in a frame of a mask video, in the order of the levels.

    A codec blurs grey levels, so a pixel belongs to the nearest of 0 (background) and ``levels``; halfway it
    belongs to the lower one. Along edges it also makes levels that lie between; those lines are thin. Where
    a 3 x 3 block is off by more than ``tolerance`` from every level, or coloured, the table does not fit.

    Args:
        pixels: ``(C, Y, X)`` uint8.
        levels: Grey level -> class name.
        tolerance: In grey levels.

    Returns:
        Class name -> bool ``(Y, X)``; none for an empty frame.

    Raises:
        InputError: Not 8 bits per channel; levels that are not listed, with how many pixels, and near which.
    """
    from scipy import ndimage

    if pixels.dtype != np.uint8:
        raise InputError(f"a mask video has 8 bits per channel, not {pixels.dtype}")
    frame = pixels.astype(np.int16)
    known = np.array([0, *sorted(levels)])
    distance = np.abs(np.arange(256)[:, None] - known)
    grey = (frame.sum(axis=0) + len(frame) // 2) // len(frame)
    stray = (distance.min(axis=1) > tolerance)[grey] | (np.ptp(frame, axis=0) > tolerance)
    if stray.any() and ndimage.binary_erosion(stray, np.ones((3, 3), bool)).any():
        raise InputError(
            f"{np.count_nonzero(stray)} of {stray.size} pixels are more than {tolerance} off each of the grey "
            f"levels {known.tolist()} (most often {int(np.bincount(grey[stray]).argmax())})"
        )
    nearest = known[distance.argmin(axis=1)][grey]
    masks: dict[str, NDArray[np.bool_]] = {}
    for level in known[1:].tolist():
        here = nearest == level
        if here.any():
            masks[levels[level]] = masks[levels[level]] | here if levels[level] in masks else here
    return masks

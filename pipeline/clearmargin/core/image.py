"""An image: pixels, their grid, and where they came from, without identity."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from clearmargin.core.grid import Grid

__all__ = ["Image", "Source", "SourceKind"]

SourceKind = Literal["dicom", "volume", "raster", "video", "array"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Source:
    """Where an image came from.

    Attributes:
        case: Keyed hash that names the case everywhere (``clearmargin.privacy.case_id``).
        kind: Which family of formats it was read from.
        modality: DICOM modality (``CT``, ``MR``, ``US``, ...), ``""`` where unknown.
        files: The files in slice order. Kept for the writers, which copy DICOM headers from them; paths may
            hold record numbers and so never appear in ``repr``, logs or errors.
        frame: Frame number within a video or a multi-frame object, None otherwise.
        remarks: What a reader had to decide or leave out, a sentence each: shown with the results.
        time_s: Presentation time of that frame in seconds, None if there is none.
        frames: ``(position in files, frame number from 0)`` of each slice that comes from a multi-frame object: one
            may hold several volumes.
        deviation_mm: Largest distance of a slice's corner from its place on the grid; None if none was compared.
        tolerance_mm: What was accepted of it.
    """

    case: str = "case-array"
    kind: SourceKind = "array"
    modality: str = ""
    files: tuple[Path, ...] = field(default=(), repr=False)
    frame: int | None = None
    time_s: float | None = None
    remarks: tuple[str, ...] = ()
    frames: tuple[tuple[int, int], ...] = ()
    deviation_mm: float | None = None
    tolerance_mm: float | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class Image:
    """Pixels on a grid.

    Attributes:
        pixels: ``(C, *grid.shape)``, in the dtype and the units they were read with (Hounsfield after the
            rescale, 8- or 16-bit grey, RGB as three channels); nothing is normalised on reading.
        grid: Where they lie.
        source: Where they came from.
    """

    pixels: NDArray[np.generic]
    grid: Grid
    source: Source = field(default_factory=Source)

    def __post_init__(self) -> None:
        if self.pixels.ndim != self.grid.ndim + 1 or self.pixels.shape[1:] != self.grid.shape:
            raise ValueError(f"pixels of shape {self.pixels.shape} are not (C, *{self.grid.shape})")
        if not (np.issubdtype(self.pixels.dtype, np.number) or self.pixels.dtype == np.bool_):
            raise TypeError(f"pixels are numbers, not {self.pixels.dtype}")

    @property
    def not_finite(self) -> int:
        """How many of the values are NaN or infinite; 0 for integers."""
        if self.pixels.dtype.kind != "f":
            return 0
        return int(sum(np.count_nonzero(~np.isfinite(channel)) for channel in self.pixels))

    def __repr__(self) -> str:
        return (
            f"Image({self.pixels.shape[0]} channel(s) {self.pixels.dtype}, {self.grid}, {self.source.case})"
        )

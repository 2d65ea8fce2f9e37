"""Our readers as MONAI ``ImageReader``s, for anybody's ``LoadImage``: right geometry or an error, never a
fallback.

Arrays keep their order, ``(Z, Y, X)`` (with the channels first if there are several); the affine maps that
array order to MONAI's RAS world.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from monai.data import ImageReader
from numpy.typing import NDArray

from clearmargin.core import Grid, Image
from clearmargin.errors import GeometryError
from clearmargin.formats import READERS, is_video

__all__ = ["DicomReader", "FrameReader", "VolumeReader", "clip_frame", "ras_affine"]

_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
_PathLike = str | PathLike[str]


def ras_affine(grid: Grid) -> NDArray[np.float64]:
    """Return the ``(4, 4)`` affine from array indices (``(y, x)`` first in the plane) to MONAI's RAS."""
    affine = _LPS_TO_RAS @ grid.affine
    return affine if grid.ndim == 3 else affine[:, [1, 2, 0, 3]]


class _Reader(ImageReader):  # type: ignore[misc]
    """What the readers share: one read function, MONAI's two-step protocol around it.

    ``LoadImage`` answers an error in ``read`` by trying its next reader, which may get the geometry wrong
    without a word. So ``read`` only takes the paths, and ``get_data``, whose errors reach the caller, does
    the reading.
    """

    suffixes: tuple[str, ...] = ()

    @abstractmethod
    def _images(self, paths: Sequence[Path]) -> list[Image]:
        """Return what the files hold, in their order."""

    def verify_suffix(self, filename: Sequence[_PathLike] | _PathLike) -> bool:
        """Return whether every file has a suffix of this reader's formats."""
        names = [filename] if isinstance(filename, str | PathLike) else list(filename)
        return all(str(name).lower().endswith(self.suffixes) for name in names)

    def read(self, data: Sequence[_PathLike] | _PathLike, **_: Any) -> list[Path]:
        """Return the paths that :meth:`get_data` will read."""
        names = [data] if isinstance(data, str | PathLike) else list(data)
        return [Path(name) for name in names]

    def get_data(self, img: Sequence[Path] | Path) -> tuple[NDArray[Any], dict[str, Any]]:
        """Read, and return the array and MONAI's metadata; several images of one grid become channels.

        Raises:
            InputError: As the format's reader.
            GeometryError: As the format's reader; several images that lie on different grids.
        """
        images = self._images([img] if isinstance(img, Path) else list(img))
        first = images[0]
        for other in images[1:]:
            if not other.grid.same_as(first.grid):
                raise GeometryError(f"images on two grids cannot be one array: {first.grid} and {other.grid}")
        pixels = np.concatenate([np.asarray(i.pixels) for i in images])
        affine = ras_affine(first.grid)
        meta = {
            "affine": affine,
            "original_affine": affine.copy(),
            "spatial_shape": np.array(first.grid.shape),
            "space": "RAS",
            "original_channel_dim": 0 if len(pixels) > 1 else "no_channel",
            "case": first.source.case,
            "modality": first.source.modality,
            "unit": first.grid.unit,
        }
        return (pixels if len(pixels) > 1 else pixels[0]), meta


class DicomReader(_Reader):
    """A DICOM series (a folder, or one of its files) through the geometry gate of ``formats.dicom``."""

    suffixes = (".dcm", ".dicom", ".ima")

    def __init__(
        self,
        *,
        series: str | None = None,
        volume: str | None = None,
        allow_gaps: bool = False,
        allow_tilt: bool = False,
        tolerance_mm: float | None = None,
    ) -> None:
        """See :func:`clearmargin.formats.dicom.images.read_dicom`."""
        super().__init__()
        self._options: dict[str, Any] = {
            "series": series,
            "volume": volume,
            "allow_gaps": allow_gaps,
            "allow_tilt": allow_tilt,
            "tolerance_mm": tolerance_mm,
        }

    def verify_suffix(self, filename: Sequence[_PathLike] | _PathLike) -> bool:
        """Return whether each path is a folder, has a DICOM suffix, or begins as a DICOM file does."""
        from clearmargin.formats.dicom.index import looks_like_dicom

        names = [filename] if isinstance(filename, str | PathLike) else list(filename)
        paths = [Path(name) for name in names]
        return all(
            p.is_dir() or super(DicomReader, self).verify_suffix(p) or looks_like_dicom(p) for p in paths
        )

    def _images(self, paths: Sequence[Path]) -> list[Image]:
        """Return one series: several files are those of the series, not several images."""
        from clearmargin.formats.dicom.images import read_dicom

        return [read_dicom(paths[0] if len(paths) == 1 else paths, **self._options)]


class VolumeReader(_Reader):
    """NIfTI, NRRD and MetaImage volumes."""

    suffixes = tuple(s for s, reader in READERS.items() if reader.startswith("volume:"))

    def _images(self, paths: Sequence[Path]) -> list[Image]:
        from clearmargin.formats.volume import read_volume

        return [read_volume(path) for path in paths]


class FrameReader(_Reader):
    """Pictures, and single frames of clips: ``clip.mp4#120`` is frame 120."""

    suffixes = tuple(s for s, reader in READERS.items() if reader.startswith("raster:"))

    def verify_suffix(self, filename: Sequence[_PathLike] | _PathLike) -> bool:
        """Return whether each path is a picture, or a clip with a frame number."""
        names = [filename] if isinstance(filename, str | PathLike) else list(filename)
        return all(
            str(name).lower().endswith(self.suffixes) or clip_frame(str(name)) is not None for name in names
        )

    def _images(self, paths: Sequence[Path]) -> list[Image]:
        return [self._image(path) for path in paths]

    @staticmethod
    def _image(path: Path) -> Image:
        named = clip_frame(str(path))
        if named is None:
            from clearmargin.formats.raster import read_raster

            return read_raster(path)
        from clearmargin.formats import open_video

        return open_video(named[0]).frame(named[1])


def clip_frame(name: str) -> tuple[Path, int] | None:
    """Return the clip and the frame's number from 0 that ``clip.mp4#120`` names; None for any other path."""
    clip, mark, number = name.rpartition("#")
    if not mark or not number.isdigit() or Path(name).exists() or not is_video(Path(clip)):
        return None
    return Path(clip), int(number)

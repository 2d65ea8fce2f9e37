"""What a path is: looked at once, and then read."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from clearmargin.core import Image
from clearmargin.errors import InputError, nearest
from clearmargin.files import check_readable

if TYPE_CHECKING:
    from clearmargin.formats.dicom.headers import Header
    from clearmargin.formats.dicom.index import SeriesEntry
    from clearmargin.formats.video import Clip

__all__ = [
    "READERS",
    "VIDEO_SUFFIXES",
    "Opened",
    "OpenedKind",
    "case_of",
    "is_dicom",
    "is_video",
    "open_source",
    "open_video",
    "read_image",
    "read_images",
]

READERS: dict[str, str] = {
    ".dcm": "dicom.images:read_dicom",
    ".dicom": "dicom.images:read_dicom",
    ".ima": "dicom.images:read_dicom",
    ".nii": "volume:read_volume",
    ".nii.gz": "volume:read_volume",
    ".nrrd": "volume:read_volume",
    ".nhdr": "volume:read_volume",
    ".mha": "volume:read_volume",
    ".mhd": "volume:read_volume",
    ".png": "raster:read_raster",
    ".jpg": "raster:read_raster",
    ".jpeg": "raster:read_raster",
    ".tif": "raster:read_raster",
    ".tiff": "raster:read_raster",
    ".bmp": "raster:read_raster",
}
"""Suffix -> ``module:function`` below ``formats``; imported only when a file asks for it."""

VIDEO_SUFFIXES = (".mp4", ".mov", ".avi", ".mkv", ".mpg", ".mpeg", ".m4v", ".webm", ".ts")

OpenedKind = Literal["dicom", "file", "clip", "folder"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Opened:
    """What a path is. No pixel has been read yet; DICOM headers have, and are kept for reading.

    Attributes:
        path: The path.
        kind: ``dicom``: one or more series, in a file, a folder and all below it, a zip or a DICOMDIR. ``file``: a
            volume or a picture of another format. ``clip``: a video, or a DICOM object that is one. ``folder``: a
            folder without DICOM.
        series: The series of DICOM, each with its files' headers; none otherwise.
        files: Volumes, pictures and videos, in name order.
        damaged: DICOM files in a folder or a zip that cannot be read, each with the reason. Private, as all paths.
        others: Number of further files in a folder; beside DICOM in a folder, the number of volumes, pictures and
            videos of other formats lie beside it. Hidden ones are not counted.
    """

    path: Path
    kind: OpenedKind
    series: tuple[tuple[SeriesEntry, list[Header]], ...] = field(default=(), repr=False)
    files: tuple[Path, ...] = field(default=(), repr=False)
    damaged: Mapping[Path, str] = field(default_factory=dict, repr=False)
    others: int = 0

    def image(
        self,
        *,
        series: str | None = None,
        volume: str | None = None,
        allow_gaps: bool = False,
        allow_tilt: bool = False,
        tolerance_mm: float | None = None,
    ) -> Image:
        """Return the one image or volume; arguments as for :func:`read_image`.

        Raises:
            InputError: There are several, or it is a clip or a folder, or what the format's reader refuses.
        """
        if self.kind == "dicom" or (self.kind == "clip" and self.series):
            from clearmargin.formats.dicom.images import read_series

            return read_series(
                *self._chosen(series),
                volume=volume,
                allow_gaps=allow_gaps,
                allow_tilt=allow_tilt,
                tolerance_mm=tolerance_mm,
            )
        if series is not None or volume is not None:
            option = "series" if series is not None else "volume"
            raise InputError(f"'{self.path.name}' is not DICOM: --{option} chooses among what DICOM holds")
        if self.kind == "folder":
            raise InputError(f"'{self.path.name}' is a folder without DICOM in it: name a file")
        image: Image = _reader(self.path)(self.path)
        return image

    def images(
        self, *, series: str | None = None, volume: str | None = None, **gates: Any
    ) -> Iterator[Image]:
        """Yield the image, or with ``volume="all"`` every volume of a DICOM series; arguments as for `image`."""
        if volume != "all" or not self.series:
            yield self.image(series=series, volume=volume, **gates)
            return
        from clearmargin.formats.dicom.images import read_every_volume

        yield from read_every_volume(*self._chosen(series), **gates)

    def clip(self, *, threads: bool = True) -> Clip:
        """Return the clip; ``threads`` as for :func:`open_video`.

        Raises:
            InputError: It is not a clip, or not readable as one.
        """
        if self.series and len(self.series[0][0].files) == 1:
            from clearmargin.formats.dicom.clip import dicom_clip

            return dicom_clip(self.series[0][0], threads=threads)
        if self.kind == "clip" or (self.kind == "file" and _suffix(self.path) not in READERS):
            from clearmargin.formats.video import VideoClip
            from clearmargin.privacy import case_of_file

            return VideoClip(self.path, name=self.path.name, case=case_of_file(self.path), threads=threads)
        what = {"dicom": "a DICOM series", "folder": "a folder"}.get(self.kind, "one volume or picture")
        raise InputError(f"expected a video, '{self.path.name}' is {what}")

    def case(self, *, series: str | None = None) -> str:
        """Return the case id that reading gives the image, without reading a pixel; of the place if it is refused."""
        from clearmargin.privacy import case_of_file

        if self.series:
            from clearmargin.formats.dicom.images import series_case

            try:
                entry, headers = self._chosen(series)
                return series_case(entry, headers[0])
            except InputError:
                pass
        return case_of_file(self.path)

    def _chosen(self, series: str | None) -> tuple[SeriesEntry, list[Header]]:
        from clearmargin.formats.dicom.images import chosen_series

        return chosen_series(self.series, series)


def open_source(path: Path) -> Opened:
    """Return what a file or folder is. It is looked at once: DICOM headers are read here and not again.

    Raises:
        InputError: There is no such path, or it begins as DICOM does and holds nothing readable.
    """
    path = Path(path)
    check_readable(path)
    # A suffix may lie: what begins as DICOM does is DICOM, also a cine called .mp4.
    if is_dicom(path) or (
        path.is_file() and path.suffix.lower() in VIDEO_SUFFIXES and _begins_as_dicom(path)
    ):
        from clearmargin.formats.dicom.index import scan_dicom

        damaged: dict[Path, str] = {}
        series = tuple(scan_dicom(path, damaged))
        first = series[0][0]
        is_clip = first.kind == "clip" and (path.is_file() or len(series) == len(first.files) == 1)
        beside = 0 if path.is_file() else sum(_is_other(file) for file in path.rglob("*"))
        return Opened(
            path=path,
            kind="clip" if is_clip else "dicom",
            series=series,
            damaged=damaged,
            others=beside,
        )
    if path.is_dir():
        every = sorted(p for p in path.iterdir() if p.is_file() and not p.name.startswith("."))
        files = tuple(p for p in every if _suffix(p) in READERS or p.suffix.lower() in VIDEO_SUFFIXES)
        return Opened(path=path, kind="folder", files=files, others=len(every) - len(files))
    return Opened(path=path, kind="clip" if path.suffix.lower() in VIDEO_SUFFIXES else "file")


def read_image(
    path: Path,
    *,
    series: str | None = None,
    volume: str | None = None,
    allow_gaps: bool = False,
    allow_tilt: bool = False,
    tolerance_mm: float | None = None,
) -> Image:
    """Return the image or volume in ``path``, by what it is: a DICOM file or folder, a volume file, a
    picture.

    Args:
        path: A file, or a folder with DICOM in it.
        series: Which DICOM series, if there are several.
        volume: Which volume of a DICOM series that holds several phases, echoes or stacks.
        allow_gaps: Resample a DICOM series with missing or unevenly spaced slices instead of refusing it.
        allow_tilt: Resample a DICOM series of a tilted gantry instead of refusing it.
        tolerance_mm: How far corners of a DICOM series' slices may lie from the volume's grid; None for 0.01 mm.

    Raises:
        InputError: No such path, an unknown format, or what the format's reader refuses.
    """
    return open_source(path).image(
        series=series,
        volume=volume,
        allow_gaps=allow_gaps,
        allow_tilt=allow_tilt,
        tolerance_mm=tolerance_mm,
    )


def read_images(path: Path, *, series: str | None = None) -> Iterator[Image]:
    """Yield every image in ``path``: the pictures of a folder in name order, the frames of a clip, the volumes of a
    DICOM series, or the one image.

    Raises:
        InputError: As :func:`read_image`; a folder in which nothing is readable.
    """
    opened = open_source(path)
    if opened.kind == "clip":
        yield from opened.clip().frames()
    elif opened.kind == "folder":
        files = [file for file in opened.files if _suffix(file) in READERS]
        if not files:
            raise InputError(f"no readable picture or volume in '{opened.path.name}'")
        for file in files:
            yield read_image(file)
    elif opened.kind == "dicom":
        from clearmargin.formats.dicom.images import (
            chosen_series,
            read_every_volume,
            read_pictures,
            read_series,
        )

        entry, headers = chosen_series(opened.series, series)
        if entry.kind in ("images", "clip"):
            yield from read_pictures(entry)
        elif entry.kind == "volume":
            yield from read_every_volume(entry, headers)
        else:
            yield read_series(entry, headers)
    else:
        yield opened.image(series=series)


def case_of(path: Path, *, series: str | None = None) -> str:
    """Return the case id that reading a file or a folder gives its picture, without reading a pixel.

    What cannot be read is named by its place.
    """
    from clearmargin.privacy import case_of_file

    path = Path(path)
    if path.suffix.lower() in VIDEO_SUFFIXES:
        return case_of_file(path)
    try:
        return open_source(path).case(series=series)
    except InputError:
        return case_of_file(path)


def is_video(path: Path) -> bool:
    """Return whether ``path`` is a clip, which :func:`open_video` reads: by suffix, or a DICOM cine."""
    path = Path(path)
    if path.suffix.lower() in VIDEO_SUFFIXES:
        return True
    try:
        return path.is_file() and open_source(path).kind == "clip"
    except InputError:
        return False


def open_video(path: Path, *, threads: bool = True) -> Clip:
    """Return the clip in a video file or a multi-frame DICOM object.

    Args:
        path: The file.
        threads: Decode in several threads; a process that forks while a clip is half read needs False, since
            the child would wait for ever for threads that were not forked with it.

    Raises:
        InputError: It is not a video, has no frame, or is a DICOM object that is not a clip.
    """
    path = Path(path)
    if path.is_dir():
        raise InputError(f"'{path}' is a folder, expected a video")
    return open_source(path).clip(threads=threads)


def is_dicom(path: Path) -> bool:
    """Return whether a file begins as DICOM does, or any file in a folder and below."""
    if path.is_file():
        return _suffix(path) in (".dcm", ".dicom", ".ima", ".zip") or (
            _suffix(path) not in READERS
            and path.suffix.lower() not in VIDEO_SUFFIXES
            and _begins_as_dicom(path)
        )
    files = (p for p in path.rglob("*") if p.is_file())
    return any(_begins_as_dicom(p) for p in files if _suffix(p) not in READERS or _suffix(p) == ".dcm")


def _is_other(file: Path) -> bool:
    suffix = _suffix(file)
    known = (suffix in READERS and not READERS[suffix].startswith("dicom.")) or suffix in VIDEO_SUFFIXES
    return known and not file.name.startswith(".") and file.is_file() and not _begins_as_dicom(file)


def _begins_as_dicom(path: Path) -> bool:
    from clearmargin.formats.dicom.index import looks_like_dicom

    return looks_like_dicom(path)


def _suffix(path: Path) -> str:
    name = path.name.lower()
    return ".nii.gz" if name.endswith(".nii.gz") else path.suffix.lower()


def _reader(path: Path) -> Callable[[Path], Image]:
    suffix = _suffix(path)
    if suffix not in READERS:
        raise InputError(f"'{path.name}' is of an unknown format '{suffix}': {nearest(suffix, READERS)}")
    module, function = READERS[suffix].split(":")
    reader: Callable[[Path], Image] = getattr(import_module(f"clearmargin.formats.{module}"), function)
    return reader

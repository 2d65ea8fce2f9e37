"""Files in and out: one file per format, ``read_x`` and ``write_x`` side by side."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

from clearmargin.core import Image
from clearmargin.errors import InputError, nearest

__all__ = [
    "READERS",
    "VIDEO_SUFFIXES",
    "case_of",
    "is_dicom",
    "is_video",
    "open_video",
    "read_image",
    "read_images",
]

READERS: dict[str, str] = {
    ".dcm": "dicom:read_dicom",
    ".dicom": "dicom:read_dicom",
    ".ima": "dicom:read_dicom",
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
"""Suffix -> ``module:function`` below this package; imported only when a file asks for it."""

VIDEO_SUFFIXES = (".mp4", ".mov", ".avi", ".mkv", ".mpg", ".mpeg", ".m4v", ".webm", ".ts")


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
    path = Path(path)
    if not path.exists():
        raise InputError(f"no file or folder '{path}'")
    if is_dicom(path):
        from clearmargin.formats.dicom import read_dicom

        return read_dicom(
            path,
            series=series,
            volume=volume,
            allow_gaps=allow_gaps,
            allow_tilt=allow_tilt,
            tolerance_mm=tolerance_mm,
        )
    if series is not None or volume is not None:
        option = "series" if series is not None else "volume"
        raise InputError(f"'{path.name}' is not DICOM: --{option} chooses among what DICOM holds")
    image: Image = _reader(path)(path)
    return image


def read_images(path: Path, *, series: str | None = None) -> Iterator[Image]:
    """Yield every image in ``path``: the pictures of a folder in name order, the frames of a clip, the volumes of a
    DICOM series, or the one image.

    Raises:
        InputError: As :func:`read_image`; a folder in which nothing is readable.
    """
    path = Path(path)
    if is_video(path):
        yield from open_video(path).frames()
    elif path.is_dir() and not is_dicom(path):
        files = sorted(p for p in path.iterdir() if p.is_file() and _suffix(p) in READERS)
        if not files:
            raise InputError(f"no readable picture or volume in '{path.name}'")
        for file in files:
            yield read_image(file)
    elif is_dicom(path):
        from clearmargin.formats.dicom import read_dicom, read_dicom_pictures, read_dicom_volumes
        from clearmargin.formats.dicom_index import index_dicom, select_series

        kind = select_series(index_dicom(path), series).kind
        if kind in ("images", "clip"):
            yield from read_dicom_pictures(path, series=series)
        elif kind == "volume":
            yield from read_dicom_volumes(path, series=series)
        else:
            yield read_dicom(path, series=series)
    else:
        yield read_image(path, series=series)


def case_of(path: Path, *, series: str | None = None) -> str:
    """Return the case id that reading a file or a folder gives its picture, without reading a pixel.

    What cannot be read is named by its place.
    """
    from clearmargin.privacy import case_of_file

    path = Path(path)
    if path.exists() and path.suffix.lower() not in VIDEO_SUFFIXES and is_dicom(path):
        from clearmargin.formats.dicom import series_case
        from clearmargin.formats.dicom_index import scan_dicom, select_series

        try:
            scanned = scan_dicom(path)
            entry = select_series([found for found, _ in scanned], series)
            return series_case(entry, next(headers for found, headers in scanned if found is entry)[0])
        except InputError:
            pass
    return case_of_file(path)


def is_video(path: Path) -> bool:
    """Return whether ``path`` is a clip, which ``video.open_video`` reads: by suffix, or a DICOM cine."""
    path = Path(path)
    if path.suffix.lower() in VIDEO_SUFFIXES:
        return True
    if not path.is_file() or not is_dicom(path):
        return False
    from clearmargin.formats.dicom_index import index_dicom

    try:
        return index_dicom(path)[0].kind == "clip"
    except InputError:
        return False


def open_video(path: Path) -> Any:
    """Return the clip in ``path``; see :func:`clearmargin.formats.video.open_video`."""
    from clearmargin.formats.video import open_video as opened

    return opened(path)


def is_dicom(path: Path) -> bool:
    """Return whether a file begins as DICOM does, or any file in a folder and below."""
    from clearmargin.formats.dicom_index import looks_like_dicom

    if path.is_file():
        return _suffix(path) in (".dcm", ".dicom", ".ima", ".zip") or (
            _suffix(path) not in READERS and looks_like_dicom(path)
        )
    files = (p for p in path.rglob("*") if p.is_file())
    return any(looks_like_dicom(p) for p in files if _suffix(p) not in READERS or _suffix(p) == ".dcm")


def _suffix(path: Path) -> str:
    name = path.name.lower()
    return ".nii.gz" if name.endswith(".nii.gz") else path.suffix.lower()


def _reader(path: Path) -> Callable[[Path], Image]:
    suffix = _suffix(path)
    if suffix not in READERS:
        what = "a folder without DICOM in it" if path.is_dir() else f"of an unknown format '{suffix}'"
        raise InputError(f"'{path.name}' is {what}: {nearest(suffix, READERS)}")
    module, function = READERS[suffix].split(":")
    reader: Callable[[Path], Image] = getattr(import_module(f"clearmargin.formats.{module}"), function)
    return reader

"""Which files of a folder are inputs: what each is, by name and beginning, without reading it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from stat import S_ISREG
from typing import Literal

from clearmargin.errors import InputError
from clearmargin.formats.opening import READERS, VIDEO_SUFFIXES, is_dicom

__all__ = ["MANIFEST", "files_beside_dicom", "folders_below", "kind_of_file", "stat_of_file"]

MANIFEST = "manifest.json"
"""What lists the files of a case folder, beside its ``summary.json``."""

_RESULTS = {MANIFEST, "summary.json"}
_FILES = (*READERS, *VIDEO_SUFFIXES)


def folders_below(
    source: Path, on_results: Callable[[Path], object] = lambda _: None
) -> Iterator[tuple[Path, list[Path]]]:
    """Yield each folder with its files, hidden ones and results left out, in name order; a file is alone in its.

    Args:
        source: A folder or a file.
        on_results: Called with each case folder that is left out.

    Raises:
        InputError: A folder cannot be listed.
    """
    if source.is_file():
        yield source.parent, [source]
        return
    for name, folders, files in os.walk(source, onerror=_refuse):
        if set(files) >= _RESULTS:
            on_results(Path(name))
            folders.clear()
            continue
        folders[:] = sorted(f for f in folders if not f.startswith("."))
        listed = sorted(f for f in files if not f.startswith("."))
        if listed:
            yield Path(name), [Path(name) / f for f in listed]


def files_beside_dicom(folder: Path) -> tuple[list[Path], int]:
    """Return the files below a folder that are inputs beside its DICOM, zips among them, and the number of others."""
    files, others = [], 0
    for _, listed in folders_below(folder):
        for file in listed:
            kind = "none" if stat_of_file(file) is None else kind_of_file(file)
            if kind in ("file", "zip"):
                files.append(file)
            others += kind == "other" and file.name.upper() != "DICOMDIR"
    return files, others


def stat_of_file(file: Path) -> os.stat_result | None:
    """Return a file's size and times; None for what is not a file: a pipe or a device could be read for ever."""
    try:
        stat = file.stat()
    except OSError:  # a link to nowhere, or gone meanwhile
        return None
    return stat if S_ISREG(stat.st_mode) else None


def kind_of_file(file: Path) -> Literal["zip", "dicom", "file", "other"]:
    """Return what a file is read as; a DICOMDIR is none of these, as what it lists lies beside it."""
    from clearmargin.formats.dicom.index import looks_like_dicom
    from clearmargin.formats.dicom.media import is_zip

    name = file.name.lower()
    suffix = ".nii.gz" if name.endswith(".nii.gz") else file.suffix.lower()
    if suffix == ".zip" or (file.is_file() and suffix not in _FILES and is_zip(file)):
        return "zip"
    if is_dicom(file) or (suffix in VIDEO_SUFFIXES and looks_like_dicom(file)):
        return "dicom" if file.name.upper() != "DICOMDIR" else "other"
    return "file" if suffix in _FILES else "other"


def _refuse(error: OSError) -> None:
    raise InputError(f"a folder below the source cannot be listed: {os.strerror(error.errno or 0)}") from None

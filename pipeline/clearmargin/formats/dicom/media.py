"""DICOM on media: the files that a DICOMDIR lists, and those inside a zip (PS3.10, 8; PS3.12)."""

from __future__ import annotations

import atexit
import errno
import lzma
import shutil
import struct
import tempfile
import threading
import zipfile
import zlib
from pathlib import Path

from clearmargin.errors import InputError
from clearmargin.formats.dicom.boundary import dicom_boundary, items_of, read_header
from clearmargin.formats.limits import max_bytes, raise_it

__all__ = ["forget_unpacked", "is_zip", "listed_files", "unpacked_files"]

_DAMAGE = (
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    struct.error,
    EOFError,
    NotImplementedError,
    RuntimeError,
    ValueError,
)
_USUAL_RATIO = 20  # by which DICOM, and label maps among it, may shrink
_MAX_FILES = 200_000


def is_zip(path: Path) -> bool:
    """Return whether a file is a zip archive, by its first bytes."""
    with path.open("rb") as file:
        return file.read(4) in (b"PK\x03\x04", b"PK\x05\x06")


@dicom_boundary()
def listed_files(path: Path) -> list[Path]:
    """Return the files that a DICOMDIR refers to and that are there.

    Raises:
        InputError: It is not a directory, refers out of its own folder, or to no file that exists.
    """
    dataset = read_header(path)
    files = []
    folder = path.parent.resolve()
    records = items_of(dataset, "DirectoryRecordSequence")
    for record in records:
        parts = record.get("ReferencedFileID")
        if not parts:
            continue
        file = folder.joinpath(*([parts] if isinstance(parts, str) else [str(p) for p in parts])).resolve()
        if folder not in file.parents:
            raise InputError("the DICOMDIR refers to a file outside its own folder")
        if file.is_file():
            files.append(file)
    if not files:
        raise InputError(f"'{path.name}' lists no file that is there ({len(records)} record(s))")
    return files


def unpacked_files(path: Path) -> list[Path]:
    """Return the files of a zip, unpacked under new names into a private folder for the life of the process.

    Raises:
        InputError: Not readable, encrypted, or larger than the limit, or than TMPDIR has room for.
    """
    return list(_unpack(path, path.stat().st_mtime_ns))


def forget_unpacked(path: Path) -> None:
    """Remove what :func:`unpacked_files` left of a zip; images that were read from it can no longer be written."""
    with _lock:
        for key in [key for key in _unpacked if key[0] == path]:
            folder, _ = _unpacked.pop(key)
            shutil.rmtree(folder, ignore_errors=True)


_lock = threading.Lock()
_unpacked: dict[tuple[Path, int], tuple[Path, tuple[Path, ...]]] = {}


def _unpack(path: Path, modified: int) -> tuple[Path, ...]:
    # It lives as long as the process: writers read the headers of an image's files again.
    with _lock:
        if (path, modified) in _unpacked:
            return _unpacked[path, modified][1]
        folder = Path(tempfile.mkdtemp(prefix="clearmargin-"))
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        try:
            files = _unpack_into(folder, path)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        _unpacked[path, modified] = folder, files
        return files


def _unpack_into(folder: Path, path: Path) -> tuple[Path, ...]:
    files = []
    try:
        with zipfile.ZipFile(path) as archive:
            members = [m for m in archive.infolist() if not m.is_dir()]
            size = sum(m.file_size for m in members)
            claimed = f"'{path.name}' unpacks to {size / 2**30:.3g} GiB in {len(members)} files"
            if size > max(max_bytes(), _USUAL_RATIO * path.stat().st_size):
                raise InputError(
                    f"{claimed}, {size // max(1, path.stat().st_size)} times its size: {raise_it()}"
                )
            if len(members) > _MAX_FILES:
                raise InputError(f"{claimed}: unpack it yourself")
            free = shutil.disk_usage(folder).free
            if size > free:
                raise InputError(
                    f"{claimed}, and the folder for temporary files has {free / 2**30:.3g} GiB free: set TMPDIR to one "
                    "with more, or unpack it yourself"
                )
            for k, member in enumerate(members):
                # New names: those inside may lead elsewhere, and may name a patient.
                file = folder / f"{k:06d}{Path(member.filename).suffix.lower()[:5]}"
                with archive.open(member) as packed, file.open("wb") as unpacked:
                    shutil.copyfileobj(packed, unpacked)
                files.append(file)
    except OSError as error:
        if (
            error.errno != errno.EINVAL
        ):  # which a place before the archive's beginning gives; others are the disk's
            raise
        raise InputError(f"'{path.name}' is not readable as a zip: it points outside itself") from None
    except _DAMAGE:
        raise InputError(
            f"'{path.name}' is not readable as a zip: it is damaged, cut off, encrypted, or packed by an unknown method"
        ) from None
    return tuple(files)

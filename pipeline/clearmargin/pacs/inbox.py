"""What peers have sent, on the disk: one folder a series, until the series is stable and after."""

from __future__ import annotations

import hashlib
import os
import threading
import time
from pathlib import Path
from shutil import disk_usage

from clearmargin.errors import ClearMarginError
from clearmargin.formats.dicom.boundary import dicom_boundary
from clearmargin.pacs.archive import MOST_INSTANCES
from clearmargin.pacs.association import SUCCESS
from clearmargin.pacs.receiving import OUT_OF_ROOM, Arrived

__all__ = ["Inbox"]

_DUPLICATE = 0x0111


class Inbox:
    """A private folder of received objects: what is answered with success is whole and on the disk.

    Names of folders and files are digests of UIDs: nothing that a peer says becomes a path.
    """

    def __init__(self, folder: Path, *, stable_s: float, least_free_bytes: int) -> None:
        """Open the folder; what lies in it is waited for as if it had just arrived.

        Args:
            folder: Is made, with mode 0700.
            stable_s: A series is stable if nothing of it has arrived for so long.
            least_free_bytes: Below so much free space nothing is taken.
        """
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        folder.chmod(0o700)
        self._stable_s, self._least_free_bytes = stable_s, least_free_bytes
        self._lock = threading.Lock()
        now = time.monotonic()
        self._arrived = {path.name: now for path in folder.iterdir() if path.is_dir()}

    def keep(self, arrived: Arrived) -> int:
        """Bring an object to the disk; return the status that answers it (PS3.4, B.2.3)."""
        if disk_usage(self.folder).free < self._least_free_bytes:
            return OUT_OF_ROOM
        series, name = _name(arrived.series), f"{_name(arrived.uid)}.dcm"
        folder = self.folder / series
        with self._lock:
            self._arrived[series] = float("inf")  # not stable while it is being written
        try:
            folder.mkdir(mode=0o700, exist_ok=True)
            file = folder / name
            if file.exists():
                return SUCCESS if _is_same(file, arrived) else _DUPLICATE
            if len(os.listdir(folder)) >= MOST_INSTANCES:  # noqa: PTH208 - only counted
                return OUT_OF_ROOM
            _write(arrived, file)
        except OSError:
            return OUT_OF_ROOM
        finally:
            with self._lock:
                self._arrived[series] = time.monotonic()
        return SUCCESS

    def stable(self) -> list[Path]:
        """Return the folders of series that have become stable; each once, until something of it arrives again."""
        now = time.monotonic()
        with self._lock:
            names = [name for name, at in self._arrived.items() if now - at >= self._stable_s]
            for name in names:
                del self._arrived[name]
        # Without a folder nothing of it could be kept, or its owner removed it.
        return [folder for name in sorted(names) if (folder := self.folder / name).is_dir()]

    def again(self, folder: Path) -> None:
        """Let a series become stable once more, as it could not be listed now."""
        with self._lock:
            self._arrived.setdefault(folder.name, time.monotonic())

    def waiting(self) -> int:
        """Return how many series are not yet stable."""
        with self._lock:
            return len(self._arrived)


def _write(arrived: Arrived, file: Path) -> None:
    """Write a file whole, and bring it and its name to the disk."""
    draft = file.with_name(f".{file.name}.{threading.get_ident()}")
    arrived.save(draft)
    draft.chmod(0o600)
    _sync(draft)
    draft.replace(file)
    _sync(file.parent)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _is_same(file: Path, arrived: Arrived) -> bool:
    """Return whether an object that came again is the one that is there."""
    again = file.with_name(f".{file.name}.{threading.get_ident()}")
    try:
        arrived.save(again)
        return again.read_bytes() == file.read_bytes() or _equal(again, file)
    except ClearMarginError:
        return False
    finally:
        again.unlink(missing_ok=True)


@dicom_boundary()
def _equal(one: Path, other: Path) -> bool:
    """Return whether two files hold the same elements, the patient's too: a correction must not look received."""
    import pydicom

    return bool(pydicom.dcmread(one) == pydicom.dcmread(other))


def _name(uid: str) -> str:
    return hashlib.sha256(uid.encode()).hexdigest()[:32]

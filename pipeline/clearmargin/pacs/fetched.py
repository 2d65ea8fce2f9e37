"""Private folders for what was fetched from an archive; they go with their holder, or after its process has died."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
import weakref
from pathlib import Path

__all__ = ["Fetched", "sweep_fetched"]

_PREFIX = "clearmargin-fetched-"
_LOCK = ".held"


class Fetched:
    """A new folder of mode 0700 in the system's folder for temporary files, for as long as somebody holds this.

    Attributes:
        path: The folder.
    """

    def __init__(self) -> None:
        # Under its final name it is locked already: a sweep never takes one that has just been made.
        draft = Path(tempfile.mkdtemp(prefix="clearmargin-new-"))
        descriptor = os.open(draft / _LOCK, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        self.path = draft.with_name(draft.name.replace("clearmargin-new-", _PREFIX))
        draft.rename(self.path)
        self._end = weakref.finalize(self, _remove, self.path, descriptor)

    def remove(self) -> None:
        """Remove the folder with all that is in it."""
        self._end()


def _remove(path: Path, descriptor: int) -> None:
    shutil.rmtree(path, ignore_errors=True)
    os.close(descriptor)


def sweep_fetched() -> int:
    """Remove what processes that were killed have left; return how many folders."""
    number = 0
    for path in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        try:
            if path.is_symlink() or path.stat().st_uid != os.getuid():
                continue
            descriptor = os.open(path / _LOCK, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError:  # gone meanwhile, or not ours
            continue
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(path, ignore_errors=True)
            number += 1
        except OSError:  # held by a process that lives
            pass
        finally:
            os.close(descriptor)
    return number

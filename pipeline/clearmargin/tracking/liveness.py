"""Which of this user's runs still have a living process: an operating-system lock per run.

A lock of the kind ``flock`` goes when its process does, however that ends. So a run that its store calls
RUNNING and whose lock file lies here unlocked has no process any more; a run without a lock file here is
another machine's or another user's, and is left alone.
"""

from __future__ import annotations

import fcntl
import json
import os
from pathlib import Path
from typing import Literal

from clearmargin.privacy import home

__all__ = ["EndStatus", "RunLock", "last_words"]

EndStatus = Literal["FINISHED", "FAILED", "KILLED"]


class RunLock:
    """Held from the start of a run to its end."""

    def __init__(self, run_id: str) -> None:
        """Take the lock.

        Raises:
            BlockingIOError: If a living process holds it.
        """
        self._path = _lock_path(run_id)
        self._descriptor = _open_locked(self._path)

    def release(self, unsaid: EndStatus | None = None) -> None:
        """Let go. ``unsaid`` is the end that the store could not be told; it is kept for the next start."""
        if unsaid is None:
            self._path.unlink(missing_ok=True)
        else:
            os.ftruncate(self._descriptor, 0)
            os.pwrite(self._descriptor, json.dumps({"status": unsaid}).encode(), 0)
        os.close(self._descriptor)


def last_words(run_id: str) -> EndStatus | None:
    """Return how a run whose process is gone ended, and forget it; None where it may be alive or is unknown.

    FAILED where the process left no word, as after ``kill -9`` or a power cut.
    """
    path = _lock_path(run_id)
    try:
        descriptor = os.open(path, os.O_RDWR)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        said = os.pread(descriptor, 200, 0)
        path.unlink(missing_ok=True)
    except OSError:
        return None
    finally:
        os.close(descriptor)
    try:
        status = json.loads(said)["status"]
    except (ValueError, KeyError, TypeError):
        return "FAILED"
    return status if status in ("FINISHED", "FAILED", "KILLED") else "FAILED"


def _lock_path(run_id: str) -> Path:
    folder = home() / "runs"
    folder.mkdir(mode=0o700, exist_ok=True)
    return folder / f"{run_id}.lock"


def _open_locked(path: Path) -> int:
    """Return a locked descriptor of ``path``; a new file appears under its name only once it is locked."""
    try:
        descriptor = os.open(path, os.O_RDWR)
    except FileNotFoundError:
        draft = path.with_name(f"{path.name}.{os.getpid()}")
        descriptor = os.open(draft, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        draft.rename(path)
        return descriptor
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise
    os.ftruncate(descriptor, 0)
    return descriptor

"""Who works on an item or a draft: a process of a machine, and whether it still runs."""

from __future__ import annotations

import functools
import hashlib
import os
import re
import socket
import time
from pathlib import Path

__all__ = ["is_abandoned", "mark_here", "owner_here", "owner_is_alive"]

_MARK = re.compile(r"\.(?:part|old)\.([0-9a-f]{8})-(\d+)-(\d*)\.")
_FOREIGN_S = 86_400.0


def owner_here() -> str:
    """Return what a process is called in the ledger: machine, process number and its start, as numbers come again."""
    return f"{socket.gethostname()}:{os.getpid()}:{_started(os.getpid())}"


def owner_is_alive(owner: str) -> bool | None:
    """Return whether an owner's process runs; None if it is on another machine."""
    host, pid, started = [*owner.split(":"), "", ""][:3]
    if host != socket.gethostname() or not pid.isdigit():
        return None
    return _started(int(pid)) == started != ""


def mark_here() -> str:
    """Return what tells this process's drafts from those of any other: for a file's name, so without the machine's."""
    return f"{_place()}-{os.getpid()}-{_started(os.getpid())}"


def is_abandoned(draft: Path) -> bool:
    """Return whether the process whose mark a draft's name has is gone; False for a name without a mark.

    Of another machine's draft one cannot tell, so it counts as abandoned once it has not changed for a day.
    """
    mark = _MARK.match(draft.name)
    if mark is None:
        return False
    place, pid, started = mark.groups()
    if place == _place():
        return _started(int(pid)) != started
    try:
        return time.time() - draft.lstat().st_mtime > _FOREIGN_S
    except OSError:
        return False


@functools.cache
def _place() -> str:
    """Return a digest of the machine and its process numbers: a container has its own."""
    try:
        numbers = str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        numbers = ""
    return hashlib.sha256(f"{socket.gethostname()} {numbers}".encode()).hexdigest()[:8]


def _started(pid: int) -> str:
    """Return the kernel's start time of a process; "" if there is none, or it is dead and not yet collected."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] == "Z" else fields[19]

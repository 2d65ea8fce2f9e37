"""Who works on an item: a process of a machine, and whether it still runs."""

from __future__ import annotations

import os
import socket
from pathlib import Path

__all__ = ["owner_here", "owner_is_alive"]


def owner_here() -> str:
    """Return what a process is called in the ledger: machine, process number and its start, as numbers come again."""
    return f"{socket.gethostname()}:{os.getpid()}:{_started(os.getpid())}"


def owner_is_alive(owner: str) -> bool | None:
    """Return whether an owner's process runs; None if it is on another machine."""
    host, pid, started = [*owner.split(":"), "", ""][:3]
    if host != socket.gethostname() or not pid.isdigit():
        return None
    return _started(int(pid)) == started != ""


def _started(pid: int) -> str:
    """Return the kernel's start time of a process; "" if there is none, or it is dead and not yet collected."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] == "Z" else fields[19]

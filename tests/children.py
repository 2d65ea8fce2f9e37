"""Processes that tests start: each wait has a limit, and none outlives its test."""

from __future__ import annotations

import contextlib
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import IO, Any

import pytest

# Generous: a machine that does eight other things is slow, not wrong.
LIMIT_S = 300.0


@contextlib.contextmanager
def child(command: Sequence[Any], **options: Any) -> Iterator[subprocess.Popen[str]]:
    """Run a command as a text-mode process, and kill what is left of it at the end."""
    process = subprocess.Popen([str(part) for part in command], text=True, **options)
    try:
        yield process
    finally:
        process.kill()
        process.communicate(timeout=LIMIT_S)


def wait_until(ready: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    """Return as soon as ``ready()``; fail if the process ends before, or the limit passes."""
    deadline = time.monotonic() + LIMIT_S
    while not ready():
        assert process.poll() is None, f"ended early with {process.returncode}"
        assert time.monotonic() < deadline, "not ready in time"
        time.sleep(0.05)


def read_line(stream: IO[str] | None) -> str:
    """Return the next line of a pipe; fail when none comes within the limit."""
    assert stream is not None
    lines: list[str] = []
    reader = threading.Thread(target=lambda: lines.append(stream.readline()), daemon=True)
    reader.start()
    reader.join(LIMIT_S)
    if not lines:
        pytest.fail("the process said nothing in time")
    return lines[0]

"""Other libraries' log records, which quote file names and values, dropped while our own calls run."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from collections.abc import Iterator

__all__ = ["hushed", "without_stderr"]


_lock = threading.RLock()


@contextlib.contextmanager
def without_stderr() -> Iterator[None]:
    """Let what compiled code writes to stderr itself, as MetaIO does, go nowhere; one thread at a time."""
    with _lock:
        kept = os.dup(2)
        nowhere = os.open(os.devnull, os.O_WRONLY)
        try:
            os.dup2(nowhere, 2)
            yield
        finally:
            os.dup2(kept, 2)
            os.close(nowhere)
            os.close(kept)


class _Hush(logging.Filter):
    """Drops a library's records while our own calls are under way; other callers of it keep theirs."""

    active = 0

    def filter(self, record: logging.LogRecord) -> bool:
        return self.active == 0


_hush = _Hush()


@contextlib.contextmanager
def hushed(*loggers: str) -> Iterator[None]:
    """Drop the records of the named loggers."""
    for name in loggers:
        logging.getLogger(name).addFilter(_hush)  # a filter that is there already is not added again
    _hush.active += 1
    try:
        yield
    finally:
        _hush.active -= 1

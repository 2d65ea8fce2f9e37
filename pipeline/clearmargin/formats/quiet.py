"""Other libraries' log records, which quote file names and values, dropped while our own calls run."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator

__all__ = ["hushed"]


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

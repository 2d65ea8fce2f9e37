"""How a run ends: from the exception that left its block, and from SIGTERM, which is made one."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any

from clearmargin.tracking.spool import EndStatus

__all__ = ["Terminated", "end_status", "restore_sigterm", "turn_sigterm_into_exception"]


class Terminated(SystemExit):
    """SIGTERM, as an exception, so that a run is closed on the way out; the exit code is 143."""

    def __init__(self) -> None:
        super().__init__(143)


def end_status(error: BaseException | None) -> EndStatus:
    """Return how a run ended whose block ``error`` left; None is the end of the block.

    >>> end_status(None), end_status(ValueError()), end_status(KeyboardInterrupt()), end_status(Terminated())
    ('FINISHED', 'FAILED', 'KILLED', 'KILLED')
    """
    if error is None or (isinstance(error, SystemExit) and error.code in (None, 0)):
        return "FINISHED"
    if isinstance(error, KeyboardInterrupt) or (isinstance(error, SystemExit) and error.code in (130, 143)):
        return "KILLED"
    return "FAILED"


def turn_sigterm_into_exception() -> Any:
    """Have SIGTERM raise :class:`Terminated`; return what to give back to :func:`restore_sigterm`.

    Nothing is changed, and None returned, where the program handles SIGTERM itself or this is not a main thread.
    """
    if threading.current_thread() is not threading.main_thread():
        return None
    if signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:
        return None
    return signal.signal(signal.SIGTERM, _raise_terminated)


def restore_sigterm(before: Any) -> None:
    """Set SIGTERM's handling back to what it was."""
    if before is not None:
        signal.signal(signal.SIGTERM, before)


def _raise_terminated(number: int, frame: FrameType | None) -> None:
    raise Terminated

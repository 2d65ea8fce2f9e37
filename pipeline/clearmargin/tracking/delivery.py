"""Delivery to a store that may be down: a training outlives its tracking server."""

from __future__ import annotations

import logging
import time
from collections import Counter, deque
from collections.abc import Callable
from typing import TypeVar

__all__ = ["Delivery"]

_log = logging.getLogger(__name__)
T = TypeVar("T")
_MOST_WAITING = 500
_MOST_FAILURES = 3  # at the end: a server that hangs must not hold it up for each thing


class Delivery:
    """Makes calls to the store, warns at the first that fails, and makes the failed ones again later.

    After a failure nothing is tried for ``pause_s`` seconds: a server that hangs must not slow every step. What was
    not delivered waits, in order, and goes before the next call that is tried; what the store refuses does not.

    Attributes:
        lost: How many of which kind of thing (``"metrics"``, ``"images"``, ...) were not delivered, and wait no more.
    """

    def __init__(self, pause_s: float = 30.0) -> None:
        self.lost: Counter[str] = Counter()
        self._waiting: deque[tuple[str, Callable[[], object], int]] = deque()
        self._pause_s = pause_s
        self._again_s = 0.0
        self._warned = False

    def attempt(
        self,
        kind: str,
        action: Callable[[], T],
        *,
        count: int = 1,
        urgent: bool = False,
        later: Callable[[], Callable[[], object]] | None = None,
    ) -> T | None:
        """Return what ``action`` returns, or None where the store failed or is being left alone.

        Args:
            kind: What is delivered, as the last message names it.
            action: The calls to the store.
            count: How many things are lost if it fails; 0 where the caller keeps them, and calls again.
            urgent: Try even during the pause.
            later: Makes what is called in place of ``action`` if it has to wait, as when its file will be gone.
        """
        if not urgent and time.monotonic() < self._again_s:
            self._wait(kind, action, count, later)
            return None
        if not self._deliver_waiting(1) and not urgent:
            self._wait(kind, action, count, later)
            return None
        result, again = self._call(kind, action, count)
        if again:
            self._wait(kind, action, count, later)
        return result

    def close(self) -> None:
        """Try once more what waits; the rest is lost."""
        self._deliver_waiting(_MOST_FAILURES)
        for kind, _, count in self._waiting:
            self.lost[kind] += count
        self._waiting.clear()

    def _deliver_waiting(self, most_failures: int) -> bool:
        """Call what waits, in order, until so many have failed; return whether none has. Those that failed wait on."""
        failures = 0
        for _ in range(len(self._waiting)):
            kind, action, count = self._waiting[0]
            _, again = self._call(kind, action, count)
            if again:
                failures += 1
                if failures >= most_failures:
                    return False
                self._waiting.rotate(-1)
            else:
                self._waiting.popleft()
        return not failures

    def _call(self, kind: str, action: Callable[[], T], count: int) -> tuple[T | None, bool]:
        """Return what ``action`` returns, and whether it is worth another attempt."""
        from mlflow.exceptions import MlflowException
        from sqlalchemy.exc import SQLAlchemyError

        try:
            return action(), False
        except (MlflowException, SQLAlchemyError, OSError) as error:
            self._warn(kind, error)
            refused = getattr(error, "error_code", "") in (
                "INVALID_PARAMETER_VALUE",
                "RESOURCE_DOES_NOT_EXIST",
            )
            if refused or isinstance(error, FileNotFoundError):  # which no other attempt would change
                if count:
                    self.lost[kind] += count
                return None, False
            self._again_s = time.monotonic() + self._pause_s
            return None, True

    def _wait(
        self,
        kind: str,
        action: Callable[[], object],
        count: int,
        later: Callable[[], Callable[[], object]] | None,
    ) -> None:
        if not count:
            return
        if len(self._waiting) >= _MOST_WAITING:  # pictures: the oldest says least
            gone, _, size = self._waiting.popleft()
            self.lost[gone] += size
        self._waiting.append((kind, action if later is None else later(), count))

    def summary(self) -> str:
        """Return what was lost in words; empty if nothing was.

        >>> delivery = Delivery()
        >>> delivery.lost.update({"metrics": 12, "images": 2})
        >>> delivery.summary()
        '12 metrics, 2 images'
        """
        return ", ".join(f"{n} {kind}" for kind, n in self.lost.items() if n)

    def _warn(self, kind: str, error: Exception) -> None:
        """Say it once, without the error's text: it can hold paths, hosts and credentials."""
        if not self._warned:
            self._warned = True
            _log.warning(
                "the tracking store failed (%s, at %s): the work goes on; the end tells what is not logged",
                type(error).__name__,
                kind,
            )

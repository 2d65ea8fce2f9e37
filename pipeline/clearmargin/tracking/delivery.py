"""Delivery to a store that may be down: a training outlives its tracking server."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable
from typing import TypeVar

__all__ = ["Delivery"]

_log = logging.getLogger(__name__)
T = TypeVar("T")


class Delivery:
    """Makes calls to the store, warns at the first that fails, and counts what was not delivered.

    After a failure nothing is tried for ``pause_s`` seconds: a server that hangs must not slow every step.

    Attributes:
        lost: How many of which kind of thing (``"metrics"``, ``"images"``, ...) were not delivered.
    """

    def __init__(self, pause_s: float = 30.0) -> None:
        self.lost: Counter[str] = Counter()
        self._pause_s = pause_s
        self._again_s = 0.0
        self._warned = False

    def attempt(
        self, kind: str, action: Callable[[], T], *, count: int = 1, urgent: bool = False
    ) -> T | None:
        """Return what ``action`` returns, or None where the store failed or is being left alone.

        Args:
            kind: What is delivered, as the last message names it.
            action: The calls to the store.
            count: How many things are lost if it fails; 0 where the caller keeps them.
            urgent: Try even during the pause.
        """
        from mlflow.exceptions import MlflowException
        from sqlalchemy.exc import SQLAlchemyError

        if not urgent and time.monotonic() < self._again_s:
            self._miss(kind, count)
            return None
        try:
            return action()
        except (MlflowException, SQLAlchemyError, OSError) as error:
            self._miss(kind, count)
            refused = getattr(error, "error_code", "") in (
                "INVALID_PARAMETER_VALUE",
                "RESOURCE_DOES_NOT_EXIST",
            )
            if not refused:
                self._again_s = time.monotonic() + self._pause_s
            self._warn(kind, error)
            return None

    def summary(self) -> str:
        """Return what was lost in words; empty where nothing was.

        >>> delivery = Delivery()
        >>> delivery.lost.update({"metrics": 12, "images": 2})
        >>> delivery.summary()
        '12 metrics, 2 images'
        """
        return ", ".join(f"{n} {kind}" for kind, n in self.lost.items() if n)

    def _miss(self, kind: str, count: int) -> None:
        if count:
            self.lost[kind] += count

    def _warn(self, kind: str, error: Exception) -> None:
        """Say it once, without the error's text: it can hold paths, hosts and credentials."""
        if not self._warned:
            self._warned = True
            _log.warning(
                "the tracking store failed (%s, at %s): the work goes on; the end tells what is not logged",
                type(error).__name__,
                kind,
            )

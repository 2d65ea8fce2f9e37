"""A few tries of one request, and none at all while an archive is known to be away."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import TypeVar

from clearmargin.errors import ConfigError, InputError, UnavailableError

__all__ = ["Breaker"]

T = TypeVar("T")


class Breaker:
    """Tries a request a few times; after several that failed in a row, asks nothing for a while.

    One breaker stands for one archive in one process: an archive that is away costs a few requests their time limit,
    not each. After the rest one request is let through, and decides.
    """

    def __init__(self, *, tries: int, failures: int, rest_s: float) -> None:
        """Set the limits.

        Args:
            tries: How often a request is made before it fails.
            failures: After so many failed tries in a row the archive counts as away.
            rest_s: How long it is not asked then.
        """
        self._tries, self._failures, self._rest_s = tries, failures, rest_s
        self._lock = threading.Lock()
        self._failed = 0
        self._until = 0.0
        self._why = ""

    def call(self, request: Callable[[], T]) -> T:
        """Return what a request returns.

        Raises:
            UnavailableError: The archive is away, or was a moment ago and is not asked.
        """
        try:
            from tenacity import (
                Retrying,
                retry_if_exception_type,
                stop_after_attempt,
                wait_random_exponential,
            )
        except ImportError:
            raise ConfigError("archives need tenacity: pip install 'clearmargin[batch]'") from None
        tries = Retrying(
            stop=stop_after_attempt(self._tries),
            wait=wait_random_exponential(multiplier=0.25, max=4),
            retry=retry_if_exception_type(UnavailableError),
            reraise=True,
        )
        value: T = tries(self._once, request)
        return value

    def _once(self, request: Callable[[], T]) -> T:
        with self._lock:
            if self._failed >= self._failures:
                if time.monotonic() < self._until:
                    raise UnavailableError(f"not asked, since it was away a moment ago: {self._why}")
                self._until = time.monotonic() + self._rest_s  # the others wait for this one
        try:
            value = request()
        except UnavailableError as error:
            with self._lock:
                self._failed += 1
                self._until = time.monotonic() + self._rest_s
                self._why = str(error)
            raise
        except InputError:  # a refusal is an answer
            self._answered()
            raise
        self._answered()
        return value

    def _answered(self) -> None:
        with self._lock:
            self._failed = 0

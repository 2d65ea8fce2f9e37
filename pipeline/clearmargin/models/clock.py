"""Where time goes, by name."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch

__all__ = ["Clock"]


@dataclass(kw_only=True)
class Clock:
    """Seconds by name.

    Attributes:
        device: A CUDA device is waited for at both ends of each span, or its work would be counted later.
        seconds: Spent so far.
    """

    device: torch.device | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    _inner: float = field(default=0.0, init=False, repr=False)

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Count the time of a block under ``name``, less that of blocks within it, which have their own names."""
        start, around = self._now(), self._inner
        self._inner = 0.0
        try:
            yield
        finally:
            whole = self._now() - start
            self.seconds[name] = self.seconds.get(name, 0.0) + whole - self._inner
            self._inner = around + whole

    def shares(self) -> dict[str, float]:
        """Return each name's share of all that was counted, in [0, 1]."""
        total = sum(self.seconds.values())
        return {name: value / total for name, value in self.seconds.items()} if total else {}

    def _now(self) -> float:
        if self.device is not None and self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

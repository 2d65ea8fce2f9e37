"""The minutes of a training: its steps end early enough for the last validation."""

from __future__ import annotations

import time

__all__ = ["Budget"]

_MOST_RESERVED = 0.5  # of the time: the rest is for steps, however long a validation takes


class Budget:
    """How much of its time a training has used.

    Attributes:
        most: Minutes that it may take; None for any number.
        reserved_s: Seconds that are kept for what follows the last step: as long as that took before, at most half of
            the time.
    """

    def __init__(self, most: float | None, spent_s: float = 0.0) -> None:
        """Start the clock.

        Args:
            most: As the attribute.
            spent_s: What a training that is resumed has used.
        """
        self.most = most
        self.reserved_s = 0.0
        self._started = time.monotonic() - spent_s

    @property
    def spent_s(self) -> float:
        """Seconds until now."""
        return time.monotonic() - self._started

    def reserve(self, seconds: float) -> None:
        """Keep so much for the end, if it is more than was kept."""
        if self.most is not None:
            self.reserved_s = max(self.reserved_s, min(seconds, _MOST_RESERVED * 60 * self.most))

    def share(self) -> float:
        """Return the share of the time for steps that is gone; 0 if any number of minutes may be used."""
        return 0.0 if self.most is None else self.spent_s / (60 * self.most - self.reserved_s)

"""Progress: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

__all__ = ["Bar", "counted", "progress"]

_T = TypeVar("_T")

log = logging.getLogger(__name__)

_EVERY_S = 30.0  # between two plain lines


class Bar:
    """Counts to a total and tells where it can be seen."""

    def __init__(self, description: str, total: int) -> None:
        self.description, self.total, self.done = description, total, 0
        self._told = time.monotonic()

    def advance(self, **values: str) -> None:
        """Count one more; ``values`` are shown beside the count."""
        self.done += 1
        if time.monotonic() - self._told >= _EVERY_S:
            self._told = time.monotonic()
            shown = " ".join(f"{k} {v}" for k, v in values.items())
            log.info("%s: %d of %d %s", self.description, self.done, self.total, shown)


class _TerminalBar(Bar):
    def __init__(self, description: str, total: int, show: object) -> None:
        super().__init__(description, total)
        self._show = show

    def advance(self, **values: str) -> None:
        self.done += 1
        self._show(values)  # type: ignore[operator]


@contextmanager
def progress(description: str, total: int) -> Iterator[Bar]:
    """Yield a bar that counts to ``total``; on a terminal it is drawn on stderr, and gone when it is done."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    if not console.is_terminal:
        yield Bar(description, total)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[values]}"),
    )
    with Progress(*columns, console=console, transient=True) as drawn:
        task = drawn.add_task(description, total=total, values="")

        def show(values: dict[str, str]) -> None:
            drawn.update(task, advance=1, values=" ".join(f"{k} {v}" for k, v in values.items()))

        yield _TerminalBar(description, total, show)


def counted(description: str, items: Sequence[_T]) -> Iterator[_T]:
    """Yield each item, and count it in a bar once it is done with."""
    with progress(description, len(items)) as bar:
        for item in items:
            yield item
            bar.advance()

"""What a person sees while items of a ledger are done, and where results go: shared by batch and listen."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clearmargin.cli.app import emit, tell
from clearmargin.errors import ClearMarginError

if TYPE_CHECKING:
    from clearmargin.batch import Snapshot
    from clearmargin.jobs.worker import Event
    from clearmargin.pacs.archive import Archive

__all__ = [
    "Shown",
    "check_archive",
    "destinations_of",
    "duration",
    "shown_progress",
]

_TELL_EVERY_S = 60.0


def destinations_of(urls: list[str] | None, ca_file: Path | None) -> list[Archive]:
    """Return the archives that results are sent to, each of which has answered."""
    from clearmargin.pacs.addresses import archive_at

    destinations = [archive_at(url, ca_file) for url in dict.fromkeys(urls or [])]
    for destination in destinations:
        check_archive(destination)
    return destinations


def check_archive(archive: Archive) -> None:
    """Ask an archive for an answer; an error names it, as there may be several.

    Raises:
        ClearMarginError: It does not answer, or does not let us in.
    """
    try:
        archive.check()
    except ClearMarginError as error:
        raise type(error)(f"{archive.name}: {error}") from None


class Shown:
    """What a person sees while a batch runs: a bar on a terminal, one plain line per minute elsewhere."""

    def __init__(self, bar: Any = None) -> None:
        self._bar = bar
        self._task: Any = None
        self._listed = 0
        self._told = time.monotonic()
        self._reason = ""

    def found(self, files: int) -> None:
        """Say how many files were listed."""
        self._listed += files
        if self._due():
            tell(f"listing: {self._listed} files")

    def event(self, event: Event) -> None:
        """Print an item that ended, or once why workers wait."""
        if not event.case_id:
            if event.reason != self._reason:
                tell(event.reason)
            self._reason = event.reason
            return
        self._reason = ""
        tail = f": {event.kind}: {event.reason}" if event.reason else f" -> {event.folder}"
        emit(
            f"{event.case_id}: {event.state}, {event.instances} instances, {event.seconds:.1f} s{tail}",
            case=event.case_id,
            state=event.state,
            kind=event.kind,
            reason=event.reason,
            seconds=event.seconds,
            instances=event.instances,
            folder=event.folder,
        )

    def tick(self, snapshot: Snapshot) -> None:
        """Say where the batch stands."""
        bad = ", ".join(f"{n} {kind}" for kind, n in snapshot.failures.items())
        left = "" if snapshot.left_s is None else f", {duration(snapshot.left_s)} left"
        text = f"{3600 * snapshot.rate:.0f} an hour{left}{f'; failed: {bad}' if bad else ''}"
        if self._bar is not None:
            if self._task is None:
                self._task = self._bar.add_task("batch", total=snapshot.total, values="")
            self._bar.update(self._task, completed=snapshot.ended, total=snapshot.total, values=text)
        elif self._due():
            tell(f"{snapshot.ended} of {snapshot.total} items, {text}")

    def _due(self) -> bool:
        if self._bar is not None or time.monotonic() - self._told < _TELL_EVERY_S:
            return False
        self._told = time.monotonic()
        return True


@contextmanager
def shown_progress() -> Iterator[Shown]:
    """Show what happens as long as the block runs."""
    if not sys.stderr.isatty():
        yield Shown()
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[values]}"),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        yield Shown(bar)


def duration(seconds: float) -> str:
    """Return a time as a person says it.

    >>> duration(42), duration(600), duration(9000), duration(200000)
    ('42 s', '10 min', '2.5 h', '2.3 days')
    """
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 172800 else f"{seconds / 86400:.1f} days"

"""What comes to a service: series that peers send, or that an archive says have become stable, as items of a ledger."""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from clearmargin.errors import ClearMarginError
from clearmargin.failures import reason_of
from clearmargin.formats.dicom.output import MANUFACTURER
from clearmargin.jobs.ledger import Ledger
from clearmargin.pacs.association import SUCCESS
from clearmargin.pacs.audit import Audit
from clearmargin.pacs.changes import Changes
from clearmargin.pacs.inbox import Inbox
from clearmargin.pacs.receiving import Arrived, object_of
from clearmargin.predicting.archived import find_archived
from clearmargin.predicting.discovery import Found, Left, find_inputs
from clearmargin.predicting.items import new_item
from clearmargin.predicting.selection import Selection

__all__ = ["Arrivals", "Feed", "Received", "Source", "look_at"]

log = logging.getLogger(__name__)

_LOOK_EVERY_S = 0.5
_ASK_EVERY_S = 5.0


@dataclass
class Arrivals:
    """What has arrived, counted; shared by threads.

    Attributes:
        ledger: Gets the items.
        recipe: Their recipe.
        selection: Which series are taken.
        audit: Gets a line for each object.
        counts: Objects and series by what became of them.
        last: When something arrived last (`time.time`); at first when the service began.
        left: What was left out of what arrived.
        troubles: Why a source cannot be asked, by its name.
    """

    ledger: Ledger
    recipe: str
    selection: Selection
    audit: Audit
    counts: Counter[str] = field(default_factory=Counter)
    last: float = field(default_factory=time.time)
    left: Left = field(default_factory=Left)
    troubles: dict[str, str] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def note(self, event: str, *, arrived: bool = False, **fields: str | int) -> None:
        """Count what happened, and append it to the audit log."""
        with self._lock:
            self.counts[event] += 1
            if arrived:
                self.last = time.time()
        self.audit.note(event, **fields)

    def add(self, inputs: Iterable[Found]) -> int:
        """Make items of inputs; return how many are new. What could not be read is told."""
        before = set(self.left.unreadable)
        new, _ = self.ledger.add([new_item(f, self.recipe) for f in inputs])
        for case in self.left.unreadable.keys() - before:
            log.warning("%s: cannot be used: %s", case, self.left.unreadable[case])
        with self._lock:
            self.counts["items"] += new
        return new


class Source(Protocol):
    """Where series come from, looked at again and again."""

    @property
    def name(self) -> str:
        """What it is called in a message."""
        ...

    def look(self) -> None:
        """Make items of what has come.

        Raises:
            ClearMarginError: It cannot be asked now.
        """
        ...


@dataclass
class Received:
    """Series that peers send us by C-STORE.

    Attributes:
        inbox: Where they lie.
        arrivals: Counts them.
    """

    inbox: Inbox
    arrivals: Arrivals
    name: str = "what was received"

    def store(self, event: Any) -> int:
        """Take an object (pynetdicom's C-STORE request); return the status that answers it."""
        arrived = object_of(event)
        if isinstance(arrived, int):
            peer = event.assoc.requestor
            self.arrivals.note(
                "refused", peer=str(peer.ae_title).strip(), host=str(peer.address), status=arrived
            )
            return arrived
        own = self.arrivals.ledger.is_own(arrived.uid) or arrived.description.startswith(f"{MANUFACTURER} ")
        status = SUCCESS if own else self.inbox.keep(arrived)
        what = "own" if own else "received" if status == SUCCESS else "refused"
        self.arrivals.note(what, arrived=what == "received", status=status, **_identity(arrived))
        return status

    def rejected(self, title: str, host: str) -> None:
        """Note a caller whom we do not know."""
        log.warning(
            "an association was rejected: its AE title is not among --from, or it calls another than ours"
        )
        self.arrivals.note("rejected", peer=title, host=host)

    def look(self) -> None:
        """Make items of series that have become stable."""
        arrivals, folders = self.arrivals, self.inbox.stable()
        while folders:
            inputs = find_inputs(
                folders[-1], ledger=arrivals.ledger, selection=arrivals.selection, left=arrivals.left
            )
            try:
                arrivals.add(inputs)
            except Exception:
                for folder in folders:
                    self.inbox.again(folder)
                raise
            folders.pop()


def _identity(arrived: Arrived) -> dict[str, str]:
    return {
        "peer": arrived.title,
        "host": arrived.host,
        "sop_class": arrived.sop_class,
        "uid": arrived.uid,
        "series": arrived.series,
        "study": arrived.study,
    }


@dataclass
class Feed:
    """Series that an Orthanc says have become stable; the cursor is kept in the ledger.

    Attributes:
        changes: The feed.
        arrivals: Counts them.
    """

    changes: Changes
    arrivals: Arrivals
    _asked: float = 0.0

    @property
    def name(self) -> str:
        """The feed's address."""
        return self.changes.url

    def look(self) -> None:
        """Make items of series that have become stable since the last look; the first look of all begins now."""
        if time.monotonic() - self._asked < _ASK_EVERY_S:
            return
        self._asked = time.monotonic()
        ledger, key = self.arrivals.ledger, f"changes {self.changes.url}"
        cursor = ledger.recall(key)
        if cursor is None:
            ledger.remember(key, self.changes.newest())
            return
        done = False
        while not done:
            changed, cursor, done = self.changes.since(int(cursor))
            for one in changed:
                inputs = find_archived(
                    self.changes.archive,
                    ledger=ledger,
                    selection=self.arrivals.selection,
                    left=self.arrivals.left,
                    study=one.study,
                    series=one.series,
                )
                if self.arrivals.add(inputs):
                    self.arrivals.note(
                        "announced", arrived=True, peer=self.name, series=one.series, study=one.study
                    )
            ledger.remember(key, cursor)


def look_at(sources: Sequence[Source], arrivals: Arrivals, over: threading.Event) -> None:
    """Look at sources again and again until it is over; what goes wrong is told once, and they are looked at again."""
    while not over.wait(_LOOK_EVERY_S):
        for source in sources:
            try:
                source.look()
            except Exception as error:  # noqa: BLE001 - whatever one series provokes, the service goes on
                why = str(error) if isinstance(error, ClearMarginError) else reason_of(error)
                if arrivals.troubles.get(source.name) != why:
                    log.warning("%s: %s", source.name, why)
                arrivals.troubles[source.name] = why
            else:
                if arrivals.troubles.pop(source.name, None):
                    log.warning("%s: well again", source.name)

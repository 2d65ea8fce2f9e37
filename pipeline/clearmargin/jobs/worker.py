"""One worker: claims items, and reads the next while it computes one and writes the last."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import queue
import random
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from shutil import disk_usage
from typing import Any, Protocol

from clearmargin.errors import ClearMarginError, InputError, UnavailableError
from clearmargin.failures import reason_of, refusal_of
from clearmargin.jobs.items import Item, Outcome
from clearmargin.jobs.ledger import Ledger
from clearmargin.owners import owner_here

__all__ = ["IN_MEMORY", "Event", "Limits", "Work", "outcome_of", "work_off"]

log = logging.getLogger(__name__)

IN_MEMORY = 3
"""The most decoded inputs that one worker holds: one read ahead, one computed, one written."""

_ALONE_FROM = 3  # tries
_LOOK_AGAIN_S = 10.0
_READER_ENDS_S = 5.0
_MOST_SPARED = 10


class Work(Protocol):
    """What is done with an item, in three steps that overlap with those of its neighbours.

    It goes to other processes, so it is values: `prepare` loads what is heavy.
    """

    def prepare(self, index: int) -> None:
        """Load what all items need, once per process; ``index`` counts the processes from 0."""
        ...

    def read(self, item: Item) -> Any:
        """Return an item's input."""
        ...

    def compute(self, item: Item, loaded: Any) -> Any:
        """Return what is to be written."""
        ...

    def write(self, item: Item, computed: Any) -> Outcome:
        """Write it, so that it is whole and on the disk, and say what was written."""
        ...

    def away(self) -> str:
        """Return why no item can be done now, such as an archive that does not answer; "" if all is there."""
        ...

    def settle(self, item: Item, current: str) -> None:
        """Point to a case's current results, once the ledger has recorded them; ``current`` is their folder."""
        ...


@dataclass(frozen=True, kw_only=True)
class Limits:
    """When a worker stops, waits, or tries again.

    Attributes:
        recipe: Items of this recipe alone are taken.
        lease_s: How long an item is another's after its owner was last heard of.
        most_tries: How often an item is begun before it fails for good.
        backoff_s: Wait before the second try of what may pass; it doubles with each, up to ten minutes.
        least_free_bytes: Below so much free space in ``out`` nothing new is begun.
        out: The folder that is asked for it.
    """

    recipe: str
    lease_s: float = 60.0
    most_tries: int = 4
    backoff_s: float = 5.0
    least_free_bytes: int = 0
    out: Path | None = None

    def short_of_space(self) -> str:
        """Return what is missing, in a sentence; "" if nothing is."""
        if self.out is None or not self.least_free_bytes:
            return ""
        free = disk_usage(self.out).free
        if free >= self.least_free_bytes:
            return ""
        return (
            f"paused: the output disk has {free / 2**30:.3g} GiB free, less than {self.least_free_bytes / 2**30:.3g}; "
            "it goes on once there is room"
        )


@dataclass(frozen=True, kw_only=True)
class Event:
    """What a worker tells: an item that ended, or why it waits or stops (then without a case)."""

    case_id: str = ""
    state: str = ""
    reason: str = ""
    kind: str = ""
    seconds: float = 0.0
    instances: int = 0
    folder: str = ""


def work_off(
    ledger: Ledger,
    work: Work,
    *,
    limits: Limits,
    tell: Callable[[Event], object],
    stopped: Callable[[], bool],
    until_empty: bool = True,
) -> str:
    """Do items until none is left, or until ``stopped``; give back what was begun and not finished.

    Args:
        ledger: Where items come from.
        work: Prepared.
        limits: See `Limits`.
        tell: Called with what happens, from several threads.
        stopped: Asked before each item.
        until_empty: End once nothing is pending and nothing leased; else wait for more.

    Returns:
        Why it had to stop, such as a full disk; "" if there was nothing left to do.
    """
    worker = _Worker(ledger, work, limits, tell, stopped, until_empty)
    return worker.run()


class _Worker:
    def __init__(
        self,
        ledger: Ledger,
        work: Work,
        limits: Limits,
        tell: Callable[[Event], object],
        stopped: Callable[[], bool],
        until_empty: bool,
    ) -> None:
        self.ledger, self.work, self.limits, self.tell = ledger, work, limits, tell
        self.until_empty = until_empty
        self.owner = f"{owner_here()}:{threading.get_ident()}"
        self._asked_to_stop = stopped
        self._halted = threading.Event()
        self._why = ""
        self._away = ""
        self._spared: Counter[int] = Counter()
        self._room = threading.BoundedSemaphore(IN_MEMORY)
        self._read: queue.Queue[tuple[Item, Any, float] | None] = queue.Queue(maxsize=1)
        self._computed: queue.Queue[tuple[Item, Any, float] | None] = queue.Queue(maxsize=1)
        self._ended = threading.Event()

    def run(self) -> str:
        threads = [
            threading.Thread(target=self._guarded, args=(step,), name=name, daemon=True)
            for name, step in (("read", self._reading), ("write", self._writing), ("beat", self._beating))
        ]
        reader, self._writer, _ = threads
        for thread in threads:
            thread.start()
        try:
            self._computing()
        finally:
            self._halted.set()
            self._hand_over(None)
            self._writer.join()
            self._ended.set()
            self._let_go(reader)
            for thread in threads:
                thread.join(timeout=5)
            self.ledger.release(self.owner)
        return self._why

    def _hand_over(self, entry: tuple[Item, Any, float] | None) -> None:
        """Give the writer what it writes next; if an error has ended it, nothing is written any more."""
        while self._writer.is_alive():
            with contextlib.suppress(queue.Full):
                self._computed.put(entry, timeout=0.2)
                return

    def _let_go(self, reader: threading.Thread) -> None:
        """Take what was read and is not computed any more, so that the reader can end."""
        end = time.monotonic() + _READER_ENDS_S
        while reader.is_alive() and time.monotonic() < end:
            with contextlib.suppress(queue.Empty):
                self._read.get(timeout=0.05)

    def _stopping(self) -> bool:
        return self._halted.is_set() or self._asked_to_stop()

    def _halt(self, why: str) -> None:
        self._why = self._why or why
        self._halted.set()

    def _guarded(self, step: Callable[[], None]) -> None:
        """Run a thread's step; an error in it, as of the ledger, ends the worker with its reason."""
        try:
            step()
        except Exception as error:  # noqa: BLE001 - told, and the worker ends
            self._halt(_said(error))

    def _reading(self) -> None:
        """Claim and read, one item ahead."""
        try:
            while not self._stopping():
                if self._paused():
                    self._sleep(_LOOK_AGAIN_S)
                    continue
                if not self._room.acquire(timeout=0.2):
                    continue
                item = self.ledger.claim(self.owner, recipe=self.limits.recipe, lease_s=self.limits.lease_s)
                if item is None:
                    self._room.release()
                    counts = self.ledger.counts(self.limits.recipe)
                    if self.until_empty and not counts["pending"] and not counts["leased"]:
                        return
                    self._sleep(0.5)
                    continue
                if item.tries < _ALONE_FROM:
                    self._read_one(item)
                    continue
                # What was beside an item that ended its process twice has been begun twice, too: alone each shows
                # whose fault it was.
                if self._wait_for_room(IN_MEMORY - 1):
                    self._read_one(item)
                    ended = self._wait_for_room(1)
                    for _ in range(IN_MEMORY - 1 + ended):
                        self._room.release()
        finally:
            self._read.put(None)

    def _paused(self) -> bool:
        """Return whether nothing new is begun now, and tell why."""
        if self._away:
            self._away = self.work.away()
            if not self._away:
                self.tell(Event(reason="what was away is back: going on"))
        why = self._away or self.limits.short_of_space()
        if why:
            self.tell(Event(reason=why))
        return bool(why)

    def _read_one(self, item: Item) -> None:
        start = time.monotonic()
        try:
            loaded = self.work.read(item)
        except Exception as error:  # noqa: BLE001 - one item's end is not the others'
            self._failed(item, error, start)
            return
        self._read.put((item, loaded, start))

    def _wait_for_room(self, number: int) -> bool:
        """Wait until so many more items have ended; False if it was told to stop first, and then nothing is held."""
        for held in range(number):
            while not self._room.acquire(timeout=0.2):
                if self._stopping() or self._ended.is_set():
                    for _ in range(held):
                        self._room.release()
                    return False
        return True

    def _computing(self) -> None:
        while True:
            entry = self._read.get()
            if entry is None:
                return
            item, loaded, start = entry
            if self._stopping():
                self._room.release()
                continue
            try:
                computed = self.work.compute(item, loaded)
            except Exception as error:  # noqa: BLE001
                self._failed(item, error, start)
                continue
            finally:
                del entry, loaded
            self._hand_over((item, computed, start))
            del computed

    def _writing(self) -> None:
        while True:
            entry = self._computed.get()
            if entry is None:
                return
            item, computed, start = entry
            if self._why:  # the disk is full, say: what is not written goes back
                self._room.release()
                continue
            try:
                outcome = self.work.write(item, computed)
            except Exception as error:  # noqa: BLE001
                self._failed(item, error, start)
                continue
            finally:
                del entry, computed
            self._finish(item, outcome, start)

    def _beating(self) -> None:
        while not self._ended.wait(self.limits.lease_s / 4):
            self.ledger.renew(self.owner, lease_s=self.limits.lease_s)
            self.ledger.lost(most_tries=self.limits.most_tries)

    def _failed(self, item: Item, error: Exception, start: float) -> None:
        try:
            outcome = outcome_of(error, item.tries, self.limits)
            if isinstance(error, UnavailableError):
                self._away = self.work.away() or self._away
                # Not this item's trouble, unless what it needs is away each time that it is tried.
                if self._away and self._spared[item.id] < _MOST_SPARED:
                    self._spared[item.id] += 1
                    outcome = replace(outcome, again_in_s=self.limits.backoff_s, counted=False)
        except Exception as machine:  # noqa: BLE001 - the disk is full: no other item could be done either
            self._halt(_said(machine))
            self._room.release()
            return
        self._finish(item, outcome, start)

    def _finish(self, item: Item, outcome: Outcome, start: float) -> None:
        outcome = replace(outcome, seconds=round(time.monotonic() - start, 3))
        current = self.ledger.finish(item, outcome)
        self._room.release()
        if current is None:
            return
        if outcome.state == "done":
            self.work.settle(item, current)
        state = "pending" if outcome.again_in_s is not None else outcome.state
        self.tell(
            Event(
                case_id=item.case_id,
                state=state,
                reason=outcome.reason,
                kind=outcome.kind,
                seconds=outcome.seconds,
                instances=outcome.instances,
                folder=outcome.folder,
            )
        )

    def _sleep(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end and not self._stopping():
            time.sleep(0.1)


def outcome_of(error: Exception, tries: int, limits: Limits) -> Outcome:
    """Return what an error means for an item: refused for the input's own fault, tried again, or failed.

    Raises:
        Exception: The error itself, if no other item could be done either, as on a full disk.
    """
    kind = type(error).__name__
    if isinstance(error, UnavailableError):
        waited = min(600.0, limits.backoff_s * 2 ** (tries - 1)) * random.uniform(0.75, 1.25)
        again = waited if tries < limits.most_tries else None
        return Outcome(state="failed", kind=kind, reason=str(error), again_in_s=again)
    if isinstance(error, InputError):
        return Outcome(state="refused", kind=kind, reason=str(error))
    return Outcome(state="failed", kind=kind, reason=reason_of(error))


def _said(error: Exception) -> str:
    if isinstance(error, ClearMarginError):
        return str(error)
    refused = refusal_of(error)
    if refused is not None:
        return refused
    with contextlib.suppress(Exception):
        return reason_of(error)
    number = getattr(error, "errno", None) or errno.EIO
    return f"the system refused: {os.strerror(number)}"

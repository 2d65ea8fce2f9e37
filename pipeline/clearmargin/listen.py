"""Segment what arrives: by C-STORE, from Orthanc's change feed, or from a worklist; results go back to archives."""

from __future__ import annotations

import logging
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from clearmargin.errors import ConfigError
from clearmargin.files import made_folder
from clearmargin.jobs.health import Health, serving
from clearmargin.jobs.items import State
from clearmargin.jobs.worker import Event
from clearmargin.pacs.archive import Archive
from clearmargin.pacs.association import is_title
from clearmargin.pacs.changes import Changes
from clearmargin.pacs.inbox import Inbox
from clearmargin.pacs.receiving import receiver
from clearmargin.pacs.worklist import Worklist
from clearmargin.predicting.arriving import Arrivals, Feed, Received, Source, look_at
from clearmargin.predicting.cases import Reading
from clearmargin.predicting.discovery import load_selection
from clearmargin.predicting.predictor import Predictor
from clearmargin.predicting.prepared import (
    Prepared,
    default_ledger,
    mend,
    prepare,
    processes_of,
    run_prepared,
)
from clearmargin.predicting.worklisted import FromWorklist

__all__ = ["ListenReport", "Port", "listen"]

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Port:
    """Where objects are received, and from whom.

    Attributes:
        callers: AE titles that may send; no others.
        title: Our AE title.
        host: The interface; this machine alone, unless it is another.
        port: 0 takes a free one.
        certificate: For TLS: our certificate; None for plain DIMSE.
        key: And its key.
    """

    callers: tuple[str, ...]
    title: str = "CLEARMARGIN"
    host: str = "127.0.0.1"
    port: int = 11112
    certificate: Path | None = None
    key: Path | None = None

    def __post_init__(self) -> None:
        for title in (*self.callers, self.title):
            if not is_title(title):
                raise ConfigError(f"'{title}' is not an AE title: expected 1 to 16 characters, such as PACS1")
        if not self.callers:
            raise ConfigError("name the AE titles that may send: --from PACS1")

    def tls(self) -> ssl.SSLContext | None:
        """Return the settings of TLS; None for plain DIMSE.

        Raises:
            ConfigError: The certificate or its key cannot be read.
        """
        if self.certificate is None:
            return None
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        try:
            context.load_cert_chain(self.certificate, self.key)
        except (OSError, ssl.SSLError):
            raise ConfigError(
                f"'{self.certificate}' and its key are not a certificate in PEM that can be used"
            ) from None
        return context


@dataclass(frozen=True, kw_only=True)
class ListenReport:
    """What a service did until it ended.

    Attributes:
        counts: Items of this recipe in each state, at the end.
        arrived: Objects and series by what became of them.
        interrupted: By Ctrl-C or SIGTERM.
        why: What it had to stop for, such as a full disk; "" otherwise.
    """

    counts: dict[State, int]
    arrived: dict[str, int] = field(default_factory=dict)
    interrupted: bool = False
    why: str = ""


def listen(
    out: Path,
    predictor: Predictor,
    *,
    port: Port | None = None,
    follow: str | None = None,
    worklist: Worklist | None = None,
    archive: Archive | None = None,
    reading: Reading = Reading(),  # noqa: B008 - frozen
    ledger: Path | str | None = None,
    processes: int | None = None,
    select: Path | None = None,
    destinations: Sequence[Archive] = (),
    ca_file: Path | None = None,
    write: Sequence[str] | None = None,
    least_free_gib: float = 1.0,
    stable_s: float = 30.0,
    silent_after_s: float | None = None,
    health_port: int = 8114,
    on_ready: Callable[[int, int], object] = lambda port, health: None,
    on_event: Callable[[Event], object] = lambda _: None,
    stopped: Callable[[], bool] = lambda: False,
) -> ListenReport:
    """Segment each series that arrives, until Ctrl-C; what was received is kept, and done after a restart.

    Results lie in ``OUT/CASE/KEY`` as those of a batch, in the same ledger; received objects in ``OUT/inbox``;
    ``OUT/audit.jsonl`` says what was received and sent.

    Args:
        out: A folder on a disk with room.
        predictor: The model and how it is asked.
        port: Where objects are received; None for nowhere.
        follow: An Orthanc's address, whose change feed is followed, from now on.
        worklist: Unified Procedure Steps that are claimed, done, and completed or canceled.
        archive: Where the series of work items are fetched from.
        reading: How DICOM is read.
        ledger: A file on a local disk, or ``postgresql://...``; None for ``OUT/ledger.sqlite``.
        processes: Worker processes, as of a batch.
        select: YAML with the series that are taken (docs/batch.md).
        destinations: Archives that DICOM results are sent to.
        ca_file: Certificates that are trusted of the followed archive.
        write: Names of outputs; None for the default.
        least_free_gib: With less room nothing is received or begun.
        stable_s: A received series is stable if nothing of it arrives for so long.
        silent_after_s: Raise the alarm if nothing arrives for so long; None never.
        health_port: For ``/healthz`` and ``/metrics``, on the loopback interface; 0 takes a free one.
        on_ready: Called with both ports once objects are received.
        on_event: Called with each item that ended, and with reasons for waiting.
        stopped: Asked now and then: end after the items at hand.

    Raises:
        ConfigError: A port is taken; the model or the ledger does not fit; nothing is listened to.
    """
    if port is None and follow is None and worklist is None:
        raise ConfigError(
            "name what to listen to: --from with AE titles that may send, --follow, or --worklist"
        )
    if worklist is not None and (archive is None or not destinations):
        raise ConfigError(
            "a worklist needs the archive of its series (--archive), and one for results (--to)"
        )
    selection = load_selection(select)
    changes = None if follow is None else Changes(url=follow, ca_file=ca_file)
    made_folder(out)
    prepared = prepare(
        predictor,
        out,
        str(ledger) if ledger is not None else str(default_ledger(out)),
        reading=reading,
        write=write,
        destinations=destinations,
        archives=[a for a in (None if changes is None else changes.archive, archive) if a is not None],
        least_free_gib=least_free_gib,
    )
    mend(prepared.ledger, out)
    audit = prepared.work.audit
    if audit is None:
        raise ValueError("a service has an audit log")
    arrivals = Arrivals(ledger=prepared.ledger, recipe=prepared.recipe, selection=selection, audit=audit)
    inbox = None
    if port is not None:
        inbox = Inbox(out / "inbox", stable_s=stable_s, least_free_bytes=prepared.limits.least_free_bytes)
    watch = _Watch(prepared, arrivals, inbox, silent_after_s)

    def told(event: Event) -> None:
        watch.event(event)
        on_event(event)

    with ExitStack() as running:
        health = running.enter_context(serving(health_port, watch.health))
        sources: list[Source] = [] if changes is None else [Feed(changes=changes, arrivals=arrivals)]
        if worklist is not None and archive is not None:
            sources.append(
                FromWorklist(
                    worklist=worklist,
                    archive=archive,
                    destination=destinations[0],
                    out=out,
                    what=f"Segmentation by {predictor.provenance.model}",
                    arrivals=arrivals,
                )
            )
        received = 0
        if port is not None and inbox is not None:
            taken = Received(inbox=inbox, arrivals=arrivals)
            sources.append(taken)
            received = running.enter_context(
                receiver(
                    (port.host, port.port),
                    port.title,
                    port.callers,
                    taken.store,
                    tls=port.tls(),
                    refused=taken.rejected,
                )
            )
        running.enter_context(_looking(sources, arrivals, watch))
        on_ready(received, health)
        ended = run_prepared(
            prepared,
            processes=0 if processes == 0 else processes_of(processes, predictor.device),
            tell=told,
            until_empty=False,
            stopped=stopped,
        )
    counts = prepared.ledger.counts(prepared.recipe)
    prepared.ledger.close()
    return ListenReport(
        counts=counts, arrived=dict(arrivals.counts), interrupted=ended.interrupted, why=ended.why
    )


@contextmanager
def _looking(sources: Sequence[Source], arrivals: Arrivals, watch: _Watch) -> Iterator[None]:
    """Look at sources, and for silence, in threads, as long as the block runs."""
    over = threading.Event()
    threads = [
        threading.Thread(target=look_at, args=(sources, arrivals, over), name="arriving", daemon=True),
        threading.Thread(target=watch.alarm, args=(over,), name="alarm", daemon=True),
    ]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        over.set()
        for thread in threads:
            thread.join(10)


class _Watch:
    """How the service is."""

    def __init__(
        self, prepared: Prepared, arrivals: Arrivals, inbox: Inbox | None, silent_after_s: float | None
    ) -> None:
        self._prepared, self._arrivals, self._inbox = prepared, arrivals, inbox
        self._silent_after_s = silent_after_s
        self._paused = ""

    def event(self, event: Event) -> None:
        """Note why workers wait, or that they do not."""
        self._paused = event.reason if not event.case_id and event.reason.startswith("paused") else ""

    def silence(self) -> str:
        """Return for how long nothing has arrived, if that is too long; "" otherwise."""
        silent = time.time() - self._arrivals.last
        if self._silent_after_s is None or silent < self._silent_after_s:
            return ""
        return f"nothing has arrived for {silent / 60:.0f} min"

    def alarm(self, over: threading.Event) -> None:
        """Log that nothing arrives, once, and that something does again."""
        raised = False
        while not over.wait(0.2):
            why = self.silence()
            if why and not raised:
                log.error("alarm: %s", why)
            elif raised and not why:
                log.warning("something arrives again")
            raised = bool(why)

    def health(self) -> Health:
        """Return troubles, and figures for a monitor."""
        ledger, recipe, arrivals = self._prepared.ledger, self._prepared.recipe, self._arrivals
        counts, oldest = ledger.counts(recipe), ledger.oldest(recipe)
        silence = self.silence()
        troubles = [silence, self._paused, *(f"{k}: {why}" for k, why in sorted(arrivals.troubles.items()))]
        figures: dict[str | tuple[str, str, str], float] = {
            "queue_depth": counts["pending"] + counts["leased"],
            "oldest_item_age_seconds": 0.0 if oldest is None else max(0.0, time.time() - oldest),
            "last_arrival_timestamp_seconds": arrivals.last,
            "silent": float(bool(silence)),
            "paused": float(bool(self._paused)),
            "series_not_stable": 0 if self._inbox is None else self._inbox.waiting(),
            "unreadable": len(arrivals.left.unreadable),
        }
        figures |= {("items", "state", state): number for state, number in counts.items()}
        figures |= {("failures", "kind", kind): n for kind, n in ledger.failures(recipe).items()}
        figures |= {("arrivals_total", "what", what): n for what, n in sorted(arrivals.counts.items())}
        return Health(troubles=tuple(t for t in troubles if t), figures=figures)

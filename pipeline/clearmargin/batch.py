"""Segment any number of studies: each done once, or listed with the reason; stopped and resumed at any moment."""

from __future__ import annotations

import hashlib
import logging
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

from clearmargin.errors import ConfigError
from clearmargin.files import made_folder
from clearmargin.jobs.items import State
from clearmargin.jobs.ledger import Ledger
from clearmargin.jobs.pool import Ended
from clearmargin.jobs.worker import Event
from clearmargin.pacs.addresses import archive_at, is_address
from clearmargin.pacs.archive import Archive
from clearmargin.predicting.archived import find_archived
from clearmargin.predicting.cases import Reading
from clearmargin.predicting.discovery import Found, Left, find_inputs, is_the_only, load_selection
from clearmargin.predicting.items import (
    Destination,
    new_item,
)
from clearmargin.predicting.predictor import Predictor
from clearmargin.predicting.prepared import (
    default_ledger,
    mend,
    prepare,
    processes_of,
    run_on_cluster,
    run_prepared,
)
from clearmargin.predicting.results import send_earlier

__all__ = ["BatchReport", "Snapshot", "batch"]

log = logging.getLogger(__name__)

_ADDED_AT_ONCE = 1000
_LATENCIES = (50, 90, 99)


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """Where a batch stands.

    Attributes:
        counts: Items of this recipe in each state.
        failures: Failed and refused items by the kind of reason.
        rate: Items that ended per second of this run; 0 before the first.
        left_s: Seconds until the last item, at this rate; None if unknown.
    """

    counts: dict[State, int]
    failures: dict[str, int]
    rate: float
    left_s: float | None

    @property
    def total(self) -> int:
        """All items of the recipe."""
        return sum(self.counts.values())

    @property
    def ended(self) -> int:
        """Those that are neither pending nor leased."""
        return self.total - self.counts["pending"] - self.counts["leased"]


@dataclass(frozen=True, kw_only=True)
class BatchReport:
    """What a batch did, and what is left.

    Attributes:
        counts: Items of this recipe in each state, at the end.
        new: Items that were not in the ledger before.
        known: Items that were.
        left_out: What lies in the sources and is not an item, with the reason.
        failures: Failed and refused items by the kind of reason.
        incomplete: How many are done but for an output that could not be written.
        interrupted: By Ctrl-C or SIGTERM; running again goes on.
        unsent: Results that were done before and that a destination does not have, by case, with the reason.
        why: What it had to stop for, such as a full disk; "" if it ran out of work.
        promises: What the margins hold for, a sentence each.
        expected_s: Seconds of a dry run: how long the pending items would take; None if no item was ever done.
        run_id: The MLflow run; "" without tracking.
    """

    counts: dict[State, int]
    new: int
    known: int
    left_out: Left
    failures: dict[str, int] = field(default_factory=dict)
    incomplete: int = 0
    unsent: dict[str, str] = field(default_factory=dict)
    interrupted: bool = False
    why: str = ""
    promises: tuple[str, ...] = ()
    expected_s: float | None = None
    run_id: str = ""


def batch(
    sources: Sequence[Path | str],
    out: Path,
    predictor: Predictor,
    *,
    reading: Reading = Reading(),  # noqa: B008 - frozen
    ledger: Path | str | None = None,
    processes: int | None = None,
    shard: tuple[int, int] | None = None,
    ray: str | None = None,
    select: Path | None = None,
    destinations: Sequence[Destination] = (),
    ca_file: Path | None = None,
    write: Sequence[str] | None = None,
    least_free_gib: float = 1.0,
    lease_s: float = 60.0,
    dry_run: bool = False,
    track: bool = True,
    on_found: Callable[[int], object] = lambda _: None,
    on_event: Callable[[Event], object] = lambda _: None,
    on_tick: Callable[[Snapshot], object] = lambda _: None,
) -> BatchReport:
    """Segment every series, volume, picture and clip under ``sources``, and write a folder for each below ``out``.

    An item's results lie in ``OUT/CASE/KEY``, and ``OUT/CASE/current`` links to those that count. Running again does
    what is left and touches nothing that is done; another model, calibration, option or version makes new items.

    Args:
        sources: Folders with all below them, files, zips, or archives' addresses (``https://...``, ``dimse://...``).
        out: A folder on a disk with room; see ``least_free_gib``.
        predictor: The model and how it is asked. Each process loads it for itself.
        reading: How DICOM is read; series and volume are each item's own.
        ledger: A file on a local disk, or ``postgresql://...`` for several machines; None for ``OUT/ledger.sqlite``.
        processes: Worker processes; None for one per CUDA device, or on a CPU one per two cores. 0 works in this
            process, as a debugger or a notebook wants it.
        shard: ``(i, n)``: take the i-th of n parts of all cases, for array jobs.
        ray: A Ray cluster whose actors are the workers, ``processes`` many: ``auto``, ``HOST:PORT`` or ``local``.
        select: YAML with the series that are taken (docs/batch.md); None for all.
        destinations: Archives that DICOM results are sent to; an item is done once they confirmed it.
        ca_file: Certificates that are trusted of archives among the sources, in place of the system's.
        write: Names of outputs; None for the default.
        least_free_gib: Pause while the output disk has less room.
        lease_s: After how long an item goes to another worker, if nothing is heard of its own.
        dry_run: List and count, and do nothing else.
        track: Log counts, rates and failures as an MLflow run, with nothing that identifies a patient.
        on_found: Called with the number of files of each folder that is listed.
        on_event: Called with each item that ended, and with reasons for waiting.
        on_tick: Called about twice a second.

    Raises:
        InputError: A source does not exist. ConfigError: The model, the selection or the ledger does not fit.
    """
    if shard is not None and not 1 <= shard[0] <= shard[1]:
        raise ConfigError(f"--shard i/n has 1 <= i <= n, not {shard[0]}/{shard[1]}")
    selection = load_selection(select)
    place = str(ledger) if ledger is not None else str(default_ledger(out, shard))
    nothing_yet = dry_run and "://" not in place and not Path(place).exists()
    if not dry_run:
        made_folder(out)
    places = [archive_at(str(s), ca_file) if is_address(s) else Path(s) for s in dict.fromkeys(sources)]
    # A dry run leaves nothing behind: not the output folder, and no ledger.
    scratch = Path(mkdtemp(prefix="clearmargin-")) if nothing_yet else None
    prepared = prepare(
        predictor,
        out,
        place if scratch is None else scratch / "ledger.sqlite",
        reading=reading,
        write=write,
        destinations=destinations,
        archives=[p for p in places if isinstance(p, Archive)],
        least_free_gib=least_free_gib,
        lease_s=lease_s,
    )
    book, digest = prepared.ledger, prepared.recipe
    left = Left()
    new, known = 0, 0
    for inputs in _in_parts(
        (
            f
            for source in places
            for f in _found_in(source, ledger=book, selection=selection, left=left, seen=on_found)
        ),
        _ADDED_AT_ONCE,
    ):
        mine = [f for f in inputs if shard is None or _shard_of(f.case, shard[1]) == shard[0]]
        items = [new_item(f, digest) for f in mine if is_the_only(f, book, left)]
        if dry_run:
            there = book.knows([item.key for item in items])
            added = len({item.key for item in items}) - there
        else:
            added, there = book.add(items)
        new, known = new + added, known + there
    if dry_run:
        counts = book.counts(digest)
        counts["pending"] += new
        totals = book.totals(digest)
        book.close()
        if scratch is not None:
            shutil.rmtree(scratch)
        seconds = totals["seconds"] / counts["done"] if counts["done"] else None
        waiting = counts["pending"] + counts["leased"]
        expected = None if seconds is None else seconds * waiting / processes_of(processes, predictor.device)
        return BatchReport(counts=counts, new=new, known=known, left_out=left, expected_s=expected)
    mend(book, out)
    unsent = send_earlier(book, out, digest, destinations)
    promises = predictor.promises()
    watch = _Watch(book, digest, on_event, on_tick)
    ended = Ended(interrupted=False, why="", restarted=0)
    if watch.waiting and ray is not None:
        ended = run_on_cluster(prepared, ray, processes=processes or None, tell=watch.event, tick=watch.tick)
    elif watch.waiting:
        count = 0 if processes == 0 else min(processes_of(processes, predictor.device), watch.waiting)
        ended = run_prepared(prepared, processes=count, tell=watch.event, tick=watch.tick)
    mend(book, out)
    counts, failures = book.counts(digest), book.failures(digest)
    incomplete = book.incomplete(digest)
    run_id = _track(book, digest, predictor, watch, left, ended) if track and watch.latencies else ""
    book.close()
    return BatchReport(
        counts=counts,
        new=new,
        known=known,
        left_out=left,
        failures=failures,
        incomplete=incomplete,
        unsent=unsent,
        interrupted=ended.interrupted,
        why=ended.why,
        promises=promises,
        run_id=run_id,
    )


class _Watch:
    """What happens while the pool runs: latencies, and where the batch stands."""

    def __init__(
        self,
        ledger: Ledger,
        recipe: str,
        on_event: Callable[[Event], object],
        on_tick: Callable[[Snapshot], object],
    ) -> None:
        self.ledger, self.recipe = ledger, recipe
        self._on_event, self._on_tick = on_event, on_tick
        self.latencies: list[float] = []
        self.start = time.monotonic()
        self._last = 0.0
        counts = ledger.counts(recipe)
        self.waiting = counts["pending"] + counts["leased"]

    def event(self, event: Event) -> None:
        if event.state in ("done", "failed", "refused"):
            self.latencies.append(event.seconds)
        self._on_event(event)

    def tick(self) -> None:
        now = time.monotonic()
        if now - self._last < 0.5:
            return
        self._last = now
        counts = self.ledger.counts(self.recipe)
        rate = len(self.latencies) / (now - self.start) if self.latencies else 0.0
        waiting = counts["pending"] + counts["leased"]
        self._on_tick(
            Snapshot(
                counts=counts,
                failures=self.ledger.failures(self.recipe),
                rate=rate,
                left_s=waiting / rate if rate else None,
            )
        )


def _track(ledger: Ledger, recipe: str, predictor: Predictor, watch: _Watch, left: Left, ended: Ended) -> str:
    """Log one run with counts, rates and failures by kind; no case, path or UID."""
    import numpy as np

    from clearmargin.capsules import cases_csv, hidden, log_predictor, model_name
    from clearmargin.tracking.run import TrackedRun

    counts, totals = ledger.counts(recipe), ledger.totals(recipe)
    elapsed = max(1e-9, time.monotonic() - watch.start)
    metrics = {f"batch/{state}": float(number) for state, number in counts.items()}
    metrics |= {f"batch/kind_{kind}": float(n) for kind, n in ledger.failures(recipe).items()}
    metrics |= {f"batch/latency_p{p}_s": float(np.percentile(watch.latencies, p)) for p in _LATENCIES}
    metrics |= {
        "batch/items_per_hour": 3600 * len(watch.latencies) / elapsed,
        "batch/instances": totals["instances"],
        "batch/cases_warned": totals["warned"],
        "batch/not_selected": float(left.not_selected),
        "batch/without_picture": float(left.no_picture),
        "batch/unreadable": float(len(left.unreadable)),
        "batch/workers_restarted": float(ended.restarted),
    }
    lines = "".join(f"{i.key} {i.state}\n" for i in ledger.items(recipe=recipe))
    run = TrackedRun(name=f"batch {model_name(predictor.provenance)}")
    run.on_start(tags={"verb": "batch"})
    with run:
        run.log_params({"uncertainty": predictor.uncertainty, "runtime": predictor.runtime, "recipe": recipe})
        run.log_metrics(metrics, step=0)
        run.set_tag("clearmargin.ledger_sha256", hashlib.sha256(lines.encode()).hexdigest())
        run.log_model_used(predictor.provenance.weights_sha256, "batch {}")
        table, left_out = cases_csv(
            {
                "case": hidden(i.case_id), "state": i.state, "kind": i.kind, "item": i.key, "tries": i.tries,
                "seconds": f"{i.seconds:.2f}", "files": len(i.files),
                "results_sha256": hashlib.sha256(repr(sorted(i.files.items())).encode()).hexdigest(),
            }
            for i in ledger.items(recipe=recipe)
        )  # fmt: skip
        run.log_text(table, "cases.csv")
        log_predictor(
            run, predictor, verb="batch", recipe=recipe,
            data={"ledger_sha256": hashlib.sha256(lines.encode()).hexdigest(), "rows_left_out": str(left_out)},
        )  # fmt: skip
        return run.run_id


def _found_in(source: Archive | Path, **how: Any) -> Iterator[Found]:
    return find_archived(source, **how) if isinstance(source, Archive) else find_inputs(source, **how)


def _shard_of(case: str, shards: int) -> int:
    return int(hashlib.sha256(case.encode()).hexdigest()[:8], 16) % shards + 1


def _in_parts(items: Iterable[Found], size: int) -> Iterator[list[Found]]:
    part: list[Found] = []
    for item in items:
        part.append(item)
        if len(part) == size:
            yield part
            part = []
    if part:
        yield part

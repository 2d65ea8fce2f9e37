"""Segment any number of studies: each done once, or listed with the reason; stopped and resumed at any moment."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

from clearmargin.errors import ClearMarginError, ConfigError, InputError
from clearmargin.files import made_folder
from clearmargin.jobs.items import Item, State
from clearmargin.jobs.ledger import Ledger
from clearmargin.jobs.pool import Ended, run_pool
from clearmargin.jobs.worker import Event, Limits, work_off
from clearmargin.outputs.writers import named_outputs
from clearmargin.pacs.dicomweb import DicomWeb
from clearmargin.pacs.fetched import sweep_fetched
from clearmargin.pacs.web import checked_url
from clearmargin.predicting.archived import find_archived
from clearmargin.predicting.cases import Reading
from clearmargin.predicting.discovery import Found, Left, find_inputs, load_selection
from clearmargin.predicting.items import (
    Destination,
    PredictItem,
    new_item,
    point_to_current,
    recipe_of,
    sweep_drafts,
)
from clearmargin.predicting.predictor import Predictor
from clearmargin.privacy import naming

__all__ = ["BatchReport", "Snapshot", "batch", "default_ledger", "is_address", "verify", "withdraw"]

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


def default_ledger(out: Path, shard: tuple[int, int] | None = None) -> Path:
    """Return where the ledger of an output folder lies, if none is named; each shard has its own."""
    return out / ("ledger.sqlite" if shard is None else f"ledger-{shard[0]}-of-{shard[1]}.sqlite")


def batch(
    sources: Sequence[Path | str],
    out: Path,
    predictor: Predictor,
    *,
    reading: Reading = Reading(),  # noqa: B008 - frozen
    ledger: Path | str | None = None,
    processes: int | None = None,
    shard: tuple[int, int] | None = None,
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
        sources: Folders with all below them, files, zips, or DICOMweb addresses (``https://...``).
        out: A folder on a disk with room; see ``least_free_gib``.
        predictor: The model and how it is asked. Each process loads it for itself.
        reading: How DICOM is read; series and volume are each item's own.
        ledger: A file on a local disk, or ``postgresql://...`` for several machines; None for ``OUT/ledger.sqlite``.
        processes: Worker processes; None for one per CUDA device, or on a CPU one per two cores. 0 works in this
            process, as a debugger or a notebook wants it.
        shard: ``(i, n)``: take the i-th of n parts of all cases, for array jobs.
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
    outputs = named_outputs(write)
    selection = load_selection(select)
    recipe = recipe_of(predictor, reading, outputs)
    digest = hashlib.sha256(json.dumps(recipe, sort_keys=True, default=str).encode()).hexdigest()
    place = str(ledger) if ledger is not None else str(default_ledger(out, shard))
    nothing_yet = dry_run and "://" not in place and not Path(place).exists()
    if not dry_run:
        made_folder(out)
    # A dry run leaves nothing behind: not the output folder, and no ledger.
    scratch = Path(mkdtemp(prefix="clearmargin-")) if nothing_yet else None
    book = Ledger(place if scratch is None else scratch / "ledger.sqlite")
    book.remember(f"recipe {digest}", recipe)
    limits = Limits(recipe=digest, lease_s=lease_s, out=out, least_free_bytes=int(least_free_gib * 2**30))
    book.lost(most_tries=limits.most_tries)
    left = Left()
    archives = tuple(DicomWeb(url=str(s), ca_file=ca_file) for s in sources if is_address(s))
    new, known = 0, 0
    for found in _in_parts(
        (
            f
            for source in sources
            for f in _found_in(source, archives, ledger=book, selection=selection, left=left, seen=on_found)
        ),
        _ADDED_AT_ONCE,
    ):
        mine = [f for f in found if shard is None or _shard_of(f.case, shard[1]) == shard[0]]
        items = [new_item(f, digest) for f in mine if _is_the_only(f, book, left)]
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
        expected = None if seconds is None else seconds * waiting / _processes(processes, predictor.device)
        return BatchReport(counts=counts, new=new, known=known, left_out=left, expected_s=expected)
    _mend(book, out)
    work = PredictItem(
        predictor=predictor,
        reading=reading,
        outputs=outputs,
        out=out,
        destinations=tuple(destinations),
        archives=archives,
        made_by=predictor.provenance,
    )
    unsent = _send_earlier(book, out, digest, destinations)
    promises = predictor.promises()
    watch = _Watch(book, digest, on_event, on_tick)
    ended = Ended(interrupted=False, why="", restarted=0)
    if watch.waiting and processes == 0:
        ended = _here(book, work, limits, watch)
    elif watch.waiting:
        count = min(_processes(processes, predictor.device), watch.waiting)
        ended = run_pool(
            place,
            work,
            processes=count,
            threads=_threads(book, digest, count),
            limits=limits,
            tell=watch.event,
            tick=watch.tick,
        )
    _mend(book, out)
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


def verify(ledger: Ledger, out: Path, *, redo: bool = False) -> dict[str, str]:
    """Return what is wrong with the results that the ledger calls done, by folder; nothing if all are as written.

    With ``redo`` their items are pending again: the next batch writes them anew.
    """
    wrong, ids = {}, []
    for item in ledger.items("done"):
        for name, digest in item.files.items():
            file = out / item.folder / name
            if not file.is_file():
                wrong[item.folder] = f"{name} is missing"
            elif _digest(file) != digest:
                wrong[item.folder] = f"{name} was changed"
        if item.folder in wrong:
            ids.append(item.id)
    if redo and ids:
        ledger.redo(ids)
    return wrong


def withdraw(ledger: Ledger, out: Path, *, weights_sha256: str | None = None) -> list[Item]:
    """Take back the results of a model, or all: they are no longer current; return them, with what was sent of them.

    Files stay, and archives keep what they have: `Ledger.sent` lists what is to be removed there.

    Args:
        ledger: The batch's.
        out: Its output folder.
        weights_sha256: The model's weights, or how its digest begins; None for all.
    """
    recipes = {}
    items = []
    for item in ledger.items("done"):
        if item.recipe not in recipes:
            recipes[item.recipe] = ledger.recall(f"recipe {item.recipe}") or {}
        weights = str(recipes[item.recipe].get("provenance", {}).get("weights_sha256", ""))
        if weights_sha256 is None or weights.startswith(weights_sha256):
            items.append(item)
    ledger.withdraw([item.id for item in items])
    for case in dict.fromkeys(item.case_id for item in items):
        point_to_current(out, case, "")
    return items


def _send_earlier(
    ledger: Ledger, out: Path, recipe: str, destinations: Sequence[Destination]
) -> dict[str, str]:
    """Send what was done before a destination was named; return what it does not have, by case, with the reason."""
    unsent = {}
    for destination in destinations:
        for item in ledger.unsent(destination.name, recipe):
            objects = [name for name in item.files if name.endswith(".dcm")]
            if not objects:
                continue
            folder = out / item.folder
            try:
                if any(_digest(folder / name) != item.files[name] for name in objects):
                    raise InputError(
                        "its files have changed since they were written: run `clearmargin batch verify`"
                    )
                sent = destination.send([folder / name for name in objects])
            except FileNotFoundError:
                unsent[item.case_id] = "its files are gone: `clearmargin batch verify`"
            except ClearMarginError as error:
                unsent[item.case_id] = str(error)
            else:
                ledger.note_sent(item, [(uid, digest, destination.name) for uid, digest in sent])
    return unsent


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


def _here(ledger: Ledger, work: PredictItem, limits: Limits, watch: _Watch) -> Ended:
    """Work in this process."""
    why, interrupted = "", False
    try:
        work.prepare(0)
        why = work_off(ledger, work, limits=limits, tell=watch.event, stopped=lambda: False)
    except KeyboardInterrupt:
        interrupted = True
    return Ended(interrupted=interrupted, why=why, restarted=0)


def _track(ledger: Ledger, recipe: str, predictor: Predictor, watch: _Watch, left: Left, ended: Ended) -> str:
    """Log one run with counts, rates and failures by kind; no case, path or UID."""
    import numpy as np

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
    with TrackedRun(name=f"batch {predictor.provenance.model}") as run:
        run.log_params({"uncertainty": predictor.uncertainty, "runtime": predictor.runtime, "recipe": recipe})
        run.log_metrics(metrics, step=0)
        run.set_tag("clearmargin.ledger_sha256", hashlib.sha256(lines.encode()).hexdigest())
        run.log_model_used(predictor.provenance.weights_sha256, predictor.provenance.model)
        return run.run_id


def is_address(source: Path | str) -> bool:
    """Return whether a source is an archive's address, not a path."""
    return isinstance(source, str) and source.startswith(("http://", "https://"))


def _found_in(source: Path | str, archives: Sequence[DicomWeb], **how: Any) -> Iterator[Found]:
    if is_address(source):
        return find_archived(next(a for a in archives if a.url == checked_url(str(source))), **how)
    return find_inputs(Path(source), **how)


def _is_the_only(found: Found, ledger: Ledger, left: Left) -> bool:
    """Return whether no other input has this one's plain name; else count and say it."""
    if naming() != "plain":
        return True
    source = found.source
    identity = str(source.get("series") or [source.get("root"), source.get("names")])
    first = ledger.recall(f"name {found.case}")
    if first is None:
        ledger.remember(f"name {found.case}", identity)
    elif first != identity:
        left.unreadable[found.case] = "another input is called so, too: leave out --names plain"
        return False
    return True


def _threads(ledger: Ledger, recipe: str, processes: int) -> int:
    """Return the threads of each worker: those of the recipe's first batch, since sums depend on them in rounding."""
    known = ledger.recall(f"threads {recipe}")
    if known is None:
        known = max(1, (os.cpu_count() or 1) // processes)
        ledger.remember(f"threads {recipe}", known)
    return int(known)


def _mend(ledger: Ledger, out: Path) -> None:
    """Let each case's link name its current results, and remove drafts of processes that were killed."""
    working = {item.case_id for item in ledger.items("leased")}
    cases = []
    for item in ledger.items("done", current=True):
        if item.case_id not in working and (out / item.case_id).is_dir():
            cases.append(item.case_id)
            point_to_current(out, item.case_id, item.folder)
    sweep_drafts(out, cases)
    sweep_fetched()


def _processes(asked: int | None, device: str | None) -> int:
    if asked is not None:
        return max(1, asked)
    if device in (None, "cuda"):
        import torch

        if torch.cuda.is_available():
            return int(torch.cuda.device_count())
    return max(1, (os.cpu_count() or 1) // 2) if device is None or device == "cpu" else 1


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


def _digest(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()

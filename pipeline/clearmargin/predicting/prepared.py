"""A recipe on an open ledger: what its workers do, within which limits, and the processes that do it."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from clearmargin.jobs.ledger import Ledger
from clearmargin.jobs.pool import Ended, run_pool
from clearmargin.jobs.worker import Event, Limits, work_off
from clearmargin.outputs.writers import named_outputs
from clearmargin.pacs.archive import Archive
from clearmargin.pacs.audit import Audit
from clearmargin.pacs.fetched import sweep_fetched
from clearmargin.predicting.cases import Reading
from clearmargin.predicting.items import (
    Destination,
    PredictItem,
    point_to_current,
    recipe_of,
    sweep_drafts,
)
from clearmargin.predicting.predictor import Predictor

__all__ = [
    "Prepared",
    "default_ledger",
    "mend",
    "prepare",
    "processes_of",
    "run_on_cluster",
    "run_prepared",
    "threads_of",
]


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """What workers need to work off a ledger.

    Attributes:
        ledger: Open, in this process.
        recipe: The digest of what, beside its content, makes an item's results what they are.
        work: What is done with an item.
        limits: When a worker stops, waits, or tries again.
    """

    ledger: Ledger
    recipe: str
    work: PredictItem
    limits: Limits


def default_ledger(out: Path, shard: tuple[int, int] | None = None) -> Path:
    """Return where the ledger of an output folder lies, if none is named; each shard has its own."""
    return out / ("ledger.sqlite" if shard is None else f"ledger-{shard[0]}-of-{shard[1]}.sqlite")


def prepare(
    predictor: Predictor,
    out: Path,
    place: Path | str,
    *,
    reading: Reading,
    write: Sequence[str] | None,
    destinations: Sequence[Destination] = (),
    archives: Sequence[Archive] = (),
    least_free_gib: float = 1.0,
    lease_s: float = 60.0,
) -> Prepared:
    """Open a ledger for a recipe, and take back what processes that ended have left.

    Raises:
        ConfigError: The model, an output or the ledger does not fit.
    """
    outputs = named_outputs(write)
    recipe = recipe_of(predictor, reading, outputs)
    digest = hashlib.sha256(json.dumps(recipe, sort_keys=True, default=str).encode()).hexdigest()
    ledger = Ledger(place)
    ledger.remember(f"recipe {digest}", recipe)
    limits = Limits(recipe=digest, lease_s=lease_s, out=out, least_free_bytes=int(least_free_gib * 2**30))
    ledger.lost(most_tries=limits.most_tries)
    work = PredictItem(
        predictor=predictor,
        reading=reading,
        outputs=outputs,
        out=out,
        destinations=tuple(destinations),
        archives=tuple(archives),
        audit=Audit(out / "audit.jsonl"),
        made_by=predictor.provenance,
    )
    return Prepared(ledger=ledger, recipe=digest, work=work, limits=limits)


def run_prepared(
    prepared: Prepared,
    *,
    processes: int,
    tell: Callable[[Event], object],
    tick: Callable[[], object] = lambda: None,
    until_empty: bool = True,
    stopped: Callable[[], bool] = lambda: False,
) -> Ended:
    """Work off a ledger with so many processes, or with 0 in this one.

    Args:
        prepared: By `prepare`.
        processes: How many workers.
        tell: Called with each event.
        tick: Called twice a second, if there are processes.
        until_empty: End once nothing is left to do; else wait for more.
        stopped: Asked now and then: end after the items at hand.
    """
    ledger, limits = prepared.ledger, prepared.limits
    if processes:
        return run_pool(
            ledger.place,
            prepared.work,
            processes=processes,
            threads=threads_of(ledger, prepared.recipe, processes),
            limits=limits,
            tell=tell,
            tick=tick,
            until_empty=until_empty,
            stopped=stopped,
        )
    why, interrupted = "", False
    try:
        prepared.work.prepare(0)
        why = work_off(
            ledger, prepared.work, limits=limits, tell=tell, stopped=stopped, until_empty=until_empty
        )
    except KeyboardInterrupt:
        interrupted = True
    return Ended(interrupted=interrupted, why=why, restarted=0)


def run_on_cluster(
    prepared: Prepared,
    address: str,
    *,
    processes: int | None,
    tell: Callable[[Event], object],
    tick: Callable[[], object],
) -> Ended:
    """Work off a ledger with actors of a Ray cluster.

    Args:
        prepared: By `prepare`.
        address: ``auto``, ``HOST:PORT`` or ``local``.
        processes: How many actors; None for as many as there is room for.
        tell: Called with each event.
        tick: Called about twice a second.
    """
    from clearmargin.jobs.rays import run_on_ray

    device = prepared.work.predictor.device or ""
    return run_on_ray(
        prepared.ledger.place,
        prepared.work,
        address=address,
        actors=processes,
        threads=threads_of(prepared.ledger, prepared.recipe, max(1, (os.cpu_count() or 2) // 2)),
        gpu=device.startswith("cuda"),
        limits=prepared.limits,
        tell=tell,
        tick=tick,
    )


def threads_of(ledger: Ledger, recipe: str, processes: int) -> int:
    """Return the threads of each worker: those of the recipe's first batch, since sums depend on them in rounding."""
    known = ledger.recall(f"threads {recipe}")
    if known is None:
        known = max(1, (os.cpu_count() or 1) // processes)
        ledger.remember(f"threads {recipe}", known)
    return int(known)


def mend(ledger: Ledger, out: Path) -> None:
    """Let each case's link name its current results, and remove drafts of processes that were killed."""
    working = {item.case_id for item in ledger.items("leased")}
    cases = []
    for item in ledger.items("done", current=True):
        if item.case_id not in working and (out / item.case_id).is_dir():
            cases.append(item.case_id)
            point_to_current(out, item.case_id, item.folder)
    sweep_drafts(out, cases)
    sweep_fetched()


def processes_of(asked: int | None, device: str | None) -> int:
    """Return how many worker processes: what was asked for, or one per CUDA device, or one per two CPU cores."""
    if asked is not None:
        return max(1, asked)
    if device in (None, "cuda"):
        import torch

        if torch.cuda.is_available():
            return int(torch.cuda.device_count())
    return max(1, (os.cpu_count() or 1) // 2) if device is None or device == "cpu" else 1

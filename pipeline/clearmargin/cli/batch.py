"""The verb batch, and what looks after a batch: batch status, retry, verify, withdraw."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from clearmargin.cli.app import app, emit, say, say_run
from clearmargin.cli.checks import check_device, check_folder
from clearmargin.cli.items import (
    check_archive,
    destinations_of,
    duration,
    shown_progress,
)
from clearmargin.cli.options import (
    AllowGaps,
    AllowTilt,
    ComputedBy,
    Device,
    DisplayWindow,
    Force,
    ItemsOut,
    LeastFree,
    LeastScore,
    LedgerPlace,
    Model,
    Names,
    NoTrack,
    PacsCa,
    Processes,
    Runtime,
    Sampling,
    Select,
    Tile,
    To,
    Tolerance,
    Uncertainty,
    Writes,
    asked_outputs,
)
from clearmargin.errors import BatchError, ConfigError, InputError
from clearmargin.files import check_readable
from clearmargin.models.files import check_choice

if TYPE_CHECKING:
    from clearmargin.batch import BatchReport
    from clearmargin.jobs.items import State
    from clearmargin.jobs.ledger import Ledger

__all__: list[str] = []


class _RunByDefault(TyperGroup):
    """``batch SOURCE...`` is ``batch run SOURCE...``: who names no command wants the work done."""

    default_command = "run"

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands and args[0] not in ("--help", "-h"):
            args = [self.default_command, *args]
        return super().parse_args(ctx, args)


batch_app = typer.Typer(
    cls=_RunByDefault,
    help="Segment folders of studies: each done once, or listed with the reason. `batch SOURCE... --model M --out OUT` "
    "is short for `batch run`.",
    no_args_is_help=True,
)
app.add_typer(batch_app, name="batch", rich_help_panel="Results")

Out = Annotated[Path, typer.Argument(metavar="OUT", help="Output folder of the batch.")]


@batch_app.command("run")
def batch_run(
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="SOURCE...",
            help="Folders with all below them, files, zips, or archives (https://... for DICOMweb, dimse://CALLED@HOST:PORT).",
        ),
    ],
    model: Model,
    out: ItemsOut,
    uncertainty: Sampling = Uncertainty.none,
    ledger: LedgerPlace = None,
    processes: Processes = None,
    shard: Annotated[
        str | None, typer.Option(metavar="I/N", help="Part I of N of all cases, for array jobs.")
    ] = None,
    ray: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS",
            help="Ray cluster whose actors are the workers: auto, HOST:PORT, or local; --processes is how many.",
        ),
    ] = None,
    select: Select = None,
    to: To = None,
    pacs_ca: PacsCa = None,
    names: Names = None,
    device: Device = None,
    runtime: ComputedBy = Runtime.torch,
    score_threshold: LeastScore = None,
    tile: Tile = None,
    allow_gaps: AllowGaps = False,
    allow_tilt: AllowTilt = False,
    tolerance_mm: Tolerance = None,
    display_window: DisplayWindow = False,
    force: Force = False,
    write: Writes = None,
    least_free_gib: LeastFree = 1.0,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="List what would be done, skipped and refused; do nothing.")
    ] = False,
    no_track: NoTrack = False,
) -> None:
    """Segment all series, volumes, pictures and clips below SOURCE; run it again to go on or to retry."""
    from clearmargin.tracking.resolve import model_folder

    places = [_source(source, pacs_ca) for source in sources]
    destinations = destinations_of(to, pacs_ca)
    check_folder(out)
    check_device(device)
    part = _shard(shard)
    outputs = asked_outputs(write)
    folder = model_folder(model)
    check_choice(folder, uncertainty.value, runtime.value)
    from clearmargin.batch import batch as call
    from clearmargin.predicting.cases import Reading
    from clearmargin.predicting.predictor import Predictor

    with shown_progress() as shown:
        report = call(
            places,
            out,
            Predictor(
                model=folder,
                uncertainty=uncertainty.value,
                device=device,
                runtime=runtime.value,
                score_threshold=score_threshold,
                tile=tile,
                display_window=display_window,
                force=force,
            ),
            reading=Reading(allow_gaps=allow_gaps, allow_tilt=allow_tilt, tolerance_mm=tolerance_mm),
            ledger=ledger,
            processes=processes,
            shard=part,
            ray=ray,
            select=select,
            destinations=destinations,
            ca_file=pacs_ca,
            write=outputs,
            least_free_gib=least_free_gib,
            dry_run=dry_run,
            track=not no_track,
            on_found=shown.found,
            on_event=shown.event,
            on_tick=shown.tick,
        )
    _say_report(report, dry_run=dry_run)
    if report.interrupted:
        raise KeyboardInterrupt
    if report.why:
        raise InputError(f"the batch stopped: {report.why}; run it again to go on")
    if report.unsent:
        raise BatchError(
            f"{len(report.unsent)} earlier results did not reach an archive: run the batch again"
        )
    if dry_run:
        return
    bad = report.counts["failed"] + report.counts["refused"] + report.incomplete
    complaints = []
    if bad:
        complaints.append(
            f"{bad} of {sum(report.counts.values())} items failed, were refused, or lack an output: "
            f"`clearmargin batch status {out}` lists them"
        )
    if report.left_out.unreadable:
        complaints.append(
            f"{len(report.left_out.unreadable)} inputs could not be taken: the list above says why"
        )
    if complaints:
        raise BatchError("; ".join(complaints))


@batch_app.command("status")
def batch_status(
    out: Out,
    ledger: LedgerPlace = None,
    failures: Annotated[
        bool, typer.Option("--failures/--counts", help="Also list each item that failed or was refused.")
    ] = True,
) -> None:
    """Say how many items are in which state, and why some failed."""
    with _opened(out, ledger) as book:
        counts = book.counts()
        text = ", ".join(f"{number} {state}" for state, number in counts.items() if number) or "no items"
        emit(text, counts=counts, failures=book.failures())
        if failures:
            for item in book.items("failed", "refused", "done"):
                if not item.reason:
                    continue
                emit(
                    f"  {item.case_id}: {item.state} (tries: {item.tries}), {item.kind}: {item.reason}",
                    case=item.case_id,
                    state=item.state,
                    kind=item.kind,
                    reason=item.reason,
                    tries=item.tries,
                )


@batch_app.command("retry")
def batch_retry(
    out: Out,
    ledger: LedgerPlace = None,
    failed: Annotated[bool, typer.Option("--failed", help="Items that failed (the default).")] = False,
    refused: Annotated[
        bool, typer.Option("--refused", help="Items whose input was refused, too: after it was mended.")
    ] = False,
    withdrawn: Annotated[
        bool, typer.Option("--withdrawn", help="Items whose results were withdrawn, too.")
    ] = False,
) -> None:
    """Make failed items pending again; the next `batch` does them."""
    with _opened(out, ledger) as book:
        states: list[State] = ["failed"]
        if refused:
            states.append("refused")
        if withdrawn:
            states.append("withdrawn")
        number = book.retry(states=states)
    emit(f"{number} items are pending again: run the batch as before", pending=number)


@batch_app.command("verify")
def batch_verify(
    out: Out,
    ledger: LedgerPlace = None,
    redo: Annotated[
        bool,
        typer.Option(
            "--redo", help="Make the items of wrong results pending: the next batch writes them anew."
        ),
    ] = False,
) -> None:
    """Compare all results with what the ledger says was written."""
    from clearmargin.predicting.results import verify

    with _opened(out, ledger) as book:
        wrong = verify(book, out, redo=redo)
        done = book.counts()["done"]
    for folder, what in wrong.items():
        emit(f"{folder}: {what}", folder=folder, problem=what)
    if wrong:
        way = "run the batch as before" if redo else "`batch verify --redo` makes their items pending again"
        raise BatchError(f"{len(wrong)} of {done} results are not as they were written: {way}")
    emit(f"{done} results are as they were written", done=done)


@batch_app.command("withdraw")
def batch_withdraw(
    out: Out,
    ledger: LedgerPlace = None,
    weights: Annotated[
        str | None,
        typer.Option(
            "--weights",
            metavar="SHA256",
            help="Weights whose results are withdrawn; its first digits do.",
        ),
    ] = None,
    all_of_them: Annotated[bool, typer.Option("--all", help="Withdraw the results of every model.")] = False,
    send: Annotated[
        list[str] | None,
        typer.Option(
            "--send",
            metavar="ADDRESS",
            help="Archive that gets a Rejection Note for what it has of the withdrawn results (repeatable).",
        ),
    ] = None,
    pacs_ca: PacsCa = None,
) -> None:
    """Mark a model's results as withdrawn, list what was sent of them, and write Rejection Notes for archives."""
    from clearmargin.pacs.addresses import archive_at
    from clearmargin.predicting.results import WITHDRAWN, reject, withdraw

    if not all_of_them and (weights is None or len(weights) < 6):
        raise ConfigError(
            "name the model by --weights with at least six digits of its SHA-256, or all by --all"
        )
    archives = [archive_at(address, pacs_ca) for address in send or ()]
    for archive in archives:
        check_archive(archive)
    model = None if all_of_them else weights
    with _opened(out, ledger) as book:
        items = withdraw(book, out, weights_sha256=model)
        rejected = reject(book, out, archives, weights_sha256=model)
        for item in items:
            objects = [
                {"uid": uid, "destination": to} for _, uid, to in book.sent(item) if uid not in rejected.notes
            ]
            lines = [f"{item.case_id}: {item.folder}"]
            lines += [f"  sent to {o['destination']}: {o['uid']}" for o in objects]
            emit("\n".join(lines), case=item.case_id, folder=item.folder, sent=objects)
    say(f"{len(items)} results are withdrawn; their files stay where they are")
    if rejected.notes:
        say(f"{len(rejected.notes)} Rejection Notes in {out / WITHDRAWN}; {rejected.sent} were sent")
    if rejected.failed:
        lines = [f"  {case}: {why}" for case, why in rejected.failed.items()]
        raise BatchError("some Rejection Notes were not written or sent; run it again:\n" + "\n".join(lines))


@contextmanager
def _opened(out: Path, place: str | None) -> Iterator[Ledger]:
    from clearmargin.jobs.ledger import Ledger as Opened
    from clearmargin.predicting.prepared import default_ledger

    where = place or str(default_ledger(out))
    if "://" not in where and not Path(where).is_file():
        shards = sorted(out.glob("ledger-*.sqlite")) if out.is_dir() else []
        hint = f"; name one of {', '.join(s.name for s in shards[:5])} with --ledger" if shards else ""
        raise InputError(f"no ledger '{where}': expected the output folder of a batch{hint}")
    book = Opened(where)
    try:
        yield book
    finally:
        book.close()


def _source(text: str, ca_file: Path | None) -> Path | str:
    """Return a source as a path, or as an archive's address."""
    if "://" in text:
        from clearmargin.pacs.addresses import archive_at, is_address

        if not is_address(text):
            raise ConfigError(
                "expected a folder, a file, a zip, or an archive's address (https://... or dimse://...) as SOURCE"
            )
        check_archive(archive_at(text, ca_file))
        return text
    check_readable(Path(text))
    return Path(text)


def _shard(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    part, _, parts = text.partition("/")
    if not (part.isdigit() and parts.isdigit() and 1 <= int(part) <= int(parts)):
        raise ConfigError(f"--shard {text}: expected I/N with 1 <= I <= N, such as 3/16")
    return int(part), int(parts)


def _say_report(report: BatchReport, *, dry_run: bool) -> None:
    counts, left = report.counts, report.left_out
    lines = [", ".join(f"{number} {state}" for state, number in counts.items() if number) or "no items"]
    if report.new or report.known:
        lines.append(f"listed: {report.new} new, {report.known} known")
    if left.not_selected or left.no_picture or left.other_files or left.unreadable or left.results:
        lines.append(
            f"left out: {left.not_selected} series by --select, {left.no_picture} without a picture, "
            f"files of other kinds: {left.other_files}, {len(left.unreadable)} unreadable, "
            f"folders of results: {left.results}"
        )
        lines += [f"  {case}: {why}" for case, why in list(left.unreadable.items())[:20]]
    lines += [f"  {case}: not sent: {why}" for case, why in list(report.unsent.items())[:20]]
    lines += [f"  {number} x {kind}" for kind, number in report.failures.items()]
    if counts["withdrawn"]:
        lines.append(
            "withdrawn results are not made again by themselves: `clearmargin batch retry OUT --withdrawn`"
        )
    if dry_run:
        if report.expected_s is None:
            lines.append("time: unknown until an item has been done")
        else:
            lines.append(f"time: about {duration(report.expected_s)}")
    emit(
        "\n".join(lines),
        counts=counts,
        new=report.new,
        known=report.known,
        left_out={
            "not_selected": left.not_selected,
            "no_picture": left.no_picture,
            "other_files": left.other_files,
            "unreadable": left.unreadable,
        },
        failures=report.failures,
        unsent=report.unsent,
        expected_s=report.expected_s,
        run_id=report.run_id,
    )
    for promise in report.promises:
        say(promise)
    say_run(report.run_id)

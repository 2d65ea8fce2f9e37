"""The verb listen: segment what arrives, until Ctrl-C."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from clearmargin.cli.app import app, emit, tell
from clearmargin.cli.checks import check_device, check_folder
from clearmargin.cli.items import (
    check_archive,
    destinations_of,
    shown_progress,
)
from clearmargin.cli.options import (
    AllowGaps,
    AllowTilt,
    Device,
    Force,
    ItemsOut,
    LeastFree,
    LeastScore,
    LedgerPlace,
    Model,
    Names,
    PacsCa,
    Processes,
    Sampling,
    Select,
    To,
    Tolerance,
    Uncertainty,
    Writes,
    asked_outputs,
)
from clearmargin.errors import ConfigError, InputError
from clearmargin.models.files import check_choice

__all__: list[str] = []


@app.command(rich_help_panel="Results")
def listen(
    model: Model,
    out: ItemsOut,
    callers: Annotated[
        list[str] | None,
        typer.Option(
            "--from", metavar="AE", help="AE title that may send objects (C-STORE), repeatable; no other may."
        ),
    ] = None,
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="Port at which objects are received; 0: a free one.")
    ] = 11112,
    host: Annotated[
        str,
        typer.Option(
            help="Interface at which objects are received; this machine alone, unless it is another."
        ),
    ] = "127.0.0.1",
    title: Annotated[str, typer.Option(metavar="AE", help="Our AE title.")] = "CLEARMARGIN",
    certificate: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Certificate in PEM: objects are received over TLS alone."),
    ] = None,
    key: Annotated[Path | None, typer.Option(metavar="FILE", help="Key of --certificate.")] = None,
    follow: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="Orthanc whose change feed is followed from now on, such as http://127.0.0.1:8042.",
        ),
    ] = None,
    worklist: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="Worklist (UPS) whose work items are done: dimse://CALLED@HOST:PORT; with --archive and --to.",
        ),
    ] = None,
    label: Annotated[
        str, typer.Option("--label", help="WorklistLabel of the work items that are taken; default: all.")
    ] = "",
    archive: Annotated[
        str | None,
        typer.Option(metavar="URL", help="Archive that the series of work items are fetched from."),
    ] = None,
    stable_s: Annotated[
        float,
        typer.Option(
            "--stable", min=0, help="Seconds without a new object after which a received series is whole."
        ),
    ] = 30.0,
    alarm_min: Annotated[
        float | None,
        typer.Option("--alarm", min=0, help="Raise the alarm if nothing arrives for so many minutes."),
    ] = None,
    health: Annotated[
        int,
        typer.Option(
            "--health", min=0, max=65535, help="Port of /healthz and /metrics, on this machine alone."
        ),
    ] = 8114,
    to: To = None,
    pacs_ca: PacsCa = None,
    uncertainty: Sampling = Uncertainty.none,
    ledger: LedgerPlace = None,
    processes: Processes = None,
    select: Select = None,
    names: Names = None,
    device: Device = None,
    score_threshold: LeastScore = None,
    allow_gaps: AllowGaps = False,
    allow_tilt: AllowTilt = False,
    tolerance_mm: Tolerance = None,
    force: Force = False,
    write: Writes = None,
    least_free_gib: LeastFree = 1.0,
) -> None:
    """Segment each series that arrives, and send results back, until Ctrl-C; run it again to go on."""
    from clearmargin.listen import Port
    from clearmargin.pacs.addresses import archive_at
    from clearmargin.pacs.changes import Changes
    from clearmargin.pacs.worklist import Worklist
    from clearmargin.tracking.resolve import model_folder

    if not callers and follow is None and worklist is None:
        raise ConfigError(
            "name what to listen to: AE titles that may send (--from PACS1), an Orthanc (--follow URL), or a worklist "
            "(--worklist URL)"
        )
    steps = None if worklist is None else Worklist(url=worklist, label=label, ca_file=pacs_ca)
    if worklist is not None and (archive is None or not to):
        raise ConfigError(
            "a worklist needs the archive of its series (--archive), and one for results (--to)"
        )
    series = None if archive is None else archive_at(archive, pacs_ca)
    if series is not None:
        check_archive(series)
    place = None
    if callers:
        place = Port(
            callers=tuple(dict.fromkeys(callers)),
            title=title,
            host=host,
            port=port,
            certificate=certificate,
            key=key,
        )
    if follow is not None:
        Changes(url=follow)  # refuses text that is not an address
    destinations = destinations_of(to, pacs_ca)
    check_folder(out)
    check_device(device)
    outputs = asked_outputs(write)
    folder = model_folder(model)
    check_choice(folder, uncertainty.value, "torch")
    from clearmargin.listen import listen as call
    from clearmargin.predicting.cases import Reading
    from clearmargin.predicting.predictor import Predictor

    def ready(received: int, asked: int) -> None:
        where = f"receiving at {host}:{received} as {title}" if place else f"following {follow or worklist}"
        tell(f"{where}; http://127.0.0.1:{asked}/healthz and /metrics; Ctrl-C ends it")

    with shown_progress() as shown:
        report = call(
            out,
            Predictor(
                model=folder,
                uncertainty=uncertainty.value,
                device=device,
                score_threshold=score_threshold,
                force=force,
            ),
            port=place,
            follow=follow,
            worklist=steps,
            archive=series,
            reading=Reading(allow_gaps=allow_gaps, allow_tilt=allow_tilt, tolerance_mm=tolerance_mm),
            ledger=ledger,
            processes=processes,
            select=select,
            destinations=destinations,
            ca_file=pacs_ca,
            write=outputs,
            least_free_gib=least_free_gib,
            stable_s=stable_s,
            silent_after_s=None if alarm_min is None else 60 * alarm_min,
            health_port=health,
            on_ready=ready,
            on_event=shown.event,
        )
    text = ", ".join(f"{number} {state}" for state, number in report.counts.items() if number) or "no items"
    emit(text, counts=report.counts, arrived=report.arrived)
    if report.why:
        raise InputError(f"the service stopped: {report.why}; run it again to go on")
    if report.interrupted:
        raise KeyboardInterrupt

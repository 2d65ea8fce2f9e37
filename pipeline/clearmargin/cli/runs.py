"""Verbs about runs: demo, review, report, replay, promote."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Annotated

import typer

from clearmargin.cli.app import app, emit, say
from clearmargin.cli.checks import check_card
from clearmargin.cli.options import Evaluation
from clearmargin.errors import BatchError, DifferenceError

__all__: list[str] = []

runs_app = typer.Typer(
    help="Runs that wait for their tracking store, which did not answer.", no_args_is_help=True
)
app.add_typer(runs_app, name="runs", rich_help_panel="Runs")


@runs_app.command("waiting")
def waiting() -> None:
    """List the runs that the tracking store does not have, or not whole."""
    from clearmargin.tracking.spool import spools

    for one in spools():
        emit(
            f"{one.folder.name}  {datetime.fromtimestamp(one.start_s):%Y-%m-%d %H:%M}  {one.name}",
            run=one.folder.name,
            name=one.name,
            start=one.start_s,
        )


@runs_app.command("send")
def send() -> None:
    """Send what waits to its tracking store; a run that is being written sends its own. Exit code 3: some wait on."""
    from clearmargin.tracking.sending import send_waiting

    done = send_waiting()
    emit(
        f"{len(done.runs)} runs sent, {len(done.waiting)} wait on",
        sent=done.runs,
        waiting=[one.folder.name for one in done.waiting],
    )
    if done.waiting:
        first = done.waiting[0]
        raise BatchError(
            f"the tracking store of run '{first.name}' does not answer or is gone: start it, or put its file back, and "
            f"send again; or remove spool/{first.folder.name} in CLEARMARGIN_HOME to give the run up"
        )


@app.command(rich_help_panel="Runs")
def demo(
    out: Annotated[Path, typer.Argument(help="Folder for the phantoms and the results.")] = Path("demo"),
    steps: Annotated[
        int | None, typer.Option(min=1, help="Training steps; default: about four minutes.")
    ] = None,
) -> None:
    """Run the main job on phantoms: make, train, evaluate, predict, track. About six minutes on two cores."""
    from clearmargin.demo import demo as call

    say(call(out, steps=steps))


@app.command(rich_help_panel="Runs")
def review(
    port: Annotated[
        int | None, typer.Option(help="Port on this machine; default: 5000, or a free one.")
    ] = None,
) -> None:
    """Open MLflow on the store that the runs lie in; Ctrl-C ends it."""
    from clearmargin.tracking.review import review as call

    call(port=port)


@app.command(rich_help_panel="Runs")
def report(
    run: Annotated[str, typer.Argument(help="An evaluation, or a training with one: run id or name.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The page.")] = Path("report.html"),
) -> None:
    """Write a run as one HTML page: numbers, figures, learning curves, calibration, worst cases, model card."""
    from clearmargin.reporting import report as call

    say(f"report: {call(run, out)}")


@app.command(rich_help_panel="Runs")
def replay(
    run: Evaluation,
    card: Annotated[Path, typer.Option("--card", help="The data card; a run does not say where data lie.")],
    model: Annotated[
        Path | None, typer.Option("--model", "-m", help="Model folder; default: the one its training logged.")
    ] = None,
) -> None:
    """Repeat an evaluation and compare: bit for bit on the same packages and processor. Exit code 1: it differs."""
    from clearmargin.replay import render
    from clearmargin.replay import replay as call

    check_card(card)
    done = call(run, card, model=model)
    emit(render(done), changed=done.changed, differences=done.differences, equal=done.equal, cases=done.cases)
    if done.differences:
        raise DifferenceError(f"run {done.run_id} is not repeated: {done.differences[0]}")


@app.command(rich_help_panel="Runs")
def promote(
    run: Evaluation,
    gate: Annotated[Path, typer.Option("--gate", help="Conditions, as in configs/gates/.")],
    alias: Annotated[str, typer.Option("--as", help="Alias to give.")] = "champion",
    name: Annotated[str | None, typer.Option(help="Registered model; default: the gate's name.")] = None,
    card: Annotated[
        Path | None, typer.Option("--card", help="The data card, if the gate asks for a replay.")
    ] = None,
) -> None:
    """Give a model an alias in the registry if it passes a gate; the verdict stays with it. Exit code 1: not passed."""
    from clearmargin.promote import promote as call

    done = call(run, alias=alias, gate=gate, name=name, card=card)
    emit(
        done.text(),
        version=done.version,
        passed=done.passed,
        conditions=[{"asked": c.asked, "found": c.found, "passed": c.passed} for c in done.conditions],
    )
    if not done.passed:
        first = next(c for c in done.conditions if not c.passed)
        raise DifferenceError(f"{done.version} does not pass the gate: {first.asked}, found {first.found}")

"""Verbs about runs: demo, review."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from clearmargin.cli.app import app, say

__all__: list[str] = []


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

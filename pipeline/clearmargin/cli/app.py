"""The program: its options, and how it ends.

Exit codes: 0 done, 1 a bug of ours, 2 usage or configuration, 3 part of a batch failed, 4 input refused,
130 interrupted.
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Annotated

import typer

from clearmargin.errors import ClearMarginError

__all__ = ["app", "main", "say", "say_run"]

app = typer.Typer(
    name="clearmargin",
    help="Instance segmentation of medical and surgical images, with boundary metrics in millimetres and "
    "uncertainty maps. Research software: not for diagnosis or treatment.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


@app.callback()
def _options(
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Show what is done, step by step.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Show warnings and errors only.")] = False,
) -> None:
    level = logging.DEBUG if verbose else logging.WARNING if quiet else logging.INFO
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    logging.getLogger("clearmargin").setLevel(level)


def main() -> None:
    """Run the command line and exit with a documented code."""
    try:
        # typer answers Ctrl-C, and typer.Exit, by returning a code
        code = app(standalone_mode=False)
        if code == 130:
            raise KeyboardInterrupt
        if code:
            sys.exit(code)
    except ClearMarginError as error:
        _complain(str(error))
        sys.exit(error.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        _complain("interrupted; what was finished is kept")
        sys.exit(130)
    except Exception as error:  # noqa: BLE001 - the last stop: whatever comes here is reported as a bug
        if hasattr(error, "show") and hasattr(error, "exit_code"):  # click's usage errors
            error.show()
            sys.exit(error.exit_code)
        _report_bug(error)
        sys.exit(1)


def say(text: str) -> None:
    """Print what came of a verb."""
    typer.echo(text)


def say_run(run_id: str) -> None:
    """Print where a run is found again, if it was tracked."""
    if run_id:
        say(f"run: {run_id} (clearmargin review shows it)")


def _complain(message: str) -> None:
    typer.echo(f"clearmargin: {message}", err=True)


def _report_bug(error: Exception) -> None:
    """Say where it broke without the values: a traceback's message may hold a header or a path."""
    import traceback

    if logging.getLogger("clearmargin").level <= logging.DEBUG:
        traceback.print_exception(error)
        return
    frames = traceback.extract_tb(error.__traceback__)
    where = " <- ".join(f"{Path(f.filename).name}:{f.lineno}" for f in reversed(frames[-4:]))
    _complain(
        f"this is a bug: {type(error).__name__} at {where}; -v shows the whole traceback, which may name files"
    )

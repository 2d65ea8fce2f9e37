"""The program: its options, what it prints, and how it ends.

Exit codes: 0 done, 1 a bug of ours (replay and promote: a difference, a gate not passed), 2 usage or configuration,
3 part of a batch failed, 4 input refused (or a disk, a folder or memory that the work needs and cannot have), 130
interrupted.
"""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from clearmargin.errors import ClearMarginError, ConfigError
from clearmargin.failures import missing_extra, place_of, refusal_of
from clearmargin.files import printable, shortened

__all__ = ["app", "emit", "main", "say", "say_run", "tell"]

app = typer.Typer(
    name="clearmargin",
    help="Instance segmentation of medical and surgical images, with boundary metrics in millimetres and "
    "uncertainty maps. Research software: not for diagnosis or treatment.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)

_json_lines = False


class _Printable(logging.Formatter):
    """Log lines without what acts on a terminal: names come from files."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))


def _version(version: bool) -> None:
    if version:
        from clearmargin import __version__

        if "--json" in sys.argv:
            typer.echo(json.dumps({"version": __version__}))
        else:
            typer.echo(f"clearmargin {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Show each step.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Show warnings and errors only.")] = False,
    json_lines: Annotated[
        bool, typer.Option("--json", help="Print results as JSON, one object per line, in place of text.")
    ] = False,
    log_file: Annotated[
        Path | None, typer.Option("--log-file", help="File that log messages are appended to, with times.")
    ] = None,
    trust_cards: Annotated[
        bool,
        typer.Option(
            "--trust-cards", help="Data cards may name files outside their folder (docs/security.md)."
        ),
    ] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    global _json_lines  # noqa: PLW0603 - one program, one output
    _json_lines = json_lines
    if trust_cards:
        from clearmargin.datasets.card import trust_cards as trust

        trust()
    level = logging.DEBUG if verbose else logging.WARNING if quiet else logging.INFO
    shown = logging.StreamHandler(sys.stderr)
    shown.setFormatter(_Printable("%(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[shown])
    logger = logging.getLogger("clearmargin")
    logger.setLevel(level)
    if log_file is not None:
        try:
            written = logging.FileHandler(log_file, encoding="utf-8")
        except OSError as error:
            raise ConfigError(f"--log-file '{log_file}' cannot be written: {error.strerror}") from None
        written.setFormatter(_Printable("%(asctime)s %(levelname)s %(name)s %(message)s"))
        logger.addHandler(written)


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
        _end(str(error), error.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        _end("interrupted; what was finished is kept", 130)
    except BrokenPipeError:  # the reader of our output, such as `head`, has gone
        sys.stderr.close()
        sys.exit(0)
    except Exception as error:  # noqa: BLE001 - the last stop: whatever comes here is reported as a bug
        code = _stopped_by(error)
        if code:
            _end("interrupted; what was finished is kept", code)
        if hasattr(error, "show") and hasattr(error, "exit_code"):  # click's usage errors
            error.show()
            if "--json" in sys.argv:  # which may not have been read yet
                typer.echo(json.dumps({"error": str(error), "exit_code": error.exit_code}))
            sys.exit(error.exit_code)
        missing = missing_extra(error)
        if missing:
            _end(missing, 2)
        machine = refusal_of(error)
        if machine:
            _end(machine, 4)
        _report_bug(error)
        sys.exit(1)


def _stopped_by(error: BaseException) -> int:
    """Return the exit code of the interruption during which an error came, such as a killed loader's; 0 if none."""
    cause = error.__context__
    while cause is not None:
        if isinstance(cause, KeyboardInterrupt):
            return 130
        if isinstance(cause, SystemExit) and cause.code in (130, 143):
            return int(cause.code)
        cause = cause.__context__
    return 0


def say(text: str) -> None:
    """Print what came of a verb; nothing under ``--json``, where `emit` prints the result's data."""
    if not _json_lines:
        typer.echo(printable(text))


def emit(text: str, **data: Any) -> None:
    """Print one result: as text, or under ``--json`` its data as one line.

    Args:
        text: For a person.
        data: The same for a program: numbers, texts, paths, and lists and dicts of these.
    """
    if _json_lines:
        typer.echo(json.dumps(data, default=str, allow_nan=False))
    else:
        typer.echo(printable(text))


def tell(text: str) -> None:
    """Print how far a verb has come, on stderr."""
    typer.echo(printable(text), err=True)


def say_run(run_id: str) -> None:
    """Print where a run is found again, if it was tracked."""
    if not run_id:
        return
    from clearmargin.tracking.spool import spools

    if any(run_id in (one.run_id, one.folder.name) for one in spools()):
        say(f"run: {run_id} (it waits for the tracking store: `clearmargin runs send` sends it)")
    else:
        say(f"run: {run_id} (clearmargin review shows it)")


def _end(message: str, code: int) -> None:
    message = shortened(message)
    _complain(message)
    if _json_lines:
        emit("", error=message, exit_code=code)
    sys.exit(code)


def _complain(message: str) -> None:
    typer.echo(printable(f"clearmargin: {message}"), err=True)


def _report_bug(error: Exception) -> None:
    """Say where it broke without the values: a traceback's message may hold a header or a path."""
    import traceback

    if logging.getLogger("clearmargin").level <= logging.DEBUG:
        typer.echo(printable("".join(traceback.format_exception(error))), err=True)
        return
    _complain(
        f"this is a bug: {type(error).__name__} at {place_of(error)}; -v shows the whole traceback, which may name "
        "files"
    )

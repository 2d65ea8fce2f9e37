"""Verbs about data: inspect, data show, deidentify."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from clearmargin.cli.app import app, say
from clearmargin.cli.options import Series, Tolerance, Volume
from clearmargin.errors import BatchError

__all__: list[str] = []

data_app = typer.Typer(help="Look at the data sets that cards describe.", no_args_is_help=True)
app.add_typer(data_app, name="data", rich_help_panel="Data")


@app.command("inspect", rich_help_panel="Data")
def inspect_command(
    path: Annotated[Path, typer.Argument(help="File, folder, zip or DICOMDIR.")],
    out: Annotated[Path | None, typer.Option("--out", "-o", help="PNG for a picture of it.")] = None,
    series: Series = None,
    volume: Volume = None,
    tolerance_mm: Tolerance = None,
    header_only: Annotated[bool, typer.Option("--header-only", help="Read no pixels.")] = False,
) -> None:
    """Say what is in a path, what would be read, with which geometry, and why the rest is not."""
    from clearmargin.inspection import inspect_path, write_overview

    for found in inspect_path(path, read=not header_only, tolerance_mm=tolerance_mm):
        stated = "" if found.number is None else f", SeriesNumber {found.number}"
        say(f"{found.what}{stated}: {found.size}{'' if found.readable else ' (not read)'}")
        if found.description:  # for who asks, on the terminal: neither logged nor tracked
            say(f"  description: {''.join(c if c.isprintable() else ' ' for c in found.description)}")
        for name in ("geometry", "values", "problem"):
            if getattr(found, name):
                say(f"  {name}: {getattr(found, name)}")
        if found.selector and found.readable:
            say(f"  choose it with {found.selector}")
    if out is not None:
        write_overview(path, out, series=series, volume=volume, tolerance_mm=tolerance_mm)
        say(f"picture: {out}")


@data_app.command("show")
def data_show(
    card: Annotated[Path, typer.Argument(help="A data card (YAML).")],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Where the contact sheet goes; default: ./NAME.png")
    ] = None,
    cases: Annotated[int, typer.Option(min=1, help="How many cases the sheet shows.")] = 24,
) -> None:
    """Count the cases and instances of a data set and draw a contact sheet."""
    from clearmargin.show import show_dataset

    shown = show_dataset(card, out=out, cases=cases)
    say(shown.text)
    say(f"contact sheet: {shown.sheet}")


@app.command(rich_help_panel="Data")
def deidentify(
    source: Annotated[Path, typer.Argument(metavar="IN", help="DICOM file, zip, or folder; only read.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder for the results and the report.")],
    key: Annotated[Path, typer.Option("--key", "-k", help="File with the secret key.")],
    new_key: Annotated[bool, typer.Option("--new-key", help="Write a new key there first.")] = False,
    quarantine: Annotated[
        Path | None,
        typer.Option(help="Folder for files held back, to be looked at; default: they are not written."),
    ] = None,
    pixels_reviewed: Annotated[
        bool,
        typer.Option(
            "--pixels-reviewed", help="All pictures were looked at: hold none back for burned-in text."
        ),
    ] = False,
    look_for_text: Annotated[
        bool, typer.Option("--look-for-text", help="Search the pixels for text, too; about a second a file.")
    ] = False,
    workers: Annotated[int, typer.Option(min=1, help="How many processes.")] = 1,
) -> None:
    """Remove identity from DICOM files: PS3.15's Basic Profile, dates shifted, UIDs and pseudonyms keyed."""
    from clearmargin.deidentification.key import write_new_key
    from clearmargin.deidentify import deidentify as call

    if new_key:
        write_new_key(key)
    done = call(
        source,
        out,
        key=key,
        quarantine=quarantine,
        pixels_reviewed=pixels_reviewed,
        look_for_text=look_for_text,
        workers=workers,
    )
    say(", ".join(f"{count} {status}" for status, count in sorted(done.files.items())))
    say(f"report: {out / 'report.json'}")
    if done.left_out:
        raise BatchError(
            f"{done.left_out} DICOM files are not among the results (files.csv names their case ids):\n"
            + "\n".join(
                f"  {count} {status}: {reason}"
                for (status, reason), count in sorted(done.reasons.items())
                if status in ("held back", "refused")
            )
        )

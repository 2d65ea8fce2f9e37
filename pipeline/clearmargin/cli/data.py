"""Verbs about data: inspect, data new, data show, deidentify."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from clearmargin.cli.app import app, emit, say
from clearmargin.cli.options import CardFile, Names, Series, Tolerance, Volume
from clearmargin.errors import BatchError, ConfigError, InputError

if TYPE_CHECKING:
    from clearmargin.datasets.card import Split

__all__: list[str] = []

data_app = typer.Typer(
    help="Draft data cards, and look at the data sets that they describe.", no_args_is_help=True
)
app.add_typer(data_app, name="data", rich_help_panel="Data")


class Objects(StrEnum):
    """What one object is in a mask."""

    parts = "parts"
    values = "values"
    whole = "whole"


@app.command("inspect", rich_help_panel="Data")
def inspect_command(
    path: Annotated[Path, typer.Argument(help="File, folder, zip or DICOMDIR.")],
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Picture of it to write (PNG).")] = None,
    series: Series = None,
    volume: Volume = None,
    tolerance_mm: Tolerance = None,
    header_only: Annotated[bool, typer.Option("--header-only", help="Read headers only, no pixels.")] = False,
) -> None:
    """Say what is in a path, what would be read, with which geometry, and why the rest is not."""
    from clearmargin.inspection import inspect_path, write_overview

    findings = inspect_path(path, read=not header_only, tolerance_mm=tolerance_mm)
    for finding in findings:
        stated = "" if finding.number is None else f", SeriesNumber {finding.number}"
        lines = [f"{finding.what}{stated}: {finding.size}{'' if finding.readable else ' (not read)'}"]
        if finding.description:  # for who asks, on the terminal: neither logged nor tracked
            lines.append(
                f"  description: {''.join(c if c.isprintable() else ' ' for c in finding.description)}"
            )
        lines += [
            f"  {n}: {getattr(finding, n)}" for n in ("geometry", "values", "problem") if getattr(finding, n)
        ]
        if finding.selector and finding.readable:
            lines.append(f"  choose it with {finding.selector}")
        emit("\n".join(lines), **asdict(finding))
    refused = [finding for finding in findings if finding.refused]
    if out is not None:
        write_overview(path, out, series=series, volume=volume, tolerance_mm=tolerance_mm)
        say(f"picture: {out}")
    if refused and not any(finding.readable for finding in findings):
        raise InputError(f"'{path}' is refused: {refused[0].problem}")
    if refused:
        raise BatchError(
            f"{len(refused)} of {len(findings)} inputs in '{path}' cannot be read; the others can"
        )


@data_app.command("new")
def data_new(
    folder: Annotated[Path, typer.Argument(help="Folder of images and masks; nothing in it changes.")],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Data card to write; default: ./NAME.yaml.")
    ] = None,
    images: Annotated[
        str | None, typer.Option(help="Folder or pattern of the images under FOLDER, such as 'photos/*.jpg'.")
    ] = None,
    masks: Annotated[
        str | None,
        typer.Option(
            help="Folder or pattern of the masks; a COCO file; or SEG or RTSTRUCT, if there are both."
        ),
    ] = None,
    classes: Annotated[
        list[str] | None,
        typer.Option("--class", help="Name of the only class, or VALUE=NAME for each value of the masks."),
    ] = None,
    objects: Annotated[
        Objects | None,
        typer.Option(
            help="Meaning of one object: a connected part, a value of the mask, or the whole class."
        ),
    ] = None,
    threshold: Annotated[
        int | None, typer.Option(min=1, help="Least value that is object, for blurred masks.")
    ] = None,
    group: Annotated[
        str | None,
        typer.Option(
            help="Rule for images that belong together: folder, none, or a regular expression for their names."
        ),
    ] = None,
    modality: Annotated[str | None, typer.Option(help="DICOM modality: US, CT, MR, ES, SM, ...")] = None,
    spacing_mm: Annotated[
        float | None, typer.Option(min=1e-6, help="Millimetres per pixel, if all pictures have one.")
    ] = None,
    shares: Annotated[
        str, typer.Option(help="Shares of the groups for validation, calibration and test.")
    ] = "0.15,0.15,0.2",
    seed: Annotated[int, typer.Option(help="Random seed for the splits.")] = 0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing card.")] = False,
) -> None:
    """Draft a data card from images with masks: folders, COCO, nnU-Net, or DICOM with SEG or RTSTRUCT."""
    from clearmargin.datasets.drafting.draft import draft_card
    from clearmargin.datasets.drafting.layout import DraftOptions

    with _files_read() as advance:
        drafted = draft_card(
            folder,
            out,
            options=DraftOptions(
                images=images,
                masks=masks,
                classes=_class_names(classes or []),
                objects=None if objects is None else objects.value,
                threshold=threshold,
                group=group,
            ),
            modality=modality,
            spacing_mm=spacing_mm,
            shares=_shares(shares),
            seed=seed,
            overwrite=overwrite,
            advance=advance,
        )
    emit(
        drafted.text, card=drafted.card, index=drafted.index, cases=drafted.cases, instances=drafted.instances
    )


@contextlib.contextmanager
def _files_read() -> Iterator[Callable[[int], object]]:
    """Yield what is called after each file with how many there are: a bar for the masks, and one for the cases."""
    from clearmargin.report.progress import Bar, progress

    with contextlib.ExitStack() as stack:
        bars: list[tuple[Bar, list[int]]] = []

        def advance(total: int) -> None:
            if not bars or bars[-1][1][0] == bars[-1][1][1]:
                stack.close()
                bars.append((stack.enter_context(progress("read", total)), [0, total]))
            bar, counted = bars[-1]
            counted[0] += 1
            bar.advance()

        yield advance


def _class_names(given: list[str]) -> dict[int, str]:
    """Return names by value; a name without a value is the only class's, at value 0."""
    names: dict[int, str] = {}
    for item in given:
        value, equals, name = item.partition("=")
        if equals and not (value.strip().isdigit() and name.strip()):
            raise ConfigError(f"--class {item}: expected NAME, or VALUE=NAME with a whole number")
        names[int(value) if equals else 0] = (name if equals else item).strip()
    if 0 in names and len(given) > 1:
        raise ConfigError("--class NAME is for masks of one class; give VALUE=NAME for each of several")
    return names


def _shares(text: str) -> dict[Split, float]:
    try:
        validation, calibration, test = (float(v) for v in text.split(","))
    except ValueError:
        raise ConfigError(
            f"--shares {text}: expected three numbers, such as 0.15,0.15,0.2 for validation, calibration and test"
        ) from None
    if min(validation, calibration, test) < 0 or validation + calibration + test >= 1:
        raise ConfigError(f"--shares {text}: shares are 0 or more, and leave something for training")
    return {"validation": validation, "calibration": calibration, "test": test}


@data_app.command("show")
def data_show(
    card: CardFile,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Contact sheet to write; default: ./NAME.png.")
    ] = None,
    cases: Annotated[int, typer.Option(min=1, help="Number of cases on the sheet.")] = 24,
    names: Names = None,
) -> None:
    """Count the cases and instances of a data set and draw a contact sheet."""
    from clearmargin.show import show_dataset

    shown = show_dataset(card, out=out, cases=cases)
    emit(f"{shown.text}\ncontact sheet: {shown.sheet}", sheet=shown.sheet, **asdict(shown.counts))


@app.command("cases", rich_help_panel="Data")
def cases_command(
    ids: Annotated[
        list[str] | None, typer.Argument(metavar="[ID]...", help="Case ids; default: all that are known.")
    ] = None,
    moved: Annotated[
        tuple[Path, Path] | None,
        typer.Option(metavar="OLD NEW", help="Old and new folder of data that moved; their case ids stay."),
    ] = None,
) -> None:
    """Say which file a case id stands for, from your private crosswalk."""
    from clearmargin.privacy import home, paths_of_case, record_moved, recorded_cases

    if moved is not None:
        record_moved(*moved)
        say(f"cases under {moved[1]} keep the ids that they had under {moved[0]}")
        return
    unknown = []
    for case in ids or recorded_cases():
        paths = paths_of_case(case)
        for path in paths:
            there = Path(path).exists()
            emit(f"{case}  {path}{'' if there else '  (not there)'}", case=case, path=path, exists=there)
        unknown += [] if paths else [case]
    if unknown:
        raise InputError(
            f"the crosswalk of '{home()}' knows no case {', '.join(unknown)}: an id is known to the user whose command "
            "named it (CLEARMARGIN_HOME)"
        )


@app.command(rich_help_panel="Data")
def deidentify(
    source: Annotated[
        Path, typer.Argument(metavar="IN", help="DICOM file, zip, or folder; nothing in it changes.")
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder for the results and the report.")],
    key: Annotated[Path, typer.Option("--key", "-k", help="File with the secret key.")],
    new_key: Annotated[bool, typer.Option("--new-key", help="Write a new key to --key first.")] = False,
    quarantine: Annotated[
        Path | None,
        typer.Option(help="Folder for files held back, to be looked at; default: they are not written."),
    ] = None,
    pixels_reviewed: Annotated[
        bool,
        typer.Option(
            "--pixels-reviewed",
            help="Confirm that a person looked at all pictures: none is held back for burned-in text.",
        ),
    ] = False,
    look_for_text: Annotated[
        bool,
        typer.Option("--look-for-text", help="Also search the pixels for text; about one second per file."),
    ] = False,
    workers: Annotated[int, typer.Option(min=1, help="Number of processes.")] = 1,
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
    counts = ", ".join(f"{count} {status}" for status, count in sorted(done.files.items()))
    emit(f"{counts}\nreport: {out / 'report.json'}", files=done.files, report=out / "report.json")
    if done.left_out:
        raise BatchError(
            f"{done.left_out} DICOM files are not among the results (files.csv names their case ids):\n"
            + "\n".join(
                f"  {count} {status}: {reason}"
                for (status, reason), count in sorted(done.reasons.items())
                if status in ("held back", "refused")
            )
        )

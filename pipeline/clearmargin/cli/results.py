"""Verbs that use models: predict, evaluate, calibrate."""

from __future__ import annotations

from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from clearmargin.cli.app import app, emit, say, say_run
from clearmargin.cli.checks import check_card, check_device, check_folder
from clearmargin.cli.options import (
    AllowGaps,
    AllowTilt,
    AnyModel,
    Bands,
    ComputedBy,
    Device,
    DisplayWindow,
    Force,
    LeastScore,
    Metrics,
    Model,
    Names,
    NoTrack,
    OfSplit,
    Runtime,
    Sampling,
    Series,
    Split,
    Subvoxel,
    ThresholdMeasure,
    Tile,
    Tolerance,
    Tolerances,
    Towards,
    Uncertainty,
    Volume,
    Writes,
    asked_outputs,
    protocol_of,
)
from clearmargin.errors import BatchError, ConfigError
from clearmargin.files import check_readable
from clearmargin.models.files import check_choice

if TYPE_CHECKING:
    from clearmargin.predict import Predicted

__all__: list[str] = []


class Promise(StrEnum):
    """Of what the margins promise a share."""

    object = "object"
    group = "group"
    risk = "risk"


class Sides(StrEnum):
    """Whether a promise is about one side of an edge or both."""

    each = "each"
    both = "both"


@app.command(rich_help_panel="Results")
def predict(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="INPUT", help="DICOM file or folder, volume, picture, folder of pictures, or clip."
        ),
    ],
    out: Annotated[
        Path, typer.Argument(metavar="OUT", help="Folder for the results, with one folder per case.")
    ],
    model: Model,
    uncertainty: Sampling = Uncertainty.none,
    series: Series = None,
    volume: Volume = None,
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
    towards: Towards = None,
    no_track: NoTrack = False,
) -> None:
    """Segment images and write DICOM SEG, tables, overlays and uncertainty maps."""
    from clearmargin.tracking.resolve import model_folder

    check_readable(source)
    check_folder(out)
    check_device(device)
    outputs = asked_outputs(write)
    folder = model_folder(model)
    check_choice(folder, uncertainty.value, runtime.value)
    from clearmargin.predict import predict as call

    report = call(
        source,
        out,
        model=folder,
        uncertainty=uncertainty.value,
        series=series,
        device=device,
        runtime=runtime.value,
        score_threshold=score_threshold,
        tile=tile,
        display_window=display_window,
        allow_gaps=allow_gaps,
        allow_tilt=allow_tilt,
        force=force,
        on_done=_say_predicted,
        volume=volume,
        tolerance_mm=tolerance_mm,
        write=outputs,
        towards=towards or (),
        track=not no_track,
    )
    promised = sum(d.promised for d in report.done)
    if report.promises and promised < len(report.done):
        say(
            f"{len(report.done) - promised} of {len(report.done)} cases do not fit the calibration, and are promised "
            "nothing"
            + ("; of the others:" if promised else ": margins would hold for cases like the calibration's")
        )
    for sentence in report.promises if promised else ():
        say(sentence)
    for warning in report.drift:
        say(f"warning: {warning}")
    if report.failed:
        raise BatchError(
            f"{len(report.failed)} of {len(report.failed) + len(report.done)} inputs failed; "
            "the others are done:\n"
            + "\n".join(f"  {case}: {message}" for case, message in report.failed.items())
        )
    incomplete = [f"  {d.case}: {name}: {why}" for d in report.done for name, why in d.left_out.items()]
    if incomplete:
        raise BatchError("some outputs could not be written; the others are:\n" + "\n".join(incomplete))


def _say_predicted(done: Predicted) -> None:
    classes = ", ".join(f"{count} {name}" for name, count in done.by_class.items())
    referred = f"; refer {done.referred}" if done.referred else ""
    lines = [f"{done.case}: {classes}{referred} -> {done.folder}"]
    lines += [f"  warning: {warning}" for warning in done.warnings]
    emit("\n".join(lines), **{name: value for name, value in asdict(done).items() if name != "features"})


@app.command(rich_help_panel="Results")
def evaluate(
    model: AnyModel,
    card: Annotated[Path, typer.Option("--card", help="A data card.")],
    split: OfSplit = Split.test,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder for the tables; default: no files.")
    ] = None,
    score_threshold: Annotated[
        float | None, typer.Option(min=0, max=1, help="Score threshold for all but AP; default: the model's.")
    ] = None,
    uncertainty: Sampling = Uncertainty.none,
    tolerances: Tolerances = None,
    bands: Bands = None,
    metrics: Metrics = None,
    subvoxel: Subvoxel = False,
    names: Names = None,
    gallery: Annotated[
        int, typer.Option(min=0, help="Cases in each list of the gallery of worst cases; 0 for none.")
    ] = 20,
    no_track: NoTrack = False,
) -> None:
    """Measure a model on a split: AP, PQ, Dice, and boundary distances with false negatives counted."""
    from clearmargin.tracking.resolve import model_folder

    check_card(card)
    check_folder(out)
    folder = model_folder(model)
    check_choice(folder, uncertainty.value, "torch")
    from clearmargin.evaluate import evaluate as call
    from clearmargin.evaluate import render

    evaluation = call(
        folder,
        card,
        split=split.value,
        score_threshold=score_threshold,
        uncertainty=uncertainty.value,
        out=out,
        gallery=gallery,
        track=not no_track,
        **protocol_of(tolerances, bands, metrics, subvoxel=subvoxel),
    )
    emit(
        render(evaluation),
        numbers=evaluation.flat(),
        counts=evaluation.counts,
        length_unit=evaluation.unit,
        run_id=evaluation.run_id,
        tables=out,
        failed=evaluation.failed,
    )
    say_run(evaluation.run_id)
    if evaluation.failed:
        raise BatchError(
            f"{len(evaluation.failed)} of {len(evaluation.failed) + evaluation.counts['cases']} cases failed and are "
            "in no number; the others are measured:\n"
            + "\n".join(f"  {case}: {reason}" for case, reason in evaluation.failed.items())
        )


@app.command(rich_help_panel="Results")
def calibrate(
    model: AnyModel,
    card: Annotated[Path, typer.Option("--card", help="A data card with a calibration split.")],
    promise: Annotated[
        Promise,
        typer.Option(
            help="Promise of the margins: over a group's objects, over groups, or over an object's edge."
        ),
    ] = Promise.object,
    sides: Annotated[
        Sides, typer.Option(help="A promise for each margin, outer and inner, or one for both at once.")
    ] = Sides.each,
    alpha: Annotated[
        list[str] | None,
        typer.Option(
            help="Share that may fail; repeatable, or 0.1,0.05: the first is applied. Default: 0.1 for margins, 0.05 "
            "for regions of landmarks."
        ),
    ] = None,
    confidence: Annotated[
        float | None,
        typer.Option(help="Share of calibrations that keep the promise, such as 0.9; default: in the mean."),
    ] = None,
    miss_alpha: Annotated[
        float | None,
        typer.Option(
            help="Share of a group's objects that may be missed, merged or cut; the score threshold rises as far as "
            "it allows."
        ),
    ] = None,
    match_iou: Annotated[
        float,
        typer.Option(
            help="Least IoU at which a prediction has a margin; below it, the object counts as missed."
        ),
    ] = 0.6,
    uncertainty: Sampling = Uncertainty.none,
    split: Annotated[Split, typer.Option(help="Split to calibrate on.")] = Split.calibration,
    judge: Annotated[
        Split | None, typer.Option(help="Further split to judge on; nothing is fitted on it.")
    ] = None,
    fit_share: Annotated[
        float,
        typer.Option(
            help="Share of the groups for threshold, widths, scaling and limits; the others are for margins."
        ),
    ] = 0.3,
    risk_limit: Annotated[
        float, typer.Option(min=0, help="HD95 above which an instance should be referred, in mm or px.")
    ] = 4.0,
    region_limit: Annotated[
        float | None,
        typer.Option(
            min=0, help="Longest semi-axis above which the region of a landmark refers it, in mm or px."
        ),
    ] = None,
    towards: Towards = None,
    threshold_measure: Annotated[
        ThresholdMeasure | None,
        typer.Option(
            help="Measure by which the score thresholds are chosen anew, per class; default: the model's stay."
        ),
    ] = None,
    band: Annotated[
        float | None,
        typer.Option(
            help="Half the width of the band for boundary errors, in mm or px; default: two elements."
        ),
    ] = None,
    seed: Annotated[
        int, typer.Option(min=0, help="Random seed for splitting the groups and for the bootstrap.")
    ] = 0,
    device: Device = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder for tables, figures and the report.")
    ] = None,
    no_track: NoTrack = False,
) -> None:
    """Fit scaled scores and margins of safety on groups that the model has not seen; they stay with the model."""
    from clearmargin.tracking.resolve import model_folder

    check_card(card)
    check_folder(out)
    check_device(device)
    alphas = None if alpha is None else _numbers("--alpha", alpha)
    folder = model_folder(model)
    check_choice(folder, uncertainty.value, "torch")
    from clearmargin.calibrate import calibrate as call
    from clearmargin.calibrate import render_calibration

    done = call(
        folder,
        card,
        promise=promise.value,
        sides=sides.value,
        alphas=alphas,
        confidence=confidence,
        miss_alpha=miss_alpha,
        match_iou=match_iou,
        uncertainty=uncertainty.value,
        split=split.value,
        judge_on=None if judge is None else judge.value,
        fit_share=fit_share,
        risk_limit=risk_limit,
        region_limit=region_limit,
        towards=towards or (),
        threshold_measure=None if threshold_measure is None else threshold_measure.value,
        band=band,
        seed=seed,
        device=device,
        out=out,
        track=not no_track,
    )
    emit(render_calibration(done), calibration=done.calibration.to_data(), file=done.file, run_id=done.run_id)
    say(f"calibration: {done.file}; `clearmargin predict --uncertainty {uncertainty.value}` applies it")
    say_run(done.run_id)


def _numbers(option: str, items: list[str]) -> list[float]:
    """Return the numbers of a repeatable option that takes commas as well."""
    try:
        return [float(part) for item in items for part in item.split(",")]
    except ValueError:
        raise ConfigError(
            f"{option} takes numbers, such as 0.1 or 0.1,0.05, not {', '.join(items)}"
        ) from None

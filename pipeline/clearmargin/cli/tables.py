"""Verbs that judge masks of any tool: measure, compare."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from clearmargin.cli.app import app, emit, say, say_run
from clearmargin.cli.checks import check_card, check_folder
from clearmargin.cli.options import Bands, Metrics, Subvoxel, Tolerances, protocol_of
from clearmargin.errors import BatchError

__all__: list[str] = []


class Objects(StrEnum):
    """What one object is in a label file."""

    classes = "classes"
    components = "components"
    instances = "instances"


class CaseNames(StrEnum):
    """How tables name cases."""

    keyed = "keyed"
    plain = "plain"


@app.command(rich_help_panel="Results")
def measure(
    predicted: Annotated[
        Path, typer.Argument(help="Folder or file of label volumes, label images, SEG or COCO.")
    ],
    reference: Annotated[
        Path, typer.Argument(help="The same of the reference (ground truth); files belong together by name.")
    ],
    objects: Annotated[
        Objects | None,
        typer.Option(
            help="Meaning of one object in a label file: a class (default, if that is plausible), a connected "
            "part, or a value."
        ),
    ] = None,
    tolerances: Tolerances = None,
    bands: Bands = None,
    metrics: Metrics = None,
    subvoxel: Subvoxel = False,
    iou_threshold: Annotated[
        float, typer.Option(help="Least IoU at which two objects are the same, in (0, 1].")
    ] = 0.5,
    distance_cap: Annotated[
        float | None,
        typer.Option(
            help="Distance that a false negative or false positive counts; default: the grid's diagonal."
        ),
    ] = None,
    resample: Annotated[
        bool,
        typer.Option("--resample", help="Resample predictions to the reference's grid if the grids differ."),
    ] = False,
    missing_as_empty: Annotated[
        bool,
        typer.Option("--missing-as-empty", help="Count a missing prediction file as one without instances."),
    ] = False,
    predicted_pattern: Annotated[
        str | None,
        typer.Option(
            metavar="PATTERN",
            help="Name pattern of the predictions: {case}_seg.nii.gz, {case}/{class}.nii.gz, "
            "{case}/masks/{instance}.png.",
        ),
    ] = None,
    reference_pattern: Annotated[
        str | None, typer.Option(metavar="PATTERN", help="Name pattern of the references.")
    ] = None,
    preview: Annotated[
        bool, typer.Option("--preview", help="Show which files are paired, by name, and measure nothing.")
    ] = False,
    labels: Annotated[
        Path | None,
        typer.Option(help="nnU-Net's dataset.json; default: the one in or above either folder, if any."),
    ] = None,
    cases: Annotated[
        Path | None,
        typer.Option(help="CSV with the columns case, group (or patient), and any others to split by."),
    ] = None,
    by: Annotated[
        list[str] | None,
        typer.Option(
            help="Stratum of the tables: class, size, crowding, occlusion, or a column; repeatable."
        ),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Random seed for the bootstrap.")] = 0,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Folder for the tables.")] = None,
    names: Annotated[
        CaseNames, typer.Option(help="Names of cases and groups in the tables: keyed ids, or plain names.")
    ] = CaseNames.keyed,
    figures: Annotated[bool, typer.Option("--figures", help="Draw figures beside the tables.")] = False,
    workers: Annotated[
        int | None, typer.Option(help="Processes; default: one per core, if there are cases enough.")
    ] = None,
    track: Annotated[bool, typer.Option("--track", help="Log numbers and tables as an MLflow run.")] = False,
) -> None:
    """Measure masks of any tool against references: surface distances, NSD, AP, all with intervals."""
    from clearmargin.measure import cores, render
    from clearmargin.measure import measure as call
    from clearmargin.measure import preview as show

    if preview:
        say(
            show(
                predicted,
                reference,
                missing_as_empty=missing_as_empty,
                predicted_pattern=predicted_pattern,
                reference_pattern=reference_pattern,
            )
        )
        return
    measurement = call(
        predicted,
        reference,
        objects=None if objects is None else objects.value,
        iou_threshold=iou_threshold,
        distance_cap=distance_cap,
        resample_predictions=resample,
        missing_as_empty=missing_as_empty,
        predicted_pattern=predicted_pattern,
        reference_pattern=reference_pattern,
        labels=labels,
        cases=cases,
        by=by or (),
        seed=seed,
        out=out,
        names=names.value,
        figures=figures,
        workers=cores() if workers is None else workers,
        track=track,
        **protocol_of(tolerances, bands, metrics, subvoxel=subvoxel),
    )
    emit(
        render(measurement),
        numbers=measurement.flat(),
        counts=dict(measurement.counts),
        length_unit=measurement.unit,
        tables=out,
        failed=dict(measurement.failed),
    )
    if measurement.failed:
        raise BatchError(
            f"{len(measurement.failed)} of {len(measurement.failed) + measurement.counts['cases']} cases were "
            "refused; the others are done:\n"
            + "\n".join(f"  {case}: {why}" for case, why in measurement.failed.items())
        )


@app.command(rich_help_panel="Results")
def compare(
    tables: Annotated[
        list[str],
        typer.Argument(
            metavar="A B ...",
            help="Folders that `measure --out` or `evaluate --out` wrote, or runs (id or name); first the baseline.",
        ),
    ],
    name: Annotated[
        list[str] | None,
        typer.Option(
            help="Name per table or run, in their order; repeatable. Seeds of one configuration share a name."
        ),
    ] = None,
    metrics: Annotated[
        list[str] | None,
        typer.Option("--metric", help="Metric to compare; repeatable; default: all that the tables share."),
    ] = None,
    by: Annotated[
        list[str] | None, typer.Option(help="Compare by class, size, crowding or occlusion, too; repeatable.")
    ] = None,
    alpha: Annotated[float, typer.Option(help="Significance level of the adjusted p-values.")] = 0.05,
    seed: Annotated[
        int, typer.Option(min=0, help="Random seed for the trials that estimate an interval's coverage.")
    ] = 0,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Folder for the comparison.")] = None,
    card: Annotated[
        Path | None,
        typer.Option("--card", help="A data card: draw the objects that lose most on its images."),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Compare evaluations of different data or splits, too.")
    ] = False,
    track: Annotated[bool, typer.Option("--track", help="Log the comparison as a run.")] = False,
) -> None:
    """Compare tools or runs by their tables: paired by case and object, Holm's correction, one word per metric."""
    from clearmargin.compare import compare as call
    from clearmargin.compare import render

    if card is not None:
        check_card(card)
    check_folder(out)
    done = call(
        tables,
        names=name or (),
        metrics=metrics or (),
        by=by or (),
        alpha=alpha,
        seed=seed,
        out=out,
        card=card,
        force=force,
        track=track,
    )
    emit(
        render(done),
        verdicts=[
            {"tool": row.name, "metric": row.metric, "stratum": row.stratum, "verdict": row.verdict,
             "difference": row.comparison.difference.estimate, "p_holm": row.comparison.p_adjusted,
             "p_false": row.comparison.p_false}
            for row in done.sets.metrics
        ],
        run_id=done.run_id,
    )  # fmt: skip
    say_run(done.run_id)

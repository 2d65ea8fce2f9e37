"""Verbs that make models: plan, train, crossvalidate, select, export."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from clearmargin.cli.app import app, emit, say, say_run
from clearmargin.cli.checks import (
    check_card,
    check_device,
    check_experiment,
    check_folder,
    check_overrides,
    is_card,
)
from clearmargin.cli.options import AnyModel, CardFile, Minutes, NoTrack, OfSplit, Overrides, Runs, Split
from clearmargin.errors import BatchError, ConfigError
from clearmargin.files import write_text

if TYPE_CHECKING:
    from clearmargin.training.experiment import Experiment

__all__: list[str] = []


class Format(StrEnum):
    """What a model is exported to."""

    onnx = "onnx"
    openvino = "openvino"
    bundle = "bundle"


@app.command(rich_help_panel="Models")
def plan(
    card: CardFile,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="The YAML to write; default: it is printed.")
    ] = None,
    network: Annotated[str | None, typer.Option(help="Network; default: the one that fits the data.")] = None,
    device: Annotated[
        str | None,
        typer.Option(help="Device that it will be trained on, cpu or cuda; default: this machine's."),
    ] = None,
    minutes: Minutes = None,
    cases: Annotated[int, typer.Option(min=1, help="Largest number of training cases that are read.")] = 100,
) -> None:
    """Look at a data set and write a configuration for it, with the reason beside each choice."""
    if out is not None and out.exists():
        raise ConfigError(f"'{out}' exists: name another file, or remove it")
    check_card(card)
    check_device(device)
    from clearmargin.plan import plan as call
    from clearmargin.plan import render_plan

    planned = call(card, network=network, device=device, minutes=minutes, cases=cases)
    text = render_plan(planned)
    if out is not None:
        write_text(out, text)
        text = f"planned: {out}; train it with `clearmargin train {out}`"
    emit(text, experiment=planned.experiment.model_dump(mode="json"), reasons=planned.reasons, file=out)


@app.command(rich_help_panel="Models")
def train(
    config: Annotated[
        Path | None,
        typer.Argument(help="An experiment (YAML; see configs/), or a data card, which is planned first."),
    ] = None,
    overrides: Overrides = None,
    minutes: Minutes = None,
    resume: Annotated[
        str | None,
        typer.Option("--resume", metavar="RUN", help="Run to continue: its folder, name or run id."),
    ] = None,
    runs: Runs = Path("runs"),
    profile: Annotated[
        bool,
        typer.Option(
            "--profile",
            help="Show the time of each step's parts per epoch; write operators into RUN/profile/.",
        ),
    ] = False,
    no_track: NoTrack = False,
) -> None:
    """Train a network; Ctrl-C keeps the last whole epoch, and --resume goes on from there."""
    changes = [*(overrides or []), *([] if minutes is None else [f"training.max_minutes={minutes}"])]
    experiment: Path | Experiment | None = config
    if config is not None and is_card(config):
        if resume is None:
            experiment, changes = _planned(config, minutes, changes), []
    elif config is not None:
        check_experiment(config, changes)
    check_folder(runs)
    from clearmargin.train import train as call

    result = call(
        experiment, overrides=changes, resume=resume, runs=runs, profile=profile, track=not no_track
    )
    best = ", ".join(f"{name} {value:.4g}" for name, value in result.best.items())
    emit(
        f"{result.epochs} epochs; best on validation: {best or 'not validated'}\nmodel: {result.model}",
        epochs=result.epochs,
        best=result.best,
        model=result.model,
        run_id=result.run_id,
    )
    say_run(result.run_id)


def _planned(card: Path, minutes: float | None, changes: list[str]) -> Experiment:
    """Return the plan for a data card, with the command's own settings over it; the choices are said."""
    check_card(card)
    check_overrides(changes)
    from clearmargin.config import apply_overrides, validate
    from clearmargin.plan import plan as call
    from clearmargin.training.experiment import Experiment

    planned = call(card, minutes=minutes)
    say(f"planned for {card.name} (`clearmargin plan` writes it as a file to change):")
    for setting, reason in planned.reasons.items():
        if setting in (
            "model.network",
            "image.scale",
            "image.spacing_mm",
            "image.crop",
            "training.early_stopping",
        ):
            say(f"  {setting}: {reason}")
    content = apply_overrides(planned.experiment.model_dump(mode="json"), changes)
    return validate(content, Experiment, name="the plan with --set")


@app.command(rich_help_panel="Models")
def crossvalidate(
    config: Annotated[Path | None, typer.Argument(help="An experiment (YAML); see configs/.")] = None,
    folds: Annotated[
        int, typer.Option(min=1, help="Number of folds; 1 repeats the card's split with each seed.")
    ] = 5,
    seeds: Annotated[int, typer.Option(min=1, help="Trainings per fold.")] = 1,
    overrides: Overrides = None,
    resume: Annotated[
        Path | None,
        typer.Option("--resume", metavar="FOLDER", help="Folder of a stopped cross-validation to continue."),
    ] = None,
    runs: Runs = Path("runs"),
    no_track: NoTrack = False,
) -> None:
    """Train on folds by group, with several seeds; every case is measured by a model that never saw it."""
    if config is not None:
        check_experiment(config, overrides or [])
    from clearmargin.crossvalidate import crossvalidate as call

    done = call(
        config,
        folds=folds,
        seeds=seeds,
        overrides=overrides or [],
        resume=resume,
        runs=runs,
        track=not no_track,
    )
    spread = done.spread()
    lines = [f"  {name:<24} {mean:.4f} +- {sd:.4f}" for name, (mean, sd) in spread.items()]
    lines.append(f"{len(done.numbers)} members, mean and standard deviation; as one model: {done.folder}")
    emit(
        "\n".join(lines),
        members=len(done.numbers),
        mean={name: mean for name, (mean, _) in spread.items()},
        sd={name: sd for name, (_, sd) in spread.items()},
        folder=done.folder,
        run_id=done.run_id,
    )


@app.command(rich_help_panel="Models")
def select(
    models: Annotated[
        list[str], typer.Argument(help="Models: folders, runs' folders, run ids, or models:/NAME@ALIAS.")
    ],
    card: Annotated[Path, typer.Option("--card", help="A data card; its validation split is used.")],
    budget_ms: Annotated[
        float, typer.Option(min=0, help="Time per image that 95 % of the images may take, in ms.")
    ],
    metric: Annotated[
        str, typer.Option(help="nsd@2px, nsd@1mm, ..., dice, iou, hd95, assd or volume_error.")
    ] = "nsd@2px",
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    cases: Annotated[int, typer.Option(min=1, help="Largest number of images that are timed.")] = 20,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder for the table, the figure and the reasons.")
    ] = None,
    no_track: NoTrack = False,
) -> None:
    """Time models end to end here and choose the smallest that is fast enough and not significantly worse."""
    from clearmargin.tracking.resolve import model_folder

    check_card(card)
    check_folder(out)
    check_device(device)
    folders = [model_folder(model) for model in models]
    from clearmargin.selecting import render_selection
    from clearmargin.selecting import select as call

    done = call(
        folders,
        card,
        budget_ms=budget_ms,
        metric=metric,
        device=device,
        cases=cases,
        out=out,
        track=not no_track,
    )
    emit(
        render_selection(done),
        chosen=done.chosen,
        why=done.why,
        metric=done.metric,
        budget_ms=budget_ms,
        candidates=[one.name for one in done.candidates],
        failed=done.failed,
        run_id=done.run_id,
        out=out,
    )
    say_run(done.run_id)
    if done.failed:
        raise BatchError(
            f"{len(done.failed)} of {len(done.failed) + len(done.candidates)} candidates could not be measured; "
            "the others were compared:\n"
            + "\n".join(f"  {name}: {message}" for name, message in done.failed.items())
        )


@app.command(rich_help_panel="Models")
def export(
    model: AnyModel,
    format: Annotated[
        Format,
        typer.Option("--format", help="onnx and openvino for `predict --runtime`, bundle for MONAI's tools."),
    ],
    card: Annotated[Path, typer.Option("--card", help="Data card with the images for the parity gate.")],
    split: OfSplit = Split.validation,
    cases: Annotated[int, typer.Option(min=1, help="Largest number of images to compare on.")] = 8,
    no_track: NoTrack = False,
) -> None:
    """Export a model to ONNX, OpenVINO or a MONAI bundle; nothing is written unless it finds what the model finds."""
    from clearmargin.tracking.resolve import model_folder

    check_card(card)
    folder = model_folder(model)
    from clearmargin.export import export as call

    done = call(folder, card, format=format.value, split=split.value, cases=cases, track=not no_track)
    parity = done.parity
    before, after = done.seconds
    emit(
        f"{parity.instances} instances compared in {done.cases} images: scores within {parity.score:.1e}, "
        f"probabilities within {max(parity.probability, parity.foreground):.1e}, at most {parity.flipped:.2g} of the "
        f"pixels that may change sides, NSD within {parity.nsd:.1e}\n"
        + (
            f"{parity.points} landmarks compared: places within {parity.moved:.1e} px\n"
            if parity.points
            else ""
        )
        + f"an image takes {1000 * after:.0f} ms, with the model itself {1000 * before:.0f} ms "
        f"({before / after:.1f} times)\n"
        f"export: {done.folder}",
        instances=parity.instances,
        cases=done.cases,
        score=parity.score,
        probability=max(parity.probability, parity.foreground),
        nsd=parity.nsd,
        seconds=after,
        seconds_with_torch=before,
        folder=done.folder,
        run_id=done.run_id,
    )
    say_run(done.run_id)

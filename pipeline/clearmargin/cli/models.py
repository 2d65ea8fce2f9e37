"""Verbs that make models: plan, train, crossvalidate, select, export."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from clearmargin.cli.app import app, say, say_run
from clearmargin.cli.options import AnyModel, Overrides, Runs, Split
from clearmargin.errors import BatchError, ConfigError

__all__: list[str] = []


class Format(StrEnum):
    """What a model is exported to."""

    onnx = "onnx"
    openvino = "openvino"


@app.command(rich_help_panel="Models")
def plan(
    card: Annotated[Path, typer.Argument(help="A data card (YAML).")],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="The YAML to write; default: it is printed.")
    ] = None,
    network: Annotated[str | None, typer.Option(help="Which network; default: what fits the data.")] = None,
    device: Annotated[
        str | None, typer.Option(help="cpu or cuda, where it will be trained; default: what is here.")
    ] = None,
    minutes: Annotated[float | None, typer.Option(min=0.1, help="Time that training may take.")] = None,
    cases: Annotated[int, typer.Option(min=1, help="Most training cases that are looked at.")] = 100,
) -> None:
    """Look at a data set and write a configuration for it, with the reason beside each choice."""
    from clearmargin.plan import plan as call
    from clearmargin.plan import render_plan

    if out is not None and out.exists():
        raise ConfigError(f"'{out}' exists: name another file, or remove it")
    text = render_plan(call(card, network=network, device=device, minutes=minutes, cases=cases))
    if out is None:
        say(text)
        return
    out.write_text(text, encoding="utf-8")
    say(f"planned: {out}; train it with `clearmargin train {out}`")


@app.command(rich_help_panel="Models")
def train(
    config: Annotated[Path | None, typer.Argument(help="An experiment (YAML); see configs/.")] = None,
    overrides: Overrides = None,
    resume: Annotated[
        str | None,
        typer.Option("--resume", metavar="RUN", help="Go on with a run: its folder, name or run id."),
    ] = None,
    runs: Runs = Path("runs"),
    profile: Annotated[
        bool,
        typer.Option("--profile", help="Show where each epoch's time goes; operators into RUN/profile/."),
    ] = False,
) -> None:
    """Train a network; Ctrl-C keeps the last whole epoch, and --resume goes on from there."""
    from clearmargin.train import train as call

    result = call(config, overrides=overrides or [], resume=resume, runs=runs, profile=profile)
    best = ", ".join(f"{name} {value:.4g}" for name, value in result.best.items())
    say(f"{result.epochs} epochs; best on validation: {best or 'not validated'}")
    say(f"model: {result.model}")
    say_run(result.run_id)


@app.command(rich_help_panel="Models")
def crossvalidate(
    config: Annotated[Path | None, typer.Argument(help="An experiment (YAML); see configs/.")] = None,
    folds: Annotated[int, typer.Option(min=1, help="How many; 1 repeats seeds on the card's split.")] = 5,
    seeds: Annotated[int, typer.Option(min=1, help="Trainings of each fold.")] = 1,
    overrides: Overrides = None,
    resume: Annotated[
        Path | None, typer.Option("--resume", metavar="FOLDER", help="Go on with a stopped one.")
    ] = None,
    runs: Runs = Path("runs"),
) -> None:
    """Train on folds by unit, with several seeds; every case is measured by a model that never saw it."""
    from clearmargin.crossvalidate import crossvalidate as call

    done = call(config, folds=folds, seeds=seeds, overrides=overrides or [], resume=resume, runs=runs)
    for name, (mean, sd) in done.spread().items():
        say(f"  {name:<24} {mean:.4f} +- {sd:.4f}")
    say(f"{len(done.numbers)} members, mean and standard deviation; as one model: {done.folder}")


@app.command(rich_help_panel="Models")
def select(
    models: Annotated[
        list[str], typer.Argument(help="Models: folders, runs' folders, run ids, or models:/NAME@ALIAS.")
    ],
    card: Annotated[Path, typer.Option("--card", help="A data card; its validation split is used.")],
    budget_ms: Annotated[float, typer.Option(min=0, help="Time an image may take, 95 % of them.")],
    metric: Annotated[
        str, typer.Option(help="nsd@2px, nsd@1mm, ..., dice, iou, hd95, assd or volume_error.")
    ] = "nsd@2px",
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    cases: Annotated[int, typer.Option(min=1, help="Most images that are timed.")] = 20,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder for table, figure, reasons.")
    ] = None,
) -> None:
    """Time models end to end here and choose the smallest that is fast enough and not significantly worse."""
    from clearmargin.select import render_selection
    from clearmargin.select import select as call
    from clearmargin.tracking.resolve import model_folder

    folders = [model_folder(model) for model in models]
    done = call(folders, card, budget_ms=budget_ms, metric=metric, device=device, cases=cases, out=out)
    say(render_selection(done))
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
    format: Annotated[Format, typer.Option("--format", help="Of the files; `predict --runtime` uses them.")],
    card: Annotated[Path, typer.Option("--card", help="A data card: the images that the gate compares on.")],
    split: Annotated[Split, typer.Option(help="Which split of it.")] = Split.validation,
    cases: Annotated[int, typer.Option(min=1, help="Most images to compare on.")] = 8,
) -> None:
    """Export a model to ONNX or OpenVINO; nothing is written unless it finds what the model finds."""
    from clearmargin.export import export as call
    from clearmargin.tracking.resolve import model_folder

    done = call(model_folder(model), card, format=format.value, split=split.value, cases=cases)
    found = done.parity
    say(
        f"{found.instances} instances compared in {done.cases} images: scores within {found.score:.1e}, "
        f"probabilities within {found.probability:.1e}, at most {found.flipped:.2g} of the pixels that may "
        f"change sides, NSD within {found.nsd:.1e}"
    )
    before, after = done.seconds
    say(
        f"an image takes {1000 * after:.0f} ms, with torch {1000 * before:.0f} ms ({before / after:.1f} times)"
    )
    say(f"export: {done.folder}")

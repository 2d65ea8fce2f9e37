"""The command line: a verb parses, makes one call, prints what came of it, and ends with a code.

Nothing heavy is imported here at the top, so that ``--help`` answers at once. Exit codes: 0 done, 1 a bug of ours,
2 usage or configuration, 3 part of a batch failed, 4 input refused, 130 interrupted.
"""

from __future__ import annotations

import logging
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Literal

import typer

from clearmargin.errors import BatchError, ClearMarginError, ConfigError, nearest

__all__ = ["app", "main"]

app = typer.Typer(
    name="clearmargin",
    help="Instance segmentation of medical and surgical images, with boundary metrics in millimetres and "
    "uncertainty maps. Research software: not for diagnosis or treatment.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
data_app = typer.Typer(help="Look at the data sets that cards describe.", no_args_is_help=True)
app.add_typer(data_app, name="data")

Overrides = Annotated[
    list[str] | None, typer.Option("--set", metavar="A.B=VALUE", help="Override a setting; repeatable.")
]
Model = Annotated[
    str,
    typer.Option("--model", "-m", help="A model folder, a run's folder, a run id, or models:/NAME@champion."),
]


class Split(StrEnum):
    """Splits of a card."""

    train = "train"
    validation = "validation"
    calibration = "calibration"
    test = "test"


class Uncertainty(StrEnum):
    """Ways to estimate uncertainty."""

    none = "none"
    checkpoints = "checkpoints"
    ensemble = "ensemble"
    tta = "tta"
    dropout = "dropout"


Sampling = Annotated[
    Uncertainty,
    typer.Option(
        help="What is sampled: the epochs that training kept, an ensemble's members, mirrored and scaled views, or "
        "the network's dropout."
    ),
]


class Runtime(StrEnum):
    """What computes a network."""

    torch = "torch"
    onnx = "onnx"
    openvino = "openvino"


class Format(StrEnum):
    """What a model is exported to."""

    onnx = "onnx"
    openvino = "openvino"


class Objects(StrEnum):
    """What one object is in a label file."""

    classes = "classes"
    components = "components"
    instances = "instances"


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


@app.command("inspect")
def inspect_command(
    path: Annotated[Path, typer.Argument(help="File, folder, zip or DICOMDIR.")],
    out: Annotated[Path | None, typer.Option("--out", "-o", help="PNG for a picture of it.")] = None,
    series: Annotated[str | None, typer.Option(help="Which DICOM series the picture shows.")] = None,
    header_only: Annotated[bool, typer.Option("--header-only", help="Read no pixels.")] = False,
) -> None:
    """Say what is in a path, what would be read, with which geometry, and why the rest is not."""
    from clearmargin.inspection import inspect_path, write_overview

    for found in inspect_path(path, read=not header_only):
        _say(f"{found.what}: {found.size}{'' if found.readable else ' (not read)'}")
        for name in ("geometry", "values", "problem"):
            if getattr(found, name):
                _say(f"  {name}: {getattr(found, name)}")
        if found.selector and found.readable:
            _say(f"  choose it with --series {found.selector}")
    if out is not None:
        write_overview(path, out, series=series)
        _say(f"picture: {out}")


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
    _say(shown.text)
    _say(f"contact sheet: {shown.sheet}")


@app.command()
def train(
    config: Annotated[Path | None, typer.Argument(help="An experiment (YAML); see configs/.")] = None,
    overrides: Overrides = None,
    resume: Annotated[
        str | None,
        typer.Option("--resume", metavar="RUN", help="Go on with a run: its folder, name or run id."),
    ] = None,
    runs: Annotated[Path, typer.Option(help="Where runs' folders lie.")] = Path("runs"),
    profile: Annotated[
        bool,
        typer.Option("--profile", help="Show where each epoch's time goes; operators into RUN/profile/."),
    ] = False,
) -> None:
    """Train a network; Ctrl-C keeps the last whole epoch, and --resume goes on from there."""
    from clearmargin.train import train as call

    result = call(config, overrides=overrides or [], resume=resume, runs=runs, profile=profile)
    best = ", ".join(f"{name} {value:.4g}" for name, value in result.best.items())
    _say(f"{result.epochs} epochs; best on validation: {best or 'not validated'}")
    _say(f"model: {result.model}")
    if result.run_id:
        _say(f"run: {result.run_id} (clearmargin review shows it)")


@app.command()
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
        _say(text)
        return
    out.write_text(text, encoding="utf-8")
    _say(f"planned: {out}; train it with `clearmargin train {out}`")


@app.command()
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
    _say(render_selection(done))
    if done.run_id:
        _say(f"run: {done.run_id} (clearmargin review shows it)")


@app.command()
def crossvalidate(
    config: Annotated[Path | None, typer.Argument(help="An experiment (YAML); see configs/.")] = None,
    folds: Annotated[int, typer.Option(min=1, help="How many; 1 repeats seeds on the card's split.")] = 5,
    seeds: Annotated[int, typer.Option(min=1, help="Trainings of each fold.")] = 1,
    overrides: Overrides = None,
    resume: Annotated[
        Path | None, typer.Option("--resume", metavar="FOLDER", help="Go on with a stopped one.")
    ] = None,
    runs: Annotated[Path, typer.Option(help="Where runs' folders lie.")] = Path("runs"),
) -> None:
    """Train on folds by unit, with several seeds; every case is measured by a model that never saw it."""
    from clearmargin.crossvalidate import crossvalidate as call

    done = call(config, folds=folds, seeds=seeds, overrides=overrides or [], resume=resume, runs=runs)
    for name, (mean, sd) in done.spread().items():
        _say(f"  {name:<24} {mean:.4f} +- {sd:.4f}")
    _say(f"{len(done.numbers)} members, mean and standard deviation; as one model: {done.folder}")


@app.command()
def evaluate(
    model: Annotated[
        str, typer.Argument(help="A model folder, a run's folder, a run id, or models:/NAME@ALIAS.")
    ],
    card: Annotated[Path, typer.Option("--card", help="A data card.")],
    split: Annotated[Split, typer.Option(help="Which split of it.")] = Split.test,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder for the tables; none are written without.")
    ] = None,
    score_threshold: Annotated[
        float | None, typer.Option(min=0, max=1, help="Least score, but for AP; default: the model's.")
    ] = None,
    uncertainty: Sampling = Uncertainty.none,
) -> None:
    """Measure a model on a split: AP, PQ, Dice, and boundary distances with misses counted."""
    from clearmargin.evaluate import evaluate as call
    from clearmargin.evaluate import render
    from clearmargin.tracking.resolve import model_folder

    found = call(
        model_folder(model),
        card,
        split=split.value,
        score_threshold=score_threshold,
        uncertainty=uncertainty.value,
        out=out,
    )
    _say(render(found))
    if found.run_id:
        _say(f"run: {found.run_id} (clearmargin review shows it)")


@app.command()
def calibrate(
    model: Annotated[
        str, typer.Argument(help="A model folder, a run's folder, a run id, or models:/NAME@ALIAS.")
    ],
    card: Annotated[Path, typer.Option("--card", help="A data card with a calibration split.")],
    alpha: Annotated[
        list[str] | None,
        typer.Option(help="Share of units that may fail; repeatable, or 0.1,0.05 (which is the default)."),
    ] = None,
    uncertainty: Sampling = Uncertainty.none,
    split: Annotated[Split, typer.Option(help="Which split to calibrate on.")] = Split.calibration,
    judge: Annotated[
        Split | None, typer.Option(help="A further split to judge on; nothing is fitted on it.")
    ] = None,
    by: Annotated[
        list[str] | None, typer.Option(help="Margins by class, by size, or class,size; default: for all.")
    ] = None,
    share: Annotated[
        list[str] | None,
        typer.Option(help="Of the instance's surface that a margin holds; default: 1,0.99,0.95."),
    ] = None,
    area_share: Annotated[
        list[str] | None,
        typer.Option(help="Of its pixels or voxels that an outer margin holds; default: 0.99,0.9."),
    ] = None,
    fit_share: Annotated[
        float, typer.Option(help="Share of the units for threshold, scaling and limits; the rest: margins.")
    ] = 0.3,
    risk_limit: Annotated[
        float, typer.Option(min=0, help="HD95 over which an instance should be referred, in mm or px.")
    ] = 4.0,
    band: Annotated[
        float | None,
        typer.Option(help="Half the band of the boundary errors, in mm or px; default: two elements."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the division of units, and of resamples.")] = 0,
    device: Annotated[str | None, typer.Option(help="cpu or cuda; default: CUDA where it is.")] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder for tables, figures and the report.")
    ] = None,
) -> None:
    """Fit scaled scores and margins of safety on units that the model has not seen; they stay with the model."""
    from clearmargin.calibrate import calibrate as call
    from clearmargin.calibrate import render_calibration
    from clearmargin.tracking.resolve import model_folder

    done = call(
        model_folder(model),
        card,
        alphas=_numbers("--alpha", alpha or ["0.1,0.05"]),
        uncertainty=uncertainty.value,
        split=split.value,
        judge_on=None if judge is None else judge.value,
        by=_strata(by or []),
        shares=_numbers("--share", share or ["1,0.99,0.95"]),
        area_shares=_numbers("--area-share", area_share or ["0.99,0.9"]),
        fit_share=fit_share,
        risk_limit=risk_limit,
        band=band,
        seed=seed,
        device=device,
        out=out,
    )
    _say(render_calibration(done))
    _say(f"calibration: {done.file}; `clearmargin predict --uncertainty {uncertainty.value}` applies it")
    if done.run_id:
        _say(f"run: {done.run_id} (clearmargin review shows it)")


@app.command()
def predict(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="INPUT", help="DICOM file or folder, volume, picture, folder of pictures, or clip."
        ),
    ],
    out: Annotated[
        Path, typer.Argument(metavar="OUT", help="Folder for the results, one below it for each case.")
    ],
    model: Model,
    uncertainty: Sampling = Uncertainty.none,
    series: Annotated[
        str | None, typer.Option(help="Which DICOM series, where there are several: its number or UID.")
    ] = None,
    device: Annotated[str | None, typer.Option(help="cpu or cuda; default: CUDA where it is.")] = None,
    runtime: Annotated[
        Runtime, typer.Option(help="What computes the network: torch, or what `export` wrote (CPU).")
    ] = Runtime.torch,
    score_threshold: Annotated[
        float | None, typer.Option(min=0, max=1, help="Least score; default: the model's.")
    ] = None,
    tile: Annotated[
        int | None,
        typer.Option(
            help="Show large images in square tiles of so many network pixels; default: as the model does."
        ),
    ] = None,
    allow_gaps: Annotated[
        bool, typer.Option("--allow-gaps", help="Resample a series with missing slices.")
    ] = False,
    allow_tilt: Annotated[bool, typer.Option("--allow-tilt", help="Straighten a tilted gantry.")] = False,
    display_window: Annotated[
        bool,
        typer.Option(
            "--display-window", help="Values 0..255 show the model's intensity window (captures, clips)."
        ),
    ] = False,
) -> None:
    """Segment images and write DICOM SEG, tables, overlays and uncertainty maps."""
    from clearmargin.predict import predict as call
    from clearmargin.tracking.resolve import model_folder

    report = call(
        source,
        out,
        model=model_folder(model),
        uncertainty=uncertainty.value,
        series=series,
        device=device,
        runtime=runtime.value,
        score_threshold=score_threshold,
        tile=tile,
        display_window=display_window,
        allow_gaps=allow_gaps,
        allow_tilt=allow_tilt,
    )
    for done in report.done:
        classes = ", ".join(f"{count} {name}" for name, count in done.by_class.items())
        referred = f"; refer {done.referred}" if done.referred else ""
        _say(f"{done.case}: {classes}{referred} -> {done.folder}")
        for warning in done.warnings:
            _say(f"  warning: {warning}")
    for sentence in report.promises:
        _say(sentence)
    for warning in report.drift:
        _say(f"warning: {warning}")
    if report.failed:
        raise BatchError(
            f"{len(report.failed)} of {len(report.failed) + len(report.done)} inputs were refused; "
            "the others are done:\n"
            + "\n".join(f"  {case}: {message}" for case, message in report.failed.items())
        )


@app.command()
def export(
    model: Annotated[
        str, typer.Argument(help="A model folder, a run's folder, a run id, or models:/NAME@ALIAS.")
    ],
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
    _say(
        f"{found.instances} instances compared in {done.cases} images: scores within {found.score:.1e}, "
        f"probabilities within {found.probability:.1e}, at most {found.flipped:.2g} of the pixels that may "
        f"change sides, NSD within {found.nsd:.1e}"
    )
    before, after = done.seconds
    _say(
        f"an image takes {1000 * after:.0f} ms, with torch {1000 * before:.0f} ms ({before / after:.1f} times)"
    )
    _say(f"export: {done.folder}")


@app.command()
def measure(
    predicted: Annotated[
        Path, typer.Argument(help="Folder or file of label volumes, label images, SEG or COCO.")
    ],
    reference: Annotated[Path, typer.Argument(help="The same of the truth; files belong together by name.")],
    objects: Annotated[
        Objects,
        typer.Option(help="What one object is in a label file: a class, a connected part, or a value."),
    ] = Objects.classes,
    tolerances: Annotated[
        list[float] | None,
        typer.Option("--tolerance", help="Of NSD, in mm (px without spacing); repeatable."),
    ] = None,
    bands: Annotated[
        list[float] | None, typer.Option("--band", help="Of boundary IoU, in the same unit; repeatable.")
    ] = None,
    metrics: Annotated[
        list[str] | None, typer.Option("--metric", help="What to measure; repeatable.")
    ] = None,
    subvoxel: Annotated[
        bool, typer.Option("--subvoxel", help="Interpolate the surface (docs/metrics.md).")
    ] = False,
    iou_threshold: Annotated[
        float, typer.Option(min=0, max=1, help="From which two objects are the same.")
    ] = 0.5,
    distance_cap: Annotated[
        float | None, typer.Option(help="What each distance of a miss counts; default: the grid's diagonal.")
    ] = None,
    resample: Annotated[
        bool, typer.Option("--resample", help="Put predictions on the reference's grid where grids differ.")
    ] = False,
    missing_as_empty: Annotated[
        bool,
        typer.Option("--missing-as-empty", help="A missing prediction file means that nothing was found."),
    ] = False,
    cases: Annotated[
        Path | None, typer.Option(help="CSV with the columns case, patient, and any others to split by.")
    ] = None,
    by: Annotated[
        list[str] | None,
        typer.Option(help="Split by class, size, crowding, occlusion, or a column; repeatable."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the bootstrap.")] = 0,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Folder for the tables.")] = None,
    track: Annotated[bool, typer.Option("--track", help="Log the numbers and tables as a run.")] = False,
) -> None:
    """Measure masks of any tool against references: surface distances, NSD, AP, with intervals and misses counted."""
    from clearmargin.measure import DEFAULT_METRICS, render
    from clearmargin.measure import measure as call

    found = call(
        predicted,
        reference,
        objects=objects.value,
        tolerances=tolerances or (1.0, 2.0, 3.0),
        bands=bands or (),
        metrics=metrics or DEFAULT_METRICS,
        surface="subvoxel" if subvoxel else "surface",
        iou_threshold=iou_threshold,
        distance_cap=distance_cap,
        resample_predictions=resample,
        missing_as_empty=missing_as_empty,
        cases=cases,
        by=by or (),
        seed=seed,
        out=out,
        track=track,
    )
    _say(render(found))


@app.command()
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
    _say(", ".join(f"{count} {status}" for status, count in sorted(done.files.items())))
    _say(f"report: {out / 'report.json'}")
    if done.left_out:
        raise BatchError(
            f"{done.left_out} DICOM files are not among the results (files.csv names their case ids):\n"
            + "\n".join(
                f"  {count} {status}: {reason}"
                for (status, reason), count in sorted(done.reasons.items())
                if status in ("held back", "refused")
            )
        )


@app.command()
def demo(
    out: Annotated[Path, typer.Argument(help="Folder for the phantoms and the results.")] = Path("demo"),
    steps: Annotated[
        int | None, typer.Option(min=1, help="Training steps; default: about four minutes.")
    ] = None,
) -> None:
    """Run the main job on phantoms: make, train, evaluate, predict, track. About six minutes on two cores."""
    from clearmargin.demo import demo as call

    _say(call(out, steps=steps))


@app.command()
def review(
    port: Annotated[
        int | None, typer.Option(help="Port on this machine; default: 5000, or a free one.")
    ] = None,
) -> None:
    """Open MLflow on the store that the runs lie in; Ctrl-C ends it."""
    from clearmargin.tracking.review import review as call

    call(port=port)


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


def _numbers(option: str, items: list[str]) -> list[float]:
    """Return the numbers of a repeatable option that takes commas as well."""
    try:
        return [float(part) for item in items for part in item.split(",")]
    except ValueError:
        raise ConfigError(
            f"{option} takes numbers, such as 0.1 or 0.1,0.05, not {', '.join(items)}"
        ) from None


def _strata(items: list[str]) -> list[Literal["class", "size"]]:
    known: dict[str, Literal["class", "size"]] = {"class": "class", "size": "size"}
    names = [part.strip() for item in items for part in item.split(",")]
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ConfigError(f"--by '{unknown[0]}': {nearest(unknown[0], known)}")
    return [known[name] for name in names]


def _say(text: str) -> None:
    typer.echo(text)


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


if __name__ == "__main__":
    main()

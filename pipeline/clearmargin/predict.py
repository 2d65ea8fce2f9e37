"""Segment DICOM, volumes, pictures, folders of these, or a clip, and write a case folder for each."""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from clearmargin.capsules import cases_csv, hidden, log_predictor, model_name
from clearmargin.files import file_digest, made_folder
from clearmargin.formats import open_source
from clearmargin.outputs.folder import MANIFEST
from clearmargin.outputs.writers import named_outputs
from clearmargin.predicting.cases import Predicted, Reading, predict_source
from clearmargin.predicting.discovery import damaged_cases, holds_one_study
from clearmargin.predicting.folders import predict_folder
from clearmargin.predicting.predictor import Predictor
from clearmargin.privacy import paths_of_case
from clearmargin.sampling.samples import Mode
from clearmargin.tracking.run import TrackedRun

__all__ = ["Predicted", "PredictionReport", "predict"]


@dataclass(frozen=True, kw_only=True)
class PredictionReport:
    """What a prediction did.

    Attributes:
        done: The inputs that were segmented, in order.
        failed: Case id and message of those that failed, with the error's type if it is not one of ours.
        promises: What the margins hold for, a sentence each; none if the model was not calibrated.
        drift: How all inputs together differ from the calibration cases.
        run_id: In the tracking store; empty if it was not tracked.
    """

    done: tuple[Predicted, ...]
    failed: dict[str, str] = field(default_factory=dict)
    promises: tuple[str, ...] = ()
    drift: tuple[str, ...] = ()
    run_id: str = ""


def predict(
    source: Path,
    out: Path,
    *,
    model: Path,
    uncertainty: Mode = "none",
    series: str | None = None,
    device: str | None = None,
    runtime: str = "torch",
    score_threshold: float | None = None,
    tile: int | None = None,
    display_window: bool = False,
    allow_gaps: bool = False,
    allow_tilt: bool = False,
    force: bool = False,
    on_done: Callable[[Predicted], object] = lambda _: None,
    volume: str | None = None,
    tolerance_mm: float | None = None,
    write: Sequence[str] | None = None,
    towards: Sequence[str] = (),
    track: bool = True,
) -> PredictionReport:
    """Segment what lies at ``source`` and write the results under ``out``.

    Args:
        source: A DICOM file or folder, a volume file, a picture, a folder of pictures or volumes, or a clip.
        out: A folder; each input gets its own in it, named by its case id (the private crosswalk says which
            file that is).
        model: A model folder; for ``ensemble`` an ensemble's.
        uncertainty: What is sampled (`sampling.samples.open_segmenter`). Any but ``none`` adds maps and the
            columns that say how far the samples lie apart.
        series: Which DICOM series, if there are several.
        device: ``cpu`` or ``cuda``; None takes CUDA if there is one.
        runtime: ``torch``, or what the model was exported to.
        score_threshold: Least score of what is returned, as it is shown: calibrated if the model is. None takes the
            calibration's own thresholds, or else the model's.
        tile: Images larger than so many network pixels are shown in square tiles; None does as the model's settings
            say.
        display_window: The input's values 0..255 are what a screen shows of the model's intensity window, as in
            captures and clips of CT.
        allow_gaps: Resample a DICOM series with missing slices; it is refused otherwise.
        allow_tilt: Straighten a DICOM series of a tilted gantry; it is refused otherwise.
        force: Segment also an image of another kind than the model's training images; it is refused otherwise.
        on_done: Called with each input as soon as its results are written.
        volume: Which volume of a DICOM series that holds several phases, echoes or stacks; ``all`` makes each a case.
        tolerance_mm: How far a DICOM slice's corners may lie from the grid; None for 0.01 mm. ``summary.json`` says
            what was accepted.
        write: Names of outputs (`outputs.writers.WRITERS`), ``default`` among them for those of None.
        towards: Classes and types of points to which the distance of each instance is given (`margins.towards`).
        track: Whether to log a run: one for all inputs.

    Returns:
        What was done. Inputs of a folder that were refused are listed, and the others are done all the same.

    Raises:
        InputError: ``source`` is refused, or nothing in it could be read.
        ConfigError: The model cannot be asked like that, or there is no such output.
    """
    outputs = named_outputs(write)
    opened = None
    if series is not None or volume is not None or not source.is_dir() or holds_one_study(source):
        opened = open_source(source)
    predictor = Predictor(
        model=model,
        uncertainty=uncertainty,
        device=device,
        runtime=runtime,
        score_threshold=score_threshold,
        tile=tile,
        display_window=display_window,
        force=force,
        towards=tuple(dict.fromkeys(towards)),
    )
    _ = predictor.segmenter  # a model that cannot be asked like that is refused before a file is written
    made_folder(out)
    reading = Reading(
        series=series, volume=volume, allow_gaps=allow_gaps, allow_tilt=allow_tilt, tolerance_mm=tolerance_mm
    )
    run = TrackedRun(name=f"predict-{model_name(predictor.provenance)}", enabled=track, lazily=True)
    run.on_start(tags={"verb": "predict"})
    with run:
        run.log_model_used(predictor.provenance.weights_sha256, "predict-{}")  # also of a run that fails
        start = time.monotonic()
        done: list[Predicted] = []
        failed: dict[str, str] = {}
        if opened is None:
            done, failed = predict_folder(
                source, out, predictor, reading=reading, outputs=outputs, on_done=on_done
            )
        else:
            for predicted in predict_source(opened, out, predictor, reading=reading, outputs=outputs):
                done.append(predicted)
                on_done(predicted)
            failed = damaged_cases(opened.path, opened.damaged)
        features = [d.features for d in done if d.features]
        drift = (
            predictor.calibration.drift(features).warnings
            if predictor.calibration is not None and len(features) > 1
            else ()
        )
        report = PredictionReport(
            done=tuple(done), failed=failed, promises=predictor.promises(), drift=tuple(drift)
        )
        if run.run_id:
            kind = "folder" if opened is None else opened.kind
            settings = vars(reading) | {"write": list(outputs or ["default"]), "kind": kind}
            _log(run, report, predictor, settings, time.monotonic() - start)
    return replace(report, run_id=run.run_id)


def _log(
    run: TrackedRun, report: PredictionReport, predictor: Predictor, settings: dict[str, Any], seconds: float
) -> None:
    """Log counts, a table of cases and what it takes to repeat them; nothing that names a patient or a file."""
    kinds = Counter(name for one in report.done for name in one.left_out)
    run.log_metrics(
        {
            "predict/cases": len(report.done),
            "predict/failed": len(report.failed),
            "predict/instances": sum(one.instances for one in report.done),
            "predict/referred": sum(one.referred for one in report.done),
            "predict/cases_warned": sum(bool(one.warnings) for one in report.done),
            "predict/cases_promised": sum(one.promised for one in report.done),
            "predict/seconds": seconds,
            **{f"predict/left_out_{name}": n for name, n in kinds.items()},
        },
        step=0,
    )
    table, left = cases_csv(_rows(report))
    run.log_text(table, "cases.csv")
    digest = hashlib.sha256(table.encode()).hexdigest()
    log_predictor(
        run, predictor, verb="predict", data={"cases_sha256": digest, "rows_left_out": str(left)}, **settings
    )


def _rows(report: PredictionReport) -> Iterator[dict[str, Any]]:
    """Yield a row per case: what went in and came out, by its digest, and counts."""
    known: dict[Path, str] = {}
    for one in report.done:
        paths = paths_of_case(one.case)
        manifest = one.folder / MANIFEST
        yield {
            "case": hidden(one.case),
            "state": "done",
            "input_sha256": _digest_of(Path(paths[0]), known) if paths else "",
            "results_sha256": file_digest(manifest) if manifest.is_file() else "",
            "instances": one.instances,
            "referred": one.referred,
            "warnings": len(one.warnings),
            "promised": one.promised,
        }
    for case in report.failed:
        yield {"case": hidden(case), "state": "failed"}


def _digest_of(path: Path, known: dict[Path, str]) -> str:
    """Return the SHA-256 of a file, or of all files of a folder in the order of their digests; each is read once."""
    if path not in known:
        files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
        digests = [file_digest(file) for file in files]
        known[path] = (
            digests[0] if len(digests) == 1 else hashlib.sha256("".join(sorted(digests)).encode()).hexdigest()
        )
    return known[path]

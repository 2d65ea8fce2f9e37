"""Evaluate a segmenter on one split of a data set."""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from numpy.typing import NDArray

from clearmargin.capsules import log_capsule, log_model_card, model_name, summary_rows
from clearmargin.config import dump_yaml
from clearmargin.core import Grid, InstanceSet, Prediction, Segmenter, Thresholds, at_least
from clearmargin.datasets.card import Split, public
from clearmargin.datasets.cases import Case, Dataset, open_dataset
from clearmargin.errors import InputError
from clearmargin.failures import reason_of
from clearmargin.files import write_text
from clearmargin.metrics import MeasurementProtocol, evaluate_instances
from clearmargin.metrics.case_result import CaseResult, Choices, measure_case
from clearmargin.metrics.instances import InstanceRow
from clearmargin.metrics.landmark_rows import PointRow, PointSummary, summarise_points
from clearmargin.metrics.landmark_tally import LandmarkTally
from clearmargin.metrics.measurement import DEFAULT_METRICS, DEFAULT_TOLERANCES, SurfaceModel
from clearmargin.metrics.results import Results, collect
from clearmargin.report.annotated import annotated_overlay
from clearmargin.report.evaluated import write_evaluation_figures
from clearmargin.report.gallery import Listed, case_marks, point_marks, write_gallery
from clearmargin.report.overlay import fullest_slice
from clearmargin.report.points_table import point_lines, point_numbers, point_rows_csv, points_csv
from clearmargin.report.progress import progress
from clearmargin.report.results import PARTIAL, instance_lines, set_lines, write_partial, write_results
from clearmargin.report.run_page import report_page
from clearmargin.review_folder import KeptCases, described
from clearmargin.sampling.samples import Mode, open_segmenter
from clearmargin.tracking.run import TrackedRun

__all__ = [
    "Evaluation",
    "evaluate",
    "evaluate_cases",
    "metric_names",
    "prediction_pictures",
    "render",
    "write_review",
    "write_tables",
]

log = logging.getLogger(__name__)

_PICTURES = 8  # in the tracking store
_PROTOCOL = MeasurementProtocol(metrics=DEFAULT_METRICS)


@dataclass(frozen=True, kw_only=True)
class Evaluation(Results):
    """A split, evaluated.

    Attributes:
        cost: ``seconds per case``, the median of segmenting, and the ``megabytes`` of the weights; as far as known.
        run_id: In the tracking store; empty if it was not tracked.
        landmarks: Radial errors and success rates, all together, by type and by visibility; empty without landmarks.
        points: What these are of, a row per landmark.
    """

    cost: Mapping[str, float] = field(default_factory=dict)
    run_id: str = ""
    landmarks: tuple[PointSummary, ...] = ()
    points: tuple[PointRow, ...] = ()

    def complete(self) -> Evaluation:
        """Return itself, for comparisons that every case has to be part of.

        Raises:
            InputError: A case failed.
        """
        if self.failed:
            case, reason = next(iter(self.failed.items()))
            raise InputError(f"{len(self.failed)} case(s) could not be measured; the first, {case}: {reason}")
        return self

    def headline(self) -> dict[str, float]:
        """Return the few numbers that training, evaluation and selection share, by their names in the run list."""
        surface = next(
            (row for row in self.summary if row.stratum == "all" and row.metric.startswith("nsd_")), None
        )
        names = ("ap50", "pq", "semantic_dice", "miss_rate")
        headline = {name: self.numbers[name] for name in names if name in self.numbers}
        if self.landmarks and self.landmarks[0].radial_error is not None:
            headline["radial_error"] = self.landmarks[0].radial_error.estimate
        headline |= {} if surface is None else {"nsd": surface.interval.estimate}
        return {f"headline/{name}": value for name, value in headline.items()}


def evaluate(
    model: Path,
    card: Path,
    *,
    split: Split = "test",
    score_threshold: float | None = None,
    uncertainty: Mode = "none",
    tolerances: Sequence[float] = DEFAULT_TOLERANCES,
    bands: Sequence[float] = (),
    metrics: Sequence[str] = DEFAULT_METRICS,
    surface: SurfaceModel = "surface",
    out: Path | None = None,
    gallery: int = 20,
    track: bool = True,
) -> Evaluation:
    """Evaluate a model folder on a card's split, and log it as a run of its own.

    Args:
        model: A model folder.
        card: A data card.
        split: Which split; the run and its name carry it.
        score_threshold: For everything but average precision; None takes the model's own, of each class.
        uncertainty: What is sampled, and agreed on; ``none`` measures the network alone.
        tolerances: Tolerances of NSD, in mm (px if the spacing is unknown).
        bands: Widths of the band of boundary IoU, in the same unit.
        metrics: Names in ``clearmargin.metrics.measurement.OF_ONE_SIZE``.
        surface: The surface model.
        out: A folder for the tables (``write_tables``), the figures, the gallery and the report; None writes no files.
        gallery: Cases in each list of the gallery; 0 for no gallery.
        track: Whether to log a run.

    Raises:
        ConfigError: The card does not fit, has no such split, or other classes than the model; a metric is unknown.
    """
    protocol = MeasurementProtocol(
        metrics=tuple(metrics), tolerances=tuple(tolerances), bands=tuple(bands), surface=surface
    )
    segmenter = open_segmenter(model, uncertainty)
    dataset = open_dataset(card)
    dataset.card.check_model(segmenter.label_map, model="the model", task="evaluate")
    thresholds = segmenter.thresholds if score_threshold is None else Thresholds(score_threshold)
    cases = dataset.split(split)
    name = f"evaluate-{{}}-{dataset.card.name}-{split}"
    run = TrackedRun(name=name.format(model_name(segmenter.provenance)), enabled=track)
    run.on_start(
        params={
            "card": dataset.card.name,
            "split": split,
            "score_threshold": thresholds.named(dataset.card.label_map),
            "uncertainty": uncertainty,
            "weights_sha256": segmenter.provenance.weights_sha256,
            "config_sha256": segmenter.provenance.config_sha256,
        },
        texts={"card.yaml": dump_yaml(public(dataset.card))}
        | {file.name: file.read_text(encoding="utf-8") for file in sorted(model.glob("model.yaml"))},
        tags={"verb": "evaluate"},
    )
    digest = dataset.digest()
    with run, TemporaryDirectory() as scratch:
        run.log_model_used(segmenter.provenance.weights_sha256, name)
        run.log_data(dataset.card.name, digest, context=split)
        kept = KeptCases(Path(scratch) / "kept", dataset)
        # average precision ranks all instances, also those that predict() would not return
        ranked = segmenter.with_threshold(0.0)
        data = {"card": dataset.card.name, "split": split, "digest": digest}

        def keep_partial(evaluation: Evaluation) -> None:
            place = Path(scratch) if out is None else out
            write_partial(
                place, lambda folder, mark: write_tables(evaluation, folder, data=data, partial=mark),
                evaluation.counts["cases"], len(cases),
            )  # fmt: skip
            run.log_artifact(place / PARTIAL, PARTIAL)

        result = evaluate_cases(
            ranked, dataset, cases, thresholds=thresholds, protocol=protocol, keep=kept.keep,
            on_interrupt=keep_partial,
        )  # fmt: skip
        weights = sum(file.stat().st_size for file in model.rglob("weights.safetensors"))
        result = replace(result, run_id=run.run_id, cost={**result.cost, "megabytes": weights / 1e6})
        run.log_metrics(result.headline(), step=0)
        if dataset.card.show_in_tracking:
            shown = [case for case in cases if case.case not in result.failed]
            for step, picture in enumerate(prediction_pictures(segmenter, dataset, shown[:_PICTURES])):
                run.log_image("prediction over truth", picture, step)
        folder = Path(scratch) / "evaluation"
        measured = [case for case in cases if case.case not in result.failed]
        log_capsule(
            run, verb="evaluate", dataset=dataset, cases=measured, models={"": model},
            settings={"split": split, "uncertainty": uncertainty, "thresholds": asdict(thresholds)}
            | {"protocol": asdict(protocol)},
            snapshots=uncertainty == "checkpoints", seeds={"intervals": 0}, predictions=kept.digests,
            data={"split": split},
        )  # fmt: skip
        write_tables(result, folder, data=data)
        known = {
            "data": data,
            "counts": result.counts,
            "numbers": result.flat(),
            "summary": summary_rows(folder),
        }
        log_model_card(run, model, known, dataset)
        title = f"{model_name(segmenter.provenance)} on {dataset.card.name}, {split}"
        listed = write_review(folder, result, kept, dataset, title=title, most=gallery)
        run.log_artifact(folder, "evaluation")
        run.describe(lambda page: described(result.headline(), listed, f"{page}/evaluation"))
        if out is not None:
            shutil.copytree(folder, out, dirs_exist_ok=True)
            shutil.rmtree(out / PARTIAL, ignore_errors=True)  # an earlier run's, which was interrupted
    return result


def write_review(
    folder: Path, evaluation: Evaluation, kept: KeptCases, dataset: Dataset, *, title: str, most: int
) -> list[Listed]:
    """Write figures, gallery, viewers and ``report.html`` of an evaluation beside its tables; return the gallery.

    Pictures, viewers and predictions are written only where the data card allows it.
    """
    if evaluation.rows:
        write_evaluation_figures(
        folder / "figures", rows=evaluation.rows, summary=evaluation.summary, curves=evaluation.curves,
        cases=evaluation.counts["cases"], confusion=evaluation.confusion,
    )  # fmt: skip
    allowed = dataset.card.show_in_tracking
    listed = []
    if most:
        alone = not evaluation.rows and evaluation.points
        marks = (
            point_marks(evaluation.points, kept.doubts) if alone else case_marks(evaluation.rows, kept.doubts)
        )
        listed = write_gallery(
            folder, marks, kept.read if allowed else None, title=f"Worst cases: {title}", most=most
        )
    if allowed:
        kept.copy_predictions(folder)
    write_text(folder / "report.html", report_page(folder, title=title))
    return listed


def render(evaluation: Evaluation) -> str:
    """Return the numbers as the lines a console shows; 95 % intervals over groups."""
    return "\n".join(
        [*set_lines(evaluation), *point_lines(evaluation.landmarks), *instance_lines(evaluation)]
    )


def write_tables(
    evaluation: Evaluation, folder: Path, *, data: Mapping[str, str] | None = None, partial: str = ""
) -> None:
    """Write the tables of `write_results`; with landmarks also ``landmarks.csv`` and ``landmark_rows.csv``.

    ``landmarks.csv`` has a row per type, ``landmark_rows.csv`` one per point. ``data`` says what was evaluated on: the
    card, its split and the digest of its files; ``partial`` that it is not all of it.
    """
    facts: dict[str, object] = {"cost": dict(evaluation.cost)}
    facts |= ({"data": dict(data)} if data else {}) | ({"partial": partial} if partial else {})
    write_results(evaluation, folder, facts=facts)
    if evaluation.points:
        write_text(folder / "landmarks.csv", points_csv(evaluation.landmarks))
        write_text(folder / "landmark_rows.csv", point_rows_csv(evaluation.points))


def prediction_pictures(
    segmenter: Segmenter, dataset: Dataset, cases: Sequence[Case]
) -> Iterator[NDArray[np.uint8]]:
    """Yield a picture of the prediction over the truth for each case: of a volume, its `fullest_slice`."""
    for case in cases:
        image, reference = dataset.read(case)
        predicted = segmenter(image).instances
        z = fullest_slice(reference)
        yield annotated_overlay(image, predicted, z, label_map=dataset.card.label_map, reference=reference)


def metric_names(grid: Grid, protocol: MeasurementProtocol | None = None) -> tuple[str, ...]:
    """Return the names of what `evaluate_cases` measures of an instance on a grid; its unit is part of some."""
    nothing = InstanceSet.empty(grid)
    return tuple(evaluate_instances(nothing, nothing, protocol=protocol or _PROTOCOL)[0].values)


def evaluate_cases(
    segmenter: Segmenter,
    dataset: Dataset,
    cases: Sequence[Case],
    *,
    thresholds: Thresholds,
    protocol: MeasurementProtocol | None = None,
    keep: Callable[[Case, Prediction, Sequence[InstanceRow]], None] | None = None,
    on_interrupt: Callable[[Evaluation], object] | None = None,
) -> Evaluation:
    """Segment and measure ``cases``.

    Cases are let go one after the other; what stays are rows and counts.

    Args:
        segmenter: Should return instances down to low scores: average precision ranks them all.
        dataset: Where the cases are read from.
        cases: At least one. Those that fail are listed, and the others are measured all the same.
        thresholds: Instances below that of their class count for average precision, and for curves, only.
        protocol: What is measured of each instance; None for the default metrics.
        keep: Is given each case's prediction above the thresholds, and its rows.
        on_interrupt: Is given the evaluation of what was measured before Ctrl-C or SIGTERM, which is raised then all
            the same; not called if there is nothing.

    Raises:
        InputError: No case could be measured.
    """
    label_map = dataset.card.label_map
    choices = Choices(
        protocol=protocol or _PROTOCOL,
        thresholds=thresholds,
        stuff=frozenset(c.id for c in label_map.classes if c.kind == "stuff"),
    )
    names = {c.id: c.name for c in label_map.classes}
    points, finds_masks = LandmarkTally(thresholds.landmarks), getattr(segmenter, "finds_masks", True)
    measured: list[CaseResult] = []
    failed: dict[str, str] = {}
    seconds: list[float] = []

    def put_together() -> Evaluation:
        results = collect(measured, choices=choices, classes=label_map.names, failed=failed)
        return _with_points(results, points, thresholds, float(np.median(seconds)))

    with progress("evaluate", len(cases)) as bar, _interruptible(put_together, measured, on_interrupt):
        for case in cases:
            try:
                image, reference = dataset.read(case)
                if not finds_masks:
                    reference = replace(InstanceSet.empty(reference.grid), landmarks=reference.landmarks)
                began = time.perf_counter()
                prediction = segmenter(image)
                took = time.perf_counter() - began
                result = measure_case(
                    prediction.instances, reference, case=case.case, group=case.group, classes=names,
                    choices=choices, columns=case.strata,
                )  # fmt: skip
                if keep is not None:
                    keep(case, at_least(prediction, thresholds), result.instances)
                points.add(prediction.instances, reference, case=case.case, group=case.group)
            except Exception as error:  # noqa: BLE001 - whatever one case provokes, the others are measured
                failed[case.case] = reason_of(error).removeprefix(f"{case.case}: ")
                log.warning("%s failed: %s", case.case, failed[case.case])
            else:
                seconds.append(took)
                measured.append(result)  # the last step: what an interruption finds is whole
            bar.advance()
    if not measured:
        first, reason = next(iter(failed.items()), ("none", "the split is empty"))
        raise InputError(f"none of the {len(cases)} cases could be measured; the first, {first}: {reason}")
    return put_together()


@contextmanager
def _interruptible(
    put_together: Callable[[], Evaluation],
    measured: Sequence[CaseResult],
    on_interrupt: Callable[[Evaluation], object] | None,
) -> Iterator[None]:
    """Hand on what was measured if the block is interrupted."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        if on_interrupt is not None and measured:
            on_interrupt(put_together())
        raise


def _with_points(
    results: Results, points: LandmarkTally, thresholds: Thresholds, seconds: float
) -> Evaluation:
    """Return an evaluation of masks and landmarks; without masks it is of landmarks alone."""
    landmarks = tuple(summarise_points(points.rows, rng=np.random.default_rng(0)))
    of_points = point_numbers(landmarks) | points.precision()
    evaluation = Evaluation(
        **vars(replace(results, numbers={**results.numbers, **of_points})),
        cost={"seconds per case": seconds},
        landmarks=landmarks,
        points=tuple(points.rows),
    )
    if points.rows and all(row.status == "tn" for row in results.rows):  # of masks there is nothing to say
        evaluation = replace(
            evaluation, numbers=of_points, rows=(), summary=(), detections={}, curves={}, precision=None,
            counts={name: results.counts[name] for name in ("cases", "failed")}, box_precision=None,
            thresholds={"landmarks": thresholds.landmarks}, notes=(),
        )  # fmt: skip
    return evaluation

"""Evaluate a segmenter on one split of a data set."""

from __future__ import annotations

import json
import logging
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from numpy.typing import NDArray

from clearmargin.config import dump_yaml
from clearmargin.core import Grid, InstanceSet, LabelMap, Prediction, Segmenter, Thresholds, at_least
from clearmargin.datasets.card import Split, public
from clearmargin.datasets.cases import Case, Dataset, open_dataset
from clearmargin.errors import ConfigError, InputError
from clearmargin.failures import reason_of
from clearmargin.files import write_text
from clearmargin.metrics import MeasurementProtocol, evaluate_instances, semantic_dice, split_and_merge
from clearmargin.metrics.confusion import confusion
from clearmargin.metrics.detection import DetectionCounts, PrecisionTally, detection_limit, match_masks
from clearmargin.metrics.instances import InstanceRow
from clearmargin.metrics.intervals import size_strata
from clearmargin.metrics.keypoints import match_oks
from clearmargin.metrics.landmark_rows import PointRow, PointSummary, point_rows, summarise_points
from clearmargin.metrics.panoptic import PanopticCounts, add_counts, panoptic_counts, quality_of
from clearmargin.metrics.strata import STRATA, instance_strata
from clearmargin.metrics.tables import (
    CaseRow,
    SummaryRow,
    rows_csv,
    summarise,
    summary_csv,
    summary_markdown,
)
from clearmargin.metrics.thresholds import ScoreCurve, ScoredMatches, match_scores, pool, score_curve
from clearmargin.report.annotated import annotated_overlay
from clearmargin.report.detections import write_detections
from clearmargin.report.evaluated import write_evaluation_figures
from clearmargin.report.gallery import Listed, case_marks, write_gallery
from clearmargin.report.paper import paper_table, write_paper
from clearmargin.report.points_table import point_lines, point_numbers, point_rows_csv, points_csv
from clearmargin.report.progress import progress
from clearmargin.report.run_page import report_page
from clearmargin.review_folder import KeptCases, described
from clearmargin.sampling.samples import Mode, open_segmenter
from clearmargin.tracking.capsule import CAPSULE, capsule, model_digests
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

_KEYPOINTS = 20  # of a type in an image, as COCO counts objects of key points
_PICTURES = 8  # in the tracking store
_PROTOCOL = MeasurementProtocol(
    metrics=("dice", "iou", "hd95", "assd", "volume_error"), tolerances=(1.0, 2.0, 3.0)
)


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """A split, evaluated.

    Attributes:
        numbers: Numbers of the whole split by name: average precision, panoptic quality, Dice (docs/metrics.md).
        matched: Means over the pairs that match, by metric, with intervals; empty if nothing matched.
        every: The same with false negatives and false positives at their written values, all together and by stratum.
        counts: Of cases, references, rows by status (tp, fn, fp, tn), and of splits and merges.
        thresholds: Least score of what is counted, by class name.
        detections: By class name, and of ``all``: true and false positives, and false negatives, at IoU 0.5 to 0.9.
        curves: By class name, and of ``all``: the same at every score threshold, at an IoU above 0.5.
        rows: What the means are of, an instance each.
        length_unit: ``mm`` or ``px``, of the distances.
        confusion: How many, by reference class and predicted class (`metrics.confusion`).
        cost: ``seconds per case``, the median of segmenting, and the ``megabytes`` of the weights; as far as known.
        run_id: In the tracking store; empty where it was not tracked.
        failed: Case id and reason of those that could not be read, segmented or measured; no number knows of them.
        landmarks: Radial errors and success rates, all together, by type and by visibility; empty without landmarks.
        points: What these are of, a row per landmark.
    """

    numbers: dict[str, float]
    matched: tuple[SummaryRow, ...]
    every: tuple[SummaryRow, ...]
    counts: dict[str, int]
    thresholds: dict[str, float]
    detections: dict[str, tuple[DetectionCounts, ...]]
    curves: dict[str, ScoreCurve]
    rows: tuple[CaseRow, ...]
    length_unit: str
    confusion: dict[tuple[str, str], int] = field(default_factory=dict)
    cost: dict[str, float] = field(default_factory=dict)
    run_id: str = ""
    failed: dict[str, str] = field(default_factory=dict)
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
            (row for row in self.every if row.stratum == "all" and row.metric.startswith("nsd_")), None
        )
        names = ("ap50", "pq", "semantic_dice", "miss_rate")
        found = {name: self.numbers[name] for name in names if name in self.numbers}
        if self.landmarks and self.landmarks[0].radial_error is not None:
            found["radial_error"] = self.landmarks[0].radial_error.estimate
        found |= {} if surface is None else {"nsd": surface.interval.estimate}
        return {f"headline/{name}": value for name, value in found.items()}

    def flat(self) -> dict[str, float]:
        """Return every number under one name, as the tracking store takes them."""
        found = dict(self.numbers)
        for counts in self.detections.get("all", ()):
            found |= {
                f"{name}@{counts.iou:g}": getattr(counts, name)
                for name in ("precision", "recall", "f1", "accuracy")
            }
        for name, rows in (("matched", self.matched), ("all", self.every)):
            for row in rows:
                if row.stratum == "all":
                    found[f"{name}/{row.metric}"] = row.interval.estimate
        return found


def evaluate(
    model: Path,
    card: Path,
    *,
    split: Split = "test",
    score_threshold: float | None = None,
    uncertainty: Mode = "none",
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
        out: A folder for the tables (``write_tables``), the figures, the gallery and the report; None writes no files.
        gallery: Cases in each list of the gallery; 0 for no gallery.
        track: Whether to log a run.

    Raises:
        ConfigError: The card does not fit, has no such split, or other classes than the model.
    """
    segmenter = open_segmenter(model, uncertainty)
    dataset = open_dataset(card)
    dataset.card.check_classes(segmenter.label_map.names, model="the model", task="evaluate")
    _refuse_other_points(segmenter.label_map, dataset.card.label_map)
    thresholds = segmenter.thresholds if score_threshold is None else Thresholds(score_threshold)
    cases = dataset.split(split)
    name = f"evaluate-{{}}-{dataset.card.name}-{split}"
    run = TrackedRun(name=name.format(segmenter.provenance.model), enabled=track)
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
        found = evaluate_cases(ranked, dataset, cases, thresholds=thresholds, keep=kept.keep)
        weights = sum(file.stat().st_size for file in model.rglob("weights.safetensors"))
        found = replace(found, run_id=run.run_id, cost=found.cost | {"megabytes": weights / 1e6})
        run.log_metrics(found.headline(), step=0)
        if dataset.card.show_in_tracking:
            shown = [case for case in cases if case.case not in found.failed]
            for step, picture in enumerate(prediction_pictures(segmenter, dataset, shown[:_PICTURES])):
                run.log_image("prediction over truth", picture, step)
        folder = Path(scratch) / "evaluation"
        data = {"card": dataset.card.name, "split": split, "digest": digest}
        run.log_text(
            capsule(
                verb="evaluate",
                settings={"split": split, "uncertainty": uncertainty, "thresholds": asdict(thresholds)},
                card=data | {"version": dataset.card.version},
                cases=dataset.file_digests([case for case in cases if case.case not in found.failed]),
                model=model_digests(model, snapshots=uncertainty == "checkpoints"),
                seeds={"intervals": 0},
                predictions=kept.digests,
            ),
            CAPSULE,
        )
        write_tables(found, folder, data=data)
        title = f"{segmenter.provenance.model} on {dataset.card.name}, {split}"
        listed = write_review(folder, found, kept, dataset, title=title, most=gallery)
        run.log_artifact(folder, "evaluation")
        run.describe(lambda page: described(found.headline(), listed, f"{page}/evaluation"))
        if out is not None:
            shutil.copytree(folder, out, dirs_exist_ok=True)
    return found


def _refuse_other_points(ours: LabelMap, theirs: LabelMap) -> None:
    """Refuse to compare landmarks of different types, or in another order.

    Raises:
        ConfigError: Both have landmarks, and they differ.
    """
    names = [[point.name for point in one.points] for one in (ours, theirs)]
    if names[0] and names[1] and names[0] != names[1]:
        raise ConfigError(
            f"the model knows the points {', '.join(names[0])}, the card has {', '.join(names[1])}: evaluate on a "
            "card with the model's points, in the model's order"
        )


def write_review(
    folder: Path, found: Evaluation, kept: KeptCases, dataset: Dataset, *, title: str, most: int
) -> list[Listed]:
    """Write figures, gallery, viewers and ``report.html`` of an evaluation beside its tables; return the gallery.

    Pictures, viewers and predictions are written only where the data card allows it.
    """
    if found.rows:
        write_evaluation_figures(
        folder / "figures", rows=found.rows, every=found.every, curves=found.curves,
        cases=found.counts["cases"], confusion=found.confusion,
    )  # fmt: skip
    allowed = dataset.card.show_in_tracking
    listed = []
    if most:
        marks = case_marks(found.rows, kept.doubts)
        listed = write_gallery(
            folder, marks, kept.read if allowed else None, title=f"Worst cases: {title}", most=most
        )
    if allowed:
        kept.copy_predictions(folder)
    write_text(folder / "report.html", report_page(folder, title=title))
    return listed


def render(found: Evaluation) -> str:
    """Return the numbers as the lines a console shows; 95 % intervals over groups."""
    lines = [", ".join(f"{value} {name}" for name, value in found.counts.items())]
    lines += [f"  {name:<24} {value:.4f}" for name, value in found.numbers.items()]
    shown = ", ".join(f"{name} {value:g}" for name, value in found.thresholds.items())
    lines.append(f"  least scores: {shown}")
    lines += point_lines(found.landmarks)
    if not found.rows:
        return "\n".join(lines)
    lines.append(f"  {'IoU':<8} {'precision':>10} {'recall':>10} {'F1':>10} {'TP/(TP+FP+FN)':>14}")
    lines += [
        f"  {c.iou:<8g} {c.precision:>10.4f} {c.recall:>10.4f} {c.f1:>10.4f} {c.accuracy:>14.4f}"
        for c in found.detections["all"]
    ]
    lines.append(
        f"  {'per instance':<24} {'matched':<28} "
        f"with false negatives and false positives (surface model {_PROTOCOL.surface})"
    )
    matched = {row.metric: _shown(row) for row in found.matched}
    for row in found.every:
        if row.stratum == "all":
            name = f"{row.metric} ({found.length_unit})" if row.metric in ("hd95", "assd") else row.metric
            lines.append(f"  {name:<24} {matched.get(row.metric, '-'):<28} {_shown(row)}")
    return "\n".join(lines)


def _shown(row: SummaryRow) -> str:
    low, high = row.interval.low, row.interval.high
    ends = "" if low is None or high is None else f" [{low:.3f}, {high:.3f}]"
    return f"{row.interval.estimate:.4f}{ends}"


def write_tables(found: Evaluation, folder: Path, *, data: dict[str, str] | None = None) -> None:
    """Write ``numbers.json``, ``summary.*``, ``paper.*``, ``matched.csv``, and ``instances.csv`` (a row each).

    With landmarks also ``landmarks.csv`` (a row per type) and ``landmark_rows.csv`` (a row per point).
    And ``detections.csv``, ``score_thresholds.csv`` and ``score_thresholds.png`` (`write_detections`). ``data`` says
    what was evaluated on: card, split and the digest of its files.
    """
    folder.mkdir(parents=True, exist_ok=True)
    numbers: dict[str, object] = {
        "numbers": found.flat(), "counts": found.counts, "length_unit": found.length_unit, "cost": found.cost,
    }  # fmt: skip
    if data is not None:
        numbers["data"] = data
    if found.failed:
        numbers["failed"] = found.failed
    write_text(folder / "numbers.json", json.dumps(numbers, indent=1, allow_nan=False) + "\n")
    if found.points:
        write_text(folder / "landmarks.csv", points_csv(found.landmarks))
        write_text(folder / "landmark_rows.csv", point_rows_csv(found.points))
    if not found.rows:
        return
    write_text(folder / "summary.csv", summary_csv(found.every))
    write_text(folder / "summary.md", summary_markdown(found.every))
    write_text(folder / "matched.csv", summary_csv(found.matched))
    write_text(folder / "instances.csv", rows_csv(found.rows))
    write_detections(folder, found.detections, found.curves, found.thresholds)
    write_paper(paper_table(found.rows, rng=np.random.default_rng(0), surface=_PROTOCOL.surface), folder)


def prediction_pictures(
    segmenter: Segmenter, dataset: Dataset, cases: Sequence[Case]
) -> Iterator[NDArray[np.uint8]]:
    """Yield a picture of the prediction over the truth for each case: of a volume, the slice with most instances."""
    for case in cases:
        image, reference = dataset.read(case)
        predicted = segmenter(image).instances
        z = None
        if image.grid.ndim == 3:
            z = int(np.argmax([len(reference.plane(k)[0]) for k in range(image.grid.shape[0])]))
        yield annotated_overlay(image, predicted, z, label_map=dataset.card.label_map, reference=reference)


def metric_names(grid: Grid) -> tuple[str, ...]:
    """Return the names of what `evaluate_cases` measures of an instance on a grid; its unit is part of some."""
    nothing = InstanceSet.empty(grid)
    return tuple(evaluate_instances(nothing, nothing, protocol=_PROTOCOL)[0].values)


def evaluate_cases(
    segmenter: Segmenter,
    dataset: Dataset,
    cases: Sequence[Case],
    *,
    thresholds: Thresholds,
    keep: Callable[[Case, Prediction, Sequence[InstanceRow]], None] | None = None,
) -> Evaluation:
    """Segment and measure ``cases``.

    Cases are let go one after the other; what stays are rows and counts.

    Args:
        segmenter: Should return instances down to low scores: average precision ranks them all.
        dataset: Where the cases are read from.
        cases: At least one. Those that fail are listed, and the others are measured all the same.
        thresholds: Instances below that of their class count for average precision, and for curves, only.
        keep: Is given each case's prediction above the thresholds, and its rows.
    """
    label_map = dataset.card.label_map
    whole, in_slices = (_ImageNumbers(label_map, thresholds) for _ in range(2))
    points = _PointNumbers(thresholds.every)
    finds_masks = getattr(segmenter, "finds_masks", True)
    measured: list[tuple[Case, list[InstanceRow], list[dict[str, str]]]] = []
    counts = {"cases": 0, "failed": 0, "references": 0}
    errors = {"splits": 0, "merges": 0}
    failed: dict[str, str] = {}
    confused: Counter[tuple[str, str]] = Counter()
    seconds: list[float] = []
    grid = None
    others = [name for name in STRATA if name != "size"]
    with progress("evaluate", len(cases)) as bar:
        for case in cases:
            try:
                image, reference = dataset.read(case)
                if not finds_masks:
                    reference = replace(InstanceSet.empty(reference.grid), landmarks=reference.landmarks)
                began = time.perf_counter()
                prediction = segmenter(image)
                took = time.perf_counter() - began
                predicted = prediction.instances
                kept = predicted.select(thresholds.reached(predicted))
                rows_of_case = evaluate_instances(kept, reference, protocol=_PROTOCOL)
                strata = instance_strata([(reference, rows_of_case)], others)
                wrong = split_and_merge(kept, reference)
                classes = confusion(kept, reference, label_map)
                if keep is not None:
                    keep(case, at_least(prediction, thresholds), rows_of_case)
            except Exception as error:  # noqa: BLE001 - whatever one case provokes, the others are measured
                failed[case.case] = reason_of(error).removeprefix(f"{case.case}: ")
                log.warning("%s failed: %s", case.case, failed[case.case])
                bar.advance()
                continue
            grid = reference.grid
            seconds.append(took)
            confused.update(classes)
            measured.append((case, rows_of_case, strata))
            whole.add(predicted, reference)
            points.add(predicted, reference, case)
            if grid.ndim == 3:
                for z in range(grid.shape[0]):
                    in_slices.add_precision(predicted.plane(z)[0], reference.plane(z)[0])
            counts["references"] += len(reference)
            errors["splits"] += wrong.splits
            errors["merges"] += wrong.merges
            bar.advance()
    if grid is None:
        first, reason = next(iter(failed.items()), ("none", "the split is empty"))
        raise InputError(f"none of the {len(cases)} cases could be measured; the first, {first}: {reason}")
    counts |= {"cases": len(measured), "failed": len(failed)}
    rows = _case_rows(dataset, measured, grid)
    numbers = whole.numbers()
    if grid.ndim == 3:
        numbers |= {f"slices/{name}": value for name, value in in_slices.precision().items()}
    counts |= {status: sum(row.status == status for row in rows) for status in ("tp", "fn", "fp", "tn")}
    counts |= errors
    wanted = counts["tp"] + counts["fn"]
    numbers["miss_rate"] = counts["fn"] / wanted if wanted else 0.0
    matched = [row for row in rows if row.status == "tp"]
    rng = np.random.default_rng(0)  # of the bootstrap: the same rows give the same intervals
    landmarks = tuple(summarise_points(points.rows, rng=rng))
    if points.rows and all(row.status == "tn" for row in rows):  # of masks there is nothing to say
        return Evaluation(
            numbers=point_numbers(landmarks) | points.precision(),
            matched=(),
            every=(),
            counts={name: counts[name] for name in ("cases", "failed")},
            thresholds={"landmarks": thresholds.every},
            detections={},
            curves={},
            rows=(),
            length_unit=grid.unit,
            cost={"seconds per case": float(np.median(seconds))},
            failed=failed,
            landmarks=landmarks,
            points=tuple(points.rows),
        )
    # a column in which all rows are alike repeats the table
    by = [name for name in rows[0].strata if len({row.strata[name] for row in rows}) > 1]
    return Evaluation(
        numbers=numbers | point_numbers(landmarks) | points.precision(),
        matched=tuple(summarise(matched, rng=rng)) if matched else (),
        every=tuple(summarise(rows, rng=rng, by=by)),
        counts=counts,
        thresholds=thresholds.named(label_map),
        detections=whole.detections(),
        curves=whole.curves(),
        rows=tuple(rows),
        length_unit=grid.unit,
        confusion=dict(confused),
        cost={"seconds per case": float(np.median(seconds))},
        failed=failed,
        landmarks=landmarks,
        points=tuple(points.rows),
    )


def _case_rows(
    dataset: Dataset, measured: Sequence[tuple[Case, list[InstanceRow], list[dict[str, str]]]], grid: Grid
) -> list[CaseRow]:
    """Return the rows of all cases with what tables are split by: class, size, crowding, occlusion, the card's."""
    names = {c.id: c.name for c in dataset.card.classes}
    sizes = [row.size for _, rows, _ in measured for row in rows]
    size = iter(size_strata(sizes, f"{grid.unit}^{grid.ndim}"))
    return [
        CaseRow(
            group=case.group,
            case=case.case,
            status=row.status,
            unit=row.unit,
            ndim=grid.ndim,
            values=row.values,
            strata={"class": names.get(row.label, "none"), "size": next(size), **known, **case.strata},
            about={
                "reference_id": None if row.reference is None else str(row.reference + 1),
                "predicted_id": None if row.predicted is None else str(row.predicted + 1),
                "score": row.score,
                "matched_iou": row.iou if row.status == "tp" else None,
                f"reference_{grid.size_name}": None if row.reference is None else row.size,
                "surface": _PROTOCOL.surface,
            },
        )
        for case, rows, strata in measured
        for row, known in zip(rows, strata, strict=True)
    ]


class _PointNumbers:
    """Landmarks of the images in which they were looked for."""

    def __init__(self, threshold: float) -> None:
        self._threshold = threshold
        self._tally = PrecisionTally()
        self._has_areas = True
        self.rows: list[PointRow] = []

    def add(self, predicted: InstanceSet, reference: InstanceSet, case: Case) -> None:
        """Count one image; what is below the threshold counts for average precision alone."""
        ours, theirs = predicted.landmarks, reference.landmarks
        if ours is None or theirs is None:
            return
        kept = ours.at_least(self._threshold)
        self.rows += point_rows(kept, theirs, grid=reference.grid, case=case.case, group=case.group)
        self._has_areas = self._has_areas and bool(np.isfinite(theirs.areas).all())
        if self._has_areas:
            self._tally.add(match_oks(ours, theirs, by_type=ours.owners is None))

    def precision(self) -> dict[str, float]:
        """Return OKS average precision, of objects or of a type each; none if some object's area is not known."""
        if not self.rows or not self._has_areas:
            return {}
        found = self._tally.result(_KEYPOINTS)
        return {"landmarks/oks_ap": found.ap, "landmarks/oks_ap50": found.ap50}


class _ImageNumbers:
    """Detections, average precision, panoptic quality and semantic Dice, added up by image; no mask is kept."""

    def __init__(self, label_map: LabelMap, thresholds: Thresholds) -> None:
        self._classes, self._thresholds = label_map.classes, thresholds
        self._matches: list[dict[int, ScoredMatches]] = []
        self._tally = PrecisionTally()
        self._counts: PanopticCounts = {}
        self._dice: dict[str, list[float]] = {c.name: [] for c in label_map.classes}

    def add_precision(self, predicted: InstanceSet, reference: InstanceSet) -> None:
        """Count one image for average precision alone."""
        self._tally.add(match_masks(predicted, reference))

    def add(self, predicted: InstanceSet, reference: InstanceSet) -> None:
        """Count one image; what is below the threshold counts for average precision alone."""
        self.add_precision(predicted, reference)
        self._matches.append(match_scores(predicted, reference))
        kept = predicted.select(self._thresholds.reached(predicted))
        stuff = frozenset(c.id for c in self._classes if c.kind == "stuff")
        add_counts(self._counts, panoptic_counts(kept, reference, stuff=stuff))
        for c in self._classes:
            # An image without the class in either says nothing of the model: counted as 1, it would reward a model that
            # detects nothing.
            if (kept.labels == c.id).any() or (reference.labels == c.id).any():
                self._dice[c.name].append(semantic_dice(kept, reference, c.id))

    def precision(self) -> dict[str, float]:
        """Return average precision, of all classes and of each, if there are several."""
        # COCO's limit of 100 an image would cap the recall of crowded images
        most = detection_limit(self._tally.most_references)
        average = self._tally.result(most)
        numbers = {"ap": average.ap, "ap50": average.ap50, "ap75": average.ap75}
        if len(self._classes) > 1:
            for c in self._classes:
                of_class = self._tally.result(most, c.id)
                numbers |= {f"ap/{c.name}": of_class.ap, f"ap50/{c.name}": of_class.ap50}
        return numbers

    def detections(self) -> dict[str, tuple[DetectionCounts, ...]]:
        """Return the counts at several IoU, of all classes together and of each, if there are several."""
        counts = {"all": self._tally.counts(self._thresholds)}
        if len(self._classes) > 1:
            counts |= {c.name: self._tally.counts(self._thresholds, c.id) for c in self._classes}
        return counts

    def curves(self) -> dict[str, ScoreCurve]:
        """Return the counts at every score threshold, of all classes together and of each, if there are several."""
        every = {
            c.name: pool([image[c.id] for image in self._matches if c.id in image]) for c in self._classes
        }
        together = {"all": score_curve(pool(list(every.values())))}
        if len(self._classes) == 1:
            return together
        return together | {name: score_curve(matches) for name, matches in every.items()}

    def numbers(self) -> dict[str, float]:
        """Return all numbers by name."""
        dices = {name: float(np.mean(values)) for name, values in self._dice.items() if values}
        numbers = self.precision() | {
            "pq": quality_of(self._counts).pq,
            "semantic_dice": float(np.mean(list(dices.values()))) if dices else 0.0,
        }
        return numbers | (
            {f"semantic_dice/{n}": v for n, v in dices.items()} if len(self._classes) > 1 else {}
        )

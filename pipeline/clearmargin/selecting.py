"""Choose the smallest model that is fast enough and not significantly worse: timed here, measured on validation."""

from __future__ import annotations

import io
import json
import logging
import resource
import signal
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from clearmargin.capsules import log_capsule
from clearmargin.config import load_settings
from clearmargin.core.slack import with_slack
from clearmargin.datasets.cases import Dataset, open_dataset
from clearmargin.errors import ClearMarginError, ConfigError, InputError, nearest
from clearmargin.evaluate import Evaluation, evaluate_cases, metric_names
from clearmargin.files import csv_rows, whole, write_text
from clearmargin.metrics.intervals import Interval, bootstrap_means
from clearmargin.metrics.landmark_rows import success_radius
from clearmargin.metrics.measurement import metric_of
from clearmargin.metrics.paired import Comparison, compare
from clearmargin.models.files import CONFIG_FILE, RUNTIME_FILE
from clearmargin.models.folder import ModelCard
from clearmargin.models.runtimes import RUNTIMES
from clearmargin.report.figures import trade_off
from clearmargin.report.progress import progress
from clearmargin.tracking.run import TrackedRun

__all__ = [
    "STAGES",
    "Candidate",
    "Selection",
    "choose",
    "front_of",
    "render_selection",
    "select",
    "table_csv",
]

log = logging.getLogger(__name__)

STAGES = ("decode", "transform", "network", "masks", "encoding")
_WARM_UP = 2


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A model with a runtime, timed and measured.

    Attributes:
        name: Name of its folder, and the runtime if it is not torch.
        network: Its network's name.
        parameters: Learned numbers.
        stages: Median milliseconds of an image, by stage: reading the file, intensity and resampling, the
            network, masks on the image's grid, tables with run lengths.
        p50: Median milliseconds of an image, start to end.
        p95: 95th percentile.
        peak_mb: Largest memory of its process.
        values: The metric by case, false negatives and false positives counted.
        groups: Group of independence of each case.
        interval: Mean of the metric over groups.
    """

    name: str
    network: str
    parameters: int
    stages: dict[str, float]
    p50: float
    p95: float
    peak_mb: float
    values: dict[str, float]
    groups: dict[str, str]
    interval: Interval


@dataclass(frozen=True, kw_only=True)
class Selection:
    """What was chosen and why.

    Attributes:
        candidates: All, the fastest first.
        chosen: Its name.
        why: In a few sentences.
        front: Names of those that no other beats in both time and metric.
        metric: What was compared.
        run_id: In the tracking store.
        failed: What could not be measured, and why.
    """

    candidates: tuple[Candidate, ...]
    chosen: str
    why: str
    front: tuple[str, ...]
    metric: str
    run_id: str
    failed: Mapping[str, str] = field(default_factory=dict)


def select(
    models: Sequence[Path],
    card: Path,
    *,
    budget_ms: float,
    metric: str = "nsd@2px",
    device: str = "cpu",
    cases: int = 20,
    out: Path | None = None,
    track: bool = True,
) -> Selection:
    """Time models end to end on this machine, measure them on the card's validation split, and choose one.

    Each runs in a process of its own, with torch and with each runtime that it was exported to. Test cases are
    not read. The table is written after each candidate; one that fails is listed in ``failed``, and the others are
    compared all the same.

    Args:
        models: Model folders.
        card: A data card with the models' classes.
        budget_ms: The 95th percentile of an image's time, start to end, that is allowed.
        metric: ``nsd@2px``, ``nsd@1mm`` and the like, or another metric of `evaluate`'s tables; missed instances
            count. Of landmarks ``success@5px``, ``success@2mm``: the share of a case's points that are detected
            within that radius.
        device: ``cpu`` or ``cuda``.
        cases: Most images that are timed; all validation cases are measured.
        out: A folder for the table, the figure and the reasons; None writes none.
        track: Whether to log a run.

    Raises:
        InputError: No candidate is fast enough, the table is written all the same; or none could be measured, or
            a validation case cannot be read.
        ConfigError: The metric is not known, a model has other classes, or is given twice.
    """
    column = metric.replace("@", "_")
    dataset = open_dataset(card)
    tasks = _tasks(models, device, dataset)
    _check_data(dataset, column)
    run = TrackedRun(name=f"select-{card.stem}", enabled=track)
    run.on_start(params={"budget_ms": budget_ms, "metric": column, "device": device}, tags={"verb": "select"})
    with run:
        run.log_data(dataset.card.name, dataset.digest(), context="validation")
        candidates: list[Candidate] = []
        failed: dict[str, ClearMarginError] = {}
        with progress("select", len(tasks)) as bar:
            for name, (model, runtime) in tasks.items():
                try:
                    candidates.append(_in_own_process(name, model, runtime, card, device, column, cases))
                except ClearMarginError as error:
                    failed[name] = error
                    log.warning("%s could not be measured: %s", name, error)
                if out is not None and candidates:
                    _write(_selection(candidates, column, budget_ms, run.run_id, failed), budget_ms, out)
                bar.advance(last=name)
        if not candidates:
            raise next(iter(failed.values()))
        done = _selection(candidates, column, budget_ms, run.run_id, failed)
        with TemporaryDirectory() as folder:
            _write(done, budget_ms, Path(folder))
            run.log_artifact(Path(folder), "selection")
        log_capsule(
            run, verb="select", dataset=dataset, cases=dataset.split("validation"),
            settings={"budget_ms": budget_ms, "metric": column, "device": device, "cases": cases},
            models={name: model for name, (model, runtime) in tasks.items() if runtime == "torch"},
        )  # fmt: skip
        if not done.chosen:
            raise InputError(done.why)
    return done


def _tasks(models: Sequence[Path], device: str, dataset: Dataset) -> dict[str, tuple[Path, str]]:
    """Return the candidates, a model with a runtime, by a name of their own; refuse what could not be compared."""
    if not models:
        raise ConfigError("give at least one model folder")
    tasks: dict[str, tuple[Path, str]] = {}
    seen: set[Path] = set()
    for model in models:
        label = _label(model)
        if model.resolve() in seen:
            raise ConfigError(f"model '{label}' is given twice: leave one out")
        seen.add(model.resolve())
        if not (model / CONFIG_FILE).is_file():
            raise InputError(
                f"'{label}' is not a model folder: it lacks {CONFIG_FILE} (an ensemble is not selected)"
            )
        label_map = load_settings(model / CONFIG_FILE, ModelCard).label_map
        dataset.card.check_model(label_map, model=f"model '{label}'", task="select")
        count = sum(_label(other) == label for other in seen)
        name = label if count == 1 else f"{label}-{count}"  # two folders may go by one name
        for runtime in _runtimes(model, device):
            tasks[name if runtime == "torch" else f"{name} ({runtime})"] = (model, runtime)
    return tasks


def _check_data(dataset: Dataset, metric: str) -> None:
    """Read all that will be measured on: what is wrong with it is not to be met after minutes of timing."""
    names: tuple[str, ...] = ()
    for case in dataset.split("validation"):
        image, _ = dataset.read(case)
        names = names or metric_names(image.grid)
        if dataset.card.points and success_radius(metric, image.grid.unit) is not None:
            names = (metric,)
    if metric not in names:
        raise ConfigError(f"no metric '{metric}' for card '{dataset.card.name}': {nearest(metric, names)}")


def _runtimes(model: Path, device: str) -> list[str]:
    exported = [name for name in RUNTIMES if (model / name / RUNTIME_FILE).is_file()]
    return ["torch", *(exported if device == "cpu" else [])]


def _selection(
    candidates: Sequence[Candidate],
    metric: str,
    budget_ms: float,
    run_id: str,
    failed: Mapping[str, ClearMarginError],
) -> Selection:
    winner, why = choose(candidates, metric, budget_ms)
    return Selection(
        candidates=tuple(sorted(candidates, key=lambda c: c.p50)),
        chosen=winner,
        why=" ".join([why, *(f"{name} could not be measured: {error}." for name, error in failed.items())]),
        front=front_of(candidates, metric),
        metric=metric,
        run_id=run_id,
        failed={name: str(error) for name, error in failed.items()},
    )


def _write(done: Selection, budget_ms: float, folder: Path) -> None:
    """Write the table, the figure and the reasons."""
    folder.mkdir(parents=True, exist_ok=True)
    figure = trade_off(
        {c.name: (c.p95, c.interval.estimate, c.interval.low, c.interval.high) for c in done.candidates},
        front=done.front,
        winner=done.chosen,
        budget=budget_ms,
        metric=done.metric,
    )
    with whole(folder / "trade_off.png") as draft:
        figure.savefig(draft)
    write_text(folder / "candidates.csv", table_csv(done))
    write_text(folder / "why.txt", done.why + "\n")


def _in_own_process(
    name: str, model: Path, runtime: str, card: Path, device: str, metric: str, cases: int
) -> Candidate:
    """Measure a candidate where no other has taken memory or started threads."""
    with ProcessPoolExecutor(
        1,
        mp_context=get_context("spawn"),
        initializer=signal.signal,
        initargs=(signal.SIGINT, signal.SIG_DFL),
    ) as pool:
        try:
            return pool.submit(_measured, name, model, runtime, card, device, metric, cases).result()
        except BrokenProcessPool:
            raise InputError(
                "its process was ended from outside, most often as memory ran out: leave it out, or measure it "
                "if there is more"
            ) from None


def _measured(
    name: str, model: Path, runtime: str, card: Path, device: str, metric: str, cases: int
) -> Candidate:
    from clearmargin.formats import read_image
    from clearmargin.models import load_segmenter
    from clearmargin.models.clock import Clock
    from clearmargin.report.tables import instance_rows

    segmenter = load_segmenter(model, device=device, runtime=runtime)
    dataset = open_dataset(card)
    validation = dataset.split("validation")
    timed = validation[:: -(-len(validation) // cases)]
    spans: list[dict[str, float]] = []
    for count, case in enumerate([*timed[:_WARM_UP], *timed]):
        clock = Clock(device=segmenter.device)
        with clock("decode"):
            # a frame of a clip and several sequences come by the card's reader; a file by its own
            image = (
                dataset.read(case)[0] if case.frame is not None or case.further else read_image(case.image)
            )
        prediction = segmenter.timed(clock)(image)
        with clock("encoding"):
            json.dumps(instance_rows(image.source, prediction))
        if count >= min(_WARM_UP, len(timed)):
            spans.append(clock.seconds)
    evaluation = evaluate_cases(
        segmenter.with_threshold(0.0), dataset, validation, thresholds=segmenter.thresholds
    ).complete()
    values, groups = _by_case(evaluation, metric, name)
    totals = np.array([sum(span.values()) for span in spans]) * 1000
    parameters = sum(p.numel() for p in load_segmenter(model, device="cpu").network.parameters())
    return Candidate(
        name=name,
        network=load_settings(model / CONFIG_FILE, ModelCard).model["network"],
        parameters=parameters,
        stages={s: 1000 * float(np.median([span.get(s, 0.0) for span in spans])) for s in STAGES},
        p50=float(np.percentile(totals, 50)),
        p95=float(np.percentile(totals, 95)),
        peak_mb=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        values=values,
        groups=groups,
        interval=bootstrap_means(
            {metric: list(values.values())},
            [groups[case] for case in values],
            rng=np.random.default_rng(0),
        )[metric],
    )


def _by_case(evaluation: Evaluation, metric: str, name: str) -> tuple[dict[str, float], dict[str, str]]:
    """Return a metric's mean over the rows of each case, and each case's group.

    Raises:
        ConfigError: It is of landmarks, and the model finds none.
    """
    radius = success_radius(metric, evaluation.unit)
    if radius is not None and not evaluation.points:
        raise ConfigError(f"model '{name}' finds no landmarks, and {metric} is of landmarks: leave it out")
    rows: dict[str, list[float]] = {}
    groups: dict[str, str] = {}
    if radius is None:
        measured = [(row.case, row.group, row.values[metric]) for row in evaluation.rows]
    else:
        measured = [
            (row.case, row.group, float(row.error is not None and row.error <= with_slack(radius)))
            for row in evaluation.points
            if row.status != "fp"
        ]
    for case, group, value in measured:
        rows.setdefault(case, []).append(value)
        groups[case] = group
    return {case: float(np.mean(numbers)) for case, numbers in rows.items()}, groups


def _label(model: Path) -> str:
    """Return a name for a model folder: a run's, where it lies in one."""
    whole = model.resolve()
    return whole.parent.name if whole.name == "model" else whole.name


def _sign(metric: str) -> float:
    known = metric_of(metric)
    return -1.0 if known and known.better == "lower" else 1.0


def choose(candidates: Sequence[Candidate], metric: str, budget_ms: float) -> tuple[str, str]:
    """Return the chosen candidate's name, empty if none is fast enough, and the reason."""
    fast = [c for c in candidates if c.p95 <= budget_ms]
    if not fast:
        least = min(candidates, key=lambda c: c.p95)
        return "", (
            f"no candidate stays within {budget_ms:g} ms for 95 % of the images: the fastest, {least.name}, "
            f"takes {least.p95:.0f} ms; allow more, export it, or train a smaller one"
        )
    sign = _sign(metric)
    best = max(fast, key=lambda c: sign * c.interval.estimate)
    good = [best]
    reasons = [
        f"{len(fast)} of {len(candidates)} candidates stay within {budget_ms:g} ms (p95).",
        f"The best of them by {metric} on validation is {best.name} ({best.interval.estimate:.4f}).",
    ]
    for one in fast:
        if one is best:
            continue
        compared = _compared(best, one, metric)
        gap = compared.difference
        if gap.groups < 2:
            reasons.append(f"{one.name} cannot be compared with it: one group gives no interval.")
            continue
        worse = sign * gap.estimate > 0 and compared.p_value < 1 - gap.level
        ends = f"{gap.estimate:+.4f}"
        ends += (
            " in every group"
            if gap.low is None or gap.high is None
            else f" [{gap.low:+.4f}, {gap.high:+.4f}]"
        )
        word = "significantly worse" if worse else "not significantly worse"
        reasons.append(f"{one.name} is {word}: the difference is {ends}.")
        if not worse:
            good.append(one)
    winner = min(good, key=lambda c: (c.parameters, c.p50))
    reasons.append(
        f"Chosen: {winner.name}, the smallest of the {len(good)} that are not significantly worse "
        f"({winner.parameters / 1e6:.1f} million parameters, {winner.p50:.0f} ms)."
    )
    ahead = [
        c.name
        for c in fast
        if c.p95 < winner.p95 and sign * c.interval.estimate > sign * winner.interval.estimate
    ]
    if ahead:
        reasons.append(
            f"It is not on the front: {', '.join(ahead)}, though larger, is faster (p95) and better."
        )
    return winner.name, " ".join(reasons)


def _compared(best: Candidate, other: Candidate, metric: str) -> Comparison:
    """Return the paired comparison of the metric, best less other, over groups."""
    cases = sorted(best.values)
    if cases != sorted(other.values):
        raise ValueError(f"{best.name} and {other.name} were measured on different cases")
    return compare(
        {metric: [best.values[c] for c in cases]},
        {metric: [other.values[c] for c in cases]},
        [best.groups[c] for c in cases],
        rng=np.random.default_rng(0),
    )[metric]


def front_of(candidates: Sequence[Candidate], metric: str) -> tuple[str, ...]:
    """Return the names of those that none is both faster and better than."""
    sign, best, front = _sign(metric), -np.inf, []
    for one in sorted(candidates, key=lambda c: (c.p95, -sign * c.interval.estimate)):
        if sign * one.interval.estimate > best:
            best = sign * one.interval.estimate
            front.append(one.name)
    return tuple(front)


def table_csv(done: Selection) -> str:
    """Return a row for each candidate."""
    head = ["name", "network", "parameters", *(f"{s}_ms" for s in STAGES), "p50_ms", "p95_ms", "peak_mb"]
    rows: list[list[Any]] = [[*head, done.metric, "low", "high", "groups", "on_front", "chosen"]]
    for c in done.candidates:
        times = [f"{c.stages[s]:.2f}" for s in STAGES] + [f"{c.p50:.2f}", f"{c.p95:.2f}", f"{c.peak_mb:.0f}"]
        ends = ["" if end is None else f"{end:.6g}" for end in (c.interval.low, c.interval.high)]
        numbers = [f"{c.interval.estimate:.6g}", *ends, c.interval.groups]
        marks = [c.name in done.front, c.name == done.chosen]
        rows.append([c.name, c.network, c.parameters, *times, *numbers, *marks])
    out = io.StringIO()
    csv_rows(out, rows)
    return out.getvalue()


def render_selection(done: Selection) -> str:
    """Return the table as a console shows it, and the reason below."""
    width = max(len(c.name) for c in done.candidates)
    lines = [
        f"{'':<{width}}  {'parameters':>10}  "
        + "  ".join(f"{s:>9}" for s in STAGES)
        + f"  {'p50 ms':>7}  {'p95 ms':>7}  {'peak MB':>7}  {done.metric}"
    ]
    for c in done.candidates:
        mark = "*" if c.name in done.front else " "
        ends = "" if c.interval.low is None else f" [{c.interval.low:.3f}, {c.interval.high:.3f}]"
        lines.append(
            f"{c.name:<{width}}{mark} {c.parameters / 1e6:>9.1f}M  "
            + "  ".join(f"{c.stages[s]:>9.1f}" for s in STAGES)
            + f"  {c.p50:>7.1f}  {c.p95:>7.1f}  {c.peak_mb:>7.0f}  {c.interval.estimate:.4f}{ends}"
        )
    return "\n".join([*lines, "* on the Pareto front of time and metric", done.why])

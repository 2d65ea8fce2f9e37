"""Train one configuration on every fold, with several seeds, and measure each if it was not trained."""

from __future__ import annotations

import io
import json
import logging
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import yaml

from clearmargin.capsules import log_capsule
from clearmargin.config import dump_yaml
from clearmargin.datasets.cases import Dataset, open_dataset
from clearmargin.datasets.folds import FoldSettings, in_fold
from clearmargin.errors import ConfigError, InputError
from clearmargin.evaluate import Evaluation, evaluate_cases, write_tables
from clearmargin.files import csv_rows, parse_json, write_text
from clearmargin.metrics.landmark_rows import PointRow, PointSummary, summarise_points
from clearmargin.metrics.tables import CaseRow, SummaryRow, rows_csv, summarise, summary_csv, summary_markdown
from clearmargin.models import load_segmenter
from clearmargin.models.files import ENSEMBLE_FILE
from clearmargin.report.points_table import points_csv
from clearmargin.tracking.run import TrackedRun
from clearmargin.train import train
from clearmargin.training.checkpoint import CHECKPOINT
from clearmargin.training.experiment import Experiment, public_yaml, read_experiment
from clearmargin.training.run_folder import new_folder

__all__ = ["CrossValidation", "Member", "crossvalidate"]

log = logging.getLogger(__name__)

_CONFIG, _NUMBERS, _MEMBERS = "experiment.yaml", "numbers.json", "members.json"


@dataclass(frozen=True, kw_only=True)
class Member:
    """One training of a cross-validation.

    Attributes:
        name: Its folder's.
        fold: What it held out; None if there are seeds only, and it is measured on the validation split.
        seed: Its seed.
    """

    name: str
    fold: FoldSettings | None
    seed: int


@dataclass(frozen=True, kw_only=True)
class CrossValidation:
    """All members, measured.

    Attributes:
        folder: Holds a folder for each member, the tables, and ``ensemble.yaml``: the members as one model.
        numbers: Numbers of each member, by its name and the number's.
        pooled: Means over the instances of all held-out cases, with intervals over groups; none without masks.
        landmarks: What the landmarks of all held-out cases come to; none without landmarks.
        run_id: Id of the parent run.
    """

    folder: Path
    numbers: dict[str, dict[str, float]]
    pooled: tuple[SummaryRow, ...]
    landmarks: tuple[PointSummary, ...]
    run_id: str

    def spread(self) -> dict[str, tuple[float, float]]:
        """Return mean and standard deviation over the members of each number that all have; 0 for one member."""
        every = list(self.numbers.values())
        shared = [name for name in every[0] if all(name in one for one in every)]
        values = {name: np.array([one[name] for one in every]) for name in shared}
        return {
            name: (float(v.mean()), float(v.std(ddof=1)) if len(v) > 1 else 0.0) for name, v in values.items()
        }


def crossvalidate(
    config: Path | None = None,
    *,
    folds: int = 5,
    seeds: int = 1,
    overrides: Sequence[str] = (),
    resume: Path | None = None,
    runs: Path = Path("runs"),
    track: bool = True,
) -> CrossValidation:
    """Train and measure a configuration on each fold of its card's train and validation groups.

    Args:
        config: An experiment's YAML; may be left out when resuming.
        folds: How many; 1 trains on the card's own split and repeats the seeds only.
        seeds: Trainings of each fold, with the configuration's seed and those after it.
        overrides: ``a.b=value`` items over the configuration.
        resume: The folder of a cross-validation that was stopped: members that are done stay, the others go on.
        runs: Where a new one's folder is made, ``NAME-folds``, or ``NAME-seeds`` for one fold.
        track: Whether to log a run, with one below it per member.

    Raises:
        ConfigError: The configuration or the number of folds does not fit.
    """
    experiment, folder, members = _open(config, folds, seeds, overrides, resume, runs)
    dataset = open_dataset(Path(experiment.card))
    run = TrackedRun(name=folder.name, enabled=track)
    run.on_start(
        params={"folds": len({m.fold.number for m in members if m.fold}) or 1, "seeds": seeds},
        texts={_CONFIG: public_yaml(experiment, dataset.card.name)},
        tags={"verb": "crossvalidate"},
    )
    rows: list[CaseRow] = []
    points: list[PointRow] = []
    numbers: dict[str, dict[str, float]] = {}
    with run:
        run.log_data(dataset.card.name, dataset.digest())
        try:
            for count, member in enumerate(members, 1):
                log.info("%s (%d of %d)", member.name, count, len(members))
                _train_member(experiment, member, folder, run, track=track)
                evaluation = _measure_member(experiment, member, dataset, folder)
                numbers[member.name] = evaluation.flat()
                rows += evaluation.rows
                points += evaluation.points
                _write_ensemble(folder, list(numbers))
        except BaseException:  # an error, Ctrl-C, a signal: all the same to what is kept
            log.info(
                "what is done is kept: `clearmargin crossvalidate --resume %s` goes on from there", folder
            )
            raise
        done = CrossValidation(
            folder=folder,
            numbers=numbers,
            pooled=tuple(summarise(rows, rng=np.random.default_rng(0))) if rows else (),
            landmarks=tuple(summarise_points(points, rng=np.random.default_rng(0))),
            run_id=run.run_id,
        )
        _write(done)
        if rows:
            write_text(folder / "instances.csv", rows_csv(rows))
        run.log_metrics({f"mean/{name}": mean for name, (mean, _) in done.spread().items()}, step=0)
        run.log_metrics({f"sd/{name}": sd for name, (_, sd) in done.spread().items()}, step=0)
        for name in ("members.csv", "pooled.csv", "pooled.md", "instances.csv", "landmarks.csv"):
            if (folder / name).is_file():
                run.log_artifact(folder / name, "crossvalidation")
        log_capsule(
            run, verb="crossvalidate",
            settings=experiment.model_dump(mode="json") | {"folds": _groups(members, dataset)},
            dataset=dataset, cases=[c for c in dataset.cases if c.split in ("train", "validation")],
            models={one.name: folder / one.name / "model" for one in members},
            seeds={one.name: one.seed for one in members},
        )  # fmt: skip
    return done


def _open(
    config: Path | None, folds: int, seeds: int, overrides: Sequence[str], resume: Path | None, runs: Path
) -> tuple[Experiment, Path, list[Member]]:
    if (config is None) == (resume is None):
        raise ConfigError("give a configuration, or --resume and a cross-validation's folder")
    if resume is not None:
        path = resume / _CONFIG
        if not path.is_file():
            raise InputError(f"'{resume.name}' is not a folder of a cross-validation: it lacks {_CONFIG}")
        experiment = read_experiment(path, overrides)
        try:
            state = parse_json((resume / _MEMBERS).read_text(encoding="utf-8"))
            return experiment, resume, list(_members(experiment, int(state["folds"]), int(state["seeds"])))
        except (OSError, ValueError, KeyError, TypeError):
            raise InputError(f"{_MEMBERS} in '{resume.name}' is missing or damaged: start anew") from None
    if config is None or folds < 1 or seeds < 1:
        raise ConfigError(f"expected at least 1 fold and 1 seed, got {folds} and {seeds}")
    experiment = read_experiment(config, overrides)
    if experiment.fold is not None:
        raise ConfigError("the configuration names a fold of its own: leave 'fold' out of it")
    members = list(_members(experiment, folds, seeds))
    dataset = open_dataset(Path(experiment.card))
    for member in members:  # what does not fit is said before the first training
        if member.fold is not None:
            in_fold(dataset, member.fold, validate=experiment.training.early_stopping is not None)
    folder = new_folder(runs, f"{experiment.name}-{'folds' if folds > 1 else 'seeds'}")
    write_text(folder / _CONFIG, dump_yaml(experiment))
    write_text(folder / _MEMBERS, json.dumps({"folds": folds, "seeds": seeds}))
    return experiment, folder, members


def _members(experiment: Experiment, folds: int, seeds: int) -> Iterator[Member]:
    for number in range(1, folds + 1):
        for seed in range(experiment.seed, experiment.seed + seeds):
            fold = FoldSettings(number=number, of=folds) if folds > 1 else None
            name = f"fold-{number}-seed-{seed}" if fold else f"seed-{seed}"
            yield Member(name=name, fold=fold, seed=seed)


def _groups(members: Sequence[Member], dataset: Dataset) -> dict[str, list[str]]:
    """Return the cases that each fold holds out."""
    folds = {member.fold.number: member.fold for member in members if member.fold is not None}
    return {
        f"fold-{number}": [case.case for case in in_fold(dataset, fold, validate=False).split("test")]
        for number, fold in folds.items()
    }


def _train_member(
    experiment: Experiment, member: Member, folder: Path, run: TrackedRun, *, track: bool
) -> None:
    """Train a member, go on with its training, or leave it if it is done."""
    own = folder / member.name
    if (own / _NUMBERS).is_file():
        return
    if (own / CHECKPOINT).is_file():
        train(resume=own, parent=run, track=track)
        return
    shutil.rmtree(own, ignore_errors=True)  # it ended before its first epoch did
    changed = {"name": member.name, "fold": member.fold, "seed": member.seed}
    train(experiment.model_copy(update=changed), runs=folder, parent=run, track=track)


def _measure_member(experiment: Experiment, member: Member, dataset: Dataset, folder: Path) -> Evaluation:
    """Measure a member on the cases that it was not trained on, and write its numbers: then it is done."""
    segmenter = load_segmenter(folder / member.name / "model")
    stops = experiment.training.early_stopping is not None
    held = dataset if member.fold is None else in_fold(dataset, member.fold, validate=stops)
    cases = held.split("validation" if member.fold is None else "test")
    thresholds = segmenter.thresholds
    evaluation = evaluate_cases(segmenter.with_threshold(0.0), held, cases, thresholds=thresholds).complete()
    write_tables(evaluation, folder / member.name / "evaluation")
    text = json.dumps(evaluation.flat(), indent=1, allow_nan=False)
    write_text(folder / member.name / _NUMBERS, text + "\n")
    return evaluation


def _write_ensemble(folder: Path, members: Sequence[str]) -> None:
    text = yaml.safe_dump({"members": [f"{name}/model" for name in members]}, sort_keys=False)
    write_text(folder / ENSEMBLE_FILE, text)


def _write(done: CrossValidation) -> None:
    """Write ``members.csv``, a row each with mean and standard deviation below, and the pooled tables."""
    spread = done.spread()
    rows = [["member", *spread]]
    rows += [[name, *(f"{numbers[k]:.6g}" for k in spread)] for name, numbers in done.numbers.items()]
    rows.append(["mean", *(f"{mean:.6g}" for mean, _ in spread.values())])
    rows.append(["sd", *(f"{sd:.6g}" for _, sd in spread.values())])
    out = io.StringIO()
    csv_rows(out, rows)
    write_text(done.folder / "members.csv", out.getvalue())
    if done.pooled:
        write_text(done.folder / "pooled.csv", summary_csv(done.pooled))
        write_text(done.folder / "pooled.md", summary_markdown(done.pooled))
    if done.landmarks:
        write_text(done.folder / "landmarks.csv", points_csv(done.landmarks))

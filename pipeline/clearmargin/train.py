"""Train a network: a plain loop, from top to bottom.

Everything random in step ``s`` comes from (seed, s) alone: windows, augmentation, the samplers inside the
network. So the whole state of a run is its step, its weights, their average and the optimiser's moments, and a
run that was stopped and resumed gives the same weights as one that never stopped.
"""

from __future__ import annotations

import logging
import math
import os
import shutil
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import yaml
from torch import nn

from clearmargin import __version__
from clearmargin.capsules import log_capsule, log_model_card
from clearmargin.config import digest, dump_yaml, load_settings, read_yaml
from clearmargin.datasets.card import public
from clearmargin.datasets.cases import Case, Dataset, open_dataset
from clearmargin.datasets.contents import contents_of
from clearmargin.datasets.folds import in_fold
from clearmargin.errors import ConfigError
from clearmargin.evaluate import prediction_pictures
from clearmargin.files import write_text
from clearmargin.metrics.thresholds import LEAST_REFERENCES
from clearmargin.models import load_segmenter
from clearmargin.models.clock import Clock
from clearmargin.models.files import CONFIG_FILE
from clearmargin.models.folder import (
    ModelCard,
    label_map_entries,
    point_entries,
    save_model,
    save_snapshot,
)
from clearmargin.networks import build_network, learns, learnt_names, network_config
from clearmargin.networks.foreground import RATE as HEAD_RATE
from clearmargin.networks.foreground import has_foreground_head
from clearmargin.networks.threads import torch_threads
from clearmargin.privacy import key_fingerprint
from clearmargin.report.progress import counted, progress
from clearmargin.tracking.run import TrackedRun
from clearmargin.training.batches import load_batches
from clearmargin.training.budget import Budget
from clearmargin.training.checkpoint import (
    CHECKPOINT,
    TrainingState,
    guard_disk,
    restore_checkpoint,
    save_checkpoint,
)
from clearmargin.training.experiment import LANDMARK_METRIC, Experiment, TrainingSettings, public_yaml
from clearmargin.training.facts import Facts, take_facts
from clearmargin.training.map_scaling import scale_maps
from clearmargin.training.processes import ProcessGroup, loss_module, process_group
from clearmargin.training.profiling import OPERATORS, operator_profile
from clearmargin.training.run_folder import CONFIG, MODEL, RUN, open_folder, write_config
from clearmargin.training.step import TrainingStep
from clearmargin.training.validation import validate
from clearmargin.transforms.settings import Percentiles

if TYPE_CHECKING:
    from clearmargin.models.segmenter import NetworkSegmenter

__all__ = ["TrainingResult", "train"]

log = logging.getLogger(__name__)

PROFILE = "profile"
_CANDIDATE = ".candidate"  # the model that is being validated
_FIRST_TRIAL = 0.4  # share of the time after which a validation is tried, if there was none
_OVERRUN = 1.05  # of the time: more is said


@dataclass(frozen=True, kw_only=True)
class TrainingResult:
    """Where a run's outputs lie, and how it ended."""

    folder: Path
    run_id: str
    epochs: int
    best: dict[str, float] = field(default_factory=dict)

    @property
    def model(self) -> Path:
        """The model folder."""
        return self.folder / MODEL


def train(
    config: Path | Experiment | None = None,
    *,
    overrides: Sequence[str] = (),
    resume: Path | str | None = None,
    runs: Path = Path("runs"),
    profile: bool = False,
    parent: TrackedRun | None = None,
    track: bool = True,
) -> TrainingResult:
    """Train a network as a configuration says.

    Args:
        config: An experiment, or its YAML; may be left out when resuming.
        overrides: ``a.b=value`` items over it.
        resume: A run's folder, its name under ``runs``, or its id; training goes on behind its last whole epoch.
        runs: Where a new run's folder is made, ``NAME`` or, where that exists, ``NAME-2``, ...
        profile: Say after each epoch where its time went, and profile some steps by operator into ``profile/``.
        parent: The run that this one is shown under.
        track: Whether to log a run.

    Returns:
        The run's folder, which holds ``config.yaml``, ``checkpoint.pt`` and ``model/``.

    Raises:
        ConfigError: The configuration does not fit. TrainingError: the loss is not finite, the disk is full, ...;
            the last good checkpoint is kept, as it is on Ctrl-C and SIGTERM, which are passed on.
    """
    with process_group() as group:
        experiment, folder = open_folder(config, overrides, resume, runs, group)
        try:
            with torch_threads(None):  # they are the process's, and others work in it after us
                return _train(
                    experiment,
                    folder,
                    group,
                    resumes=resume is not None,
                    profile=profile,
                    parent=parent,
                    track=track,
                )
        except BaseException:  # an error, Ctrl-C, a signal: all the same to what is kept
            if group.rank == 0 and parent is None:  # else its verb says so
                _leave(folder, new=resume is None)
            raise
        finally:
            if group.rank == 0:
                shutil.rmtree(folder / _CANDIDATE, ignore_errors=True)


def _leave(folder: Path, *, new: bool) -> None:
    """Say how a run that ended early goes on; one that never began leaves no folder behind."""
    if (folder / CHECKPOINT).is_file():
        log.info("the last whole epoch is kept: `clearmargin train --resume %s` goes on behind it", folder)
    elif new and not any((folder / name).exists() for name in (RUN, MODEL)):
        shutil.rmtree(folder)


@dataclass(frozen=True, kw_only=True)
class _Data:
    """What is learnt from, and what is validated on."""

    dataset: Dataset
    train: Sequence[Case]
    validation: Sequence[Case]


@dataclass(frozen=True, kw_only=True)
class _Output:
    """Where a run's results go: its folder, with models of this card, and the tracking store."""

    folder: Path
    card: ModelCard
    run: TrackedRun


def _train(
    experiment: Experiment,
    folder: Path,
    group: ProcessGroup,
    *,
    resumes: bool,
    profile: bool,
    parent: TrackedRun | None,
    track: bool,
) -> TrainingResult:
    settings = experiment.training
    # Threads that have to share a core with a worker wait for each other: measured, ten times slower.
    free = len(os.sched_getaffinity(0)) // group.size - settings.workers
    torch.set_num_threads(settings.threads or max(1, free))
    dataset = _dataset(experiment)
    cases = dataset.split("train")
    if group.rank == 0:
        log.info("reading the data: %d cases to train on; the first epoch begins behind it", len(cases))
    validation = _validation_cases(experiment, dataset)
    facts = take_facts(dataset, cases, experiment.image.intensity, experiment.prediction.containment)
    experiment = _with_facts(experiment, facts, dataset)
    device = torch.device("cuda", group.local) if torch.cuda.is_available() else torch.device("cpu")
    model_config = network_config(experiment.model)
    torch.manual_seed(experiment.seed)
    network = build_network(
        model_config,
        classes=len(learnt_names(model_config, dataset.card.label_map)),
        channels=experiment.image.channels,
        points=len(dataset.card.points),
        pretrained=not resumes,
    )
    network = network.to(device).to(memory_format=network.layout)
    state = TrainingState(
        network=network,
        average={k: v.detach().clone() for k, v in network.state_dict().items()},
        optimiser=torch.optim.AdamW(
            _parameter_groups(network, settings.weight_decay),
            lr=settings.learning_rate,
            fused=device.type == "cuda",
        ),
    )
    if resumes and restore_checkpoint(state, folder) != digest(experiment) and group.rank == 0:
        log.info("run '%s' goes on with a changed configuration", folder.name)
        write_config(folder, experiment)
    seen = (*cases, *(validation if _chooses(experiment) else ()))
    contents = contents_of(dataset, counted("recognise images", seen)) if group.rank == 0 else []
    card = ModelCard(
        software=f"clearmargin {__version__}",
        model=_without_folder(model_config.model_dump(mode="json")),
        image=experiment.image,
        augment=experiment.augment,
        classes=label_map_entries(dataset.card.label_map),
        points=point_entries(dataset.card.label_map),
        prediction=experiment.prediction,
        domain=facts.domain,
        show_in_tracking=dataset.card.show_in_tracking,
        trained_on=tuple(sorted({case.group for case in seen})),
        trained_content=tuple(sorted(set(contents))),
        trained_key=key_fingerprint(),
        trained_card=dataset.card.name,
    )
    with _open_run(experiment, dataset, folder, parent, enabled=track and group.rank == 0) as run:
        if run.run_id:
            write_text(folder / RUN, yaml.safe_dump({"run_id": run.run_id}))
        run.log_data(dataset.card.name, dataset.digest())
        told: dict[str, Any] = {
            "verb": "train", "settings": experiment.model_dump(mode="json"), "dataset": dataset,
            "cases": (*cases, *validation), "seeds": {"training": experiment.seed},
        }  # fmt: skip
        log_capsule(run, **told)  # of a training that is stopped, too
        data = _Data(dataset=dataset, train=cases, validation=validation)
        output = _Output(folder=folder, card=card, run=run)
        with operator_profile(folder / PROFILE) if profile else nullcontext() as profiler:
            _loop(state, experiment, data, output, device, group, profiler)
        if group.rank == 0:
            if _chooses(experiment):  # else these cases are left for a calibration
                _scale_maps(output, data, state.epoch)
            _say_thresholds(
                load_settings(folder / MODEL / CONFIG_FILE, ModelCard), experiment, len(validation)
            )
        if (folder / PROFILE).is_dir():
            run.log_artifact(folder / PROFILE / OPERATORS, PROFILE)
        if group.rank == 0:
            log_capsule(run, models={"": folder / MODEL}, **told)
            log_model_card(run, folder / MODEL, {"numbers": state.best, "training": True}, dataset)
            run.log_model(folder / MODEL)
            run.log_artifact(folder / CHECKPOINT, "checkpoint")
    return TrainingResult(folder=folder, run_id=run.run_id, epochs=state.epoch, best=state.best)


def _loop(
    state: TrainingState,
    experiment: Experiment,
    data: _Data,
    output: _Output,
    device: torch.device,
    group: ProcessGroup,
    profiler: Any,
) -> None:
    settings = experiment.training
    total = settings.epochs * settings.steps_per_epoch
    batches = load_batches(
        experiment, data.dataset, data.train, state.epoch * settings.steps_per_epoch, total, group
    )
    take_step = TrainingStep(
        state=state,
        compute_losses=loss_module(state.network, device, group),
        device=device,
        clip_norm=settings.clip_norm,
        ema=settings.ema,
        amp=_has_amp(device),
        clock=Clock(device=device if profiler else None),
    )
    budget = Budget(settings.max_minutes, state.seconds)
    for epoch in range(state.epoch, settings.epochs):
        sums: dict[str, float] = {}
        done = 0
        with progress(f"epoch {epoch + 1}/{settings.epochs}", settings.steps_per_epoch) as bar:
            for step in range(epoch * settings.steps_per_epoch, (epoch + 1) * settings.steps_per_epoch):
                gone = group.shared(budget.share())
                if gone >= 1 and done:
                    break
                with take_step.clock("data"):
                    taken = [next(batches) for _ in range(settings.accumulate)]
                torch.manual_seed(_step_seed(experiment.seed, step, group.rank))
                rate = settings.learning_rate * _rate(step, total, settings, gone)
                losses = take_step(taken, number=step, rate=rate)
                for name, value in losses.items():
                    sums[name] = sums.get(name, 0.0) + float(value)
                if profiler is not None:
                    profiler.step()
                bar.advance(loss=f"{float(losses['loss']):.3f}")
                done += 1
                if gone > _FIRST_TRIAL and not budget.reserved_s and group.rank == 0:
                    _reserve_validation(budget, state, experiment, data, output)
        state.epoch, state.seconds = epoch + 1, budget.spent_s
        metrics = {f"train/{name}": value / done for name, value in sums.items()}
        stop = False
        if profiler is not None:
            metrics |= {f"time/{name}": share for name, share in take_step.clock.shares().items()}
            take_step.clock.seconds.clear()
        if group.rank == 0:
            metrics |= {"learning_rate": rate, "minutes": state.seconds / 60}
            stop = _finish_epoch(state, experiment, data, output, metrics, out_of_time=budget.share() >= 1)
            # Written last: a resumed run repeats an epoch that was not seen to its end.
            save_checkpoint(state, output.folder, digest(experiment))
            if "validation/detections" in metrics:
                budget.reserve(budget.spent_s - state.seconds)
        if group.shared(stop):
            break
    if budget.most is not None and budget.spent_s > _OVERRUN * 60 * budget.most:
        log.warning(
            "training took %.1f minutes of the %g that training.max_minutes allows: the last validation took longer "
            "than was kept for it",
            budget.spent_s / 60,
            budget.most,
        )


def _reserve_validation(
    budget: Budget, state: TrainingState, experiment: Experiment, data: _Data, output: _Output
) -> None:
    """Keep time for a validation, of which the first case says how long it takes."""
    if not data.validation:
        return
    candidate = _candidate(state, experiment, output)
    for k in range(2):  # the first time, more is loaded and compiled
        began = budget.spent_s
        validate(candidate, data.dataset, data.validation[:1], measure=None)
        if k:
            budget.reserve((budget.spent_s - began) * len(data.validation))


def _candidate(state: TrainingState, experiment: Experiment, output: _Output) -> NetworkSegmenter:
    """Return the model as it is now, from a draft of its folder."""
    weights = state.average if experiment.training.ema else state.network.state_dict()
    draft = output.folder / _CANDIDATE
    guard_disk(lambda: save_model(draft, output.card, weights))
    return load_segmenter(draft)


def _finish_epoch(
    state: TrainingState,
    experiment: Experiment,
    data: _Data,
    output: _Output,
    metrics: dict[str, float],
    *,
    out_of_time: bool,
) -> bool:
    """Validate if it is time, keep the best model, log; return whether training should stop."""
    settings, stopping = experiment.training, experiment.training.early_stopping
    weights = state.average if settings.ema else state.network.state_dict()
    last = state.epoch == settings.epochs
    stop = out_of_time
    values: dict[str, float] = {}
    least = experiment.prediction
    measure = settings.threshold_measure if least.score_threshold is None else None
    by_points = least.landmark_threshold is None and not isinstance(least.score_threshold, float)
    if data.validation and (state.epoch % settings.validate_every == 0 or last or out_of_time):
        candidate = _candidate(state, experiment, output)
        validation = validate(candidate, data.dataset, data.validation, measure=measure, landmarks=by_points)
        state.thresholds, state.landmark_threshold = validation.thresholds, validation.landmark_threshold
        values = validation.metrics | {f"score_threshold/{n}": v for n, v in state.thresholds.items()}
        if state.landmark_threshold is not None:
            values["landmark_threshold"] = state.landmark_threshold
        metrics |= {f"validation/{name}": value for name, value in values.items()}
        metrics |= {
            f"headline/{name}": values[name] for name in ("ap50", "pq", "semantic_dice") if name in values
        }
        radial = next((v for n, v in values.items() if n.startswith("landmarks/radial_error_mean")), None)
        metrics |= {} if radial is None else {"headline/radial_error": radial}
        if data.dataset.card.show_in_tracking:
            for number, picture in enumerate(
                prediction_pictures(candidate, data.dataset, data.validation[:2])
            ):
                output.run.log_image(f"validation {number + 1}", picture, state.epoch)
        if not values["detections"]:
            log.warning(
                "the model detects nothing on the %d validation cases at its score threshold of %g: "
                "it needs more steps, a lower prediction.score_threshold, or another network (`clearmargin plan`)",
                len(data.validation),
                candidate.thresholds.lowest,
            )
    card = _with_thresholds(output.card, state)
    if stopping is None:
        guard_disk(lambda: save_model(output.folder / MODEL, card, weights))
        state.best = values or state.best
    elif values:
        if values[stopping.metric] > state.best.get(stopping.metric, -1.0):
            state.best, state.since_best = {**values, "epoch": float(state.epoch)}, 0
            guard_disk(lambda: save_model(output.folder / MODEL, card, weights))
        else:
            state.since_best += 1
            stop = stop or state.since_best >= stopping.patience
    if settings.snapshots:
        guard_disk(
            lambda: save_snapshot(
                output.folder / MODEL, state.epoch, state.network.state_dict(), keep=settings.snapshots
            )
        )
    output.run.log_metrics(metrics, step=state.epoch)
    shown = ", ".join(
        f"{name} {value:.4g}"
        for name, value in metrics.items()
        if name != "learning_rate" and not name.startswith("headline/")
    )
    log.info("epoch %d: %s", state.epoch, shown)
    if stop and not last:
        log.info(
            "stopped after epoch %d: %s", state.epoch, "out of time" if out_of_time else "no improvement"
        )
    return stop


def _scale_maps(output: _Output, data: _Data, epoch: int) -> None:
    """Make the kept model's maps as sure as they are right on the validation cases, and say so."""
    temperatures = scale_maps(output.folder / MODEL, data.dataset, data.validation)
    if temperatures:
        shown = ", ".join(f"{name} {value:.3g}" for name, value in temperatures.items())
        log.info("temperatures of maps, fitted on validation cases: %s", shown)
        output.run.log_metrics({f"map_temperature/{n}": t for n, t in temperatures.items()}, step=epoch)


def _dataset(experiment: Experiment) -> Dataset:
    dataset = open_dataset(Path(experiment.card))
    if experiment.fold is None:
        return dataset
    return in_fold(dataset, experiment.fold, validate=experiment.training.early_stopping is not None)


def _validation_cases(experiment: Experiment, dataset: Dataset) -> tuple[Case, ...]:
    """Return the cases that are validated on; none where the card has none and nothing is decided by them."""
    if experiment.training.early_stopping is None and not any(c.split == "validation" for c in dataset.cases):
        return ()
    cases = dataset.split("validation")
    most = experiment.training.validation_cases
    used = cases[:: math.ceil(len(cases) / most)]
    # One that cannot be read would be met after hours of training.
    references = [dataset.read(case)[1] for case in counted("read validation cases", used)]
    stopping = experiment.training.early_stopping
    if stopping is None:
        return used
    by_points = stopping.metric == LANDMARK_METRIC
    marks = [one.landmarks for one in references if one.landmarks is not None]
    if not sum(one.count for one in marks) if by_points else not sum(map(len, references)):
        raise ConfigError(
            f"none of the {len(used)} validation cases holds {'a landmark' if by_points else 'an instance'}, so that "
            f"a model that detects nothing would be the best: give the split cases with "
            f"{'landmarks' if by_points else 'instances'}, or set training.early_stopping=null"
        )
    return used


def _chooses(experiment: Experiment) -> bool:
    """Return whether something of the model is chosen on the validation cases: the epoch, or the score thresholds."""
    return experiment.training.early_stopping is not None or experiment.prediction.score_threshold is None


def _with_facts(experiment: Experiment, facts: Facts, dataset: Dataset) -> Experiment:
    """Return the experiment with what its settings leave to the training data.

    Raises:
        ConfigError: The settings name a class that the card does not have.
    """
    image, prediction = experiment.image, experiment.prediction
    prediction.thresholds(dataset.card.label_map)  # a class that the card lacks is said before the first step
    for name in prediction.nested or ():
        dataset.card.label_map.by_name(name)
    if isinstance(image.intensity, Percentiles) and image.intensity.least_width is None:
        intensity = image.intensity.model_copy(update={"least_width": facts.least_width})
        image = image.model_copy(update={"intensity": intensity})
    if prediction.nested is None:
        names = tuple(c.name for c in dataset.card.classes if c.id in facts.nested)
        prediction = prediction.model_copy(update={"nested": names})
    return experiment.model_copy(update={"image": image, "prediction": prediction})


def _with_thresholds(card: ModelCard, state: TrainingState) -> ModelCard:
    """Return a model's card with the score thresholds that were chosen, if any were."""
    thresholds: dict[str, Any] = {"score_threshold": state.thresholds} if state.thresholds else {}
    if state.landmark_threshold is not None:
        thresholds["landmark_threshold"] = state.landmark_threshold
    return card.model_copy(update={"prediction": card.prediction.model_copy(update=thresholds)})


def _say_thresholds(card: ModelCard, experiment: Experiment, cases: int) -> None:
    """Say which score thresholds the model has, and by what they were chosen."""
    learnt = learns(network_config(card.model))
    thresholds, given = card.prediction.thresholds(card.label_map), experiment.prediction
    few = f"fewer than {LEAST_REFERENCES} validation objects or no detection to choose them on"
    if "masks" in learnt:
        shown = ", ".join(f"{name} {value:g}" for name, value in thresholds.named(card.label_map).items())
        reason = few if given.score_threshold is None else "as configured"
        if isinstance(card.prediction.score_threshold, dict) and given.score_threshold is None:
            reason = f"best for {experiment.training.threshold_measure} on {cases} validation cases"
        log.info("score thresholds, %s: %s", reason, shown)
    if "landmarks" in learnt:
        reason = few if given.landmark_threshold is None else "as configured"
        if isinstance(given.score_threshold, float):
            reason = "as configured"
        elif card.prediction.landmark_threshold is not None and given.landmark_threshold is None:
            reason = f"best for {LANDMARK_METRIC} on {cases} validation cases"
        log.info("score threshold of landmarks, %s: %g", reason, thresholds.landmarks)


def _without_folder(model: dict[str, Any]) -> dict[str, Any]:
    """Return a model's settings as its folder keeps them: of the weights it began with, the file's name alone."""
    return model | {"weights": Path(model["weights"]).name} if model.get("weights") else model


def _parameter_groups(network: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Return weights with decay, and norms and biases without; both of a head for maps apart, at its own rate."""
    head = getattr(network, "foreground", None) if has_foreground_head(network) else None
    apart = {id(p) for p in head.parameters()} if isinstance(head, nn.Module) else set()
    learned = [p for p in network.parameters() if p.requires_grad]
    groups = []
    for rate, parameters in (
        (1.0, [p for p in learned if id(p) not in apart]),
        (HEAD_RATE, [p for p in learned if id(p) in apart]),
    ):
        groups += [
            {"params": [p for p in parameters if p.ndim > 1], "weight_decay": weight_decay, "rate": rate},
            {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0, "rate": rate},
        ]
    return groups


def _rate(step: int, total: int, settings: TrainingSettings, gone: float) -> float:
    """Return the share of the learning rate: linear up, then half a cosine down to 1 %.

    The cosine ends when the time does (``gone`` is its share), where that comes before the last step.
    """
    if step < settings.warmup_steps:
        return (step + 1) / settings.warmup_steps
    done = max(gone, (step - settings.warmup_steps) / max(1, total - settings.warmup_steps))
    return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))


def _step_seed(seed: int, step: int, rank: int) -> int:
    return (seed * 1_000_003 + step) * 1_009 + rank


def _has_amp(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.is_bf16_supported()


def _open_run(
    experiment: Experiment, dataset: Dataset, folder: Path, parent: TrackedRun | None, *, enabled: bool
) -> TrackedRun:
    """Return the run in the tracking store: the one the folder knows, or a new one."""
    known = folder / RUN
    before = read_yaml(known).get("run_id") if known.is_file() else None
    run = TrackedRun(name=folder.name, run_id=before, enabled=enabled, parent=parent)
    run.on_start(
        params=experiment.model_dump(mode="json") | {"card": dataset.card.name},
        texts={
            CONFIG: public_yaml(experiment, dataset.card.name),
            "card.yaml": dump_yaml(public(dataset.card)),
        },
        tags={"verb": "train"},
    )
    return run

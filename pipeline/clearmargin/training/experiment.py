"""What a training is told: the sections of its YAML."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field, field_validator

from clearmargin.config import Settings, apply_overrides, read_yaml, validate
from clearmargin.datasets.folds import FoldSettings
from clearmargin.errors import ConfigError
from clearmargin.metrics.thresholds import Measure
from clearmargin.models.settings import PredictionSettings
from clearmargin.networks import config_class, learns, network_config
from clearmargin.tracking.parameters import plain
from clearmargin.transforms.settings import AugmentSettings, ImageSettings, VolumeView

__all__ = [
    "LANDMARK_METRIC",
    "VALIDATION_METRICS",
    "EarlyStopping",
    "Experiment",
    "TrainingSettings",
    "public_yaml",
    "read_experiment",
]

MASK_METRICS = ("ap", "ap50", "pq", "semantic_dice")
LANDMARK_METRIC = "landmark_quality"
VALIDATION_METRICS = (*MASK_METRICS, LANDMARK_METRIC)
"""By which a model can be chosen. Each is better higher, and 0 for a model that detects nothing."""


class EarlyStopping(Settings):
    """Stop when a metric of the validation split has not improved, and keep the best model."""

    metric: str = Field(
        "ap50", description="a validation metric: ap, ap50, pq, semantic_dice or landmark_quality"
    )
    patience: int = Field(10, ge=1, description="validations without improvement before training stops")

    @field_validator("metric")
    @classmethod
    def _known(cls, metric: str) -> str:
        if metric not in VALIDATION_METRICS:
            raise ValueError(f"no metric '{metric}': there are {', '.join(VALIDATION_METRICS)}")
        return metric


class TrainingSettings(Settings):
    """How the weights are found."""

    epochs: int = Field(20, ge=1)
    steps_per_epoch: int = Field(50, ge=1, description="steps per epoch; a checkpoint follows each epoch")
    batch_size: int = Field(2, ge=1, description="windows per forward pass and process")
    accumulate: int = Field(
        1,
        ge=1,
        description="forward passes per step, whose gradients are averaged: for batches beyond the memory",
    )
    learning_rate: float = Field(1e-3, gt=0)
    weight_decay: float = Field(0.05, ge=0)
    warmup_steps: int = Field(50, ge=0)
    clip_norm: float = Field(5.0, gt=0, description="largest gradient norm per step; larger ones are clipped")
    ema: float = Field(0.998, ge=0, lt=1, description="decay of the averaged weights; 0 keeps no average")
    validate_every: int = Field(1, ge=1, description="epochs between validations")
    validation_cases: int = Field(50, ge=1, description="largest number of validation cases that are scored")
    threshold_measure: Measure = Field(
        "pq",
        description="measure by which the score thresholds are chosen on the validation split: pq, f1 or accuracy, "
        "which is "
        "TP / (TP + FP + FN)",
    )
    early_stopping: EarlyStopping | None = Field(
        None, description="null: all epochs run, and the last one is kept"
    )
    workers: int = Field(1, ge=0, description="processes that prepare windows")
    threads: int = Field(0, ge=0, description="threads of torch; 0 takes the cores that workers leave")
    cache_mb: int = Field(
        2048,
        ge=0,
        description="memory per worker, in MB, for images (float32) and masks that were read; others are read again",
    )
    snapshots: int = Field(
        5,
        ge=0,
        description="epochs of the last half whose weights are kept in the model folder: a checkpoint ensemble",
    )
    max_minutes: float | None = Field(
        None,
        gt=0,
        description="minutes from the first step to the last validation; the learning rate falls with the time, and "
        "the last epoch is cut short",
    )


class Experiment(Settings):
    """A training configuration, complete."""

    name: str = Field(pattern=r"^[A-Za-z0-9_.-]+$")
    card: str = Field(description="path of the data card, from the working directory")
    seed: int = Field(0, ge=0)
    fold: FoldSettings | None = Field(
        None,
        description="train on all but one fold of the card's train and validation groups (crossvalidate)",
    )
    model: dict[str, Any] = Field(description="settings of the network; docs/models.md lists those of each")
    image: ImageSettings = ImageSettings()
    augment: AugmentSettings = AugmentSettings()
    training: TrainingSettings = TrainingSettings()
    prediction: PredictionSettings = PredictionSettings()


def read_experiment(config: Path, overrides: Sequence[str]) -> Experiment:
    """Return the experiment of a YAML with overrides, its model section complete.

    Raises:
        ConfigError: It does not fit.
    """
    experiment = validate(apply_overrides(read_yaml(config), overrides), Experiment, name=config.name)
    if not Path(experiment.card).is_file():  # its path is in a file, and may name a patient
        raise ConfigError(
            f"{config.name}: card names no file: give the data card's path, from the folder in which you start"
        )
    network = network_config(experiment.model)
    _refuse_unread(experiment, config.name)
    _refuse_metric(experiment, network, config.name)
    if experiment.augment.copy_paste and getattr(network, "landmarks", None) is not None:
        raise ConfigError(
            f"{config.name}: augment.copy_paste pastes masks without their landmarks: set it to 0, or leave "
            "model.landmarks out"
        )
    if experiment.augment.transforms:
        from clearmargin.transforms.trial import check_transforms

        shape = network.patch if isinstance(network, VolumeView) else experiment.image.crop
        check_transforms(experiment.augment.transforms, shape)
    _refuse_unread(experiment, config.name)
    return experiment.model_copy(update={"model": network.model_dump(mode="json")})


def _refuse_unread(experiment: Experiment, name: str) -> None:
    """Refuse settings that the network does not read, if they are other than their defaults.

    Raises:
        ConfigError: With all of them.
    """
    network = experiment.model["network"]
    ignored = []
    for path in config_class(network).unread:
        section, field = path.split(".")
        settings: Settings = getattr(experiment, section)
        value = getattr(settings, field)
        if value != type(settings).model_fields[field].get_default(call_default_factory=True):
            ignored.append(f"  {path}: {network} does not read it, and it is {value}")
    if ignored:
        raise ConfigError("\n".join([f"{name}: leave out what the network does not read:", *ignored]))


def _refuse_metric(experiment: Experiment, network: Settings, name: str) -> None:
    """Refuse to choose epochs by what the network does not find.

    Raises:
        ConfigError: It says what can be taken.
    """
    stopping = experiment.training.early_stopping
    if stopping is None:
        return
    learnt = learns(network)
    able = MASK_METRICS if "masks" in learnt else ()
    if "landmarks" in learnt:
        able = (*able, LANDMARK_METRIC)
    if stopping.metric not in able:
        raise ConfigError(
            f"{name}: training.early_stopping.metric is {stopping.metric}, and this {experiment.model['network']} "
            f"{'finds no landmarks' if 'masks' in learnt else 'finds landmarks alone'}: take "
            f"{' or '.join(able)}"
        )


def public_yaml(experiment: Experiment, card: str) -> str:
    """Return the configuration as a tracking server may hold it: the card by its name, other paths as ``<path>``."""
    settings = plain(experiment.model_dump(mode="json")) | {"card": card}
    return yaml.safe_dump(settings, sort_keys=False, allow_unicode=True)

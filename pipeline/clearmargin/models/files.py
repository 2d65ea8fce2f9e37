"""Which files a model folder has, and what can be asked of it by these alone: nothing here loads torch."""

from __future__ import annotations

from pathlib import Path

from clearmargin.errors import ConfigError

__all__ = [
    "CONFIG_FILE",
    "ENSEMBLE_FILE",
    "RUNTIME_FILE",
    "SNAPSHOTS",
    "WEIGHTS_FILE",
    "check_choice",
    "check_exported",
    "is_ensemble",
    "snapshots",
]

CONFIG_FILE, WEIGHTS_FILE, RUNTIME_FILE = "model.yaml", "weights.safetensors", "runtime.yaml"
ENSEMBLE_FILE = "ensemble.yaml"
SNAPSHOTS = "snapshots"


def snapshots(folder: Path) -> tuple[Path, ...]:
    """Return the weights that were kept of a model's epochs, the first epoch first; none if none were."""
    return tuple(sorted((folder / SNAPSHOTS).glob("epoch-*.safetensors")))


def is_ensemble(model: Path) -> bool:
    """Return whether a folder is an ensemble's and not a model's own."""
    return (model / ENSEMBLE_FILE).is_file() and not (model / CONFIG_FILE).is_file()


def check_choice(model: Path, mode: str, runtime: str) -> None:
    """Refuse ways to sample and runtimes that a model folder has no files for.

    Args:
        model: A model folder, or an ensemble's, whose members are checked as they are loaded.
        mode: Of `sampling.samples.open_segmenter`.
        runtime: ``torch``, or what the model was exported to.

    Raises:
        ConfigError: With what can be done.
    """
    if mode == "ensemble":
        return
    if is_ensemble(model):
        raise ConfigError(f"'{model.name}' is an ensemble: --uncertainty ensemble asks all of its members")
    if mode == "checkpoints":
        kept = len(snapshots(model))
        if kept < 2:
            raise ConfigError(
                f"'{model.name}' keeps the weights of {kept} epoch(s), and a checkpoint ensemble needs two: "
                "train with training.snapshots of 2 or more, or take --uncertainty tta"
            )
        if runtime != "torch":
            raise ConfigError(
                f"runtime '{runtime}' has the final weights alone: take --uncertainty tta with it"
            )
    if runtime != "torch":
        check_exported(model / runtime, runtime)


def check_exported(folder: Path, runtime: str) -> None:
    """Refuse a runtime whose folder holds no export.

    Raises:
        ConfigError: With the way to make one.
    """
    if not (folder / RUNTIME_FILE).is_file():
        raise ConfigError(
            f"the model was not exported to '{runtime}': `clearmargin export MODEL --format {runtime} --card CARD` "
            "does it"
        )

"""What can be told of arguments before anything heavy is imported: a typo costs a moment, not the loading of torch."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

from clearmargin.errors import ConfigError, nearest

__all__ = [
    "check_card",
    "check_device",
    "check_experiment",
    "check_folder",
    "check_overrides",
    "is_card",
]


def check_folder(path: Path | None) -> None:
    """Raise ConfigError if results cannot be written into a folder: it is a file, or closed to this user."""
    if path is None:
        return
    nearest = next(folder for folder in (path, *path.absolute().parents) if folder.exists())
    if not nearest.is_dir():
        raise ConfigError(
            f"'{path}' cannot be a folder for results: '{nearest}' is a file; name another folder"
        )
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise ConfigError(f"you may not write to '{nearest}': name a folder that you may write to")


def check_device(name: str | None) -> None:
    """Raise ConfigError for a device that torch does not know by that name."""
    if name is not None and not re.fullmatch(r"cpu|cuda(:\d+)?", name):
        hint = "cuda" if name.lower() in ("gpu", "nvidia", "cuda0") else "cpu or cuda"
        raise ConfigError(f"--device '{name}': expected cpu, cuda or cuda:N; did you mean {hint}?")


def check_card(path: Path) -> None:
    """Raise ConfigError if a data card does not fit its schema, or its data folder is not there."""
    from clearmargin.datasets.card import read_card

    read_card(path)


def is_card(path: Path) -> bool:
    """Return whether a YAML file is a data card, and not an experiment."""
    from clearmargin.config import read_yaml

    content = read_yaml(path)
    return "encoding" in content and "model" not in content


def check_overrides(overrides: Sequence[str]) -> None:
    """Raise ConfigError for an override that no experiment takes, before a plan is made for it."""
    from clearmargin.config import apply_overrides, validate
    from clearmargin.networks import NETWORKS
    from clearmargin.training.experiment import Experiment

    content = apply_overrides({"name": "planned", "card": "card.yaml", "model": {}}, overrides)
    network = content["model"].get("network", "mask_rcnn")
    if network not in NETWORKS:
        raise ConfigError(f"no model '{network}': {nearest(str(network), NETWORKS)}")
    validate(content, Experiment, name="--set")


def check_experiment(path: Path, overrides: Sequence[str]) -> None:
    """Raise ConfigError if an experiment, its overrides or its card do not fit.

    All but the ``model`` section is checked without torch; that section's options lie with its network.
    """
    from clearmargin.training.experiment import read_experiment

    check_card(Path(read_experiment(path, overrides).card))

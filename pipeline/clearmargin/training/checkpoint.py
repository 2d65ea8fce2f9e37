"""The whole state of a training, and its file."""

from __future__ import annotations

import errno
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor

from clearmargin.errors import InputError, TrainingError
from clearmargin.files import whole
from clearmargin.networks.network import Network

__all__ = ["CHECKPOINT", "TrainingState", "guard_disk", "restore_checkpoint", "save_checkpoint"]

CHECKPOINT = "checkpoint.pt"
_PARTS = {"config", "network", "average", "optimiser", "epoch", "seconds", "best", "since_best", "thresholds"}


@dataclass(kw_only=True)
class TrainingState:
    """All that changes while a training goes on; there is no state of generators or samplers beside it.

    Attributes:
        network: The weights.
        average: Their moving average, by name.
        optimiser: With its moments.
        epoch: Whole epochs done.
        seconds: Spent on them, over all resumptions.
        best: Validation metrics of the model that is kept, by name.
        since_best: Validations since then.
        thresholds: Score threshold of each class by its name, as the latest validation chose them.
        landmark_threshold: That of landmarks, likewise; None if none was chosen.
    """

    network: Network
    average: dict[str, Tensor]
    optimiser: torch.optim.Optimizer
    epoch: int = 0
    seconds: float = 0.0
    best: dict[str, float] = field(default_factory=dict)
    since_best: int = 0
    thresholds: dict[str, float] = field(default_factory=dict)
    landmark_threshold: float | None = None

    def move_average(self, decay: float, step: int) -> None:
        """Move the average towards the current weights; faster at first, so that a short run forgets its start."""
        weight = 1 - min(decay, (1 + step) / (10 + step))
        held = self.network.state_dict()
        floating = [name for name, value in held.items() if value.is_floating_point()]
        with torch.no_grad():
            # All at once: on a GPU hundreds of small kernels cost more than the sums.
            torch._foreach_lerp_(
                [self.average[name] for name in floating], [held[name] for name in floating], weight
            )
            for name in held.keys() - set(floating):
                self.average[name].copy_(held[name])


def save_checkpoint(state: TrainingState, folder: Path, config_digest: str) -> None:
    """Write the state to ``checkpoint.pt`` in ``folder``, whole or not at all.

    Raises:
        TrainingError: The disk is full; an earlier checkpoint stays.
    """
    saved = {
        "config": config_digest,
        "network": state.network.state_dict(),
        "average": state.average,
        "optimiser": state.optimiser.state_dict(),
        "epoch": state.epoch,
        "seconds": state.seconds,
        "best": state.best,
        "since_best": state.since_best,
        "thresholds": state.thresholds,
        "landmark_threshold": state.landmark_threshold,
    }

    def write() -> None:
        with whole(folder / CHECKPOINT) as draft:
            torch.save(saved, draft)

    guard_disk(write)


def restore_checkpoint(state: TrainingState, folder: Path) -> str:
    """Load the checkpoint of a run's folder into ``state``; return the digest of the configuration it was made with.

    Raises:
        InputError: There is none, or it is not whole.
    """
    try:
        saved: Any = torch.load(folder / CHECKPOINT, map_location="cpu", weights_only=True)
        if not isinstance(saved, dict) or not saved.keys() >= _PARTS:
            raise EOFError
    except FileNotFoundError:
        raise InputError(
            f"run '{folder.name}' has no {CHECKPOINT}: it ended before its first epoch did"
        ) from None
    except (RuntimeError, EOFError, OSError, UnpicklingError) as error:
        raise InputError(
            f"{CHECKPOINT} of run '{folder.name}' is damaged, or holds more than tensors and numbers "
            f"({type(error).__name__}): start the training anew"
        ) from None
    state.network.load_state_dict(saved["network"])
    for name, value in saved["average"].items():
        state.average[name].copy_(value)  # stays on the network's device
    state.optimiser.load_state_dict(saved["optimiser"])
    state.epoch, state.seconds = saved["epoch"], saved["seconds"]
    state.best, state.since_best = saved["best"], saved["since_best"]
    state.thresholds, state.landmark_threshold = saved["thresholds"], saved.get("landmark_threshold")
    return str(saved["config"])


def guard_disk(write: Callable[[], object]) -> None:
    """Call ``write``.

    Raises:
        TrainingError: The disk is full.
    """
    try:
        write()
    except OSError as error:  # which `whole` makes of whatever a library raises on a full disk
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise TrainingError(
                "the disk is full: the last checkpoint is whole; free some space and go on with --resume"
            ) from None
        raise

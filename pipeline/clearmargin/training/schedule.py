"""What a plan says of the training itself: batch, steps, validation, stopping, memory."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from typing import Any

import numpy as np

from clearmargin.datasets.cases import Dataset
from clearmargin.datasets.fingerprint import Fingerprint
from clearmargin.networks.planning import Choice, NetworkSettings, Sees

__all__ = ["memory_mb", "mostly_single", "step_memory_mb", "training_choices", "workers"]

_MOSTLY = 0.95  # share of planes from which a rule holds
_BATCH_VOXELS = 1_000_000  # of a batch of windows on a GPU
_VALIDATION = 0.1  # of the time
_FORWARD = 0.3  # of a training step's cost
_CPU_SHARE, _GPU_MB = 4, 8_000  # a step may take a quarter of the memory; a GPU that is not here has 8 GB


def workers(cores: int) -> int:
    """Return how many processes prepare windows."""
    return max(1, min(8, cores // 2))


def memory_mb() -> int:
    """Return the machine's memory."""
    return int(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2**20)


def step_memory_mb(device: str) -> int:
    """Return the memory that a training step may take: a quarter of the machine's, or most of the card's."""
    if device == "cpu":
        return memory_mb() // _CPU_SHARE
    import torch

    if not torch.cuda.is_available():
        return _GPU_MB
    return int(0.8 * torch.cuda.get_device_properties(0).total_memory / 2**20)


def mostly_single(fingerprint: Fingerprint, sees: Sees) -> bool:
    """Return whether nearly every plane, or volume, holds at most one object per class."""
    counts = fingerprint.totals if sees == "volumes" else fingerprint.counts
    return float((counts <= len(fingerprint.classes)).mean()) >= _MOSTLY


def training_choices(
    fingerprint: Fingerprint,
    dataset: Dataset,
    device: str,
    minutes: float | None,
    network: type[NetworkSettings],
    model: dict[str, Any],
) -> Iterator[Choice]:
    """Yield the settings of the training.

    Args:
        fingerprint: Of the training cases.
        dataset: The card's.
        device: ``cpu`` or ``cuda``.
        minutes: Time that training may take; None for a number of epochs.
        network: The network's configuration.
        model: The settings of the network that are planned.
    """
    cores, sees = len(os.sched_getaffinity(0)), network.sees
    window = math.prod(model["patch"]) if sees == "volumes" else 0
    batch, why = _batch(device, window)
    yield Choice("training.batch_size", batch, why)
    steps = int(np.clip(25 * math.ceil(fingerprint.of / batch / 25), 25, 200))
    yield Choice("training.steps_per_epoch", steps, _passes(steps * batch, fingerprint.of))
    if minutes is None:
        yield Choice("training.epochs", max(20, math.ceil(2000 / steps)), "about 2000 steps or 20 epochs")
    else:
        yield Choice("training.epochs", 1000, "training.max_minutes ends it")
        yield Choice("training.max_minutes", float(minutes), "asked for; the learning rate falls with it")
    yield Choice("training.workers", workers(cores), f"of {cores} cores")
    pixels = float((fingerprint.shapes.prod(axis=1) * fingerprint.depths).mean())
    each = 4 * (fingerprint.channels + 1) + 1  # bytes: channels and a layer of float32, masks of bool
    needed = math.ceil(fingerprint.of * pixels * each / 2**20 * 1.1)
    limit = max(256, memory_mb() // (4 * max(1, cores // 2)))
    yield Choice(
        "training.cache_mb",
        min(needed, limit),
        f"all training cases decoded are {needed} MB" + (f", of which {limit} fit" if needed > limit else ""),
    )
    cases = min(50, sum(case.split == "validation" for case in dataset.cases))
    if cases and sees == "volumes":
        shown = pixels if pixels <= window else 8 * pixels  # windows overlap by half along each axis
        every = math.ceil(_FORWARD * cases * shown / (_VALIDATION * steps * batch * window))
        yield Choice(
            "training.validate_every",
            every,
            f"{cases} whole volumes take {100 * _VALIDATION:.0f} % of the time, or less",
        )
    yield _stopping(fingerprint, network, minutes, validated=cases > 0)


def _passes(seen: int, cases: int) -> str:
    """Return how often an epoch sees the cases.

    >>> _passes(100, 90), _passes(275, 90)
    ('about once through 90 cases', 'about 3 times through 90 cases: 25 steps at least')
    >>> _passes(400, 2000)
    'about 20 % of 2000 cases: 200 steps at most'
    """
    times = seen / cases
    if times < 0.75:
        return f"about {100 * times:.0f} % of {cases} cases: 200 steps at most"
    if times < 1.5:
        return f"about once through {cases} cases"
    return f"about {times:.0f} times through {cases} cases: 25 steps at least"


def _batch(device: str, window: int) -> tuple[int, str]:
    if device == "cpu":
        return 2, "on cpu"
    if not window:
        return 8, f"on {device}"
    batch = int(np.clip(_BATCH_VOXELS // window, 2, 16))
    return batch, f"windows of about {_BATCH_VOXELS} voxels together, 2 at least"


def _stopping(
    fingerprint: Fingerprint, network: type[NetworkSettings], minutes: float | None, *, validated: bool
) -> Choice:
    if not validated:
        return Choice("training.early_stopping", None, "the card has no validation split")
    if network.learns == "landmarks":
        metric, why = "landmark_quality", "by the landmarks' quality"
    elif mostly_single(fingerprint, network.sees):
        metric, why = "semantic_dice", "mostly one object of a class: by semantic Dice"
    else:
        metric, why = "ap", "several objects per image: by average precision"
    if fingerprint.ndim == 3:
        why += ", of whole volumes"
    if minutes is None:
        patience = 8 if network.learns == "masks" else 1000  # landmarks reach their threshold late
        return Choice("training.early_stopping", {"metric": metric, "patience": patience}, why)
    why += "; the best is kept, and the time ends it: it gets better as the learning rate falls"
    return Choice("training.early_stopping", {"metric": metric, "patience": 1000}, why)

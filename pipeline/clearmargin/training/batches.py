"""The batches of a training, each a function of its step."""

from __future__ import annotations

import logging
import signal
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from clearmargin.datasets.balance import repeat_factors
from clearmargin.datasets.cases import Case, Dataset
from clearmargin.datasets.samples import Windows, collate
from clearmargin.datasets.volume_windows import VolumeWindows
from clearmargin.errors import ClearMarginError
from clearmargin.networks import config_class, encoder, network_config
from clearmargin.report.progress import progress
from clearmargin.training.experiment import Experiment
from clearmargin.training.processes import ProcessGroup
from clearmargin.transforms.settings import VolumeView

__all__ = ["load_batches"]

log = logging.getLogger(__name__)


def load_batches(
    experiment: Experiment,
    dataset: Dataset,
    cases: Sequence[Case],
    first: int,
    total: int,
    group: ProcessGroup,
) -> Iterator[Any]:
    """Return the batches of steps ``first`` to ``total``; a process takes its own share of each step's windows.

    Each batch is what ``collate`` makes of ``batch_size`` windows; ``accumulate`` of them are a step.

    Raises:
        ClearMarginError: A case cannot be read: as it was raised, in whichever process that was.
    """
    settings = experiment.training
    size = settings.batch_size
    passes = settings.accumulate
    windows = _windows(experiment, dataset, cases)
    if experiment.augment.repeat_threshold is not None:
        windows.repeat_by(_repeats(windows, experiment.augment.repeat_threshold))
    firsts = [
        ((step * group.size + group.rank) * passes + k) * size
        for step in range(first, total)
        for k in range(passes)
    ]
    loader = DataLoader(
        _Answers(windows),
        batch_sampler=[list(range(first, first + size)) for first in firsts],
        collate_fn=_collate,
        num_workers=settings.workers,
        pin_memory=torch.cuda.is_available(),
        worker_init_fn=_start_worker,
    )
    return _batches(loader)


class _Answers(TorchDataset[Any]):
    """Windows, or the error in place of one: what a worker raises comes out with its traceback for a message."""

    def __init__(self, windows: Windows) -> None:
        self.windows = windows

    def __getitem__(self, position: int) -> Any:
        try:
            return self.windows[position]
        except ClearMarginError as error:
            return error


def _collate(answers: Sequence[Any]) -> Any:
    return next((a for a in answers if isinstance(a, ClearMarginError)), None) or collate(answers)


def _batches(loader: DataLoader[Any]) -> Iterator[Any]:
    for batch in loader:
        if isinstance(batch, ClearMarginError):
            raise batch
        yield batch


def _windows(experiment: Experiment, dataset: Dataset, cases: Sequence[Case]) -> Windows:
    network = network_config(experiment.model)
    seed, cache = experiment.seed, experiment.training.cache_mb * 2**20
    encode = encoder(network, len(dataset.card.classes))
    shown = (dataset, cases, experiment.image, experiment.augment)
    if isinstance(network, VolumeView):
        at_points = config_class(experiment.model["network"]).learns == "landmarks"
        return VolumeWindows(
            *shown, view=network, at_points=at_points, seed=seed, cache_bytes=cache, encode=encode
        )
    return Windows(*shown, seed=seed, cache_bytes=cache, encode=encode)


def _repeats(windows: Windows, threshold: float) -> NDArray[np.float64]:
    """Return how often each case comes; all are read for it, and the workers start with what the cache has kept."""
    classes = []
    with progress("classes of the cases", len(windows.cases)) as bar:
        for index in range(len(windows.cases)):
            classes.append(windows.classes_of(index))
            bar.advance()
    factors = repeat_factors(classes, threshold)
    log.info(
        "%d of %d cases are repeated, at most %.1f times", (factors > 1).sum(), len(factors), factors.max()
    )
    return factors


def _start_worker(_: int) -> None:
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the main process answers Ctrl-C and ends its workers

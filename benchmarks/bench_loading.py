"""Whether windows come as quickly as an accelerator wants them: ``make bench-loading``.

First, windows a second of one process, cases read anew and cases kept. Then a stand-in takes a batch, is busy for a
while with no core at all, as an accelerator is, and takes the next: the share of the time that it waits for data, with
``training.workers`` of 1 and 2, after 20 steps to fill the queue.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch

from clearmargin.datasets.cases import open_dataset
from clearmargin.datasets.samples import Windows
from clearmargin.training.batches import load_batches
from clearmargin.training.experiment import Experiment, read_experiment
from clearmargin.training.processes import ProcessGroup

STEPS, FIRST = 120, 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", type=Path, default=Path("configs/nuclei_mask_rcnn.yaml"))
    parser.add_argument("--busy-ms", type=float, nargs="+", default=[25, 50, 100])
    parser.add_argument("--batch", type=int, default=4)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    experiment = read_experiment(chosen.config, [f"training.batch_size={chosen.batch}"])
    dataset = open_dataset(Path(experiment.card))
    cases = dataset.split("train")
    windows = Windows(
        dataset,
        cases,
        experiment.image,
        experiment.augment,
        seed=0,
        cache_bytes=experiment.training.cache_mb * 2**20,
    )
    print(f"{len(cases)} cases, windows of {experiment.image.crop}")
    for what in ("read anew", "kept"):
        start = time.process_time()
        for position in range(len(cases)):
            windows[position]
        took = (time.process_time() - start) / len(cases)
        print(
            f"one process, cases {what}: {1 / took:.0f} windows a second ({1000 * took:.1f} ms)", flush=True
        )
    for workers in (1, 2):
        for busy in chosen.busy_ms:
            options = [f"training.batch_size={chosen.batch}", f"training.workers={workers}"]
            wait = waiting(read_experiment(chosen.config, options), busy / 1000)
            print(
                f"{workers} worker(s), a batch of {chosen.batch} every {busy:.0f} ms: waits for {wait:.1%} of the time",
                flush=True,
            )


def waiting(experiment: Experiment, busy: float) -> float:
    """Return the share of the time in which nothing is there to be computed; every case has been seen once before."""
    dataset = open_dataset(Path(experiment.card))
    cases = dataset.split("train")
    warm = len(cases) // experiment.training.batch_size + FIRST
    batches = load_batches(experiment, dataset, cases, 0, warm + STEPS, ProcessGroup())
    for _ in range(warm):
        next(batches)
    waited, start = 0.0, time.perf_counter()
    for _ in range(STEPS):
        before = time.perf_counter()
        next(batches)
        waited += time.perf_counter() - before
        time.sleep(busy)
    return waited / (time.perf_counter() - start)


if __name__ == "__main__":
    main()

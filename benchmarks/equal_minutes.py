"""Train configurations for the same CPU time: ``python benchmarks/equal_minutes.py CONFIG --minutes 20``.

One thread, no workers, and a clock that stands still while other work has the core: what `training.max_minutes`
counts, and what the learning rate follows, is this process's own time. No early stopping: the last weights are kept.
"""

from __future__ import annotations

import argparse
import logging
import time
from pathlib import Path

from clearmargin import train as training


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config", type=Path)
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="a.b=value")
    chosen = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    time.monotonic = time.process_time
    fixed = {
        "threads": 1,
        "workers": 0,
        "epochs": 1000,
        "max_minutes": chosen.minutes,
        "early_stopping": "null",
        "validate_every": 1000,
    }
    overrides = [f"training.{name}={value}" for name, value in fixed.items()] + chosen.overrides
    done = training.train(chosen.config, overrides=overrides)
    print(f"{done.folder}: {done.epochs} epochs in {time.process_time() / 60:.1f} minutes of CPU time")


if __name__ == "__main__":
    main()

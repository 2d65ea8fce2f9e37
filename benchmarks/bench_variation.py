"""Whether varied windows help, by kind: ``python benchmarks/bench_variation.py CONFIG ... --minutes 4 --at-once 4``.

Each configuration is trained once per variant for the same minutes, and judged on its card's test split. Trainings that
run at the same time share the machine alike, so a row is to be held against the rows of the same call alone.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from clearmargin.config import load_settings
from clearmargin.datasets.card import read_card
from clearmargin.training.experiment import Experiment
from clearmargin.transforms.planned import planned_transforms

STILL = {
    "flip_x": False, "flip_y": False, "rotate90": False, "rotate_degrees": 0, "scale": 1.0, "brightness": 0,
    "contrast": 0, "gamma": 0, "noise": 0,
}  # fmt: skip
GREYS = ("brightness", "contrast", "gamma", "noise")
ELASTIC = {"Rand2DElasticd": {"prob": 0.3, "spacing": [32, 32], "magnitude_range": [0, 2]}}
DROPOUT = {"RandCoarseDropoutd": {"prob": 0.3, "holes": 4, "spatial_size": [16, 16]}}


def variants(modality: str) -> dict[str, dict[str, object]]:
    """Return settings of ``augment`` by the variant's name; what they do not name is as the configuration says."""
    return {
        "none": STILL,
        "grey levels": {k: v for k, v in STILL.items() if k not in GREYS},
        "geometry": {k: STILL[k] for k in GREYS},
        "short list": {},
        "short list, planned": {"transforms": list(planned_transforms(modality).transforms)},
        "short list, elastic": {"transforms": [ELASTIC]},
        "short list, dropout": {"transforms": [DROPOUT]},
    }


def measure(config: Path, variant: str, options: argparse.Namespace) -> dict[str, object]:
    """Train and judge one variant in this process; return its row."""
    from clearmargin import train as training
    from clearmargin.evaluate import evaluate

    path = Path(load_settings(config, Experiment).card)
    card, _ = read_card(path)
    settings = {
        "name": f"{config.stem}_{variant.replace(', ', '_').replace(' ', '_')}",
        "training.epochs": 1000, "training.max_minutes": options.minutes, "training.workers": 0,
        "training.threads": options.threads, "training.early_stopping": "null", "training.validate_every": 1000,
    } | {f"augment.{key}": value for key, value in variants(card.modality)[variant].items()}  # fmt: skip
    overrides = [f"{k}={v if isinstance(v, str) else json.dumps(v)}" for k, v in settings.items()]
    done = training.train(config, overrides=overrides, runs=options.out / "runs", track=False)
    flat = evaluate(done.model, path, track=False, gallery=0).flat()
    keys = [k for k in flat if k in ("ap", "ap50", "pq", "semantic_dice") or k.startswith("all/nsd_2")]
    return {"set": config.stem, "variant": variant, "epochs": done.epochs} | {
        k: round(flat[k], 4) for k in keys
    }


def run(config: Path, variant: str, options: argparse.Namespace) -> dict[str, object]:
    """Measure one variant in a process of its own."""
    command = [sys.executable, __file__, str(config), "--variant", variant, "--minutes", str(options.minutes),
               "--threads", str(options.threads), "--out", str(options.out)]  # fmt: skip
    environment = os.environ | {"OMP_NUM_THREADS": str(options.threads)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        return {"set": config.stem, "variant": variant, "error": done.stderr.strip()[-300:]}
    row: dict[str, object] = json.loads(done.stdout.splitlines()[-1])
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("configs", type=Path, nargs="+")
    parser.add_argument("--minutes", type=float, default=4)
    parser.add_argument("--at-once", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--variant", help="measure this one here and print its row")
    parser.add_argument("--out", type=Path, default=Path("variation"))
    options = parser.parse_args()
    if options.variant:
        print(json.dumps(measure(options.configs[0], options.variant, options)))
        return
    todo = [(config, variant) for config in options.configs for variant in variants("")]
    options.out.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(options.at_once) as pool:
        for row in pool.map(lambda one: run(*one, options), todo):
            print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()

"""Whether varied windows help, by kind: ``python benchmarks/bench_variation.py CONFIG ... --minutes 4 --at-once 4``.

Each configuration is trained once per variant for the same minutes, and judged on its card's test split. Trainings that
run at the same time share the machine alike, so a row is to be held against the rows of the same call alone.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

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


def run(
    config: Path, variant: str, settings: dict[str, object], options: argparse.Namespace
) -> dict[str, object]:
    """Train and judge one variant in a process of its own; return its row."""
    name = f"{config.stem}_{variant.replace(', ', '_').replace(' ', '_')}"
    overrides = {
        "name": name, "training.epochs": 1000, "training.max_minutes": options.minutes, "training.workers": 0,
        "training.threads": options.threads, "training.early_stopping": "null", "training.validate_every": 1000,
    } | {f"augment.{key}": value for key, value in settings.items()}  # fmt: skip
    command = [sys.executable, "-m", "clearmargin.cli"]
    environment = os.environ | {"OMP_NUM_THREADS": str(options.threads)}
    out = options.out / name
    sets: list[str] = []
    for key, value in overrides.items():
        sets += ["--set", f"{key}={value if isinstance(value, str) else json.dumps(value)}"]
        part
        for k, v in overrides.items()
        for part in ("--set", f"{k}={v if isinstance(v, str) else json.dumps(v)}")
    ]
    training = [*command, "train", str(config), "--runs", str(options.out / "runs"), *sets]
    done = subprocess.run(training, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        return {"set": config.stem, "variant": variant, "error": done.stderr.strip()[-300:]}
    (folder,) = (options.out / "runs").glob(f"{name}*")
    judged = subprocess.run(
        [*command, "evaluate", str(folder), "--card", str(options.card[config]), "--split", "test", "--gallery", "0",
         "--no-track", "--out", str(out)],
        capture_output=True, text=True, env=environment, check=False,
    )  # fmt: skip
    if judged.returncode:
        return {"set": config.stem, "variant": variant, "error": judged.stderr.strip()[-300:]}
    numbers = json.loads((out / "numbers.json").read_text())["numbers"]
    epochs = len(re.findall(r"^epoch \d+:", done.stderr + done.stdout, re.M))
    keys = [k for k in ("ap", "ap50", "pq", "semantic_dice") if k in numbers]
    keys += [k for k in numbers if k.startswith("all/nsd_2")]
    return {"set": config.stem, "variant": variant, "epochs": epochs} | {
        k: round(numbers[k], 4) for k in keys
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("configs", type=Path, nargs="+")
    parser.add_argument("--minutes", type=float, default=4)
    parser.add_argument("--at-once", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", nargs="*", default=[], metavar="VARIANT")
    parser.add_argument("--out", type=Path, default=Path("variation"))
    options = parser.parse_args()
    from clearmargin.config import load_settings

    options.card, todo = {}, []
    for config in options.configs:
        options.card[config] = Path(load_settings(config, Experiment).card)
        card, _ = read_card(options.card[config])
        todo += [
            (config, v, s)
            for v, s in variants(card.modality).items()
            if not options.only or v in options.only
        ]
    options.out.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(options.at_once) as pool:
        rows = list(pool.map(lambda one: run(*one, options), todo))
    for row in rows:
        print(json.dumps(row), flush=True)
    (options.out / "rows.json").write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()

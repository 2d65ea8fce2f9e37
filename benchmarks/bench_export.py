"""What an exported Mask R-CNN costs beside eager torch, picture in, instances out: ``make bench-export``.

On the CPU, at 512 x 512 with at most 20 instances, with as many threads for each. Rounds are interleaved, so that
whatever else the machine does meets all. Pictures are parts of a card's validation images. The network is
``MaskRCNNConfig``'s own with those two numbers (and what ``--set`` says), after 100 short steps on the card, or
``--model``'s; what is exported has passed the parity gate on the card.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import tempfile
import time
from pathlib import Path

import torch
import yaml

from clearmargin.core import Grid, Image
from clearmargin.datasets.cases import open_dataset
from clearmargin.export import export
from clearmargin.models import load_segmenter
from clearmargin.models.clock import Clock
from clearmargin.models.runtimes import RUNTIMES
from clearmargin.models.segmenter import NetworkSegmenter
from clearmargin.train import train

SIDE, INSTANCES = 512, 20
REST = 0.05  # seconds after which the threads of the runtime before have ceased to wait by spinning
STAGES = ("transform", "network", "masks")


def trained(card: Path, place: Path, overrides: list[str]) -> Path:
    """Train the default network for 100 steps of two windows of 128 pixels; return the model folder."""
    settings = {
        "name": "bench",
        "card": str(card.resolve()),
        "model": {"network": "mask_rcnn", "detections": INSTANCES},
        "image": {"intensity": {"kind": "percentiles", "low": 0.5, "high": 99.5}, "crop": [128, 128]},
        "training": {
            "epochs": 1,
            "steps_per_epoch": 100,
            "batch_size": 2,
            "learning_rate": 0.001,
            "warmup_steps": 10,
            "validation_cases": 1,
            "ema": 0.95,
            "workers": 0,
            "threads": 1,
        },
    }
    (place / "bench.yaml").write_text(yaml.safe_dump(settings))
    return train(place / "bench.yaml", runs=place / "runs", overrides=overrides).model


def pictures(card: Path) -> list[Image]:
    """The middle of each validation image that is large enough."""
    dataset = open_dataset(card)
    found = []
    for case in dataset.split("validation"):
        image = dataset.read(case)[0]
        if image.grid.ndim == 2 and min(image.grid.shape) >= SIDE:
            y, x = ((n - SIDE) // 2 for n in image.grid.shape)
            pixels = image.pixels[:, y : y + SIDE, x : x + SIDE]
            found.append(Image(pixels=pixels, grid=Grid.from_spacing((SIDE, SIDE)), source=image.source))
    return found


def limited(model: Path, place: Path) -> Path:
    """Copy a model folder, with at most 20 instances an image."""
    copy = place / "model"
    copy.mkdir()
    shutil.copy(model / "weights.safetensors", copy)
    settings = yaml.safe_load((model / "model.yaml").read_text())
    settings["model"]["detections"] = INSTANCES
    (copy / "model.yaml").write_text(yaml.safe_dump(settings, sort_keys=False))
    return copy


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--card", type=Path, default=Path("data_cards/dsb2018_nuclei.yaml"))
    parser.add_argument("--model", type=Path, help="a model folder of mask_rcnn; it is copied")
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="a.b=value")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--threshold", type=float, default=0.2, help="least score of an instance")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{place / 'mlflow.db'}"
        model = (
            limited(options.model, place)
            if options.model
            else trained(options.card, place, options.overrides)
        )
        for name in RUNTIMES:
            export(model, options.card, format=name, cases=4)
        every = {name: load_segmenter(model, device="cpu", runtime=name) for name in ("torch", *RUNTIMES)}
        compare(
            {name: one.with_threshold(options.threshold) for name, one in every.items()},
            pictures(options.card),
            options.rounds,
        )


def compare(segmenters: dict[str, NetworkSegmenter], shown: list[Image], rounds: int) -> None:
    seconds: dict[str, list[float]] = {name: [] for name in segmenters}
    spans: dict[str, list[dict[str, float]]] = {name: [] for name in segmenters}
    counts = []
    for number in range(-2, rounds):  # two to warm up
        image = shown[number % len(shown)]
        order = list(segmenters)[:: 1 if number % 2 else -1]
        for name in order:
            clock = Clock()
            one = segmenters[name].timed(clock)
            time.sleep(REST)
            start = time.perf_counter()
            found = one(image)
            if number >= 0:
                seconds[name].append(time.perf_counter() - start)
                spans[name].append(clock.seconds)
                counts.append(len(found.instances))
    print(
        f"{torch.get_num_threads()} thread(s), {SIDE} x {SIDE}, {min(counts)} to {max(counts)} instances, "
        f"medians of {rounds} rounds, ms"
    )
    for name, times in seconds.items():
        stages = (statistics.median(span.get(stage, 0.0) for span in spans[name]) for stage in STAGES)
        ratio = statistics.median(a / b for a, b in zip(seconds["torch"], times, strict=True))
        print(
            f"{name:<10} {1000 * statistics.median(times):7.1f} "
            + " ".join(f"{stage} {1000 * s:.1f}" for stage, s in zip(STAGES, stages, strict=True))
            + f"   {ratio:.2f} times as fast as torch"
        )


if __name__ == "__main__":
    main()

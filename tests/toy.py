"""A toy data set and experiment: bright discs on noise, learnt in seconds."""

import csv
import os
from pathlib import Path

import numpy as np
import yaml

from clearmargin.core import Grid
from clearmargin.formats.raster import write_raster
from clearmargin.formats.volume import write_volume
from clearmargin.train import train

CLASSES = [
    {
        "id": 1,
        "name": "disc",
        "type": {"value": "108369006", "meaning": "Tumor"},
        "category": {"value": "49755003", "meaning": "Morphologically Altered Structure"},
    }
]


def write_toy_set(folder, *, cases=8, empty_train=False, shape=(96, 128), seed=0):
    """Write pictures of one to three discs with label images; return the card's path."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    splits = ["train"] * (cases - 3) + ["validation", "calibration", "test"]
    y, x = np.mgrid[: shape[0], : shape[1]]
    with (folder / "index.csv").open("w", newline="") as stream:
        rows = csv.writer(stream)
        rows.writerow(["id", "split"])
        for k, split in enumerate(splits):
            rows.writerow([f"t{k}", "test" if empty_train and split == "train" else split])
            labels = np.zeros(shape, np.uint16)
            for value in range(1, int(rng.integers(2, 4))):
                radius = rng.uniform(10, 16)
                centre = rng.uniform(radius, np.array(shape) - radius)
                labels[(y - centre[0]) ** 2 + (x - centre[1]) ** 2 < radius**2] = value
            pixels = rng.normal(60, 10, shape) + 120 * (labels > 0)
            write_raster(folder / f"t{k}.png", np.clip(pixels, 0, 255).astype(np.uint8))
            write_raster(folder / f"t{k}_labels.png", labels)
    card = {
        "schema": 1,
        "name": "toy",
        "version": "1",
        "title": "Toy discs",
        "origin": "made by the tests",
        "licence": "CC0-1.0",
        "citation": "none",
        "modality": "OT",
        "classes": CLASSES,
        "root": ".",
        "cases": {
            "index": "index.csv",
            "id": "{id}",
            "image": "{id}.png",
            "reference": "{id}_labels.png",
            "group": "{id}",
        },
        "encoding": {"kind": "label_image", "label": "disc"},
        "spacing": {"source": "unknown"},
        "group": "image",
        "splits": {
            "column": "split",
            "values": {s: s for s in ("train", "validation", "calibration", "test")},
        },
        "show_in_tracking": True,
    }
    path = folder / "card.yaml"
    path.write_text(yaml.safe_dump(card))
    return path


def write_toy_volumes(
    folder,
    spacing=(1.0, 1.0, 1.0),
    shape=(36, 50, 35),
    boxes=((10, 10, 8, 10, 12, 12),),
    others=None,
    cases=6,
):
    """A data set of volumes with boxes ``(z, y, x, depth, height, width)``; half of them in other voxels."""
    rng = np.random.default_rng(0)
    card = yaml.safe_load(write_toy_set(folder, cases=cases).read_text())
    labels = np.zeros(shape, np.uint8)
    for value, (z, y, x, depth, height, width) in enumerate(boxes, start=1):
        labels[z : z + depth, y : y + height, x : x + width] = value
    for k in range(cases):
        grid = Grid.from_spacing(shape, others if others and k % 2 else spacing)
        pixels = (rng.normal(50, 5, shape) + 50 * (labels > 0)).astype(np.int16)
        write_volume(folder / f"t{k}.nii.gz", pixels, grid)
        write_volume(folder / f"t{k}_labels.nii.gz", labels, grid)
    card["cases"] |= {"image": "{id}.nii.gz", "reference": "{id}_labels.nii.gz"}
    card |= {
        "encoding": {"kind": "label_volume", "values": dict.fromkeys(range(1, len(boxes) + 1), "disc")},
        "spacing": {"source": "file"},
    }
    (folder / "card.yaml").write_text(yaml.safe_dump(card))
    return folder / "card.yaml"


def write_toy_experiment(folder, card, **training):
    """Write the configuration of a very small network; return its path."""
    experiment = {
        "name": "toy",
        "card": str(card),
        "model": {
            "network": "mask_rcnn",
            "fpn_channels": 32,
            "box_features": 64,
            "mask_channels": 32,
            "rpn_proposals": 40,
            "box_samples": 32,
            "anchor_sizes": [16, 24, 32, 48, 64],
        },
        "image": {"intensity": {"kind": "window", "low": 0, "high": 255}, "crop": [64, 64]},
        "training": {
            "epochs": 2,
            "steps_per_epoch": 3,
            "batch_size": 2,
            "warmup_steps": 2,
            "workers": 0,
            "threads": 1,
            **training,
        },
    }
    path = folder / "toy.yaml"
    path.write_text(yaml.safe_dump(experiment))
    return path


def train_toy(folder):
    """Write the toy set below a folder and train on it for three steps; return folder, card and model folder."""
    before = Path.cwd()
    os.chdir(folder)  # runs are made in the working directory
    try:
        card = write_toy_set(folder / "data")
        model = train(write_toy_experiment(folder, card, epochs=1)).model.resolve()
    finally:
        os.chdir(before)
    return folder, card, model

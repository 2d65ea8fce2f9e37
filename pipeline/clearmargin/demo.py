"""The demonstration: phantoms are made, a network is trained on them, measured, and shown a study and a clip."""

from __future__ import annotations

import logging
import shutil
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from clearmargin.core import InstanceSet
from clearmargin.datasets.phantom import DISPLAY_WINDOW, PHANTOM_LABELS, make_clip, make_phantom
from clearmargin.datasets.phantom_study import write_phantom_study
from clearmargin.errors import ConfigError
from clearmargin.files import csv_rows, whole, write_text
from clearmargin.formats.video import write_video
from clearmargin.report.progress import progress

__all__ = ["demo", "make_demo_data"]

log = logging.getLogger(__name__)

_SPLITS = {"train": 14, "validation": 2, "calibration": 2, "test": 4}
_CLASSES = ("organ", "tumour")
_STEPS, _EPOCH = 480, 60


def demo(out: Path, *, steps: int | None = None) -> str:
    """Run the whole path below ``out`` and return the results, in lines.

    Args:
        out: A folder; an earlier demonstration in it is replaced, anything else is refused.
        steps: Training steps; None for as many as take about four minutes on two cores.
    """
    from clearmargin.evaluate import evaluate
    from clearmargin.predict import predict
    from clearmargin.train import train

    started = time.monotonic()
    _clear(out)
    card = make_demo_data(out / "data")
    config = out / "demo.yaml"
    write_text(config, yaml.safe_dump(_experiment(card, steps or _STEPS), sort_keys=False))
    log.info("training on %d phantoms", _SPLITS["train"])
    trained = train(config, runs=out / "runs")
    evaluation = evaluate(trained.model, card, split="test", out=out / "evaluation")
    study = sorted((out / "data").glob("phantom-*"))[-1] / "ct"
    volume = predict(study, out / "predictions", model=trained.model, uncertainty="tta").done[0]
    clip = predict(
        out / "data" / "clip.mp4",
        out / "predictions",
        model=trained.model,
        uncertainty="tta",
        display_window=True,
    ).done[0]
    numbers = evaluation.flat()
    return "\n".join(
        [
            "",
            f"test: {evaluation.counts['cases']} phantoms never seen in training or validation",
            f"  tumour masks in slices: AP50 {numbers['slices/ap50/tumour']:.3f}, AP {numbers['slices/ap/tumour']:.3f}",
            f"  matched instances: HD95 {numbers.get('matched/hd95', float('nan')):.1f} mm, "
            f"NSD at 2 mm {numbers.get('matched/nsd_2mm', 0):.3f}; "
            f"true positives {evaluation.counts['tp']}, false negatives {evaluation.counts['fn']}, "
            f"false positives {evaluation.counts['fp']}",
            f"study: {_count(volume.by_class)} -> {volume.folder} (SEG, SR, map, table, overlays)",
            f"clip: {_count(clip.by_class)} over all frames -> {clip.folder} (overlay.mp4, instances.csv)",
            f"{(time.monotonic() - started) / 60:.1f} minutes; research software, not for diagnosis or treatment",
            "see the run: clearmargin review",
        ]
    )


def make_demo_data(folder: Path) -> Path:
    """Write the phantom studies, the clip, their index and card; return the card's path."""
    folder.mkdir(parents=True)
    names = [split for split, count in _SPLITS.items() for _ in range(count)]
    with ProcessPoolExecutor() as pool, progress("phantoms", len(names)) as bar:
        for _ in pool.map(_make_study, [folder] * len(names), range(1, len(names) + 1)):
            bar.advance()
    clip = make_clip(seed=9001)
    write_video(folder / "clip.mp4", np.moveaxis(clip.frames, -1, 1), clip.frame_rate, quality=4)
    rows = [[f"phantom-{number:03d}", split] for number, split in enumerate(names, start=1)]
    with whole(folder / "index.csv") as draft, draft.open("w", newline="", encoding="utf-8") as stream:
        csv_rows(stream, [["id", "split"], *rows])
    card = folder / "card.yaml"
    write_text(card, yaml.safe_dump(_card(), sort_keys=False))
    return card


def _make_study(folder: Path, number: int) -> None:
    phantom = make_phantom(seed=number)
    indices = [
        i
        for i, label in enumerate(phantom.reference.labels)
        if PHANTOM_LABELS.by_id(int(label)).name in _CLASSES
    ]
    reference: InstanceSet = phantom.reference.select(indices)
    write_phantom_study(folder, replace(phantom, reference=reference), number)


def _card() -> dict[str, Any]:
    classes = [c for c in PHANTOM_LABELS.classes if c.name in _CLASSES]
    return {
        "schema": 1,
        "name": "phantom_ct",
        "version": "1",
        "title": "Phantom abdominal CT, made by clearmargin demo",
        "origin": "computed; no patient",
        "licence": "Apache-2.0",
        "citation": "Clear Margin",
        "modality": "CT",
        "classes": [
            {
                "id": c.id,
                "name": c.name,
                "kind": c.kind,
                "type": vars(c.codes[1]),
                "category": vars(c.codes[0]),
            }
            for c in classes
        ],
        "root": ".",
        "cases": {
            "index": "index.csv",
            "id": "{id}",
            "image": "{id}/ct",
            "reference": "{id}/truth.dcm",
            "group": "{id}",
        },
        "encoding": {"kind": "dicom_seg"},
        "spacing": {"source": "file"},
        "group": "patient",
        "splits": {"column": "split", "values": {name: name for name in _SPLITS}},
        "show_in_tracking": True,
    }


def _experiment(card: Path, steps: int) -> dict[str, Any]:
    epoch = min(_EPOCH, steps)
    return {
        "name": "demo",
        "card": str(card),
        "model": {
            "network": "mask_rcnn",
            "separable": False,  # after so few steps dense convolutions know more
            "fpn_channels": 64,
            "anchor_sizes": [8, 16, 32, 64, 128],
            "rpn_proposals": 100,
            "box_samples": 64,
            "mask_channels": 64,
            "detections": 30,
        },
        "image": {
            "intensity": {"kind": "window", "low": DISPLAY_WINDOW[0], "high": DISPLAY_WINDOW[1]},
            "crop": [128, 128],
        },
        # A CT's patient lies on his back: no mirrored or turned anatomy
        "augment": {"flip_y": False, "flip_x": False, "rotate90": False, "rotate_degrees": 10, "scale": 1.2},
        "training": {
            "epochs": max(1, steps // epoch),
            "steps_per_epoch": epoch,
            "batch_size": 4,
            "validate_every": 4,
            "early_stopping": {"metric": "ap50", "patience": 20},
        },
    }


def _clear(out: Path) -> None:
    if out.exists() and any(out.iterdir()) and not (out / "demo.yaml").exists():
        raise ConfigError(f"'{out}' is not empty and holds no earlier demonstration: name another folder")
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)


def _count(by_class: dict[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in by_class.items())

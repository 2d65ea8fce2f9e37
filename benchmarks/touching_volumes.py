"""Objects of a class that touch in space, in several ways: ``python benchmarks/touching_volumes.py balls --minutes 2``.

It writes volumes of touching ellipsoids (``balls``), or of the phantom organ with touching tumours (``organ``), plans
``semantic_cc_3d`` and ``mask_rcnn_3d`` for them, trains each for the same CPU time, the former with each kind of
targets, and counts splits and merges on the test volumes. One thread, and a clock that counts this process's own time,
as in ``equal_minutes.py``.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Literal

import numpy as np
import yaml
from numpy.typing import NDArray

from clearmargin import train as training
from clearmargin.core import Grid
from clearmargin.datasets.cases import open_dataset
from clearmargin.datasets.phantom import make_phantom
from clearmargin.formats.volume import write_volume
from clearmargin.metrics.counting import split_and_merge
from clearmargin.metrics.matching import match_instances
from clearmargin.metrics.panoptic import panoptic_quality
from clearmargin.models import load_segmenter
from clearmargin.plan import plan

WAYS = {
    "classes": "semantic_cc_3d",
    "border": "semantic_cc_3d",
    "distance": "semantic_cc_3d",
    "mask_rcnn_3d": "mask_rcnn_3d",
}
"""Targets, or a network that needs none of them, and its network."""
SPLITS = ("train",) * 16 + ("validation",) * 2 + ("test",) * 8
SPACING = (2.0, 1.0, 1.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("phantom", choices=["balls", "organ"])
    parser.add_argument("--minutes", type=float, default=2)
    parser.add_argument("--ways", nargs="*", default=list(WAYS), choices=list(WAYS), metavar="WAY")
    parser.add_argument("--out", type=Path, default=Path("touching"))
    chosen = parser.parse_args()
    card = write_set(chosen.out / chosen.phantom, chosen.phantom)
    time.monotonic = time.process_time
    print("way           TP  FN  FP  splits merges  PQ     minutes")
    for way in chosen.ways:
        planned = plan(card, network=WAYS[way], device="cpu", minutes=chosen.minutes)
        for name in ("targets", "anchors"):
            if name in planned.experiment.model:
                print(f"planned: {planned.experiment.model[name]}, {planned.reasons[f'model.{name}']}")
        print(f"{way:12s} {row(planned.experiment, card, way, chosen.minutes, chosen.out)}", flush=True)


def row(planned: training.Experiment, card: Path, way: str, minutes: float, out: Path) -> str:
    """Train in one way, and return what it makes of the test volumes."""
    settings = {"threads": 1, "workers": 0, "max_minutes": minutes, "early_stopping": None}
    experiment = planned.model_copy(
        update={
            "name": f"{planned.name}_{way}",
            "model": planned.model if way == WAYS[way] else planned.model | {"targets": way},
            "training": planned.training.model_copy(update=settings | {"validate_every": 1000}),
        }
    )
    before = time.process_time()
    done = training.train(experiment, runs=out / "runs", track=False)
    spent = (time.process_time() - before) / 60
    segmenter, dataset = load_segmenter(done.model), open_dataset(card)
    tp = fn = fp = splits = merges = 0
    pairs = []
    for case in dataset.split("test"):
        image, reference = dataset.read(case)
        predicted = segmenter(image).instances
        matches = match_instances(predicted, reference)
        tp, fn = tp + len(matches.pairs), fn + len(matches.false_negatives)
        fp += len(matches.false_positives)
        errors = split_and_merge(predicted, reference)
        splits, merges = splits + errors.splits, merges + errors.merges
        pairs.append((predicted, reference))
    pq = panoptic_quality(pairs).pq
    return f"{tp:4d}{fn:4d}{fp:4d}{splits:7d}{merges:7d}  {pq:.3f}  {spent:.1f}"


def write_set(folder: Path, phantom: Literal["balls", "organ"]) -> Path:
    """Write the volumes, and a card that names them."""
    folder.mkdir(parents=True, exist_ok=True)
    make = balls if phantom == "balls" else organ
    names = ["id,split"]
    most = 0
    for k, split in enumerate(SPLITS):
        pixels, labels, grid = make(k)
        most = max(most, int(labels.max()))
        write_volume(folder / f"{k}.nii.gz", pixels, grid)
        write_volume(folder / f"{k}_labels.nii.gz", labels, grid)
        names.append(f"{k},{split}")
    (folder / "index.csv").write_text("\n".join(names) + "\n")
    code = {"value": "108369006", "meaning": "Neoplasm"}
    category = {"value": "49755003", "meaning": "Morphologically Abnormal Structure"}
    card = {
        "schema": 1, "name": phantom, "version": "1", "title": f"Touching objects: {phantom}", "origin": "made here",
        "licence": "CC0-1.0", "citation": "none", "modality": "CT", "root": ".",
        "classes": [{"id": 1, "name": "lesion", "type": code, "category": category}],
        "cases": {"index": "index.csv", "id": "{id}", "image": "{id}.nii.gz", "reference": "{id}_labels.nii.gz",
                  "group": "{id}"},
        "encoding": {"kind": "label_volume", "values": dict.fromkeys(range(1, most + 1), "lesion")},
        "spacing": {"source": "file"}, "group": "patient", "show_in_tracking": True,
        "splits": {"column": "split", "values": {s: s for s in ("train", "validation", "test")}},
    }  # fmt: skip
    path = folder / "card.yaml"
    path.write_text(yaml.safe_dump(card))
    return path


def balls(seed: int) -> tuple[NDArray[np.int16], NDArray[np.int16], Grid]:
    """Return a volume of 9 to 14 ellipsoids in heaps, in voxels of 2 x 1 x 1 mm: values, instances, grid."""
    rng = np.random.default_rng(seed)
    shape = (24, 64, 64)
    where = np.stack([(i + 0.5) * s for i, s in zip(np.indices(shape), SPACING, strict=True)], -1)
    room = np.array(shape) * SPACING
    beyond: list[NDArray[np.float64]] = []
    heaps = [rng.uniform(0.25, 0.75, 3) * room for _ in range(3)]
    for k in range(int(rng.integers(9, 15))):
        radii = rng.uniform(5, 9) * rng.uniform(0.8, 1.2, 3)
        centre = heaps[k % 3] + rng.normal(0, 9, 3)
        beyond.append(np.linalg.norm((where - centre) / radii, axis=-1) - 1)
    depth = np.stack(beyond)
    labels = np.where(depth.min(0) < 0, depth.argmin(0) + 1, 0)
    for number in range(1, len(beyond) + 1):  # what others leave of one may be a sliver
        if (labels == number).sum() < 60:
            labels[labels == number] = 0
    value = 40 + 8 * (np.arange(len(beyond) + 1) % 3)  # neighbours differ by less than the noise
    pixels = np.where(labels > 0, value[labels], 0) + rng.normal(0, 15, shape)
    return pixels.astype(np.int16), labels.astype(np.int16), Grid.from_spacing(shape, SPACING)


def organ(seed: int) -> tuple[NDArray[np.int16], NDArray[np.int16], Grid]:
    """Return the phantom abdomen in voxels of 3 mm and its tumours: values, instances, grid."""
    phantom = make_phantom(
        seed, shape=(48, 80, 80), spacing=(3.0, 3.0, 3.0), tumours=(12, 18), tumour_radius_mm=(8, 20)
    )
    labels = np.zeros(phantom.image.grid.shape, np.int16)
    tumours = [
        m for m, label in zip(phantom.reference.masks, phantom.reference.labels, strict=True) if label == 2
    ]
    for number, mask in enumerate(tumours, start=1):
        labels[mask.slices][mask.crop] = number
    return phantom.image.pixels[0], labels, phantom.image.grid


if __name__ == "__main__":
    main()

"""Write matching.json: true and false positives and misses of label images, as StarDist counts them.

Run from the repository's root, with numpy and stardist:

    python tests/golden/matching.py
"""

from __future__ import annotations

import json
from importlib.metadata import version
from pathlib import Path

import numpy as np
from stardist.matching import matching_dataset

IOUS = (0.5, 0.6, 0.7, 0.8, 0.9)


def discs(seed, count, jitter, others):
    """Return a label image of discs, and one of the same discs moved and resized, some left out, others added."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:96, :96]
    truth, predicted = np.zeros((96, 96), np.uint16), np.zeros((96, 96), np.uint16)
    for k in range(1, count + 1):
        centre, radius = rng.uniform(8, 88, 2), rng.uniform(4, 9)
        truth[(y - centre[0]) ** 2 + (x - centre[1]) ** 2 < radius**2] = k
        if rng.random() < 0.8:
            centre, radius = centre + rng.normal(0, jitter, 2), radius + rng.normal(0, jitter)
            predicted[(y - centre[0]) ** 2 + (x - centre[1]) ** 2 < max(radius, 2) ** 2] = k
    for k in range(count + 1, count + others + 1):
        centre = rng.uniform(8, 88, 2)
        predicted[(y - centre[0]) ** 2 + (x - centre[1]) ** 2 < 16] = k
    return truth, predicted


def runs(labels):
    """Return values and lengths of a label image's runs, row by row."""
    flat = labels.ravel()
    starts = np.flatnonzero(np.append(True, flat[1:] != flat[:-1]))
    lengths = np.diff(np.append(starts, flat.size))
    return [flat[starts].tolist(), lengths.tolist()]


def main():
    images = [discs(seed, 8 + seed, jitter, seed % 3) for seed, jitter in enumerate((0.3, 0.6, 1.0, 1.5))]
    counted = matching_dataset(
        [truth for truth, _ in images],
        [predicted for _, predicted in images],
        thresh=IOUS,
        show_progress=False,
    )
    content = {
        "made_by": f"stardist {version('stardist')}, python tests/golden/matching.py",
        "counts": [
            {
                "iou": c.thresh,
                **{n: int(getattr(c, n)) for n in ("tp", "fp", "fn")},
                **{
                    n: float(getattr(c, n))
                    for n in ("precision", "recall", "f1", "accuracy", "panoptic_quality")
                },
            }
            for c in counted
        ],
        "runs": [[runs(side) for side in pair] for pair in images],
    }
    text = json.dumps(content, separators=(",", ":"))
    Path(__file__).with_suffix(".json").write_text(text + "\n")


if __name__ == "__main__":
    main()

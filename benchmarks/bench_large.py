"""Seconds and peak memory for a 12-megapixel picture with 300 instances: ``python benchmarks/bench_large.py``.

Each line is a process of its own: its peak resident memory is its own, libraries included. ``mask_rcnn`` has its
pretrained backbone and untrained heads, so its figures are of the work, not of what is found.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable

import numpy as np
from bright_parts import BrightParts

SHAPE = (3000, 4000)
INSTANCES = 300
TILE, OVERLAP = (1024, 1024), 128


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--measure", choices=CASES, help="measure one case in this process")
    chosen = parser.parse_args()
    if chosen.measure:
        CASES[chosen.measure]()
        return
    print(f"{SHAPE[0]} x {SHAPE[1]} x 3, {INSTANCES} objects, tiles of {TILE} that share {OVERLAP}")
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    for name in CASES:
        done = subprocess.run([sys.executable, __file__, "--measure", name], env=environment, check=False)
        if done.returncode:
            print(f"{name:<24} ended with {done.returncode}")


def picture() -> np.ndarray:
    """Discs on noise, ``(3, Y, X)`` uint8: radii from 20 to 60, one in each cell of a grid; 300 in all."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 60, (3, *SHAPE), dtype=np.uint8)
    cells = [(y, x) for y in range(15) for x in range(20)]
    for row, column in cells[:INSTANCES]:
        radius = int(rng.integers(20, 61))
        cy, cx = (int(c * 200 + 65 + rng.integers(0, 70)) for c in (row, column))
        y, x = np.ogrid[-radius : radius + 1, -radius : radius + 1]
        disc = y**2 + x**2 <= radius**2
        pixels[:, cy - radius : cy + radius + 1, cx - radius : cx + radius + 1][:, disc] = 200
    return pixels


def measure(name: str, network: object, *, tile: tuple[int, int] | None, views: int = 0) -> None:
    import torch

    from clearmargin.core import Code, Grid, Image, LabelClass, LabelMap, Provenance
    from clearmargin.models.segmenter import PlaneSegmenter
    from clearmargin.models.settings import PredictionSettings
    from clearmargin.sampling.samples import augmented, tta_views
    from clearmargin.transforms.settings import ImageSettings, Window

    torch.set_num_threads(1)
    code = Code(value="4421005", scheme="SCT", meaning="Cell")
    segmenter = PlaneSegmenter(
        network=network,
        image=ImageSettings(intensity=Window(low=0, high=255)),
        label_map=LabelMap((LabelClass(id=1, name="cell", type=code, category=code),)),
        provenance=Provenance(model=name, weights_sha256="0" * 64, config_sha256="0" * 64, software="bench"),
        device=torch.device("cpu"),
        choice=PredictionSettings(score_threshold=0.0, tile=tile, tile_overlap=OVERLAP),
    )
    image = Image(pixels=picture(), grid=Grid.from_spacing(SHAPE))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    start = time.perf_counter()
    chosen = tta_views(segmenter.augment)[:views]
    found = augmented(segmenter, chosen)(image) if chosen else segmenter(image)
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(
        f"{name:<24} {len(found.instances):>5} instances {seconds:7.1f} s   peak {peak:5.2f} GiB "
        f"({before:.2f} with the libraries and the picture alone)",
        flush=True,
    )


def mask_rcnn() -> object:
    import torch

    from clearmargin.networks import build_network, network_config

    torch.manual_seed(0)
    settings = {"network": "mask_rcnn", "detections": INSTANCES, "score_threshold": 0.0}
    return build_network(network_config(settings), classes=1, channels=3, pretrained=True)


CASES: dict[str, Callable[[], None]] = {
    "discs, tiles": lambda: measure("discs, tiles", BrightParts(0, 28), tile=TILE),
    "discs, whole": lambda: measure("discs, whole", BrightParts(0, 28), tile=None),
    "discs, tiles, 4 views": lambda: measure("discs, tiles, 4 views", BrightParts(0, 28), tile=TILE, views=4),
    "mask_rcnn, tiles": lambda: measure("mask_rcnn, tiles", mask_rcnn(), tile=TILE),
    "mask_rcnn, whole": lambda: measure("mask_rcnn, whole", mask_rcnn(), tile=None),
}


if __name__ == "__main__":
    main()

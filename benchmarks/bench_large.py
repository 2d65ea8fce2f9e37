"""Seconds and peak memory of a 12-megapixel picture and of volumes: ``python benchmarks/bench_large.py``.

The picture has 300 instances; volumes are noise with eight balls (``--extents 600 512 512``), or cases of data cards.
Each line is a process of its own: its peak resident memory is its own, libraries included. ``mask_rcnn`` has its
pretrained backbone and untrained heads, networks of volumes are untrained and biased to detect little, so their figures
are of the work, not of what is found.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from bright_parts import BrightParts, bright_voxels, bright_windows

if TYPE_CHECKING:
    import torch

SHAPE = (3000, 4000)
INSTANCES = 300
TILE, OVERLAP = (1024, 1024), 128


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--measure", choices=CASES, help="measure one case in this process")
    parser.add_argument("--only", nargs="*", default=list(CASES), choices=list(CASES), metavar="CASE")
    parser.add_argument("--extents", type=int, nargs=3, default=[150, 256, 256], help="Z, Y, X of the volume")
    chosen = parser.parse_args()
    if chosen.measure:
        case = CASES[chosen.measure]
        case(tuple(chosen.extents)) if chosen.measure.startswith("volume") else case()
        return
    print(f"{SHAPE[0]} x {SHAPE[1]} x 3, {INSTANCES} objects, tiles of {TILE} that share {OVERLAP}")
    environment = {"OMP_NUM_THREADS": "1"} | os.environ
    for name in chosen.only:
        command = [sys.executable, __file__, "--measure", name, "--extents", *map(str, chosen.extents)]
        done = subprocess.run(command, env=environment, check=False)
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


def space(
    name: str, network: str, extents: tuple[int, ...], *, targets: str = "classes", maps: bool = False
) -> None:
    """Show a volume of int16 to a network of one class, in windows of 32 x 96 x 96 that share a quarter.

    Args:
        network: Untrained; or "bright", "bright windows": what is bright by `semantic_cc_3d` and `mask_rcnn_3d`.
    """
    import torch

    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 60, (1, *extents), dtype=np.int16)
    for k in range(8):
        centre = [n // 4 + (n // 2) * (k >> axis & 1) for axis, n in enumerate(extents)]
        z, y, x = np.ogrid[-10:11, -10:11, -10:11]
        where = tuple(slice(c - 10, c + 11) for c in centre)
        pixels[0][where][z**2 + y**2 + x**2 <= 100] += 100
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    windows = {"patch": (32, 96, 96), "overlap": 0.25}
    settings = {"filters": 8, "levels": 3} | windows
    if network.startswith("mask"):
        settings |= {"network": "mask_rcnn_3d"}
    else:
        settings |= {"network": "semantic_cc_3d", "targets": targets}
    made = None
    if network == "bright":
        made = bright_voxels(settings)
    elif network == "bright windows":
        made = bright_windows((32, 96, 96))
    _predict(name, settings, pixels, (1.0, 1.0, 1.0), classes=1, maps=maps, made=made)


def case(name: str, card: str, number: int) -> None:
    """Show a case of a data card to ``semantic_cc_3d`` as it comes, untrained, with all classes of the card."""
    from clearmargin.datasets.cases import open_dataset

    path = Path(__file__).parents[1] / "data_cards" / f"{card}.yaml"
    dataset = open_dataset(path)
    image, _ = dataset.read(dataset.cases[number])
    classes = len(dataset.card.label_map.classes)
    _predict(name, {"network": "semantic_cc_3d"}, image.pixels, image.grid.spacing, classes=classes)


def _predict(
    name: str,
    settings: dict[str, object],
    pixels: np.ndarray,
    spacing: tuple[float, ...],
    *,
    classes: int,
    maps: bool = False,
    made: torch.nn.Module | None = None,
) -> None:
    import torch

    from clearmargin.core import Code, Grid, Image, LabelClass, LabelMap, Provenance
    from clearmargin.models.segmenter import View
    from clearmargin.models.volume_segmenter import VolumeSegmenter, WindowSegmenter
    from clearmargin.networks import build_network, network_config
    from clearmargin.networks.network import WindowNetwork
    from clearmargin.transforms.settings import ImageSettings, Window

    torch.manual_seed(0)
    network = made or build_network(network_config(settings), classes=classes, channels=1, pretrained=False)
    with torch.no_grad():
        if made is not None:
            pass
        elif isinstance(network, WindowNetwork):
            network.box_branch.classify.bias[0] += 6
        else:
            network.unet.output_block.conv.conv.bias -= 6
    code = Code(value="108369006", scheme="SCT", meaning="Neoplasm")
    segmenter = (WindowSegmenter if isinstance(network, WindowNetwork) else VolumeSegmenter)(
        network=network,
        image=ImageSettings(intensity=Window(low=0, high=255), channels=1),
        label_map=LabelMap(
            tuple(LabelClass(id=k + 1, name=f"class {k}", type=code, category=code) for k in range(classes))
        ),
        provenance=Provenance(model=name, weights_sha256="0" * 64, config_sha256="0" * 64, software="bench"),
        device=torch.device("cpu"),
    )
    image = Image(pixels=pixels, grid=Grid.from_spacing(pixels.shape[1:], spacing))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.perf_counter()
    (look,) = segmenter.looks(segmenter.prepared(image), View(), maps=maps)
    found = look.instances(segmenter.suppression)
    if maps:
        for _ in look.foreground():
            pass
    seconds = time.perf_counter() - start
    more = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    print(
        f"{name:<34} {' x '.join(map(str, pixels.shape[1:]))}, {classes} class(es) {len(found):>5} instances "
        f"{seconds:7.1f} s   {pixels.nbytes / 2**20:7.1f} MiB of pixels; peak {(before + more) / 2**20:5.2f} GiB, "
        f"{more / 2**10:7.1f} MiB over what it was: {more * 2**10 / pixels.nbytes:.2f} times the pixels, "
        f"{more * 2**10 / pixels.size:.1f} bytes a voxel",
        flush=True,
    )


CASES: dict[str, Callable[..., None]] = {
    "discs, tiles": lambda: measure("discs, tiles", BrightParts(0, 28), tile=TILE),
    "discs, whole": lambda: measure("discs, whole", BrightParts(0, 28), tile=None),
    "discs, tiles, 4 views": lambda: measure("discs, tiles, 4 views", BrightParts(0, 28), tile=TILE, views=4),
    "mask_rcnn, tiles": lambda: measure("mask_rcnn, tiles", mask_rcnn(), tile=TILE),
    "mask_rcnn, whole": lambda: measure("mask_rcnn, whole", mask_rcnn(), tile=None),
    "volume, bright voxels": lambda extents: space("volume, bright voxels", "bright", extents),
    "volume, bright windows": lambda extents: space("volume, bright windows", "bright windows", extents),
    "volume, semantic_cc_3d": lambda extents: space("volume, semantic_cc_3d", "semantic_cc_3d", extents),
    "volume, semantic_cc_3d, border": lambda extents: space(
        "volume, semantic_cc_3d, border", "semantic_cc_3d", extents, targets="border"
    ),
    "volume, mask_rcnn_3d": lambda extents: space("volume, mask_rcnn_3d", "mask_rcnn_3d", extents),
    "volume, mask_rcnn_3d, maps": lambda extents: space(
        "volume, mask_rcnn_3d, maps", "mask_rcnn_3d", extents, maps=True
    ),
    "CT of 41 structures": lambda: case("CT of 41 structures", "totalsegmentator_ct", 0),
    "MR of a brain tumour": lambda: case("MR of a brain tumour", "mr_tumour_volumes", 0),
    "MR of a breast tumour": lambda: case("MR of a breast tumour", "mr_tumour_volumes", 1),
    "MR of another brain tumour": lambda: case("MR of another brain tumour", "mr_tumour_volumes", 2),
}


if __name__ == "__main__":
    main()

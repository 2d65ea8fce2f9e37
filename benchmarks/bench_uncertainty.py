"""What samples cost: ``python benchmarks/bench_uncertainty.py [--model MODEL --card CARD]``.

Memory: a volume of 512 x 512 x 300 with 30 objects, five members that find what is bright, each kind of network in a
process of its own. Time: N members beside one prediction, interleaved, on the validation images of a card.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np
from bright_parts import BrightParts

SHAPE = (300, 512, 512)
OBJECTS, MEMBERS = 30, 5
KINDS = ("planes", "volume")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--memory", choices=KINDS, help="measure memory in this process")
    parser.add_argument("--model", type=Path, help="a model folder with snapshots")
    parser.add_argument("--card", type=Path, help="a data card")
    parser.add_argument("--cases", type=int, default=12)
    chosen = parser.parse_args()
    if chosen.memory:
        memory(chosen.memory)
        return
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    for kind in KINDS:
        subprocess.run([sys.executable, __file__, "--memory", kind], env=environment, check=True)
    if chosen.model and chosen.card:
        cost(chosen.model, chosen.card, chosen.cases)


def volume() -> np.ndarray:
    """Balls on noise, ``(1, Z, Y, X)`` int16: radii from 20 to 40 voxels, one in each cell of a lattice."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(-100, 0, (1, *SHAPE), dtype=np.int16)
    cells = [(z, y, x) for z in (50, 150, 250) for y in (90, 256, 422) for x in (70, 190, 310, 430)][:OBJECTS]
    for centre in cells:
        radius = int(rng.integers(20, 41))
        z, y, x = np.ogrid[tuple(slice(-radius, radius + 1) for _ in range(3))]
        ball = z**2 + y**2 + x**2 <= radius**2
        pixels[0][tuple(slice(c - radius, c + radius + 1) for c in centre)][ball] = 400
    return pixels


def bright(shift: int):
    """Return a network of volumes with its own windows that finds what is bright, ``shift`` columns from where it is.

    The U-Net that it stands for is run in every hundredth batch of windows, so that its memory is there: in all of
    them it would take hours.
    """
    from torch import nn

    from clearmargin.networks.semantic_cc_3d import SemanticCC3D, SemanticCC3DConfig

    class Bright(nn.Module):
        def __init__(self, unet: nn.Module) -> None:
            super().__init__()
            self.unet, self.calls = unet, 0

        def forward(self, windows):
            if self.calls % 100 == 0:
                self.unet(windows)
            self.calls += 1
            return 20 * (windows[:, :1].roll(shift, dims=-1) - 0.5)

    network = SemanticCC3D(SemanticCC3DConfig(), classes=1, channels=1, pretrained=False).eval()
    network.unet = Bright(network.unet)
    return network


def memory(kind: str) -> None:
    import torch

    from clearmargin.core import Code, Grid, Image, LabelClass, LabelMap, Provenance
    from clearmargin.models.segmenter import PlaneSegmenter
    from clearmargin.models.volume_segmenter import VolumeSegmenter
    from clearmargin.sampling.samples import Member, SampledSegmenter
    from clearmargin.transforms.settings import ImageSettings, Window

    torch.set_num_threads(1)
    code = Code(value="108369006", scheme="SCT", meaning="Tumor")
    made, build, channels = {
        "planes": (PlaneSegmenter, partial(BrightParts, 1, 64), 3),
        "volume": (VolumeSegmenter, bright, 1),
    }[kind]
    first = made(
        network=build(0),
        image=ImageSettings(intensity=Window(low=-100, high=400), channels=channels),
        label_map=LabelMap((LabelClass(id=1, name="tumour", type=code, category=code),)),
        provenance=Provenance(
            model="balls", weights_sha256="0" * 64, config_sha256="0" * 64, software="bench"
        ),
        device=torch.device("cpu"),
    )
    members = tuple(Member(segmenter=replace(first, network=build(k - MEMBERS // 2))) for k in range(MEMBERS))
    sampled = SampledSegmenter(members=members, mode="ensemble", choice=first.choice)
    image = Image(pixels=volume(), grid=Grid.from_spacing(SHAPE, (1.5, 0.8, 0.8)))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    start = time.perf_counter()
    found = sampled(image)
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    doubt = found.instances.uncertainty["edge_sd_mm"]
    print(
        f"{kind}: {MEMBERS} members, {SHAPE[0]} x {SHAPE[1]} x {SHAPE[2]}: {len(found.instances)} instances, "
        f"{seconds:.0f} s, peak {peak:.2f} GiB ({before:.2f} with the libraries and the volume alone), "
        f"mean edge SD {doubt.mean():.2f} mm",
        flush=True,
    )


def cost(model: Path, card: Path, cases: int) -> None:
    import torch

    from clearmargin.datasets.cases import open_dataset
    from clearmargin.sampling.samples import open_segmenter

    torch.set_num_threads(1)
    dataset = open_dataset(card)
    images = [dataset.read(case)[0] for case in dataset.split("validation")[:cases]]
    one = open_segmenter(model, "none")
    one(images[0])
    for mode in ("checkpoints", "tta"):
        sampled = open_segmenter(model, mode)
        count = len(sampled.members)
        sampled(images[0])
        ratios, singles, wholes = [], [], []
        for image in images:
            plain = sum(timed(plainly, member, image) for member in sampled.members)
            whole = timed(sampled, image)
            singles.append(1000 * plain / count)
            wholes.append(1000 * whole)
            ratios.append(whole / plain)
        print(
            f"{mode}: {count} members, median of {len(images)} images: {median(wholes):.0f} ms, one prediction "
            f"{median(singles):.0f} ms: {median(ratios):.3f} times {count} predictions",
            flush=True,
        )


def plainly(member: object, image: object) -> None:
    """Predict with one member as ``NetworkSegmenter`` does; views are of several sizes, so each counts its own."""
    segmenter = member.segmenter
    parts = [
        look.instances(segmenter.suppression)
        for look in segmenter.looks(segmenter.prepared(image), member.view)
    ]
    segmenter.merge(parts, image)


def timed(action, *arguments) -> float:
    start = time.process_time()
    action(*arguments)
    return time.process_time() - start


if __name__ == "__main__":
    main()

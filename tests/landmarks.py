"""Cards and pictures of landmarks: bright discs whose centres are known exactly, in px."""

import csv
from pathlib import Path

import numpy as np
import yaml

from clearmargin.core import PointType
from clearmargin.formats.raster import write_raster

TYPES = (
    PointType(name="left", mirror="right"),
    PointType(name="right", mirror="left"),
    PointType(name="tip"),
)
POINTS = [
    {"name": "left", "mirror": "right"},
    {"name": "right", "mirror": "left"},
    {"name": "tip"},
]
SPLITS = ("train", "validation", "calibration", "test")
COLOURS = ((230, 60, 60), (60, 230, 60), (70, 90, 240))


def picture(centres, shape=(96, 128), *, rng=None, radius=5.0):
    """Smooth discs of one colour per type on grey, ``(3, Y, X)`` uint8; each is symmetric about its centre."""
    y, x = np.mgrid[: shape[0], : shape[1]]
    pixels = np.full((3, *shape), 60.0)
    for kind, (cy, cx) in centres:
        disc = 1 / (1 + np.exp(np.hypot(y - cy, x - cx) - radius))
        pixels += disc * (np.array(COLOURS[kind])[:, None, None] - pixels)
    if rng is not None:
        pixels += rng.normal(0, 4, pixels.shape)
    return np.clip(np.round(pixels), 0, 255).astype(np.uint8)


def draw_centres(rng, shape=(96, 128), *, margin=16, apart=24):
    """One centre per type, apart from each other and the edge; the tip is absent in a fifth of them."""
    while True:
        at = rng.uniform(margin, np.array(shape) - margin, (3, 2))
        gaps = np.linalg.norm(at[:, None] - at[None], axis=2) + 1e9 * np.eye(3)
        if gaps.min() > apart:
            break
    return [(k, tuple(p)) for k, p in enumerate(at) if k < 2 or rng.random() > 0.2]


def write_points_set(folder: Path, splits=("train",) * 6 + ("validation", "calibration", "test"), seed=0):
    """Write pictures and a table of their points; return the card's path."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    with (
        (folder / "index.csv").open("w", newline="") as index,
        (folder / "points.csv").open("w", newline="") as table,
    ):
        rows, points = csv.writer(index), csv.writer(table)
        rows.writerow(["id", "split"])
        points.writerow(["case", "object", "point", "x", "y", "visible"])
        for number, split in enumerate(splits):
            rows.writerow([f"p{number}", split])
            centres = draw_centres(rng)
            write_raster(folder / f"p{number}.png", picture(centres, rng=rng))
            for kind, (cy, cx) in centres:
                points.writerow([f"p{number}", "1", TYPES[kind].name, cx, cy, "seen"])
    return write_points_card(folder)


def write_points_card(folder: Path, **changes):
    """Write the card of a folder that ``write_points_set`` made; ``changes`` replace its sections."""
    card = {
        "schema": 1,
        "name": "points",
        "modality": "OT",
        "classes": [{"id": 1, "name": "disc"}],
        "points": POINTS,
        "landmarks": {"kind": "point_table", "case": "{id}"},
        "root": ".",
        "cases": {
            "index": "index.csv",
            "id": "{id}",
            "image": "{id}.png",
            "reference": "points.csv",
            "group": "{id}",
        },
        "encoding": {"kind": "none"},
        "spacing": {"source": "unknown"},
        "group": "image",
        "splits": {"column": "split", "values": {s: s for s in SPLITS}},
        "show_in_tracking": True,
    }
    path = folder / "card.yaml"
    path.write_text(yaml.safe_dump(card | changes))
    return path

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


ROD_TYPES = [{"name": "tip"}, {"name": "end"}]


def rods(rng, shape=(96, 128), *, count=2):
    """Rods with a red tip and a blue end, hidden in half of the pictures: pixels, label image, and rows of points."""
    y, x = np.mgrid[: shape[0], : shape[1]]
    pixels, labels, rows = np.full((3, *shape), 60.0), np.zeros(shape, np.uint8), []
    for number in range(1, count + 1):
        middle = np.array([shape[0] / 2, shape[1] * (2 * number - 1) / (2 * count)])
        angle, half = rng.uniform(0, 2 * np.pi), rng.uniform(16, 22)
        along = np.array([np.sin(angle), np.cos(angle)])
        down, right = y - middle[0], x - middle[1]
        length, across = down * along[0] + right * along[1], -down * along[1] + right * along[0]
        rod = (np.abs(length) < half) & (np.abs(across) < 5)
        pixels[:, rod], labels[rod] = 150, number
        for sign, name, colour in ((1, "tip", COLOURS[0]), (-1, "end", COLOURS[2])):
            at = middle + sign * (half - 5) * along
            hidden = name == "end" and rng.random() < 0.5
            disc = 1 / (1 + np.exp(np.hypot(y - at[0], x - at[1]) - 4))
            pixels += disc * (np.array((30, 30, 30) if hidden else colour)[:, None, None] - pixels)
            rows.append([str(number), name, at[1], at[0], "hidden" if hidden else "seen"])
    pixels += rng.normal(0, 4, pixels.shape)
    return np.clip(np.round(pixels), 0, 255).astype(np.uint8), labels, rows


def write_rods_set(folder: Path, splits=("train",) * 6 + ("validation", "calibration", "test"), seed=0):
    """Write pictures of two rods with masks, and a table of their points; return the card's path."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    index, points = [["id", "split"]], [["case", "object", "point", "x", "y", "visible"]]
    for number, split in enumerate(splits):
        index.append([f"p{number}", split])
        pixels, labels, rows = rods(rng)
        write_raster(folder / f"p{number}.png", pixels)
        write_raster(folder / f"p{number}_masks.png", labels[None])
        points += [[f"p{number}", *row] for row in rows]
    for name, rows in (("index.csv", index), ("points.csv", points)):
        with (folder / name).open("w", newline="") as stream:
            csv.writer(stream).writerows(rows)
    return write_points_card(
        folder,
        name="rods",
        classes=[{"id": 1, "name": "rod"}],
        points=ROD_TYPES,
        landmarks={"kind": "point_table", "case": "{id}", "file": "points.csv"},
        encoding={"kind": "label_image", "label": "rod"},
        cases={
            "index": "index.csv",
            "id": "{id}",
            "image": "{id}.png",
            "reference": "{id}_masks.png",
            "group": "{id}",
        },
    )


SPACING = (2.0, 1.0, 1.0)  # of the volumes, (z, y, x)
LABELLED_BALLS = {
    "name": "balls",
    "modality": "MR",
    "classes": [{"id": 1, "name": "dim"}, {"id": 2, "name": "bright"}],
    "points": [{"name": "dim_centre"}, {"name": "bright_centre"}, {"name": "bright_top"}],
    "landmarks": {
        "kind": "label_points",
        "points": {
            "dim_centre": {"class": "dim"},
            "bright_centre": {"class": "bright"},
            "bright_top": {"class": "bright", "at": "last", "axis": "z"},
        },
    },
    "encoding": {"kind": "label_volume", "values": {1: "dim", 2: "bright"}},
}


def balls(rng, shape=(16, 32, 32), *, radius=5.0):
    """Two smooth balls of two brightnesses at exact places in mm, ``(Z, Y, X)`` uint8, and their labels and centres."""
    places = np.stack(np.indices(shape), axis=-1) * np.array(SPACING)
    extent = np.array(shape) * np.array(SPACING)
    pixels, labels, centres = np.full(shape, 40.0), np.zeros(shape, np.uint8), []
    for number, (low, high) in enumerate(((0.25, 0.4), (0.6, 0.75)), start=1):
        at = rng.uniform(0.35, 0.65, 3) * extent
        at[2] = rng.uniform(low, high) * extent[2]
        away = np.linalg.norm(places - at, axis=-1)
        pixels += (90 * number - (pixels - 40)) / (1 + np.exp((away - radius) * 1.5))
        labels[away < radius] = number
        centres.append(at / SPACING)
    pixels += rng.normal(0, 3, shape)
    return np.clip(np.round(pixels), 0, 255).astype(np.uint8), labels, np.array(centres)


def write_volume_points_set(
    folder: Path, splits=("train",) * 4 + ("validation", "test"), seed=0, *, exact=False, **options
):
    """Write volumes of two balls with a label map whose centroids and ends are landmarks; return the card's path.

    ``exact``: the landmarks are the balls' centres, in a table, and there are no masks.
    """
    from clearmargin.core import Grid
    from clearmargin.formats.volume import write_volume

    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    index, points = [["id", "split"]], [["case", "point", "x", "y", "z"]]
    for number, split in enumerate(splits):
        index.append([f"v{number}", split])
        pixels, labels, centres = balls(rng, **options)
        for name, (z, y, x) in zip(("dim_centre", "bright_centre"), centres, strict=True):
            points.append([f"v{number}", name, x, y, z])
        grid = Grid.from_spacing(pixels.shape, SPACING)
        write_volume(folder / f"v{number}.nii.gz", pixels, grid)
        write_volume(folder / f"v{number}_labels.nii.gz", labels, grid)
    for name, rows in (("index.csv", index), ("points.csv", points)):
        with (folder / name).open("w", newline="") as stream:
            csv.writer(stream).writerows(rows)
    table = {
        "points": [{"name": "dim_centre"}, {"name": "bright_centre"}],
        "landmarks": {"kind": "point_table", "case": "{id}", "file": "points.csv"},
        "encoding": {"kind": "none"},
    }
    return write_points_card(
        folder,
        **LABELLED_BALLS | (table if exact else {}),
        spacing={"source": "file"},
        cases={
            "index": "index.csv",
            "id": "{id}",
            "image": "{id}.nii.gz",
            "reference": "{id}_labels.nii.gz",
            "group": "{id}",
        },
    )

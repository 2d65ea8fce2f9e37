"""Landmarks that were set in the wrong place: planted ones are listed, and no others."""

import csv

import numpy as np
from landmarks import write_points_card

from clearmargin.core import Grid, Landmarks, PointType
from clearmargin.datasets.far_points import far_points
from clearmargin.formats.raster import write_raster
from clearmargin.show import show_dataset

NAMES = ("left", "right", "tip")
SHAPE = np.array([(0.0, -60.0), (0.0, 60.0), (90.0, 0.0)])  # (y, x) about the object's middle


def objects(rng, count):
    """Return ``(count, 3, 2)`` points of like objects anywhere, turned, in an image of 1200 x 1600."""
    middles = rng.uniform((200, 200), (1000, 1400), (count, 2))
    angles = rng.uniform(0, 2 * np.pi, count)
    turns = np.array([[np.cos(angles), -np.sin(angles)], [np.sin(angles), np.cos(angles)]])
    return middles[:, None] + SHAPE @ turns.transpose(2, 0, 1) + rng.normal(0, 8, (count, 3, 2))


def test_data_show_lists_a_planted_outlier(tmp_path):
    at = objects(np.random.default_rng(5), 12)
    middle = at[7].mean(axis=0)
    at[7, 2] += 700 * np.sign((600, 800) - middle)  # 990 px off, within the image
    assert (at > 0).all() and (at < (1200, 1600)).all()
    blank = np.zeros((1, 1200, 1600), np.uint8)
    index, points = [["id", "split"]], [["case", "object", "point", "x", "y"]]
    for number, one in enumerate(at):
        index.append([f"p{number}", "train"])
        write_raster(tmp_path / f"p{number}.png", blank)
        points += [[f"p{number}", "1", name, x, y] for name, (y, x) in zip(NAMES, one, strict=True)]
    for name, rows in (("index.csv", index), ("points.csv", points)):
        with (tmp_path / name).open("w", newline="") as stream:
            csv.writer(stream).writerows(rows)
    shown = show_dataset(write_points_card(tmp_path), out=tmp_path / "sheet.png", cases=1)
    (far,) = shown.counts.far_points
    assert far.point == "tip" and far.object == 1 and far.away > 900 and far.usual < 120
    assert f"look at {far.case}, object 1: tip lies" in shown.text


def test_points_of_one_distribution_are_not_listed_and_few_are_not_judged():
    types = tuple(PointType(name=name) for name in NAMES)
    grid, rng = Grid.from_spacing((1200, 1600)), np.random.default_rng(0)
    sets = [
        (f"c{n}", grid, Landmarks.of(types, objects(rng, 2), np.full((2, 3), 2, np.int8))) for n in range(60)
    ]
    assert far_points(sets) == [] and far_points([]) == []
    planted = sets[0][2].points.copy()
    planted[1, 0] += (0, 800)
    moved = ("c0", grid, Landmarks.of(types, planted, np.full((2, 3), 2, np.int8)))
    (far,) = far_points([moved, *sets[1:]])
    assert (far.case, far.object, far.point) == ("c0", 2, "left")
    assert far_points([moved, *sets[1:4]]) == []  # eight of a type

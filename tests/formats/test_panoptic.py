"""Flat pictures show the inner of two nested objects, and their JSON counts what is shown."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from clearmargin.core import Grid, InstanceSet, LabelMap
from clearmargin.errors import GeometryError
from clearmargin.formats.panoptic import flat_labels, write_label_raster, write_panoptic
from clearmargin.formats.raster import read_label_raster, read_raster

GRID = Grid.from_spacing((6, 8))


def _nested() -> InstanceSet:
    outer, inner, far = (np.zeros((6, 8), bool) for _ in range(3))
    outer[1:5, 1:5] = inner[2:4, 2:4] = far[0, 7] = True
    return InstanceSet.from_dense(GRID, [inner, outer, far], labels=[1, 2, 2])


def test_the_smaller_of_equal_scores_is_on_top_and_a_higher_score_above_all():
    flat = flat_labels(_nested())
    assert flat[2, 2] == 1 and flat[1, 1] == 2 and flat[0, 7] == 3 and flat[5, 5] == 0
    certain = replace(_nested(), scores=np.array([0.5, 0.9, 0.1]))
    assert flat_labels(certain)[2, 2] == 2


def test_what_is_written_is_read(label_map, tmp_path):
    write_label_raster(tmp_path / "a.png", _nested())
    assert_array_equal(read_label_raster(tmp_path / "a.png"), flat_labels(_nested()))
    write_panoptic(tmp_path / "b.png", _nested(), label_map)
    red, green, blue = read_raster(tmp_path / "b.png").pixels.astype(int)
    assert_array_equal(red + 256 * green + 65536 * blue, flat_labels(_nested()))
    segments = json.loads((tmp_path / "b.json").read_text())["segments_info"]
    assert [(s["id"], s["category_id"], s["area"], s["bbox"]) for s in segments] == [
        (1, 1, 4, [2, 2, 2, 2]),
        (2, 2, 12, [1, 1, 4, 4]),
        (3, 2, 1, [7, 0, 1, 1]),
    ]


def test_stuff_is_one_segment(label_map, tmp_path):
    tumour, liver = label_map.classes
    stuff = LabelMap((tumour, replace(liver, kind="stuff")))
    write_panoptic(tmp_path / "a.png", _nested(), stuff)
    segments = json.loads((tmp_path / "a.json").read_text())["segments_info"]
    assert [(s["id"], s["area"]) for s in segments] == [(1, 4), (2, 13)]


def test_a_volume_is_no_picture(label_map, tmp_path):
    volume = InstanceSet.empty(Grid.from_spacing((2, 3, 4)))
    for write in (
        lambda: write_label_raster(tmp_path / "a.png", volume),
        lambda: write_panoptic(tmp_path / "a.png", volume, label_map),
    ):
        with pytest.raises(GeometryError):
            write()

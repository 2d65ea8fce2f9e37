"""Landmarks as files, read back by other tools or by hand."""

import csv
import json

import numpy as np
import pytest
from hotcoco import COCO
from landmarks import TYPES

from clearmargin.core import Grid, Image, InstanceSet, LabelClass, LabelMap, Landmarks, Prediction, Provenance
from clearmargin.core.thresholds import Thresholds
from clearmargin.margins.assessment import assess
from clearmargin.outputs.folder import read_case, write_case
from clearmargin.outputs.writers import Planned

VOLUME = Grid(
    shape=(9, 20, 24),
    affine=np.array([[0, 0.1, 0.8, -40], [0, 0.8, -0.1, 12], [3.0, 0, 0, -7], [0, 0, 0, 1]]),
    unit="mm",
)


def prediction_on(grid):
    points = np.full((2, 3, grid.ndim), 2.0)
    points[0, 0, -2:], points[0, 1, -2:] = (3.25, 4.5), (10, 12)
    spread = np.broadcast_to(np.diag([1.0] * (grid.ndim - 1) + [4.0]), (2, 3, grid.ndim, grid.ndim))
    landmarks = Landmarks.of(
        TYPES, points, [[2, 1, 0], [0, 0, 2]], scores=np.full((2, 3), 0.75), covariance=spread
    )
    return Prediction(
        instances=InstanceSet(grid=grid, masks=(), labels=[], scores=[], landmarks=landmarks),
        label_map=LabelMap((LabelClass(id=1, name="disc"),), TYPES),
        provenance=Provenance(model="heatmap", weights_sha256="", config_sha256="", software="test"),
    )


def written(folder, grid):
    image = Image(pixels=np.zeros((1, *grid.shape), np.uint8), grid=grid)
    assessed = assess(prediction_on(grid), image, None, thresholds=Thresholds(0.5))
    return write_case(
        folder, assessed, image, Planned(outputs=("tables", "landmarks", "prediction", "overlay"))
    )


@pytest.mark.parametrize("grid", [Grid.from_spacing((16, 20)), VOLUME], ids=["picture", "volume"])
def test_a_case_folder_gives_the_landmarks_back_bit_for_bit(tmp_path, grid):
    written(tmp_path / "case", grid)
    back, before = read_case(tmp_path / "case").instances.landmarks, prediction_on(grid).instances.landmarks
    assert back.types == before.types
    for name in ("points", "visible", "scores", "covariance", "areas"):
        np.testing.assert_array_equal(getattr(back, name), getattr(before, name))


def test_the_table_of_a_picture_and_its_coco_file(tmp_path):
    files = written(tmp_path / "case", Grid.from_spacing((16, 20))).files["landmarks"]
    assert files == ("landmarks.csv", "landmarks.json", "landmarks_coco.json")
    rows = list(csv.DictReader((tmp_path / "case" / "landmarks.csv").read_text().splitlines()))
    assert [(r["object"], r["point"], r["y"], r["x"], r["visible"]) for r in rows] == [
        ("1", "left", "3.25", "4.5", "seen"),
        ("1", "right", "10.0", "12.0", "hidden"),
        ("2", "tip", "2.0", "2.0", "seen"),
    ]
    assert rows[0]["sd_major_px"] == "2.0" and rows[0]["sd_minor_px"] == "1.0"
    coco = COCO(str(tmp_path / "case" / "landmarks_coco.json"))
    first, _ = coco.load_anns(coco.get_ann_ids())
    assert first["keypoints"] == [4.5, 3.25, 2, 12, 10, 1, 0, 0, 0] and first["num_keypoints"] == 2


def test_slicer_gets_points_in_mm_and_lps(tmp_path):
    written(tmp_path / "case", VOLUME)
    (markup,) = json.loads((tmp_path / "case" / "landmarks.mrk.json").read_text())["markups"]
    assert markup["coordinateSystem"] == "LPS"
    expected = VOLUME.affine @ [2, 3.25, 4.5, 1]
    np.testing.assert_allclose(markup["controlPoints"][0]["position"], expected[:3], atol=1e-6)
    assert [p["label"] for p in markup["controlPoints"]] == ["left", "right", "tip"]
    assert [p["visibility"] for p in markup["controlPoints"]] == [True, False, True]
    rows = list(csv.DictReader((tmp_path / "case" / "landmarks.csv").read_text().splitlines()))
    assert float(rows[0]["x_mm"]) == pytest.approx(expected[0], abs=1e-4)


def test_nothing_is_written_by_a_model_that_does_not_look_for_them(tmp_path):
    grid = Grid.from_spacing((16, 20))
    image = Image(pixels=np.zeros((1, *grid.shape), np.uint8), grid=grid)
    plain = Prediction(
        instances=InstanceSet.empty(grid),
        label_map=LabelMap((LabelClass(id=1, name="disc"),)),
        provenance=prediction_on(grid).provenance,
    )
    assessed = assess(plain, image, None, thresholds=Thresholds(0.5))
    assert (
        "landmarks"
        not in write_case(tmp_path / "case", assessed, image, Planned(outputs=("landmarks",))).files
    )

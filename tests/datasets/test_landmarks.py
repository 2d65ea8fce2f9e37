"""Landmarks of cards: every source of them, and what is refused."""

import csv
import json
from pathlib import Path

import nibabel
import numpy as np
import pytest
import yaml
from landmarks import POINTS, write_points_card, write_points_set

from clearmargin.core import Grid
from clearmargin.datasets.cases import open_dataset
from clearmargin.errors import ConfigError, InputError
from clearmargin.formats.markups import ControlPoint, read_markups, write_markups
from clearmargin.formats.raster import write_raster
from clearmargin.show import show_dataset

CARDS = Path(__file__).parents[2] / "data_cards"


def one_picture(folder, landmarks, content, name, **changes):
    """Return the landmarks of a card of one picture of 40 x 60 pixels whose points are in a file."""
    write_raster(folder / "a.png", np.zeros((40, 60), np.uint8))
    (folder / name).write_text(content if isinstance(content, str) else json.dumps(content))
    cases = {
        "rows": [{"id": "a", "split": "train"}],
        "id": "{id}",
        "image": "a.png",
        "reference": name,
        "group": "{id}",
    }
    dataset = open_dataset(write_points_card(folder, cases=cases, landmarks=landmarks, **changes))
    return dataset.read(dataset.cases[0])[1].landmarks


def coco(names, numbers, **more):
    return {
        "images": [{"id": 7, "file_name": "a.png", "height": 40, "width": 60}],
        "categories": [{"id": 3, "name": "tool", "keypoints": names}],
        "annotations": [
            {"id": 1, "image_id": 7, "category_id": 3, "keypoints": numbers, "area": 500, **more}
        ],
    }


def test_coco_key_points_go_by_their_names_whatever_their_order(tmp_path):
    file = coco(["tip", "left", "right"], [1, 2, 2, 30.5, 20.25, 1, 0, 0, 0])
    found = one_picture(tmp_path, {"kind": "coco_keypoints"}, file, "points.json")
    assert found.visible.tolist() == [[1, 0, 2]]
    assert found.points[0, 0].tolist() == [20.25, 30.5] and found.points[0, 2].tolist() == [2, 1]
    assert found.areas.tolist() == [500]


def test_a_crowd_of_coco_is_not_an_object(tmp_path):
    file = coco(["tip", "left", "right"], [1, 2, 2, 3, 4, 2, 5, 6, 2], iscrowd=1)
    assert len(one_picture(tmp_path, {"kind": "coco_keypoints"}, file, "points.json")) == 0


TABLE = "object,point,x,y,visible\nt1,left,10.5,20,seen\nt1,tip,,,absent\nt2,left,1,2,hidden\nt2,right,3,4,\n"


def test_a_table_and_the_same_as_json(tmp_path):
    rows = [dict(row) for row in csv.DictReader(TABLE.splitlines())]
    for name, content in (("points.csv", TABLE), ("points.json", rows)):
        found = one_picture(tmp_path, {"kind": "point_table"}, content, name)
        assert found.visible.tolist() == [[2, 0, 0], [1, 2, 0]]
        assert found.points[0, 0].tolist() == [20, 10.5]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("object,point,x,y\n1,lefd,1,2\n", "no point 'lefd'.*left"),
        ("object,point,x,y\n1,left,1,2\n1,left,3,4\n", "twice"),
        ("object,point,x,y\n1,left,90,2\n1,tip,3,4\n", "1 of 2 point.s. lie outside"),
        ("object,point,x,y\n1,left,nan,2\n", "not finite"),
        ("object,point,x,y\n1,left,1,\n", "not a table of points"),
        ("object,point,x\n1,left,1\n", "no column 'y'"),
        ("object,point,x,y,visible\n1,left,1,2,maybe\n", "row 1 has visible 'maybe'"),
    ],
)
def test_a_table_that_does_not_fit_is_refused(tmp_path, content, says):
    with pytest.raises(InputError, match=says):
        one_picture(tmp_path, {"kind": "point_table"}, content, "points.csv")


def test_a_point_outside_is_absent_if_the_card_says_so(tmp_path):
    content = "object,point,x,y\n1,left,90,2\n1,tip,3,4\n"
    found = one_picture(tmp_path, {"kind": "point_table", "outside": "absent"}, content, "points.csv")
    assert found.visible.tolist() == [[0, 0, 2]]


def test_names_of_the_file_become_those_of_the_card(tmp_path):
    source = {"kind": "point_table", "names": {"L": "left"}, "left_out": ["note"]}
    content = "object,point,x,y\n1,L,9,2\n1,note,3,4\n"
    assert one_picture(tmp_path, source, content, "points.csv").visible.tolist() == [[2, 0, 0]]


@pytest.mark.parametrize("system", ["LPS", "RAS"])
def test_markups_of_slicer_lie_where_the_file_says(tmp_path, system):
    affine = np.array([[0.8, 0, 0.1, -40], [0, 0.9, 0, 12], [-0.1, 0, 3, -7], [0, 0, 0, 1]])  # nibabel: RAS
    nibabel.save(nibabel.Nifti1Image(np.zeros((20, 16, 9), np.int16), affine), tmp_path / "v.nii.gz")
    ijk = np.array([[3.25, 4.5, 2.0], [10.0, 8.0, 5.5]])
    ras = nibabel.affines.apply_affine(affine, ijk)
    positions = ras if system == "RAS" else ras * [-1, -1, 1]
    controls = [
        {"label": name, "position": list(p), "positionStatus": "defined", "visibility": shown}
        for name, p, shown in zip(("left", "tip"), positions, (True, False), strict=True)
    ]
    controls.append({"label": "right", "position": [0, 0, 0], "positionStatus": "missing"})
    markup = {"type": "Fiducial", "coordinateSystem": system, "controlPoints": controls}
    (tmp_path / "v.mrk.json").write_text(json.dumps({"markups": [markup]}))
    cases = {
        "rows": [{"id": "v", "split": "train"}],
        "id": "{id}", "image": "v.nii.gz", "reference": "v.mrk.json", "group": "{id}",
    }  # fmt: skip
    path = write_points_card(
        tmp_path, cases=cases, landmarks={"kind": "markups"}, spacing={"source": "file"}, modality="MR"
    )
    dataset = open_dataset(path)
    found = dataset.read(dataset.cases[0])[1].landmarks
    assert found.visible.tolist() == [[2, 0, 1]]
    np.testing.assert_allclose(found.points[0, 0], ijk[0][::-1], atol=1e-4)
    np.testing.assert_allclose(found.points[0, 2], ijk[1][::-1], atol=1e-4)


def test_markups_are_read_as_they_were_written(tmp_path):
    points = [ControlPoint("a", np.array([1.0, -2.5, 3.0])), ControlPoint("b", None, False)]
    write_markups(tmp_path / "p.mrk.json", points)
    ((first, second),) = read_markups(tmp_path / "p.mrk.json")
    assert first.label == "a" and first.position.tolist() == [1, -2.5, 3]
    assert second.position is None and not second.visible


@pytest.mark.parametrize(
    "change", [{"coordinateSystem": "IJK"}, {"coordinateUnits": "m"}, {"controlPoints": 3}]
)
def test_markups_in_another_system_are_refused(tmp_path, change):
    markup = {"coordinateSystem": "LPS", "controlPoints": []} | change
    (tmp_path / "p.mrk.json").write_text(json.dumps({"markups": [markup]}))
    with pytest.raises(InputError, match=r"LPS|mm|3D Slicer"):
        read_markups(tmp_path / "p.mrk.json")


def test_centroid_and_ends_of_a_label(tmp_path):
    labels = np.zeros((40, 60), np.uint8)
    labels[10:21, 30:33] = 1
    labels[20, 33:41] = 1
    write_raster(tmp_path / "a.png", labels)
    write_raster(tmp_path / "l.png", labels)
    rules = {
        "left": {"class": "disc", "at": "first", "axis": "x"},
        "right": {"class": "disc", "at": "last", "axis": "x"},
        "tip": {"class": "disc"},
    }
    cases = {
        "rows": [{"id": "a", "split": "train"}],
        "id": "{id}", "image": "a.png", "reference": "l.png", "group": "{id}",
    }  # fmt: skip
    path = write_points_card(
        tmp_path,
        cases=cases,
        encoding={"kind": "value_masks", "values": {1: "disc"}},
        landmarks={"kind": "label_points", "points": rules},
    )
    dataset = open_dataset(path)
    reference = dataset.read(dataset.cases[0])[1]
    assert len(reference) == 1 and reference.landmarks.areas.tolist() == [41]
    assert reference.landmarks.points[0, 0].tolist() == [15, 30]
    assert reference.landmarks.points[0, 1].tolist() == [20, 40]
    np.testing.assert_allclose(reference.landmarks.points[0, 2], np.argwhere(labels).mean(axis=0))


@pytest.mark.parametrize(
    "changes",
    [
        {"landmarks": None},
        {"points": []},
        {"landmarks": {"kind": "label_points", "points": {"left": {"class": "disc"}}}},
        {"points": [{"name": "left", "mirror": "right"}, {"name": "right"}]},
    ],
)
def test_a_card_that_contradicts_itself_is_refused(tmp_path, changes):
    write_points_set(tmp_path)
    with pytest.raises(ConfigError, match=r"landmarks|mirror"):
        open_dataset(write_points_card(tmp_path, **changes))


def test_the_joints_of_the_clips(data_root):
    try:
        dataset = open_dataset(CARDS / "endovis2015_robotic_points.yaml")
    except InputError as error:
        pytest.skip(f"the clips are not here: {error}")
    assert [len(dataset.split(s)) for s in ("train", "test")] == [74, 75]
    frames = json.loads((data_root / "endovis2015_robotic_video" / "dataset1_pose.json").read_text())
    case = dataset.cases[3]
    _, reference = dataset.read(case)
    own = {(a["id"], a["class"]): (a["y"], a["x"]) for a in frames[case.frame]["annotations"]}
    points = {tuple(p) for p in reference.landmarks.points.reshape(-1, 2)}
    assert points == set(own.values()) and len(reference.landmarks) == 2


def test_frames_without_a_pose_are_refused_and_not_empty(data_root, tmp_path):
    card = yaml.safe_load((CARDS / "endovis2015_robotic_points.yaml").read_text())
    card["cases"]["first_frame"] = 0
    (tmp_path / "card.yaml").write_text(yaml.safe_dump(card))
    try:
        dataset = open_dataset(tmp_path / "card.yaml")
    except InputError as error:
        pytest.skip(f"the clips are not here: {error}")
    with pytest.raises(InputError, match=r"frame 5 has no points: 80 of 370 frames have them \(0, 4, 9, 14"):
        dataset.read(dataset.cases[1])


def test_data_show_counts_and_draws_them(tmp_path):
    card = write_points_set(tmp_path / "data")
    shown = show_dataset(card, out=tmp_path / "sheet.png")
    assert shown.counts.points[0].seen == 9 and shown.counts.points[0].name == "left"
    assert "landmark left: 9 seen, 0 hidden, in 9 cases" in shown.text
    assert (tmp_path / "sheet.png").stat().st_size > 10_000
    grid = Grid.from_spacing((96, 128))
    dataset = open_dataset(card)
    assert all(dataset.read(c)[0].grid.shape == grid.shape for c in dataset.cases)
    assert [p["name"] for p in POINTS] == [p.name for p in dataset.card.label_map.points]

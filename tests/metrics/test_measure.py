"""The verb `measure`: files of other tools in, tables out."""

import csv
import json

import numpy as np
import pytest

from clearmargin.core import Grid, InstanceSet
from clearmargin.datasets.pairs import resample
from clearmargin.errors import ConfigError, GeometryError, InputError
from clearmargin.formats.raster import write_raster
from clearmargin.formats.volume import write_volume
from clearmargin.measure import measure, render

from .shapes import ball, block

SPACING = (2.0, 1.0, 1.0)
SHAPE = (12, 24, 24)


def labels(*parts):
    out = np.zeros(SHAPE, np.uint8)
    for value, mask in parts:
        out[mask] = value
    return out


def folders(tmp_path, cases, suffix=".nii.gz", grid=None):
    """Write (predicted, reference) label volumes by case name; None leaves a file out."""
    where = grid or Grid.from_spacing(SHAPE, SPACING)
    for name, pair in cases.items():
        for side, array in zip(("predicted", "reference"), pair, strict=True):
            (tmp_path / side).mkdir(exist_ok=True)
            if array is not None:
                write_volume(tmp_path / side / f"{name}{suffix}", array, where)
    return tmp_path / "predicted", tmp_path / "reference"


LIVER = block(SHAPE, (2, 2, 2), (10, 20, 20))
MOVED = block(SHAPE, (2, 3, 2), (10, 21, 20))
TUMOUR = block(SHAPE, (4, 5, 5), (6, 9, 9))
OTHER = block(SHAPE, (4, 13, 13), (6, 17, 17))


@pytest.mark.parametrize("suffix", [".nii.gz", ".nrrd", ".mha"])
def test_class_regions_of_volumes(tmp_path, suffix):
    cases = {
        "a": (labels((1, MOVED), (2, TUMOUR)), labels((1, LIVER), (2, TUMOUR))),
        "b": (labels((1, LIVER)),) * 2,
    }
    found = measure(*folders(tmp_path, cases, suffix), tolerances=[1.0])
    assert found.unit == "mm"
    assert [(r.strata["class"], r.status) for r in found.rows] == [("1", "tp"), ("2", "tp"), ("1", "tp")]
    assert found.rows[0].values["hd95"] == 1
    assert found.rows[1].values["dice"] == 1
    assert found.summary[0].interval.groups == 2


def test_a_missed_class_counts(tmp_path):
    paths = folders(tmp_path, {"a": (labels((1, LIVER)), labels((1, LIVER), (2, TUMOUR)))})
    row = measure(*paths).rows[1]
    assert (row.status, row.values["dice"], row.values["nsd_1mm"]) == ("fn", 0, 0)
    assert row.values["hd95"] == pytest.approx(np.hypot(24, np.hypot(24, 24)))


def test_components_and_instances(tmp_path):
    truth = labels((1, TUMOUR), (1, OTHER))
    paths = folders(tmp_path, {"a": (labels((1, TUMOUR)), truth)})
    assert [r.status for r in measure(*paths).rows] == ["tp"]
    assert [r.status for r in measure(*paths, objects="components").rows] == ["tp", "fn"]
    paths = folders(tmp_path, {"a": (labels((7, TUMOUR), (3, OTHER)), labels((1, TUMOUR), (2, OTHER)))})
    found = measure(*paths, objects="instances")
    assert [r.status for r in found.rows] == ["tp", "tp"]
    assert found.panoptic.pq == 1


def test_tables_are_written_and_hold_no_file_names(tmp_path):
    paths = folders(tmp_path, {"PATIENT-NAME": (labels((1, LIVER)), labels((1, LIVER)))})
    found = measure(*paths, out=tmp_path / "out", by=["class"])
    text = "".join(
        (tmp_path / "out" / f).read_text()
        for f in ("summary.csv", "summary.json", "summary.md", "instances.csv")
    )
    assert "PATIENT-NAME" not in text
    assert found.rows[0].case in text
    assert json.loads((tmp_path / "out" / "summary.json").read_text())[0]["mean"] == 1
    assert len(list(csv.DictReader((tmp_path / "out" / "instances.csv").read_text().splitlines()))) == 1
    assert "1 references, 1 tp, 0 fn" in render(found)
    assert {row.metric: row.unit for row in found.summary if row.stratum == "all"} == {
        "dice": "", "iou": "", "hd95": "mm", "assd": "mm", "surface_bias": "mm", "volume_error": "mm^3",
        "nsd_1mm": "", "nsd_2mm": "", "nsd_3mm": "",
    }  # fmt: skip


def test_missing_predictions_are_refused_or_count_as_empty(tmp_path):
    paths = folders(tmp_path, {"a": (labels((1, LIVER)),) * 2, "NAME": (None, labels((1, LIVER)))})
    with pytest.raises(InputError, match=r"1 of 2 references have no prediction.*missing_as_empty") as caught:
        measure(*paths)
    assert "NAME" not in str(caught.value)
    found = measure(*paths, missing_as_empty=True)
    assert sorted(r.status for r in found.rows) == ["fn", "tp"]
    assert found.summary[0].miss_rate == 0.5


def test_predictions_without_a_reference_are_counted(tmp_path):
    paths = folders(tmp_path, {"a": (labels((1, LIVER)),) * 2, "b": (labels((1, LIVER)), None)})
    assert measure(*paths).without_reference == 1


def test_different_grids_are_refused_with_both_named_or_resampled(tmp_path):
    folders(tmp_path, {"a": (None, labels((1, LIVER)))})
    fine = Grid.from_spacing((24, 24, 24), (1.0, 1.0, 1.0))
    (tmp_path / "predicted").mkdir(exist_ok=True)
    write_volume(tmp_path / "predicted" / "a.nii.gz", np.repeat(labels((1, LIVER)), 2, axis=0), fine)
    paths = tmp_path / "predicted", tmp_path / "reference"
    with pytest.raises(GeometryError, match=r"24 x 24 x 24 at 1 x 1 x 1 mm.*12 x 24 x 24 at 2 x 1 x 1 mm"):
        measure(*paths)
    found = measure(*paths, resample_predictions=True)
    assert found.rows[0].values["dice"] == 1
    assert any("nearest neighbour, which moves edges by up to 0.5 mm" in note for note in found.notes)


def test_resampling_keeps_a_ball_in_its_place():
    coarse = Grid.from_spacing((20, 40, 40), (2.0, 1.0, 1.0))
    affine = np.diag([0.8, 0.8, 0.8, 1.0])[[2, 1, 0, 3]][:, [0, 1, 2, 3]]
    affine[:3, 3] = (3.0, 2.0, 1.0)
    fine = Grid(shape=(45, 45, 45), affine=affine, unit="mm")
    found = resample(
        InstanceSet.from_dense(coarse, [ball((20, 40, 40), (20, 20, 20), 9, (2.0, 1.0, 1.0))]), fine
    ).masks[0]
    centre = fine.to_world(np.argwhere(found.dense()).mean(axis=0))
    assert centre == pytest.approx([20, 20, 20], abs=0.3)
    assert found.area * fine.voxel_size == pytest.approx(4 / 3 * np.pi * 9**3, rel=0.03)
    with pytest.raises(GeometryError, match="only grids in mm"):
        resample(InstanceSet.empty(coarse), Grid.from_spacing((20, 40, 40)))


def test_pictures_are_in_px(tmp_path):
    for side, start in (("predicted", 5), ("reference", 4)):
        (tmp_path / side).mkdir()
        write_raster(tmp_path / side / "a.png", block((20, 20), (4, start), (12, start + 8)).astype(np.uint8))
    found = measure(tmp_path / "predicted", tmp_path / "reference")
    assert found.unit == "px"
    assert found.rows[0].values["hd95"] == 1
    assert "mm" not in render(found)


def coco(path, boxes, names, scores=None):
    annotations = []
    for k, (y, x, side, category) in enumerate(boxes):
        points = [x, y, x + side, y, x + side, y + side, x, y + side]
        entry = {"id": k + 1, "image_id": 1, "category_id": category, "iscrowd": 0, "segmentation": [points],
                 "bbox": [x, y, side, side], "area": side * side}  # fmt: skip
        annotations.append(entry | ({"score": scores[k]} if scores else {}))
    content = {
        "images": [{"id": 1, "file_name": "a.png", "height": 40, "width": 40}],
        "categories": [{"id": k + 1, "name": name} for k, name in enumerate(names)],
        "annotations": annotations,
    }
    path.write_text(json.dumps(content))
    return path


def test_coco_files_with_scores(tmp_path):
    truth = coco(tmp_path / "truth.json", [(2, 2, 10, 1), (20, 20, 12, 2)], ["grasper", "needle"])
    found = coco(tmp_path / "found.json", [(2, 2, 10, 2), (4, 28, 6, 2)], ["needle", "grasper"], [0.9, 0.4])
    result = measure(found, truth)
    assert [(r.strata["class"], r.status) for r in result.rows] == [
        ("grasper", "tp"), ("needle", "fn"), ("grasper", "fp"),
    ]  # fmt: skip
    assert result.precision.ap == pytest.approx(0.5)
    assert result.panoptic.tp == 1


def test_patients_and_columns_from_a_table(tmp_path):
    cases = {name: (labels((1, MOVED if k else LIVER)), labels((1, LIVER))) for k, name in enumerate("abc")}
    table = tmp_path / "cases.csv"
    table.write_text("case,patient,scanner\na,p1,x\nb,p1,x\nc,p2,y\n")
    paths = folders(tmp_path, cases)
    found = measure(*paths, cases=table, by=["scanner", "size"])
    assert found.summary[0].interval.groups == 2
    assert {row.stratum for row in found.summary} >= {"all", "scanner = x", "scanner = y"}
    table.write_text("case,patient\na,p1\n")
    with pytest.raises(InputError, match="does not list 2 cases"):
        measure(*paths, cases=table)
    with pytest.raises(ConfigError, match="no column 'scaner'"):
        measure(*paths, by=["scaner"])


def test_what_cannot_be_compared_is_refused(tmp_path):
    paths = folders(tmp_path, {"a": (labels((1, LIVER)),) * 2})
    with pytest.raises(InputError, match=r"no file or folder '.*/nowhere'"):
        measure(tmp_path / "nowhere", paths[1])
    with pytest.raises(InputError, match="two folders or two files"):
        measure(paths[0], paths[1] / "a.nii.gz")
    with pytest.raises(ConfigError, match="did you mean 'dice'"):
        measure(*paths, metrics=["dise"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no label file"):
        measure(paths[0], tmp_path / "empty")


def test_the_subvoxel_model_can_be_asked_for(tmp_path):
    spheres = [ball(SHAPE, (12, 12, 12), r, SPACING) for r in (9, 7)]
    paths = folders(tmp_path, {"a": (labels((1, spheres[0])), labels((1, spheres[1])))})
    found = measure(*paths, surface="subvoxel", metrics=["assd", "surface_bias"])
    assert found.rows[0].values["assd"] == pytest.approx(2, abs=0.25)
    assert found.rows[0].values["surface_bias"] == pytest.approx(2, abs=0.25)


def test_a_dicom_seg_against_the_same_mask_as_nrrd(data_root):
    folder = data_root / "dicom_ct_seg_rtstruct_small" / "dcmqi_liver"
    found = measure(folder / "seg_liver.dcm", folder / "liver_seg.nrrd", bands=[3.0])
    assert [row.status for row in found.rows] == ["tp"]
    assert found.rows[0].values["dice"] == 1
    assert found.rows[0].values["hd95"] == 0
    assert found.unit == "mm"


def test_large_values_are_values_like_others_and_negative_ones_are_refused(tmp_path):
    truth = np.where(TUMOUR, 7_000_000, 0).astype(np.int32)
    found = measure(*folders(tmp_path, {"a": (labels((1, TUMOUR)), truth)}), objects="instances")
    assert [(row.status, row.values["dice"]) for row in found.rows] == [("tp", 1.0)]
    (tmp_path / "b").mkdir()
    wrapped = np.where(TUMOUR, 200, 0).astype(np.uint8).astype(np.int8)
    with pytest.raises(InputError, match="negative values"):
        measure(*folders(tmp_path / "b", {"a": (labels((1, TUMOUR)), wrapped)}), objects="instances")


@pytest.mark.parametrize("side", ["predicted", "reference"])
def test_a_file_that_cannot_be_read_is_named_by_its_case_but_for_one_that_was_typed(tmp_path, side):
    paths = folders(tmp_path, {"MILLER": (labels((1, LIVER)),) * 2})
    file = tmp_path / side / "MILLER.nii.gz"
    file.write_bytes(file.read_bytes()[:40])
    what = {"predicted": "its prediction", "reference": "its reference"}[side]
    with pytest.raises(InputError, match=f"^case-[0-9a-f]{{12}}: {what} is ") as caught:
        measure(*paths)
    assert "MILLER" not in str(caught.value)
    with pytest.raises(InputError, match=r"'MILLER\.nii\.gz' is "):
        measure(*(path / "MILLER.nii.gz" for path in paths))

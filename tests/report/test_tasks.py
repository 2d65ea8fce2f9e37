import json

import numpy as np

from clearmargin.core import Code, Grid, InstanceSet, LabelClass, LabelMap
from clearmargin.formats.coco import read_coco_images
from clearmargin.formats.raster import read_label_raster
from clearmargin.formats.volume import read_label_volume
from clearmargin.report.tasks import write_task_forms

CODE = Code(value="1", scheme="99TEST", meaning="test")
LABELS = LabelMap((
    LabelClass(id=1, name="tumour", type=CODE, category=CODE),
    LabelClass(id=2, name="liver", type=CODE, category=CODE, kind="stuff"),
))  # fmt: skip


def organ_with_tumour(shape, spacing=None):
    organ, tumour = np.zeros(shape, bool), np.zeros(shape, bool)
    organ[..., 2:10, 2:12] = True
    tumour[..., 4:6, 5:8] = True
    return InstanceSet.from_dense(Grid.from_spacing(shape, spacing), [organ, tumour], [2, 1], [0.5, 0.9])


def test_images_come_back(tmp_path):
    files = write_task_forms(tmp_path, "a", organ_with_tumour((16, 16)), LABELS)
    assert all(path.exists() for path in files)
    semantic = read_label_raster(tmp_path / "a_semantic.png")
    assert [(semantic == k).sum() for k in (1, 2)] == [6, 74]
    assert (read_label_raster(tmp_path / "a_instance_0.png") > 0).sum() + (
        read_label_raster(tmp_path / "a_instance_1.png") > 0
    ).sum() == 86
    panoptic = read_label_raster(tmp_path / "a_panoptic.png")
    segments = json.loads((tmp_path / "a_panoptic.json").read_text())
    assert [(s["class"], s["kind"], int((panoptic == s["id"]).sum())) for s in segments] == [
        ("tumour", "thing", 6), ("liver", "stuff", 74),
    ]  # fmt: skip
    boxes = json.loads((tmp_path / "a_detection.json").read_text())
    assert boxes[1] | {"score": 0} == {"class": "tumour", "score": 0, "start": [4, 5], "stop": [6, 8]}
    assert [m.area for m in read_coco_images(tmp_path / "a_coco.json")[0].instances.masks] == [80, 6]


def test_volumes_come_back_on_their_grid(tmp_path):
    volume = organ_with_tumour((3, 16, 16), (2.0, 1.0, 0.5))
    write_task_forms(tmp_path, "v", volume, LABELS)
    labels, grid = read_label_volume(tmp_path / "v_panoptic.nii.gz")
    assert grid.same_as(volume.grid)
    assert [(labels == k).sum() for k in (1, 2)] == [222, 18] or [(labels == k).sum() for k in (1, 2)] == [
        18,
        222,
    ]


def test_nothing_is_written_as_nothing(tmp_path):
    write_task_forms(tmp_path, "n", InstanceSet.empty(Grid.from_spacing((8, 8))), LABELS)
    assert not read_label_raster(tmp_path / "n_semantic.png").any()
    assert json.loads((tmp_path / "n_detection.json").read_text()) == []

"""What a script or a notebook finds on results: reprs, pictures, files, frames, and names at the top."""

import io
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image as Pillow

import clearmargin
from clearmargin.core import Code, Grid, Image, InstanceSet, LabelClass, LabelMap, Prediction
from clearmargin.core.prediction import EdgeSpread, Provenance
from clearmargin.datasets.phantom_study import write_phantom_study
from clearmargin.errors import ConfigError, InputError
from clearmargin.metrics import MaskPair, evaluate_instances, froc, match_instances
from clearmargin.outputs.forms import KINDS
from clearmargin.report.frames import as_frame

MADE_BY = Provenance(model="toy", weights_sha256="0" * 64, config_sha256="1" * 64, software="clearmargin")
CODE = Code(value="10200004", scheme="SCT", meaning="Liver")
LABELS = LabelMap(
    (
        LabelClass(id=1, name="liver", type=CODE, category=CODE),
        LabelClass(id=2, name="<b>cyst", type=CODE, category=CODE),
    )
)


def prediction(shape=(64, 80), *, overlap=False, image=True, labels=(1, 2)):
    grid = Grid.from_spacing(shape, (2.0, 1.0, 1.0)[3 - len(shape) :])
    masks = []
    for k in range(len(labels)):
        mask = np.zeros(shape, bool)
        mask[..., 10 + (5 if overlap else 20) * k : 24 + (5 if overlap else 20) * k, 10:30] = True
        masks.append(mask)
    pixels = np.full((1, *shape), 90, np.uint8)
    return Prediction(
        instances=InstanceSet.from_dense(grid, masks, labels, np.linspace(0.9, 0.8, len(labels))),
        label_map=LABELS,
        provenance=MADE_BY,
        maps={"entropy": np.zeros(shape, np.float32)},
        image=Image(pixels=pixels, grid=grid) if image else None,
    )


def test_reprs_are_short_and_hold_neither_arrays_nor_paths(tmp_path):
    p = prediction()
    objects = [
        p,
        p.instances,
        p.instances.grid,
        p.instances.masks[0],
        p.label_map,
        p.image,
        EdgeSpread(points=np.zeros((500, 2)), sigma=np.zeros(500)),
        match_instances(p.instances, p.instances),
        MaskPair.from_masks(p.instances.masks[0], p.instances.masks[1], p.instances.grid),
        froc([(p.instances, p.instances)]),
        *evaluate_instances(p.instances, p.instances),
    ]
    for thing in objects:
        text = repr(thing)
        assert len(text) < 260 and "array(" not in text and "\n" not in text and str(tmp_path) not in text, (
            text
        )
    assert repr(p) == "Prediction(1 liver, 1 <b>cyst on 64 x 80 at 1 x 1 mm, maps entropy, by toy)"
    assert repr(p.instances.masks[0]) == "Mask(280 of 64 x 80, in 10..23 x 10..29)"
    assert repr(LABELS) == "LabelMap(1 liver, 2 <b>cyst)"


def test_a_notebook_shows_the_overlay_and_the_table():
    p = prediction()
    with Pillow.open(io.BytesIO(p._repr_png_())) as picture:
        assert picture.width >= 512 and len(picture.getcolors(9999)) > 4
    page = p._repr_html_()
    assert page.count("<tr>") == 3 and "data:image/png;base64," in page
    assert "&lt;b&gt;cyst" in page and "<b>cyst" not in page
    bare = prediction(image=False)
    assert bare._repr_png_() is None and "<img" not in bare._repr_html_()
    none = replace(p, instances=InstanceSet.empty(p.instances.grid))
    assert "no instances" in none._repr_html_() and none._repr_png_().startswith(b"\x89PNG")


def test_a_picture_is_saved_as_every_kind_it_can_be(tmp_path):
    from hotcoco import COCO

    p = prediction()
    assert p.save(tmp_path / "a" / "m.png") == (tmp_path / "a" / "m.png",)
    with Pillow.open(tmp_path / "a" / "m.png") as labels:
        assert np.bincount(np.asarray(labels).ravel()).tolist()[1:] == [280, 280]
    p.save(tmp_path / "classes.tif", kind="classes")
    p.save(str(tmp_path / "over.jpg"))
    p.save(tmp_path / "over.png", kind="overlay")
    p.save(tmp_path / "coco.json")
    theirs = COCO(str(tmp_path / "coco.json"))
    assert sorted(int(theirs.annToMask(a).sum()) for a in theirs.anns.values()) == [280, 280]
    p.save(tmp_path / "t.csv")
    assert len((tmp_path / "t.csv").read_text().splitlines()) == 3
    p.save(tmp_path / "entropy.tif", kind="entropy")
    assert len(p.save(tmp_path / "all", kind="panoptic")) > 3
    files = prediction(overlap=True).save(tmp_path / "over" / "lap.png")
    assert [f.name for f in files] == ["0001.png", "0002.png"]


def test_a_volume_is_saved_where_another_library_finds_it(tmp_path):
    import nibabel

    p = prediction((4, 64, 80), image=False)
    p.save(tmp_path / "v.nii.gz")
    theirs = nibabel.load(tmp_path / "v.nii.gz")
    assert np.bincount(np.asarray(theirs.dataobj).ravel()).tolist()[1:] == [1120, 1120]
    assert theirs.header.get_zooms() == pytest.approx((1, 1, 2))
    with pytest.raises(ConfigError, match=r"masks of a volume are written as \.nii"):
        p.save(tmp_path / "v.png")
    with pytest.raises(InputError, match="COCO holds pictures"):
        p.save(tmp_path / "v.json")


def test_a_dicom_prediction_is_saved_as_dicom(tmp_path):
    import highdicom
    import pydicom

    from clearmargin.datasets.phantom import make_phantom
    from clearmargin.formats import read_image

    study = write_phantom_study(tmp_path / "study", make_phantom(seed=1), 1)
    image = read_image(study.ct)
    masks = np.zeros(image.grid.shape, bool)
    masks[2:5, 20:40, 20:50] = True
    p = Prediction(
        instances=InstanceSet.from_dense(image.grid, [masks]),
        label_map=LABELS,
        provenance=MADE_BY,
        image=image,
    )
    p.save(tmp_path / "s.dcm")
    p.save(tmp_path / "rt.dcm", kind="rtstruct")
    assert highdicom.seg.segread(tmp_path / "s.dcm").number_of_segments == 1
    assert pydicom.dcmread(tmp_path / "rt.dcm").Modality == "RTSTRUCT"
    assert [pydicom.dcmread(f).Modality for f in p.save(tmp_path / "r.dcm", kind="report")] == ["SR", "SEG"]
    uncoded = replace(p, label_map=LabelMap((LabelClass(id=1, name="liver"),)))
    for kind in ("seg", "label_map_seg"):
        with pytest.raises(ConfigError, match=r"class 'liver' has no code.*model\.yaml"):
            uncoded.save(tmp_path / "no.dcm", kind=kind)
    assert not (tmp_path / "no.dcm").exists()
    uncoded.save(tmp_path / "ok.nii.gz")
    with pytest.raises(InputError, match="nothing was found"):
        replace(p, instances=InstanceSet.empty(image.grid)).save(tmp_path / "none.dcm")


@pytest.mark.parametrize(
    ("name", "kind", "image", "message"),
    [
        ("x.docx", None, True, "name a kind: seg"),
        ("x.png", "overlai", True, "did you mean 'overlay'"),
        ("x.dcm", None, True, "does not come from DICOM"),
        ("x.jpg", None, False, "overlay needs the image"),
    ],
)
def test_what_cannot_be_saved_says_why(tmp_path, name, kind, image, message):
    with pytest.raises((ConfigError, InputError), match=message):
        prediction(image=image).save(tmp_path / name, kind=kind)


def test_rows_of_instances_make_a_frame():
    import pandas

    p = prediction()
    one = p.instances.select([0])
    rows = evaluate_instances(p.instances, one)
    for frame in (pandas.DataFrame(rows), as_frame(rows)):
        assert frame["status"].tolist() == ["tp", "fp"] and frame["dice"].tolist() == [1.0, 0.0]
        assert frame["matched_iou"].tolist() == [1.0, 0.0] and "values" not in frame
    assert as_frame(p)["name"].tolist() == ["liver", "<b>cyst"]
    assert as_frame([]).empty
    with pytest.raises(TypeError, match="row of a table"):
        as_frame([3])


def test_a_row_travels_between_processes_and_does_not_change():
    import copy
    import pickle

    (row,) = evaluate_instances(prediction().instances.select([0]), prediction().instances.select([0]))
    assert pickle.loads(pickle.dumps(row)) == row == copy.deepcopy(row)
    with pytest.raises(AttributeError, match="does not change"):
        row.score = 3
    assert row.values["dice"] == 1.0 and dict(row)["dice"] == 1.0


def test_a_frame_of_summary_rows_has_its_interval_in_columns():
    from clearmargin.metrics.tables import CaseRow, summarise

    rows = [
        CaseRow(
            group=str(k),
            case=str(k),
            status="tp",
            unit="px",
            ndim=2,
            values={"dice": k / 9},
            strata={"c": "x"},
        )
        for k in range(9)
    ]
    assert as_frame(rows)[["dice", "c"]].iloc[3].tolist() == [3 / 9, "x"]
    summary = as_frame(summarise(rows, rng=np.random.default_rng(0), resamples=200))
    assert {"metric", "interval_low", "interval_high"} <= set(summary.columns), summary.columns


def test_names_at_the_top_exist_and_importing_them_is_light():
    for name in clearmargin.__all__:
        assert getattr(clearmargin, name) is not None
    code = (
        "import sys, clearmargin, clearmargin.core; "
        "loaded = {'torch', 'monai', 'mlflow', 'pandas', 'pydicom', 'matplotlib', 'PIL'} & set(sys.modules); "
        "assert not loaded, loaded; "
        "assert not [m for m in sys.modules if m.startswith(('clearmargin.formats', 'clearmargin.report'))]"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_every_kind_is_described():
    from clearmargin.outputs.forms import save_prediction

    assert all(f"``{kind}``" in save_prediction.__doc__ for kind in KINDS)

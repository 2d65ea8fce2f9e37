"""The case folder: what is written is listed with its digest, is the same bytes again, and is read back as it was."""

import hashlib
import json
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from bright import bright_segmenter
from calibrated import ASKED, calibrated, drawn_set
from displaced import SPACE

from clearmargin.core import Grid, Image, Source
from clearmargin.datasets.phantom_study import write_ct_series
from clearmargin.errors import ConfigError, InputError
from clearmargin.formats import read_image
from clearmargin.formats.raster import write_raster
from clearmargin.formats.video import write_video
from clearmargin.outputs.folder import check_case, read_case, read_clip, write_case
from clearmargin.outputs.writers import WRITERS, chosen_outputs
from clearmargin.predict import predict
from clearmargin.predicting.predictor import Predictor

SHAPE = (7, 64, 64)
MODEL = Path("any")


@pytest.fixture
def bright(monkeypatch):
    monkeypatch.setattr(
        "clearmargin.sampling.samples.load_segmenter", lambda *_, **__: bright_segmenter(0, 400)
    )


@pytest.fixture(scope="module")
def calibration():
    return calibrated(drawn_set(14, SPACE), asked=replace(ASKED, alphas=(0.2,)))[0]


@pytest.fixture
def ct(tmp_path):
    pixels = np.full((1, *SHAPE), -50, np.int16)
    pixels[0, 2:5, 20:36, 10:42] = 390
    grid = Grid.from_spacing(SHAPE, (5.0, 0.8, 0.7))
    write_ct_series(tmp_path / "ct", Image(pixels=pixels, grid=grid, source=Source(modality="CT")), 1, 1)
    return tmp_path / "ct"


def test_a_case_is_read_back_as_it_was_predicted(bright, calibration, ct, monkeypatch, tmp_path):
    monkeypatch.setattr("clearmargin.predicting.predictor.load_calibration", lambda *_: calibration)
    image = read_image(ct)
    predictor = Predictor(model=MODEL, uncertainty="tta")
    assessed = predictor.predict_case(image)
    before = assessed.prediction
    assert before.edges and before.outer and before.inner and before.maps  # nothing is compared with nothing
    write_case(tmp_path / "case", assessed, image, chosen_outputs(None, image, predictor.label_map))
    after = read_case(str(tmp_path / "case"))
    assert after.provenance == before.provenance and after.label_map == before.label_map
    assert after.instances.grid.same_as(before.instances.grid)
    for side in ("outer", "inner"):
        for a, b in zip(getattr(after, side), getattr(before, side), strict=True):
            np.testing.assert_array_equal(a.dense(), b.dense())
    for a, b in zip(after.instances.masks, before.instances.masks, strict=True):
        np.testing.assert_array_equal(a.dense(), b.dense())
    np.testing.assert_array_equal(after.instances.labels, before.instances.labels)
    np.testing.assert_array_equal(after.instances.scores, before.instances.scores)
    assert after.instances.uncertainty.keys() == before.instances.uncertainty.keys()
    for name, column in before.instances.uncertainty.items():
        np.testing.assert_array_equal(after.instances.uncertainty[name], column)
    for a, b in zip(after.edges, before.edges, strict=True):
        np.testing.assert_array_equal(a.points, b.points)
        np.testing.assert_array_equal(a.sigma, b.sigma)
    assert after.maps.keys() == before.maps.keys()
    for name, values in before.maps.items():
        np.testing.assert_array_equal(after.maps[name], values)


def test_every_file_is_in_the_manifest_and_a_change_is_seen(bright, ct, tmp_path):
    (done,) = predict(ct, tmp_path / "out", model=MODEL, uncertainty="tta").done
    manifest = json.loads((done.folder / "manifest.json").read_text())
    files = {str(p.relative_to(done.folder)) for p in done.folder.rglob("*") if p.is_file()}
    assert files - {"manifest.json"} == set(manifest["files"])
    for name, entry in manifest["files"].items():
        content = (done.folder / name).read_bytes()
        assert entry["sha256"] == hashlib.sha256(content).hexdigest() and entry["bytes"] == len(content)
    assert {entry["output"] for entry in manifest["files"].values()} <= {*WRITERS, "summary"}
    assert check_case(done.folder)["instances"] == 1
    (done.folder / "instances.csv").write_text("changed")
    with pytest.raises(InputError, match=r"'instances.csv' in .* was changed"):
        read_case(done.folder)
    (done.folder / "instances.csv").unlink()
    with pytest.raises(InputError, match=r"'instances.csv' is missing"):
        read_case(done.folder)
    with pytest.raises(InputError, match="not a case folder"):
        read_case(tmp_path)
    (done.folder / "manifest.json").write_text('{"files": 1}')
    with pytest.raises(InputError, match="damaged"):
        read_case(done.folder)


def test_two_runs_write_the_same_bytes(bright, ct, tmp_path):
    names = list(WRITERS)
    names.remove("coco")  # of a volume there is none
    folders = [
        predict(ct, tmp_path / name, model=MODEL, uncertainty="tta", write=names).done[0].folder
        for name in "ab"
    ]
    first, second = ({p.name: p.read_bytes() for p in f.rglob("*") if p.is_file()} for f in folders)
    assert first == second and {"rtstruct.dcm", "label_map_seg.dcm", "instances.nii.gz"} <= first.keys()


def test_what_is_written_is_what_was_named(bright, ct, tmp_path):
    (done,) = predict(ct, tmp_path / "a", model=MODEL, write=["rtstruct", "nifti"]).done
    assert {p.name for p in done.folder.iterdir()} == {
        "rtstruct.dcm",
        "instances.nii.gz",
        "classes.nii.gz",
        "summary.json",
        "manifest.json",
    }
    (done,) = predict(ct, tmp_path / "b", model=MODEL, write=["default", "nifti"]).done
    assert {"seg.dcm", "report.dcm", "instances.nii.gz"} <= {p.name for p in done.folder.iterdir()}
    with pytest.raises(ConfigError, match=r"--write rstruct: did you mean 'rtstruct'"):
        predict(ct, tmp_path / "c", model=MODEL, write=["rstruct"])
    with pytest.raises(InputError, match=r"--write coco: COCO holds pictures"):
        predict(ct, tmp_path / "c", model=MODEL, write=["coco"])
    assert not list((tmp_path / "c").glob("*"))


def test_a_report_alone_brings_the_seg_that_it_refers_to(bright, ct, tmp_path):
    (done,) = predict(ct, tmp_path / "a", model=MODEL, write=["sr"]).done
    assert {p.name for p in done.folder.glob("*.dcm")} == {"report.dcm", "seg.dcm"}


def test_source_headers_are_read_once(bright, ct, monkeypatch, tmp_path):
    from clearmargin.formats.dicom import output as dicom_output

    read, original = [], dicom_output.parsed_header
    monkeypatch.setattr(dicom_output, "parsed_header", lambda file: read.append(file) or original(file))
    predict(
        ct, tmp_path / "out", model=MODEL, uncertainty="tta", write=["default", "rtstruct", "label_map_seg"]
    )
    assert len(read) == SHAPE[0]


def test_a_clip_is_read_back(bright, tmp_path):
    frames = np.full((4, 3, 64, 96), 20, np.uint8)
    frames[1:3, :, 20:40, 10:34] = 240
    write_video(tmp_path / "clip.mp4", frames, 5)
    (done,) = predict(tmp_path / "clip.mp4", tmp_path / "out", model=MODEL, display_window=True).done
    predictions = read_clip(done.folder)
    assert sorted(predictions) == [1, 2]
    mask = predictions[1].instances.masks[0]
    assert (
        mask.shape == (64, 96) and abs(mask.area - 20 * 24) <= 24
    )  # as far as the video's compression allows
    with pytest.raises(InputError, match="read_clip reads it"):
        read_case(done.folder)
    (only,) = predict(
        tmp_path / "clip.mp4", tmp_path / "b", model=MODEL, display_window=True, write=["tables"]
    ).done
    assert {p.name for p in only.folder.iterdir()} == {
        "instances.csv",
        "instances.json",
        "summary.json",
        "manifest.json",
    }
    with pytest.raises(InputError, match="clips have tables"):
        predict(tmp_path / "clip.mp4", tmp_path / "c", model=MODEL, display_window=True, write=["panoptic"])


def test_a_prediction_without_an_instance_is_read_back(bright, tmp_path):
    write_raster(tmp_path / "a.png", np.full((64, 64), 20, np.uint8))
    (done,) = predict(tmp_path / "a.png", tmp_path / "out", model=MODEL, uncertainty="tta").done
    back = read_case(done.folder)
    assert len(back.instances) == 0 and back.instances.grid.shape == (64, 64) and "entropy" in back.maps
    with pytest.raises(InputError, match="read_case reads it"):
        read_clip(done.folder)


def test_a_predictor_goes_to_another_process_without_its_weights(bright):
    predictor = Predictor(model=MODEL, uncertainty="tta", score_threshold=0.25, tile=128)
    assert predictor.segmenter.thresholds.every == 0.25 and predictor.segmenter is predictor.segmenter
    sent = pickle.dumps(predictor)
    assert len(sent) < 1000
    back = pickle.loads(sent)
    assert back == predictor and "segmenter" not in vars(back)
    with pytest.raises(ConfigError, match="score_threshold"):
        Predictor(model=MODEL, score_threshold=2)


def test_the_help_names_every_output():
    from typer.testing import CliRunner

    import clearmargin.cli.results  # noqa: F401 - the verbs register themselves
    from clearmargin.cli.app import app

    text = "".join(CliRunner().invoke(app, ["predict", "--help"], env={"COLUMNS": "200"}).output.split())
    assert all(name in text for name in WRITERS)


def test_another_input_of_the_same_plain_name_takes_nobodys_place(bright, tmp_path, monkeypatch):
    monkeypatch.setenv("CLEARMARGIN_NAMES", "plain")
    monkeypatch.setenv("CLEARMARGIN_HOME", str(tmp_path / "home"))
    for k, name in enumerate("ab"):
        (tmp_path / name).mkdir()
        write_raster(tmp_path / name / "x.png", np.full((64, 64), 20 + 100 * k, np.uint8))
    options = {"model": MODEL, "display_window": True}
    (first,) = predict(tmp_path / "a" / "x.png", tmp_path / "out", **options).done
    before = (first.folder / "overlay.png").read_bytes()
    with pytest.raises(InputError, match=r"'x' in .* may be of another input"):
        predict(tmp_path / "b" / "x.png", tmp_path / "out", **options)
    assert (first.folder / "overlay.png").read_bytes() == before
    predict(tmp_path / "a" / "x.png", tmp_path / "out", **options)  # the same input may be done again
    with pytest.raises(ConfigError, match=r"cannot be made for the results"):
        predict(tmp_path / "a" / "x.png", Path("/proc/x"), **options)


def test_what_lies_beside_dicom_is_a_case_of_its_own(bright, ct, tmp_path):
    write_raster(ct / "photo.png", np.full((64, 64), 20, np.uint8))
    report = predict(ct, tmp_path / "out", model=MODEL, write=["tables"])
    assert len(report.done) + len(report.failed) == 2

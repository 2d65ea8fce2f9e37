"""Predict on a folder: every study, series, volume, picture and clip below it once, and what fails is said."""

import json
import os
import shutil
import signal
import tempfile
import zipfile
from pathlib import Path

import numpy as np
import pydicom
import pytest
from bright import bright_segmenter
from command import command

from clearmargin import privacy
from clearmargin.core import Grid, Image, Source
from clearmargin.datasets.phantom_study import write_ct_series
from clearmargin.errors import InputError
from clearmargin.formats import read_image
from clearmargin.formats.dicom.seg import read_dicom_seg
from clearmargin.formats.raster import write_raster
from clearmargin.formats.video import write_video
from clearmargin.formats.volume import write_volume
from clearmargin.predict import predict
from clearmargin.predicting.predictor import Predictor

SHAPE = (5, 48, 48)
GRID = Grid.from_spacing(SHAPE, (5.0, 0.8, 0.7))
MODEL = {"model": Path("any"), "write": ["tables", "prediction"], "track": False}


@pytest.fixture(autouse=True)
def bright(monkeypatch, tmp_path):
    monkeypatch.setattr(
        "clearmargin.sampling.samples.load_segmenter", lambda *_, **__: bright_segmenter(0, 400)
    )
    monkeypatch.setenv("CLEARMARGIN_HOME", str(tmp_path / "home"))


def pixels(first):
    values = np.full((1, *SHAPE), -50, np.int16)
    values[0, 1:4, 12:30, first : first + 20] = 390
    return values


def series(folder, number, first=10):
    write_ct_series(folder, Image(pixels=pixels(first), grid=GRID, source=Source(modality="CT")), number, 1)
    return folder


def pictures(folder, *names):
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        write_raster(folder / name, np.full((32, 32), 20, np.uint8))
    return folder


def test_every_input_of_nested_studies_is_a_case_where_it_lies(tmp_path, caplog):
    """Studies at several depths, one in two folders, one in a zip, a volume, a picture, a clip, and a broken one."""
    root = tmp_path / "studies"
    series(root / "p1" / "s1" / "ct", 1)
    series(root / "p2", 2, 12)
    for k, file in enumerate(sorted(series(tmp_path / "parted", 3, 14).iterdir())):
        (root / "parted" / str(k % 2)).mkdir(parents=True, exist_ok=True)
        shutil.copy(file, root / "parted" / str(k % 2) / file.name)
    (root / "packed").mkdir()
    with zipfile.ZipFile(root / "packed" / "CANARY^zip.zip", "w") as archive:
        for file in sorted(series(tmp_path / "zipped", 4, 16).iterdir()):
            archive.write(file, file.name)
    write_volume(root / "p2" / "deep.nii.gz", pixels(18)[0], GRID)
    pictures(root / "pictures" / "more", "one.png")
    write_video(root / "pictures" / "clip.mp4", iter([np.full((3, 32, 32), 20, np.uint8)] * 3), fps=5)
    series(root / "CANARY^gap", 5)
    sorted((root / "CANARY^gap").iterdir())[2].unlink()
    (root / "pictures" / "CANARY^Anna.png").write_bytes(b"no picture")
    (root / "notes.txt").write_text("CANARY")
    told = []
    report = predict(root, tmp_path / "out", on_done=told.append, **MODEL)
    assert list(report.done) == told and len(report.done) == 7 and len(report.failed) == 2
    assert {p.name for p in (tmp_path / "out").iterdir()} == {d.case for d in report.done}
    assert sorted(d.instances for d in report.done) == [0, 0, 1, 1, 1, 1, 1]
    said = caplog.text + json.dumps(report.failed)
    assert "CANARY" not in said and "1 file(s) of other kinds" in said
    assert any("slice" in why for why in report.failed.values())
    assert set(privacy.recorded_cases()) >= {*report.failed, *(d.case for d in report.done)}
    # each is what it is alone: the same bytes, and masks where the bright pixels lie
    for place in (
        root / "p1",
        root / "parted",
        root / "packed" / "CANARY^zip.zip",
        root / "p2" / "deep.nii.gz",
    ):
        (alone,) = predict(place, tmp_path / "alone", **MODEL | {"write": None}).done
        (same,) = predict(place, tmp_path / "narrow", **MODEL).done
        for name in ("prediction.npz", "instances.csv", "manifest.json", "summary.json"):
            assert (tmp_path / "out" / same.case / name).read_bytes() == (same.folder / name).read_bytes()
        if place.suffix:
            continue
        image = read_image(place)
        masks = read_dicom_seg(alone.folder / "seg.dcm", grid=image.grid).masks
        np.testing.assert_array_equal(masks[0].dense(), image.pixels[0] > 200)


def test_one_study_is_chosen_from_and_several_are_all_taken(tmp_path):
    root = tmp_path / "studies"
    series(root / "a", 1)
    series(root / "b", 2)
    for file in (root / "b").iterdir():
        header = pydicom.dcmread(file)
        header.StudyInstanceUID = pydicom.dcmread(next((root / "a").iterdir())).StudyInstanceUID
        header.save_as(file)
    with pytest.raises(InputError, match="--series"):
        predict(root, tmp_path / "out", **MODEL)
    assert len(predict(root, tmp_path / "out", series="list:1", **MODEL).done) == 1
    series(root / "c", 3)
    assert len(predict(root, tmp_path / "out", **MODEL).done) == 3
    assert len(predict(root, tmp_path / "one", series="list:2", **MODEL).done) == 1
    with pytest.raises(InputError, match="--series chooses among what DICOM holds"):
        predict(pictures(tmp_path / "pictures", "a.png"), tmp_path / "one", series="number:2", **MODEL)


def test_settings_of_reading_hold_in_folders_too(tmp_path):
    root = tmp_path / "studies"
    series(root / "a", 1)
    sorted(series(root / "b", 2).iterdir())[2].unlink()
    report = predict(root, tmp_path / "out", **MODEL)
    assert len(report.done) == 1 and "--allow-gaps" in next(iter(report.failed.values()))
    assert len(predict(root, tmp_path / "out", allow_gaps=True, **MODEL).done) == 2


def test_inputs_of_one_plain_name_are_counted_one_by_one(tmp_path, monkeypatch):
    monkeypatch.setenv("CLEARMARGIN_NAMES", "plain")
    root = tmp_path / "pictures"
    for place in ("a", "b", "c"):
        pictures(root / place, "same.png", f"only-{place}.png")
    report = predict(root, tmp_path / "out", **MODEL)
    assert [d.case for d in report.done] == ["only-a", "same", "only-b", "only-c"]
    assert list(report.failed) == ["same", "same-2"]
    assert all("leave out --names plain" in why for why in report.failed.values())
    monkeypatch.delenv("CLEARMARGIN_NAMES")
    assert len(predict(root, tmp_path / "hashed", **MODEL).done) == 6


def test_results_and_links_are_not_inputs(tmp_path):
    root = pictures(tmp_path / "pictures", "a.png", "b.png")
    (root / "link.png").symlink_to(root / "a.png")
    first = predict(root, root / "out", model=Path("any"), track=False)
    assert len(first.done) == 2 and (first.done[0].folder / "overlay.png").exists()
    again = predict(root, root / "out", model=Path("any"), track=False)
    assert [d.case for d in again.done] == [d.case for d in first.done] and not again.failed


def test_if_nothing_can_be_segmented_the_first_reason_is_said(tmp_path):
    root = tmp_path / "pictures"
    root.mkdir()
    for name in ("CANARY a.png", "CANARY b.nii.gz"):
        (root / name).write_bytes(b"no picture")
    with pytest.raises(InputError, match="none of the 2 inputs") as caught:
        predict(root, tmp_path / "out", **MODEL)
    assert "CANARY" not in str(caught.value)


def test_ctrl_c_keeps_what_is_done(tmp_path, monkeypatch):
    root = pictures(tmp_path / "pictures", *(f"{k}.png" for k in range(6)))
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    original, asked = Predictor.predict_case, []

    def interrupted(self, image):
        asked.append(image)
        if len(asked) == 4:
            signal.raise_signal(signal.SIGINT)
        return original(self, image)

    monkeypatch.setattr(Predictor, "predict_case", interrupted)
    monkeypatch.setattr("clearmargin.tracking.resolve.model_folder", Path)
    code, said = command(
        "predict", root, tmp_path / "out", "--model", "any", "--write", "tables", "--no-track"
    )
    assert code == 130 and "what was finished is kept" in said and len(asked) == 4
    folders = list((tmp_path / "out").iterdir())
    assert len(folders) == 3 and all((f / "manifest.json").exists() for f in folders)
    assert not list(scratch.iterdir())


def test_an_error_of_the_one_who_is_told_is_his(tmp_path):
    root = pictures(tmp_path / "pictures", *(f"{k}.png" for k in range(6)))
    told = []

    def tell(done):
        told.append(done)
        raise BrokenPipeError

    with pytest.raises(BrokenPipeError):
        predict(root, tmp_path / "out", on_done=tell, **MODEL)
    assert 1 <= len(told) <= 4  # those at hand are still written


def test_a_damaged_dicom_file_is_a_failure_wherever_it_lies(tmp_path):
    """Beside the whole series of the only study, among several studies, and in a zip; the others are segmented."""
    broken = b"\0" * 128 + b"DICM" + b"junk" * 50
    root = tmp_path / "studies"
    series(root / "a", 1)
    (root / "a" / "CANARY^Anna.dcm").write_bytes(broken)
    with zipfile.ZipFile(tmp_path / "packed.zip", "w") as archive:
        for file in sorted((root / "a").iterdir()):
            archive.write(file, file.name)
    for place, done in ((root, 1), (tmp_path / "packed.zip", 1), (root, 2)):
        report = predict(place, tmp_path / "out", **MODEL)
        ((case, reason),) = report.failed.items()
        assert len(report.done) == done and "CANARY" not in reason
        (path,) = privacy.paths_of_case(case)
        assert Path(path) == (root / "a" / "CANARY^Anna.dcm" if place == root else place)
        series(root / "b", 2)
    shutil.move(tmp_path / "packed.zip", root / "packed.zip")
    report = predict(root, tmp_path / "out", **MODEL)
    assert len(report.done) == 2 and len(report.failed) == 2, "the zip's series is the same as a's"


def test_what_an_input_cannot_have_costs_it_nothing_else(tmp_path, caplog):
    """A series, a picture and a clip: each has what it can, and what was named and is missing is said."""
    root = tmp_path / "studies"
    series(root / "a", 1)
    pictures(root / "b", "one.png")
    write_video(root / "b" / "clip.mp4", iter([np.full((3, 32, 32), 20, np.uint8)] * 3), fps=5)
    report = predict(root, tmp_path / "out", **MODEL | {"write": ["tables", "seg", "coco", "rtstruct"]})
    assert len(report.done) == 3 and not report.failed
    assert sorted(len(one.left_out) for one in report.done) == [1, 2, 2]
    lacking = {}
    for summary in (tmp_path / "out").glob("*/summary.json"):
        assert (summary.parent / "instances.csv").is_file()
        warned = json.loads(summary.read_text())["warnings"]
        lacking[json.loads(summary.with_name("manifest.json").read_text())["kind"]] = {
            text.partition(" was not written")[0] for text in warned if "was not written" in text
        }
    assert lacking == {"volume": {"coco"}, "image": {"seg", "rtstruct"}, "clip": {"seg", "rtstruct"}}
    assert len(list((tmp_path / "out").glob("*/seg.dcm"))) == 1
    (one,) = predict(root, tmp_path / "one", series="list:1", **MODEL).done
    assert "2 volume(s), picture(s) or video(s) in the folder are not DICOM" in caplog.text and one.instances
    report = predict(root, tmp_path / "one", **MODEL | {"write": ["seg"]})
    assert len(report.done) == 1 and len(report.failed) == 2, "nothing that was asked for can be had of these"
    assert all("seg" in why and "DICOM" in why for why in report.failed.values())


def damaged_series(folder, how):
    """A series of which one file is cut off in its header, or comes twice with other pixels."""
    series(folder, 1)
    last = sorted(folder.rglob("*.dcm"))[-1]
    if how == "twice":
        other = pydicom.dcmread(last)
        values = np.array(other.pixel_array)
        values[0, 0] += 1
        other.PixelData = values.tobytes()
        other.save_as(last.with_name("again.dcm"))
    else:
        last.write_bytes(last.read_bytes()[:how])


@pytest.mark.parametrize("how", [300, 600, "twice"])
def test_what_is_refused_alone_is_refused_in_a_folder(tmp_path, how, caplog):
    """Not counted as a series that shows no picture, as reports and masks are."""
    damaged_series(tmp_path / "in" / "study", how)
    pictures(tmp_path / "in", "a.png")
    report = pydicom.dcmread(pydicom.data.get_testdata_file("test-SR.dcm"))
    report.save_as(tmp_path / "in" / "report.dcm")
    with caplog.at_level("WARNING"):
        report = predict(tmp_path / "in", tmp_path / "out", **MODEL)
    assert len(report.done) == (1 if how == "twice" else 2) and len(report.failed) == 1
    assert "1 DICOM series without a picture" in caplog.text  # the report alone
    (reason,) = report.failed.values()
    assert ("share a SOPInstanceUID" in reason) == (how == "twice")


@pytest.mark.parametrize("name", ["f.png", "f.mp4", "f.dcm", "f.zip", "f.nii.gz", "DICOMDIR", "f"])
def test_a_pipe_or_a_device_stops_nobody(tmp_path, name):
    pictures(tmp_path / "in", "a.png")
    os.mkfifo(tmp_path / "in" / name)
    (tmp_path / "in" / f"link-{name}").symlink_to("/dev/zero")
    report = predict(tmp_path / "in", tmp_path / "out", **MODEL)
    assert len(report.done) == 1 and not report.failed
    for place in (name, f"link-{name}"):
        with pytest.raises(InputError, match="a pipe, a socket or a device, expected a file or a folder"):
            read_image(tmp_path / "in" / place)
    (tmp_path / "nowhere.png").symlink_to(tmp_path / "gone")
    with pytest.raises(InputError, match="is a link to nothing"):
        read_image(tmp_path / "nowhere.png")


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="no /proc: nothing here fails to be read")
def test_a_file_that_cannot_be_read_is_a_failure_of_its_own(tmp_path):
    """Of an address that is not there reading fails as on a damaged disk."""
    series(tmp_path / "in" / "study", 1)
    (tmp_path / "in" / "study" / "x.dcm").symlink_to("/proc/self/mem")
    report = predict(tmp_path / "in", tmp_path / "out", **MODEL)
    assert len(report.done) == 1 and list(report.failed.values()) == [
        "it cannot be read (Input/output error)"
    ]
    code, said = command("inspect", tmp_path / "in")
    assert code == 3 and "5 x 48 x 48" in said
    code, said = command(
        "deidentify", tmp_path / "in", tmp_path / "clean", "--key", tmp_path / "key", "--new-key"
    )
    assert code == 3 and len(list((tmp_path / "clean").rglob("*.dcm"))) == SHAPE[0]
    assert "it cannot be read (Input/output error)" in (tmp_path / "clean" / "files.csv").read_text()

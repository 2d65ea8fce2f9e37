"""Predict, from files to files: what is written lies where the source is."""

import csv
import json
import re
import subprocess
import sysconfig
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from bright import bright_segmenter
from calibrated import ASKED, COARSE, calibrated, drawn_set
from displaced import SPACE

from clearmargin import privacy
from clearmargin.core import Grid, Image, Source
from clearmargin.datasets.phantom_study import write_ct_series
from clearmargin.errors import ConfigError, GeometryError, InputError
from clearmargin.formats import read_image
from clearmargin.formats.dicom.seg import read_dicom_seg, write_dicom_seg
from clearmargin.formats.raster import write_raster
from clearmargin.formats.video import write_video
from clearmargin.formats.volume import read_volume, write_volume
from clearmargin.models.domain import Domain
from clearmargin.predict import predict

BOX = (slice(2, 5), slice(20, 36), slice(10, 42))
SHAPE = (7, 64, 64)


@pytest.fixture
def bright(monkeypatch):
    """Predict with the network that sees what is bright, in Hounsfield units from 0 to 400."""
    monkeypatch.setattr(
        "clearmargin.sampling.samples.load_segmenter", lambda *_, **__: bright_segmenter(0, 400)
    )


def ct(folder, affine=None):
    pixels = np.full((1, *SHAPE), -50, np.int16)
    pixels[(0, *BOX)] = 390
    grid = Grid.from_spacing(SHAPE, (5.0, 0.8, 0.7))
    if affine is not None:
        grid = Grid(shape=SHAPE, affine=affine, unit="mm")
    write_ct_series(folder, Image(pixels=pixels, grid=grid, source=Source(modality="CT")), 1, 1)
    return grid


def test_a_dicom_folder_gives_a_seg_in_place(bright, tmp_path):
    ct(tmp_path / "ct")
    (done,) = predict(tmp_path / "ct", tmp_path / "out", model=Path("any"), uncertainty="tta").done
    assert done.instances == 1 and done.by_class == {"tumour": 1}
    image = read_image(tmp_path / "ct")
    back = read_dicom_seg(done.folder / "seg.dcm", grid=image.grid)
    expected = np.zeros(SHAPE, bool)
    # a prediction lies where the bright pixels are, in the order of the slices as they were read
    expected[image.pixels[0] > 200] = True
    np.testing.assert_array_equal(back.masks[0].dense(), expected)
    entropy = read_volume(done.folder / "entropy.nii.gz")
    assert entropy.grid.same_as(image.grid)
    (row,) = json.loads((done.folder / "instances.json").read_text())
    assert row["volume_mm3"] == pytest.approx(expected.sum() * 5.0 * 0.8 * 0.7)
    # dcmqi, a second implementation, reads the same numbers from the report
    tool = Path(sysconfig.get_path("scripts")) / "tid1500reader"
    command = [tool, "--inputDICOM", done.folder / "report.dcm", "--outputMetadata", tmp_path / "sr.json"]
    subprocess.run(command, check=True, capture_output=True)
    (group,) = json.loads((tmp_path / "sr.json").read_text())["Measurements"]
    values = {m["quantity"]["CodeMeaning"]: float(m["value"]) for m in group["measurementItems"]}
    for name, column in (("Volume", "volume_mm3"), ("Long axis", "long_axis_mm"), ("Score", "score")):
        assert values[name] == pytest.approx(row[column], rel=1e-5)
    centre = image.grid.to_world(np.argwhere(expected).mean(axis=0))
    assert [row[f"centroid_{a}_mm"] for a in "xyz"] == pytest.approx(list(centre), abs=0.01)
    assert len(list((done.folder / "overlay").glob("slice-*.png"))) == 3
    summary = json.loads((done.folder / "summary.json").read_text())
    assert "research" in summary["use"] and summary["unit"] == "mm"


def test_the_same_prediction_gives_the_same_seg(bright, tmp_path):
    ct(tmp_path / "ct")
    first = predict(tmp_path / "ct", tmp_path / "a", model=Path("any")).done[0].folder / "seg.dcm"
    second = predict(tmp_path / "ct", tmp_path / "b", model=Path("any")).done[0].folder / "seg.dcm"
    assert first.read_bytes() == second.read_bytes()


def test_nothing_found_writes_tables_and_no_seg(bright, tmp_path):
    pixels = np.full((1, *SHAPE), -50, np.int16)
    grid = Grid.from_spacing(SHAPE, (5.0, 0.8, 0.7))
    write_ct_series(tmp_path / "ct", Image(pixels=pixels, grid=grid, source=Source(modality="CT")), 1, 1)
    (done,) = predict(tmp_path / "ct", tmp_path / "out", model=Path("any"), uncertainty="tta").done
    assert done.instances == 0 and not (done.folder / "seg.dcm").exists()
    with (done.folder / "instances.csv").open(newline="") as stream:
        assert list(csv.DictReader(stream)) == []
    assert read_volume(done.folder / "entropy.nii.gz").pixels.max() == 0


def test_a_missing_slice_is_refused(bright, tmp_path):
    ct(tmp_path / "ct")
    sorted((tmp_path / "ct").iterdir())[3].unlink()
    with pytest.raises(GeometryError, match="missing"):
        predict(tmp_path / "ct", tmp_path / "out", model=Path("any"))
    assert not list((tmp_path / "out").iterdir())


def test_a_volume_without_dicom_writes_no_dicom(bright, tmp_path):
    pixels = np.full(SHAPE, -50, np.int16)
    pixels[BOX] = 390
    write_volume(tmp_path / "x.nii.gz", pixels, Grid.from_spacing(SHAPE, (5.0, 0.8, 0.7)))
    (done,) = predict(tmp_path / "x.nii.gz", tmp_path / "out", model=Path("any")).done
    assert done.instances == 1 and not list(done.folder.glob("*.dcm"))
    import nibabel

    volume = nibabel.load(tmp_path / "x.nii.gz")
    for name in ("instances.nii.gz", "classes.nii.gz"):
        mask = nibabel.load(done.folder / name)
        np.testing.assert_allclose(mask.affine, volume.affine)
        np.testing.assert_array_equal(np.asarray(mask.dataobj), np.asarray(volume.dataobj) > 200)


def test_a_picture_gives_a_label_map_and_coco_run_lengths(bright, tmp_path):
    from PIL import Image as Pillow

    pixels = np.full((64, 96), 20, np.uint8)
    pixels[10:30, 12:40] = 240
    write_raster(tmp_path / "a.png", pixels)
    (done,) = predict(tmp_path / "a.png", tmp_path / "out", model=Path("any"), display_window=True).done
    labels = np.asarray(Pillow.open(done.folder / "instances.png"))
    np.testing.assert_array_equal(labels > 0, pixels > 200)
    rows = json.loads((done.folder / "instances.json").read_text())
    content = json.loads((done.folder / "coco.json").read_text())
    assert len(rows) == len(content["annotations"]) == 1
    for row, annotation in zip(rows, content["annotations"], strict=True):
        runs = annotation["segmentation"]["counts"]
        dense = np.repeat(np.arange(len(runs)) % 2, runs).reshape(96, 64).T
        np.testing.assert_array_equal(dense, labels == row["instance"])
        assert annotation["score"] == pytest.approx(row["score"], abs=1e-5)
    summary = json.loads((done.folder / "summary.json").read_text())
    assert summary["files"]["masks"][0] == "instances.png" and summary["files"]["coco"] == ["coco.json"]


def test_a_clip_is_segmented_frame_by_frame(bright, tmp_path):
    frames = np.full((10, 3, 64, 96), 20, np.uint8)
    for t in range(10):
        frames[t, :, 20:40, 10 + 4 * t : 34 + 4 * t] = 240
    write_video(tmp_path / "clip.mp4", frames, 5)
    (done,) = predict(
        tmp_path / "clip.mp4", tmp_path / "out", model=Path("any"), uncertainty="tta", display_window=True
    ).done
    rows = json.loads((done.folder / "instances.json").read_text())
    assert [r["frame"] for r in rows] == list(range(10))
    assert [r["time_s"] for r in rows] == pytest.approx([t / 5 for t in range(10)], abs=1e-3)
    assert [r["x_first"] for r in rows] == pytest.approx([10 + 4 * t for t in range(10)], abs=1)
    assert all("volume_mm3" not in r and "area_mm2" not in r for r in rows)
    from clearmargin.formats import open_video

    assert open_video(done.folder / "overlay.mp4").frame_count == 10
    assert len(list((done.folder / "overlay").glob("*.png"))) == 2  # one a second
    content = json.loads((done.folder / "coco.json").read_text())
    assert [image["file_name"] for image in content["images"]] == [f"frame-{t:06d}" for t in range(10)]
    assert len(content["annotations"]) == 10


def test_display_values_need_a_window(monkeypatch, tmp_path):
    from dataclasses import replace

    from clearmargin.transforms.settings import Percentiles

    segmenter = bright_segmenter()
    percentiles = replace(segmenter, image=segmenter.image.model_copy(update={"intensity": Percentiles()}))
    monkeypatch.setattr("clearmargin.sampling.samples.load_segmenter", lambda *_, **__: percentiles)
    with pytest.raises(ConfigError, match="percentiles"):
        predict(tmp_path, tmp_path / "out", model=Path("any"), display_window=True)


def test_tiles_give_the_same_object_and_refuse_what_cannot_be(bright, tmp_path):
    pixels = np.full((1, 300, 400), -50, np.int16)
    pixels[:, 40:230, 90:350] = 390
    write_volume(tmp_path / "x.nii.gz", pixels, Grid.from_spacing((1, 300, 400), (5.0, 0.8, 0.7)))
    written = []
    for name, tile in (("whole", None), ("tiles", 128)):
        (done,) = predict(tmp_path / "x.nii.gz", tmp_path / name, model=Path("any"), tile=tile).done
        written.append(json.loads((done.folder / "instances.json").read_text()))
    (whole,), (tiled,) = written
    assert all(tiled[k] == whole[k] for k in ("y_first", "y_last", "x_first", "x_last", "score"))
    assert tiled["volume_mm3"] == pytest.approx(190 * 260 * 0.8 * 0.7 * 5)
    with pytest.raises(ConfigError, match="multiples of 32"):
        predict(tmp_path / "x.nii.gz", tmp_path / "out", model=Path("any"), tile=100)


def test_an_image_of_another_kind_is_refused_and_forced(monkeypatch, tmp_path):
    """Trained on CT: a colour Doppler picture is refused with the reason; forced, the case is referred."""
    colour = np.full((3, 64, 64), 10, np.uint8)
    colour[0, 20:40, 20:40] = 250
    colour[1:, 20:40, 20:40] = 200
    write_raster(tmp_path / "doppler.png", colour)
    domain = Domain(modalities=("CT",), channels=(1,), lows=(-1000, -900), highs=(900, 1500))
    segmenter = replace(bright_segmenter(0, 255), domain=domain)
    monkeypatch.setattr("clearmargin.sampling.samples.load_segmenter", lambda *_, **__: segmenter)
    with pytest.raises(InputError, match=r"trained on grey images, and this one is colour.*--force"):
        predict(tmp_path / "doppler.png", tmp_path / "out", model=Path("any"))
    (done,) = predict(tmp_path / "doppler.png", tmp_path / "out", model=Path("any"), force=True).done
    assert done.instances == 1 and done.referred == 0
    assert any("colour" in warning for warning in done.warnings)
    summary = json.loads((done.folder / "summary.json").read_text())
    assert "trained on grey images" in summary["refer_case"][0]


def test_values_that_are_not_finite_are_counted_and_referred(bright, tmp_path):
    pixels = np.full(SHAPE, -50, np.float32)
    pixels[BOX] = 390
    pixels[0, 0, :3] = np.nan, -np.inf, -np.inf
    write_volume(tmp_path / "x.nii.gz", pixels, Grid.from_spacing(SHAPE, (5.0, 0.8, 0.7)))
    (done,) = predict(tmp_path / "x.nii.gz", tmp_path / "out", model=Path("any")).done
    assert done.instances == 1
    summary = json.loads((done.folder / "summary.json").read_text())
    assert (
        summary["warnings"]
        == summary["refer_case"]
        == [f"3 of {pixels.size} values are not finite (NaN or infinite): they were left out"]
    )
    write_volume(tmp_path / "y.nii.gz", np.full(SHAPE, np.nan, np.float32), Grid.from_spacing(SHAPE))
    with pytest.raises(InputError, match="none of its 28672 values is finite"):
        predict(tmp_path / "y.nii.gz", tmp_path / "out", model=Path("any"))


def test_an_empty_folder_says_what_was_expected(bright, tmp_path):
    (tmp_path / "in").mkdir()
    with pytest.raises(
        InputError, match=r"holds nothing that can be segmented: expected DICOM, or files ending in"
    ):
        predict(tmp_path / "in", tmp_path / "out", model=Path("any"))


def test_real_liver_slices_give_a_seg_in_place(data_root, bright, tmp_path):
    """Three real slices: what is above 200 HU is found, and dcmqi reads the SEG where the slices are."""

    import SimpleITK as sitk  # noqa: N813

    source = tmp_path / "liver"
    source.mkdir()
    for name in ("01.dcm", "02.dcm", "03.dcm"):
        (source / name).symlink_to(data_root / "dicom_ct_seg_rtstruct_small" / "dcmqi_liver" / name)
    (done,) = predict(source, tmp_path / "out", model=Path("any")).done
    image = read_image(source)
    ours = read_dicom_seg(done.folder / "seg.dcm", grid=image.grid)
    assert len(ours) == 1
    tool = Path(sysconfig.get_path("scripts")) / "segimage2itkimage"
    subprocess.run(
        [tool, "--inputDICOM", done.folder / "seg.dcm", "--outputDirectory", tmp_path, "-t", "nrrd"],
        check=True,
        capture_output=True,
    )
    (file,) = tmp_path.glob("*.nrrd")
    theirs = sitk.ReadImage(file)
    indices = np.argwhere(sitk.GetArrayFromImage(theirs) > 0)
    world = np.array([theirs.TransformIndexToPhysicalPoint([int(v) for v in i[::-1]]) for i in indices])
    expected = image.grid.to_world(np.argwhere(ours.masks[0].dense()))
    order = np.lexsort(world.round(2).T)
    np.testing.assert_allclose(world[order], expected[np.lexsort(expected.round(2).T)], atol=0.01)


def test_the_readme_example_runs(tmp_path, monkeypatch):
    ct(tmp_path / "study" / "ct")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("clearmargin.models.load_segmenter", lambda *_, **__: bright_segmenter(0, 400))
    image = read_image(Path("study/ct"))
    write_dicom_seg(Path("study/truth.dcm"), bright_segmenter(0, 400)(image), image)
    text = (Path(__file__).parent.parent / "README.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", text, re.S)
    exec(compile(code, "README.md", "exec"), {})
    assert (tmp_path / "study" / "seg.dcm").is_file()


CANARIES = ("Canary^Anna", "CANARY-4711", "19630204", "Canary Hospital", "1.2.826.0.1.3680043.999")


def test_no_identifier_leaves_the_dicom_files(bright, tmp_path, caplog, capsys):
    """Names, numbers and dates planted in headers and file names are found nowhere but in the SEG that needs them."""
    import pydicom

    ct(tmp_path / "ct")
    folder = tmp_path / "Canary^Anna"
    folder.mkdir()
    for k, path in enumerate(sorted((tmp_path / "ct").iterdir())):
        dataset = pydicom.dcmread(path)
        dataset.PatientName, dataset.PatientID, dataset.PatientBirthDate = CANARIES[:3]
        dataset.InstitutionName = CANARIES[3]
        dataset.StudyInstanceUID = CANARIES[4]
        dataset.save_as(folder / f"CANARY-4711-{k}.dcm")
    with caplog.at_level("DEBUG"):
        (done,) = predict(folder, tmp_path / "out", model=Path("any"), uncertainty="tta").done
    output = capsys.readouterr()
    texts = [caplog.text, output.out, output.err, repr(done)]
    texts += [
        p.read_bytes().decode("latin1") for p in done.folder.rglob("*") if p.is_file() and p.suffix != ".dcm"
    ]
    texts += [str(p.relative_to(tmp_path)) for p in (tmp_path / "out").rglob("*")]
    for canary in CANARIES:
        assert not [t[:80] for t in texts if canary in t]
    assert privacy.recorded_cases()[done.case] == str(folder.resolve())


@pytest.fixture(scope="module")
def calibration():
    """Of phantoms in mm, in space, with edges."""
    drawn = drawn_set(14, SPACE)
    return calibrated(drawn, asked=replace(ASKED, alphas=(0.2,)))[0]


def test_a_calibrated_model_gives_margins_in_every_form(bright, calibration, monkeypatch, tmp_path):
    monkeypatch.setattr("clearmargin.predicting.predictor.load_calibration", lambda *_: calibration)
    ct(tmp_path / "ct")
    report = predict(tmp_path / "ct", tmp_path / "out", model=Path("any"), uncertainty="tta")
    (done,) = report.done
    outer, _inner = report.promises
    assert "grown by its outer margin" in outer and "n = " in outer and "alpha 0.2" in outer
    image = read_image(tmp_path / "ct")
    mask, grown, shrunk = (
        read_dicom_seg(done.folder / name, grid=image.grid).masks[0].dense()
        for name in ("seg.dcm", "margin_outer.dcm", "margin_inner.dcm")
    )
    assert (grown | mask == grown).all() and (shrunk & mask == shrunk).all()
    (row,) = json.loads((done.folder / "instances.json").read_text())
    voxel = 5.0 * 0.8 * 0.7
    assert row["outer_volume_mm3"] == pytest.approx(grown.sum() * voxel, rel=1e-5)
    assert row["inner_volume_mm3"] == pytest.approx(shrunk.sum() * voxel, rel=1e-5)
    assert row["margin_outer_mm"] > 0 and row["margin_inner_mm"] > 0
    edges = list(csv.DictReader((done.folder / "edges.csv").read_text().splitlines()))
    inside = [mask[tuple(int(e[axis]) for axis in "zyx")] for e in edges]
    assert all(inside) and row["edge_sd_mm"] == pytest.approx(
        np.mean([float(e["sd_mm"]) for e in edges]), abs=1e-3
    )
    summary = json.loads((done.folder / "summary.json").read_text())
    assert summary["referred"] == done.referred == row["refer"] and summary["refer_case"] == []
    assert done.promised and summary["calibration"]["promises"] == list(report.promises)
    tool = Path(sysconfig.get_path("scripts")) / "tid1500reader"
    command = [tool, "--inputDICOM", done.folder / "report.dcm", "--outputMetadata", tmp_path / "sr.json"]
    subprocess.run(command, check=True, capture_output=True)
    (group,) = json.loads((tmp_path / "sr.json").read_text())["Measurements"]
    items = {m["quantity"]["CodeMeaning"]: m for m in group["measurementItems"]}
    assert float(items["Margin outer"]["value"]) == pytest.approx(row["margin_outer_mm"], rel=1e-5)
    assert items["Margin outer"]["units"]["CodeValue"] == "mm"
    assert items["Outer volume"]["units"]["CodeValue"] == "mm3"
    assert {"entropy.dcm", "foreground.dcm", "mutual_information.dcm", "variance.dcm"} <= {
        p.name for p in done.folder.iterdir()
    }


def test_a_calibration_in_other_units_is_said_not_to_apply(bright, calibration, monkeypatch, tmp_path):
    monkeypatch.setattr("clearmargin.predicting.predictor.load_calibration", lambda *_: calibration)
    write_raster(tmp_path / "a.png", np.full((64, 64), 60, np.uint8))
    (done,) = predict(tmp_path / "a.png", tmp_path / "out", model=Path("any")).done
    assert "calibrated on images in mm and this one is in px" in done.warnings[0]
    assert not done.promised
    assert json.loads((done.folder / "summary.json").read_text())["calibration"]["promises"] == []
    assert not (done.folder / "margin_outer.dcm").exists()


def test_a_case_unlike_the_calibration_is_referred_as_a_case_and_has_no_margins(
    bright, monkeypatch, tmp_path
):
    drawn = drawn_set(24, replace(COARSE, spacing=None), edges=False, maps=False)
    of_pixels, _ = calibrated(drawn, asked=replace(ASKED, alphas=(0.2,), miss_alpha=0.3, match_iou=0.5))
    monkeypatch.setattr("clearmargin.predicting.predictor.load_calibration", lambda *_: of_pixels)
    pixels = np.full((64, 64), 10, np.uint8)  # the phantoms' values lie about 100
    pixels[20:40, 20:40] = 250
    write_raster(tmp_path / "a.png", pixels)
    report = predict(tmp_path / "a.png", tmp_path / "out", model=Path("any"))
    (done,) = report.done
    summary = json.loads((done.folder / "summary.json").read_text())
    (why,) = summary["refer_case"]
    assert "looks like no calibration case" in why and "not promised for it" in why
    (row,) = json.loads((done.folder / "instances.json").read_text())
    assert "margin_outer_px" not in row and "calibration" not in row["refer_because"]
    assert not done.promised and summary["calibration"]["promises"] == []
    # the threshold against misses is what is used, and its sentence is written; with a higher one it is not
    assert summary["calibration"]["score_thresholds"] == {"tumour": of_pixels.misses.threshold}
    assert any("missed, merged or cut" in promise for promise in report.promises)
    higher = predict(tmp_path / "a.png", tmp_path / "high", model=Path("any"), score_threshold=0.999)
    assert not any("missed, merged or cut" in promise for promise in higher.promises)


def test_a_folder_unlike_the_calibration_is_warned_of_as_a_whole(bright, monkeypatch, tmp_path, caplog):
    drawn = drawn_set(14, replace(COARSE, spacing=None), edges=False, maps=False)
    of_pixels, _ = calibrated(drawn, asked=replace(ASKED, alphas=(0.2,)))
    monkeypatch.setattr("clearmargin.predicting.predictor.load_calibration", lambda *_: of_pixels)
    (tmp_path / "in").mkdir()
    for k in range(5):
        pixels = np.full((64, 64), 60 + k, np.uint8)
        pixels[20:40, 20:40] = 250
        write_raster(tmp_path / "in" / f"{k}.png", pixels)
    report = predict(tmp_path / "in", tmp_path / "out", model=Path("any"), score_threshold=0.1)
    assert any("differs from the calibration cases" in warning for warning in report.drift)
    assert (
        of_pixels.thresholds.lowest > 0.1
        and "the promises are about instances with a score of" in caplog.text
    )
    (row,) = json.loads((report.done[0].folder / "instances.json").read_text())
    assert row["margin_outer_px"] > 0 and row["inner_area_px"] <= row["area_px"] <= row["outer_area_px"]


def test_a_dicom_clip_gives_a_seg_of_its_frames(bright, tmp_path):
    """One segment for each instance of each frame, tied to the frame by its number; read by pydicom."""
    pydicom = pytest.importorskip("pydicom")
    frames = np.full((6, 64, 96), 20, np.uint8)
    for t in (1, 2, 4):
        frames[t, 20:40, 10 + 4 * t : 34 + 4 * t] = 240
    clip = pydicom.Dataset()
    clip.file_meta = pydicom.dataset.FileMetaDataset()
    clip.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    clip.SOPClassUID = clip.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.3.1"
    clip.SOPInstanceUID = clip.file_meta.MediaStorageSOPInstanceUID = "1.2.826.0.1"
    clip.StudyInstanceUID, clip.SeriesInstanceUID, clip.Modality = "1.2.826.0.2", "1.2.826.0.3", "US"
    clip.Rows, clip.Columns, clip.NumberOfFrames, clip.FrameTime = 64, 96, 6, "40"
    clip.SamplesPerPixel, clip.PhotometricInterpretation = 1, "MONOCHROME2"
    clip.BitsAllocated = clip.BitsStored = 8
    clip.HighBit, clip.PixelRepresentation, clip.PixelData = 7, 0, frames.tobytes()
    clip["PixelData"].VR = "OB"
    clip.save_as(tmp_path / "clip.dcm", enforce_file_format=True)
    (done,) = predict(tmp_path / "clip.dcm", tmp_path / "out", model=Path("any"), display_window=True).done
    rows = json.loads((done.folder / "instances.json").read_text())
    assert [r["frame"] for r in rows] == [1, 2, 4]
    seg = pydicom.dcmread(done.folder / "seg.dcm")
    sources = [
        f.DerivationImageSequence[0].SourceImageSequence[0] for f in seg.PerFrameFunctionalGroupsSequence
    ]
    assert [int(s.ReferencedFrameNumber) for s in sources] == [2, 3, 5]
    assert {s.ReferencedSOPInstanceUID for s in sources} == {"1.2.826.0.1"}
    assert len(seg.SegmentSequence) == 3 and seg.pixel_array.shape == (3, 64, 96)
    np.testing.assert_array_equal(seg.pixel_array.astype(bool), (frames > 200)[[1, 2, 4]])
    # a clip that no result can refer to keeps its tables, and the summary says what is missing
    clip.StudyInstanceUID = ""
    clip.save_as(tmp_path / "nameless.dcm", enforce_file_format=True)
    (done,) = predict(tmp_path / "nameless.dcm", tmp_path / "b", model=Path("any"), display_window=True).done
    assert not (done.folder / "seg.dcm").exists() and done.instances == 3
    assert "seg was not written" in json.loads((done.folder / "summary.json").read_text())["warnings"][0]


def test_a_case_folder_holds_the_files_of_one_run(bright, tmp_path):
    """Nothing found the second time: no SEG, report, map or picture of the first run may lie beside that."""
    ct(tmp_path / "ct")
    (first,) = predict(tmp_path / "ct", tmp_path / "out", model=Path("any"), uncertainty="tta").done
    names = {p.name for p in first.folder.rglob("*")}
    assert {"seg.dcm", "report.dcm", "entropy.dcm", "entropy.nii.gz", "overlay"} <= names
    (second,) = predict(tmp_path / "ct", tmp_path / "out", model=Path("any"), score_threshold=1.0).done
    assert second.folder == first.folder and second.instances == 0
    left = {p.name for p in second.folder.rglob("*")}
    assert not [n for n in left if n.endswith((".dcm", ".nii.gz", ".png"))]
    fresh = (
        predict(tmp_path / "ct", tmp_path / "fresh", model=Path("any"), score_threshold=1.0).done[0].folder
    )
    assert left == {p.name for p in fresh.rglob("*")}
    assert [p.name for p in (tmp_path / "out").iterdir()] == [second.case]  # no draft stays behind


def test_a_run_that_fails_leaves_the_earlier_one(bright, tmp_path, monkeypatch):
    ct(tmp_path / "ct")
    (first,) = predict(tmp_path / "ct", tmp_path / "out", model=Path("any")).done
    before = {p.name: p.read_bytes() for p in first.folder.rglob("*") if p.is_file()}

    def broken(*_, **__):
        raise OSError("the disk is full")

    monkeypatch.setattr("clearmargin.outputs.folder.write_text", broken)
    with pytest.raises(OSError, match="disk is full"):
        predict(tmp_path / "ct", tmp_path / "out", model=Path("any"))
    assert {p.name: p.read_bytes() for p in first.folder.rglob("*") if p.is_file()} == before
    assert [p.name for p in (tmp_path / "out").iterdir()] == [first.case]


def test_what_was_accepted_is_in_the_summary(bright, tmp_path):
    import pydicom

    ct(tmp_path / "ct")
    files = sorted((tmp_path / "ct").iterdir())
    with pytest.raises(GeometryError, match="tolerance-mm"):
        dataset = pydicom.dcmread(files[3])
        dataset.ImagePositionPatient[0] += 0.5
        dataset.save_as(files[3])
        predict(tmp_path / "ct", tmp_path / "out", model=Path("any"))
    (done,) = predict(tmp_path / "ct", tmp_path / "out", model=Path("any"), tolerance_mm=0.6).done
    summary = json.loads((done.folder / "summary.json").read_text())
    assert summary["deviation_mm"] == pytest.approx(0.5, abs=1e-6) and summary["tolerance_mm"] == 0.6


def test_all_phases_of_a_series_are_cases(bright, tmp_path):
    import pydicom

    ct(tmp_path / "ct")
    for file in sorted((tmp_path / "ct").iterdir()):
        dataset = pydicom.dcmread(file)
        dataset.AcquisitionNumber = 1
        dataset.save_as(file)
        dataset.AcquisitionNumber = 2
        dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID + ".2"
        dataset.save_as(file.with_name(f"second-{file.name}"))
    with pytest.raises(GeometryError, match="2 volumes, choose one with --volume"):
        predict(tmp_path / "ct", tmp_path / "out", model=Path("any"))
    report = predict(tmp_path / "ct", tmp_path / "out", model=Path("any"), volume="all")
    assert [d.instances for d in report.done] == [1, 1] and len({d.case for d in report.done}) == 2
    (one,) = predict(tmp_path / "ct", tmp_path / "out", model=Path("any"), volume="acquisition 2").done
    assert one.case == report.done[1].case

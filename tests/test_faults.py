"""Broken and hostile input ends as one case's failure or with a sentence: bounded, whole, and below what was named."""

import errno
import json
import os
import re
import resource
import shutil
import struct
import subprocess
import sys
import threading
import time
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pydicom
import pytest
import torch
import yaml
from command import command
from hypothesis import given
from hypothesis import strategies as st
from pydicom.data import get_testdata_file
from toy import train_toy

from clearmargin import evaluate as evaluate_module
from clearmargin.config import parse_yaml, read_yaml
from clearmargin.core import Grid, Mask
from clearmargin.datasets.cases import open_dataset
from clearmargin.deidentification.key import write_new_key
from clearmargin.deidentify import deidentify
from clearmargin.errors import ClearMarginError, InputError
from clearmargin.failures import reason_of, refusal_of
from clearmargin.files import below, cell, csv_rows, printable, uncell, whole, write_text
from clearmargin.formats import open_video, read_image
from clearmargin.formats import raster as raster_module
from clearmargin.formats.coco import _from_run_lengths, read_coco_images
from clearmargin.formats.dicom.boundary import read_header
from clearmargin.formats.raster import write_raster
from clearmargin.formats.volume import write_volume
from clearmargin.predicting import cases as cases_module

SOURCE = Path(__file__).parents[1] / "pipeline" / "clearmargin"
LIMIT_MIB = 600


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    return train_toy(tmp_path_factory.mktemp("toy"))


@pytest.fixture
def small_limit(monkeypatch):
    monkeypatch.setenv("CLEARMARGIN_MAX_GIB", "0.0625")  # 64 MiB


# --- files are whole, or not there ---


def test_a_file_is_whole_or_as_it_was(tmp_path):
    path = tmp_path / "table.csv"
    path.write_text("before")
    with pytest.raises(ValueError, match="midway"), whole(path) as draft:
        draft.write_text("half")
        assert path.read_text() == "before"
        raise ValueError("midway")
    assert path.read_text() == "before" and [p.name for p in tmp_path.iterdir()] == ["table.csv"]
    with whole(path) as draft:
        draft.write_text("after")
        draft.chmod(0o600)  # as safetensors leaves its files
    umask = os.umask(0)
    os.umask(umask)
    assert path.read_text() == "after" and path.stat().st_mode & 0o777 == 0o666 & ~umask


def test_no_other_place_writes_files():
    """By the source: who writes a file under its final name can leave half of it there."""
    allowed = {
        "files.py",
        "privacy.py",
        "measure.py",
        "tracking/review.py",
        "tracking/store.py",
    }
    wrong = []
    for file in SOURCE.rglob("*.py"):
        name = str(file.relative_to(SOURCE))
        text = file.read_text()
        for line in re.findall(
            r"^.*\.(?:write_text|write_bytes|savefig|WriteImage|save_as)\(.*$", text, re.M
        ):
            inside_whole = re.search(r"\b(draft|self\._draft|stream)\b", line)
            if name not in allowed and not inside_whole and "phantom" not in name:
                wrong.append((name, line.strip()))
    assert not wrong


WRITES = """
import resource, sys
from pathlib import Path
import numpy as np, torch
from clearmargin.core import Grid
from clearmargin.formats.raster import write_raster
from clearmargin.formats.volume import write_volume
from clearmargin.formats.video import write_video
from clearmargin.report.tables import write_rows_csv, write_rows_json
from clearmargin.models.folder import _save_weights
from clearmargin.training.checkpoint import guard_disk
from clearmargin.errors import TrainingError
from clearmargin.files import whole

folder, limit = Path(sys.argv[1]), int(sys.argv[2])
rng = np.random.default_rng(0)
noise = rng.integers(0, 255, (8, 128, 128)).astype(np.uint8)
grid = Grid.from_spacing(noise.shape, (1, 1, 1))

def checkpoint():
    with whole(folder / "checkpoint.pt") as draft:
        torch.save({"w": torch.zeros(300_000)}, draft)

writers = {
    "a.png": lambda: write_raster(folder / "a.png", noise[0]),
    "a.jpg": lambda: write_raster(folder / "a.jpg", noise[0]),
    "a.tif": lambda: write_raster(folder / "a.tif", noise[0]),
    "a.nii.gz": lambda: write_volume(folder / "a.nii.gz", noise, grid),
    "a.nrrd": lambda: write_volume(folder / "a.nrrd", noise, grid),
    "a.mha": lambda: write_volume(folder / "a.mha", noise, grid),
    "a.mp4": lambda: write_video(folder / "a.mp4", [np.stack([f] * 3) for f in noise] * 20, 25),
    "a.csv": lambda: write_rows_csv(folder / "a.csv", [{"x": k} for k in range(2000)], ()),
    "a.json": lambda: write_rows_json(folder / "a.json", [{"x": k} for k in range(2000)]),
    "w.safetensors": lambda: _save_weights(folder / "w.safetensors", {"w": torch.zeros(300_000)}),
    "checkpoint.pt": checkpoint,
}
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
for name, write in writers.items():
    try:
        write()
        print(name, "written")
    except OSError as error:
        print(name, "errno", error.errno)
    except Exception as error:
        print(name, type(error).__name__, error)
try:
    guard_disk(checkpoint)
except TrainingError as error:
    print("training", error)
"""


def test_every_writer_says_a_full_disk_by_its_number_and_leaves_nothing(tmp_path):
    """A limit on a file's size stands for the disk: the system refuses the write, each library in words of its own."""
    done = subprocess.run(
        [sys.executable, "-c", WRITES, tmp_path, "2000"],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    lines = dict(line.split(" ", 1) for line in done.stdout.splitlines())
    assert len(lines) == 12, done.stderr[-2000:]
    assert "disk is full" in lines.pop("training")
    assert set(lines.values()) == {f"errno {errno.EFBIG}"}, lines
    assert list(tmp_path.iterdir()) == []


# --- one bad file ---


def test_a_reason_has_the_type_and_no_value():
    def broken():
        return len(3)  # type: ignore[arg-type]

    try:
        broken()
    except TypeError as error:
        said = reason_of(error)
    assert said.startswith("TypeError at test_faults.py:") and "int" not in said
    assert reason_of(InputError("a sentence")) == "a sentence"
    assert reason_of(MemoryError()).startswith("MemoryError: there is not enough memory")
    assert "PermissionError" in reason_of(PermissionError(errno.EACCES, "Permission denied", "/secret/name"))
    assert "secret" not in reason_of(PermissionError(errno.EACCES, "Permission denied", "/secret/name"))
    with pytest.raises(OSError, match="No space"):  # no other case could be done either
        reason_of(OSError(errno.ENOSPC, "No space left on device"))
    assert refusal_of(ValueError("x")) is None
    assert refusal_of(RuntimeError("Anna")) is None


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory. Tried"), None], ids=["GPU", "CPU"]
)
def test_torchs_want_of_memory_is_told_as_such(error):
    if error is None:
        with pytest.raises(RuntimeError) as caught:  # torch's own, of a size that no machine has
            torch.empty(2**55, dtype=torch.uint8)
        error = caught.value
    assert "not enough memory" in refusal_of(error)


ERRORS = [
    TypeError("Anna"),
    MemoryError("Anna"),
    RecursionError("Anna"),
    ValueError("Anna"),
    OSError(5, "Anna"),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda e: type(e).__name__)
def test_whatever_one_file_provokes_the_others_are_predicted(toy, tmp_path, monkeypatch, error):
    folder, _, model = toy
    inputs = tmp_path / "in"
    inputs.mkdir()
    for k in range(3):
        (inputs / f"t{k}.png").write_bytes((folder / "data" / f"t{k}.png").read_bytes())
    original = raster_module.read_raster

    def read(path):
        if path.name == "t1.png":
            raise error
        return original(path)

    monkeypatch.setattr(raster_module, "read_raster", read)
    code, said = command("predict", inputs, tmp_path / "out", "--model", model)
    assert code == 3 and type(error).__name__ in said and "1 of 3 inputs failed" in said
    assert "Anna" not in said and "t1.png" not in said
    folders = sorted(p.name for p in (tmp_path / "out").iterdir())
    assert len(folders) == 2 and not any(name.startswith(".") for name in folders)


def test_a_full_disk_ends_a_folder_with_what_was_done(toy, tmp_path, monkeypatch):
    folder, _, model = toy
    inputs = tmp_path / "in"
    inputs.mkdir()
    for k in range(3):
        (inputs / f"t{k}.png").write_bytes((folder / "data" / f"t{k}.png").read_bytes())
    original, calls = cases_module.write_case, []

    def write(*arguments, **options):
        calls.append(1)
        if len(calls) == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        return original(*arguments, **options)

    monkeypatch.setattr(cases_module, "write_case", write)
    code, said = command("predict", inputs, tmp_path / "out", "--model", model)
    assert code == 4 and "No space left" in said and len(calls) == 2
    assert len(list((tmp_path / "out").iterdir())) == 1


def test_whatever_one_case_provokes_the_others_are_measured(toy, tmp_path, monkeypatch):
    folder, card, model = toy
    monkeypatch.chdir(folder)
    dataset = open_dataset(card)
    bad = dataset.split("train")[1].case
    original = evaluate_module.Dataset.read

    def read(self, case):
        if case.case == bad:
            raise TypeError("Anna")
        return original(self, case)

    monkeypatch.setattr(evaluate_module.Dataset, "read", read)
    code, said = command("evaluate", model, "--card", card, "--split", "train", "--out", tmp_path / "tables")
    assert code == 3 and bad in said and "TypeError" in said and "Anna" not in said
    numbers = json.loads((tmp_path / "tables" / "numbers.json").read_text())
    assert numbers["counts"]["failed"] == 1 and numbers["counts"]["cases"] == 4 and bad in numbers["failed"]
    found = evaluate_module.evaluate(model, card, split="train")
    with pytest.raises(InputError, match="could not be measured"):
        found.complete()


def test_whatever_one_file_provokes_the_others_are_deidentified(tmp_path, monkeypatch):
    from clearmargin.deidentification import file as file_module

    shipped = Path(pydicom.__file__).parent / "data" / "test_files"
    (tmp_path / "in").mkdir()
    for name in ("CT_small.dcm", "MR_small.dcm"):
        (tmp_path / "in" / name).write_bytes((shipped / name).read_bytes())
    write_new_key(tmp_path / "key")
    original = file_module._deidentify

    def broken(path, *rest):
        if path.name.startswith("CT"):
            raise MemoryError
        return original(path, *rest)

    monkeypatch.setattr(file_module, "_deidentify", broken)
    done = deidentify(tmp_path / "in", tmp_path / "out", key=tmp_path / "key")
    assert done.files == {"refused": 1, "written": 1}
    assert "MemoryError" in (tmp_path / "out" / "files.csv").read_text()
    assert not [p for p in (tmp_path / "out").rglob("*") if p.name.startswith(".")]


def test_training_leaves_no_draft_and_weights_that_a_group_may_read(toy):
    _, _, model = toy
    run = model.parent
    assert not [p for p in run.rglob("*") if p.name.startswith(".")]
    umask = os.umask(0)
    os.umask(umask)
    assert {p.stat().st_mode & 0o777 for p in model.iterdir() if p.is_file()} == {0o666 & ~umask}


# --- small bombs ---


def bombed(action):
    """Return the refusal of a bomb; fail if it took memory first."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ClearMarginError) as refused:
        action()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < LIMIT_MIB * 1024
    return str(refused.value)


def dataset_of(syntax, **values):
    ds = pydicom.Dataset()
    ds.file_meta = pydicom.dataset.FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = syntax
    ds.SOPClassUID = ds.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.2"
    ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = "1.2.826.9.1"
    ds.Modality, ds.SeriesInstanceUID, ds.StudyInstanceUID = "CT", "1.2.826.9.2", "1.2.826.9.3"
    ds.Rows = ds.Columns = 8
    ds.BitsAllocated = ds.BitsStored = 16
    ds.HighBit, ds.PixelRepresentation, ds.SamplesPerPixel = 15, 0, 1
    ds.PhotometricInterpretation = "MONOCHROME2"
    for name, value in values.items():
        setattr(ds, name, value)
    return ds


@pytest.mark.parametrize("frames", [10**9, 10**6, 5000])
def test_frames_that_a_file_cannot_hold_are_refused(tmp_path, frames):
    ds = dataset_of(pydicom.uid.ExplicitVRLittleEndian, NumberOfFrames=frames)
    ds.PixelData = bytes(128)
    ds["PixelData"].VR = "OW"
    ds.save_as(tmp_path / "a.dcm", enforce_file_format=True)
    for reader in (read_image, read_header, open_video):
        assert f"8 x 8 x {frames}" in bombed(lambda: reader(tmp_path / "a.dcm"))  # noqa: B023


def test_a_deflated_object_stops_at_the_limit(tmp_path, small_limit):
    ds = dataset_of(pydicom.uid.DeflatedExplicitVRLittleEndian)
    ds.PixelData = bytes(100 * 2**20)
    ds["PixelData"].VR = "OW"
    ds.save_as(tmp_path / "a.dcm", enforce_file_format=True)
    assert (tmp_path / "a.dcm").stat().st_size < 2**20
    assert "CLEARMARGIN_MAX_GIB" in bombed(lambda: read_image(tmp_path / "a.dcm"))
    ds.PixelData = bytes(128)
    ds.save_as(tmp_path / "b.dcm", enforce_file_format=True)
    assert read_header(tmp_path / "b.dcm", pixels=True).PixelData == bytes(128)


def test_a_deflated_object_that_becomes_more_than_it_describes_is_refused_at_once(tmp_path):
    """8 MB that become 8 GiB: 4 GiB, the limit, would take half a minute."""
    ds = dataset_of(pydicom.uid.DeflatedExplicitVRLittleEndian, NumberOfFrames=4)
    ds.save_as(tmp_path / "a.dcm", enforce_file_format=True)
    plain = dataset_of(pydicom.uid.ExplicitVRLittleEndian, NumberOfFrames=4)
    plain.save_as(tmp_path / "plain.dcm", enforce_file_format=True)
    raw = (tmp_path / "a.dcm").read_bytes()
    meta = 144 + int.from_bytes(raw[140:144], "little")
    plain_raw = (tmp_path / "plain.dcm").read_bytes()
    header = plain_raw[144 + int.from_bytes(plain_raw[140:144], "little") :]
    packer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    content = packer.compress(header + struct.pack("<HH2sHI", 0x7FE0, 0x10, b"OW", 0, 0xFFFFFFFE))
    once = packer.compress(bytes(2**24)) + packer.flush(zlib.Z_FULL_FLUSH)
    again = packer.compress(bytes(2**24)) + packer.flush(zlib.Z_FULL_FLUSH)
    (tmp_path / "a.dcm").write_bytes(raw[:meta] + content + once + again * 511 + packer.flush())
    assert (tmp_path / "a.dcm").stat().st_size < 10 * 2**20
    began = time.process_time()
    assert "more than the pixels that it describes" in bombed(lambda: read_header(tmp_path / "a.dcm"))
    assert time.process_time() - began < 5


def test_a_deflated_object_of_many_empty_pixels_is_read(tmp_path):
    ds = dataset_of(pydicom.uid.DeflatedExplicitVRLittleEndian, NumberOfFrames=2_500_000)
    ds.PixelData = bytes(320_000_000)
    ds["PixelData"].VR = "OW"
    ds.save_as(tmp_path / "a.dcm", enforce_file_format=True)
    assert read_header(tmp_path / "a.dcm").NumberOfFrames == 2_500_000


@pytest.mark.parametrize("closed", [True, False])
def test_sequences_nested_without_end_are_refused(tmp_path, closed):
    ds = dataset_of(pydicom.uid.ExplicitVRLittleEndian)
    ds.save_as(tmp_path / "a.dcm", enforce_file_format=True)
    begin = struct.pack("<HH2sHI", 0x0040, 0xA730, b"SQ", 0, 0xFFFFFFFF)
    begin += struct.pack("<HHI", 0xFFFE, 0xE000, 0xFFFFFFFF)
    end = struct.pack("<HHIHHI", 0xFFFE, 0xE00D, 0, 0xFFFE, 0xE0DD, 0)
    with (tmp_path / "a.dcm").open("ab") as stream:
        stream.write(begin * 200_000 + (end * 200_000 if closed else b""))
    assert "nest" in bombed(lambda: read_image(tmp_path / "a.dcm"))


def test_volumes_that_claim_more_than_they_hold_are_refused(tmp_path):
    write_volume(tmp_path / "a.nii", np.zeros((2, 2, 2), np.uint8), Grid.from_spacing((2, 2, 2), (1, 1, 1)))
    raw = bytearray((tmp_path / "a.nii").read_bytes())
    struct.pack_into("<4h", raw, 40, 3, 1600, 1600, 1600)
    (tmp_path / "b.nii").write_bytes(raw)
    import gzip

    (tmp_path / "c.nii.gz").write_bytes(gzip.compress(bytes(raw)))
    header = "NRRD0004\ntype: double\ndimension: 3\nsizes: 700 700 700\nencoding: raw\nendian: little\n\n"
    (tmp_path / "d.nrrd").write_text(header + "x" * 100)
    (tmp_path / "e.mha").write_text(
        "ObjectType = Image\nNDims = 3\nDimSize = 700 700 700\nElementType = MET_DOUBLE\nElementDataFile = LOCAL\nxx"
    )
    for name in ("b.nii", "c.nii.gz", "d.nrrd", "e.mha"):
        assert "too short" in bombed(lambda: read_image(tmp_path / name)), name  # noqa: B023


def png(width, height, depth, colour):
    def chunk(kind, content):
        return (
            struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        )

    head = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", head)
        + chunk(b"IDAT", zlib.compress(bytes(99)))
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize(("depth", "colour"), [(8, 2), (16, 2), (8, 0), (16, 0), (1, 0)])
def test_pictures_that_claim_more_than_they_hold_are_refused(tmp_path, depth, colour):
    (tmp_path / "a.png").write_bytes(png(20_000, 20_000, depth, colour))
    assert "length" in bombed(lambda: read_image(tmp_path / "a.png"))


def test_complex_pictures_are_refused_by_name(tmp_path):
    import tifffile

    tifffile.imwrite(tmp_path / "a.tif", np.zeros((4, 4), np.complex64))
    assert "complex64" in bombed(lambda: read_image(tmp_path / "a.tif"))


YAMLS = {
    "aliases": "\n".join(["a0: &a0 [x, x, x, x, x, x, x, x, x]", *(
        f"a{k}: &a{k} [{', '.join([f'*a{k - 1}'] * 9)}]" for k in range(1, 12)
    )]),
    "long text": "a: &a " + "x" * 100_000 + "\nb: [" + ", ".join(["*a"] * 5000) + "]",
    "itself": "a: &a [*a]",
    "merges": "a: &a {" + "".join(f"x{k}: 1, " for k in range(20)) + "}\nb: {<<: [" + "*a, " * 120_000 + "]}",
    "flow depth": "a: " + "[" * 200_000,
    "block depth": "- " * 5000,
    "tag": "a: !!python/object/apply:os.system [touch PWNED]",
    "date": "a: 2020-13-45",
    "number": "a: " + "9" * 5000,
    "key": "? [a]\n: 1",
}  # fmt: skip


@pytest.mark.parametrize("name", YAMLS)
def test_yaml_is_bounded_wherever_it_is_read(toy, tmp_path, monkeypatch, name):
    _, _, model = toy
    monkeypatch.chdir(tmp_path)
    bombed(lambda: parse_yaml(YAMLS[name], "it"))
    bad = tmp_path / "bad.yaml"
    bad.write_text(YAMLS[name])
    other = tmp_path / "model"
    other.mkdir()
    (other / "model.yaml").write_text(YAMLS[name])
    (other / "weights.safetensors").write_bytes((model / "weights.safetensors").read_bytes())
    many = tmp_path / "many"
    many.mkdir()
    (many / "ensemble.yaml").write_text(YAMLS[name])
    write_raster(tmp_path / "a.png", np.zeros((8, 8), np.uint8))
    calls = {
        "card": ("evaluate", model, "--card", bad),
        "configuration": ("train", bad),
        "model": ("predict", "a.png", "out", "--model", other),
        "ensemble": ("predict", "a.png", "out", "--model", many, "--uncertainty", "ensemble"),
    }
    for what, call in calls.items():
        code, said = command(*call)
        assert code in (2, 4) and "bug" not in said, (what, code, said[-500:])
    assert not (tmp_path / "PWNED").exists()


def test_yaml_aliases_that_people_write_are_read(tmp_path):
    (tmp_path / "a.yaml").write_text("a: &a {x: 1}\nb: {<<: *a, y: 2}\nc: [*a, *a]")
    assert read_yaml(tmp_path / "a.yaml") == {"a": {"x": 1}, "b": {"x": 1, "y": 2}, "c": [{"x": 1}] * 2}


@pytest.mark.parametrize("kind", ["polygons", "runs", "crowds", "images"])
def test_coco_that_asks_for_endless_work_is_refused(tmp_path, small_limit, kind):
    side = 4096
    polygon = [[0, 0, side, 0, side, side, 0, side]] * 8
    runs = {"size": [side, side], "counts": [0, side * side]}
    several = kind == "images"
    content = {
        "images": [
            {"id": k, "file_name": f"{k}", "height": side, "width": side} for k in range(20 if several else 1)
        ],
        "categories": [{"id": 1, "name": "x"}],
        "annotations": [
            {
                "id": k, "image_id": k if several else 0, "category_id": 1, "iscrowd": int(kind == "crowds"),
                "segmentation": polygon if kind == "polygons" else runs,
            }
            for k in range(20)
        ],
    }  # fmt: skip
    (tmp_path / "a.json").write_text(json.dumps(content))
    assert "CLEARMARGIN_MAX_GIB" in bombed(lambda: read_coco_images(tmp_path / "a.json"))


@given(st.integers(0, 2**32 - 1))
def test_run_lengths_are_unpacked_where_they_are(seed):
    rng = np.random.default_rng(seed)
    dense = rng.random(tuple(int(n) for n in rng.integers(1, 20, 2))) < rng.choice([0, 0.05, 0.5, 1])
    mask = _from_run_lengths(Mask.from_dense(dense).run_lengths(), dense.shape)
    assert np.array_equal(mask.dense(), dense)


def test_a_zip_bomb_leaves_nothing_in_the_folder_for_temporary_files(tmp_path, monkeypatch, small_limit):
    import tempfile

    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.dcm", bytes(100 * 2**20))
    assert "CLEARMARGIN_MAX_GIB" in bombed(lambda: read_image(tmp_path / "a.zip"))
    assert list(scratch.iterdir()) == []


def test_a_zip_that_the_disk_has_no_room_for_is_said_before(tmp_path, monkeypatch):
    import shutil

    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("a.dcm", bytes(5000))
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=100))
    assert "TMPDIR" in bombed(lambda: read_image(tmp_path / "a.zip"))


# --- text that acts ---


def test_cells_never_begin_a_formula_and_come_back():
    for text in ("=HYPERLINK(1)", "+1+1", "-x", "@a", "\t=1", "|x", " =1"):
        assert cell(text) == f"'{text}" and uncell(cell(text)) == text
    for value in ("plain", "-1.5", "+2e-3", "", 3, -3, None, True, 'a"b'):
        assert cell(value) == value
    assert uncell("'plain") == "'plain"


def test_every_csv_goes_through_one_place():
    import io

    stream = io.StringIO()
    csv_rows(stream, [["name", "x"], ["=1", -1]])
    assert stream.getvalue() == "name,x\n'=1,-1\n"
    writers = [
        str(file.relative_to(SOURCE))
        for file in SOURCE.rglob("*.py")
        if re.search(r"csv\.(writer|DictWriter)|to_csv", file.read_text())
    ]
    assert writers == ["files.py"]


def test_what_acts_on_a_terminal_is_spelled_out():
    assert printable("a\x1b]0;title\x07b\x9b31m\u202ec\r") == "a\\x1b]0;title\\x07b\\x9b31m\\u202ec\\r"
    assert printable("Gefäß \t naïve 肝\n") == "Gefäß \t naïve 肝\n"
    echoes = [
        str(file.relative_to(SOURCE)) for file in SOURCE.rglob("*.py") if "typer.echo(" in file.read_text()
    ]
    assert echoes == ["cli/app.py"]


def test_class_and_file_names_reach_no_terminal_and_no_table_as_orders(toy, tmp_path, monkeypatch):
    folder, _, model = toy
    name = '=HYPERLINK("x")\x1b]0;owned\x07'
    content = yaml.safe_load((model / "model.yaml").read_text())
    content["classes"][0]["name"] = name
    content["prediction"]["score_threshold"] = 0.0
    other = tmp_path / "model"
    other.mkdir()
    (other / "model.yaml").write_text(yaml.safe_dump(content))
    (other / "weights.safetensors").write_bytes((model / "weights.safetensors").read_bytes())
    (tmp_path / "a\x1b[31m.png").write_bytes((folder / "data" / "t0.png").read_bytes())
    code, said = command("predict", tmp_path / "a\x1b[31m.png", tmp_path / "out", "--model", other)
    assert code == 0, said
    _, refused = command("predict", tmp_path / "no\x1b[31m.png", tmp_path / "out", "--model", other)
    assert "\x1b" not in said + refused and "\\x1b" in refused
    for table in (tmp_path / "out").rglob("*.csv"):
        assert not re.search(r'(^|,)"?=', table.read_text(), re.M)


# --- a store that is locked for a while ---


def test_a_store_that_was_locked_gets_what_it_missed(tmp_path, monkeypatch, toy):
    import sqlite3

    from clearmargin.tracking import run as run_module
    from clearmargin.tracking.spool import spools

    _, _, model = toy
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    run = run_module.TrackedRun(name="locked", uri=uri, pause_s=30.0)
    with run:
        lock = sqlite3.connect(tmp_path / "mlflow.db", isolation_level=None, check_same_thread=False)
        lock.execute("BEGIN EXCLUSIVE")
        released = threading.Timer(8.0, lambda: lock.execute("COMMIT"))
        released.start()
        client = run._sender._client
        monkeypatch.setattr(client, "set_tag", _refuses_while(released, client.set_tag))
        run.set_tag("first", "1")
        (tmp_path / "gone.txt").write_text("kept")
        run.log_artifact(tmp_path / "gone.txt")
        (tmp_path / "gone.txt").unlink()
        run.log_image("picture", np.zeros((4, 4, 3), np.uint8), 0)
        run.log_model(model)
        released.join(30)
        assert not released.is_alive()
        time.sleep(0.1)
    run_id = run.run_id
    stored = client.get_run(run_id)
    assert stored.info.status == "FINISHED" and stored.data.tags["first"] == "1"
    assert stored.outputs.model_outputs and uri not in {one.store for one in spools()}
    names = {item.path for item in client.list_artifacts(run_id)}
    assert {"gone.txt", "images"} <= names


def _refuses_while(timer, original):
    from mlflow.exceptions import MlflowException

    def call(*arguments):
        if timer.is_alive():
            raise MlflowException("database is locked")
        return original(*arguments)

    return call


def test_a_path_stays_below_its_folder(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "link").symlink_to("/etc")
    assert below(tmp_path / "in", "a/b.png") == tmp_path / "in" / "a/b.png"
    assert below(tmp_path / "in", "x/../a.png") is not None
    assert below(tmp_path / "in", "link/passwd") is not None  # the owner of the folder linked it
    for name in ("../a", "/etc/passwd", "x/../../a", "link/../passwd", "a\0b"):
        assert below(tmp_path / "in", name) is None


def test_a_text_is_written_below_a_new_folder(tmp_path):
    write_text(tmp_path / "a" / "b.txt", "x")
    assert (tmp_path / "a" / "b.txt").read_text() == "x"


FORKED = """
import multiprocessing, sys
from pathlib import Path
from clearmargin.errors import ClearMarginError
from clearmargin.formats import read_image
from clearmargin.models import load_segmenter

model, picture = sys.argv[1:]
image = read_image(Path(picture))

def predict(segmenter, results):
    try:
        loaded = load_segmenter(segmenter, device="cpu") if isinstance(segmenter, str) else segmenter
        results.put(loaded(image).instances.scores.tolist())
    except ClearMarginError as error:
        results.put(str(error))

if __name__ == "__main__":
    segmenter = load_segmenter(model, device="cpu")
    print(segmenter(image).instances.scores.tolist())
    for method, what in (("fork", segmenter), ("fork", model)):
        context = multiprocessing.get_context(method)
        results = context.Queue()
        process = context.Process(target=predict, args=(what, results), daemon=True)
        process.start()
        print(results.get(timeout=120))
        process.kill()
"""


def test_a_forked_process_is_told_that_it_would_wait_for_ever(toy):
    folder, _, model = toy
    done = subprocess.run(
        [sys.executable, "-c", FORKED, model, folder / "data" / "t0.png"],
        capture_output=True, text=True, check=False, timeout=280,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    alone, *forked = done.stdout.splitlines()
    assert alone.startswith("[") and len(forked) == 2
    assert all("'spawn'" in said for said in forked)


@pytest.mark.parametrize("place", ["file", "file/below", "/proc/nowhere"])
def test_a_private_folder_that_cannot_be_made_is_said(tmp_path, monkeypatch, place):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("CLEARMARGIN_HOME", str(tmp_path / place))
    write_raster(tmp_path / "a.png", np.zeros((8, 8), np.uint8))
    code, said = command("cases")
    assert code == 2 and "CLEARMARGIN_HOME" in said


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES, errno.ENOSPC])
def test_a_private_folder_that_cannot_be_written_ends_with_the_reason(toy, tmp_path, monkeypatch, number):
    """The system's refusal is made up: root may write anywhere."""
    folder, _, model = toy
    original = os.open

    def refuse(path, flags, *rest, **options):
        if str(path).endswith("crosswalk.jsonl") and flags & os.O_WRONLY:
            raise OSError(number, os.strerror(number), str(path))
        return original(path, flags, *rest, **options)

    monkeypatch.setenv("CLEARMARGIN_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(os, "open", refuse)
    code, said = command("predict", folder / "data" / "t0.png", tmp_path / "out", "--model", model)
    assert code == (4 if number == errno.ENOSPC else 2) and os.strerror(number) in said
    assert "crosswalk" not in said
    assert (number == errno.ENOSPC) != ("set CLEARMARGIN_HOME" in said)


@pytest.mark.parametrize(("number", "ends"), [(errno.EROFS, 2), (errno.ENOSPC, 4)])
def test_deidentify_begins_no_results_if_the_private_folder_cannot_be_written(
    tmp_path, monkeypatch, number, ends
):
    original = os.open

    def refuse(path, flags, *rest, **options):
        if (tmp_path / "home") in Path(path).parents and flags & os.O_WRONLY:
            raise OSError(number, os.strerror(number), str(path))
        return original(path, flags, *rest, **options)

    monkeypatch.setenv("CLEARMARGIN_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(os, "open", refuse)
    key = ["--key", tmp_path / "d.key", "--new-key"]
    code, said = command("deidentify", get_testdata_file("CT_small.dcm"), tmp_path / "out", *key)
    assert code == ends and os.strerror(number) in said
    assert not (tmp_path / "out").exists()
    code, said = command("inspect", get_testdata_file("CT_small.dcm"))
    assert code == 0, said  # it shows no id


def test_a_picture_that_is_too_large_as_floats_is_refused(toy, tmp_path, small_limit):
    """As one channel of floats it is within the limit of 64 MiB, as the three that the network sees it is not."""
    folder, _, model = toy
    (tmp_path / "in").mkdir()
    write_raster(tmp_path / "in" / "large.png", np.resize(np.arange(256, dtype=np.uint8), (3500, 3500)))
    shutil.copy(folder / "data" / "t0.png", tmp_path / "in")
    code, said = command("predict", tmp_path / "in", tmp_path / "out", "--model", model)
    assert code == 3 and "takes 0.137 GiB as the network sees it, 3 channel(s)" in said
    assert "CLEARMARGIN_MAX_GIB raises it" in said and len(list((tmp_path / "out").iterdir())) == 1

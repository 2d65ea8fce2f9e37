"""A person sees what is in a path, what would be read and why not, and never who it is."""

from __future__ import annotations

import json
import shutil
import sys

import numpy as np
import pydicom
import pytest
from pydicom.data import get_testdata_file

from clearmargin.cli import main
from clearmargin.core import Grid, Image
from clearmargin.errors import InputError
from clearmargin.formats.raster import read_raster, write_raster
from clearmargin.formats.volume import write_volume
from clearmargin.inspection import inspect_path, overview, write_overview


def test_a_real_folder(data_root, tmp_path):
    folder = data_root / "dicom_ct_seg_rtstruct_small" / "dcmqi_liver"
    first, *others, beside = inspect_path(folder)
    assert first.what == "1: CT volume" and first.readable and first.size == "3 x 512 x 512, 3 file(s)"
    assert first.geometry.endswith("mm, axial, slices within 0.0000 mm of it") and first.values.startswith(
        "int16, -"
    )
    assert all(not f.readable and "read_dicom_seg" in f.problem for f in others)
    number = sum(file.suffix == ".nrrd" for file in folder.iterdir())
    assert beside.what == f"{number} volume(s), picture(s) or video(s) that are not DICOM"
    assert not beside.readable and not beside.refused
    write_overview(folder, tmp_path / "a.png")
    assert read_raster(tmp_path / "a.png").pixels.shape[:2] == (3, 320)


def test_a_refusal_is_a_finding(data_root):
    (finding,) = inspect_path(data_root / "dicom_ct_gantry_tilt")
    assert not finding.readable and "gantry tilt" in finding.problem


def test_volumes_pictures_and_nothing(tmp_path):
    grid = Grid.from_spacing((4, 6, 8), (5, 1, 1))
    write_volume(tmp_path / "a.nii.gz", np.arange(192, dtype=np.int16).reshape(grid.shape), grid)
    (finding,) = inspect_path(tmp_path / "a.nii.gz")
    assert (finding.what, finding.values) == ("1: volume", "int16, 0 to 191")
    write_raster(tmp_path / "b.png", np.zeros((3, 4), np.uint8))
    (finding,) = inspect_path(tmp_path / "b.png")
    assert "no spacing in the patient" in finding.geometry
    with pytest.raises(InputError, match=r"no file or folder '.*/c'"):
        inspect_path(tmp_path / "c")


def test_planes_are_shown_in_true_proportion():
    grid = Grid.from_spacing((10, 50, 50), (5, 1, 1))
    pixels = np.random.default_rng(0).integers(0, 99, (1, *grid.shape)).astype(np.int16)
    picture = overview(Image(pixels=pixels, grid=grid), size=100)
    # 50 x 50 mm seen along each axis: three squares with two gaps.
    assert picture.shape == (3, 100, 3 * 100 + 2 * 4)


def test_planes_of_a_volume_name_the_sides_of_the_patient():
    image = Image(pixels=np.zeros((1, 30, 40, 50), np.int16), grid=Grid.from_spacing((30, 40, 50), (2, 1, 1)))
    unplaced = Image(pixels=image.pixels, grid=Grid.from_spacing((30, 40, 50)))
    marked, plain = overview(image), overview(unplaced)
    letters = (marked == 235).all(axis=0)
    assert letters[:, :20].any() and not (plain == 235).all(axis=0).any()
    assert not letters[150:170, 100:200].any(), "the middle of a plane is free"


def _exit_code(monkeypatch, *arguments) -> int:
    monkeypatch.setattr(sys, "argv", ["clearmargin", "--json", "inspect", *map(str, arguments)])
    try:
        main()
    except SystemExit as end:
        return int(end.code or 0)
    return 0


@pytest.fixture
def broken(tmp_path):
    """Files of one picture each: cut off within the header, within the pixels, and without Rows."""
    whole = tmp_path / "whole" / "ct.dcm"
    whole.parent.mkdir()
    shutil.copy(get_testdata_file("CT_small.dcm"), whole)
    dataset = pydicom.dcmread(whole)
    dataset.SeriesInstanceUID = dataset.SOPInstanceUID = "1.2.3"
    dataset.save_as(tmp_path / "other.dcm")
    content = (tmp_path / "other.dcm").read_bytes()
    for name, part in {"header": content[:700], "pixels": content[:-9000]}.items():
        (tmp_path / f"{name}.dcm").write_bytes(part)
    del dataset.Rows
    dataset.save_as(tmp_path / "rows.dcm")
    return tmp_path


@pytest.mark.parametrize("name", ["header", "pixels", "rows"])
def test_a_refused_file_ends_with_4_and_one_of_a_folder_with_3(name, broken, monkeypatch, capsys):
    file = broken / f"{name}.dcm"
    assert _exit_code(monkeypatch, file) == 4
    said = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert said[-1]["exit_code"] == 4 and "whole" not in said[-1]["error"]
    assert _exit_code(monkeypatch, broken / "whole") == 0
    shutil.copy(file, broken / "whole" / "other.dcm")
    capsys.readouterr()
    assert _exit_code(monkeypatch, broken / "whole") == 3
    said = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert sorted(line["refused"] for line in said[:-1]) == [False, True]


def test_masks_and_choices_are_not_refused(data_root, monkeypatch):
    """A CT with its SEG, of which each is for a reader of its own; and a series that a flag is needed for."""
    folder = data_root / "dicom_ct_seg_rtstruct_small" / "dcmqi_liver"
    assert _exit_code(monkeypatch, folder, "--header-only") == 0
    assert _exit_code(monkeypatch, data_root / "dicom_ct_gantry_tilt", "--header-only") == 4

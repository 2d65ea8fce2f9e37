"""Phantom studies as files: valid DICOM that our readers and others read back in place."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from clearmargin.core import InstanceSet
from clearmargin.datasets.phantom import PHANTOM_LABELS, Phantom, make_phantom
from clearmargin.datasets.phantom_study import StudyFiles, write_ct_series, write_phantom_study
from clearmargin.formats import read_image
from clearmargin.formats.dicom.seg_content import read_dicom_seg


@pytest.fixture(scope="module")
def phantom() -> Phantom:
    return make_phantom(3, shape=(10, 64, 64), spacing=(10.0, 4.5, 4.5), vessel=True)


@pytest.fixture(scope="module")
def study(phantom: Phantom, tmp_path_factory: pytest.TempPathFactory) -> StudyFiles:
    return write_phantom_study(tmp_path_factory.mktemp("studies"), phantom, 7)


def test_the_reference_validator_finds_no_error(study: StudyFiles) -> None:
    validator = Path(sys.executable).with_name("dciodvfy")
    for file in (*sorted(study.ct.iterdir())[:2], study.truth):
        found = subprocess.run(
            [validator, "-new", file], capture_output=True, text=True, check=False, timeout=60
        )
        assert found.returncode == 0, found.stderr
        assert "Error" not in found.stderr


def test_the_series_reads_back_in_place(study: StudyFiles, phantom: Phantom) -> None:
    image = read_image(study.ct)
    assert image.grid.same_as(phantom.image.grid, tolerance=0.01)
    assert np.array_equal(image.pixels, phantom.image.pixels)
    assert image.source.modality == "CT" and len(image.source.files) == 10


def test_the_truth_reads_back_in_place_with_its_overlap(study: StudyFiles, phantom: Phantom) -> None:
    truth = read_dicom_seg(study.truth, grid=phantom.image.grid, label_map=PHANTOM_LABELS)
    assert truth.labels.tolist() == phantom.reference.labels.tolist()
    for read, drawn in zip(truth.masks, phantom.reference.masks, strict=True):
        assert np.array_equal(read.dense(), drawn.dense())
    assert truth.masks[1].intersection(truth.masks[0]) == truth.masks[1].area > 0


def test_the_study_is_a_function_of_seed_and_number(
    study: StudyFiles, phantom: Phantom, tmp_path: Path
) -> None:
    again = write_phantom_study(tmp_path, phantom, 7)
    assert [f.read_bytes() for f in sorted(again.ct.iterdir())] == [
        f.read_bytes() for f in sorted(study.ct.iterdir())
    ]
    other = write_phantom_study(tmp_path, phantom, 8)
    assert next(other.ct.iterdir()).read_bytes() != next(study.ct.iterdir()).read_bytes()


def test_the_patient_is_invented(study: StudyFiles) -> None:
    import pydicom

    header = pydicom.dcmread(sorted(study.ct.iterdir())[0])
    assert str(header.PatientName) == "Phantom^Number7" and header.PatientIdentityRemoved == "YES"
    assert header.ImageType[0] == "DERIVED"


def test_what_a_ct_cannot_hold_is_refused(phantom: Phantom, tmp_path: Path) -> None:
    pixels = phantom.image.pixels.copy()
    pixels[0, 0, 0, 0] = 4000
    with pytest.raises(ValueError, match="12 bits"):
        write_ct_series(tmp_path / "ct", replace(phantom.image, pixels=pixels), 0, 0)
    empty = replace(phantom, reference=InstanceSet.empty(phantom.image.grid))
    with pytest.raises(ValueError, match="no instance"):
        write_phantom_study(tmp_path, empty, 1)

"""What we write survives a real PACS: every kind of object goes into Orthanc and comes back as it went."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pydicom
import pytest
from numpy.testing import assert_array_equal
from pacs import INSTALL, Orthanc, find_orthanc, running_orthanc

from clearmargin.core import Image, Prediction
from clearmargin.datasets.phantom import make_phantom
from clearmargin.datasets.phantom_study import write_phantom_study
from clearmargin.formats.dicom.images import read_dicom
from clearmargin.formats.dicom.parametric_map import read_parametric_map, write_parametric_map
from clearmargin.formats.dicom.rtstruct import read_rtstruct, write_rtstruct
from clearmargin.formats.dicom.seg import read_dicom_seg, read_seg_content, write_dicom_seg
from clearmargin.formats.dicom.seg_kinds import write_fractional_seg, write_label_map_seg
from clearmargin.formats.dicom.structured_report import write_structured_report


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Orthanc]:
    """One server for all tests here: it takes seconds to end."""
    found = find_orthanc()
    if found is None:
        pytest.skip(f"no Orthanc with its DICOMweb plug-in here: {INSTALL}")
    with running_orthanc(tmp_path_factory.mktemp("orthanc"), *found) as running:
        yield running


@pytest.fixture
def orthanc(server: Orthanc) -> Orthanc:
    """The server, with nothing in it."""
    server.empty()
    assert set(server.count().values()) == {0}
    return server


@pytest.fixture(params=["phantom", "oblique", "liver", "gantry tilt"])
def image(request, write_series, tmp_path) -> Image:
    """Our own series, one that lies askew, and real ones where they are."""
    if request.param == "phantom":
        phantom = make_phantom(1, shape=(6, 96, 96), spacing=(5.0, 3.2, 3.2))
        return read_dicom(write_phantom_study(tmp_path, phantom, 1).ct)
    if request.param == "oblique":
        write_series(tmp_path / "series", request.getfixturevalue("oblique"))
        return read_dicom(tmp_path / "series")
    data_root = request.getfixturevalue("data_root")
    if request.param == "liver":
        return read_dicom(data_root / "dicom_ct_seg_rtstruct_small" / "dcmqi_liver")
    return read_dicom(data_root / "dicom_ct_gantry_tilt", allow_tilt=True)


def _write_all(folder: Path, prediction: Prediction, image: Image) -> dict[str, Path]:
    """Every kind of object that we write, and the source's own files."""
    folder.mkdir()
    files = {f"source {k}": file for k, file in enumerate(image.source.files)}
    names = ("binary", "label map", "fractional", "map", "report", "contours")
    files |= {name: folder / f"{name}.dcm" for name in names}
    apart = replace(prediction, instances=prediction.instances.select([1, 2, 3]))
    write_dicom_seg(files["binary"], prediction, image)
    write_label_map_seg(files["label map"], apart, image)
    write_fractional_seg(files["fractional"], prediction, "entropy", 2, image)
    write_parametric_map(files["map"], prediction, "entropy", image)
    write_structured_report(files["report"], prediction, image, files["binary"])
    write_rtstruct(files["contours"], prediction, image)
    return files


def _uid(file: Path) -> str:
    return str(pydicom.dcmread(file, stop_before_pixels=True).SOPInstanceUID)


def _check_wado(orthanc: Orthanc, files: dict[str, Path], folder: Path) -> None:
    """The study by WADO-RS holds the data sets that were stored, and no more."""
    folder.mkdir()
    study = str(pydicom.dcmread(files["binary"], stop_before_pixels=True).StudyInstanceUID)
    fetched = {}
    for number, content in enumerate(orthanc.wado(study)):
        (folder / f"{number}.dcm").write_bytes(content)
        fetched[_uid(folder / f"{number}.dcm")] = pydicom.dcmread(folder / f"{number}.dcm")
    assert len(fetched) == len(files)
    for name, file in files.items():
        assert fetched[_uid(file)] == pydicom.dcmread(file), name


def test_everything_returns_as_it_went(
    orthanc: Orthanc, image: Image, predict: Callable[[Image], Prediction], tmp_path: Path
) -> None:
    prediction = predict(image)
    files = _write_all(tmp_path / "written", prediction, image)
    answer = orthanc.stow(list(files.values()))
    assert len(answer["00081199"]["Value"]) == len(files)  # ReferencedSOPSequence: what was taken
    assert not answer["00081198"].get("Value")  # FailedSOPSequence
    # The results join the patient and the study of their source.
    sources = len(image.source.files)
    counted = orthanc.count()
    assert counted == {"Patients": 1, "Studies": 1, "Series": 7, "Instances": sources + 6}
    kept = orthanc.files()
    for name, file in files.items():
        assert kept[_uid(file)] == file.read_bytes(), name
    _check_wado(orthanc, files, tmp_path / "wado")

    back = tmp_path / "back"
    (back / "source").mkdir(parents=True)
    for name, file in files.items():
        folder = back / "source" if name.startswith("source") else back
        (folder / file.name).write_bytes(kept[_uid(file)])
    grid = read_dicom(back / "source", allow_tilt=True).grid
    assert grid.same_as(image.grid)
    content = read_seg_content(back / "binary.dcm", grid=grid)
    flat = read_dicom_seg(back / "label map.dcm", grid=grid)
    for ours, theirs in zip(prediction.instances.masks, content.instances.masks, strict=True):
        assert_array_equal(theirs.dense(), ours.dense())
    for ours, theirs in zip(prediction.instances.masks[1:], flat.masks, strict=True):
        assert_array_equal(theirs.dense(), ours.dense())
    assert content.instances.masks[0].overlaps(content.instances.masks[1])
    assert_array_equal(read_parametric_map(back / "map.dcm", grid=grid)[0], prediction.maps["entropy"])
    fractions = read_seg_content(back / "fractional.dcm", grid=grid).fractions[0]
    assert np.abs(fractions - prediction.maps["entropy"]).max() < 0.5 / 255 + 1e-6
    assert [m.area for m in read_rtstruct(back / "contours.dcm", grid=grid).instances.masks] == [
        m.area for m in prediction.instances.masks
    ]


def test_a_second_run_stores_nothing_new(
    orthanc: Orthanc, axial, write_series, predict: Callable[[Image], Prediction], tmp_path: Path
) -> None:
    write_series(tmp_path / "series", axial)
    image = read_dicom(tmp_path / "series")
    first = _write_all(tmp_path / "first", predict(image), image)
    assert {orthanc.post(file)["Status"] for file in first.values()} == {"Success"}
    before = orthanc.count()
    again = _write_all(tmp_path / "again", predict(image), image)
    assert {orthanc.post(file)["Status"] for file in again.values()} == {"AlreadyStored"}
    orthanc.stow(list(again.values()))
    assert orthanc.count() == before
    # Another prediction is another object beside the first, not in its place.
    other = replace(predict(image), instances=predict(image).instances.select([0, 1]))
    write_dicom_seg(tmp_path / "other.dcm", other, image)
    assert orthanc.post(tmp_path / "other.dcm")["Status"] == "Success"
    assert orthanc.count()["Instances"] == before["Instances"] + 1


def test_the_server_ends_with_its_block(tmp_path: Path) -> None:
    found = find_orthanc()
    if found is None:
        pytest.skip(f"no Orthanc with its DICOMweb plug-in here: {INSTALL}")
    with (
        pytest.raises(ZeroDivisionError),
        running_orthanc(tmp_path / "orthanc", *found) as server,
    ):
        raise ZeroDivisionError
    with pytest.raises(OSError, match="refused"):
        server.get("/system")

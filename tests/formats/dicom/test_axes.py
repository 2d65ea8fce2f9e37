"""Axes of instances as lines in an SR: where they lie in the patient, how long they are, and a validator's word."""

from pathlib import Path

import numpy as np
import pydicom
import pytest

from clearmargin.formats.dicom.axes import DrawnAxes, write_axes
from clearmargin.formats.dicom.images import read_dicom
from clearmargin.outputs.writers import WRITERS


@pytest.fixture
def read(oblique, write_series, predict, tmp_path):
    write_series(tmp_path / "series", oblique)
    image = read_dicom(tmp_path / "series")
    return image, predict(image)


def groups_of(path):
    report = pydicom.dcmread(path)
    (measured,) = (i for i in report.ContentSequence if i.ConceptNameCodeSequence[0].CodeValue == "126010")
    return report, list(measured.ContentSequence)


def numbers(group):
    return {
        i.ConceptNameCodeSequence[0].CodeMeaning: (
            float(i.MeasuredValueSequence[0].NumericValue),
            np.reshape(i.ContentSequence[0].GraphicData, (-1, 3)),
            i.ContentSequence[0],
        )
        for i in group.ContentSequence
        if i.ValueType == "NUM"
    }


def test_lines_lie_in_the_patient_where_the_grid_says(read, tmp_path, dciodvfy):
    image, prediction = read
    dy, dx = image.grid.spacing[-2:]
    ends = np.array([[2, 3], [8, 3], [5, 1], [5, 6]]) * (dy, dx)  # from corners of elements
    line = DrawnAxes(instance=1, z=2, ends=ends)
    assert write_axes(tmp_path / "axes.dcm", prediction, image, [line]) == tmp_path / "axes.dcm"
    assert dciodvfy(tmp_path / "axes.dcm") == []
    report, (group,) = groups_of(tmp_path / "axes.dcm")
    header = pydicom.dcmread(image.source.files[2])
    # PS3.3, C.7.6.2.1.1, written out: an element's corner lies half an element before its centre.
    along_row, along_column = (
        np.array(header.ImageOrientationPatient[:3]),
        np.array(header.ImageOrientationPatient[3:]),
    )
    origin = np.array(header.ImagePositionPatient, float)
    expected = [
        origin + along_row * (c - 0.5) * dx + along_column * (r - 0.5) * dy for r, c in ((2, 3), (8, 3))
    ]
    said = numbers(group)
    long, points, item = said["Long Axis"]
    np.testing.assert_allclose(points, expected, atol=1e-3)
    assert item.ReferencedFrameOfReferenceUID == header.FrameOfReferenceUID and item.GraphicType == "POLYLINE"
    assert long == pytest.approx(6 * dy, rel=1e-4) and said["Short Axis"][0] == pytest.approx(
        5 * dx, rel=1e-4
    )
    texts = [i.TextValue for i in group.ContentSequence if i.ValueType == "TEXT"]
    assert texts == ["Cornerstone3DTools@^0.1.0:Bidirectional"]
    assert report.StudyInstanceUID == header.StudyInstanceUID
    assert report.CompletionFlag == "COMPLETE" and report.VerificationFlag == "UNVERIFIED"


def test_every_instance_has_its_axes_and_the_same_prediction_the_same_bytes(read, tmp_path):
    image, prediction = read
    assessed = type("Assessed", (), {"prediction": prediction})
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        assert WRITERS["axes"].write(tmp_path / name, assessed, image) == ["axes.dcm"]
    _, groups = groups_of(tmp_path / "a" / "axes.dcm")
    assert len(groups) == sum(mask.area > 0 for mask in prediction.instances.masks)
    assert (tmp_path / "a" / "axes.dcm").read_bytes() == (tmp_path / "b" / "axes.dcm").read_bytes()
    for group in groups:
        for length, points, _ in numbers(group).values():
            assert np.linalg.norm(points[0] - points[1]) == pytest.approx(length, rel=1e-3, abs=1e-3)


def test_without_an_instance_there_is_no_file(read, tmp_path):
    image, prediction = read
    assert write_axes(Path(tmp_path / "axes.dcm"), prediction, image, []) is None
    assert not (tmp_path / "axes.dcm").exists()


def test_the_report_names_the_storage_class_of_its_sources(oblique, write_series, predict, tmp_path):
    def mr(ds, _):
        ds.SOPClassUID = ds.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.4"
        ds.Modality = "MR"

    write_series(tmp_path / "mr", oblique, change=mr)
    image = read_dicom(tmp_path / "mr")
    line = DrawnAxes(instance=1, z=2, ends=np.array([[2.0, 3], [8, 3], [5, 1], [5, 6]]))
    report = pydicom.dcmread(write_axes(tmp_path / "axes.dcm", predict(image), image, [line]))
    (study,) = report.CurrentRequestedProcedureEvidenceSequence
    items = [i for series in study.ReferencedSeriesSequence for i in series.ReferencedSOPSequence]
    assert len(items) == 6 and {i.ReferencedSOPClassUID for i in items} == {"1.2.840.10008.5.1.4.1.1.4"}

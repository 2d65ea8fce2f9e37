"""Rejection Notes: read back by highdicom and pydicom, and checked by dciodvfy."""

import highdicom
import pydicom
import pytest

from clearmargin.errors import InputError
from clearmargin.formats.dicom.axes import write_axes
from clearmargin.formats.dicom.rejection import write_rejection_note
from clearmargin.formats.dicom.seg import write_dicom_seg

from .test_axes import DrawnAxes, np, read  # noqa: F401 - a fixture


@pytest.fixture
def objects(read, tmp_path):  # noqa: F811
    """A SEG and an SR of one study."""
    image, prediction = read
    line = DrawnAxes(instance=1, z=2, ends=np.array([[2.0, 3], [8, 3], [5, 1], [5, 6]]))
    write_axes(tmp_path / "axes.dcm", prediction, image, [line])
    return [write_dicom_seg(tmp_path / "seg.dcm", prediction, image).path, tmp_path / "axes.dcm"]


def test_a_note_names_each_object_of_its_study(objects, tmp_path, dciodvfy):
    uid = write_rejection_note(tmp_path / "note.dcm", objects)
    assert dciodvfy(tmp_path / "note.dcm") == []
    note = pydicom.dcmread(tmp_path / "note.dcm")
    first = pydicom.dcmread(objects[0])
    assert note.SOPInstanceUID == uid and note.Modality == "KO"
    assert note.SOPClassUID == "1.2.840.10008.5.1.4.1.1.88.59"
    for name in ("StudyInstanceUID", "PatientID", "PatientName", "StudyDate"):
        assert note[name].value == first[name].value
    title = note.ConceptNameCodeSequence[0]
    assert (title.CodeValue, title.CodingSchemeDesignator) == ("113001", "DCM")
    assert title.CodeMeaning == "Rejected for Quality Reasons"
    said = highdicom.ko.KeyObjectSelectionDocument.from_dataset(note)
    for file in objects:
        one = pydicom.dcmread(file)
        assert said.resolve_reference(one.SOPInstanceUID) == (
            one.StudyInstanceUID,
            one.SeriesInstanceUID,
            one.SOPInstanceUID,
        )
    references = [i.ReferencedSOPSequence[0] for i in note.ContentSequence if "ReferencedSOPSequence" in i]
    assert {r.ReferencedSOPInstanceUID for r in references} == {
        pydicom.dcmread(file).SOPInstanceUID for file in objects
    }


def test_the_same_objects_give_the_same_note(objects, tmp_path):
    assert write_rejection_note(tmp_path / "a.dcm", objects) == write_rejection_note(
        tmp_path / "b.dcm", objects[::-1]
    )
    assert write_rejection_note(tmp_path / "c.dcm", objects[:1]) != write_rejection_note(
        tmp_path / "d.dcm", objects
    )
    write_rejection_note(tmp_path / "e.dcm", objects)
    assert (tmp_path / "e.dcm").read_bytes() == (tmp_path / "d.dcm").read_bytes()


def test_objects_of_two_studies_have_no_common_note(objects, tmp_path):
    other = pydicom.dcmread(objects[1])
    other.StudyInstanceUID = "1.2.3"
    other.save_as(objects[1])
    with pytest.raises(InputError, match="one study"):
        write_rejection_note(tmp_path / "note.dcm", objects)
    with pytest.raises(InputError, match="one study"):
        write_rejection_note(tmp_path / "note.dcm", [])

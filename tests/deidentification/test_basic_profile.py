"""The table against its own standard: every attribute has an action, and none breaks the type it has."""

import json
from importlib import resources

import pytest
from pydicom.datadict import DicomDictionary, dictionary_VR, tag_for_keyword

from clearmargin.deidentification.basic_profile import action_for, basic_profile

ACTIONS = {
    # By hand from PS3.15, Table E.1-1.
    "AccessionNumber": "empty",
    "PatientName": "pseudonym",
    "PatientBirthDate": "empty",
    "PatientAge": "remove",
    "PatientWeight": "remove",
    "StudyDate": "shift",
    "ContentTime": "shift",
    "AcquisitionDateTime": "shift",
    "InstitutionName": "dummy",
    "StationName": "dummy",
    "OperatorsName": "dummy",
    "StudyDescription": "remove",
    "SeriesDescription": "remove",
    "ProtocolName": "dummy",
    "SOPInstanceUID": "uid",
    "FrameOfReferenceUID": "uid",
    "ReferencedSOPInstanceUID": "uid",
    "SourceImageSequence": "recurse",
    "IconImageSequence": "remove",
    "OriginalAttributesSequence": "remove",
    "RequestAttributesSequence": "remove",
    "SOPClassUID": "keep",
    "CodingSchemeUID": "keep",
    "Modality": "keep",
    "PixelSpacing": "keep",
    "KVP": "keep",
    # Not listed, and still the instance of something.
    "VolumeFrameOfReferenceUID": "uid",
    "SOPInstanceUIDOfConcatenationSource": "uid",
    "SecondaryReviewerName": "dummy",
    "EncryptedAttributesSequence": "remove",
}


def _action(keyword, *, nested=False):
    tag = tag_for_keyword(keyword)
    return action_for(tag, dictionary_VR(tag), nested=nested, content=False)


@pytest.mark.parametrize("keyword", ACTIONS)
def test_by_hand(keyword):
    assert _action(keyword) == ACTIONS[keyword]


def test_the_table_is_whole():
    table = basic_profile()
    assert len(table) == 652  # and two repeating groups, which are rules
    assert {basic for basic, _, _ in table.values()} == {
        "X", "Z", "D", "U", "X/Z", "Z/D", "X/D", "X/Z/D", "X/Z/U*"
    }  # fmt: skip
    for tag, (_, _, keyword) in table.items():
        assert tag_for_keyword(keyword) in (tag, None), keyword


@pytest.mark.parametrize(
    "tag", [0x00091001, 0x00290010, 0x50000010, 0x501E3000, 0x60000022, 0x60FE3000, 0x00080000, 0x00000002]
)
def test_whole_groups_go(tag):
    assert action_for(tag, "LO", nested=True, content=False) == "remove"


def test_no_unlisted_element_that_names_somebody_or_some_instance_stays():
    kept = [
        keyword
        for tag, (vr, _, _, _, keyword) in DicomDictionary.items()
        if vr in ("PN", "DA", "DT", "AE") and action_for(tag, vr, nested=False, content=False) == "keep"
    ]
    assert kept == ["ContextGroupVersion"]


def test_types_1_and_2_of_every_module_survive():
    """Over all modules of PS3.3 as highdicom ships them: no action removes or empties what must be there."""
    shipped = resources.files("highdicom") / "_standard" / "module_attribute_map.json"
    if not shipped.is_file():
        pytest.skip("this highdicom ships no table of modules")
    wrong = set()
    for module, attributes in json.loads(shipped.read_text()).items():
        gone = {
            (*a["path"], a["keyword"])
            for a in attributes
            if tag_for_keyword(a["keyword"])
            and _action(a["keyword"], nested=bool(a["path"])) in ("remove", "empty")
        }
        for a in attributes:
            path = (*a["path"], a["keyword"])
            if path not in gone or any(path[:k] in gone for k in range(1, len(path))):
                continue
            action = _action(a["keyword"], nested=bool(a["path"]))
            if (a["type"] == "1") or (a["type"] == "2" and action == "remove"):
                wrong.add((module, a["keyword"], a["type"], action))
    # These two modules are optional, and go as a whole.
    assert {(module, keyword) for module, keyword, _, _ in wrong} == {
        ("graphic-annotation", "GraphicAnnotationSequence"),
        ("waveform-annotation", "WaveformAnnotationSequence"),
    }

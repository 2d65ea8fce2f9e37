"""What becomes of each attribute: Table E.1-1 of PS3.15 as data, and rules for what it does not list.

``profile.csv`` holds the table of edition 2026c: tag, action of the Basic Profile, action of the option Retain
Longitudinal Temporal Information with Modified Dates, keyword. Its two repeating groups, 50xx and 60xx, are rules here.
"""

from __future__ import annotations

from functools import cache
from importlib import resources
from typing import Literal

from clearmargin.csv_files import parse_csv

__all__ = ["Action", "action_for", "basic_profile", "fallback"]

Action = Literal[
    "keep", "remove", "empty", "dummy", "uid", "shift", "zone", "pseudonym", "recurse", "content", "code"
]
"""What is done to an element.

``dummy`` replaces a value, ``shift`` moves a date or checks a time, ``recurse`` goes into a sequence's items,
``content`` does so with the stricter rules of structured reports, ``code`` puts one meaningless code into a sequence.
"""

_DATES = {"DA", "DT", "TM"}

_BY_CODE: dict[str, Action] = {
    "X": "remove",
    "Z": "empty",
    "D": "dummy",
    "U": "uid",
    "X/Z": "empty",  # the stricter of the two for conformance: an optional element may be empty
    "Z/D": "dummy",
    "X/D": "dummy",
    "X/Z/D": "dummy",
    "X/Z/U*": "recurse",
}

_CHOSEN: dict[str, Action] = {
    # Where the table leaves the choice, or asks for a dummy sequence.
    "PatientName": "pseudonym",
    "PatientID": "pseudonym",
    "ContentSequence": "content",
    "InstitutionCodeSequence": "code",
    "OperatorIdentificationSequence": "recurse",
    "WaveformAnnotationSequence": "remove",
    "GraphicAnnotationSequence": "remove",
    "PersonIdentificationCodeSequence": "code",
    "VerifyingObserverSequence": "recurse",
    "FlowIdentifierSequence": "recurse",
    "ReferencedPerformedProcedureStepSequence": "recurse",
    "ReferencedStudySequence": "recurse",
    "RTAccessoryHolderSlotID": "dummy",
    "TimezoneOffsetFromUTC": "zone",
    "ContextGroupVersion": "keep",  # an edition of the standard's own value sets, no date of a patient
    # Stricter than the table, which does not list them.
    "EncryptedAttributesSequence": "remove",  # the original values, for whoever has that key
    "SecondaryReviewerName": "dummy",
    "EvaluatorName": "dummy",
    "DocumentAuthorTrial": "dummy",
    "RecordKey": "remove",
    "PriorRecordKey": "remove",
    "HL7InstanceIdentifier": "dummy",
    "DocumentTitle": "empty",
    "FilenameInContainer": "remove",
    # Of presentation states and lookup tables: free text of whoever made them.
    "ContentLabel": "dummy",
    "ContentDescription": "empty",
    "AlternateContentDescriptionSequence": "remove",
    "GraphicLayer": "dummy",
    "GraphicLayerDescription": "remove",
    "GraphicGroupLabel": "dummy",
    "GraphicGroupDescription": "remove",
    "CompoundGraphicSequence": "remove",
    "LUTExplanation": "dummy",
    "WindowCenterWidthExplanation": "dummy",
    "PresentationStateLabel": "dummy",
}

_NESTED: dict[str, Action] = {
    # Removed from a data set by the table, but required in the items of some sequences (types 1 and 2).
    "RequestedProcedureID": "empty",
    "PatientSetupPhotoDescription": "empty",
    "PatientTreatmentPreparationProcedureParameterDescription": "empty",
    "PositionAcquisitionTemplateDescription": "empty",
    "PositionAcquisitionTemplateName": "dummy",
    "PriorTreatmentDoseDescription": "empty",
    "ReasonForRequestedProcedureCodeSequence": "empty",
    "RetrieveAETitle": "dummy",
    "SeriesDescription": "dummy",
    "SourceManufacturer": "empty",
    "StudyDescription": "empty",
}

_VOCABULARY = {
    # UIDs that name a kind of thing, not an instance: the same for every patient everywhere.
    "SOPClassUID",
    "RelatedGeneralSOPClassUID",
    "OriginalSpecializedSOPClassUID",
    "ReferencedSOPClassUID",
    "ReferencedSOPClassUIDInFile",
    "ReferencedRelatedGeneralSOPClassUIDInFile",
    "ReferencedTransferSyntaxUIDInFile",
    "SOPClassesInStudy",
    "SOPClassesSupported",
    "PertinentSOPClassesInStudy",
    "PertinentSOPClassesInSeries",
    "AvailableTransferSyntaxUID",
    "StoredInstanceTransferSyntaxUID",
    "FlowTransferSyntaxUID",
    "MACCalculationTransferSyntaxUID",
    "EncryptedContentTransferSyntaxUID",
    "CodingSchemeUID",
    "ContextUID",
    "ContextGroupExtensionCreatorUID",
    "MappingResourceUID",
    "SegmentationTemplateUID",
}
_UNLISTED: dict[str, Action] = {
    "SQ": "recurse",
    "UI": "uid",
    "DA": "shift",
    "DT": "shift",
    "TM": "shift",
    "PN": "dummy",
    "AE": "dummy",
    "UR": "dummy",
    "UN": "remove",
}
_PUBLIC_ADDRESSES = {"CodingSchemeURL", "URNCodeValue"}
_TEXTS = {"ST", "LT", "UT"}


@cache
def basic_profile() -> dict[int, tuple[str, str, str]]:
    """Return Table E.1-1: tag to the action of the Basic Profile, that of modified dates, and the keyword."""
    table = resources.files("clearmargin.deidentification").joinpath("profile.csv").read_text("ascii")
    return {
        int(row["tag"], 16): (row["basic"], row["modified_dates"], row["keyword"]) for row in parse_csv(table)
    }


@cache
def action_for(tag: int, vr: str, *, nested: bool, content: bool) -> Action:  # noqa: PLR0911
    """Return what is done to an element.

    Args:
        tag: Its tag.
        vr: How its value is read; ``UN`` where neither the file nor the dictionary says.
        nested: Whether it lies in an item of a sequence.
        content: Whether it lies in the content tree of a structured report.
    """
    group, element = divmod(tag, 0x1_0000)
    if group % 2 or group <= 0x0002 or element == 0 or 0x5000 <= group <= 0x50FF or 0x6000 <= group <= 0x60FF:
        return "remove"
    listed = basic_profile().get(tag)
    name = listed[2] if listed else _keyword(tag)
    if nested and name in _NESTED:
        return _NESTED[name]
    if name in _CHOSEN:
        return _CHOSEN[name]
    if listed is not None:
        return _listed_action(listed, vr)
    if not name or vr == "UN":
        return "remove"
    if name in _VOCABULARY | _PUBLIC_ADDRESSES:
        return "keep"
    if content and vr in _TEXTS:
        return "dummy"
    return _UNLISTED.get(vr, "keep")


def _listed_action(listed: tuple[str, str, str], vr: str) -> Action:
    basic, modified_dates, _ = listed
    if modified_dates and vr in _DATES:
        return "shift"
    action = _BY_CODE[basic]
    # A replacement for what is not text or number here is to have nothing in it.
    return "empty" if action == "dummy" and vr in {"SQ", "UN"} else action


def fallback(tag: int) -> Action:
    """Return what is done to a date or time that is not one: the table's action without the option."""
    listed = basic_profile().get(tag)
    return _BY_CODE[listed[0]] if listed else "empty"


def _keyword(tag: int) -> str:
    from pydicom.datadict import keyword_for_tag

    keyword: str = keyword_for_tag(tag)
    return keyword

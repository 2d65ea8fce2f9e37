"""The profile applied to one data set, items of sequences and all; elements that stay are not even converted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from clearmargin.deidentification.basic_profile import Action, action_for, fallback
from clearmargin.deidentification.dates import is_time, is_zone, shift_date, shift_datetime
from clearmargin.deidentification.key import Key
from clearmargin.formats.dicom.boundary import items_of

__all__ = ["Patient", "Tally", "deidentify_dataset"]

Tally = Counter[tuple[int, str]]
"""How many elements, by tag and what was done to them."""

_DUMMIES = {
    "AE": "REMOVED",
    "AS": "001D",
    "CS": "REMOVED",
    "DA": "19000101",
    "DT": "19000101000000",
    "LO": "REMOVED",
    "LT": "REMOVED",
    "OB": b"\0\0",
    "OW": b"\0\0",
    "PN": "REMOVED",
    "SH": "REMOVED",
    "ST": "REMOVED",
    "TM": "000000",
    "UC": "REMOVED",
    "UN": b"\0\0",
    "UR": "urn:removed",
    "UT": "REMOVED",
}
_ONE_VALUE = {"LT", "ST", "UT", "UR", "OB", "OW", "UN"}
_FREE_TEXT = {"LO", "LT", "SH", "ST", "UC", "UR", "UT"}

# Items of a report that describe the patient (PS3.16, TID 1007): birth date, sex, age, species aside.
_ABOUT_SUBJECT = {"121029", "121030", "121031", "121032", "121033"}

METHOD_CODES = {
    "113100": "Basic Application Confidentiality Profile",
    "113107": "Retain Longitudinal Temporal Information Modified Dates Option",
    "113104": "Clean Structured Content Option",
}


@dataclass(frozen=True)
class Patient:
    """Whose data set it is: the pseudonym, and by how many days the dates move."""

    pseudonym: str
    days: int


def deidentify_dataset(
    dataset: Any, key: Key, patients: Mapping[str, str] | None = None
) -> tuple[Patient, Tally]:
    """De-identify a ``pydicom.Dataset`` in place: PS3.15's Basic Profile, dates shifted.

    Pixels are not looked at. Call it within :func:`clearmargin.formats.dicom.boundary.dicom_boundary`.

    Args:
        dataset: With or without its pixels.
        key: Gives pseudonyms, UIDs and shifts.
        patients: PatientID of studies in which some files state none.

    Returns:
        Whose it is, and what was done.
    """
    identity = _identity(dataset, patients or {})
    patient = Patient(key.pseudonym(identity), key.shift_days(identity))
    tally: Tally = Counter()
    structured = "ContentSequence" in dataset
    _Pass(key, patient, tally).clean(dataset, nested=False, content=False)
    dataset.PatientName = dataset.PatientID = patient.pseudonym
    _state_method(dataset, structured=structured)
    return patient, tally


def _identity(dataset: Any, patients: Mapping[str, str]) -> str:
    """Return what tells patients apart: PatientID, or that of the study's other files; the study if none has one."""
    study = str(dataset.get("StudyInstanceUID") or "").strip("\0 ")
    if not str(dataset.get("PatientID") or "").strip("\0 ") and study in patients:
        return patients[study]
    for keyword in ("PatientID", "StudyInstanceUID", "SOPInstanceUID"):
        value = str(dataset.get(keyword) or "").strip("\0 ")
        if value:
            return value if keyword == "PatientID" else f"{keyword}:{value}"
    return ""


def _state_method(dataset: Any, *, structured: bool) -> None:
    """Say in the data set itself what was done (PS3.15, E.1.1)."""
    codes = ["113100", "113107"]
    codes += ["113104"] if structured else []
    dataset.PatientIdentityRemoved = "YES"
    dataset.LongitudinalTemporalInformationModified = "MODIFIED"
    dataset.DeidentificationMethod = ["Clear Margin: PS3.15 2026c Basic Profile", "dates shifted"]
    dataset.DeidentificationMethodCodeSequence = [_code(value, "DCM", METHOD_CODES[value]) for value in codes]


def _code(value: str, scheme: str, meaning: str) -> Any:
    from pydicom.dataset import Dataset

    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, scheme, meaning
    return item


class _Pass:
    """One pass over a data set."""

    def __init__(self, key: Key, patient: Patient, tally: Tally) -> None:
        self._key, self._patient, self._tally = key, patient, tally

    def clean(self, dataset: Any, *, nested: bool, content: bool) -> None:
        for tag in list(dataset.keys()):
            element = dataset.get_item(tag)
            vr = _vr(tag, element.VR)
            action = action_for(int(tag), vr, nested=nested, content=content)
            if action == "keep":
                if vr in _FREE_TEXT and element.value:
                    self._tally[int(tag), "kept text"] += 1
                continue
            done = self._apply(dataset, tag, vr, element, action, content=content)
            if done:
                self._tally[int(tag), done] += 1

    def _apply(  # noqa: PLR0911 - one action, one return
        self, dataset: Any, tag: Any, vr: str, element: Any, action: Action, *, content: bool
    ) -> str:
        """Do one action; return what was done in the past tense, "" for a mere descent."""
        if action in ("shift", "zone"):
            return self._temporal(dataset, tag, vr, element)
        if action == "pseudonym":
            return self._pseudonym(dataset, tag)
        if action == "remove":
            del dataset[tag]
            return "removed"
        if action in ("recurse", "content"):
            return self._descend(dataset, tag, content=content or action == "content")
        if not element.value or action == "empty":
            return self._empty(dataset, tag, vr, element)
        if action == "code":
            _put(dataset, tag, "SQ", [_code("REMOVED", "99CLEARMARGIN", "Removed")])
            return "replaced"
        if vr == "UI" or action == "uid":
            _put(dataset, tag, "UI", [self._uid(uid) for uid in _texts(element)])
            return "new UID"
        dummy = _DUMMIES.get(vr)
        if dummy is None:
            return self._empty(dataset, tag, vr, element)
        count = 1 if vr in _ONE_VALUE else len(_texts(element))
        _put(dataset, tag, vr, dummy if count == 1 else [dummy] * count)
        return "replaced"

    def _empty(self, dataset: Any, tag: Any, vr: str, element: Any) -> str:
        number = dataset.get("ROINumber") if int(tag) == 0x3006_0026 else None
        if number is not None:  # readers tell structures apart by name: the profile allows a dummy here
            _put(dataset, tag, "LO", f"ROI {int(number)}")
            return "replaced"
        _put(dataset, tag, vr, [] if vr == "SQ" else None)
        return "emptied" if element.value else ""

    def _temporal(self, dataset: Any, tag: Any, vr: str, element: Any) -> str:
        values = _texts(element)
        if not any(values):
            return self._empty(dataset, tag, vr, element)
        days = self._patient.days
        if vr == "DA":
            moved = [shift_date(text, days) if text else "" for text in values]
        elif vr == "DT":
            moved = [shift_datetime(text, days) if text else "" for text in values]
        else:
            valid = is_time if vr == "TM" else is_zone
            moved = [text if valid(text) else None for text in values]
        if None in moved:
            action = fallback(int(tag))
            return self._apply(dataset, tag, vr, element, action, content=False) + " (not valid)"
        if vr not in ("DA", "DT"):
            return "kept"
        _put(dataset, tag, vr, moved)
        return "shifted"

    def _pseudonym(self, dataset: Any, tag: Any) -> str:
        # An item may be about another patient: its own PatientID comes after the name, so it is still there.
        own = str(dataset.get("PatientID") or "").strip("\0 ")
        value = self._key.pseudonym(own) if own else self._patient.pseudonym
        _put(dataset, tag, "LO" if int(tag) == 0x0010_0020 else "PN", value)
        return "pseudonym"

    def _descend(self, dataset: Any, tag: Any, *, content: bool) -> str:
        sequence = dataset[tag]
        if sequence.VR != "SQ":
            del dataset[tag]
            return "removed"
        if content:
            kept = [item for item in sequence.value if not _about_subject(item)]
            if len(kept) < len(sequence.value):
                sequence.value = kept
        for item in sequence.value:
            self.clean(item, nested=True, content=content)
        return ""

    def _uid(self, uid: str) -> str:
        from pydicom.config import IGNORE
        from pydicom.uid import UID

        known = not uid or UID(uid, validation_mode=IGNORE).type  # the standard's own name for something
        return uid if known else self._key.uid(uid)


def _about_subject(item: Any) -> bool:
    names = items_of(item, "ConceptNameCodeSequence")
    return bool(names) and str(names[0].get("CodeValue")) in _ABOUT_SUBJECT


def _vr(tag: Any, stated: str | None) -> str:
    """Return how a value is read: as the file says; as the dictionary does where it does not."""
    if stated not in (None, "UN", "OB"):
        return stated
    from pydicom.datadict import dictionary_VR

    try:
        known: str = dictionary_VR(tag)
    except KeyError:
        return stated or "UN"
    return known


def _texts(element: Any) -> list[str]:
    """Return an element's values as text, whether pydicom has converted it or not."""
    value = element.value
    if isinstance(value, bytes):
        return [part.strip("\0 ") for part in value.decode("ascii", "replace").split("\\")]
    if value is None or isinstance(value, str) or not hasattr(value, "__iter__"):
        return [str(value or "").strip("\0 ")]
    return [str(part).strip("\0 ") for part in value]


def _put(dataset: Any, tag: Any, vr: str, value: Any) -> None:
    from pydicom.dataelem import DataElement

    if isinstance(value, list) and len(value) == 1 and vr != "SQ":
        value = value[0]
    dataset[tag] = DataElement(tag, vr, value)

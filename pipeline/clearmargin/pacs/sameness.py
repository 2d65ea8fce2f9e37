"""Whether an archive holds what it was sent: a digest of all that it has no right to change."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

from clearmargin.formats.dicom.boundary import dicom_boundary

__all__ = ["REWRITABLE", "differences", "digest_of"]

REWRITABLE = frozenset(
    {
        # An archive may bring a patient, a visit or an order up to date (PS3.4, B.4.1.3), and note that it did.
        "PatientName",
        "PatientID",
        "IssuerOfPatientID",
        "IssuerOfPatientIDQualifiersSequence",
        "TypeOfPatientID",
        "OtherPatientIDs",
        "OtherPatientIDsSequence",
        "OtherPatientNames",
        "PatientBirthDate",
        "PatientBirthTime",
        "PatientSex",
        "PatientAge",
        "PatientSize",
        "PatientWeight",
        "PatientComments",
        "EthnicGroup",
        "AccessionNumber",
        "IssuerOfAccessionNumberSequence",
        "StudyID",
        "StudyDescription",
        "ReferringPhysicianName",
        "ReferencedStudySequence",
        "ReferencedPatientSequence",
        "InstitutionName",
        "OriginalAttributesSequence",
        "SpecificCharacterSet",
        "TimezoneOffsetFromUTC",
        "InstanceCreationDate",
        "InstanceCreationTime",
        "InstanceAvailability",
        "RetrieveURL",
        "RetrieveAETitle",
        "StorageMediaFileSetUID",
        "DataSetTrailingPadding",
    }
)
"""Keywords of attributes of the data set itself that an archive may rewrite; within sequences nothing may change."""


@dicom_boundary()
def digest_of(dataset: Any) -> str:
    """Return a SHA-256 of a data set's values, in the order of their tags.

    Left out are group 0002, group lengths, and `REWRITABLE`. Texts count as they read, whatever their character set and
    padding; everything else byte for byte.

    Raises:
        InputError: A value is damaged.
    """
    digest = hashlib.sha256()
    for _, line in _lines(dataset, top=True):
        digest.update(line)
    return digest.hexdigest()


@dicom_boundary()
def differences(one: Any, other: Any) -> list[str]:
    """Return the keywords of attributes that differ, private ones as ``private``; none of their values."""
    first, second = dict(_by_tag(one)), dict(_by_tag(other))
    tags = sorted(tag for tag in first.keys() | second.keys() if first.get(tag) != second.get(tag))
    return list(dict.fromkeys(_keyword(tag) for tag in tags))


def _by_tag(dataset: Any) -> Iterator[tuple[int, bytes]]:
    yield from _lines(dataset, top=True)


def _lines(dataset: Any, *, top: bool = False) -> Iterator[tuple[int, bytes]]:
    """Yield each element's tag, and its tag and value as bytes that stand for nothing else."""
    for element in dataset:
        tag = int(element.tag)
        if tag >> 16 == 0x0002 or tag & 0xFFFF == 0 or (top and element.keyword in REWRITABLE):
            continue
        value = element.value
        if element.VR == "SQ":
            items = [b"".join(line for _, line in _lines(item)) for item in value or ()]
        elif isinstance(value, bytes):
            items = [value]
        else:
            values = [] if value is None else [value] if _is_single(value) else list(value)
            items = [str(v).rstrip(" \0").encode("utf-8", "surrogatepass") for v in values]
            items = [] if items == [b""] else items  # empty, and absent, of one value
        yield tag, b"".join((b"%08x" % tag, b"%d:" % len(items), *(b"%d:%b" % (len(i), i) for i in items)))


def _is_single(value: Any) -> bool:
    from pydicom.multival import MultiValue

    return not isinstance(value, MultiValue | list | tuple)


def _keyword(tag: int) -> str:
    from pydicom.datadict import keyword_for_tag

    return "private" if (tag >> 16) % 2 else keyword_for_tag(tag) or f"({tag >> 16:04X},{tag & 0xFFFF:04X})"

"""Rejection Notes: a Key Object Selection by which an archive learns that objects are not to be used any more."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from clearmargin.core import Code
from clearmargin.errors import InputError
from clearmargin.formats.dicom.boundary import dicom_boundary, quiet_pydicom, read_header
from clearmargin.formats.dicom.output import MANUFACTURER, coded, derived_uid, save, write_dates

__all__ = ["write_rejection_note"]

_TITLE = Code(value="113001", scheme="DCM", meaning="Rejected for Quality Reasons")


@quiet_pydicom()
@dicom_boundary()
def write_rejection_note(path: Path, files: Sequence[Path]) -> str:
    """Write a Rejection Note that names DICOM objects of one study; return its SOPInstanceUID.

    The same objects give the same bytes and the same UID, so that sending it again changes nothing.

    Args:
        path: The file.
        files: The objects, such as a SEG and its report.

    Raises:
        InputError: There is no file, one cannot be read, or they are of several studies.

    Source: IHE RAD TF-3, 4.66 (Imaging Object Change Management); PS3.16, TID 2010 and CID 7010.
    """
    import highdicom
    from pydicom.sr.codedict import codes

    headers: list[Any] = [read_header(file) for file in files]
    if len({str(header.StudyInstanceUID) for header in headers}) != 1:
        raise InputError("a Rejection Note is about objects of one study")
    first, uids = headers[0], sorted(str(header.SOPInstanceUID) for header in headers)
    model, weights = (str(first.get(n) or "") for n in ("ManufacturerModelName", "DeviceSerialNumber"))
    observer = highdicom.sr.ObserverContext(
        observer_type=codes.DCM.Device,
        observer_identifying_attributes=highdicom.sr.DeviceObserverIdentifyingAttributes(
            uid=derived_uid("device", model, weights),
            manufacturer_name=MANUFACTURER,
            model_name=model or None,
        ),
    )
    content = highdicom.ko.KeyObjectSelection(
        document_title=coded(_TITLE),
        referenced_objects=headers,
        observer_device_context=observer,
        description=f"Withdrawn: results of the model {model}, weights {weights[:12]}",
    )
    dataset = highdicom.ko.KeyObjectSelectionDocument(
        evidence=headers,
        content=content,
        series_instance_uid=derived_uid("rejection series", *uids),
        series_number=909,
        sop_instance_uid=derived_uid("rejection", *uids),
        instance_number=1,
        manufacturer=MANUFACTURER,
    )
    dataset.SeriesDescription = "Clear Margin: withdrawn results"
    write_dates(dataset, headers)
    path.parent.mkdir(parents=True, exist_ok=True)
    save(dataset, path)
    return str(dataset.SOPInstanceUID)

"""Why a file is held back: its pictures may carry burned-in text, or it holds what cannot be cleaned.

The rules look at the header only; they are table-driven and err towards holding back. What a detector sees in the
pixels themselves is :mod:`clearmargin.deidentification.text`.
"""

from __future__ import annotations

from typing import Any

__all__ = ["uncleanable", "why_pixels_are_suspect"]

_CLASSES = {
    # By the beginning of the SOP class UID: what such pictures are.
    "1.2.840.10008.5.1.4.1.1.7": "secondary captures are pictures of a screen",
    "1.2.840.10008.5.1.4.1.1.3": "ultrasound pictures carry a banner with names as a rule",
    "1.2.840.10008.5.1.4.1.1.6": "ultrasound pictures carry a banner with names as a rule",
    "1.2.840.10008.5.1.4.1.1.77.1": "photographs, endoscopy and slides carry names or labels",
}
_MODALITIES = {
    "US": "ultrasound pictures carry a banner with names as a rule",
    "IVUS": "ultrasound pictures carry a banner with names as a rule",
    "ES": "endoscopy pictures carry names as a rule",
    "XC": "photographs may show names or a face",
    "GM": "microscope pictures may carry a label",
    "SM": "slides may carry a label",
    "OP": "ophthalmic photographs carry names as a rule",
    "OPT": "ophthalmic pictures carry names as a rule",
    "OT": "the modality is 'other'",
    "SC": "secondary captures are pictures of a screen",
    "HC": "hard copies carry names as a rule",
    "DG": "diaphanographs may carry names",
    "TG": "thermographs may carry names",
    "DOC": "documents carry names as a rule",
    "": "the modality is not stated",
}
_TOMOGRAPHIC = {"CT", "MR", "PT", "CR", "DX", "MG", "XA", "RF"}
_IMAGE_TYPES = ("SCREEN", "CAPTURE", "DOSE", "REPORT", "PROTOCOL", "FILM", "PASTE", "SECONDARY CAPTURE")
_VIDEO = tuple(f"1.2.840.10008.1.2.4.10{n}" for n in range(10))  # MPEG-2, MPEG-4, HEVC


def uncleanable(header: Any) -> str | None:
    """Return why a data set's content cannot be cleaned here; None where it can."""
    sop_class = str(header.get("SOPClassUID") or "")
    if sop_class.startswith("1.2.840.10008.5.1.4.1.1.104") or "EncapsulatedDocument" in header:
        return "an encapsulated document: what it says is not looked at"
    if "PixelDataProviderURL" in header:
        return "the pixels lie on a server, not in the file"
    for group in range(0x6000, 0x6100, 2):
        if (group, 0x0102) in header and (group, 0x3000) not in header:
            return "an overlay hides in unused bits of the pixels"
    return None


def why_pixels_are_suspect(header: Any) -> str | None:  # noqa: PLR0911 - one rule, one return
    """Return why the pictures of a data set may carry burned-in text, judged by its header; None where not.

    A header that says ``BurnedInAnnotation`` NO is not believed where the kind of picture speaks against it.
    """
    if not header.get("Rows"):
        return None
    if str(header.get("BurnedInAnnotation") or "").strip().upper() == "YES":
        return "the file says that it has burned-in annotation"
    sop_class = str(header.get("SOPClassUID") or "")
    for beginning, reason in _CLASSES.items():
        if sop_class == beginning or sop_class.startswith(f"{beginning}."):
            return reason
    modality = str(header.get("Modality") or "").strip().upper()
    if modality in _MODALITIES:
        return _MODALITIES[modality]
    if str(header.file_meta.get("TransferSyntaxUID") or "").startswith(_VIDEO):
        return "videos carry names as a rule"
    if header.get("ConversionType"):
        return "the picture was digitised or captured"
    image_type = header.get("ImageType") or []
    parts = [image_type] if isinstance(image_type, str) else image_type
    if any(word in str(part).upper() for part in parts for word in _IMAGE_TYPES):
        return "the image type is that of a capture, a report or a film"
    photometric = str(header.get("PhotometricInterpretation") or "").strip().upper()
    if modality in _TOMOGRAPHIC and not photometric.startswith("MONOCHROME"):
        return f"{modality} in colour is a capture or a fusion as a rule"
    return None

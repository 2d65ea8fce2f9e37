"""What lies in a DICOM folder: its series, what each is, and why it can or cannot be read."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Literal

import numpy as np

from clearmargin.errors import GeometryError, InputError
from clearmargin.files import check_readable
from clearmargin.formats.dicom.boundary import (
    check_frames,
    dicom_boundary,
    modality_of,
    parsed_header,
    read_header,
)
from clearmargin.formats.dicom.geometry import missing_of_plane
from clearmargin.formats.dicom.headers import Elements, Header
from clearmargin.formats.dicom.media import is_zip, listed_files, unpacked_files
from clearmargin.formats.dicom.pixels import decode_frames
from clearmargin.formats.dicom.planes import frame_count, is_mosaic, object_size, pictures_of
from clearmargin.formats.dicom.scan import quick_header
from clearmargin.formats.dicom.volumes import MARKS, VolumeEntry, several, split_volumes
from clearmargin.formats.limits import max_bytes, raise_it

__all__ = ["SeriesEntry", "index_dicom", "looks_like_dicom", "scan_dicom", "select_series"]

log = logging.getLogger(__name__)

SeriesKind = Literal["volume", "image", "images", "clip", "object"]

_TAGS = (
    "SpecificCharacterSet",
    "SOPClassUID",
    "SOPInstanceUID",
    "SeriesInstanceUID",
    "Modality",
    "SeriesDescription",
    "SeriesNumber",
    "InstanceNumber",
    "ImageType",
    "FrameOfReferenceUID",
    "Rows",
    "Columns",
    "NumberOfFrames",
    "ImagePositionPatient",
    "ImageOrientationPatient",
    "PixelSpacing",
    "SpacingBetweenSlices",
    "SliceThickness",
    "SamplesPerPixel",
    "PhotometricInterpretation",
    "BitsAllocated",
    "BitsStored",
    "HighBit",
    "PixelRepresentation",
    "RescaleSlope",
    "RescaleIntercept",
    "RescaleType",
    "PixelPaddingValue",
    "PixelPaddingRangeLimit",
    "ModalityLUTSequence",
    "SharedFunctionalGroupsSequence",
    "PerFrameFunctionalGroupsSequence",
    *MARKS,
)

_NOT_IMAGES = {
    "SEG": "a DICOM SEG, which holds masks: read_dicom_seg reads it",
    "RTSTRUCT": "an RT structure set, which holds contours: read_rtstruct reads it",
    "RTDOSE": "an RT dose, which is not read",
    "RTPLAN": "an RT plan, which holds no picture",
    "SR": "a structured report, which holds no picture",
    "PR": "a presentation state, which holds no picture",
    "KO": "a key object selection, which holds no picture",
    "REG": "a registration, which holds no picture",
    "ANN": "annotations, which hold no picture",
    "ECG": "a waveform, which holds no picture",
    "SM": "a tiled whole-slide image, which is not read",
}
_NOT_READ = {"RTDOSE", "SM"}  # of these, what holds pictures all the same
_LISTED = 20  # in a message
_PARAMETRIC_MAP = "1.2.840.10008.5.1.4.1.1.30"


@dataclass(frozen=True, kw_only=True, eq=False)
class SeriesEntry:
    """One series of an index.

    Attributes:
        number: From 1, in the order of the listing.
        uid: SeriesInstanceUID. Private: never shown, logged or put in an error.
        modality: ``CT``, ``MR``, ...; ``""`` where the files do not say.
        series_number: SeriesNumber; None where the files do not say.
        description: SeriesDescription. Private, as free text: for selection, and for the terminal of who asks.
        kind: A ``volume`` (or several), one ``image``, several separate ``images``, a ``clip``, or an ``object``
            without pixels, or with such that cannot be read.
        files: In the order found. Private: paths may hold record numbers.
        shape: ``(Z, Y, X)`` of a volume, ``(T, Y, X)`` of a clip or of images, ``(Y, X)`` of an image; () if
            unknown.
        readable: Whether :func:`clearmargin.formats.dicom.images.read_dicom` reads it as it is.
        reason: Why not, and the way out; ``""`` where readable.
        refused: Whether it should hold pictures, and they cannot be read. So not for a SEG or a report, a clip,
            separate images, or several volumes to choose from.
        volumes: What a series of kind ``volume`` holds: one, or several to choose from.
    """

    number: int
    uid: str = field(repr=False)
    modality: str
    series_number: int | None
    description: str = field(repr=False)
    kind: SeriesKind
    files: tuple[Path, ...] = field(repr=False)
    shape: tuple[int, ...]
    readable: bool
    reason: str
    refused: bool = False
    volumes: tuple[VolumeEntry, ...] = ()

    @property
    def name(self) -> str:
        """What messages call the series, without identity: ``series 2 (CT)``."""
        return _name(self.number, self.modality)

    def __str__(self) -> str:
        size = " x ".join(str(n) for n in self.shape)
        state = "" if self.readable else ", not readable as it is"
        stated = "" if self.series_number is None else f" (SeriesNumber {self.series_number})"
        what = f"{self.number}{stated}: {self.modality or '?'} {self.kind}, {size or 'no size'}"
        return f"{what}, {len(self.files)} file(s){state}"


def _name(number: int, modality: str) -> str:
    return f"series {number} ({modality or 'no modality'})"


def looks_like_dicom(path: Path) -> bool:
    """Return whether a file begins as DICOM does: a preamble, or an element of group 0002 or 0008.

    A file that cannot be read does not.
    """
    try:
        with path.open("rb") as file:
            start = file.read(132)
    except OSError:
        return False
    if start[128:132] == b"DICM":
        return True
    return len(start) >= 12 and start[:4] in {
        b"\x02\x00\x00\x00", b"\x08\x00\x00\x00", b"\x08\x00\x01\x00", b"\x08\x00\x05\x00",
        b"\x08\x00\x08\x00", b"\x08\x00\x12\x00", b"\x08\x00\x16\x00",
        b"\x00\x08\x00\x00", b"\x00\x08\x00\x01", b"\x00\x08\x00\x05", b"\x00\x08\x00\x08",
        b"\x00\x08\x00\x12", b"\x00\x08\x00\x16",
    }  # fmt: skip


@dicom_boundary()
def index_dicom(path: Path | Iterable[Path]) -> list[SeriesEntry]:
    """Return the series in a file, a folder and all below it, a zip, a DICOMDIR, or a list; numbered from 1.

    Files that are not DICOM are left out. The order is that of modality, then size (largest first), then UID,
    so that it is the same on every machine.

    Raises:
        InputError: There is no DICOM file at all.
    """
    return [entry for entry, _ in scan_dicom(path)]


@dicom_boundary()
def scan_dicom(
    path: Path | Iterable[Path], damaged: dict[Path, str] | None = None
) -> list[tuple[SeriesEntry, list[Header]]]:
    """Return what :func:`index_dicom` does, each series with its files' headers in the files' order.

    Args:
        path: As for :func:`index_dicom`.
        damaged: Takes the files that begin as DICOM does and cannot be read, each with the reason.
    """
    groups: dict[str, list[Header]] = {}
    damage: list[str] = []
    files = _files(path)
    for file in files:
        try:
            header = _header(file)
            if header is None:
                continue
            uid = _series_uid(header)
        except (InputError, OSError) as error:
            reason = str(error)
            if isinstance(error, OSError):  # whose words may hold the path
                reason = f"it cannot be read ({os.strerror(error.errno or 0)})"
            damage.append(reason)
            if damaged is not None:
                damaged[file] = reason
            continue
        groups.setdefault(uid, []).append(header)
    if not groups:
        raise InputError(_nothing_readable(len(files), damage))
    if damage:
        log.warning(
            "%d file(s) begin as DICOM does and cannot be read: left out; the first: %s",
            len(damage),
            damage[0],
        )
    distinct = [(uid, *_without_copies(_whole_mosaics(members))) for uid, members in groups.items()]
    distinct.sort(key=lambda group: (_modality(group[1]), -len(group[1]), group[0]))
    return [
        (_entry(number, uid, members, clash), members)
        for number, (uid, members, clash) in enumerate(distinct, start=1)
    ]


def _nothing_readable(files: int, damage: list[str]) -> str:
    if not damage:
        what = "the file is not DICOM" if files == 1 else f"none of the {files} files is DICOM"
        return f"no readable DICOM in what was given: {what}"
    if files == 1:
        return f"no readable DICOM in what was given: {damage[0]}"
    return f"no readable DICOM in what was given ({files} files, {len(damage)} of them damaged; the first: {damage[0]})"


def _modality(members: list[Header]) -> str:
    return modality_of(members[0].elements)


def _header(file: Path) -> Header | None:
    """Return the elements that an index needs; None where the file is not DICOM."""
    tags, sequences = _tag_numbers()
    elements = quick_header(file, tags, sequences)
    if elements is not None:
        check_frames(elements, file.stat().st_size, elements.file_meta.TransferSyntaxUID)
        header = Header(file=file, elements=elements, pixels_at=elements.pixels_at)
    elif looks_like_dicom(file):
        header = parsed_header(file, tags=_TAGS)
    else:
        return None
    if is_mosaic(header) or _has_many_frames(header.elements):
        header = parsed_header(file)  # vectors and private elements say where their slices lie
    return header


def _whole_mosaics(members: list[Header]) -> list[Header]:
    """Read the headers whole if the first is a mosaic by private elements alone, which an index does not keep."""
    first = members[0]
    try:
        if modality_of(first.elements) != "MR" or is_mosaic(first):
            return members
        if not is_mosaic(parsed_header(first.file)):
            return members
        return [parsed_header(header.file) for header in members]
    except InputError:  # in an element that nobody asked for
        return members


def _has_many_frames(header: Elements) -> bool:
    try:
        return frame_count(header) > 1
    except InputError:
        return False


@cache
def _tag_numbers() -> tuple[dict[int, str], frozenset[int]]:
    from pydicom.datadict import tag_for_keyword

    sequences = {name for name in _TAGS if name.endswith("Sequence")}
    numbers = {name: int(tag_for_keyword(name) or 0) for name in _TAGS}
    return (
        {numbers[name]: name for name in _TAGS if name not in sequences},
        frozenset(numbers[name] for name in sequences),
    )


@dicom_boundary()
def _series_uid(header: Header) -> str:
    if not any(name in header.elements for name in ("SOPClassUID", "Rows", "Modality")):
        raise InputError("the file has none of the elements of a DICOM object")
    return str(header.elements.get("SeriesInstanceUID") or f"file:{header.file}")


def _files(path: Path | Iterable[Path]) -> list[Path]:
    if not isinstance(path, Path):
        return [file for p in path for file in _files(Path(p))]
    if path.is_dir():
        return sorted(p for p in path.rglob("*") if p.is_file())
    check_readable(path)
    if path.name.upper() == "DICOMDIR":
        return listed_files(path)
    return unpacked_files(path) if is_zip(path) else [path]


def _without_copies(members: list[Header]) -> tuple[list[Header], int]:
    """Leave out further copies of one SOP instance; also return how many files share a UID but are not copies."""
    seen: dict[str, list[Header]] = {}
    for header in members:
        others = seen.setdefault(str(header.elements.get("SOPInstanceUID") or header.file), [])
        if not any(_is_copy(header.file, other.file) for other in others):
            others.append(header)
    kept = [member for others in seen.values() for member in others]
    return kept, sum(len(others) for others in seen.values() if len(others) > 1)


def _is_copy(file: Path, other: Path) -> bool:
    """Return whether two files of one SOP instance hold the same picture in the same place, however encoded."""
    if file.stat().st_size == other.stat().st_size and file.read_bytes() == other.read_bytes():
        return True
    try:
        one, two = read_header(file, pixels=True), read_header(other, pixels=True)
        places = (
            "ImagePositionPatient",
            "ImageOrientationPatient",
            "PixelSpacing",
            "RescaleSlope",
            "RescaleIntercept",
        )
        if any(one.get(name) != two.get(name) for name in places):
            return False
        pictures = zip(decode_frames(one), decode_frames(two), strict=True)
        return all(np.array_equal(a, b) for a, b in pictures)
    except (InputError, ValueError):
        return False


def _entry(number: int, uid: str, members: list[Header], clash: int) -> SeriesEntry:
    first = members[0].elements
    modality = _modality(members)
    name = _name(number, modality)
    kind: SeriesKind = "object"
    shape: tuple[int, ...] = ()
    volumes: tuple[VolumeEntry, ...] = ()
    refused = True
    try:
        if clash:
            raise InputError(
                f"{name} has {clash} files that share a SOPInstanceUID and hold different pictures (a faulty "
                "anonymiser, say): results could not say which they are of; give the files new UIDs"
            )
        kind, shape, reason, volumes = _describe(members, modality, name)
        refused = kind == "object" and (modality in _NOT_READ or not _without_picture(first, modality))
        refused = refused or (volumes != () and all(volume.reason for volume in volumes))
    except GeometryError as error:
        kind, shape, reason = "volume", _claimed_shape(first, len(members)), _named(error, name)
    except InputError as error:
        reason = _named(error, name)
    return SeriesEntry(
        number=number,
        uid=uid,
        modality=modality,
        series_number=_series_number(first),
        description=str(first.get("SeriesDescription") or ""),
        kind=kind,
        files=tuple(header.file for header in members),
        shape=shape,
        readable=not reason,
        reason=reason,
        refused=refused,
        volumes=volumes,
    )


def _named(error: InputError, name: str) -> str:
    return str(error) if str(error).startswith(name) else f"{name}: {error}"


def _series_number(header: Elements) -> int | None:
    try:
        return int(str(header.get("SeriesNumber")))
    except (InputError, TypeError, ValueError):
        return None


def _claimed_shape(first: Elements, files: int) -> tuple[int, ...]:
    size, frames = object_size(first), frame_count(first)
    return () if size is None else (max(frames, files), *size)


@dicom_boundary()
def _describe(
    headers: Sequence[Header], modality: str, name: str
) -> tuple[SeriesKind, tuple[int, ...], str, tuple[VolumeEntry, ...]]:
    """Return the kind, the shape, the reason if it is not readable as it is, and the volumes."""
    first = headers[0].elements
    size, frames = object_size(first), frame_count(first)
    reason = _without_picture(first, modality) or _unusable(size, frames)
    if size is None or reason:
        return "object", (), f"{name} {reason}", ()
    if any(_in_colour(header.elements) for header in headers):
        return *_unplaced(size, frames, len(headers), "in colour", name), ()
    pictures = [p for k, header in enumerate(headers) for p in pictures_of(header, k)]
    lost = [p for p in pictures if p.plane is None]
    if not lost:
        volumes = tuple(split_volumes(pictures, headers, name))
        if len(volumes) > 1:
            return "volume", (len(pictures), *volumes[0].shape[1:]), several(volumes, name), volumes
        return "volume", volumes[0].shape, volumes[0].reason, volumes
    if len(headers) > 1 and any(frame_count(h.elements) > 1 for h in headers):
        reason = (
            f"{name} holds {len(headers)} multi-frame objects without a place in the patient: give one file"
        )
        return "images", (len(headers), *size), reason, ()
    missing = missing_of_plane(headers[lost[0].file].elements) or "a place in the patient"
    if len(lost) < len(pictures):
        raise GeometryError(
            f"{name} has {len(lost)} of {len(pictures)} images without {missing}: give the others alone"
        )
    return *_unplaced(size, frames, len(headers), f"without {missing}", name), ()


def _in_colour(header: Elements) -> bool:
    return (
        str(header.get("SamplesPerPixel") or 1) != "1"
        or header.get("PhotometricInterpretation") == "PALETTE COLOR"
    )


def _without_picture(header: Elements, modality: str) -> str:
    """Return what an object is that holds something else than pictures; nothing if it should hold pictures."""
    from pydicom.uid import UID

    if modality in _NOT_IMAGES:
        return f"is {_NOT_IMAGES[modality]}"
    if str(header.get("SOPClassUID") or "") == _PARAMETRIC_MAP:
        return "is a parametric map: read_parametric_map reads it"
    kind = UID(str(header.get("SOPClassUID") or "")).name
    if object_size(header) is None and kind.endswith(" Storage") and not re.search("Image|Volume|Map", kind):
        return f"is an object of the kind {kind}, which holds no picture"
    return ""


def _unusable(size: tuple[int, int] | None, frames: int) -> str:
    if size is None:
        return "holds no picture: it has no Rows and Columns"
    if size[0] * size[1] * frames > max_bytes():
        return f"claims {size[0]} x {size[1]} x {frames} pixels: {raise_it()}"
    return ""


def _unplaced(
    size: tuple[int, int], frames: int, n: int, how: str, name: str
) -> tuple[SeriesKind, tuple[int, ...], str]:
    if frames > 1:
        return "clip", (frames, *size), f"{name} is a clip of {frames} frames: open_video reads it"
    if n > 1:
        reason = f"{name} holds {n} separate images {how}: give one file, or use read_images"
        return "images", (n, *size), reason
    return "image", size, ""


def select_series(entries: Sequence[SeriesEntry], rule: str | None) -> SeriesEntry:
    """Return the one series that ``rule`` picks.

    Args:
        entries: From :func:`index_dicom`.
        rule: ``list:2`` for a number of the listing, ``number:5`` for a SeriesNumber, ``5`` if both or only one of
            them mean one series, a SeriesInstanceUID, a modality, ``largest``, or words of the description. None if
            there must be only one image series.

    Raises:
        InputError: No series or several fit; the message lists what is there and the way out.
    """
    if rule is None:
        images = [e for e in entries if e.kind != "object"] or list(entries)
        if len(images) > 1:
            raise InputError(f"there are {len(images)} series, choose one with --series: {_listing(images)}")
        return images[0]
    fitting = _fitting(entries, rule.strip())
    if len(fitting) != 1:
        count = "no series fits" if not fitting else f"{len(fitting)} series fit"
        raise InputError(f"{count} --series: there are {_listing(entries)}")
    return fitting[0]


def _fitting(entries: Sequence[SeriesEntry], rule: str) -> list[SeriesEntry]:
    kind, _, digits = rule.rpartition(":")
    if digits.isdigit() and kind.lower() in ("", "list", "number"):
        listed = [e for e in entries if e.number == int(digits)] if kind.lower() != "number" else []
        stated = [e for e in entries if e.series_number == int(digits)] if kind.lower() != "list" else []
        if listed and stated and listed != stated:
            others = ", ".join(str(e.number) for e in stated)
            raise InputError(
                f"--series {digits} is number {digits} of the listing, and the SeriesNumber of number {others}: say "
                f"list:{digits} or number:{digits}; there are {_listing(entries)}"
            )
        return listed or stated
    if rule == "largest":
        return sorted((e for e in entries if e.kind != "object"), key=lambda e: -_voxels(e))[:1]
    return (
        [e for e in entries if e.uid == rule]
        or [e for e in entries if e.modality.lower() == rule.lower()]
        or [e for e in entries if rule and rule.lower() in e.description.lower()]
    )


def _voxels(entry: SeriesEntry) -> int:
    total = 1
    for n in entry.shape:
        total *= n
    return total if entry.shape else 0


def _listing(entries: Sequence[SeriesEntry]) -> str:
    shown = " | ".join(str(e) for e in entries[:_LISTED])
    more = len(entries) - _LISTED
    return (
        shown
        if more <= 0
        else f"{shown} | and {more} more; `clearmargin batch` segments all series of a folder"
    )

"""What lies in a DICOM folder: its series, what each is, and why it can or cannot be read."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal

from clearmargin.errors import GeometryError, InputError
from clearmargin.formats.dicom_boundary import dicom_boundary, modality_of, read_header
from clearmargin.formats.dicom_geometry import Plane, plane_of, stack_planes
from clearmargin.formats.dicom_media import is_zip, listed_files, unpacked_files
from clearmargin.formats.dicom_pixels import MAX_BYTES
from clearmargin.formats.dicom_scan import quick_header

__all__ = [
    "SeriesEntry",
    "frame_planes",
    "index_dicom",
    "looks_like_dicom",
    "scan_dicom",
    "select_series",
    "single_plane",
]

SeriesKind = Literal["volume", "image", "images", "clip", "object"]

_TAGS = (
    "SpecificCharacterSet",
    "SOPClassUID",
    "SOPInstanceUID",
    "SeriesInstanceUID",
    "Modality",
    "SeriesDescription",
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
    "PixelPaddingValue",
    "PixelPaddingRangeLimit",
    "ModalityLUTSequence",
    "SharedFunctionalGroupsSequence",
    "PerFrameFunctionalGroupsSequence",
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
_PARAMETRIC_MAP = "1.2.840.10008.5.1.4.1.1.30"


@dataclass(frozen=True, kw_only=True, eq=False)
class SeriesEntry:
    """One series of an index.

    Attributes:
        number: From 1, in the order of the listing; what ``--series`` takes.
        uid: SeriesInstanceUID. Private: never shown, logged or put in an error.
        modality: ``CT``, ``MR``, ...; ``""`` where the files do not say.
        description: SeriesDescription, for selection only. Private: it is free text.
        kind: A ``volume``, one ``image``, several separate ``images``, a ``clip``, or an ``object`` without
            pixels.
        files: In the order found. Private: paths may hold record numbers.
        shape: ``(Z, Y, X)`` of a volume, ``(T, Y, X)`` of a clip or of images, ``(Y, X)`` of an image; () if
            unknown.
        readable: Whether :func:`clearmargin.formats.dicom.read_dicom` reads it as it is.
        reason: Why not, and the way out; ``""`` where readable.
    """

    number: int
    uid: str = field(repr=False)
    modality: str
    description: str = field(repr=False)
    kind: SeriesKind
    files: tuple[Path, ...] = field(repr=False)
    shape: tuple[int, ...]
    readable: bool
    reason: str

    @property
    def name(self) -> str:
        """What messages call the series, without identity: ``series 2 (CT)``."""
        return f"series {self.number} ({self.modality or 'no modality'})"

    def __str__(self) -> str:
        size = " x ".join(str(n) for n in self.shape)
        state = "" if self.readable else ", not readable as it is"
        what = f"{self.number}: {self.modality or '?'} {self.kind}, {size or 'no size'}"
        return f"{what}, {len(self.files)} file(s){state}"


def looks_like_dicom(path: Path) -> bool:
    """Return whether a file begins as DICOM does: a preamble, or an element of group 0002 or 0008."""
    with path.open("rb") as file:
        start = file.read(132)
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
def scan_dicom(path: Path | Iterable[Path]) -> list[tuple[SeriesEntry, list[Any]]]:
    """Return what :func:`index_dicom` does, each series with its files' headers in the files' order."""
    groups: dict[str, list[tuple[Path, Any]]] = {}
    damaged = 0
    files = _files(path)
    for file in files:
        try:
            header = _header(file)
            if header is None:
                continue
            uid = _series_uid(header, file)
        except InputError:
            damaged += 1
            continue
        groups.setdefault(uid, []).append((file, header))
    if not groups:
        detail = f", {damaged} of them damaged" if damaged else ""
        raise InputError(f"no readable DICOM in what was given ({len(files)} file(s){detail})")
    distinct = [(uid, _without_copies(members)) for uid, members in groups.items()]
    drafts = [(_entry(uid, members), [header for _, header in members]) for uid, members in distinct]
    drafts.sort(key=lambda pair: (pair[0].modality, -len(pair[0].files), pair[0].uid))
    return [(_numbered(entry, k + 1), headers) for k, (entry, headers) in enumerate(drafts)]


def _header(file: Path) -> Any:
    """Return the elements that an index needs; None where the file is not DICOM."""
    wanted, sequences = _tag_numbers()
    header: Any = quick_header(file, wanted, sequences)
    if header is None and looks_like_dicom(file):
        header = read_header(file, tags=_TAGS)
    return header


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
def _series_uid(header: Any, file: Path) -> str:
    if "SOPClassUID" not in header and "Rows" not in header and "Modality" not in header:
        raise InputError("the file has none of the elements of a DICOM object")
    return str(header.get("SeriesInstanceUID") or f"file:{file}")


def _files(path: Path | Iterable[Path]) -> list[Path]:
    if not isinstance(path, Path):
        return [file for p in path for file in _files(Path(p))]
    if path.is_dir():
        return sorted(p for p in path.rglob("*") if p.is_file())
    if not path.exists():
        raise InputError(f"there is no file or folder '{path}'")
    if path.name.upper() == "DICOMDIR":
        return listed_files(path)
    return unpacked_files(path) if is_zip(path) else [path]


def _without_copies(members: list[tuple[Path, Any]]) -> list[tuple[Path, Any]]:
    """Leave out further files of one SOP instance: the same UID is the same object."""
    seen: dict[str, tuple[Path, Any]] = {}
    for file, header in members:
        seen.setdefault(str(header.get("SOPInstanceUID") or file), (file, header))
    return list(seen.values())


def _numbered(entry: SeriesEntry, number: int) -> SeriesEntry:
    values = {name: getattr(entry, name) for name in entry.__dataclass_fields__}
    values["number"] = number
    values["reason"] = entry.reason.replace("series 0 (", f"series {number} (")
    return SeriesEntry(**values)


def _entry(uid: str, members: list[tuple[Path, Any]]) -> SeriesEntry:
    headers = [header for _, header in members]
    first = headers[0]
    modality = modality_of(first)
    kind: SeriesKind = "object"
    shape: tuple[int, ...] = ()
    reason = ""
    try:
        kind, shape, reason = _describe(headers, modality, f"series 0 ({modality or 'no modality'})")
    except InputError as error:
        reason = str(error)
        if isinstance(error, GeometryError):
            kind, shape = "volume", _claimed_shape(headers)
    return SeriesEntry(
        number=0,
        uid=uid,
        modality=modality,
        description=str(first.get("SeriesDescription") or ""),
        kind=kind,
        files=tuple(file for file, _ in members),
        shape=shape,
        readable=not reason,
        reason=reason,
    )


def _claimed_shape(headers: Sequence[Any]) -> tuple[int, ...]:
    size, frames = _size(headers[0])
    return () if size is None else (max(frames, len(headers)), *size)


@dicom_boundary()
def _describe(headers: Sequence[Any], modality: str, name: str) -> tuple[SeriesKind, tuple[int, ...], str]:
    """Return the kind, the shape and, where it is not readable, the reason."""
    first = headers[0]
    size, frames = _size(first)
    reason = _without_picture(first, modality, size, frames)
    if size is None or reason:
        return "object", (), f"{name} {reason}"
    if len(headers) > 1 and any(_size(h)[1] > 1 for h in headers):
        return (
            "images",
            (len(headers), *size),
            f"{name} holds {len(headers)} multi-frame objects: give one file",
        )
    planes = frame_planes(first) if frames > 1 else [single_plane(h) for h in headers]
    placed = [p for p in planes if p is not None]
    if len(placed) == len(planes):
        return "volume", stack_planes(placed, name).grid.shape, ""
    if placed and len(headers) > 1:
        raise GeometryError(
            f"{name} has {len(planes) - len(placed)} of {len(planes)} images without a position: "
            "give the others"
        )
    return _unplaced(size, frames, len(headers), name)


def _without_picture(header: Any, modality: str, size: tuple[int, int] | None, frames: int) -> str:
    if modality in _NOT_IMAGES:
        return f"is {_NOT_IMAGES[modality]}"
    if str(header.get("SOPClassUID") or "") == _PARAMETRIC_MAP:
        return "is a parametric map: read_parametric_map reads it"
    if size is None:
        return "holds no picture: it has no Rows and Columns"
    if size[0] * size[1] * frames > MAX_BYTES:
        return f"claims {size[0]} x {size[1]} x {frames} pixels: more than is read at once"
    return ""


def _unplaced(
    size: tuple[int, int], frames: int, n: int, name: str
) -> tuple[SeriesKind, tuple[int, ...], str]:
    if frames > 1:
        return "clip", (frames, *size), f"{name} is a clip of {frames} frames: open_video reads it"
    if n > 1:
        reason = f"{name} holds {n} separate images without a position: give one file, or use read_images"
        return "images", (n, *size), reason
    return "image", size, ""


def _size(header: Any) -> tuple[tuple[int, int] | None, int]:
    try:
        rows, columns = int(header.get("Rows") or 0), int(header.get("Columns") or 0)
        frames = int(str(header.get("NumberOfFrames") or 1))
    except Exception:  # noqa: BLE001 - pydicom converts on access and raises what the bytes provoke
        raise InputError("the number of rows, columns or frames is not a whole number") from None
    return ((rows, columns) if rows > 0 and columns > 0 else None), max(1, frames)


def single_plane(header: Any) -> Plane | None:
    """Return the plane of a single-frame object, None where it has no place in the patient."""
    if not hasattr(header, "plane"):
        size, _ = _size(header)
        header.plane = None if size is None else plane_of(header, header, header, size)
    plane: Plane | None = header.plane
    return plane


def frame_planes(header: Any) -> list[Plane | None]:
    """Return the plane of every frame of a multi-frame object by its functional groups (PS3.3, C.7.6.16)."""
    size, frames = _size(header)
    shared_items = header.get("SharedFunctionalGroupsSequence") or []
    shared = shared_items[0] if len(shared_items) else None
    each = header.get("PerFrameFunctionalGroupsSequence") or []
    if size is None or len(each) != frames:
        return [None] * frames
    planes = []
    for item in each:
        groups = [
            _group(item, shared, keyword)
            for keyword in ("PlanePositionSequence", "PlaneOrientationSequence", "PixelMeasuresSequence")
        ]
        planes.append(None if None in groups else plane_of(groups[0], groups[1], groups[2], size))
    return planes


def _group(item: Any, shared: Any, keyword: str) -> Any:
    for holder in (item, shared):
        sequence = holder.get(keyword) if holder is not None else None
        if sequence:
            return sequence[0]
    return None


def select_series(entries: Sequence[SeriesEntry], rule: str | None) -> SeriesEntry:
    """Return the one series that ``rule`` picks.

    Args:
        entries: From :func:`index_dicom`.
        rule: A number of the listing, a SeriesInstanceUID, a modality, ``largest``, or words of the
            description. None where there must be only one image series.

    Raises:
        InputError: No series or several fit; the message lists what is there and the way out.
    """
    if rule is None:
        images = [e for e in entries if e.kind != "object"] or list(entries)
        if len(images) > 1:
            raise InputError(f"there are {len(images)} series, choose one with --series: {_listing(images)}")
        return images[0]
    if rule.strip().isdigit():
        found = [e for e in entries if e.number == int(rule)]
    elif rule == "largest":
        found = sorted((e for e in entries if e.kind != "object"), key=lambda e: -_voxels(e))[:1]
    else:
        found = (
            [e for e in entries if e.uid == rule]
            or [e for e in entries if e.modality.lower() == rule.lower()]
            or [e for e in entries if rule.lower() in e.description.lower()]
        )
    if len(found) != 1:
        count = "no series fits" if not found else f"{len(found)} series fit"
        raise InputError(f"{count} the --series that was given: there are {_listing(entries)}")
    return found[0]


def _voxels(entry: SeriesEntry) -> int:
    total = 1
    for n in entry.shape:
        total *= n
    return total if entry.shape else 0


def _listing(entries: Sequence[SeriesEntry]) -> str:
    return " | ".join(str(e) for e in entries)

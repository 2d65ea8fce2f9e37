"""One file de-identified: the header through the profile, the pixels byte by byte as they were."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Literal

from clearmargin import __version__
from clearmargin.deidentification.burned_in import uncleanable, why_pixels_are_suspect
from clearmargin.deidentification.containers import Idle, Span, blank, idle_spans, native_size
from clearmargin.deidentification.dataset import Tally, deidentify_dataset
from clearmargin.deidentification.key import Key
from clearmargin.errors import InputError
from clearmargin.failures import reason_of
from clearmargin.formats.dicom.boundary import dicom_boundary, read_header, read_until_pixels
from clearmargin.formats.dicom.index import looks_like_dicom
from clearmargin.formats.dicom.media import is_zip

__all__ = ["Outcome", "Rules", "Status", "deidentify_file"]

Status = Literal["written", "duplicate", "held back", "refused", "skipped"]

_DEFLATED = "1.2.840.10008.1.2.1.99"
_BY_LAYOUT = {
    (True, True): "1.2.840.10008.1.2",
    (False, True): "1.2.840.10008.1.2.1",
    (False, False): "1.2.840.10008.1.2.2",
}
_DICOMDIR = "1.2.840.10008.1.3.10"
_PIXELS = (0x7FE0_0008, 0x7FE0_0009, 0x7FE0_0010)
_PIXEL_VRS = (b"OB", b"OW", b"OF", b"OD", b"UN")
_UNDEFINED = 0xFFFF_FFFF
_PIECE = 2**20


@dataclass(frozen=True, kw_only=True)
class Rules:
    """What holds a file back.

    Attributes:
        pixels_reviewed: Somebody has looked at the pictures: the rules on burned-in text hold nothing back.
        look_for_text: The pixels of what the other rules let pass are searched for text.
        keep_held_back: Files held back are written, too, de-identified but for what holds them back.
        patients: PatientID of each study in which some files state none.
    """

    pixels_reviewed: bool = False
    look_for_text: bool = False
    keep_held_back: bool = False
    patients: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What came of one file.

    Attributes:
        status: ``written``; ``held back``; ``refused`` as damaged; ``skipped`` as no DICOM image or a DICOMDIR.
        reason: Why it was not simply written; holds nothing of the file's values.
        draft: The finished file under a name for the time being; None if none was made.
        place: Where it belongs below the output folder, made of new names only.
        digest: Digest of its bytes.
        tally: What was done to its elements.
    """

    status: Status
    reason: str = ""
    draft: Path | None = None
    place: str = ""
    digest: bytes = b""
    tally: Tally = field(default_factory=Counter)


def deidentify_file(path: Path, draft: Path, key: Key, rules: Rules) -> Outcome:
    """Write a file's de-identified form to ``draft`` and say where it belongs.

    Raises:
        OSError: ``draft`` cannot be written. What is wrong with ``path`` becomes an outcome.
    """
    try:
        if path.name.upper() == "DICOMDIR":
            return Outcome(status="skipped", reason="a DICOMDIR lists names: make a new one of the results")
        if is_zip(path):
            raise InputError("it is a zip within a folder: give it by itself, or unpack it")
        if not looks_like_dicom(path):
            return Outcome(status="skipped", reason="not DICOM")
        return _deidentify(path, draft, key, rules)
    except InputError as error:
        draft.unlink(missing_ok=True)
        return Outcome(status="refused", reason=str(error))
    except _NotWrittenError:
        draft.unlink(missing_ok=True)
        raise
    except OSError as error:
        draft.unlink(missing_ok=True)
        return Outcome(status="refused", reason=f"it cannot be read ({error.strerror})")
    except Exception as error:  # noqa: BLE001 - whatever one file provokes, the others are done
        draft.unlink(missing_ok=True)
        return Outcome(status="refused", reason=reason_of(error))


@dicom_boundary()
def _deidentify(path: Path, draft: Path, key: Key, rules: Rules) -> Outcome:
    header, pixels_at = read_until_pixels(path)
    syntax = _syntax(header)
    if str(header.get("SOPClassUID") or header.file_meta.get("MediaStorageSOPClassUID")) == _DICOMDIR:
        return Outcome(status="skipped", reason="a DICOMDIR lists names: make a new one of the results")
    _check_identity(header)
    if syntax == _DEFLATED:
        header = read_header(path, pixels=True)
        span = None
    else:
        span = _pixel_span(header, path, pixels_at)
    reason = uncleanable(header)
    if reason is None and not rules.pixels_reviewed:
        reason = why_pixels_are_suspect(header)
        if reason is None and rules.look_for_text and header.get("Rows"):
            from clearmargin.deidentification.text import why_text_is_seen

            reason = why_text_is_seen(path)
    if reason is not None and not rules.keep_held_back:
        return Outcome(status="held back", reason=reason)

    spans = idle_spans(header, path, span)
    if span is None and "PixelData" in header:  # deflated, and so in memory
        needed = native_size(header)
        header.PixelData = blank(header.PixelData, 0, [(needed, len(header.PixelData), 0)])
    patient, tally = deidentify_dataset(header, key, rules.patients)
    if spans:
        tally[0x7FE0_0010, "cleaned beside the picture"] += 1
    _drop_after_pixels(header)
    _replace_meta(header, syntax)
    digest = _write(header, path, span, spans, draft)
    names = [str(header.get(k) or "none") for k in ("StudyInstanceUID", "SeriesInstanceUID")]
    place = "/".join((patient.pseudonym, *names, f"{header.SOPInstanceUID}.dcm"))
    status: Status = "written" if reason is None else "held back"
    return Outcome(status=status, reason=reason or "", draft=draft, place=place, digest=digest, tally=tally)


def _syntax(header: Any) -> str:
    from pydicom.dataset import FileMetaDataset

    if getattr(header, "file_meta", None) is None:
        header.file_meta = FileMetaDataset()
    layout = header.original_encoding
    stated = header.file_meta.get("TransferSyntaxUID")
    if not stated:
        return _BY_LAYOUT[layout]
    if not stated.is_private and (stated.is_implicit_VR, stated.is_little_endian) != layout:
        raise InputError("the file is encoded otherwise than its transfer syntax says")
    return str(stated)


def _check_identity(header: Any) -> None:
    missing = [k for k in ("SOPClassUID", "SOPInstanceUID") if not header.get(k)]
    if missing:
        raise InputError(f"the file has no {' and no '.join(missing)}: it is not a whole DICOM object")


def _pixel_span(header: Any, path: Path, start: int) -> tuple[int, int] | None:
    """Return where the pixel data element begins and ends, None if there is none.

    Raises:
        InputError: The file ends before it should.
    """
    size = path.stat().st_size
    implicit, little = header.original_encoding
    order: Literal["little", "big"] = "little" if little else "big"
    with path.open("rb") as file:
        file.seek(start)
        head = file.read(12)
        tag = int.from_bytes(head[:2], order) << 16 | int.from_bytes(head[2:4], order)
        if tag not in _PIXELS:
            if head:
                raise InputError("the file is cut off, or damaged, within its header")
            _check_last(header, size)
            _check_complete(header)
            return None
        if not implicit and head[4:6] not in _PIXEL_VRS:
            raise InputError("the file's pixels are encoded otherwise than its transfer syntax says")
        long = not implicit
        length = int.from_bytes(head[8:12] if long else head[4:8], order)
        start_of_value = start + (12 if long else 8)
        if length != _UNDEFINED:
            end = start_of_value + length
        else:
            file.seek(start_of_value)
            end = _end_of_fragments(file, order)
    if end > size:
        raise InputError(
            f"the file is cut off: {size - start_of_value} of {length} bytes of pixels are there"
        )
    return start, end


def _end_of_fragments(file: BinaryIO, order: Literal["little", "big"]) -> int:
    """Return where encapsulated pixel data end (PS3.5, A.4)."""
    while True:
        head = file.read(8)
        tag = int.from_bytes(head[:2], order) << 16 | int.from_bytes(head[2:4], order)
        if len(head) < 8 or tag not in (0xFFFE_E000, 0xFFFE_E0DD):
            raise InputError("the file is cut off, or its compressed pixels are not in whole fragments")
        if tag == 0xFFFE_E0DD:
            return file.tell()
        file.seek(int.from_bytes(head[4:8], order), os.SEEK_CUR)


def _check_last(header: Any, size: int) -> None:
    """Refuse a data set without pixels whose last element is shorter than it says."""
    tags = sorted(header.keys())
    if not tags:
        raise InputError("the file holds no elements")
    last = header.get_item(tags[-1])
    length, at = getattr(last, "length", _UNDEFINED), getattr(last, "value_tell", 0)
    if length != _UNDEFINED and at + length > size:
        raise InputError("the file is cut off within its header")


def _check_complete(header: Any) -> None:
    """Refuse an image without pixels that a server does not hold for it either: it was cut off between two elements."""
    kind = str(getattr(header.get("SOPClassUID"), "name", ""))
    if kind.endswith("Image Storage") and "PixelDataProviderURL" not in header:
        raise InputError(
            f"the file is of the kind {kind} and holds no pixels: it is cut off, or only a header"
        )


def _drop_after_pixels(header: Any) -> None:
    """Leave out what may follow the pixels: signatures of what was, and padding."""
    for tag in [t for t in header.keys() if int(t) > 0x7FE0_0010]:  # noqa: SIM118 - keys do not convert values
        del header[tag]


def _replace_meta(header: Any, syntax: str) -> None:
    """Give the file the meta information of a new one: titles of senders and private notes are gone."""
    from pydicom.dataset import FileMetaDataset
    from pydicom.uid import UID

    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = header.SOPClassUID
    meta.MediaStorageSOPInstanceUID = header.SOPInstanceUID
    meta.TransferSyntaxUID = UID(syntax)
    meta.ImplementationVersionName = f"CLEARMARGIN{__version__}"[:16]
    header.file_meta = meta
    header.preamble = bytes(128)


class _NotWrittenError(OSError):
    """A draft cannot be written: what the system says, without a path."""


@contextmanager
def _writing() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise _NotWrittenError(error.errno, error.strerror) from None


def _write(header: Any, path: Path, span: Span | None, spans: Sequence[Idle], draft: Path) -> bytes:
    """Write the data set, then the pixels' bytes as they are but for ``spans``; return a digest of all."""
    from pydicom import dcmwrite

    implicit, little = header.original_encoding
    layout = {"implicit_vr": implicit, "little_endian": little}
    private = header.file_meta.TransferSyntaxUID.is_private
    with _writing(), draft.open("wb") as file:
        dcmwrite(file, header, enforce_file_format=True, **(layout if private else {}))
        for piece in _pieces(path, span) if span is not None else ():
            file.write(blank(piece[1], piece[0], spans))
    with _writing(), draft.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()[:16]


def _pieces(path: Path, span: Span) -> Iterator[tuple[int, bytes]]:
    """Yield the pieces of a span of a file, each with where it begins.

    Raises:
        InputError: The file cannot be read, or ends before the span does.
    """
    try:
        with path.open("rb") as source:
            source.seek(span[0])
            left = span[1] - span[0]
            while left:
                piece = source.read(min(left, _PIECE))
                if not piece:
                    raise InputError("the file became shorter while it was read")
                yield span[1] - left, piece
                left -= len(piece)
    except OSError as error:
        raise InputError(f"it cannot be read ({error.strerror})") from None

"""The few header elements that an index needs, found without parsing the others (PS3.5, 7.1)."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Set
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clearmargin.errors import InputError

if TYPE_CHECKING:
    from pydicom.uid import UID

__all__ = ["QuickHeader", "quick_header"]

_LONG = {b"OB", b"OW", b"OF", b"OD", b"OL", b"OV", b"SQ", b"UC", b"UN", b"UR", b"UT", b"SV", b"UV"}
_UNDEFINED = 0xFFFFFFFF
_PIXELS = 0x7FE0_0008  # the first of the pixel data elements
_ITEM, _ITEM_END, _SEQUENCE_END = 0xFFFE_E000, 0xFFFE_E00D, 0xFFFE_E0DD
_IMPLICIT = "1.2.840.10008.1.2"
_OTHER_LAYOUTS = {"1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.2", "1.2.840.113619.5.2"}
_ELEMENT = struct.Struct("<HH2sHI")  # group, element, VR, and both places where a length may stand
_FIRST_READ, _LARGEST = 2**14, 2**23
_DEEPEST = 64


class _UnusualError(Exception):
    """The file needs the full parser."""


_INTEGERS = {
    "Rows",
    "Columns",
    "SamplesPerPixel",
    "BitsAllocated",
    "BitsStored",
    "HighBit",
    "PixelRepresentation",
}
_SIGNED_BY_PIXELS = {"PixelPaddingValue", "PixelPaddingRangeLimit"}
_DECIMALS = {"RescaleSlope", "RescaleIntercept", "SliceThickness", "SpacingBetweenSlices"}


_MULTIPLE = {"ImageType", "EchoNumbers", "ConvolutionKernel"}
_BINARY = {
    "DiffusionBValue": "d",
    "DiffusionGradientOrientation": "d",
    "NominalPercentageOfCardiacPhase": "f",
}


@dataclass(frozen=True)
class _Raw:
    value: bytes


@dataclass(frozen=True)
class _Meta:
    TransferSyntaxUID: UID


class QuickHeader:
    """A few elements of a file, converted when asked for, with the part of ``pydicom.Dataset``'s face in use."""

    def __init__(self, raw: dict[str, bytes], syntax: str, pixels_at: int) -> None:
        """Hold ``raw`` values by keyword; ``pixels_at`` is where the pixel data element begins."""
        from pydicom.uid import UID

        self._raw, self.pixels_at = raw, pixels_at
        self.file_meta = _Meta(UID(syntax))

    def __contains__(self, keyword: str) -> bool:
        return keyword in self._raw

    def get_item(self, keyword: str) -> _Raw:
        """Return an element as it is stored."""
        return _Raw(self._raw[keyword])

    def get(self, keyword: str, default: Any = None) -> Any:
        """Return an element's value: int, float or text; ``default`` where absent or empty."""
        raw = self._raw.get(keyword)
        if not raw:
            return default
        try:
            return self._converted(keyword, raw)
        except (ValueError, struct.error):
            raise InputError(f"{keyword} is malformed") from None

    def _converted(self, keyword: str, raw: bytes) -> Any:
        if keyword in _INTEGERS or keyword in _SIGNED_BY_PIXELS:
            if len(raw) != 2:
                raise ValueError(keyword)
            signed = keyword in _SIGNED_BY_PIXELS and self.get("PixelRepresentation") == 1
            return int.from_bytes(raw, "little", signed=signed)
        if keyword in _BINARY:
            kind = _BINARY[keyword]
            values = struct.unpack(f"<{len(raw) // struct.calcsize(kind)}{kind}", raw)
            return values[0] if len(values) == 1 else values
        if keyword in _MULTIPLE and b"\\" in raw:
            return raw.decode("ascii").rstrip("\0 ").split("\\")
        if keyword == "SeriesDescription":
            from pydicom.charset import convert_encodings, decode_bytes

            charset = self._raw.get("SpecificCharacterSet", b"").decode("ascii", "replace").strip("\0 ")
            return decode_bytes(raw, convert_encodings(charset.split("\\")), set()).strip("\0 ")
        text = raw.decode("ascii").strip("\0 ")
        return float(text) if keyword in _DECIMALS and text else text


def quick_header(file: Path, keywords: Mapping[int, str], sequences: Set[int]) -> QuickHeader | None:
    """Return only the elements in ``keywords``; None where the full parser is needed.

    It is for ordinary files: with a preamble, little-endian, not deflated, well-formed up to their pixels.

    Args:
        file: The file.
        keywords: Which elements to keep, tag to keyword.
        sequences: Elements whose presence asks for the full parser.
    """
    with file.open("rb") as opened:
        for size in (_FIRST_READ, _LARGEST):
            opened.seek(0)
            content = opened.read(size)
            try:
                return _parse(content, keywords, sequences)
            except _UnusualError:
                return None
            except IndexError:  # the header is longer than what was read
                if len(content) < size:
                    return None
    return None


def _parse(content: bytes, keywords: Mapping[int, str], sequences: Set[int]) -> QuickHeader:
    if content[128:132] != b"DICM":
        raise _UnusualError
    position, syntax = _meta(content)
    if not syntax or syntax in _OTHER_LAYOUTS:
        raise _UnusualError
    implicit = syntax == _IMPLICIT
    elements: dict[str, bytes] = {}
    while True:
        tag, _, length, start = _element(content, position, implicit)
        if tag >= _PIXELS:
            return QuickHeader(elements, syntax, position)
        if tag in sequences or tag < 0x0008_0000:
            raise _UnusualError
        if length == _UNDEFINED:
            position = _after_items(content, start, implicit)
            continue
        keyword = keywords.get(tag)
        if keyword is not None:
            if start + length > len(content):
                raise IndexError
            elements[keyword] = content[start : start + length]
        position = start + length


def _meta(content: bytes) -> tuple[int, str]:
    """Return where group 0002 ends, and the transfer syntax it names."""
    position, syntax = 132, ""
    while content[position : position + 2] == b"\x02\x00":
        tag, _, length, start = _element(content, position, implicit=False)
        if length == _UNDEFINED:
            raise _UnusualError
        if tag == 0x0002_0010:
            syntax = content[start : start + length].decode("ascii", "replace").strip("\0 ")
        position = start + length
    return position, syntax


def _element(content: bytes, position: int, implicit: bool) -> tuple[int, bytes, int, int]:
    """Return tag, VR, length and the place of the value; IndexError where the content ends before."""
    if position + 12 > len(content):
        raise IndexError
    group, element, vr, short, long = _ELEMENT.unpack_from(content, position)
    tag = group << 16 | element
    if implicit or group == 0xFFFE:
        return tag, b"", int.from_bytes(content[position + 4 : position + 8], "little"), position + 8
    if vr in _LONG:
        return tag, vr, long, position + 12
    if not vr.isalpha():
        raise _UnusualError
    return tag, vr, short, position + 8


def _after_items(content: bytes, position: int, implicit: bool) -> int:
    """Return the place after a sequence of undefined length."""
    inside = [_SEQUENCE_END]  # what ends each sequence and item that is open, the innermost last
    while inside:
        tag, _, length, start = _element(content, position, implicit)
        position = start
        if tag == inside[-1]:
            inside.pop()
        elif inside[-1] == _SEQUENCE_END and tag != _ITEM:
            raise _UnusualError
        elif length != _UNDEFINED:
            position = start + length
        else:
            inside.append(_ITEM_END if inside[-1] == _SEQUENCE_END else _SEQUENCE_END)
        if len(inside) > _DEEPEST:
            raise _UnusualError
    return position

"""The few header elements that an index needs, found without parsing the others (PS3.5, 7.1)."""

from __future__ import annotations

from collections.abc import Set
from functools import cache
from pathlib import Path
from typing import Any

__all__ = ["quick_header"]

_LONG = {b"OB", b"OW", b"OF", b"OD", b"OL", b"OV", b"SQ", b"UC", b"UN", b"UR", b"UT", b"SV", b"UV"}
_UNDEFINED = 0xFFFFFFFF
_PIXELS = 0x7FE0_0008  # the first of the pixel data elements
_ITEM, _ITEM_END, _SEQUENCE_END = 0xFFFE_E000, 0xFFFE_E00D, 0xFFFE_E0DD
_IMPLICIT = "1.2.840.10008.1.2"
_OTHER_LAYOUTS = {"1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.2", "1.2.840.113619.5.2"}
_FIRST_READ, _LARGEST = 2**14, 2**23


class _UnusualError(Exception):
    """The file needs the full parser."""


def quick_header(file: Path, tags: Set[int], sequences: Set[int]) -> Any:
    """Return a ``pydicom.Dataset`` with only the elements in ``tags``; None where the full parser is needed.

    It is for ordinary files: with a preamble, little-endian, not deflated, well-formed up to their pixels.

    Args:
        file: The file.
        tags: Which elements to keep.
        sequences: Elements whose presence asks for the full parser.
    """
    with file.open("rb") as opened:
        for size in (_FIRST_READ, _LARGEST):
            opened.seek(0)
            content = opened.read(size)
            try:
                return _parse(content, tags, sequences)
            except _UnusualError:
                return None
            except IndexError:  # the header is longer than what was read
                if len(content) < size:
                    return None
    return None


def _parse(content: bytes, tags: Set[int], sequences: Set[int]) -> Any:
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.tag import BaseTag
    from pydicom.uid import UID

    if content[128:132] != b"DICM":
        raise _UnusualError
    position, syntax = _meta(content)
    if not syntax or syntax in _OTHER_LAYOUTS:
        raise _UnusualError
    implicit = syntax == _IMPLICIT
    found: dict[Any, Any] = {}
    while True:
        tag, vr, length, start = _element(content, position, implicit)
        if tag >= _PIXELS:
            break
        if tag in sequences or tag < 0x0008_0000:
            raise _UnusualError
        if length == _UNDEFINED:
            position = _after_items(content, start, implicit)
            continue
        if tag in tags:
            if start + length > len(content):
                raise IndexError
            key = BaseTag(tag)
            value = content[start : start + length] or None
            kind = None if implicit else vr.decode()
            found[key] = _raw_element()(key, kind, length, value, start, implicit, True)
        position = start + length
    dataset = Dataset(found)
    dataset.set_original_encoding(implicit, True, None)
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = UID(syntax)
    dataset.pixels_at = position
    return dataset


@cache
def _raw_element() -> Any:
    from pydicom.dataelem import RawDataElement

    return RawDataElement


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
    tag = int.from_bytes(content[position : position + 2], "little") << 16
    tag |= int.from_bytes(content[position + 2 : position + 4], "little")
    if implicit or tag >> 16 == 0xFFFE:
        return tag, b"", int.from_bytes(content[position + 4 : position + 8], "little"), position + 8
    vr = content[position + 4 : position + 6]
    if vr in _LONG:
        return tag, vr, int.from_bytes(content[position + 8 : position + 12], "little"), position + 12
    if not vr.isalpha():
        raise _UnusualError
    return tag, vr, int.from_bytes(content[position + 6 : position + 8], "little"), position + 8


def _after_items(content: bytes, position: int, implicit: bool) -> int:
    """Return the place after a sequence of undefined length."""
    while True:
        tag, _, length, start = _element(content, position, implicit)
        if tag == _SEQUENCE_END:
            return start
        if tag != _ITEM:
            raise _UnusualError
        position = start + length if length != _UNDEFINED else _after_item(content, start, implicit)


def _after_item(content: bytes, position: int, implicit: bool) -> int:
    while True:
        tag, _, length, start = _element(content, position, implicit)
        if tag == _ITEM_END:
            return start
        position = start + length if length != _UNDEFINED else _after_items(content, start, implicit)

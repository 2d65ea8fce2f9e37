"""What pixels are packed in: bytes of it that are not part of the picture, such as comments, and what lies behind.

They are blanked where they stand, so that no length and no offset changes, and no pixel is decoded.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

from clearmargin.errors import InputError

__all__ = ["Idle", "Span", "blank", "idle_spans", "native_size"]

Span = tuple[int, int]
"""Offsets in a file: the first byte, and the one behind the last."""

Idle = tuple[int, int, int]
"""A span, and the byte that says nothing there."""

_UNDEFINED = 0xFFFF_FFFF
_FLOATS = {0x7FE0_0008: 4, 0x7FE0_0009: 8}
_RLE = "1.2.840.10008.1.2.5"
_RLE_NOTHING = 0x80  # a run that writes nothing: zeros would be values
_JPEG = re.compile(r"1\.2\.840\.10008\.1\.2\.4\.(5[0-9]|6[0-6]|70|80|81)$")
_JPEG_2000 = re.compile(r"1\.2\.840\.10008\.1\.2\.4\.(90|91|92|93|201|202|203)$")
_VIDEO = re.compile(r"1\.2\.840\.10008\.1\.2\.4\.10\d(\.1)?$")
_MARKER = re.compile(rb"\xff+([\x80-\xcf\xd8-\xfe])")  # what ends coded data, of JPEG and of JPEG-LS
_SOI, _EOI, _SOS, _COMMENT = 0xD8, 0xD9, 0xDA, 0xFE
# What decoders need of an application's segment: its beginning, and how many bytes stay.
_KEPT = {0xE0: (b"JFIF\0", 14), 0xE8: (b"mrfx", 5), 0xEE: (b"Adobe", 12)}


def idle_spans(header: Any, path: Path, span: Span | None) -> list[Idle]:
    """Return the bytes of a file's pixel data element that are not part of a picture.

    Args:
        header: The data set, without its pixels.
        path: Its file.
        span: Where the element lies in it, its head included; None without one.

    Raises:
        InputError: Its frames are damaged, or packed in a way that is not searched here.
    """
    if span is None:
        return []
    implicit, little = header.original_encoding
    order: Literal["little", "big"] = "little" if little else "big"
    with path.open("rb") as file:
        file.seek(span[0])
        head = file.read(12)
        start = span[0] + (8 if implicit else 12)
        length = int.from_bytes(head[4:8] if implicit else head[8:12], order)
        if length != _UNDEFINED:
            tag = int.from_bytes(head[:2], order) << 16 | int.from_bytes(head[2:4], order)
            needed = native_size(header, tag)
            return [(start + needed, span[1], 0)] if start + needed < span[1] else []
        fragments = _fragments(file, start, order)

        def read(fragment: Span) -> bytes:
            file.seek(fragment[0])
            return file.read(fragment[1] - fragment[0])

        return _idle_in_fragments(header, fragments, read)


def native_size(header: Any, tag: int = 0x7FE0_0010) -> int:
    """Return how many bytes the pixels of an object take that is not compressed.

    Raises:
        InputError: The header does not describe them.
    """
    try:
        rows, columns = int(header.Rows), int(header.Columns)
        frames, samples = int(header.get("NumberOfFrames") or 1), int(header.get("SamplesPerPixel") or 1)
        bits = 8 * _FLOATS[tag] if tag in _FLOATS else int(header.BitsAllocated)
    except (AttributeError, TypeError, ValueError):
        raise InputError("the object holds pixels that its header does not describe") from None
    values = rows * columns * frames * samples
    if str(header.get("PhotometricInterpretation") or "").strip() in ("YBR_FULL_422", "YBR_PARTIAL_422"):
        values = values * 2 // 3
    return -(-values * bits // 8)


def blank(piece: bytes, at: int, spans: Sequence[Idle]) -> bytes:
    """Return a piece of a file that lies at ``at`` with the spans in it blanked."""
    changed = None
    for start, stop, fill in spans:
        first, last = max(0, start - at), min(len(piece), stop - at)
        if first < last:
            changed = bytearray(piece) if changed is None else changed
            changed[first:last] = bytes([fill]) * (last - first)
    return piece if changed is None else bytes(changed)


def _fragments(file: Any, start: int, order: Literal["little", "big"]) -> list[Span]:
    """Return where the values of the items lie, the offset table first."""
    file.seek(start)
    spans: list[Span] = []
    while True:
        head = file.read(8)
        if head[:4] != b"\xfe\xff\x00\xe0":
            return spans
        length = int.from_bytes(head[4:8], order)
        spans.append((file.tell(), file.tell() + length))
        file.seek(length, 1)


def _idle_in_fragments(header: Any, fragments: Sequence[Span], read: Callable[[Span], bytes]) -> list[Idle]:
    syntax = str(header.file_meta.get("TransferSyntaxUID") or "")
    if _VIDEO.match(syntax):
        return []
    search = _searcher(header, syntax)
    spans: list[Idle] = []
    frames = int(header.get("NumberOfFrames") or 1)
    for table in fragments[:1]:
        spans += [(table[0] + 4 * frames, table[1], 0)] if table[1] - table[0] > 4 * frames else []
    k = 1
    while k < len(fragments):
        parts = [fragments[k]]
        data = read(fragments[k])
        idle = search(data)
        while idle is None and k + 1 < len(fragments):  # a frame in several fragments
            k += 1
            parts.append(fragments[k])
            data += read(fragments[k])
            idle = search(data)
        if idle is None:
            raise InputError("a compressed frame is cut off: what lies in it beside the picture is not known")
        for start, stop, fill in idle:
            spans += [(*one, fill) for one in _in_file(start, stop, parts)]
        k += 1
    return sorted(spans)


def _in_file(start: int, stop: int, parts: Sequence[Span]) -> list[Span]:
    """Return a span of joined parts as spans of the file."""
    spans, before = [], 0
    for first, last in parts:
        low, high = max(start, before), min(stop, before + last - first)
        if low < high:
            spans.append((first + low - before, first + high - before))
        before += last - first
    return spans


def _searcher(header: Any, syntax: str) -> Callable[[bytes], list[Idle] | None]:
    if _JPEG.match(syntax):
        return _idle_in_jpeg
    if _JPEG_2000.match(syntax):
        return _idle_in_jpeg_2000
    if syntax == _RLE:
        size = int(header.Rows) * int(header.Columns)
        return lambda data: _idle_in_rle(data, size)
    raise InputError("the pixels are packed in a way in which comments are not found here")


def _idle_in_jpeg(data: bytes) -> list[Idle] | None:
    """Return comments, notes and what follows the end of a JPEG or JPEG-LS frame; None if it is not whole.

    Source: ISO/IEC 10918-1, B.1.
    """
    if data[:2] != b"\xff\xd8":
        raise InputError("a compressed frame does not begin as a JPEG does")
    spans: list[Idle] = []
    at = 2
    while at + 2 <= len(data):
        if data[at] != 0xFF:
            raise InputError("a compressed frame is damaged: its markers do not follow each other")
        marker = data[at + 1]
        if marker == 0xFF:  # filling
            at += 1
            continue
        at += 2
        if marker == _EOI:
            return [*spans, (at, len(data), 0)]
        if marker == 1 or 0xD0 <= marker <= _SOI:
            continue
        length = int.from_bytes(data[at : at + 2], "big")
        if length < 2 or at + length > len(data):
            return None
        if marker == _COMMENT or 0xE0 <= marker <= 0xEF:
            begins, kept = _KEPT.get(marker, (b"", 0))
            kept = kept if kept and data.startswith(begins, at + 2) else 0
            spans.append((at + 2 + kept, at + length, 0))
        at += length
        if marker == _SOS:
            end = _MARKER.search(data, at)
            if end is None:
                return None
            at = end.end() - 2
    return None


def _idle_in_jpeg_2000(data: bytes) -> list[Idle] | None:
    """Return comments and what follows the end of a codestream; None if it is not whole (ISO/IEC 15444-1, A)."""
    if data[:4] != b"\xff\x4f\xff\x51":
        raise InputError("a compressed frame does not begin as a JPEG 2000 codestream does")
    spans: list[Idle] = []
    at, tile_end = 2, 0
    while at + 2 <= len(data):
        marker = int.from_bytes(data[at : at + 2], "big")
        if marker == 0xFFD9:
            return [*spans, (at + 2, len(data), 0)]
        if marker == 0xFF93:  # a tile's data
            if tile_end <= at:
                tile_end = data.rfind(b"\xff\xd9")
            at = tile_end
            if at < 0 or at > len(data):
                return None
            continue
        length = int.from_bytes(data[at + 2 : at + 4], "big")
        if data[at] != 0xFF or length < 2:
            raise InputError("a compressed frame is damaged: its markers do not follow each other")
        if at + 2 + length > len(data):
            return None
        if marker == 0xFF64:
            spans.append((at + 6, at + 2 + length, 0))
        elif marker == 0xFF90:
            stated = int.from_bytes(data[at + 6 : at + 10], "big")
            tile_end = at + stated if stated else 0
        at += 2 + length
    return None


def _idle_in_rle(data: bytes, size: int) -> list[Idle] | None:
    """Return what lies behind the segments of an RLE frame, each of ``size`` bytes unpacked (PS3.5, G)."""
    count = int.from_bytes(data[:4], "little")
    if len(data) < 64 or not 1 <= count <= 15:
        raise InputError("a compressed frame is damaged: its segments are not counted")
    starts = [int.from_bytes(data[4 + 4 * k : 8 + 4 * k], "little") for k in range(count)]
    spans = [(4 + 4 * count, 64, 0)]
    for start, stop in zip(starts, [*starts[1:], len(data)], strict=True):
        at, unpacked = start, 0
        while unpacked < size and at < stop:
            code = data[at]
            if code < 128:
                at, unpacked = at + code + 2, unpacked + code + 1
            elif code > 128:
                at, unpacked = at + 2, unpacked + 257 - code
            else:
                at += 1
        if unpacked < size or at > stop:
            return None
        spans.append((at, stop, _RLE_NOTHING))
    return spans

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
_BITS = (1, 8, 16, 32, 64)
_FLOATS = {0x7FE0_0008: 4, 0x7FE0_0009: 8}
_RLE = "1.2.840.10008.1.2.5"
_RLE_NOTHING = 0x80  # a run that writes nothing: zeros would be values
_JPEG = re.compile(r"1\.2\.840\.10008\.1\.2\.4\.(5[0-9]|6[0-6]|70|80|81)$")
_JPEG_2000 = re.compile(r"1\.2\.840\.10008\.1\.2\.4\.(90|91|92|93|201|202|203)$")
_VIDEO = re.compile(r"1\.2\.840\.10008\.1\.2\.4\.10\d(\.1)?$")
_MARKER = re.compile(rb"\xff+([\x80-\xcf\xd8-\xfe])")  # what ends coded data, of JPEG and of JPEG-LS
_SOI, _EOI, _SOS, _COMMENT = 0xD8, 0xD9, 0xDA, 0xFE
_DQT, _DHT, _DAC = 0xDB, 0xC4, 0xCC
_PLAIN = (0xDC, 0xDD, 0xDE, 0xDF, 0xF8)  # lines, restarts, hierarchies, parameters of JPEG-LS
# Segments that a decoder needs: frames (0xF7 is that of JPEG-LS), tables, scans.
_NEEDED = frozenset({*range(0xC0, 0xD0), *_PLAIN, 0xF7, _SOS, _DQT} - {0xC8})
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
            if needed > length:
                raise InputError(
                    f"the header describes {needed} bytes of pixels, and the file holds {length}"
                )
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
        frames, samples = _frames(header), int(header.get("SamplesPerPixel") or 1)
        bits = 8 * _FLOATS[tag] if tag in _FLOATS else int(header.BitsAllocated)
    except (AttributeError, TypeError, ValueError):
        raise InputError("the object holds pixels that its header does not describe") from None
    if min(rows, columns, samples) < 1 or samples > 4 or bits not in _BITS:
        raise InputError(
            f"the header describes {rows} x {columns} pixels of {samples} sample(s) of {bits} bits: no picture has that"
        )
    values = rows * columns * frames * samples
    if str(header.get("PhotometricInterpretation") or "").strip() in ("YBR_FULL_422", "YBR_PARTIAL_422"):
        values = values * 2 // 3
    return -(-values * bits // 8)


def _frames(header: Any) -> int:
    frames = int(header.get("NumberOfFrames") or 1)
    if frames < 1:
        raise InputError(f"the header describes {frames} frames")
    return frames


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
    frames = _frames(header)
    if _VIDEO.match(syntax):  # one stream: its table is empty, or says 0
        return [(*table, 0) for table in fragments[:1] if table[0] < table[1]]
    search = _searcher(header, syntax)
    spans: list[Idle] = []
    for table in fragments[:1]:
        spans += [(table[0] + 4 * frames, table[1], 0)] if table[1] - table[0] > 4 * frames else []
    starts: list[int] = []  # of each frame's first item, from that of the first frame on
    sizes: list[int] = []
    k = 1
    while k < len(fragments):
        starts.append(fragments[k][0] - fragments[1][0])
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
        sizes.append(sum(last - first for first, last in parts))
        k += 1
    tables = {"BasicOffsetTable": (read(fragments[0])[: 4 * frames] if fragments else b"", 4, starts)}
    tables["ExtendedOffsetTable"] = (header.get("ExtendedOffsetTable") or b"", 8, starts)
    tables["ExtendedOffsetTableLengths"] = (header.get("ExtendedOffsetTableLengths") or b"", 8, sizes)
    for name, (stated, width, values) in tables.items():
        if stated and stated != b"".join(n.to_bytes(width, "little") for n in values[: len(stated) // width]):
            raise InputError(f"{name} does not say where its frames lie: what else it says is not known")
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
    """Return comments, notes, segments and tables that no decoder needs, and what follows the end of a JPEG or JPEG-LS
    frame; None if it is not whole.

    Source: ISO/IEC 10918-1, B.1 and B.2.
    """
    if data[:2] != b"\xff\xd8":
        raise InputError("a compressed frame does not begin as a JPEG does")
    spans: list[Idle] = []
    tables = _Tables()
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
            return [*spans, *tables.unused(), (at, len(data), 0)]
        if marker == 1 or 0xD0 <= marker <= _SOI:
            continue
        length = int.from_bytes(data[at : at + 2], "big")
        if length < 2 or at + length > len(data):
            return None
        if marker == _COMMENT or 0xE0 <= marker <= 0xEF:
            begins, kept = _KEPT.get(marker, (b"", 0))
            kept = kept if kept and data.startswith(begins, at + 2) else 0
            spans.append((at + 2 + kept, at + length, 0))
        elif marker not in _NEEDED:
            spans.append((at + 2, at + length, 0))
        else:
            tables.take(marker, data, at + 2, at + length)
        at += length
        if marker == _SOS:
            end = _MARKER.search(data, at)
            if end is None:
                return None
            at = end.end() - 2
    return None


class _Tables:
    """The tables of a JPEG frame: one that no scan uses, or that another replaces before a scan does, says nothing."""

    def __init__(self) -> None:
        self._waiting: dict[tuple[str, int], Idle] = {}
        self._idle: list[Idle] = []
        self._quantised: dict[int, int] = {}  # table by component

    def take(self, marker: int, data: bytes, at: int, end: int) -> None:
        """Look at a segment's content, from ``at`` up to ``end``."""
        if marker == _DQT:
            self._define(data, at, end, "quantisation")
        elif marker == _DHT:
            self._define(data, at, end, "huffman")
        elif marker == _SOS:
            scan = [(data[k], data[k + 1]) for k in range(at + 1, min(end - 3, at + 1 + 2 * data[at]), 2)]
            for component, selectors in scan:
                used = self._quantised.get(component)
                names = [("quantisation", used)] if used is not None else []
                names += [("huffman", selectors >> 4), ("huffman", 16 + (selectors & 15))]
                for name in names:
                    self._waiting.pop(name, None)
        elif marker not in (_DAC, *_PLAIN) and end - at >= 6:  # the beginning of a frame
            self._quantised = {data[k]: data[k + 2] for k in range(at + 6, end - 2, 3)}

    def _define(self, data: bytes, at: int, end: int, kind: str) -> None:
        while at < end:
            number = data[at] & 15 if kind == "quantisation" else data[at] & 31
            if kind == "quantisation":
                size, head = 128 if data[at] >> 4 else 64, 1
            else:  # lengths of codes, then their values
                size, head = sum(data[at + 1 : at + 17]), 17
            replaced = self._waiting.pop((kind, number), None)
            if replaced is not None:
                self._idle.append(replaced)
            self._waiting[kind, number] = (at + head, min(at + head + size, end), 1)
            at += head + size

    def unused(self) -> list[Idle]:
        """Return what no scan used."""
        return [*self._idle, *self._waiting.values()]


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

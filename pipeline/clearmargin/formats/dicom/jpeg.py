"""JPEG frames of DICOM objects: checked by their markers, and 12-bit ones decoded (ISO/IEC 10918-1, B and F)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clearmargin.errors import InputError

__all__ = [
    "check_jpeg_lossless",
    "check_jpeg_ls",
    "check_jpeg_ls_ends",
    "claims_more",
    "decode_jpeg_12",
]

_SOF1, _SOF3, _SOF55 = 0xC1, 0xC3, 0xF7  # extended sequential, lossless, JPEG-LS
_DHT, _SOI, _EOI, _SOS, _DQT, _DRI, _LSE = 0xC4, 0xD8, 0xD9, 0xDA, 0xDB, 0xDD, 0xF8
_HEADERS = 2**18  # bytes before a frame header: colour profiles and photographs' notes
# A JPEG's frame header (all but the markers of tables and arithmetic coding), or the start of JPEG 2000.
_SIZE = re.compile(
    rb"\xff[\xc0-\xc3\xc5-\xc7\xc9-\xcb\xcd-\xcf]\x00.[\x08-\x10].{4}|\A\xff\x4f\xff\x51", re.DOTALL
)
_COMMENTS = {*range(0xE0, 0xF0), 0xFE}
_MARKER = re.compile(rb"\xff+([^\x00\xff\xd0-\xd7])")  # ends coded data; 0xFF00 and restarts lie within them
_LS_MARKER = re.compile(rb"\xff+([\x80-\xfe])")
_RESTART = re.compile(rb"\xff([\xd0-\xd7])")


@dataclass(frozen=True, kw_only=True)
class _Segment:
    """A marker and what stands in its segment; for a scan, the coded data that follow as well."""

    marker: int
    content: bytes
    coded: bytes = b""


def check_jpeg_ls(frame: bytes, *, rows: int, columns: int, samples: int, allocated: int) -> None:
    """Refuse a frame that is not, by its markers, one whole JPEG-LS picture with standard parameters.

    GDCM ends the process on about one in thirty damaged headers instead of raising.

    Raises:
        InputError: It is cut off, damaged, of another size or depth.
    """
    segments = list(_segments(frame, _LS_MARKER))
    header = _frame_header(segments, _SOF55, _LSE)
    if not _fits_pixels(header, rows, columns, samples, allocated):
        raise InputError(
            "a compressed frame is damaged, or no JPEG-LS picture of the header's size and depth"
        )
    scanned: list[int] = []
    fits = header[7::3] == b"\x11" * samples
    for segment in segments:
        content = segment.content
        if segment.marker == _LSE:  # parameters only; mapping tables are not for DICOM
            high = int.from_bytes(content[1:3], "big")
            fits = fits and len(content) == 11 and content[0] == 1 and high in (0, 2 ** header[0] - 1)
        elif segment.marker == _SOS:
            fits = fits and content != b"" and len(content) == 4 + 2 * content[0]
            fits = fits and not any(content[2:-3:2]) and content[-2] <= 2 and content[-1] == 0
            fits = fits and (content[-2] == 0) == (content[0] == 1)  # interleaved or not
            scanned += content[1:-3:2]
    if not fits or sorted(scanned) != sorted(set(header[6::3])):
        raise InputError("a compressed frame is damaged: its parameters do not fit its scans")


def check_jpeg_ls_ends(frame: bytes) -> None:
    """Refuse a frame without an end: CharLS works for ten seconds on 64 x 64 pixels that are cut off.

    Raises:
        InputError: It is cut off, or no JPEG.
    """
    for _ in _segments(frame, _LS_MARKER):
        pass


def claims_more(frame: bytes, rows: int, columns: int) -> bool:
    """Return whether a JPEG or JPEG 2000 frame claims a larger picture than that: decoders make room for it first."""
    match = _SIZE.search(frame[:_HEADERS])
    if match is None:
        return False
    if frame[:2] == b"\xff\x4f":
        right, bottom, left, top = (int.from_bytes(frame[k : k + 4], "big") for k in range(8, 24, 4))
        height, width = bottom - top, right - left
    else:
        height, width = (int.from_bytes(match[0][k : k + 2], "big") for k in (5, 7))
    return height > rows or width > columns


def check_jpeg_lossless(frame: bytes, *, rows: int, columns: int, samples: int, allocated: int) -> None:
    """Refuse a frame that is not, by its markers and tables, one whole lossless picture (annex H).

    GDCM ends the process on about one in thirty damaged headers instead of raising.

    Raises:
        InputError: It is cut off, damaged, of another size, depth or process.
    """
    segments = list(_segments(frame))
    header = _frame_header(segments, _SOF3, _DHT, _DQT, _DRI)
    if not _fits_pixels(header, rows, columns, samples, allocated):
        raise InputError(
            "a compressed frame is damaged, or no lossless picture of the header's size and depth"
        )
    tables = _huffman_tables(segments)
    scanned: list[int] = []
    fits = len(set(header[7::3])) == 1 and _is_sampling(header[7])
    for scan in (segment.content for segment in segments if segment.marker == _SOS):
        fits = fits and scan != b"" and len(scan) == 4 + 2 * scan[0] and 1 <= scan[-3] <= 7
        fits = fits and scan[-2] == 0 and scan[-1] < header[0]  # the point transform keeps a bit
        fits = fits and {table >> 4 for table in scan[2:-3:2]} <= tables
        scanned += scan[1:-3:2]
    coded = sum(len(segment.coded) for segment in segments)
    restarts = any(_RESTART.search(segment.coded) for segment in segments)
    announced = any(segment.marker == _DRI for segment in segments)
    # A sample has a code of a bit or more.
    if (
        not fits
        or sorted(scanned) != sorted(set(header[6::3]))
        or (restarts and not announced)
        or 8 * coded < rows * columns
    ):
        raise InputError("a compressed frame is damaged: its tables and its coded data do not fit")


def decode_jpeg_12(frame: bytes, rows: int, columns: int) -> NDArray[np.uint16]:
    """Return the pixels of a grey 12-bit frame of the extended sequential process, ``(Y, X)``, 0 to 4095.

    GDCM decodes with the Independent JPEG Group's code; pydicom's plugin for it stops at 8 bits. It only sees
    frames that are whole by their markers and tables. JPEG has no checksum: bits changed within the coded data
    may pass for other pixels.

    Raises:
        InputError: It is cut off, damaged, of another size, in colour or of another process.
    """
    import gdcm

    _check_12_bits(list(_segments(frame)), rows, columns)
    fragment = gdcm.Fragment()
    fragment.SetByteStringValue(frame)
    fragments = gdcm.SequenceOfFragments.New()
    fragments.AddFragment(fragment)
    element = gdcm.DataElement(gdcm.Tag(0x7FE0, 0x0010))
    element.SetValue(fragments.__ref__())
    grey = gdcm.PhotometricInterpretation(gdcm.PhotometricInterpretation.MONOCHROME2)
    image = gdcm.Image()
    image.SetNumberOfDimensions(2)
    image.SetDimensions((columns, rows, 1))
    image.SetDataElement(element)
    image.SetPhotometricInterpretation(grey)
    image.SetTransferSyntax(gdcm.TransferSyntax(gdcm.TransferSyntax.JPEGExtendedProcess2_4))
    image.SetPixelFormat(gdcm.PixelFormat(1, 12, 12, 11, 0))
    decoded: Any = image.GetBuffer()  # bytes in a str; None where the decoder gave up
    pixels = b"" if decoded is None else decoded.encode("utf-8", "surrogateescape")
    if len(pixels) != 2 * rows * columns:
        raise InputError("a compressed frame is damaged: its decoder gave it up")
    return np.frombuffer(pixels, "<u2").astype(np.uint16).reshape(rows, columns)


def _segments(frame: bytes, marks: re.Pattern[bytes] = _MARKER) -> Iterator[_Segment]:
    """Yield the segments between SOI and EOI (B.1.1).

    Raises:
        InputError: The frame is cut off, or bytes stand where a marker must.
    """
    if frame[:2] != bytes([0xFF, _SOI]):
        raise InputError("a compressed frame is not a JPEG: it is damaged")
    position = 2
    while marker := marks.match(frame, position):
        number, start = marker[1][0], marker.end()
        if number == _EOI and len(frame) - start <= 2:  # a byte or two of padding
            return
        end = start + int.from_bytes(frame[start : start + 2], "big")
        content = frame[start + 2 : end]
        if end < start + 2 or end > len(frame):
            break
        following = marks.search(frame, end) if number == _SOS else None
        position = following.start() if following else end
        yield _Segment(marker=number, content=content, coded=frame[end:position])
    raise InputError("a compressed frame is damaged or cut off")


def _frame_header(segments: list[_Segment], process: int, *tables: int) -> bytes:
    """Return the only frame header's content; empty if it is not the process's, or other markers stand there."""
    markers = [segment.marker for segment in segments]
    known = _COMMENTS.union((process, _SOS), tables).issuperset(markers)
    if not known or markers.count(process) != 1 or markers[-1] != _SOS:
        return b""
    return segments[markers.index(process)].content


def _check_12_bits(segments: list[_Segment], rows: int, columns: int) -> None:
    """Refuse all but one grey 12-bit picture of that size in one scan, with the tables that it needs."""
    header = _frame_header(segments, _SOF1, _DHT, _DQT, _DRI)
    scans = [segment.content for segment in segments if segment.marker == _SOS]
    stated = header[:1] == b"\x0c" and _stated_size(header) == (rows, columns, 1)
    if not stated or len(header) != 9 or len(scans) != 1:
        raise InputError("a compressed frame is damaged, or no grey 12-bit picture of the header's size")
    identifier, sampling, quantizer = header[6:]
    (scan,) = scans
    fits = (
        len(scan) == 6
        and scan[:2] == bytes([1, identifier])
        and scan[3] == scan[5] == 0
        and {scan[2] >> 4, 16 + (scan[2] & 15)} <= _huffman_tables(segments)
        and quantizer in _quantization_tables(segments)
        and _is_sampling(sampling)
    )
    blocks = -(-rows // 8) * -(-columns // 8)
    intervals = [int.from_bytes(segment.content[:2], "big") for segment in segments if segment.marker == _DRI]
    interval = intervals[-1] if intervals else 0
    restarts = [number[0] & 7 for number in _RESTART.findall(segments[-1].coded)]
    announced = [k % 8 for k in range(-(-blocks // interval) - 1)] if interval else []
    # A block has two codes of a bit or more.
    if not fits or restarts != announced or 4 * len(segments[-1].coded) < blocks:
        raise InputError("a compressed frame is damaged: its tables and its coded data do not fit")


def _fits_pixels(header: bytes, rows: int, columns: int, samples: int, allocated: int) -> bool:
    """Return whether a frame header states that size, and a precision that fills the allocated bytes."""
    return (
        len(header) == 6 + 3 * samples
        and _stated_size(header) == (rows, columns, samples)
        and 2 <= header[0] <= allocated
        and (header[0] > 8) == (allocated > 8)
    )


def _stated_size(header: bytes) -> tuple[int, int, int]:
    """Return rows, columns and components of a frame header."""
    return (
        int.from_bytes(header[1:3], "big"),
        int.from_bytes(header[3:5], "big"),
        int.from_bytes(header[5:6], "big"),
    )


def _is_sampling(factors: int) -> bool:
    return 1 <= factors >> 4 <= 4 and 1 <= factors & 15 <= 4


def _huffman_tables(segments: list[_Segment]) -> set[int]:
    """Return class and number of each Huffman table, as its first byte has them; empty if one is damaged (B.2.4.2)."""
    tables: set[int] = set()
    for segment in segments:
        rest = segment.content if segment.marker == _DHT else b""
        while rest:
            counts = rest[1:17]
            used = sum(count << 16 - length for length, count in enumerate(counts, 1))
            if len(counts) < 16 or len(rest) < 17 + sum(counts) or used > 2**16:
                return set()
            tables.add(rest[0])
            rest = rest[17 + sum(counts) :]
    return tables


def _quantization_tables(segments: list[_Segment]) -> set[int]:
    """Return the number of each quantization table; empty if one is damaged (B.2.4.1)."""
    tables: set[int] = set()
    for segment in segments:
        rest = segment.content if segment.marker == _DQT else b""
        while rest:
            size = 1 + 64 * (1 + (rest[0] >> 4))
            if rest[0] >> 4 > 1 or len(rest) < size:
                return set()
            tables.add(rest[0] & 15)
            rest = rest[size:]
    return tables

"""Where pydicom is called: silent about values, typed in its errors, and no byte read twice."""

from __future__ import annotations

import contextlib
import io
import math
import os
import re
import warnings
import zlib
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from clearmargin.errors import ClearMarginError, InputError
from clearmargin.formats.dicom.headers import Elements, Header
from clearmargin.formats.dicom.scan import quick_header
from clearmargin.formats.limits import MOST_DEFLATED, max_bytes, raise_it
from clearmargin.formats.quiet import hushed

if TYPE_CHECKING:
    from pydicom.dataset import Dataset
    from pydicom.uid import UID

__all__ = [
    "check_frames",
    "check_syntax",
    "converting",
    "dicom_boundary",
    "items_of",
    "modality_of",
    "parsed_header",
    "quiet_pydicom",
    "read_header",
    "read_until_pixels",
    "study_of",
]

_DEFLATED = "1.2.840.10008.1.2.1.99"
_META = 2**14  # bytes; group 0002 has some hundreds
_PIECE = 2**20
_BEGINNING = 2**24  # bytes of an unpacked object, in which its pixels are described
_BESIDE_PIXELS = 2**28  # bytes of an unpacked object that may be no pixels
_BITS_ALLOCATED = 0x0028_0100
_quiet: ContextVar[bool] = ContextVar("quiet", default=False)
_LOUD = (
    "pydicom",
    "pydicom.pixels.utils",
    "pydicom.pixels.decoders.base",
    "highdicom.base",
    "highdicom.image",
)


@contextlib.contextmanager
def quiet_pydicom() -> Iterator[None]:
    """Silence pydicom's and highdicom's remarks on odd values: they quote values that may name a patient."""
    if _quiet.get():
        yield
        return
    token = _quiet.set(True)
    try:
        with hushed(*_LOUD), warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"(pydicom|highdicom)(\.|$)")
            yield
    finally:
        _quiet.reset(token)


_PACKAGE = Path(__file__).parents[2]


@contextlib.contextmanager
def dicom_boundary() -> Iterator[None]:
    """Turn what pydicom and the decoders raise on malformed values into an InputError; also a decorator.

    pydicom converts values when they are first looked at and raises whatever the bytes provoke. An error that
    arises in our own code is a bug of ours and passes through.
    """
    try:
        with quiet_pydicom():
            yield
    except (ClearMarginError, MemoryError):
        raise
    except RecursionError:
        raise InputError(
            "the DICOM data nest sequences deeper than any object does: they are damaged"
        ) from None
    except Exception as error:
        # A system's error has a number; pydicom also raises numberless ones about the bytes.
        if _raised_by_us(error) or (isinstance(error, OSError) and error.errno is not None):
            raise
        # The cause is dropped on purpose: its message quotes values of the file.
        raise InputError(f"the DICOM data are malformed: {_malformed_element(error)}") from None


def _malformed_element(error: Exception) -> str:
    """Return which element pydicom was at when it failed, by its keyword; none of its value."""
    from pydicom.datadict import keyword_for_tag
    from pydicom.dataelem import DataElement, RawDataElement

    keyword = ""
    frame = error.__traceback__
    while frame is not None:
        for value in frame.tb_frame.f_locals.values():
            if isinstance(value, DataElement | RawDataElement):
                keyword = keyword_for_tag(value.tag) or keyword
        frame = frame.tb_next
    return (
        f"{keyword} holds no value of its kind"
        if keyword
        else "their elements cannot be told apart, or are cut off"
    )


@contextlib.contextmanager
def converting(what: str) -> Iterator[None]:
    """Turn a failed conversion of a file's value into an InputError; also a decorator of functions that convert."""
    try:
        yield
    except (
        TypeError,
        ValueError,
        IndexError,
        OverflowError,
        AttributeError,
    ):  # the last: an element is missing
        raise InputError(f"{what} is malformed: it does not hold what it should, mostly numbers") from None


def _raised_by_us(error: Exception) -> bool:
    frame = error.__traceback__
    while frame is not None and frame.tb_next is not None:
        frame = frame.tb_next
    return frame is None or Path(frame.tb_frame.f_code.co_filename).is_relative_to(_PACKAGE)


def items_of(holder: Elements | None, keyword: str) -> Sequence[Dataset]:
    """Return the items of a sequence of a dataset or an item; none if either is absent or empty.

    Raises:
        InputError: The element is not a sequence, which only a damaged file has.
    """
    import pydicom

    value = None if holder is None else holder.get(keyword)
    if not value:
        return ()
    if not isinstance(value, pydicom.Sequence):
        raise InputError(f"the DICOM data are malformed: {keyword} is not a sequence")
    items: Sequence[Dataset] = value
    return items


def modality_of(header: Elements) -> str:
    """Return the Modality, a code string that messages may show; empty where the value is absent or no such code.

    A damaged value can hold anything that stands in the file behind it, names included.
    """
    value = str(header.get("Modality") or "")
    return value if re.fullmatch(r"[A-Z0-9_ ]{1,16}", value) else ""


@dicom_boundary()
def read_header(file: Path | BinaryIO, *, pixels: bool = False, tags: Sequence[str] | None = None) -> Dataset:
    """Return a file's elements, without its pixels unless asked.

    Raises:
        InputError: The file is not DICOM, or is cut off or malformed; the message holds none of its values.
    """
    return _parsed(file, pixels=pixels, tags=tags)[0]


def study_of(file: Path) -> str | None:
    """Return the StudyInstanceUID of a file, "" if it states none; None if the file cannot be read as DICOM."""
    try:
        header: Elements | None = quick_header(file, {0x0020_000D: "StudyInstanceUID"}, frozenset())
        if header is None:
            header = read_header(file, tags=["StudyInstanceUID"])
    except (InputError, OSError):
        return None
    return str(header.get("StudyInstanceUID") or "").strip("\0 ")


@dicom_boundary()
def read_until_pixels(file: Path) -> tuple[Dataset, int]:
    """Return a file's elements without its pixels, and at which byte those begin.

    Raises:
        InputError: As :func:`read_header`.
    """
    return _parsed(file, pixels=False, tags=None)


@dicom_boundary()
def parsed_header(file: Path, *, tags: Sequence[str] | None = None) -> Header:
    """Return a file's header, parsed whole, or the elements ``tags`` of it.

    Raises:
        InputError: As :func:`read_header`.
    """
    elements, pixels_at = _parsed(file, pixels=False, tags=tags)
    return Header(file=file, elements=elements, pixels_at=pixels_at)


def _parsed(file: Path | BinaryIO, *, pixels: bool, tags: Sequence[str] | None) -> tuple[Dataset, int]:
    import pydicom
    from pydicom.uid import UID

    with contextlib.ExitStack() as stack:
        opened = stack.enter_context(file.open("rb")) if isinstance(file, Path) else file
        start = opened.tell()
        size = opened.seek(0, os.SEEK_END) - start
        opened.seek(start)
        _check_deflated(opened)
        dataset = pydicom.dcmread(
            opened, stop_before_pixels=not pixels, specific_tags=list(tags) if tags else None, force=True
        )
        syntax = getattr(dataset, "file_meta", {}).get("TransferSyntaxUID")
        if syntax is not None and not isinstance(syntax, UID):
            raise InputError("the transfer syntax is malformed: the object is damaged")
        check_frames(dataset, size, syntax)
        if pixels:
            check_syntax(syntax)
        return dataset, opened.tell()


def check_frames(header: Elements, size: int, syntax: UID | None) -> None:
    """Refuse a header that claims more frames than its file can hold: work for each is planned from it.

    Args:
        header: With the elements that describe pixels, as far as they are there.
        size: Size of the file, in bytes.
        syntax: Its transfer syntax, or None.

    Raises:
        InputError: The file is too short.
    """
    frames, rows, columns, samples, bits = (
        _count(header, name)
        for name in ("NumberOfFrames", "Rows", "Columns", "SamplesPerPixel", "BitsAllocated")
    )
    if frames <= 1:
        return
    if str(syntax) == _DEFLATED:
        size *= MOST_DEFLATED
    packed = syntax is not None and syntax.is_transfer_syntax and syntax.is_compressed
    if str(header.get("PhotometricInterpretation") or "").endswith(("422", "420")):
        samples = 1  # and a bit more: colours of neighbours are shared
    needed = frames if packed else frames * rows * columns * samples * bits // 8
    if needed > size:
        raise InputError(
            f"the header claims {rows} x {columns} x {frames} pixels and the file has {size} bytes: it is cut off, or "
            "damaged"
        )


def _count(header: Elements, name: str) -> int:
    """Return a positive whole number of a header; 1 if there is none."""
    try:
        return max(1, int(str(header.get(name) or 1)))
    except Exception:  # noqa: BLE001 - a malformed element may raise anything on conversion; who needs it says so
        return 1


def _check_deflated(opened: BinaryIO) -> None:
    """Refuse a deflated object that becomes larger than the limit, or than it describes.

    pydicom unpacks such an object whole, whatever its size. Here the beginning is held, and no more than a piece of the
    rest: beyond some 256 MiB it is asked how many pixels the object describes, and the rest may not be longer.
    """
    start = opened.tell()
    content = opened.read(_META)
    begin = 132 if content[128:132] == b"DICM" else 0
    if _DEFLATED.encode() in content:
        opened.seek(start + _after_meta(content, begin))
        stream, size, first, most = zlib.decompressobj(-zlib.MAX_WBITS), 0, bytearray(), None
        with contextlib.suppress(zlib.error):  # pydicom meets it again
            while not stream.eof and (packed := stream.unconsumed_tail or opened.read(_PIECE)):
                piece = stream.decompress(packed, _PIECE)
                size += len(piece)
                if most is None and len(first) < _BEGINNING:
                    first += piece
                if size > max_bytes():
                    raise InputError(
                        f"the deflated object unpacks to {size / 2**30:.3g} GiB or more: {raise_it()}"
                    )
                if size > _BESIDE_PIXELS and most is None:
                    most = _BESIDE_PIXELS + _described_bytes(bytes(first))
                    first.clear()
                if most is not None and size > most:
                    raise InputError(
                        "the deflated object unpacks to far more than the pixels that it describes: it is damaged, or "
                        "made to fill the memory"
                    )
    opened.seek(start)


def _described_bytes(beginning: bytes) -> int:
    """Return how many bytes of pixels the beginning of a dataset, in explicit VR little endian, describes."""
    from pydicom.filereader import read_dataset

    try:
        header = read_dataset(
            io.BytesIO(beginning), False, True, stop_when=lambda tag, _, __: int(tag) > _BITS_ALLOCATED
        )
    except Exception:  # noqa: BLE001 - what cannot be read describes nothing
        return 0
    names = ("NumberOfFrames", "Rows", "Columns", "SamplesPerPixel", "BitsAllocated")
    return math.prod(_count(header, name) for name in names) // 8


def _after_meta(content: bytes, position: int) -> int:
    """Return where group 0002, in explicit VR little endian, ends."""
    while content[position : position + 2] == b"\x02\x00" and position + 12 <= len(content):
        if content[position + 4 : position + 6] in (b"OB", b"UN", b"UT", b"SQ"):
            position += 12 + int.from_bytes(content[position + 8 : position + 12], "little")
        else:
            position += 8 + int.from_bytes(content[position + 6 : position + 8], "little")
    return position


def check_syntax(syntax: UID | None) -> None:
    """Refuse a transfer syntax that is not one of the standard's."""
    if syntax is not None and not syntax.is_transfer_syntax:
        raise InputError(
            "the transfer syntax is one that is not known here: convert the object to another one"
        )

"""Where pydicom is called: silent about values, typed in its errors, and no byte read twice."""

from __future__ import annotations

import contextlib
import re
import warnings
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from pathlib import Path
from typing import Any, BinaryIO

from clearmargin.errors import ClearMarginError, InputError
from clearmargin.formats.quiet import hushed

__all__ = ["converting", "dicom_boundary", "load_pixels", "quiet_pydicom", "read_header"]

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
    except (TypeError, ValueError, IndexError, OverflowError):
        raise InputError(f"{what} is malformed: it does not hold what it should, mostly numbers") from None


def _raised_by_us(error: Exception) -> bool:
    frame = error.__traceback__
    while frame is not None and frame.tb_next is not None:
        frame = frame.tb_next
    return frame is None or Path(frame.tb_frame.f_code.co_filename).parent == Path(__file__).parent


def modality_of(header: Any) -> str:
    """Return the Modality, a code string that messages may show; empty where the value is absent or no such code.

    A damaged value can hold anything that stands in the file behind it, names included.
    """
    value = str(header.get("Modality") or "")
    return value if re.fullmatch(r"[A-Z0-9_ ]{1,16}", value) else ""


@dicom_boundary()
def read_header(file: Path | BinaryIO, *, pixels: bool = False, tags: Sequence[str] | None = None) -> Any:
    """Return the ``pydicom.Dataset`` of a file, without its pixels unless asked.

    Raises:
        InputError: The file is not DICOM, or is cut off or malformed; the message holds none of its values.
    """
    import pydicom
    from pydicom.uid import UID

    with contextlib.ExitStack() as stack:
        opened = stack.enter_context(file.open("rb")) if isinstance(file, Path) else file
        dataset = pydicom.dcmread(
            opened, stop_before_pixels=not pixels, specific_tags=list(tags) if tags else None, force=True
        )
        syntax = getattr(dataset, "file_meta", {}).get("TransferSyntaxUID")
        if syntax is not None and not isinstance(syntax, UID):
            raise InputError("the transfer syntax is malformed: the object is damaged")
        if pixels:
            _check_syntax(syntax)
        if not pixels:
            dataset.pixels_at = (
                opened.tell()
            )  # where load_pixels finds them, without reading the header again
    return dataset


def _check_syntax(syntax: Any) -> None:
    if syntax is not None and not syntax.is_transfer_syntax:
        raise InputError(
            "the transfer syntax is one that is not known here: convert the object to another one"
        )


@dicom_boundary()
def load_pixels(header: Any, file: Path) -> Any:
    """Return the dataset of a header read before, with its pixels."""
    from pydicom.dataelem import DataElement

    syntax = getattr(getattr(header, "file_meta", None), "TransferSyntaxUID", None)
    _check_syntax(syntax)
    if syntax is not None and not syntax.is_compressed and syntax.is_little_endian:
        with file.open("rb") as opened:
            opened.seek(header.pixels_at)
            head = opened.read(8 if syntax.is_implicit_VR else 12)
            if head[:4] == b"\xe0\x7f\x10\x00":
                length = int.from_bytes(head[-4:], "little")
                if length != 0xFFFFFFFF:
                    header["PixelData"] = DataElement(0x7FE00010, "OW", opened.read(length))
                    return header
    return read_header(file, pixels=True)

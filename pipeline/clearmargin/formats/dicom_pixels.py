"""Pixels of a DICOM object: decoded frame by frame, in the units the object declares, 16 bits kept."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from clearmargin.errors import ClearMarginError, InputError

__all__ = [
    "MAX_BYTES",
    "FrameScale",
    "PixelLayout",
    "decode_frames",
    "dicom_boundary",
    "frame_scales",
    "load_pixels",
    "pixel_layout",
    "quiet_pydicom",
    "read_header",
    "rescaled_dtype",
    "to_channels",
    "to_units",
]

MAX_BYTES = 4 * 2**30
"""Largest decoded size read at once; a header that claims more is refused before anything is allocated."""

_COLOUR = {"RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT", "YBR_PARTIAL_420"}
_GREY = {"MONOCHROME1", "MONOCHROME2"}
_UNSIGNED = {8: np.uint8, 16: np.uint16, 32: np.uint32}
_SIGNED = {8: np.int8, 16: np.int16, 32: np.int32}


_quiet: ContextVar[bool] = ContextVar("quiet", default=False)
_LOUD = ("pydicom", "pydicom.pixels.utils", "highdicom", "highdicom.base", "highdicom.sr.sop")


class _Hush(logging.Filter):
    """Drops a library's records while our own calls are under way; other callers of it keep theirs."""

    active = 0

    def filter(self, record: logging.LogRecord) -> bool:
        return self.active == 0


_hush = _Hush()


@contextlib.contextmanager
def quiet_pydicom() -> Iterator[None]:
    """Silence pydicom's and highdicom's remarks on odd values: they quote values that may name a patient."""
    if _quiet.get():
        yield
        return
    token = _quiet.set(True)
    for name in _LOUD:
        logging.getLogger(name).addFilter(_hush)
    _hush.active += 1
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"(pydicom|highdicom)(\.|$)")
            yield
    finally:
        _hush.active -= 1
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
    except (ClearMarginError, OSError, MemoryError):
        raise
    except Exception as error:
        if _raised_by_us(error):
            raise
        # The cause is dropped on purpose: its message quotes values of the file.
        raise InputError(f"the DICOM data are malformed ({type(error).__name__})") from None


def _raised_by_us(error: Exception) -> bool:
    frame = error.__traceback__
    while frame is not None and frame.tb_next is not None:
        frame = frame.tb_next
    return frame is None or Path(frame.tb_frame.f_code.co_filename).parent == Path(__file__).parent


@dicom_boundary()
def read_header(file: Path | BinaryIO, *, pixels: bool = False, tags: Sequence[str] | None = None) -> Any:
    """Return the ``pydicom.Dataset`` of a file, without its pixels unless asked.

    Raises:
        InputError: The file is not DICOM, or is cut off or malformed; the message holds none of its values.
    """
    import pydicom

    with contextlib.ExitStack() as stack:
        opened = stack.enter_context(file.open("rb")) if isinstance(file, Path) else file
        dataset = pydicom.dcmread(
            opened, stop_before_pixels=not pixels, specific_tags=list(tags) if tags else None, force=True
        )
        if not pixels:
            dataset.pixels_at = (
                opened.tell()
            )  # where load_pixels finds them, without reading the header again
    return dataset


@dicom_boundary()
def load_pixels(header: Any, file: Path) -> Any:
    """Return the dataset of a header read before, with its pixels."""
    from pydicom.dataelem import DataElement

    syntax = getattr(getattr(header, "file_meta", None), "TransferSyntaxUID", None)
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


@dataclass(frozen=True, kw_only=True)
class PixelLayout:
    """Shape and encoding of a DICOM object's pixels, checked (PS3.3, C.7.6.3)."""

    rows: int
    columns: int
    frames: int
    samples: int
    allocated: int
    stored: int
    signed: bool
    photometric: str

    @property
    def n_bytes(self) -> int:
        """Decoded size in bytes."""
        return self.rows * self.columns * self.frames * self.samples * max(1, self.allocated // 8)


def pixel_layout(header: Any) -> PixelLayout:
    """Return the pixel layout of an object.

    Raises:
        InputError: It has no pixels, or the description of them is incomplete, contradictory or absurdly
            large.
    """
    values: dict[str, int] = {}
    defaults = {"NumberOfFrames": 1, "SamplesPerPixel": 1, "BitsStored": None, "PixelRepresentation": 0}
    for name in ("Rows", "Columns", "BitsAllocated", *defaults):
        raw = _value(header, name)
        if raw in (None, ""):
            raw = defaults.get(name)
            if raw is None and name == "BitsStored":
                raw = values["BitsAllocated"]
            if raw is None:
                raise InputError(f"the object has no usable {name}: it holds no picture, or is damaged")
        try:
            values[name] = int(str(raw))
        except (TypeError, ValueError):
            raise InputError(f"{name} is not a whole number: the object is damaged") from None
    photometric = str(_value(header, "PhotometricInterpretation") or "MONOCHROME2")
    layout = PixelLayout(
        rows=values["Rows"],
        columns=values["Columns"],
        frames=values["NumberOfFrames"],
        samples=values["SamplesPerPixel"],
        allocated=values["BitsAllocated"],
        stored=values["BitsStored"],
        signed=values["PixelRepresentation"] == 1,
        photometric=photometric,
    )
    if min(layout.rows, layout.columns, layout.frames) < 1 or layout.samples not in (1, 3):
        raise InputError(
            f"a picture of {layout.rows} x {layout.columns} x {layout.frames} with {layout.samples} "
            "sample(s) a pixel is not readable"
        )
    if layout.n_bytes > MAX_BYTES:
        raise InputError(
            f"the header claims {layout.rows} x {layout.columns} x {layout.frames} pixels, "
            f"{layout.n_bytes / 2**30:.0f} GiB decoded: more than the {MAX_BYTES / 2**30:.0f} GiB "
            "read at once"
        )
    if photometric not in _GREY | _COLOUR | {"PALETTE COLOR"}:
        raise InputError("the photometric interpretation is none that is read here (grey, RGB, YBR, palette)")
    if layout.allocated not in (1, 8, 16, 32) or not 1 <= layout.stored <= layout.allocated:
        raise InputError(f"{layout.stored} bits stored in {layout.allocated} allocated are not read")
    return layout


def _value(header: Any, name: str) -> Any:
    """Return an element's value, None where absent or where converting it fails."""
    try:
        return header.get(name)
    except Exception:  # noqa: BLE001 - a malformed element may raise anything on conversion
        return None


def decode_frames(dataset: Any, frames: Sequence[int] | None = None) -> Iterator[NDArray[np.generic]]:
    """Yield stored pixel values frame by frame, ``(Y, X)`` or ``(Y, X, 3)`` RGB, before any rescale.

    Integers come in the narrowest of 8, 16 and 32 bits that the object allocates. YBR comes as RGB; a
    palette's indices come as stored (see :func:`to_channels`).

    Args:
        dataset: A ``pydicom.Dataset`` read with its pixels.
        frames: Frame numbers from 0; all where None.

    Raises:
        InputError: No decoder, or bytes that do not hold what the header claims.
    """
    layout = getattr(dataset, "layout", None) or pixel_layout(dataset)
    syntax = _value(getattr(dataset, "file_meta", None) or {}, "TransferSyntaxUID")
    if "PixelData" not in dataset or not dataset["PixelData"].value:
        raise InputError("the object holds no pixel data" + _float_hint(dataset))
    if syntax is None:
        raise InputError(
            "the object does not name its transfer syntax: its pixels cannot be decoded with certainty"
        )
    picks = range(layout.frames) if frames is None else frames
    if not syntax.is_encapsulated and layout.allocated >= 8 and layout.photometric in _GREY:
        yield from _native_grey(dataset, layout, picks, big_endian=not syntax.is_little_endian)
        return
    yield from _by_pydicom(dataset, list(picks))


def _float_hint(dataset: Any) -> str:
    floats = "FloatPixelData" in dataset or "DoubleFloatPixelData" in dataset
    return ": its floating-point pixels are read by read_parametric_map" if floats else ""


def _native_grey(
    dataset: Any, layout: PixelLayout, picks: Sequence[int], *, big_endian: bool
) -> Iterator[NDArray[np.generic]]:
    """Read uncompressed grey frames straight from the bytes: pydicom's general path costs much more."""
    stored: bytes = dataset["PixelData"].value
    kind = np.dtype(_SIGNED[layout.allocated] if layout.signed else _UNSIGNED[layout.allocated])
    size = layout.rows * layout.columns
    if len(stored) < size * layout.frames * kind.itemsize:
        raise InputError(
            f"the pixel data are cut off: {len(stored)} bytes of {size * layout.frames * kind.itemsize}"
        )
    # In explicit VR big endian, OW words are swapped but OB bytes are not (PS3.5, A.3).
    swapped = big_endian and dataset["PixelData"].VR != "OB"
    if big_endian and not swapped and kind.itemsize > 1:
        yield from _by_pydicom(dataset, list(picks))
        return
    if swapped and kind.itemsize == 1:
        yield from _by_pydicom(dataset, list(picks))
        return
    unused = layout.allocated - layout.stored
    high = layout.stored - 1 if not unused else _value(dataset, "HighBit")
    for k in picks:
        frame = np.frombuffer(
            stored, kind.newbyteorder(">" if swapped else "<"), size, k * size * kind.itemsize
        )
        yield _drop_unused_bits(frame.astype(kind).reshape(layout.rows, layout.columns), layout, high)


def _drop_unused_bits(frame: NDArray[Any], layout: PixelLayout, high: Any) -> NDArray[np.generic]:
    """Clear the bits above the stored ones, where overlays used to hide, and extend the sign."""
    unused = layout.allocated - layout.stored
    if unused and (high is None or int(high) == layout.stored - 1):
        shift = frame.dtype.type(unused)
        frame = np.right_shift(np.left_shift(frame, shift), shift)
    return frame


def _by_pydicom(dataset: Any, picks: list[int]) -> Iterator[NDArray[np.generic]]:
    from pydicom.pixels import iter_pixels

    try:
        with quiet_pydicom():
            for frame in iter_pixels(dataset, indices=picks):
                yield np.asarray(frame)
    except (OSError, MemoryError):
        raise
    except Exception as error:  # noqa: BLE001 - each decoder has its own errors
        raise InputError(
            f"the pixel data cannot be decoded ({type(error).__name__}): they are damaged, cut off, or in a "
            "variant of their transfer syntax that no installed decoder reads"
        ) from None


@dataclass(frozen=True, kw_only=True)
class FrameScale:
    """How stored values of one frame become real ones (PS3.3, C.7.6.16.2.9 and C.11.1)."""

    slope: float = 1.0
    intercept: float = 0.0

    @property
    def is_identity(self) -> bool:
        """Whether stored values are the values."""
        return self.slope == 1.0 and self.intercept == 0.0


def frame_scales(header: Any, frames: int) -> list[FrameScale]:
    """Return the rescale of every frame: from the functional groups of an enhanced object, else from its
    head.

    Raises:
        InputError: A slope of zero, or values that are not finite numbers.
    """
    shared = _first(header, "SharedFunctionalGroupsSequence")
    each = header.get("PerFrameFunctionalGroupsSequence") or []
    scales = []
    for k in range(frames):
        item = _first(each[k], "PixelValueTransformationSequence") if k < len(each) else None
        item = item or (_first(shared, "PixelValueTransformationSequence") if shared is not None else None)
        scales.append(_scale(item if item is not None else header))
    return scales


def _first(item: Any, keyword: str) -> Any:
    sequence = item.get(keyword) if item is not None else None
    return sequence[0] if sequence else None


def _scale(item: Any) -> FrameScale:
    try:
        slope, intercept = item.get("RescaleSlope"), item.get("RescaleIntercept")
        scale = FrameScale(
            slope=1.0 if slope in (None, "") else float(slope),
            intercept=0.0 if intercept in (None, "") else float(intercept),
        )
    except (TypeError, ValueError):
        raise InputError("the rescale slope or intercept is not a number") from None
    if not np.isfinite([scale.slope, scale.intercept]).all() or scale.slope == 0:
        raise InputError("the rescale slope is zero or not finite: values would lose their meaning")
    return scale


def rescaled_dtype(
    stored: np.dtype[Any], extremes: Sequence[tuple[int, int]], scales: Sequence[FrameScale]
) -> np.dtype[Any]:
    """Return the dtype that holds every real value exactly: integers for integral rescales, else float32.

    Args:
        stored: Dtype of the stored values, kept where nothing is rescaled.
        extremes: Lowest and highest stored value of each frame.
        scales: Rescale of each frame.

    >>> rescaled_dtype(np.dtype("uint16"), [(0, 4095)], [FrameScale(intercept=-1024.0)])
    dtype('int16')
    >>> rescaled_dtype(np.dtype("uint16"), [(0, 4095)], [FrameScale(slope=0.5)])
    dtype('float32')
    """
    if all(s.is_identity for s in scales):
        return stored
    if not all(float(s.slope).is_integer() and float(s.intercept).is_integer() for s in scales):
        return np.dtype(np.float32)
    ends = [v * s.slope + s.intercept for s, pair in zip(scales, extremes, strict=True) for v in pair]
    for candidate in (np.int16, np.uint16, np.int32):
        if np.iinfo(candidate).min <= min(ends) and max(ends) <= np.iinfo(candidate).max:
            return np.dtype(candidate)
    return np.dtype(np.float32)


def to_units(
    stored: NDArray[np.generic], header: Any, layout: PixelLayout, scale: FrameScale, dtype: np.dtype[Any]
) -> NDArray[Any]:
    """Return the real values of one grey frame in ``dtype``.

    A modality look-up table is applied where there is one. MONOCHROME1 is turned over, so that larger is
    always brighter, where values are mere grey levels; values with a rescale have a unit that display does
    not change.
    """
    if header.get("ModalityLUTSequence"):
        from pydicom.pixels import apply_modality_lut

        with quiet_pydicom():
            return np.asarray(apply_modality_lut(stored, header))
    if not scale.is_identity:
        wide = np.float64 if dtype.kind == "f" else np.int64
        return (stored.astype(wide) * wide(scale.slope) + wide(scale.intercept)).astype(dtype)
    if layout.photometric == "MONOCHROME1":
        top = -1 if layout.signed else 2**layout.stored - 1
        return (top - stored.astype(np.int64)).astype(dtype)
    return stored.astype(dtype, copy=False)


def to_channels(stored: NDArray[np.generic], header: Any, layout: PixelLayout) -> NDArray[Any]:
    """Return a frame as ``(C, Y, X)``: one grey channel, or RGB from colour or a palette."""
    if layout.photometric == "PALETTE COLOR":
        from pydicom.pixels import apply_color_lut

        try:
            with quiet_pydicom():
                stored = np.asarray(apply_color_lut(stored, header))[..., :3]
        except Exception as error:  # noqa: BLE001 - malformed tables raise many types
            raise InputError(f"the palette cannot be applied ({type(error).__name__})") from None
    if stored.ndim == 2:
        return stored[None]
    return np.ascontiguousarray(np.moveaxis(stored, -1, 0))

"""Pixels of a DICOM object as stored: a checked description, then frame by frame (PS3.5, 8)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from clearmargin.errors import InputError
from clearmargin.formats.dicom.boundary import check_syntax, dicom_boundary, read_header
from clearmargin.formats.dicom.headers import Elements, Header, syntax_of
from clearmargin.formats.dicom.jpeg import (
    check_jpeg_lossless,
    check_jpeg_ls,
    check_jpeg_ls_ends,
    claims_more,
    decode_jpeg_12,
)
from clearmargin.formats.limits import max_bytes, raise_it

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

__all__ = ["PixelLayout", "StoredPixels", "decode_frames", "load_pixels", "pixel_layout"]

_JPEG_EXTENDED = "1.2.840.10008.1.2.4.51"
_DECODERS = {
    "1.2.840.10008.1.2.5": "pydicom",  # RLE
    "1.2.840.10008.1.2.4.50": "pillow",  # JPEG baseline
    _JPEG_EXTENDED: "pillow",  # JPEG extended, 8 bits; those of 12 go to decode_jpeg_12
    "1.2.840.10008.1.2.4.57": "gdcm",  # JPEG lossless
    "1.2.840.10008.1.2.4.70": "gdcm",
    "1.2.840.10008.1.2.4.80": "pyjpegls",  # JPEG-LS
    "1.2.840.10008.1.2.4.81": "pyjpegls",
    "1.2.840.10008.1.2.4.90": "pylibjpeg",  # JPEG 2000, by OpenJPEG
    "1.2.840.10008.1.2.4.91": "pylibjpeg",
    "1.2.840.10008.1.2.4.201": "pylibjpeg",  # HTJ2K
    "1.2.840.10008.1.2.4.202": "pylibjpeg",
    "1.2.840.10008.1.2.4.203": "pylibjpeg",
}
_BIT_BY_BIT = {  # syntaxes that keep every bit allocated
    "1.2.840.10008.1.2",
    "1.2.840.10008.1.2.1",
    "1.2.840.10008.1.2.1.99",
    "1.2.840.10008.1.2.2",
    "1.2.840.10008.1.2.5",
}
_JPEG_LS = ("1.2.840.10008.1.2.4.80", "1.2.840.10008.1.2.4.81")
_COLOUR = {"RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT", "YBR_PARTIAL_420"}
_GREY = {"MONOCHROME1", "MONOCHROME2"}
_UNSIGNED = {8: np.uint8, 16: np.uint16, 32: np.uint32}
_SIGNED = {8: np.int8, 16: np.int16, 32: np.int32}


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


@dataclass(frozen=True, kw_only=True, eq=False)
class StoredPixels:
    """An object's pixels before they are decoded.

    Attributes:
        elements: What describes them, and says how their values are meant.
        layout: Their shape and encoding.
        content: The dataset that holds them; or their bytes, if they are plain: grey, uncompressed, little-endian.
    """

    elements: Elements
    layout: PixelLayout
    content: Dataset | bytes

    def frames(self, picks: Sequence[int]) -> Iterator[NDArray[np.generic]]:
        """Yield the frames ``picks``, counted from 0, as :func:`decode_frames` does."""
        if isinstance(self.content, bytes):
            return _plain_grey(self.content, self.elements, self.layout, picks)
        return decode_frames(self.content, picks, layout=self.layout)


@dicom_boundary()
def load_pixels(header: Header) -> StoredPixels:
    """Return the pixels of a header that was read before; plain ones without parsing the file again.

    Raises:
        InputError: As :func:`pixel_layout`; a transfer syntax that is not known.
    """
    syntax = syntax_of(header.elements)
    check_syntax(syntax)
    if syntax is not None and not syntax.is_compressed and syntax.is_little_endian:
        layout = pixel_layout(header.elements)
        if layout.allocated >= 8 and layout.photometric in _GREY:
            content = _plain_bytes(header, implicit=syntax.is_implicit_VR)
            if content:
                return StoredPixels(elements=header.elements, layout=layout, content=content)
    dataset = read_header(header.file, pixels=True)
    return StoredPixels(elements=dataset, layout=pixel_layout(dataset), content=dataset)


def _plain_bytes(header: Header, *, implicit: bool) -> bytes:
    """Return the value of the pixel data element; nothing if it does not begin where it should, or in fragments."""
    with header.file.open("rb") as opened:
        opened.seek(header.pixels_at)
        head = opened.read(8 if implicit else 12)
        length = int.from_bytes(head[-4:], "little")
        if head[:4] != b"\xe0\x7f\x10\x00" or length == 0xFFFFFFFF:
            return b""
        return opened.read(length)


def pixel_layout(header: Elements) -> PixelLayout:
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
            "sample(s) per pixel is not readable"
        )
    if layout.n_bytes > max_bytes():
        raise InputError(
            f"the header claims {layout.rows} x {layout.columns} x {layout.frames} pixels, "
            f"{layout.n_bytes / 2**30:.3g} GiB decoded: {raise_it()}"
        )
    if photometric not in _GREY | _COLOUR | {"PALETTE COLOR"}:
        raise InputError("the photometric interpretation is none that is read here (grey, RGB, YBR, palette)")
    if layout.allocated not in (1, 8, 16, 32) or not 1 <= layout.stored <= layout.allocated:
        raise InputError(f"{layout.stored} bits stored in {layout.allocated} allocated are not read")
    return layout


def _value(header: Elements, name: str) -> Any:
    """Return an element's value, None where absent or where converting it fails."""
    try:
        return header.get(name)
    except Exception:  # noqa: BLE001 - a malformed element may raise anything on conversion
        return None


def decode_frames(
    dataset: Dataset, frames: Sequence[int] | None = None, *, layout: PixelLayout | None = None
) -> Iterator[NDArray[np.generic]]:
    """Yield stored pixel values frame by frame, ``(Y, X)`` or ``(Y, X, 3)`` RGB, before any rescale.

    Integers come in the narrowest of 8, 16 and 32 bits that the object allocates. YBR comes as RGB; a
    palette's indices come as stored (see :func:`to_channels`).

    Args:
        dataset: Read with its pixels.
        frames: Frame numbers from 0; all where None.
        layout: From :func:`pixel_layout`, if it is known already.

    Raises:
        InputError: No decoder, or bytes that do not hold what the header claims.
    """
    layout = layout or pixel_layout(dataset)
    syntax = syntax_of(dataset)
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
    if syntax == _JPEG_EXTENDED and layout.stored > 8:
        yield from _extended_12_bits(dataset, layout, picks)
        return
    yield from _by_pydicom(dataset, layout, list(picks))


def _float_hint(dataset: Dataset) -> str:
    if "FloatPixelData" not in dataset and "DoubleFloatPixelData" not in dataset:
        return ""
    if str(dataset.get("SOPClassUID") or "") == "1.2.840.10008.5.1.4.1.1.30":
        return ": its floating-point pixels are read by read_parametric_map"
    return " in integers, and floating-point pixels are read from Parametric Maps only"


def _native_grey(
    dataset: Dataset, layout: PixelLayout, picks: Sequence[int], *, big_endian: bool
) -> Iterator[NDArray[np.generic]]:
    """Read uncompressed grey frames straight from the bytes: pydicom's general path costs much more."""
    # In explicit VR big endian, OW words are swapped but OB bytes are not (PS3.5, A.3).
    swapped = big_endian and dataset["PixelData"].VR != "OB"
    if big_endian and swapped == (layout.allocated == 8):
        yield from _by_pydicom(dataset, layout, list(picks))
        return
    yield from _plain_grey(dataset["PixelData"].value, dataset, layout, picks, order=">" if swapped else "<")


def _plain_grey(
    stored: bytes,
    elements: Elements,
    layout: PixelLayout,
    picks: Sequence[int],
    *,
    order: Literal["<", ">"] = "<",
) -> Iterator[NDArray[np.generic]]:
    kind = np.dtype(_SIGNED[layout.allocated] if layout.signed else _UNSIGNED[layout.allocated])
    size = layout.rows * layout.columns
    if len(stored) < size * layout.frames * kind.itemsize:
        raise InputError(
            f"the pixel data are cut off: {len(stored)} bytes of {size * layout.frames * kind.itemsize}"
        )
    for k in picks:
        frame = np.frombuffer(stored, kind.newbyteorder(order), size, k * size * kind.itemsize)
        yield _stored_bits(
            frame.astype(kind).reshape(layout.rows, layout.columns), layout, _high_bit(elements, layout)
        )


def _high_bit(dataset: Elements, layout: PixelLayout) -> int:
    """Return the place of a value's highest bit, counted from 0.

    Raises:
        InputError: It leaves no room for the bits stored.
    """
    value = _value(dataset, "HighBit")
    if value in (None, "") or layout.allocated in {layout.stored, 1}:
        return layout.stored - 1
    if not isinstance(value, int) or not layout.stored - 1 <= value < layout.allocated:
        raise InputError(
            f"HighBit does not fit {layout.stored} bits stored in {layout.allocated} allocated: expected "
            f"{layout.stored - 1}, or more for values that do not begin at the lowest bit"
        )
    return value


def _stored_bits(frame: NDArray[Any], layout: PixelLayout, high: int) -> NDArray[np.generic]:
    """Return the values between the lowest and the highest stored bit, the sign extended.

    Bits above are dropped: overlays used to hide there. Bits below say that the header is wrong about where values
    begin, which is more common than an overlay there: either way the values are in doubt.
    """
    above, below = layout.allocated - 1 - high, high + 1 - layout.stored
    if below and np.bitwise_and(frame, frame.dtype.type((1 << below) - 1)).any():
        raise InputError(
            f"HighBit {high} says that the lowest {below} bits hold no values, and they do: the header is wrong about "
            "where values begin"
        )
    if above or below:
        kind = frame.dtype.type
        frame = np.right_shift(np.left_shift(frame, kind(above)), kind(above + below))
    return frame


def _by_pydicom(dataset: Dataset, layout: PixelLayout, picks: list[int]) -> Iterator[NDArray[np.generic]]:
    """Decode by the one decoder of the transfer syntax.

    pydicom would hand what one decoder rejects to the next, and GDCM ends the process on some damaged frames
    instead of raising: it only sees frames that are whole by their markers.
    """
    from pydicom.pixels.utils import iter_pixels

    syntax = str(dataset.file_meta.TransferSyntaxUID)
    plugin = _DECODERS.get(syntax, "")
    high = _high_bit(dataset, layout) if layout.samples == 1 and layout.allocated > 1 else layout.stored - 1
    if high != layout.stored - 1:
        if syntax not in _BIT_BY_BIT:
            raise InputError(
                f"HighBit {high} with {layout.stored} bits stored is not read from compressed pixels: which of both "
                "the encoder kept is not known"
            )
        for frame in iter_pixels(dataset, indices=picks, decoding_plugin=plugin, correct_unused_bits=False):
            yield _stored_bits(np.asarray(frame), layout, high)
        return
    try:
        _check_markers(dataset, layout, picks, syntax)
        try:
            first, *_ = picks
            yield np.asarray(next(iter_pixels(dataset, indices=[first], decoding_plugin=plugin)))
        except RuntimeError:
            if syntax not in _JPEG_LS:
                raise
            _check_frames(dataset, layout, syntax)  # CharLS is stricter than some encoders
            plugin = "gdcm"
            yield np.asarray(next(iter_pixels(dataset, indices=[picks[0]], decoding_plugin=plugin)))
        if picks[1:]:
            for frame in iter_pixels(dataset, indices=picks[1:], decoding_plugin=plugin):
                yield np.asarray(frame)
    except (InputError, MemoryError):
        raise
    except Exception:  # noqa: BLE001 - each decoder has its own errors
        raise InputError(_undecodable(syntax)) from None


def _check_markers(dataset: Dataset, layout: PixelLayout, picks: Sequence[int], syntax: str) -> None:
    """Refuse compressed frames that would cost their decoder the process, its memory or its time."""
    from pydicom.encaps import generate_frames, get_frame

    plugin = _DECODERS.get(syntax, "")
    if plugin == "gdcm":
        _check_frames(dataset, layout, syntax)
    elif plugin in ("pillow", "pylibjpeg"):
        for k in picks:
            frame = get_frame(dataset.PixelData, k, number_of_frames=layout.frames)
            if claims_more(frame, layout.rows, layout.columns):
                raise InputError(_undecodable(syntax))
    elif syntax in _JPEG_LS:
        for frame in generate_frames(dataset.PixelData, number_of_frames=layout.frames):
            check_jpeg_ls_ends(frame)


def _undecodable(syntax: str) -> str:
    from pydicom.uid import UID

    name = UID(syntax).name
    known = "" if name == syntax else f" ({name})"
    if UID(syntax).is_compressed and syntax not in _DECODERS:
        return (
            f"the transfer syntax{known} is one that no decoder here reads: convert the object to another one"
        )
    return (
        f"the pixel data{known} cannot be decoded: they are damaged, cut off, or in a variant of their transfer syntax "
        "that no installed decoder reads"
    )


def _check_frames(dataset: Dataset, layout: PixelLayout, syntax: str) -> None:
    """Refuse JPEG Lossless and JPEG-LS frames that are not whole pictures of the header's size."""
    from pydicom.encaps import generate_frames

    check = check_jpeg_ls if syntax in _JPEG_LS else check_jpeg_lossless
    for frame in generate_frames(dataset.PixelData, number_of_frames=layout.frames):
        check(
            frame,
            rows=layout.rows,
            columns=layout.columns,
            samples=layout.samples,
            allocated=layout.allocated,
        )


def _extended_12_bits(
    dataset: Dataset, layout: PixelLayout, picks: Sequence[int]
) -> Iterator[NDArray[np.generic]]:
    """Decode the kind of JPEG Extended that pydicom's decoders leave out; it is grey and unsigned (PS3.5, 8.2.1)."""
    from pydicom.encaps import get_frame

    kind = (layout.allocated, layout.stored, layout.samples, layout.signed)
    if kind != (16, 12, 1, False) or layout.photometric not in _GREY:
        raise InputError(
            "JPEG Extended holds 8 bits, or unsigned grey values of 12 bits: the header has others"
        )
    for k in picks:
        try:
            frame = get_frame(dataset.PixelData, k, number_of_frames=layout.frames)
        except Exception:  # noqa: BLE001 - whatever the bytes provoke
            raise InputError(
                "the compressed frames cannot be told apart: they are damaged or cut off"
            ) from None
        yield decode_jpeg_12(frame, layout.rows, layout.columns)

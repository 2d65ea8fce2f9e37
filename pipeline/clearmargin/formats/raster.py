"""PNG, JPEG, TIFF and BMP pictures in and out: 8 and 16 bits, grey and RGB; distances are in pixels."""

from __future__ import annotations

import contextlib
import io
import math
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clearmargin.core import Grid, Image, Source
from clearmargin.errors import InputError
from clearmargin.files import whole
from clearmargin.formats.label_values import whole_labels
from clearmargin.formats.limits import MOST_DEFLATED, max_bytes, raise_it
from clearmargin.formats.quiet import hushed
from clearmargin.privacy import case_of_file

_WHITE_IS_ZERO = 0
_PALETTE = 3
_OTHER_COLOURS = {5: "inks (CMYK)", 8: "CIELAB colours", 9: "ICCLAB colours", 10: "ITULAB colours"}
# Bytes that a byte can become, by TIFF's compression: none, LZW, JPEG, deflate (twice), PackBits.
_RATIOS = {1: 1, 5: 2730, 7: 512, 8: MOST_DEFLATED, 32946: MOST_DEFLATED, 32773: 64}

__all__ = ["read_label_raster", "read_raster", "write_label_raster", "write_raster"]


def read_raster(path: Path) -> Image:
    """Return a picture ``(C, Y, X)``, one grey channel or RGB, or the pages of a TIFF as ``(C, Z, Y, X)``.

    16 bits are kept, an alpha channel is dropped, a palette is applied, and a photograph is turned as its
    EXIF orientation says, as every viewer shows it. The unit is px.

    Raises:
        InputError: Damaged, of an unknown layout, or larger than is read at once.
    """
    path = Path(path)
    pixels = _channels(*_load(path, palette=True), path)
    return Image(
        pixels=pixels,
        grid=Grid.from_spacing(pixels.shape[1:]),
        source=Source(case=case_of_file(path), kind="raster", files=(path,)),
    )


def read_label_raster(path: Path) -> NDArray[np.integer[Any]]:
    """Return a label picture ``(Y, X)`` (``(Z, Y, X)`` for a multi-page TIFF) in its stored integer dtype.

    Palette pictures give their indices, 1-bit ones 0 and 1. Colours that are equal in all channels are one
    value.

    Raises:
        InputError: As :func:`read_raster`; colours, fractions or JPEG, whose losses blur labels.
    """
    path = Path(path)
    if path.suffix.lower() in (".jpg", ".jpeg"):
        raise InputError(f"'{path.name}' is a JPEG, whose compression changes labels: use PNG or TIFF")
    channels = _channels(*_load(path, palette=False), path)
    if len(channels) > 1 and not (channels == channels[:1]).all():
        raise InputError(f"'{path.name}' is in colour: a label picture holds one value a pixel")
    return whole_labels(channels[0], path.name)


def write_raster(path: Path, array: NDArray[np.generic]) -> None:
    """Write ``(Y, X)``, ``(1, Y, X)`` or RGB ``(3, Y, X)`` of bool, uint8 or uint16 as PNG, TIFF or JPEG.

    Maps of float32, ``(Y, X)``, are written as TIFF.

    Raises:
        InputError: A dtype or layout that the format would change (16-bit colour PNG, 16-bit JPEG).
    """
    from PIL import Image as Pillow

    path = Path(path)
    data = np.asarray(array)
    data = data[0] if data.ndim == 3 and len(data) == 1 else data
    data = data.astype(np.uint8) * np.uint8(255) if data.dtype == np.bool_ else data
    colour = data.ndim == 3 and len(data) == 3
    tiff = path.suffix.lower() in (".tif", ".tiff")
    fits = data.dtype in (np.uint8, np.uint16) or (tiff and not colour and data.dtype == np.float32)
    if not fits or not (colour or data.ndim == 2):
        raise InputError(
            f"'{path.name}': {array.dtype} of shape {array.shape} is not a picture that can be written"
        )
    data = np.ascontiguousarray(np.moveaxis(data, 0, -1)) if colour else np.ascontiguousarray(data)
    if tiff:
        import tifffile

        with whole(path) as draft:
            tifffile.imwrite(draft, data, photometric="rgb" if colour else "minisblack", compression="zlib")
        return
    if data.dtype == np.uint16 and (colour or path.suffix.lower() != ".png"):
        raise InputError(f"'{path.name}': 16-bit {'colour' if colour else 'grey'} is written as .tif")
    stream = io.BytesIO()  # written by us: Pillow's JPEG encoder says nothing of a full disk
    Pillow.fromarray(data).save(stream, format=_format_of(path))
    with whole(path) as draft:
        draft.write_bytes(stream.getbuffer())


def _format_of(path: Path) -> str:
    """Return Pillow's name of a file's format.

    Raises:
        InputError: The suffix is none that it writes.
    """
    from PIL import Image as Pillow

    suffix = path.suffix.lower()
    if suffix not in Pillow.registered_extensions():
        raise InputError(f"'{path.name}': pictures are written as .png, .tif or .jpg")
    return str(Pillow.registered_extensions()[suffix])


def write_label_raster(path: Path, labels: NDArray[np.unsignedinteger[Any]]) -> None:
    """Write a label picture ``(Y, X)`` of uint8 or uint16 as PNG or TIFF, or ``(Z, Y, X)`` as the pages of a TIFF.

    Raises:
        InputError: A dtype or layout that the format would change.
    """
    if labels.ndim != 3:
        write_raster(path, labels)
        return
    if path.suffix.lower() not in (".tif", ".tiff"):
        raise InputError(
            f"'{path.name}': expected a picture (Y, X), got {labels.shape}; pages are written as .tif"
        )
    import tifffile

    with whole(path) as draft:
        tifffile.imwrite(
            draft, labels, photometric="minisblack", compression="zlib", metadata={"axes": "ZYX"}
        )


def _channels(data: NDArray[Any], coloured: bool, path: Path) -> NDArray[Any]:
    """Return ``(..., Y, X)``, or ``(..., Y, X, 1..4)`` if coloured, as ``(C, ..., Y, X)`` without alpha."""
    if data.dtype == np.bool_:
        data = data.astype(np.uint8)
    if not 2 <= data.ndim - coloured <= 3 or (coloured and data.shape[-1] > 4):
        raise InputError(f"'{path.name}' is of shape {data.shape}: not a picture or a stack of them")
    if not coloured:
        return data[None]
    kept = data[..., :3] if data.shape[-1] >= 3 else data[..., :1]
    return np.ascontiguousarray(np.moveaxis(kept, -1, 0))


def _load(path: Path, *, palette: bool) -> tuple[NDArray[Any], bool]:
    """Return the values, and whether their last axis is colour."""
    if not path.exists():
        raise InputError(f"there is no file '{path}'")
    try:
        with hushed("tifffile", "PIL"), warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"(PIL|tifffile)(\.|$)")
            return (
                _load_tiff(path, palette)
                if path.suffix.lower() in (".tif", ".tiff")
                else _load_pillow(path, palette)
            )
    except (InputError, MemoryError):
        raise
    except Exception as error:  # noqa: BLE001 - Pillow and tifffile raise many types on damaged files
        raise InputError(
            f"'{path.name}' is not readable as a picture ({type(error).__name__}): it is damaged or cut off, or no "
            f"{path.suffix.lower() or 'picture'} file inside; copy it anew, or give PNG, JPEG or TIFF"
        ) from None


def _load_pillow(path: Path, palette: bool) -> tuple[NDArray[Any], bool]:
    from PIL import Image as Pillow
    from PIL import ImageOps

    if _is_deep_colour_png(path):
        import SimpleITK  # Pillow reduces 16-bit colour to 8

        with path.open("rb") as file:
            head = file.read(24)
        width, height = (int.from_bytes(head[k : k + 4], "big") for k in (16, 20))
        _refuse_size(8 * width * height, path)
        _refuse_promise(6 * width * height, path, MOST_DEFLATED)
        return np.asarray(SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(path)))), True
    with _unlimited(Pillow), Pillow.open(path) as opened:
        _refuse_size(opened.size[0] * opened.size[1] * 4, path)
        _refuse_promise(opened.size[0] * opened.size[1], path, 8 * MOST_DEFLATED)  # of one bit each
        picture = ImageOps.exif_transpose(opened)
        kept = ("1", "L", "LA", "RGB", "RGBA", "I;16", "I;16B", "I", "F", *(() if palette else ("P",)))
        if picture.mode not in kept:
            picture = picture.convert("RGB")
        data = np.asarray(picture)
    if data.dtype == np.int32 and data.size and data.min() >= 0 and data.max() < 2**16:
        data = data.astype(np.uint16)  # older Pillow gives 16-bit PNG as 32-bit integers
    return (data.astype(np.uint16) if data.dtype == ">u2" else data), data.ndim == 3


@contextlib.contextmanager
def _unlimited(pillow: Any) -> Iterator[None]:
    """Let Pillow open pictures of any size: it calls large ones an attack, and our own limit is in bytes."""
    before, pillow.MAX_IMAGE_PIXELS = pillow.MAX_IMAGE_PIXELS, None
    try:
        yield
    finally:
        pillow.MAX_IMAGE_PIXELS = before


def _is_deep_colour_png(path: Path) -> bool:
    """Return whether the PNG header states 16 bits a channel and more than one channel (PNG, 11.2.2)."""
    with path.open("rb") as file:
        head = file.read(26)
    return head[:8] == b"\x89PNG\r\n\x1a\n" and len(head) == 26 and head[24] == 16 and head[25] in (2, 4, 6)


def _load_tiff(path: Path, palette: bool) -> tuple[NDArray[Any], bool]:
    import tifffile

    with tifffile.TiffFile(path) as tiff:
        whole = [one for one in tiff.series if not getattr(one.keyframe, "is_reduced", False)] or tiff.series
        shapes = list(dict.fromkeys(p.shape for p in tiff.pages if not getattr(p, "is_reduced", False)))
        if len(whole) > 1 or len(shapes) > 1:
            sizes = ", ".join(" x ".join(map(str, shape)) for shape in shapes[:4])
            raise InputError(
                f"'{path.name}' holds pages of {max(len(whole), len(shapes))} kinds ({sizes}): save "
                "each as a file of its own"
            )
        series = whole[0]
        _refuse_size(int(np.prod(series.shape, dtype=np.int64)) * series.dtype.itemsize, path)
        pieces = sum(math.prod(page.chunked) for page in series.pages if isinstance(page, tifffile.TiffPage))
        if pieces > path.stat().st_size:  # each is decoded by itself, the missing ones, too
            raise InputError(f"'{path.name}' claims {pieces} strips or tiles, more than it has bytes")
        codes = {int(getattr(page, "compression", 1)) for page in series.pages if page is not None}
        if codes <= _RATIOS.keys():
            _refuse_promise(
                int(np.prod(series.shape, dtype=np.int64)) * series.keyframe.bitspersample // 8,
                path,
                max(_RATIOS[code] for code in codes),
            )
        data = np.asarray(series.asarray())
        _refuse_size(data.nbytes, path)  # a page may say one thing and hold another
        axes = series.axes
        inverted = int(getattr(series.keyframe, "photometric", 1)) == _WHITE_IS_ZERO
        bits = int(getattr(series.keyframe, "bitspersample", 8))
        photometric = int(getattr(series.keyframe, "photometric", 1))
        if photometric in _OTHER_COLOURS:
            raise InputError(f"'{path.name}' holds {_OTHER_COLOURS[photometric]}: save it as RGB")
        colours = series.keyframe.colormap if photometric == _PALETTE else None
        tag = series.keyframe.tags.get(274)
        orientation = int(tag.value) if tag is not None and int(tag.value) in range(1, 9) else 1
    if data.dtype.kind not in "biuf":
        raise InputError(
            f"'{path.name}' holds {data.dtype} values: save their magnitude, or what you need of them"
        )
    data = data.astype(data.dtype.newbyteorder("="), copy=False)
    if inverted:
        data = _black_is_zero(data, bits, path)
    if colours is not None and palette:
        data, axes = (colours >> 8).astype(np.uint8).T[data], axes + "S"
    data = _turned(data, orientation, axes)
    if "C" in axes and "S" not in axes and data.shape[axes.index("C")] not in (1, 3):
        raise InputError(
            f"'{path.name}' has {data.shape[axes.index('C')]} channels of a microscope: save each as a file of its "
            "own, and name them together in a data card (cases.image)"
        )
    for colour in ("S", "C"):  # samples of a pixel, wherever the file keeps them (planar RGB has them first)
        if colour in axes:
            return np.moveaxis(data, axes.index(colour), -1), True
    return data, False


def _turned(data: NDArray[Any], orientation: int, axes: str) -> NDArray[Any]:
    """Return a picture as its orientation tag says it is shown (TIFF 6.0, section 8)."""
    y, x = axes.index("Y"), axes.index("X")
    for axis in {2: (x,), 3: (y, x), 4: (y,), 6: (y,), 7: (y, x), 8: (x,)}.get(orientation, ()):
        data = np.flip(data, axis)
    return np.swapaxes(data, y, x) if orientation >= 5 else data


def _black_is_zero(data: NDArray[Any], bits: int, path: Path) -> NDArray[Any]:
    """Return values of a TIFF that counts from white with black at 0, as every viewer shows it."""
    if data.dtype == np.bool_:
        return ~data
    if data.dtype.kind != "u":
        raise InputError(f"'{path.name}' counts {data.dtype} from white to black: save it with black at 0")
    return np.asarray((2**bits - 1) - data, data.dtype)


def _refuse_promise(size: int, path: Path, packed: int) -> None:
    """Refuse a file that is too short for ``size`` of which a byte holds at most ``packed``: nothing is made for it."""
    if size > packed * path.stat().st_size:
        raise InputError(
            f"'{path.name}' claims more pixels than a file of its length can hold: it is cut off"
        )


def _refuse_size(size: int, path: Path) -> None:
    if size < 1:
        raise InputError(f"'{path.name}' holds no pixel")
    if size > max_bytes():
        raise InputError(f"'{path.name}' claims {size / 2**30:.3g} GiB of pixels: {raise_it()}")

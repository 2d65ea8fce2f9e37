"""PNG, JPEG, TIFF and BMP pictures in and out: 8 and 16 bits, grey, RGB, channels; distances are in pixels."""

from __future__ import annotations

import io
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clearmargin.core import Grid, Image, Source
from clearmargin.errors import InputError
from clearmargin.files import check_readable, whole
from clearmargin.formats.label_values import whole_labels
from clearmargin.formats.limits import MOST_DEFLATED, refuse_cut_off, refuse_size
from clearmargin.formats.quiet import hushed
from clearmargin.formats.tiff import Layout, load_tiff, unlimited
from clearmargin.privacy import case_of_file

_LOSSY = (".jpg", ".jpeg")
_GREY_ALPHA = 4

__all__ = ["read_label_raster", "read_raster", "write_label_raster", "write_raster"]


def read_raster(path: Path) -> Image:
    """Return a picture ``(C, Y, X)``, one grey channel or RGB, or the pages of a TIFF as ``(C, Z, Y, X)``.

    A microscope's TIFF (ImageJ, OME) has as many channels as it states. 16 bits are kept, an alpha
    channel is dropped, a palette is applied, and a photograph is turned as its EXIF orientation says, as every
    viewer shows it. The unit is px.

    Raises:
        InputError: Damaged, of an unknown layout, or larger than is read at once.
    """
    path = Path(path)
    pixels = _channels(*_load(path, labels=False), path)
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
    if path.suffix.lower() in _LOSSY:
        raise InputError(f"'{path.name}' is a JPEG, whose compression changes labels: use PNG or TIFF")
    channels = _channels(*_load(path, labels=True), path)
    if len(channels) > 1 and not (channels == channels[:1]).all():
        raise InputError(f"'{path.name}' is in colour: a label picture holds one value per pixel")
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


def _channels(data: NDArray[Any], layout: Layout, path: Path) -> NDArray[Any]:
    """Return ``(..., Y, X)``, or ``(..., Y, X, C)`` of colours or channels, as ``(C, ..., Y, X)`` without alpha."""
    if data.dtype == np.bool_:
        data = data.astype(np.uint8)
    deep = layout != "grey"
    if not 2 <= data.ndim - deep <= 3 or (layout == "colour" and data.shape[-1] > 4):
        raise InputError(f"'{path.name}' is of shape {data.shape}: not a picture or a stack of them")
    if layout == "grey":
        return data[None]
    if layout == "colour":
        data = data[..., :3] if data.shape[-1] >= 3 else data[..., :1]
    return np.ascontiguousarray(np.moveaxis(data, -1, 0))


def _load(path: Path, *, labels: bool) -> tuple[NDArray[Any], Layout]:
    """Return the values, and what their last axis is."""
    check_readable(path)
    try:
        with hushed("tifffile", "PIL"), warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"(PIL|tifffile)(\.|$)")
            return (
                load_tiff(path, labels=labels)
                if path.suffix.lower() in (".tif", ".tiff")
                else _load_pillow(path, labels=labels)
            )
    except (InputError, MemoryError):
        raise
    except Exception as error:  # noqa: BLE001 - Pillow and tifffile raise many types on damaged files
        raise InputError(
            f"'{path.name}' is not readable as a picture ({type(error).__name__}): it is damaged or cut off, or no "
            f"{path.suffix.lower() or 'picture'} file inside; copy it anew, or give PNG, JPEG or TIFF"
        ) from None


def _load_pillow(path: Path, *, labels: bool) -> tuple[NDArray[Any], Layout]:
    from PIL import Image as Pillow
    from PIL import ImageOps

    kind = _deep_png(path)
    if kind is not None:
        return _load_deep_png(path, kind), "colour"
    with unlimited(Pillow), Pillow.open(path) as opened:
        refuse_size(opened.size[0] * opened.size[1] * 4, path)
        refuse_cut_off(opened.size[0] * opened.size[1], path, 8 * MOST_DEFLATED)  # of one bit each
        picture = ImageOps.exif_transpose(opened)
        kept = ("1", "L", "LA", "RGB", "RGBA", "I;16", "I;16B", "I", "F", *(("P",) if labels else ()))
        if picture.mode not in kept:
            picture = picture.convert("RGB")
        data = np.asarray(picture)
    if data.dtype == np.int32 and data.size and data.min() >= 0 and data.max() < 2**16:
        data = data.astype(np.uint16)  # older Pillow gives 16-bit PNG as 32-bit integers
    data = data.astype(np.uint16) if data.dtype == ">u2" else data
    return data, "colour" if data.ndim == 3 else "grey"


def _deep_png(path: Path) -> int | None:
    """Return the colour type of a PNG of 16 bits and more than one channel; None for other files.

    Source: PNG specification, 11.2.2: 2 for RGB, 4 for grey with alpha, 6 for RGB with alpha.
    """
    with path.open("rb") as file:
        head = file.read(26)
    deep = head[:8] == b"\x89PNG\r\n\x1a\n" and len(head) == 26 and head[24] == 16
    return head[25] if deep and head[25] in (2, _GREY_ALPHA, 6) else None


def _load_deep_png(path: Path, colour_type: int) -> NDArray[Any]:
    """Return the 16-bit samples of a PNG, ``(Y, X, 2..4)``: Pillow reduces them to 8 bits."""
    with path.open("rb") as file:
        head = file.read(24)
    width, height = (int.from_bytes(head[k : k + 4], "big") for k in (16, 20))
    refuse_size(8 * width * height, path)
    samples = {2: 3, _GREY_ALPHA: 2, 6: 4}[colour_type]
    refuse_cut_off(2 * samples * width * height, path, MOST_DEFLATED)
    if colour_type != _GREY_ALPHA:
        import SimpleITK

        return np.asarray(SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(path))))
    import av
    from PIL import Image as Pillow

    with unlimited(Pillow), Pillow.open(path) as opened:
        opened.load()  # raises on a file that is cut off, of which the decoder below gives what there is
    with av.open(str(path), format="png_pipe") as container:
        frame = next(container.decode(video=0))
    if frame.format.name != "ya16be" or (frame.width, frame.height) != (width, height):
        raise InputError(f"'{path.name}' is a PNG whose pixels are not what its header states")
    rows = np.frombuffer(bytes(frame.planes[0]), ">u2").reshape(height, -1)
    return rows[:, : samples * width].reshape(height, width, samples).astype(np.uint16)

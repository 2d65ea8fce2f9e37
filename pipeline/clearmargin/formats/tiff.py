"""The pages of a TIFF, by tifffile; by Pillow (libtiff) if tifffile alone does not decode them."""

from __future__ import annotations

import contextlib
import math
import shutil
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from clearmargin.errors import InputError
from clearmargin.formats.limits import MOST_DEFLATED, max_bytes, raise_it, refuse_cut_off, refuse_size

__all__ = ["Layout", "load_tiff", "unlimited"]

Layout = Literal["grey", "colour", "channels"]
"""What the last axis of a picture's array is: x, the samples of a colour (perhaps with alpha), or channels."""

_WHITE_IS_ZERO, _PALETTE, _YCBCR = 0, 3, 6
_PLANAR = 2
_OTHER_COLOURS = {5: "inks (CMYK)", 8: "CIELAB colours", 9: "ICCLAB colours", 10: "ITULAB colours"}
_DEFLATED = {8, 32946}
_JPEG = {6, 7}
_LOSSY = {6: "JPEG", 7: "JPEG", 50001: "WebP"}
# What tifffile decodes without further packages: none, deflate (twice), PackBits.
_BY_TIFFFILE = {1, *_DEFLATED, 32773}
# What libtiff decodes: CCITT (three kinds), LZW, JPEG (twice), LZMA, Zstandard, WebP.
_BY_LIBTIFF = {2, 3, 4, 5, *_JPEG, 34925, 50000, 50001}
# Bytes that a byte can become, by TIFF's compression: none, LZW, JPEG, deflate (twice), PackBits.
_RATIOS = {1: 1, 5: 2730, 7: 512, 8: MOST_DEFLATED, 32946: MOST_DEFLATED, 32773: 64}
_FLOAT_PREDICTOR = 3
_FEW_PAGES = 100  # up to which libtiff may look for each page from the first on
_SPREAD = {2: 85, 4: 17}  # by which Pillow multiplies grey of so few bits


def load_tiff(path: Path, *, labels: bool) -> tuple[NDArray[Any], Layout]:
    """Return a TIFF's values, pages first, and what their last axis is; turned as the file says it is shown.

    Args:
        path: The file.
        labels: Whether to give a palette's indices, and to refuse a compression that changes values; else a palette
            is applied.

    Raises:
        InputError: Pages of several kinds, colours that are not RGB, complex values, a compression or layout that
            is not decoded, or more than is read at once.
    """
    import tifffile

    with tifffile.TiffFile(path) as tiff:
        series = _only_series(tiff, path)
        page = series.keyframe
        codes = {int(getattr(one, "compression", 1)) for one in series.pages if one is not None}
        _refuse_claims(series, codes, path)
        photometric = int(getattr(page, "photometric", 1))
        _refuse_colours(photometric, codes, path)
        lossy = [_LOSSY[code] for code in codes if code in _LOSSY]
        if labels and lossy:
            raise InputError(
                f"'{path.name}' is compressed as {lossy[0]}, which changes labels: use LZW, deflate or PNG"
            )
        axes = series.axes
        if _is_for_tifffile(page, codes):
            _refuse_bombs(series, codes, path)
            data = np.asarray(series.asarray())
            refuse_size(data.nbytes, path)  # a page may say one thing and hold another
            data = _black_is_zero(data, page, photometric, path)
            data = _turned(data, page, axes)
        else:
            data = _by_libtiff(series, codes, path)
            if data.dtype.itemsize > 1:  # Pillow has turned fewer bits
                data = _black_is_zero(data, page, photometric, path)
        colours = page.colormap if photometric == _PALETTE else None
    if data.dtype.kind not in "biuf":
        raise InputError(
            f"'{path.name}' holds {data.dtype} values: save their magnitude, or what you need of them"
        )
    data = data.astype(data.dtype.newbyteorder("="), copy=False)
    if colours is not None and not labels:
        data, axes = (colours >> 8).astype(np.uint8).T[data], axes + "S"
    if "S" in axes:  # samples of a pixel, wherever the file keeps them (planar RGB has them first)
        return np.moveaxis(data, axes.index("S"), -1), "colour"
    if "C" in axes:
        return np.moveaxis(data, axes.index("C"), -1), "channels"
    return data, "grey"


@contextlib.contextmanager
def unlimited(pillow: Any) -> Iterator[None]:
    """Let Pillow open pictures of any size: it calls large ones an attack, and our own limit is in bytes."""
    before, pillow.MAX_IMAGE_PIXELS = pillow.MAX_IMAGE_PIXELS, None
    try:
        yield
    finally:
        pillow.MAX_IMAGE_PIXELS = before


def _only_series(tiff: Any, path: Path) -> Any:
    """Return the pages that make up the picture or the stack; thumbnails are left out."""
    whole = [one for one in tiff.series if not getattr(one.keyframe, "is_reduced", False)] or tiff.series
    if (
        len(tiff.series) == 1 and whole[0].kind == "uniform"
    ):  # then tifffile has compared all pages with the first
        return whole[0]
    shapes = list(dict.fromkeys(p.shape for p in tiff.pages if not getattr(p, "is_reduced", False)))
    if len(whole) > 1 or len(shapes) > 1:
        sizes = ", ".join(" x ".join(map(str, shape)) for shape in shapes[:4])
        raise InputError(
            f"'{path.name}' holds pages of {max(len(whole), len(shapes))} kinds ({sizes}): save "
            "each as a file of its own"
        )
    return whole[0]


def _refuse_claims(series: Any, codes: set[int], path: Path) -> None:
    """Refuse what is larger than the limit, or than the file can hold."""
    values = int(np.prod(series.shape, dtype=np.int64))
    refuse_size(values * series.dtype.itemsize, path)
    pieces = sum(math.prod(page.chunked) for page in series.pages if hasattr(page, "chunked"))
    if pieces > path.stat().st_size:  # each is decoded by itself, the missing ones, too
        raise InputError(f"'{path.name}' claims {pieces} strips or tiles, more than it has bytes")
    if codes <= _RATIOS.keys():
        bits = series.keyframe.bitspersample
        refuse_cut_off(values * bits // 8, path, max(_RATIOS[code] for code in codes))


def _refuse_colours(photometric: int, codes: set[int], path: Path) -> None:
    if photometric in _OTHER_COLOURS:
        raise InputError(f"'{path.name}' holds {_OTHER_COLOURS[photometric]}: save it as RGB")
    if photometric == _YCBCR and not codes <= _JPEG:
        raise InputError(f"'{path.name}' holds YCbCr colours outside a JPEG: save it as RGB")


def _is_for_tifffile(page: Any, codes: set[int]) -> bool:
    bits = int(getattr(page, "bitspersample", 8))
    predictor = int(getattr(page, "predictor", 1))
    return codes <= _BY_TIFFFILE and bits % 8 * (bits != 1) == 0 and predictor != _FLOAT_PREDICTOR


def _refuse_bombs(series: Any, codes: set[int], path: Path) -> None:
    """Refuse a deflated strip or tile that becomes more than the limit: tifffile inflates it whole."""
    if not codes & _DEFLATED:
        return
    most = max_bytes()
    for page in series.pages:
        if page is None:
            continue
        file = page.parent.filehandle
        for offset, count in zip(page.dataoffsets, page.databytecounts, strict=True):
            if count * MOST_DEFLATED <= most:
                continue
            file.seek(offset)
            inflater, left = zlib.decompressobj(), most + 1
            packed = file.read(count)
            while packed and left > 0 and not inflater.eof:
                left -= len(inflater.decompress(packed, min(left, 2**24)))
                packed = inflater.unconsumed_tail
            if left <= 0:
                raise InputError(f"'{path.name}' holds a strip or tile that is {raise_it()}")


def _by_libtiff(series: Any, codes: set[int], path: Path) -> NDArray[Any]:
    """Return the values of pages of one kind as Pillow reads them, in the type and shape that the file states.

    Raises:
        InputError: A compression or a layout that is not decoded without loss.
    """
    from PIL import Image as Pillow
    from PIL import UnidentifiedImageError

    page = series.keyframe
    unread = InputError(
        f"'{path.name}' is compressed as {_names(codes)} with {page.samplesperpixel} x {page.bitspersample} bits a "
        "pixel, which is not decoded here: save it with deflate, or uncompressed"
    )
    if not codes <= _BY_LIBTIFF | _BY_TIFFFILE:
        raise unread
    pages = []
    try:
        with unlimited(Pillow), _each_first(series, path) as files:
            for file, index in files:
                with Pillow.open(file) as opened:
                    opened.seek(index)
                    pages.append(_values(opened, page))
    except (UnidentifiedImageError, KeyError, SyntaxError):
        raise unread from None
    exact = {p.dtype for p in pages} == {pages[0].dtype} and np.can_cast(page.dtype, pages[0].dtype)
    if not exact:
        raise unread
    data = np.stack(pages).astype(page.dtype)
    if page.samplesperpixel > 1 and page.planarconfig == _PLANAR:
        data = np.moveaxis(data, -1, 1)
    # of a turned picture height and width have changed places
    return data.reshape(*series.shape[: len(series.shape) - pages[0].ndim], *data.shape[1:])


@contextlib.contextmanager
def _each_first(series: Any, path: Path) -> Iterator[Iterator[tuple[Any, int]]]:
    """Give a file for each page, and the page's position in it.

    For each page libtiff walks through those before it, which takes minutes for 20,000. So the header of a copy says
    of each page that it is the first.
    """
    if len(series.pages) <= _FEW_PAGES:
        yield ((path, one.index) for one in series.pages)
        return
    tiff = series.keyframe.parent.tiff
    with TemporaryFile(buffering=0) as copy:
        with path.open("rb") as file:
            shutil.copyfileobj(file, copy)

        def files() -> Iterator[tuple[Any, int]]:
            for one in series.pages:
                copy.seek(8 if tiff.is_bigtiff else 4)
                copy.write(struct.pack(tiff.offsetformat, one.offset))
                copy.seek(0)
                yield copy, 0

        yield files()


def _values(opened: Any, page: Any) -> NDArray[Any]:
    """Return a page of a file that Pillow has opened, black at 0, with as many samples as it states."""
    data = np.asarray(opened)
    if opened.mode == "L" and page.bitspersample in _SPREAD and page.samplesperpixel == 1:
        data = data // np.uint8(_SPREAD[page.bitspersample])
    if data.ndim == 3:
        data = data[..., : page.samplesperpixel]
    return data


def _names(codes: set[int]) -> str:
    import tifffile

    known = {int(code): code.name for code in tifffile.COMPRESSION}
    return ", ".join(known.get(code, f"compression {code}") for code in sorted(codes))


def _turned(data: NDArray[Any], page: Any, axes: str) -> NDArray[Any]:
    """Return a picture as its orientation tag says it is shown (TIFF 6.0, section 8)."""
    tag = page.tags.get(274)
    orientation = int(tag.value) if tag is not None and int(tag.value) in range(1, 9) else 1
    y, x = axes.index("Y"), axes.index("X")
    for axis in {2: (x,), 3: (y, x), 4: (y,), 6: (y,), 7: (y, x), 8: (x,)}.get(orientation, ()):
        data = np.flip(data, axis)
    return np.swapaxes(data, y, x) if orientation >= 5 else data


def _black_is_zero(data: NDArray[Any], page: Any, photometric: int, path: Path) -> NDArray[Any]:
    """Return values of a TIFF that counts from white with black at 0, as every viewer shows it."""
    if photometric != _WHITE_IS_ZERO:
        return data
    if data.dtype == np.bool_:
        return ~data
    if data.dtype.kind != "u":
        raise InputError(f"'{path.name}' counts {data.dtype} from white to black: save it with black at 0")
    return np.asarray((2 ** int(page.bitspersample) - 1) - data, data.dtype)

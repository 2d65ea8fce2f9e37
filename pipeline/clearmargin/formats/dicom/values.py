"""From stored values to real ones: rescale, look-up tables, palettes; 16 bits kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from clearmargin.errors import InputError
from clearmargin.formats.dicom.boundary import items_of, modality_of, quiet_pydicom
from clearmargin.formats.dicom.headers import Elements
from clearmargin.formats.dicom.pixels import PixelLayout

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

_QUANTITIES = {"CT", "MR", "PT", "NM"}

__all__ = ["FrameScale", "brighter_up", "frame_scales", "rescaled_dtype", "to_channels", "to_units"]


@dataclass(frozen=True, kw_only=True)
class FrameScale:
    """How stored values of one frame become real ones (PS3.3, C.7.6.16.2.9 and C.11.1)."""

    slope: float = 1.0
    intercept: float = 0.0

    @property
    def is_identity(self) -> bool:
        """Whether stored values are the values."""
        return self.slope == 1.0 and self.intercept == 0.0


def frame_scales(header: Elements, frames: int) -> list[FrameScale]:
    """Return the rescale of every frame: from the functional groups of an enhanced object, else from its
    head.

    Raises:
        InputError: A slope of zero, or values that are not finite numbers.
    """
    shared = _first(header, "SharedFunctionalGroupsSequence")
    each = items_of(header, "PerFrameFunctionalGroupsSequence")
    scales = []
    for k in range(frames):
        item = _first(each[k], "PixelValueTransformationSequence") if k < len(each) else None
        item = item or _first(shared, "PixelValueTransformationSequence")
        scales.append(_scale(item if item is not None else header))
    return scales


def _first(item: Elements | None, keyword: str) -> Dataset | None:
    items = items_of(item, keyword)
    return items[0] if items else None


def _scale(item: Elements) -> FrameScale:
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
        stored: Dtype of the stored values, kept if nothing is rescaled.
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
    stored: NDArray[np.generic], header: Elements, scale: FrameScale, dtype: np.dtype[Any]
) -> NDArray[Any]:
    """Return the real values of one grey frame in ``dtype``.

    A modality look-up table is applied if there is one.
    """
    if header.get("ModalityLUTSequence"):
        from pydicom.pixels.processing import apply_modality_lut

        with quiet_pydicom():
            # A header that holds a sequence was parsed whole.
            return np.asarray(apply_modality_lut(stored, cast("Dataset", header)))
    if not scale.is_identity:
        wide = np.float64 if dtype.kind == "f" else np.int64
        with np.errstate(over="ignore"):  # an overflow is told apart below
            values = (stored.astype(wide) * wide(scale.slope) + wide(scale.intercept)).astype(dtype)
        if not np.isfinite(values).all():
            raise InputError("the rescaled values are too large for 32-bit floats: the rescale is damaged")
        return values
    return stored.astype(dtype, copy=False)


def brighter_up(stored: NDArray[Any], header: Elements, layout: PixelLayout) -> NDArray[Any]:
    """Return the stored values of one frame such that larger is brighter: MONOCHROME1 is turned over.

    That holds for mere grey levels. Quantities (Hounsfield units, counts, a signal) stay what they are, however they
    are displayed, and so do values that go through a modality look-up table.
    """
    if layout.photometric != "MONOCHROME1" or header.get("ModalityLUTSequence") or _is_quantity(header):
        return stored
    top = -1 if layout.signed else 2**layout.stored - 1
    return (top - stored.astype(np.int64)).astype(stored.dtype)


def _is_quantity(header: Elements) -> bool:
    """Return whether values measure something, whatever their rescale: Hounsfield units, counts, a signal."""
    named = str(header.get("RescaleType") or "").strip().upper() not in ("", "US")
    return named or modality_of(header) in _QUANTITIES


def to_channels(stored: NDArray[np.generic], header: Dataset, layout: PixelLayout) -> NDArray[Any]:
    """Return a frame as ``(C, Y, X)``: one grey channel, or RGB from colour or a palette."""
    if layout.photometric == "PALETTE COLOR":
        from pydicom.pixels.processing import apply_color_lut

        try:
            with quiet_pydicom():
                stored = np.asarray(apply_color_lut(stored, header))[..., :3]
        except Exception:  # noqa: BLE001 - malformed tables raise many types
            raise InputError(
                "the palette cannot be applied: its tables are missing, or not of the length they state"
            ) from None
    if stored.ndim == 2:
        return stored[None]
    return np.ascontiguousarray(np.moveaxis(stored, -1, 0))

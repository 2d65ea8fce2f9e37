"""Overlap near the edge: boundary IoU and trimap IoU, with a band in the grid's unit.

The band of a mask holds its elements whose centre lies within ``band`` of the centre of an element that the
mask does not hold; what is outside the image is not held. Its width along an axis is ``band`` divided by the
spacing, rounded down, and a band below the smallest spacing would hold nothing: that is refused.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from clearmargin.core import Grid, Mask
from clearmargin.core.slack import with_slack
from clearmargin.errors import ConfigError
from clearmargin.metrics.pair import MaskPair

__all__ = [
    "boundary_iou",
    "boundary_iou_published",
    "boundary_mask",
    "check_band",
    "published_band_px",
    "trimap_iou",
]


def boundary_iou(pair: MaskPair, band: float) -> float:
    """Return the IoU of the two masks' inner bands of width ``band``, in the grid's unit.

    Both empty: 1. One empty: 0. Where both bands lie in an ignored region: 1.

    Raises:
        ConfigError: The band is below the smallest spacing.

    Source: Cheng et al., "Boundary IoU", CVPR 2021, with Euclidean distance in millimetres where the paper
    has 3 x 3 erosions in pixels (`boundary_iou_published`).
    """
    check_band(pair.grid, band)
    if pair.either_empty:
        return float(pair.status == "tn")
    return _iou(
        pair, _inner_band(pair.predicted, pair.spacing, band), _inner_band(pair.reference, pair.spacing, band)
    )


def boundary_iou_published(pair: MaskPair, ratio: float = 0.02) -> float:
    """Return boundary IoU as published: a band of ``ratio`` of the image's diagonal, in pixels, by 3 x 3 erosions.

    Defined for images. An object thinner than twice the band is all band, and its value is its IoU.
    Both empty: 1. One empty: 0.

    Raises:
        ConfigError: The grid is a volume.

    Source: Cheng et al., "Boundary IoU", CVPR 2021, and its published code.
    """
    check_band(pair.grid, None)
    if pair.either_empty:
        return float(pair.status == "tn")
    from clearmargin.metrics.bands import square_band

    width = published_band_px(pair.grid.shape, ratio)
    return _iou(pair, square_band(pair.predicted, width), square_band(pair.reference, width))


def published_band_px(shape: tuple[int, ...], ratio: float = 0.02) -> int:
    """Return the published band's width in pixels: ``ratio`` of the diagonal, rounded, at least 1.

    >>> published_band_px((1080, 1920))
    44
    """
    return max(1, round(ratio * math.hypot(*shape)))


def trimap_iou(pair: MaskPair, band: float) -> float:
    """Return the IoU of the masks within ``band`` of the reference's edge, on both sides of it.

    The trimap holds the elements whose centre lies within ``band`` of the centre of an element on the other
    side of the reference's edge. Both empty: 1. One empty: 0 (for a false positive there is no edge: 0).

    Raises:
        ConfigError: The band is below the smallest spacing.

    Source: Kohli et al., IJCV 2009, restricted to one object and measured in the grid's unit.
    """
    check_band(pair.grid, band)
    if pair.either_empty:
        return float(pair.status == "tn")
    margin = [int(with_slack(band) / s) + 1 for s in pair.spacing]
    wide = [np.pad(mask, [(m, m) for m in margin]) for mask in (pair.predicted, pair.reference)]
    trimap = _inner_band(wide[1], pair.spacing, band) | _inner_band(~wide[1], pair.spacing, band, edge=False)
    inside = tuple(slice(m, -m) for m in margin)  # nothing of either mask lies in the margin
    trimap = trimap[inside]
    return _iou(pair, pair.predicted & trimap, pair.reference & trimap)


def check_band(grid: Grid, band: float | None) -> None:
    """Raise ConfigError for a band that would hold nothing, or the published one (None) on a volume."""
    if band is None:
        if grid.ndim != 2:
            raise ConfigError(
                f"the published boundary IoU is defined for images, not for {grid}: "
                f"give a band in {grid.unit}"
            )
    elif not with_slack(band) >= min(grid.spacing):
        raise ConfigError(
            f"a band of {band:g} {grid.unit} is thinner than one element of {grid}: take a wider one"
        )


def _inner_band(
    mask: NDArray[np.bool_], spacing: tuple[float, ...], band: float, *, edge: bool = True
) -> NDArray[np.bool_]:
    from clearmargin.metrics.bands import round_band

    return round_band(mask, spacing, band, edge=edge)


def _iou(pair: MaskPair, predicted: NDArray[np.bool_], reference: NDArray[np.bool_]) -> float:
    both, either = predicted & reference, predicted | reference
    if pair.ignored is not None:
        both, either = both & ~pair.ignored, either & ~pair.ignored
    union = np.count_nonzero(either)
    return int(np.count_nonzero(both)) / int(union) if union else 1.0


def boundary_mask(mask: Mask, grid: Grid, band: float | None) -> Mask:
    """Return the inner band of ``mask`` as a mask; ``band`` None for the published width in pixels.

    Raises:
        ConfigError: The band is below the smallest spacing, or the published one is asked of a volume.
    """
    from clearmargin.metrics.bands import round_band, square_band

    check_band(grid, band)
    if band is None:
        crop = square_band(mask.crop, published_band_px(grid.shape))
    else:
        crop = round_band(mask.crop, grid.spacing, band)
    # The crop stays tight: an element on each side of the box is always next to what the mask does not hold.
    return Mask(shape=mask.shape, origin=mask.origin, crop=crop)

"""From a network's pixels back to the source's grid: as probabilities, thresholded once."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from clearmargin.core import Mask

__all__ = ["Crop", "place", "place_slice", "place_view", "place_volume", "threshold"]

Crop = tuple[NDArray[np.float32], tuple[int, ...]]
"""Probabilities on a part of the source's grid, and the index of the first; 0 elsewhere."""


def place(mask: Tensor, region: Tensor, matrix: NDArray[np.float64], shape: tuple[int, ...]) -> Crop:
    """Return one probability mask on the source's grid.

    Args:
        mask: ``(h, w)`` probabilities that span ``region`` edge to edge; in space ``(d, h, w)``.
        region: ``(4,)`` ``x1 y1 x2 y2`` in network pixels; pixel k covers [k, k + 1). ``(6,)`` in space,
            ``x1 y1 z1 x2 y2 z2``.
        matrix: ``(3, 3)``, from network indices ``(y, x, 1)`` to source indices, pixel centres at whole numbers; in
            space ``(4, 4)``. It scales, mirrors and moves; a view is never turned.
        shape: ``(Y, X)`` or ``(Z, Y, X)`` of the source.

    Returns:
        A float32 crop of the source's grid and its origin; the crop is empty if nothing falls on the grid.
        Values between the mask's samples are bilinear; beyond its edges it falls to 0 within one sample.

    Raises:
        ValueError: The matrix turns.
    """
    axes = mask.ndim
    turning = matrix[:axes, :axes]
    if (turning != np.diag(np.diag(turning))).any():
        raise ValueError(f"a view scales and mirrors, it does not turn: {matrix.tolist()}")
    corners = [float(v) for v in region]
    taps = [
        _taps(
            mask.shape[axis],
            corners[axes - 1 - axis],
            corners[2 * axes - 1 - axis],
            matrix[axis, axis],
            matrix[axis, axes],
            shape[axis],
        )
        for axis in range(axes)
    ]
    within = [one for one in taps if one is not None]
    if len(within) < axes:
        return np.zeros((0,) * axes, np.float32), (0,) * axes
    return _interpolated(mask.detach().cpu().float().numpy(), within), tuple(one.low for one in within)


@dataclass(frozen=True, kw_only=True)
class _Taps:
    """Where the pixels ``low``, ``low + 1``, ... lie between the samples of a padded mask, along one axis."""

    low: int
    before: NDArray[np.int64]
    share: NDArray[np.float32]  # of the sample after


def _taps(count: int, start: float, stop: float, step: float, offset: float, extent: int) -> _Taps | None:
    if count == 0 or stop <= start:
        return None
    size = (stop - start) / count
    # One sample beyond each edge is where the padded mask reaches 0.
    ends = sorted(step * (edge - 0.5) + offset for edge in (start - size, stop + size))
    low, high = max(math.floor(ends[0]), 0), min(math.ceil(ends[1]) + 1, extent)
    if high <= low:
        return None
    # float64 up to here: a float32 coordinate is off by 0.0002 at 4000.
    network = (np.arange(low, high, dtype=np.float64) - offset) / step
    # Sample k of the padded mask lies at k - 0.5 steps from the region's edge.
    sample = np.minimum(np.maximum((network + (0.5 - start)) / size + 0.5, 0), count + 1)
    before = np.minimum(sample.astype(np.int64), count)
    return _Taps(low=low, before=before, share=(sample - before).astype(np.float32))


def _interpolated(
    samples: NDArray[np.float32], taps: Sequence[_Taps], *, beyond: Literal["constant", "edge"] = "constant"
) -> NDArray[np.float32]:
    """Return ``samples`` between their elements, padded with 0 or as they are there; a row of taps for each axis."""
    values = np.pad(samples, 1, mode=beyond)
    # Multilinear is linear along one axis after the other: no grid of coordinates is made.
    for axis in reversed(range(values.ndim)):
        turned = np.ascontiguousarray(values.swapaxes(axis, 0))
        values = _between(turned, taps[axis]).swapaxes(0, axis)
    return np.ascontiguousarray(values)


def _between(values: NDArray[np.float32], taps: _Taps) -> NDArray[np.float32]:
    """Return ``values`` interpolated along their first axis."""
    placed = values[taps.before]
    change = values[taps.before + 1]
    change -= placed
    change *= taps.share.reshape(-1, *(1,) * (values.ndim - 1))
    placed += change
    return placed


def threshold(crop: NDArray[np.float32], origin: tuple[int, ...], shape: tuple[int, ...]) -> Mask:
    """Return the mask of the elements with a probability of at least one half."""
    return Mask.from_crop(crop >= 0.5, origin, shape)


def place_view(
    probabilities: Tensor, extent: tuple[int, ...], matrix: NDArray[np.float64], shape: tuple[int, ...]
) -> NDArray[np.float32]:
    """Return what a network says of each of a view's pixels on the source's grid, ``(K, *shape)``.

    Args:
        probabilities: ``(K, h, w)``, in space ``(K, d, h, w)``; they span the view edge to edge.
        extent: ``(Y, X)`` or ``(Z, Y, X)`` of the view, in network pixels.
        matrix: As of ``place``.
        shape: Extents of the source; the view shows all of it.

    Returns:
        float32, bilinear; towards the view's edges values stay as they are at the outermost samples.
    """
    placed = np.zeros((len(probabilities), *shape), np.float32)
    axes = len(shape)
    taps = [
        _taps(int(count), 0.0, extent[axis], matrix[axis, axis], matrix[axis, axes], shape[axis])
        for axis, count in enumerate(probabilities.shape[1:])
    ]
    within = [one for one in taps if one is not None]
    if len(within) == len(taps):
        here = tuple(slice(one.low, one.low + len(one.before)) for one in within)
        for values, one in zip(placed, probabilities.detach().cpu().float().numpy(), strict=True):
            values[here] = _interpolated(one, within, beyond="edge")
    return placed


def place_volume(
    probabilities: NDArray[np.float32],
    origin: tuple[int, ...],
    matrix: NDArray[np.float64],
    shape: tuple[int, ...],
) -> tuple[NDArray[np.float32], tuple[int, int, int]]:
    """Return one crop of a network's volume on the source's grid, trilinear.

    Args:
        probabilities: ``(d, h, w)``, a sample for each network voxel.
        origin: Network index of its first sample.
        matrix: ``(4, 4)``, from network indices to source indices; it scales, mirrors and moves (``volume_view``).
        shape: ``(Z, Y, X)`` of the source.

    Returns:
        A float32 crop of the source's grid and its origin; empty if nothing falls on the grid. Beyond the
        crop's outer samples it falls to 0 within one sample.
    """
    taps = [
        _taps(count, first, first + count, matrix[axis, axis], matrix[axis, 3], shape[axis])
        for axis, (first, count) in enumerate(zip(origin, probabilities.shape, strict=True))
    ]
    within = [one for one in taps if one is not None]
    if len(within) < len(taps):
        return np.zeros((0, 0, 0), np.float32), (0, 0, 0)
    z, y, x = within
    return _interpolated(probabilities, within), (z.low, y.low, x.low)


def place_slice(
    probabilities: NDArray[np.float32], z: int, matrix: NDArray[np.float64], shape: tuple[int, ...]
) -> NDArray[np.float32]:
    """Return slice ``z`` of what ``place_volume`` makes of a network's whole volume, ``(Y, X)``.

    All 0 where the network's volume does not reach.
    """
    low = max(math.floor((z - matrix[0, 3]) / matrix[0, 0]), 0)
    around = probabilities[low : low + 2]  # no other slice has a share in it
    moved = matrix.copy()
    moved[0, 3] -= z
    placed = np.zeros(shape[1:], np.float32)
    crop, (_, y, x) = place_volume(around, (low, 0, 0), moved, (1, *shape[1:]))
    if crop.size:
        placed[y : y + crop.shape[1], x : x + crop.shape[2]] = crop[0]
    return placed

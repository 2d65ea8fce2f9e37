"""The one spatial step between an image's grid and the network's: a single MONAI resampling by a matrix."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from monai.transforms import Affined
from numpy.typing import NDArray

from clearmargin.transforms.samples import KEYS, MODES

__all__ = ["augmentation_matrix", "fitting_view", "resample"]


def resample(
    sample: Mapping[str, Any],
    matrix: NDArray[np.float64],
    size: tuple[int, int],
    keys: tuple[str, ...] = KEYS,
) -> dict[str, Any]:
    """Return the sample on another 2-D grid.

    Args:
        sample: Holds ``keys``: ``image`` is resampled bilinearly, ``layers`` by nearest neighbour.
        matrix: ``(3, 3)``, from indices ``(y, x, 1)`` of the result to indices of the sample.
        size: ``(Y, X)`` of the result; what lies outside the sample is 0.
        keys: Which entries to move.
    """
    shape = sample[keys[0]].shape[1:]
    # MONAI applies a matrix between indices counted from each array's centre.
    from_centre, to_centre = np.eye(3), np.eye(3)
    from_centre[:2, 2] = [(n - 1) / 2 for n in size]
    to_centre[:2, 2] = [-(n - 1) / 2 for n in shape]
    move = Affined(
        keys,
        affine=to_centre @ matrix @ from_centre,
        spatial_size=size,
        mode=[MODES[KEYS.index(k)] for k in keys],
        padding_mode="zeros",
        align_corners=False,
    )
    moved: dict[str, Any] = move(dict(sample))
    return moved


def fitting_view(
    shape: tuple[int, int], scale: float, *, divisor: int = 32, flip: tuple[bool, bool] = (False, False)
) -> tuple[NDArray[np.float64], tuple[int, int]]:
    """Return the matrix and size that show a whole image to a network.

    Args:
        shape: ``(Y, X)`` of the image.
        scale: Network pixels per image pixel.
        divisor: Both extents of the view are multiples of it; the surplus lies beyond the far edges.
        flip: Whether to mirror ``y`` and ``x``.
    """
    matrix = np.eye(3)
    size = []
    for axis, (extent, mirrored) in enumerate(zip(shape, flip, strict=True)):
        size.append(max(1, math.ceil(round(extent * scale, 6) / divisor)) * divisor)
        step = 1 / scale
        # Pixel k covers [k, k + 1): the image's near edge is the view's near edge.
        matrix[axis, axis] = -step if mirrored else step
        matrix[axis, 2] = extent - 0.5 - step / 2 if mirrored else step / 2 - 0.5
    return matrix, (size[0], size[1])


def augmentation_matrix(
    *,
    centre: tuple[float, float],
    size: tuple[int, int],
    scale: float,
    degrees: float,
    flip: tuple[bool, bool],
) -> NDArray[np.float64]:
    """Return the matrix that shows a turned, scaled, mirrored window around ``centre`` of an image.

    Args:
        centre: Index ``(y, x)`` of the image that the middle of the result shows.
        size: ``(Y, X)`` of the result.
        scale: Network pixels per image pixel.
        degrees: Rotation in the plane.
        flip: Whether to mirror ``y`` and ``x``.
    """
    angle = math.radians(degrees)
    turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    linear = turn @ np.diag([-1.0 if f else 1.0 for f in flip]) / scale
    matrix = np.eye(3)
    matrix[:2, :2] = linear
    matrix[:2, 2] = np.array(centre) - linear @ [(n - 1) / 2 for n in size]
    return matrix

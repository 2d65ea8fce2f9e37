"""The one spatial step between an image's grid and the network's: a single MONAI resampling by a matrix."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from monai.transforms import Affined
from numpy.typing import NDArray

from clearmargin.errors import InputError
from clearmargin.formats.limits import max_bytes, raise_it
from clearmargin.transforms.samples import KEYS, MODES

__all__ = ["augmentation_matrix", "fitting_view", "resample", "volume_augmentation", "volume_view"]


def resample(
    sample: Mapping[str, Any],
    matrix: NDArray[np.float64],
    size: tuple[int, ...],
    keys: tuple[str, ...] = KEYS,
) -> dict[str, Any]:
    """Return the sample on another grid of as many axes; as it is, if that is its own.

    Args:
        sample: Holds ``keys``: ``image`` is resampled linearly, ``layers`` by nearest neighbour.
        matrix: ``(3, 3)``, from indices ``(y, x, 1)`` of the result to indices of the sample; ``(4, 4)`` in space.
        size: ``(Y, X)`` or ``(Z, Y, X)`` of the result; what lies outside the sample is 0.
        keys: Which entries to move.
    """
    shape = sample[keys[0]].shape[1:]
    if tuple(size) == tuple(shape) and np.array_equal(matrix, np.eye(len(matrix))):
        return dict(sample)
    # MONAI applies a matrix between indices counted from each array's centre.
    from_centre, to_centre = np.eye(len(matrix)), np.eye(len(matrix))
    from_centre[:-1, -1] = [(n - 1) / 2 for n in size]
    to_centre[:-1, -1] = [-(n - 1) / 2 for n in shape]
    affine = to_centre @ matrix @ from_centre
    # It takes an axis of one element for one of two, and so halves the way along it.
    affine[:-1][np.array(shape) == 1] *= 2
    move = Affined(
        keys,
        affine=affine,
        spatial_size=size,
        mode=[MODES[KEYS.index(k)] for k in keys],
        padding_mode="zeros",
        align_corners=False,
    )
    moved: dict[str, Any] = move(dict(sample))
    return moved


def _refuse_enlargement(shape: tuple[int, ...], scales: tuple[float, ...]) -> None:
    enlarged = 4 * math.prod(n * s for n, s in zip(shape, scales, strict=True))  # bytes, as float32
    if max(scales) > 1 and enlarged > max_bytes():
        raise InputError(
            f"the model wants the image enlarged by {' x '.join(f'{s:.3g}' for s in scales)}, to "
            f"{enlarged / 2**30:.3g} GiB: {raise_it()}"
        )


def fitting_view(
    shape: tuple[int, int], scale: float, *, divisor: int = 32, flip: tuple[bool, bool] = (False, False)
) -> tuple[NDArray[np.float64], tuple[int, int]]:
    """Return the matrix and size that show a whole image to a network.

    Args:
        shape: ``(Y, X)`` of the image.
        scale: Network pixels per image pixel.
        divisor: Both extents of the view are multiples of it; the surplus lies beyond the far edges.
        flip: Whether to mirror ``y`` and ``x``.

    Raises:
        InputError: The image would be enlarged beyond the limit of pixels.
    """
    _refuse_enlargement(shape, (scale, scale))
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


def volume_view(
    shape: tuple[int, ...],
    scales: tuple[float, float, float],
    *,
    flip: tuple[bool, bool] = (False, False),
) -> tuple[NDArray[np.float64], tuple[int, int, int]]:
    """Return the matrix and size that show a whole volume to a network of volumes.

    Args:
        shape: ``(Z, Y, X)`` of the volume.
        scales: Network voxels per voxel of the volume, on each axis.
        flip: Whether to mirror ``y`` and ``x``; slices keep their order.

    Raises:
        InputError: The volume would be enlarged beyond the limit of pixels.
    """
    _refuse_enlargement(shape, scales)
    matrix = np.eye(4)
    for axis, (extent, scale, mirrored) in enumerate(zip(shape, scales, (False, *flip), strict=True)):
        step = 1 / scale
        matrix[axis, axis] = -step if mirrored else step
        matrix[axis, 3] = extent - 0.5 - step / 2 if mirrored else step / 2 - 0.5  # edges on edges
    depth, height, width = (max(1, math.ceil(round(n * s, 6))) for n, s in zip(shape, scales, strict=True))
    return matrix, (depth, height, width)


def volume_augmentation(
    *,
    centre: tuple[float, ...],
    size: tuple[int, ...],
    scales: tuple[float, float, float],
    degrees: float,
    flip: tuple[bool, bool],
) -> NDArray[np.float64]:
    """Return the matrix that shows a window of a volume, turned and mirrored within its slices.

    Args:
        centre: Index ``(z, y, x)`` of the volume that the middle of the result shows.
        size: ``(Z, Y, X)`` of the result.
        scales: Network voxels per voxel of the volume, on each axis.
        degrees: Rotation in the slice's plane.
        flip: Whether to mirror ``y`` and ``x``; slices keep their order.
    """
    angle = math.radians(degrees)
    turn = np.eye(3)
    turn[1:, 1:] = [[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]]
    mirror = np.diag([1.0, *(-1.0 if f else 1.0 for f in flip)])
    matrix = np.eye(4)
    # Turned in network voxels, which need not be as wide as the volume's on every axis.
    matrix[:3, :3] = np.diag([1 / s for s in scales]) @ turn @ mirror
    matrix[:3, 3] = np.array(centre) - matrix[:3, :3] @ [(n - 1) / 2 for n in size]
    return matrix

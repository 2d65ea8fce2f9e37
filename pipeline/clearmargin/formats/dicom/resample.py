"""A tilted or gapped stack of slices onto a straight, regular grid: only when the user asks for it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clearmargin.core import Grid

__all__ = ["fill_gaps", "straighten"]


def straighten(pixels: NDArray[Any], grid: Grid) -> tuple[NDArray[Any], Grid]:
    """Shift every slice within its own plane so that the stack stands upright.

    The tilt of a gantry displaces slices sideways, never out of their planes, so each new slice is one old
    slice interpolated linearly in its plane; nothing is mixed across slices. The field of view grows to hold
    all of them and is filled with the lowest value.

    Args:
        pixels: ``(Z, Y, X)``.
        grid: The sheared grid.

    Returns:
        Pixels in the same dtype (integers rounded) and their orthogonal grid; the slices' planes are
        unchanged.
    """
    down, right = grid.affine[:3, 1], grid.affine[:3, 2]
    step = grid.affine[:3, 0]
    normal = np.cross(right, down)
    normal /= np.linalg.norm(normal)
    straight = (step @ normal) * normal
    sideways = step - straight
    per_slice = np.array([sideways @ down / (down @ down), sideways @ right / (right @ right)])
    shifts = np.arange(grid.shape[0])[:, None] * per_slice  # of slice z's origin, in pixels (y, x)
    first = np.floor(shifts.min(axis=0))
    size = np.ceil(shifts.max(axis=0)).astype(int) - first.astype(int) + np.array(grid.shape[1:])
    out = np.full((grid.shape[0], *(int(n) for n in size)), pixels.min(), pixels.dtype)
    for z in range(grid.shape[0]):
        out[z] = _shifted(pixels[z], shifts[z] - first, out[z])
    affine = grid.affine.copy()
    affine[:3, 0] = straight
    affine[:3, 3] += first[0] * down + first[1] * right
    return out, replace(grid, shape=out.shape, affine=affine)


def _shifted(plane: NDArray[Any], shift: NDArray[np.float64], background: NDArray[Any]) -> NDArray[Any]:
    """Return ``plane`` with its first pixel at ``shift`` (a fraction, not negative) of a ``background``."""
    whole = np.floor(shift).astype(int)
    part = shift - whole
    fill = float(background.flat[0])
    target: NDArray[Any] = np.full(background.shape, fill, np.float64)
    rows, columns = plane.shape
    tall, broad = background.shape
    wide = np.full((rows + 1, columns + 1), fill)
    padded = np.pad(plane.astype(np.float64), 1, constant_values=fill)
    fy, fx = part
    wide[:] = (
        (1 - fy) * (1 - fx) * padded[1:, 1:]
        + fy * (1 - fx) * padded[:-1, 1:]
        + (1 - fy) * fx * padded[1:, :-1]
        + fy * fx * padded[:-1, :-1]
    )
    height = min(rows + 1, tall - int(whole[0]))
    width = min(columns + 1, broad - int(whole[1]))
    target[whole[0] : whole[0] + height, whole[1] : whole[1] + width] = wide[:height, :width]
    return _as(target, plane.dtype)


def fill_gaps(pixels: NDArray[Any], grid: Grid, offsets_mm: NDArray[np.float64]) -> tuple[NDArray[Any], Grid]:
    """Interpolate unevenly spaced slices linearly onto their usual distance.

    A slice that lies on the new grid to a hundredth of a millimetre (or of its distance, if that is less) comes back
    unchanged: if slices are only missing, all that are there.

    Args:
        pixels: ``(Z, Y, X)``, one slice for each offset.
        grid: Origin and in-plane axes of the first slice; its slice step gives the direction only.
        offsets_mm: ``(Z,)`` growing distances from the first slice.
    """
    steps = np.diff(offsets_mm)
    step = float(np.mean(steps[steps < 1.5 * steps.min()]))
    direction = grid.affine[:3, 0] / np.linalg.norm(grid.affine[:3, 0])
    n = round(float(offsets_mm[-1]) / step) + 1
    positions = np.minimum(np.arange(n) * float(offsets_mm[-1]) / (n - 1), offsets_mm[-1])
    out = np.empty((n, *pixels.shape[1:]), pixels.dtype)
    below = np.clip(np.searchsorted(offsets_mm, positions, side="right") - 1, 0, len(offsets_mm) - 2)
    for k, (low, where) in enumerate(zip(below, positions, strict=True)):
        distance = offsets_mm[low + 1] - offsets_mm[low]
        weight = (where - offsets_mm[low]) / distance
        same = min(0.01, 0.01 / distance)
        if weight < same:
            out[k] = pixels[low]
        elif weight > 1 - same:
            out[k] = pixels[low + 1]
        else:
            mixed = (1 - weight) * pixels[low].astype(np.float64) + weight * pixels[low + 1]
            out[k] = _as(mixed, pixels.dtype)
    affine = grid.affine.copy()
    affine[:3, 0] = direction * float(offsets_mm[-1]) / (n - 1)
    return out, replace(grid, shape=out.shape, affine=affine)


def _as(values: NDArray[np.float64], dtype: np.dtype[Any]) -> NDArray[Any]:
    return np.rint(values).astype(dtype) if dtype.kind in "iu" else values.astype(dtype)

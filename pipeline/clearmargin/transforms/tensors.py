"""Images as MONAI MetaTensors, and the grid that a transformed MetaTensor lies on."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from numpy.typing import NDArray

from clearmargin.core import Grid

__all__ = ["grid_of", "tensor_affine", "to_tensor"]

_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


def tensor_affine(grid: Grid) -> NDArray[np.float64]:
    """Return the ``(4, 4)`` affine MONAI wants for arrays on ``grid``.

    A volume's maps ``(z, y, x, 1)`` to RAS. MONAI cuts an image's down to its first two rows and columns, so
    an image's maps ``(y, x)`` to its own plane, scaled by the spacing.
    """
    if grid.ndim == 3:
        ras: NDArray[np.float64] = _LPS_TO_RAS @ grid.affine
        return ras
    return np.diag([*grid.spacing, 1.0, 1.0])


def to_tensor(pixels: NDArray[Any], grid: Grid, dtype: torch.dtype = torch.float32) -> MetaTensor:
    """Return ``pixels`` (``(C, *grid.shape)``) as a MetaTensor that carries ``grid``."""
    array = np.ascontiguousarray(pixels)
    if not array.flags.writeable:  # torch has no tensors that must not be written to
        array = array.copy()
    data = torch.from_numpy(array).to(dtype)
    return MetaTensor(data, affine=torch.from_numpy(tensor_affine(grid)))


def grid_of(tensor: MetaTensor, source: Grid) -> tuple[Grid, NDArray[np.float64]]:
    """Return where a transformed tensor lies.

    Args:
        tensor: ``(C, *spatial)``, made by ``to_tensor(..., source)`` and then transformed.
        source: The grid it was made on.

    Returns:
        Its grid, and the matrix ``(ndim + 1, ndim + 1)`` from its indices to indices of ``source``.
    """
    n = source.ndim
    before = _square(tensor_affine(source), n)
    after = _square(np.asarray(tensor.affine, dtype=np.float64), n)
    matrix = np.asarray(np.linalg.solve(before, after), np.float64)
    full = np.eye(4)
    rows = np.array([*range(3 - n, 3), 3])
    full[np.ix_(rows, rows)] = matrix
    shape = tuple(int(size) for size in tensor.shape[1:])
    return Grid(shape=shape, affine=source.affine @ full, unit=source.unit), matrix


def _square(affine: NDArray[np.float64], n: int) -> NDArray[np.float64]:
    """Return the homogeneous matrix of the first ``n`` axes."""
    rows = np.array([*range(n), affine.shape[0] - 1])
    cut: NDArray[np.float64] = affine[np.ix_(rows, rows)]
    return cut

"""Which way up a slice is shown: as radiologists see it, whatever the order of the file's axes."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import permutations

import numpy as np
from numpy.typing import NDArray

from clearmargin.core import Grid, Mask

__all__ = ["Turn", "upright"]


@dataclass(frozen=True, kw_only=True)
class Turn:
    """A change of a picture's axes: transposed first, then its rows and columns reversed.

    Attributes:
        transpose: Rows become columns.
        reverse: Whether rows run the other way, and whether columns do.
    """

    transpose: bool = False
    reverse: tuple[bool, bool] = (False, False)

    def array(self, array: NDArray[np.generic]) -> NDArray[np.generic]:
        """Return ``(Y, X, ...)`` turned."""
        turned = np.swapaxes(array, 0, 1) if self.transpose else array
        rows, columns = (slice(None, None, -1 if back else 1) for back in self.reverse)
        return np.ascontiguousarray(turned[rows, columns])

    def aspect(self, grid: Grid) -> float:
        """Return the height of a turned pixel of a grid over its width."""
        down, across = grid.spacing[-2:]
        return across / down if self.transpose else down / across

    def mask(self, mask: Mask) -> Mask:
        """Return a mask of the plane turned."""
        return Mask.from_dense(self.array(mask.dense()))


def upright(grid: Grid) -> Turn:
    """Return the turn after which a slice of a volume is seen from the feet, the front, or the left.

    Across: the patient's right is at the left, the front at the top. Seen from the front: right at the left,
    head at the top. From the side: the front at the left, head at the top. An oblique slice counts as the
    nearest of them. An image's own pixels are upright already. This is the radiological convention.
    """
    if grid.ndim == 2:
        return Turn()
    steps = grid.affine[:3, 1:3] / np.linalg.norm(grid.affine[:3, 1:3], axis=0)
    row, column = max(permutations(range(3), 2), key=lambda p: abs(steps[p[0], 0]) + abs(steps[p[1], 1]))
    transpose = row < column  # of x (to the left), y (to the back) and z (to the head), the later one stands
    down, right = (column, row) if transpose else (row, column)
    along = steps[:, ::-1] if transpose else steps
    head_is_down = down == 2 and along[2, 0] > 0
    front_is_down = down == 1 and along[1, 0] < 0
    return Turn(transpose=transpose, reverse=(head_is_down or front_is_down, along[right, 1] < 0))

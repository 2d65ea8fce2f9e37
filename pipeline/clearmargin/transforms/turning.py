"""Volumes in one order of axes, however their files store them: what a network learnt of an axis holds along it alone.

A left kidney is known by where it lies. NIfTI files are stored towards the right, the left, front or back, DICOM series
as they were taken: without this, a model of the one would name organs of the other wrongly, and without a word.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from clearmargin.core import Crowd, Grid, Image, InstanceSet, Mask

__all__ = ["Turn", "axis_codes", "common_codes", "turn_to", "turned_case"]

_ENDS = (("R", "L"), ("A", "P"), ("I", "S"))  # where each axis of the world, LPS, comes from and goes to
_WORLD = {code: axis for axis, ends in enumerate(_ENDS) for code in ends}
_Values = TypeVar("_Values", bound=np.generic)


def axis_codes(grid: Grid) -> str | None:
    """Return where the indices of slices, rows and columns rise to, a letter each; None for pictures and pixels.

    L, P and S are the patient's left, back and head; an oblique axis counts as the nearest one. Source: nibabel's
    ``io_orientation``.

    Examples:
        >>> axis_codes(Grid.from_spacing((3, 4, 5), (5, 1, 1)))  # an axial series, as DICOM stores it
        'SPL'
    """
    if grid.ndim != 3 or grid.unit != "mm":
        return None
    from nibabel.orientations import io_orientation, ornt2axcodes

    return "".join(ornt2axcodes(io_orientation(grid.affine), labels=_ENDS))


def common_codes(grids: Iterable[Grid]) -> str | None:
    """Return the codes that most grids have, the first of equals; None if no grid has any."""
    counts: dict[str, int] = {}
    for grid in grids:
        codes = axis_codes(grid)
        if codes is not None:
            counts[codes] = counts.get(codes, 0) + 1
    return max(counts, key=lambda codes: counts[codes], default=None)


@dataclass(frozen=True, kw_only=True)
class Turn:
    """A volume's axes in another order or direction. No value is changed, and each stays at its place in the world.

    Attributes:
        stored: The grid that is turned.
        order: The axis of ``stored`` that each axis is made of.
        flips: Whether it is reversed.
    """

    stored: Grid
    order: tuple[int, ...]
    flips: tuple[bool, ...]

    @property
    def matrix(self) -> NDArray[np.float64]:
        """``(4, 4)``, from turned indices to stored ones."""
        matrix = np.zeros((4, 4))
        matrix[3, 3] = 1
        for axis, (source, flip) in enumerate(zip(self.order, self.flips, strict=True)):
            matrix[source, axis] = -1 if flip else 1
            matrix[source, 3] = self.stored.shape[source] - 1 if flip else 0
        return matrix

    @property
    def grid(self) -> Grid:
        """The grid, turned."""
        shape = tuple(self.stored.shape[source] for source in self.order)
        return replace(self.stored, shape=shape, affine=self.stored.affine @ self.matrix)

    @property
    def back(self) -> Turn:
        """From the turned grid to the stored one, which it gives as it was, to the last bit."""
        order = tuple(self.order.index(axis) for axis in range(3))
        return _Back(
            stored=self.grid, order=order, flips=tuple(self.flips[axis] for axis in order), before=self.stored
        )

    def array(self, values: NDArray[_Values]) -> NDArray[_Values]:
        """Return values ``(..., Z, Y, X)``, turned."""
        first = values.ndim - 3
        moved = values.transpose(*range(first), *(first + source for source in self.order))
        reversed_axes = tuple(first + axis for axis, flip in enumerate(self.flips) if flip)
        return np.ascontiguousarray(np.flip(moved, reversed_axes))

    def image(self, image: Image) -> Image:
        """Return the image, turned. Its source still lists the files as they are."""
        return replace(image, pixels=self.array(image.pixels), grid=self.grid)

    def instances(self, instances: InstanceSet) -> InstanceSet:
        """Return the instances, turned, with what is not measured and their landmarks; left stays left."""
        inverse = np.asarray(np.linalg.inv(self.matrix), np.float64)
        marks = instances.landmarks
        return replace(
            instances,
            grid=self.grid,
            masks=tuple(self._mask(mask) for mask in instances.masks),
            ignore=None if instances.ignore is None else self._mask(instances.ignore),
            crowds=tuple(Crowd(mask=self._mask(c.mask), label=c.label) for c in instances.crowds),
            landmarks=None if marks is None else marks.reindexed(inverse),
        )

    def _mask(self, mask: Mask) -> Mask:
        shape = tuple(mask.shape[source] for source in self.order)
        if not mask.area:
            return Mask(shape=shape, origin=(0, 0, 0), crop=np.zeros((0, 0, 0), bool))
        ends = tuple(o + n for o, n in zip(mask.origin, mask.crop.shape, strict=True))
        origin = tuple(
            mask.shape[source] - ends[source] if flip else mask.origin[source]
            for source, flip in zip(self.order, self.flips, strict=True)
        )
        return Mask(shape=shape, origin=origin, crop=self.array(mask.crop))


@dataclass(frozen=True, kw_only=True)
class _Back(Turn):
    before: Grid

    @property
    def grid(self) -> Grid:
        return self.before


def turn_to(codes: str | None, grid: Grid) -> Turn | None:
    """Return how a grid is turned to ``codes``; None if it has them, or if either is not known.

    Examples:
        >>> grid = Grid.from_spacing((3, 4, 5), (5, 1, 1))
        >>> turn_to("SAR", grid).grid.to_world((0, 0, 0)).tolist()  # the last row and column
        [4.0, 3.0, 0.0]
    """
    own = axis_codes(grid)
    if codes is None or own is None or own == codes:
        return None
    world = [_WORLD[code] for code in own]
    order = tuple(world.index(_WORLD[code]) for code in codes)
    flips = tuple(own[source] != code for source, code in zip(order, codes, strict=True))
    return Turn(stored=grid, order=order, flips=flips)


def turned_case(codes: str | None, image: Image, instances: InstanceSet) -> tuple[Image, InstanceSet]:
    """Return an image and its reference in the order of axes that ``codes`` give, or as they are."""
    turn = turn_to(codes, image.grid)
    return (image, instances) if turn is None else (turn.image(image), turn.instances(instances))

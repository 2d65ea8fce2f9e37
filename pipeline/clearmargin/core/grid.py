"""Where pixels lie: an array's shape, its affine to the patient, and the unit."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["Grid", "Unit"]

Unit = Literal["mm", "px"]

_NANOMETRE, _KILOMETRE = 1e-6 * (1 - 1e-6), 1e6 * (1 + 1e-6)  # float32 headers round


@dataclass(frozen=True, kw_only=True, eq=False)
class Grid:
    """A regular grid of pixels or voxels in the plane or in space.

    Attributes:
        shape: ``(Z, Y, X)`` of a volume or ``(Y, X)`` of an image.
        affine: ``(4, 4)`` float64. Maps a homogeneous array index ``(z, y, x, 1)`` (``z = 0`` for an image)
            to a world point ``(x, y, z, 1)`` in DICOM's LPS system, as highdicom's ``Volume.affine`` does.
        unit: ``"mm"``, or ``"px"`` where no physical spacing is known; nothing may then be called millimetres.
        frame_of_reference: FrameOfReferenceUID of the world, ``""`` if unknown. Private, as every UID: equal points of
            two frames are different places.

    Spacing is derived from the affine, so the two cannot disagree.
    """

    shape: tuple[int, ...]
    affine: NDArray[np.float64]
    unit: Unit
    frame_of_reference: str = field(default="", repr=False)

    def __post_init__(self) -> None:
        shape = tuple(int(n) for n in self.shape)
        if len(shape) not in (2, 3) or min(shape) < 1:
            raise ValueError(f"a grid has 2 or 3 positive extents, not {shape}")
        affine = np.array(self.affine, dtype=np.float64)
        if affine.shape != (4, 4) or not np.isfinite(affine).all():
            raise ValueError(f"a grid's affine is 4 x 4 and finite, not of shape {affine.shape}")
        if not np.array_equal(affine[3], (0, 0, 0, 1)):
            raise ValueError(f"the last row of an affine is 0 0 0 1, not {list(affine[3])}")
        lengths = np.linalg.norm(affine[:3, :3], axis=0)
        # of directions, not of steps: voxels of a tenth of a micron are small, not flat
        if not lengths.all() or abs(np.linalg.det(affine[:3, :3] / lengths)) < 1e-9:
            raise ValueError(
                "a grid's affine must be invertible; two of its axes are parallel or one is zero"
            )
        if self.unit not in ("mm", "px"):
            raise ValueError(f"a grid's unit is 'mm' or 'px', not {self.unit!r}")
        if self.unit == "mm" and not (lengths.min() >= _NANOMETRE and lengths.max() <= _KILOMETRE):
            raise ValueError(
                f"its elements are {' x '.join(f'{s:.3g}' for s in lengths)} mm: expected a nanometre (1e-06 mm) to a "
                "kilometre; the header is damaged, or in another unit than it says"
            )
        affine.flags.writeable = False
        object.__setattr__(self, "shape", shape)
        object.__setattr__(self, "affine", affine)

    @staticmethod
    def from_spacing(shape: tuple[int, ...], spacing: ArrayLike | None = None) -> Grid:
        """Return an axis-aligned grid at the world's origin.

        Args:
            shape: ``(Z, Y, X)`` or ``(Y, X)``.
            spacing: Millimetres per axis in array order; None where unknown, and the unit is then px.

        Examples:
            >>> Grid.from_spacing((4, 5, 6), (5.0, 0.8, 0.7)).spacing
            (5.0, 0.8, 0.7)
        """
        steps = np.ones(len(shape)) if spacing is None else np.asarray(spacing, dtype=np.float64)
        if steps.shape != (len(shape),) or not (steps > 0).all():
            raise ValueError(f"spacing {spacing!r} does not give a positive step for each axis of {shape}")
        along = np.ones(3)
        along[3 - len(shape) :] = steps
        affine = np.zeros((4, 4))
        affine[0, 2], affine[1, 1], affine[2, 0] = along[2], along[1], along[0]
        affine[3, 3] = 1
        return Grid(shape=shape, affine=affine, unit="px" if spacing is None else "mm")

    @property
    def ndim(self) -> int:
        """2 or 3."""
        return len(self.shape)

    @cached_property
    def spacing(self) -> tuple[float, ...]:
        """Distance between neighbours along each array axis, in ``unit``."""
        lengths = np.linalg.norm(self.affine[:3, :3], axis=0)
        return tuple(float(v) for v in np.round(lengths[3 - self.ndim :], 12))

    @cached_property
    def voxel_size(self) -> float:
        """Volume (area, in the plane) of one element, in ``unit`` cubed (squared); right for sheared grids too."""
        if self.ndim == 3:
            return float(abs(np.linalg.det(self.affine[:3, :3])))
        return float(np.linalg.norm(np.cross(self.affine[:3, 1], self.affine[:3, 2])))

    @property
    def size_name(self) -> str:
        """What a column of sizes is called: ``area_px``, ``area_mm2``, ``volume_voxels`` or ``volume_mm3``."""
        if self.unit == "mm":
            return "volume_mm3" if self.ndim == 3 else "area_mm2"
        return "volume_voxels" if self.ndim == 3 else "area_px"

    @property
    def is_orthogonal(self) -> bool:
        """Whether the axes are at right angles; false for a tilted gantry."""
        axes = self.affine[:3, :3] / np.linalg.norm(self.affine[:3, :3], axis=0)
        gram = axes.T @ axes
        return bool(np.abs(gram - np.eye(3)).max() < 1e-4)

    def to_world(self, index: ArrayLike) -> NDArray[np.float64]:
        """Return world points ``(..., 3)`` for array indices ``(..., ndim)``; fractions are allowed."""
        points = np.asarray(index, dtype=np.float64)
        world: NDArray[np.float64] = points @ self.affine[:3, 3 - self.ndim : 3].T + self.affine[:3, 3]
        return world

    def to_index(self, world: ArrayLike) -> NDArray[np.float64]:
        """Return fractional array indices ``(..., ndim)`` for world points ``(..., 3)``."""
        inverse = np.linalg.inv(self.affine)
        points = np.asarray(world, dtype=np.float64)
        index: NDArray[np.float64] = (points @ inverse[:3, :3].T + inverse[:3, 3])[..., 3 - self.ndim :]
        return index

    def semi_axes(self, squares: ArrayLike) -> NDArray[np.float64]:
        """Return the semi-axes ``(ndim,)`` in ``unit``, rising, of the ellipse ``x' inv(squares) x = 1`` in indices.

        Of a covariance they are the standard deviations along its axes. Rounding below 0 counts as 0.
        """
        steps = self.affine[:3, 3 - self.ndim : 3]
        in_world = steps @ np.asarray(squares, np.float64) @ steps.T
        lengths: NDArray[np.float64] = np.sqrt(np.maximum(np.linalg.eigvalsh(in_world)[-self.ndim :], 0))
        return lengths

    def same_as(self, other: Grid, *, tolerance: float = 0.01) -> bool:
        """Return whether both grids have one shape, unit and frame and every corner within ``tolerance`` units."""
        if self.shape != other.shape or self.unit != other.unit or not self.shares_frame(other):
            return False
        corners = np.stack(np.meshgrid(*[(0, n - 1) for n in self.shape], indexing="ij"), -1)
        return bool(np.abs(self.to_world(corners) - other.to_world(corners)).max() <= tolerance)

    def unlike(self, other: Grid) -> str:
        """Return in words in what two grids differ: their elements, their frames of reference, or their places.

        Examples:
            >>> grid = Grid.from_spacing((4, 5), (1, 1))
            >>> grid.unlike(replace(grid, affine=grid.affine + np.eye(4, k=3) * 2))
            'both 4 x 5 at 1 x 1 mm, with corners up to 2 mm apart'
        """
        if str(self) != str(other):
            return f"{self} and {other}"
        if not self.shares_frame(other):
            return f"both {self}, in two frames of reference"
        ends = np.stack(np.meshgrid(*[(0, n - 1) for n in self.shape], indexing="ij"), -1)
        apart = float(np.linalg.norm(self.to_world(ends) - other.to_world(ends), axis=-1).max())
        return f"both {self}, with corners up to {apart:.3g} {self.unit} apart"

    def shares_frame(self, other: Grid) -> bool:
        """Return whether both lie in one frame of reference, as far as both say which."""
        frames = {self.frame_of_reference, other.frame_of_reference} - {""}
        return len(frames) < 2

    def plane(self, z: int) -> Grid:
        """Return the grid of slice ``z`` of a volume, at its place in the world."""
        if self.ndim != 3 or not 0 <= z < self.shape[0]:
            raise ValueError(f"slice {z} of a grid of shape {self.shape}")
        affine = self.affine.copy()
        affine[:3, 3] += z * affine[:3, 0]
        return replace(self, shape=self.shape[1:], affine=affine)

    def __repr__(self) -> str:
        return f"Grid({self})"

    def __str__(self) -> str:
        size = " x ".join(str(n) for n in self.shape)
        step = " x ".join(f"{s:g}" for s in self.spacing)
        return f"{size} at {step} {self.unit}"

"""Instances on a grid, as columns of equal length."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from clearmargin.core.grid import Grid
from clearmargin.core.landmarks import Landmarks
from clearmargin.core.mask import Mask

__all__ = ["Crowd", "InstanceSet"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Crowd:
    """A region with objects of one class that nobody told apart (COCO's ``iscrowd``).

    A prediction of that class within it is neither right nor wrong; other classes do not know of it.
    """

    mask: Mask
    label: int


@dataclass(frozen=True, kw_only=True, eq=False)
class InstanceSet:
    """N instances on one grid, as columns of equal length.

    Attributes:
        grid: The grid that all masks lie on.
        masks: N masks of shape ``grid.shape``; they may overlap.
        labels: ``(N,)`` int64, ids in the label map.
        scores: ``(N,)`` in [0, 1], all 1 for reference annotations; float64 if given so, as files state scores that
            float32 does not tell apart, else float32.
        uncertainty: Further ``(N,)`` float32 columns by name, such as ``mean_entropy``.
        ignore: Region in which nothing is measured, of any class (ambiguous tissue); None for none.
        crowds: Regions with objects of one class that were not told apart, each by itself.
        landmarks: Points on the grid, of objects with or without a mask; None if they were not looked for.
    """

    grid: Grid
    masks: tuple[Mask, ...]
    labels: NDArray[np.int64]
    scores: NDArray[np.floating]
    uncertainty: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)
    ignore: Mask | None = None
    crowds: tuple[Crowd, ...] = ()
    landmarks: Landmarks | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "masks", tuple(self.masks))
        object.__setattr__(self, "crowds", tuple(self.crowds))
        object.__setattr__(self, "labels", np.asarray(self.labels, np.int64).copy())
        scores = np.array(self.scores)
        fine = scores.dtype == np.float64
        object.__setattr__(self, "scores", scores if fine else scores.astype(np.float32))
        columns = {name: np.asarray(v, np.float32).copy() for name, v in self.uncertainty.items()}
        object.__setattr__(self, "uncertainty", MappingProxyType(columns))
        n = len(self.masks)
        every: dict[str, NDArray[Any]] = {"labels": self.labels, "scores": self.scores, **columns}
        for name, column in every.items():
            if column.shape != (n,):
                raise ValueError(f"{name} has shape {column.shape}; {n} masks need ({n},)")
            column.flags.writeable = False
        if n and not (np.isfinite(self.scores).all() and self.scores.min() >= 0 and self.scores.max() <= 1):
            raise ValueError("scores lie in [0, 1]")
        for mask in (
            *self.masks,
            *(c.mask for c in self.crowds),
            *(() if self.ignore is None else (self.ignore,)),
        ):
            if mask.shape != self.grid.shape:
                raise ValueError(f"a mask of shape {mask.shape} does not lie on the grid {self.grid.shape}")
        if self.landmarks is not None and self.landmarks.ndim != self.grid.ndim:
            raise ValueError(f"landmarks of {self.landmarks.ndim} axes on a grid of {self.grid.ndim}")
        owners = None if self.landmarks is None else self.landmarks.owners
        if owners is not None and owners.max(initial=-1) >= n:
            raise ValueError(f"landmarks belong to instance {owners.max()}, and there are {n}")

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"uncertainty": dict(self.uncertainty)}  # a view cannot go to another process

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state | {"uncertainty": MappingProxyType(state["uncertainty"])})

    @staticmethod
    def empty(grid: Grid) -> InstanceSet:
        """Return the set of no instances on ``grid``."""
        return InstanceSet(grid=grid, masks=(), labels=np.zeros(0, np.int64), scores=np.zeros(0, np.float32))

    @staticmethod
    def from_dense(
        grid: Grid,
        masks: Sequence[ArrayLike],
        labels: ArrayLike | None = None,
        scores: ArrayLike | None = None,
    ) -> InstanceSet:
        """Return instances from dense masks of ``grid.shape``; labels and scores default to 1."""
        n = len(masks)
        return InstanceSet(
            grid=grid,
            masks=tuple(Mask.from_dense(m) for m in masks),
            labels=np.ones(n, np.int64) if labels is None else np.asarray(labels, np.int64),
            scores=np.ones(n, np.float32) if scores is None else np.asarray(scores),
        )

    @staticmethod
    def from_label_image(grid: Grid, label_image: NDArray[np.integer], label: int = 1) -> InstanceSet:
        """Return one instance for each positive value of ``label_image`` (shape ``grid.shape``), in value order.

        A value is one instance even where occlusion splits it in pieces.
        """
        if label_image.shape != grid.shape:
            raise ValueError(f"a label image of shape {label_image.shape} on a grid of shape {grid.shape}")
        numbers = label_image
        if (
            label_image.size and label_image.max() > _FEW
        ):  # such as colours as numbers: most values are of nothing
            values, inverse = np.unique(label_image, return_inverse=True)
            positive = values > 0
            numbers = (np.cumsum(positive) * positive)[inverse].reshape(label_image.shape)
        masks = [mask for mask in masks_by_number(numbers) if mask is not None]
        n = len(masks)
        return InstanceSet(
            grid=grid, masks=tuple(masks), labels=np.full(n, label), scores=np.ones(n, np.float32)
        )

    def __len__(self) -> int:
        return len(self.masks)

    def select(self, index: ArrayLike) -> InstanceSet:
        """Return the instances that ``index`` picks: a bool array ``(N,)`` or integer positions, in that order."""
        picks = np.asarray(index)
        picks = np.flatnonzero(picks) if picks.dtype == np.bool_ else picks.astype(np.int64)
        return InstanceSet(
            grid=self.grid,
            masks=tuple(self.masks[int(i)] for i in picks),
            labels=self.labels[picks],
            scores=self.scores[picks],
            uncertainty={name: column[picks] for name, column in self.uncertainty.items()},
            ignore=self.ignore,
            crowds=self.crowds,
            landmarks=None if self.landmarks is None else self.landmarks.owned_by(picks),
        )

    def plane(self, z: int) -> tuple[InstanceSet, NDArray[np.int64]]:
        """Return the instances that slice ``z`` cuts, on the slice's grid, and their positions in this set."""
        hit = np.array([i for i, m in enumerate(self.masks) if m.origin[0] <= z < m.box[1][0]], np.int64)
        cuts = [self.masks[i].plane(z) for i in hit]
        kept = np.array([i for i, cut in zip(hit, cuts, strict=True) if cut.area], np.int64)
        remaining = self.select(kept)
        flat = InstanceSet(
            grid=self.grid.plane(z),
            masks=tuple(cut for cut in cuts if cut.area),
            labels=remaining.labels,
            scores=remaining.scores,
            uncertainty=remaining.uncertainty,
            ignore=None if self.ignore is None else self.ignore.plane(z),
            crowds=tuple(
                Crowd(mask=cut, label=crowd.label)
                for crowd in self.crowds
                for cut in (crowd.mask.plane(z),)
                if cut.area
            ),
            landmarks=None if remaining.landmarks is None else remaining.landmarks.plane(z),
        )
        return flat, kept

    def unmeasured(self, label: int | None = None) -> Mask | None:
        """Return what ``ignore`` and the crowds of ``label`` (None: of every class) hold; None for nothing."""
        regions = [] if self.ignore is None else [self.ignore]
        regions += [crowd.mask for crowd in self.crowds if label is None or crowd.label == label]
        return Mask.union(regions, self.grid.shape) if regions else None

    def __repr__(self) -> str:
        points = "" if self.landmarks is None else f", {self.landmarks.count} landmark(s)"
        return f"InstanceSet({len(self)} instance(s){points}, {self.grid})"


_FEW = 2**16


def masks_by_number(numbers: NDArray[np.integer]) -> list[Mask | None]:
    """Return the mask of each number from 1 to the largest, None where an array of any shape does not hold it."""
    from scipy import ndimage

    return [
        None
        if place is None
        # its box is as small as can be, and so nothing is left to be cut off
        else Mask(shape=numbers.shape, origin=tuple(s.start for s in place), crop=numbers[place] == k)
        for k, place in enumerate(ndimage.find_objects(numbers), start=1)
    ]

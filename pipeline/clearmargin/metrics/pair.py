"""A predicted and a reference mask of one object, and what all metrics share of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from clearmargin.core import Grid, Mask
from clearmargin.core.grid import Unit
from clearmargin.core.reprs import short_repr
from clearmargin.core.slack import with_slack
from clearmargin.errors import GeometryError, InputError

__all__ = ["DirectedDistances", "MaskPair", "Status"]

Status = Literal["tp", "fn", "fp", "tn"]

_SHARE_SLACK = 1e-9  # of a share of the area, for the rounding of its sum
_ONE_PLANE = 1e9  # the step between planes if there is only one


@short_repr
@dataclass(frozen=True, kw_only=True, eq=False)
class DirectedDistances:
    """The surface elements of one mask and their distances to the surface of the other.

    Attributes:
        distances: ``(n,)`` float64, at least 0, in the grid's unit.
        areas: ``(n,)`` float64, area of each element in squared units (length, in the plane); 0 where
            ignored.
        sides: ``(n,)`` int8: +1 where the element lies outside the other mask, -1 inside, 0 on its surface.
        in_order: Whether the distances ascend.
    """

    distances: NDArray[np.float64]
    areas: NDArray[np.float64]
    sides: NDArray[np.int8]
    in_order: bool = False

    @cached_property
    def total(self) -> float:
        """Area of the whole surface."""
        running = self._sorted[1]
        return float(running[-1]) if len(running) else 0.0

    @cached_property
    def mean(self) -> float:
        """Area-weighted mean distance; 0 if nothing is left to measure."""
        return float(self.distances @ self.areas) / self.total if self.total else 0.0

    @cached_property
    def maximum(self) -> float:
        """Largest distance of an element that counts; 0 if none does."""
        return float(self.distances[self.areas > 0].max(initial=0.0))

    @cached_property
    def _sorted(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        if self.in_order:
            return self.distances, self.areas.cumsum()
        order = np.argsort(self.distances)
        return self.distances[order], np.cumsum(self.areas[order])

    def percentile(self, percent: float) -> float:
        """Return the smallest distance that at least ``percent`` of the area does not exceed; 0 where empty."""
        ordered, running = self._sorted
        if not self.total:
            return 0.0
        at = int(running.searchsorted((percent / 100 - _SHARE_SLACK) * self.total))
        return float(ordered[min(at, len(ordered) - 1)])

    def area_within(self, tolerance: float) -> float:
        """Return the area of the elements at distance ``tolerance`` or less (`with_slack`)."""
        ordered, running = self._sorted
        count = int(ordered.searchsorted(with_slack(tolerance), "right"))
        return float(running[count - 1]) if count else 0.0


@short_repr
@dataclass(frozen=True, kw_only=True, eq=False)
class MaskPair:
    """One object as predicted and as it is, cut to the box that holds both.

    Surface elements and distances are computed once, when first asked for, and shared by all metrics.

    Attributes:
        predicted: bool, the joint box of both masks; extent 0 on every axis when both are empty.
        reference: bool, of the same shape.
        grid: The grid that the masks were cut from.
        distance_cap: Every distance of a miss or a false positive, and the most any distance counts, in the
            grid's unit.
        origin: Index of the joint box on the grid.
        ignored: bool, of the shape of ``predicted``: if nothing is measured; None for nowhere.
    """

    predicted: NDArray[np.bool_]
    reference: NDArray[np.bool_]
    grid: Grid
    distance_cap: float
    origin: tuple[int, ...]
    ignored: NDArray[np.bool_] | None = None

    @staticmethod
    def from_masks(
        predicted: Mask,
        reference: Mask,
        grid: Grid,
        *,
        ignore: Mask | None = None,
        distance_cap: float | None = None,
    ) -> MaskPair:
        """Return the pair of two masks of ``grid``.

        Args:
            predicted: Mask of ``grid.shape``; may be empty.
            reference: Mask of ``grid.shape``; may be empty.
            grid: Where they lie.
            ignore: If nothing is measured. Elements in it count for no overlap; surface elements that
                touch it have no weight, but stay targets of distances, so that no artificial edge arises.
            distance_cap: The most a distance counts, in the grid's unit; None for the grid's diagonal.

        Raises:
            ValueError: A mask does not lie on the grid, or the cap is not positive.
            GeometryError: The grid's axes are not at right angles.
        """
        for name, mask in (("predicted", predicted), ("reference", reference), ("ignore", ignore)):
            if mask is not None and mask.shape != grid.shape:
                raise ValueError(
                    f"the {name} mask of shape {mask.shape} does not lie on the grid {grid.shape}"
                )
        slices = _joint_box([mask.box for mask in (predicted, reference) if mask.crop.size], len(grid.shape))
        return _pair(
            predicted.within(slices),
            reference.within(slices),
            None if ignore is None or not ignore.area else ignore.within(slices),
            grid,
            slices,
            distance_cap,
        )

    @staticmethod
    def from_arrays(
        predicted: ArrayLike,
        reference: ArrayLike,
        spacing: Sequence[float] | None = None,
        *,
        ignore: ArrayLike | None = None,
        distance_cap: float | None = None,
    ) -> MaskPair:
        """Return the pair of two arrays, ``(Z, Y, X)`` or ``(Y, X)``, bool or integers 0 and 1.

        Args:
            predicted: As an array.
            reference: As an array of the same shape.
            spacing: Millimetres per axis in array order; None where unknown, and results are then in px.
            ignore: bool array of the same shape: if nothing is measured.
            distance_cap: The most a distance counts; None for the grid's diagonal.

        Raises:
            InputError: An array is not a mask, the shapes differ, or the spacing does not fit.
        """
        masks = {"reference": _binary("reference", reference), "predicted": _binary("predicted", predicted)}
        if ignore is not None:
            masks["ignore"] = _binary("ignore", ignore)
        shape = masks["reference"].shape
        for name, array in masks.items():
            if array.shape != shape:
                raise InputError(
                    f"'{name}' has shape {array.shape}, 'reference' {shape}: both masks must lie on one "
                    "grid; resample one of them to the other's grid first"
                )
        try:
            grid = _grid_of(shape, None if spacing is None else tuple(spacing))
        except (ValueError, TypeError) as error:
            raise InputError(
                f"spacing: {error}; give one positive number per axis, in array order"
            ) from error
        boxes = [_box_of(masks["predicted"]), _box_of(masks["reference"])]
        slices = _joint_box([box for box in boxes if box is not None], len(shape))
        ignored = masks["ignore"][slices] if ignore is not None else None
        return _pair(
            np.ascontiguousarray(masks["predicted"][slices]),
            np.ascontiguousarray(masks["reference"][slices]),
            ignored if ignored is not None and ignored.any() else None,
            grid,
            slices,
            distance_cap,
        )

    @property
    def spacing(self) -> tuple[float, ...]:
        """Distance between neighbours along each axis, in ``unit``."""
        return self.grid.spacing

    @property
    def unit(self) -> Unit:
        """``mm``, or ``px`` where no spacing is known."""
        return self.grid.unit

    @cached_property
    def predicted_count(self) -> int:
        """Elements of the prediction that are not ignored."""
        return _count(self.predicted, self.ignored)

    @cached_property
    def reference_count(self) -> int:
        """Elements of the reference that are not ignored."""
        return _count(self.reference, self.ignored)

    @cached_property
    def intersection_count(self) -> int:
        """Elements of both that are not ignored."""
        return _count(self.predicted & self.reference, self.ignored)

    @property
    def status(self) -> Status:
        """``tp`` where both masks hold something, ``fn`` or ``fp`` where only one does, ``tn`` if none does."""
        if self.reference_count:
            return "tp" if self.predicted_count else "fn"
        return "fp" if self.predicted_count else "tn"

    @property
    def either_empty(self) -> bool:
        """Whether the pair is a miss, a false positive or a true negative."""
        return self.status != "tp"

    @cached_property
    def surfaces(self) -> tuple[DirectedDistances, DirectedDistances]:
        """Elements of the predicted surface with distances to the reference's, and the other way round.

        Defined where neither mask is empty: the functions on pairs handle the empty cases before they ask.

        Source: Nikolov et al., "Clinically applicable segmentation of head and neck anatomy", JMIR 2021,
        whose published code (surface-distance) fixes areas and places.
        """
        from clearmargin.metrics.elements import find_elements, padded
        from clearmargin.metrics.marching import element_areas, element_lengths
        from clearmargin.metrics.nearest import nearest_distances
        from clearmargin.metrics.small import MOST_ELEMENTS, small_surfaces

        if self.either_empty:
            raise ValueError(f"a pair with status {self.status} has no distances: ask its status first")
        spacing = self.spacing
        if len(spacing) == 3:
            table, steps = (
                element_areas((spacing[0], spacing[1], spacing[2])),
                (spacing[0], spacing[1], spacing[2]),
            )
        else:
            table, steps = element_lengths((spacing[0], spacing[1])), (_ONE_PLANE, spacing[0], spacing[1])
        if self.ignored is None and self.predicted.size <= MOST_ELEMENTS:
            flat = len(spacing) == 2
            masks = (self.predicted[None], self.reference[None]) if flat else (self.predicted, self.reference)
            (d, a, s), (d_2, a_2, s_2) = small_surfaces(*masks, table, steps, flat)
            return (
                DirectedDistances(distances=d, areas=a, sides=s, in_order=True),
                DirectedDistances(distances=d_2, areas=a_2, sides=s_2, in_order=True),
            )
        grids = padded(self.predicted), padded(self.reference)
        elements = find_elements(*grids)
        directed = []
        for (places, codes, sides), (targets, _, _) in (elements, elements[::-1]):
            areas = table[codes]
            if self.ignored is not None:
                areas = np.where(_touches(places, self.ignored), 0.0, areas)
            apart = nearest_distances(places, targets, grids[0].shape, steps, sides == 0)
            directed.append(DirectedDistances(distances=apart, areas=areas, sides=sides))
        return directed[0], directed[1]


def diagonal(grid: Grid) -> float:
    """Return the length of the grid's diagonal, outer edge to outer edge, in its unit."""
    return math.hypot(*(n * s for n, s in zip(grid.shape, grid.spacing, strict=True)))


@lru_cache(maxsize=64)
def _is_orthogonal(grid: Grid) -> bool:
    """Return ``grid.is_orthogonal``, asked once for the many pairs of one grid."""
    return grid.is_orthogonal


@lru_cache(maxsize=64)
def _grid_of(shape: tuple[int, ...], spacing: tuple[float, ...] | None) -> Grid:
    """Return ``Grid.from_spacing``, made once for the many pairs of one shape."""
    return Grid.from_spacing(shape, spacing)


def _pair(
    predicted: NDArray[np.bool_],
    reference: NDArray[np.bool_],
    ignored: NDArray[np.bool_] | None,
    grid: Grid,
    slices: tuple[slice, ...],
    distance_cap: float | None,
) -> MaskPair:
    """Return the pair of two masks that are cut to their joint box on a grid."""
    if not _is_orthogonal(grid):
        raise GeometryError(
            f"surfaces are measured on grids with axes at right angles, and this one ({grid}) is sheared "
            "as by a tilted gantry; resample both masks to a regular grid first"
        )
    cap = diagonal(grid) if distance_cap is None else float(distance_cap)
    if not (cap > 0 and math.isfinite(cap)):
        raise ValueError(f"a distance cap is positive and finite, not {distance_cap}")
    return MaskPair(
        predicted=predicted,
        reference=reference,
        grid=grid,
        distance_cap=cap,
        origin=tuple(s.start for s in slices),
        ignored=ignored,
    )


def _count(mask: NDArray[np.bool_], ignored: NDArray[np.bool_] | None) -> int:
    return int(np.count_nonzero(mask if ignored is None else mask & ~ignored))


_Box = tuple[Sequence[int], Sequence[int]]  # first and one-past-last indices


def _joint_box(boxes: Sequence[_Box], ndim: int) -> tuple[slice, ...]:
    """Return the box that holds those of two masks, of one or of none; empty for none."""
    if not boxes:
        return (slice(0, 0),) * ndim
    (low, high), (other_low, other_high) = boxes[0], boxes[-1]
    return tuple(map(slice, map(min, low, other_low), map(max, high, other_high)))


def _touches(places: NDArray[np.int32], ignored: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return which surface elements have an ignored element among their 4 or 8 neighbours, ``(n,)``."""
    room = np.pad(ignored if ignored.ndim == 3 else ignored[None], ((1, 1),) * 3)
    z, y, x = places.T if ignored.ndim == 3 else (places[:, 0] + 1, places[:, 1], places[:, 2])
    corners = [(k, j, i) for k in ((0, 1) if ignored.ndim == 3 else (0,)) for j in (0, 1) for i in (0, 1)]
    touched: NDArray[np.bool_] = np.any([room[z + k, y + j, x + i] for k, j, i in corners], axis=0)
    return touched


def _binary(name: str, given: ArrayLike) -> NDArray[np.bool_]:
    """Return ``given`` as a bool array, refusing what is not a mask."""
    array = np.asarray(given)
    if array.ndim not in (2, 3) or not array.size:
        raise InputError(
            f"'{name}': expected a mask of shape (Z, Y, X) or (Y, X), got {array.shape}: drop or split the other axes"
        )
    if array.dtype == np.bool_:
        return array
    if not np.issubdtype(array.dtype, np.integer):
        raise InputError(
            f"'{name}': expected a mask of bool or of 0 and 1, got {array.dtype}: threshold it first"
        )
    if array.min() < 0 or array.max() > 1:
        raise InputError(
            f"'{name}': expected a mask of 0 and 1, got values from {array.min()} to {array.max()}: compare with "
            "the label you mean, or use evaluate_instances for label images"
        )
    return array.astype(np.bool_)


def _box_of(dense: NDArray[np.bool_]) -> _Box | None:
    """Return the box of a mask, found by one compiled pass instead of one for each axis; None if it is empty."""
    from clearmargin.metrics.elements import bounding_box

    volume = np.ascontiguousarray(dense).view(np.uint8)
    low, high = bounding_box(volume if dense.ndim == 3 else volume[None]).T.tolist()
    return (low[3 - dense.ndim :], high[3 - dense.ndim :]) if high[-1] else None

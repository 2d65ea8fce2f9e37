"""The margin that one matched instance would have needed: the score that conformal margins are made of.

A face of the true surface has a true element inside and another element outside. An outer margin covers the
face where the grown prediction holds the inside one; an inner margin covers it where the shrunk prediction
does not hold the outside one. The needed margin is the smallest that covers a share of the surface's area; at
a share of 1 every element is asked for and not the surface alone, so that the true instance lies within the
grown prediction (outer), and the shrunk prediction within the true instance (inner), as sets.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from clearmargin.core import Grid, InstanceSet, Mask
from clearmargin.core.grid import Unit
from clearmargin.errors import ConfigError
from clearmargin.metrics.matching import Matches
from clearmargin.metrics.statistics import size_strata
from clearmargin.uncertainty.reach import (
    EdgeScale,
    check_right_angles,
    depth,
    distance_outside,
    face_areas,
)

__all__ = [
    "Need",
    "Part",
    "Promise",
    "Side",
    "Strata",
    "needed_by_promise",
    "needed_margin",
    "needed_margins",
]

Side = Literal["outer", "inner"]
SIDES: tuple[Side, ...] = ("outer", "inner")
Part = Literal["surface", "area"]


@dataclass(frozen=True, kw_only=True)
class Promise:
    """What a margin says of each matched instance.

    Attributes:
        side: ``outer``: the true instance lies within the predicted one grown by the margin. ``inner``: the
            predicted one shrunk by the margin lies within the true one.
        share: Of the true instance that this holds for, in (0, 1].
        of: What the share is of: the true ``surface`` by area of its faces, or the true instance's elements
            (``area``, outer only: it is what is published as coverage of pixels).
        floor: None for one margin all around; else the margin at an edge element is the calibrated factor
            times (sigma + ``floor``), see `EdgeScale`.
    """

    side: Side = "outer"
    share: float = 1.0
    of: Part = "surface"
    floor: float | None = None

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise ConfigError(f"a share lies in (0, 1], not {self.share:g}: 0.99 is 99 %")
        if self.side == "inner" and self.of == "area":
            raise ConfigError(
                "an inner margin has no share of the area (it would not grow with the margin): "
                "take a share of the surface"
            )

    @property
    def short(self) -> str:
        """What it promises, without the side: ``99 %``, ``90 % of the area``, ``100 %, scaled``."""
        share = f"{100 * self.share:g} %" + (" of the area" if self.of == "area" else "")
        return share if self.floor is None else f"{share}, scaled"

    def __str__(self) -> str:
        grown = "the predicted one grown by it"
        if self.side == "outer" and self.share == 1:
            return f"the true instance lies within {grown}"
        if self.side == "outer":
            part = "surface" if self.of == "surface" else "pixels or voxels"
            return f"{100 * self.share:g} % of the true instance's {part} lie within {grown}"
        shrunk = "the predicted one shrunk by it"
        if self.share == 1:
            return f"{shrunk} lies within the true instance"
        return f"{100 * self.share:g} % of the true instance's surface lie outside {shrunk}"


@dataclass(frozen=True, kw_only=True)
class Strata:
    """Which instances share a margin; all of it can be known of a prediction alone.

    Attributes:
        class_names: By label; empty where classes share their margins.
        size_limits: Two sizes of the predicted instance, in the grid's unit squared or cubed, between small,
            medium and large; None where sizes share their margins. They are fixed before calibration, on
            other units or by hand.
    """

    class_names: Mapping[int, str] = field(default_factory=dict)
    size_limits: tuple[float, float] | None = None

    def of(self, predicted: InstanceSet, i: int) -> str:
        """Return the stratum of predicted instance ``i``; ``all`` where nothing is told apart."""
        grid = predicted.grid
        size = predicted.masks[i].area * grid.voxel_size
        return self.named(int(predicted.labels[i]), size, f"{grid.unit}^{grid.ndim}")

    def named(self, label: int, size: float, unit: str) -> str:
        """Return the stratum of an instance of ``label`` and ``size`` in ``unit``, such as ``mm^3``."""
        parts = []
        if self.class_names:
            parts.append(self.class_names.get(label, "other"))
        if self.size_limits is not None:
            parts += size_strata([size], unit, self.size_limits)
        return ", ".join(parts) or "all"


@dataclass(frozen=True, kw_only=True)
class Need:
    """One matched instance of a calibration case.

    Attributes:
        unit: The unit of exchangeability it belongs to, such as a patient's keyed id.
        stratum: See `Strata`.
        value: The margin it would have needed: in ``length_unit``, or a factor where the promise has a floor.
        length_unit: ``mm`` or ``px``.
    """

    unit: str
    stratum: str
    value: float
    length_unit: Unit


def needed_margin(
    predicted: Mask,
    reference: Mask,
    grid: Grid,
    promise: Promise,
    *,
    scale: EdgeScale | None = None,
    ignore: Mask | None = None,
) -> float:
    """Return the smallest margin with which ``promise`` holds for one pair; 0 where it holds without one.

    Args:
        predicted: Not empty.
        reference: Not empty, on the same grid.
        grid: Its axes are at right angles.
        promise: With a floor, ``scale`` must be given, with the same floor.
        scale: The predicted edge's.
        ignore: Region in which nothing is asked for.

    Raises:
        GeometryError: The grid is sheared.
        ValueError: A mask is empty, or promise and scale do not fit.
    """
    return needed_by_promise(predicted, reference, grid, (promise,), scale=scale, ignore=ignore)[promise]


def needed_by_promise(
    predicted: Mask,
    reference: Mask,
    grid: Grid,
    promises: Iterable[Promise],
    *,
    scale: EdgeScale | None = None,
    ignore: Mask | None = None,
) -> dict[Promise, float]:
    """Return what `needed_margin` does for several promises, all with the floor of ``scale`` or without one.

    Distances are measured once for each side.
    """
    check_right_angles(grid)
    if not (predicted.area and reference.area):
        raise ValueError("a matched pair has two masks that are not empty")
    box, origin = _joint_box(predicted, reference)
    ours, theirs = (np.pad(mask.within(box), 1) for mask in (predicted, reference))
    asked = np.ones(ours.shape, bool) if ignore is None else ~np.pad(ignore.within(box), 1)
    measured: dict[Side, NDArray[np.float64]] = {}
    found = {}
    for promise in promises:
        if (None if scale is None else scale.floor) != promise.floor:
            raise ValueError(f"the promise has floor {promise.floor}, the scale {scale and scale.floor}")
        if promise.side not in measured:
            reach = distance_outside if promise.side == "outer" else depth
            measured[promise.side] = reach(ours, grid.spacing, scale, origin)
        found[promise] = _needed(ours, theirs, asked, measured[promise.side], promise, grid.spacing)
    return found


def _needed(
    ours: NDArray[np.bool_],
    theirs: NDArray[np.bool_],
    asked: NDArray[np.bool_],
    distances: NDArray[np.float64],
    promise: Promise,
    spacing: tuple[float, ...],
) -> float:
    if promise.share == 1:
        wanted = (theirs if promise.side == "outer" else ours & ~theirs) & asked
        return float(distances[wanted].max(initial=0.0))
    if promise.of == "area":
        return _quantile(distances[theirs & asked], np.ones(np.count_nonzero(theirs & asked)), promise.share)
    areas = face_areas(theirs, spacing, inside=promise.side == "outer") * asked
    return _quantile(distances[areas > 0], areas[areas > 0], promise.share)


def needed_margins(
    unit: str,
    predicted: InstanceSet,
    reference: InstanceSet,
    matches: Matches,
    promise: Promise,
    *,
    scales: Sequence[EdgeScale] | None = None,
    strata: Strata | None = None,
) -> list[Need]:
    """Return what each matched pair of an image or volume would have needed; none where nothing matched.

    Args:
        unit: The unit that the image belongs to.
        predicted: Instances at or above the score threshold in use.
        reference: On the same grid; nothing is asked for in its ignored region.
        matches: Of the two.
        promise: What is asked for.
        scales: One for each predicted instance, where the promise has a floor.
        strata: None for no strata.
    """
    chosen = strata or Strata()
    return [
        Need(
            unit=unit,
            stratum=chosen.of(predicted, int(i)),
            value=needed_margin(
                predicted.masks[i],
                reference.masks[j],
                reference.grid,
                promise,
                scale=None if scales is None else scales[i],
                ignore=reference.ignore,
            ),
            length_unit=reference.grid.unit,
        )
        for i, j in matches.pairs
    ]


def _joint_box(first: Mask, second: Mask) -> tuple[tuple[slice, ...], tuple[int, ...]]:
    """Return the box of both masks, and the index of its first element once it is padded by one."""
    starts = np.minimum(first.box[0], second.box[0])
    stops = np.maximum(first.box[1], second.box[1])
    box = tuple(slice(int(a), int(b)) for a, b in zip(starts, stops, strict=True))
    return box, tuple(int(a) - 1 for a in starts)


def _quantile(values: NDArray[np.float64], weights: NDArray[np.float64], share: float) -> float:
    """Return the smallest value that ``share`` of the weight does not exceed; 0 for no weight."""
    if not values.size:
        return 0.0
    order = np.argsort(values, kind="stable")
    reached = np.cumsum(weights[order])
    return float(values[order[int(np.searchsorted(reached, share * reached[-1] * (1 - 1e-12)))]])

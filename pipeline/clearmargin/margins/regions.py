"""Regions of landmarks with a promise: ellipses (ellipsoids) around predicted points that hold the true ones.

A predicted point has a shape S, a matrix that is known without its partner. The true point at the error e asks for the
factor ``sqrt(e' inv(S) e)``, and the least factor that keeps the promise is that of `guarantees`, as for margins. Two
shapes are tried, and the narrower one is taken, measured on groups that it was not fitted on, at equal loss:

- ``constant``: one disc (ball) for all points;
- ``spread``: the point's covariance, and a floor.

Either has a width by visibility, and by type if that is narrower: so a point that is said to be hidden has a region of
its own, never smaller than that of a seen one. Lengths are in the grid's unit, in a basis in which axes are at right
angles.

Source: Johnstone and Ndiaye, "Exact and approximate conformal inference in multiple dimensions", arXiv:2210.17405, and
Messoudi, Destercke and Rousseau, "Ellipsoidal conformal inference for multi-target regression", COPA 2022 (ellipses by
a local covariance); `guarantees` has the sources of the promise.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from clearmargin.core import Grid, Landmarks
from clearmargin.core.grid import Unit
from clearmargin.core.groups import PLURALS
from clearmargin.core.landmarks import SEEN
from clearmargin.core.slack import with_slack
from clearmargin.errors import ConfigError, InputError
from clearmargin.margins.guarantees import Demand, GroupLosses, Guarantee, coverage_range, least_factor
from clearmargin.margins.margins import CalibrationData
from clearmargin.margins.paired_points import PairedPoint, basis_of
from clearmargin.margins.width_choice import equal_groups, weighted_quantile

__all__ = [
    "POINT_GUARANTEES",
    "PointRegion",
    "RegionShape",
    "choose_shape",
    "fit_region",
    "point_losses",
]

POINT_GUARANTEES: tuple[Guarantee, ...] = ("object", "group")
"""What a region can promise: a point has no edge, and so no share of it outside."""

_EACH = 10  # points from which a type, or a visibility, has a width of its own
_LEAST = 1e-6  # of a factor: a region of no extent has no inverse

Matrix = NDArray[np.float64]
Kind = Literal["constant", "spread"]


@dataclass(frozen=True, kw_only=True)
class RegionShape:
    """What the factor of a region multiplies.

    Attributes:
        kind: See the module.
        floor: Standard deviation that is added to every covariance, in the unit of length; 0 for ``constant``.
        widths: By ``seen`` and ``hidden``, and by ``NAME, seen`` if a type has one of its own: semi-axes of the shape
            in the unit of length (``constant``), or in standard deviations (``spread``).
    """

    kind: Kind
    floor: float
    widths: Mapping[str, float]

    def of(self, point: str, seen: bool, spread: Matrix | None, ndim: int) -> Matrix:
        """Return the matrix ``(ndim, ndim)`` of a point's shape.

        Raises:
            InputError: The shape follows the covariance and the point has none.
        """
        width = self.widths.get(_stratum(point, seen), self.widths[_stratum("", seen)])
        if self.kind == "constant":
            return width**2 * np.eye(ndim)
        if spread is None:
            raise InputError("regions that follow covariances: expected one for each landmark, got none")
        return width**2 * (spread + self.floor**2 * np.eye(ndim))

    def __str__(self) -> str:
        by_type = ", by type" if len(self.widths) > 2 else ""
        hidden = ", wider if hidden" if self.widths["hidden"] > self.widths["seen"] else ""
        return ("one size" if self.kind == "constant" else "as the heat map is wide") + by_type + hidden


@dataclass(frozen=True, kw_only=True)
class PointRegion:
    """Calibrated regions and what they promise.

    Attributes:
        guarantee: ``object``: of a group's points a share. ``group``: all points of a share of the groups.
        alpha: What the mean loss of new groups may be.
        confidence: None, or the share of calibrations for which the loss is kept.
        factor: What shapes are multiplied by, as a length.
        shape: Of a point.
        length_unit: ``mm``, or ``px`` if the calibration images have no spacing.
        n: Groups that it was calibrated on.
        without: Further calibration groups, which had no paired point.
        covered: Mean over calibrations, low and high (`guarantees.coverage_range`).
        typical: Median of the longest semi-axes of the calibration points, in ``length_unit``.
        data: Where it comes from.
    """

    guarantee: Guarantee
    alpha: float
    confidence: float | None
    factor: float
    shape: RegionShape
    length_unit: Unit
    n: int
    without: int
    covered: tuple[float, float, float]
    typical: float
    data: CalibrationData

    def around(self, landmarks: Landmarks, grid: Grid) -> Landmarks:
        """Return landmarks with their regions.

        Args:
            landmarks: As predicted, on ``grid``.
            grid: In ``length_unit``.

        Raises:
            InputError: The regions follow covariances, and the landmarks have none.
        """
        basis = basis_of(grid)
        back = np.linalg.inv(basis)
        ndim = landmarks.ndim
        regions = np.full((*landmarks.visible.shape, ndim, ndim), np.nan)
        for i, k in np.argwhere(landmarks.visible > 0):
            spread = None if landmarks.covariance is None else basis @ landmarks.covariance[i, k] @ basis.T
            seen = bool(landmarks.visible[i, k] == SEEN)
            shape = self.shape.of(landmarks.types[k].name, seen, spread, ndim)
            regions[i, k] = max(self.factor, _LEAST) ** 2 * back @ shape @ back.T
        return replace(landmarks, regions=regions)

    def holds(self, one: PairedPoint) -> bool:
        """Return whether the region of a predicted point holds its partner."""
        return _needed(one, self.shape) <= with_slack(self.factor)

    def radius(self, one: PairedPoint) -> float:
        """Return the longest semi-axis of a predicted point's region, in the unit of length."""
        return self.factor * math.sqrt(float(np.linalg.eigvalsh(_shape(one, self.shape))[-1]))

    def to_data(self) -> dict[str, Any]:
        """Return the record as plain data, for YAML and JSON."""
        content = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return content | {
            "shape": asdict(self.shape) | {"widths": dict(self.shape.widths)},
            "covered": list(self.covered),
            "data": asdict(self.data),
        }

    @staticmethod
    def from_data(content: Mapping[str, Any]) -> PointRegion:
        """Return the record that `to_data` gave.

        Raises:
            ConfigError: A field is missing or unknown.
        """
        try:
            mean, low, high = content["covered"]
            special = {
                "shape": RegionShape(**content["shape"]),
                "covered": (mean, low, high),
                "data": CalibrationData(**content["data"]),
            }
            return PointRegion(**{**content, **special})
        except (KeyError, TypeError, ValueError) as error:
            raise ConfigError(f"this is not a region's record ({error}): run the calibration again") from None

    @property
    def promise(self) -> str:
        """What holds of a new group, as the end of a sentence, without the numbers of the calibration."""
        group, kept = self.data.group, f"{100 * (1 - self.alpha):g} %"
        if self.guarantee == "group":
            return f"with a chance of at least {kept} every detected landmark of a new {group} lies in its region"
        return (
            f"at least {kept} of a new {group}'s detected landmarks lie in their regions, a mean over "
            f"{PLURALS[group]}"
        )

    def __str__(self) -> str:
        mean, low, high = (100 * share for share in self.covered)
        spacing = "" if self.length_unit == "mm" else " (the images have no spacing)"
        sure = "" if self.confidence is None else f", with a confidence of {100 * self.confidence:g} %"
        return (
            f"{self.promise}{sure} (alpha {self.alpha:g}, n = {self.n} {PLURALS[self.data.group]}). Median radius: "
            f"{self.typical:.3g} {self.length_unit}{spacing}, {self.shape}. Coverage of this one calibration: "
            f"{low:.0f} to {high:.0f} % in 9 of 10, {mean:.1f} % on average"
        )


def point_losses(points: Iterable[PairedPoint], shape: RegionShape, guarantee: Guarantee) -> GroupLosses:
    """Return the losses of the groups with a paired point, as functions of the factor."""
    nothing = np.zeros(0)
    return GroupLosses(
        [Demand(group=p.group, whole=_needed(p, shape), factors=nothing, outside=nothing) for p in points],
        guarantee,
    )


def choose_shape(
    points: Sequence[PairedPoint], guarantee: Guarantee, alpha: float, element: float
) -> RegionShape:
    """Return the shape with the smallest mean region at equal loss on groups it was not fitted on.

    Args:
        points: Of the fit groups.
        guarantee: The promise under which shapes are compared.
        alpha: The mean loss at which they are.
        element: Edge length of an element, in the unit of length.
    """
    groups = sorted({one.group for one in points})
    halves = [[one for one in points if one.group in set(groups[k::2])] for k in range(2)]
    whole = _fitted(points, alpha, element)
    if not all(halves):
        return whole["constant"]
    tried = [_fitted(half, alpha, element) for half in halves]
    sizes = {
        name: np.mean([_mean_radius(halves[1 - k], tried[k][name], guarantee, alpha) for k in range(2)])
        for name in whole
        if all(name in one for one in tried)
    }
    return whole[min(sizes, key=lambda name: sizes[name])]


def fit_region(
    points: Sequence[PairedPoint],
    groups: Iterable[str],
    shape: RegionShape,
    *,
    guarantee: Guarantee,
    alpha: float,
    confidence: float | None = None,
    length_unit: Unit,
    data: CalibrationData,
) -> PointRegion:
    """Return the regions with which the mean loss of new groups is at most ``alpha``.

    Args:
        points: All paired points of the calibration groups.
        groups: All calibration groups, with and without a paired point.
        shape: Fixed on other groups.
        guarantee: Which loss.
        alpha: What the mean loss may be.
        confidence: See `least_factor`.
        length_unit: Of all lengths.
        data: Where the groups come from.

    Raises:
        InputError: Too few groups with a paired point; the level that they reach is said.
    """
    losses = point_losses(points, shape, guarantee)
    name, every = "the landmarks' regions", len(set(groups))
    if losses.n < every:
        name = f"{name} (of {every} groups {losses.n} have a detected landmark to fit them on)"
    factor = least_factor(losses, alpha, confidence=confidence, name=name)
    region = PointRegion(
        guarantee=guarantee,
        alpha=alpha,
        confidence=confidence,
        factor=factor,
        shape=shape,
        length_unit=length_unit,
        n=losses.n,
        without=len(set(groups)) - losses.n,
        covered=coverage_range(losses, factor),
        typical=0.0,
        data=data,
    )
    return replace(region, typical=float(np.median([region.radius(one) for one in points])))


def _stratum(point: str, seen: bool) -> str:
    visibility = "seen" if seen else "hidden"
    return f"{point}, {visibility}" if point else visibility


def _shape(one: PairedPoint, shape: RegionShape) -> Matrix:
    return shape.of(one.point, one.seen, one.spread, len(one.error))


def _needed(one: PairedPoint, shape: RegionShape) -> float:
    return math.sqrt(float(one.error @ np.linalg.solve(_shape(one, shape), one.error)))


def _fitted(points: Sequence[PairedPoint], alpha: float, element: float) -> dict[str, RegionShape]:
    """Return the shapes that points allow, by name; the constant one always."""
    plain: list[tuple[str, RegionShape]] = [
        ("constant", RegionShape(kind="constant", floor=0.0, widths=_UNIT))
    ]
    if points and all(one.spread is not None for one in points):
        plain += [
            (f"spread {floor:g}", RegionShape(kind="spread", floor=element * floor, widths=_UNIT))
            for floor in (0.5, 1.0, 2.0, 4.0)
        ]
    shapes = {}
    for name, one in plain:
        least = element / 2 if one.kind == "constant" else 0.5
        for by_type in (False, True):
            widths = _widths(points, one, alpha, least, by_type=by_type)
            if not by_type or len(widths) > 2:
                shapes[f"{name}, by type" if by_type else name] = replace(one, widths=widths)
    return shapes


_UNIT = {"seen": 1.0, "hidden": 1.0}


def _widths(
    points: Sequence[PairedPoint], unit: RegionShape, alpha: float, least: float, *, by_type: bool
) -> dict[str, float]:
    """Return the weighted 1 - alpha quantile of what points need, by visibility and, if asked for, by type."""
    if not points:
        return dict.fromkeys(_UNIT, 2 * least)
    weights = equal_groups([one.group for one in points])
    needed = [(_needed(one, unit), weight) for one, weight in zip(points, weights, strict=True)]

    def width(of: Sequence[bool], otherwise: float) -> float:
        own = [value for value, belongs in zip(needed, of, strict=True) if belongs]
        return max(weighted_quantile(own, 1 - alpha), least) if len(own) >= _EACH else otherwise

    every = max(weighted_quantile(needed, 1 - alpha), least)
    seen = width([one.seen for one in points], every)
    widths = {"seen": seen, "hidden": max(seen, width([not one.seen for one in points], seen))}
    for name in sorted({one.point for one in points}) if by_type else ():
        own = width([one.seen and one.point == name for one in points], widths["seen"])
        hidden = width([not one.seen and one.point == name for one in points], widths["hidden"])
        widths |= {_stratum(name, True): own, _stratum(name, False): max(own, hidden)}
    return widths


def _mean_radius(
    points: Sequence[PairedPoint], shape: RegionShape, guarantee: Guarantee, alpha: float
) -> float:
    """Return the mean radius of the disc (ball) of each region's size, each group alike, at the mean loss ``alpha``."""
    losses = point_losses(points, shape, guarantee)
    candidates = losses.candidates()
    factor = float(candidates[int(np.argmax(losses.at(candidates).mean(axis=1) <= alpha + 1e-12))])
    radii = [np.linalg.det(_shape(one, shape)) ** (1 / (2 * len(one.error))) for one in points]
    return factor * float(np.average(radii, weights=equal_groups([one.group for one in points])))

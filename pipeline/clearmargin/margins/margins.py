"""Margins of safety with a promise: how wide they are for an object, and a record that says what they hold for.

`needed` says what an object needed, `width` what that is compared with, `guarantees` which factor keeps the promise. A
group without a matched object asks for nothing: it is left out and counted, and the promise is about groups that have
one. What no prediction matches, or none well enough, has no margin; `misses` is about that.

Source: Papadopoulos et al., "Inductive confidence machines for regression", ECML 2002 (split conformal, and
scores normalised by a local scale); Mossina and Friedrich, "ConSeMa", MICCAI 2025 (margins by nested dilations of a
predicted mask); `guarantees` and `width` have their own.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from clearmargin.core import EdgeSpread, Grid, Mask
from clearmargin.core.grid import Unit
from clearmargin.core.groups import PLURALS
from clearmargin.errors import ConfigError, InputError
from clearmargin.margins.guarantees import Demand, GroupLosses, Guarantee, coverage_range, least_factor
from clearmargin.margins.reach import EdgeScale, grow, shrink
from clearmargin.margins.requirement import SIDES, Needed, Side
from clearmargin.margins.width import Features, Width

__all__ = [
    "BOTH",
    "CalibrationData",
    "Margin",
    "MatchedObject",
    "Sides",
    "demands_of",
    "fit_margin",
    "losses_of",
    "sides_of",
]

Sides = Literal["outer", "inner", "both"]
BOTH: tuple[Sides, ...] = get_args(Sides)


def sides_of(sides: Sides) -> tuple[Side, ...]:
    """Return the sides that a margin is about."""
    return SIDES if sides == "both" else (sides,)


@dataclass(frozen=True, kw_only=True)
class CalibrationData:
    """Where a margin comes from.

    Attributes:
        group: What one group is: ``patient``, ``surgery``, or ``image`` if nothing better is known.
        date: Date of the calibration, ISO 8601.
        digest: SHA-256 of the calibration data.
    """

    group: str
    date: str
    digest: str


@dataclass(frozen=True, kw_only=True, eq=False)
class MatchedObject:
    """One predicted object whose partner is known.

    Attributes:
        group: The patient, surgery or image that it belongs to.
        features: What is known of it without its partner (`width.features_of`).
        needed: What it needed: by side and by the floor of the edge's scale, None for one margin all around.
        mean_scale: By floor, the mean scale of its edge.
    """

    group: str
    features: Features
    needed: Mapping[tuple[Side, float | None], Needed]
    mean_scale: Mapping[float, float]


@dataclass(frozen=True, kw_only=True)
class Margin:
    """A calibrated margin and what it promises.

    Attributes:
        guarantee: Of what the loss is a share, see `guarantees`.
        sides: ``outer``: true objects lie within the grown prediction. ``inner``: the shrunk prediction lies within
            them.
            ``both``: both at once, so that the true size lies between.
        alpha: What the mean loss of new groups may be.
        confidence: None, or the share of calibrations for which the loss is kept.
        factor: What widths are multiplied by.
        width: Width of an object.
        length_unit: ``mm``, or ``px`` if the calibration images have no spacing.
        n: Groups that it was calibrated on.
        without: Further calibration groups, which had no matched object.
        match_iou: IoU from which a prediction and a true object are matched.
        covered: Mean over calibrations, low and high: what new groups are covered (`guarantees.coverage_range`).
        typical: Median margin of the calibration objects by side, in ``length_unit``; 0 for a side that is not asked
            for.
        data: Where it comes from.
    """

    guarantee: Guarantee
    sides: Sides
    alpha: float
    confidence: float | None
    factor: float
    width: Width
    length_unit: Unit
    n: int
    without: int
    match_iou: float
    covered: tuple[float, float, float]
    typical: Mapping[Side, float]
    data: CalibrationData

    def length(self, side: Side, features: Features, edge: EdgeSpread | None = None) -> float:
        """Return the margin of an object in ``length_unit``; of a local one its mean along the edge."""
        value = self.width.margin(side, features, self.factor)
        floor = self.width.floor
        return value if floor is None else value * _mean_scale(edge, floor)

    def region(
        self, mask: Mask, grid: Grid, side: Side, features: Features, edge: EdgeSpread | None = None
    ) -> Mask:
        """Return the predicted ``mask`` grown (outer) or shrunk (inner) by this margin.

        Args:
            mask: Mask of the predicted object.
            grid: Grid of the mask.
            side: Which of the two.
            features: Features of the object.
            edge: Edge of the object, if the width follows it.

        Raises:
            InputError: The margin is in mm and the grid in px, or the other way round.
            ValueError: The width follows the edge and there is none.
        """
        if grid.unit != self.length_unit:
            raise InputError(
                f"the margin is in {self.length_unit} and the image in {grid.unit}: a margin holds for images "
                "like those it was calibrated on; calibrate one on images with the same unit"
            )
        value, floor, scale = self.width.margin(side, features, self.factor), self.width.floor, None
        if floor is not None:
            if edge is None:
                raise ValueError(
                    "the margin follows the edge's standard deviation, and the prediction has no edge"
                )
            scale = EdgeScale(points=edge.points, sigma=edge.sigma, floor=floor)
        return (grow if side == "outer" else shrink)(mask, grid, value, scale)

    def to_data(self) -> dict[str, Any]:
        """Return the record as plain data, for YAML and JSON."""
        content = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return content | {
            "width": self.width.to_data(),
            "covered": list(self.covered),
            "typical": dict(self.typical),
            "data": asdict(self.data),
        }

    @staticmethod
    def from_data(content: Mapping[str, Any]) -> Margin:
        """Return the record that `to_data` gave.

        Raises:
            ConfigError: A field is missing or unknown.
        """
        try:
            mean, low, high = content["covered"]
            special = {
                "width": Width.from_data(content["width"]),
                "covered": (mean, low, high),
                "data": CalibrationData(**content["data"]),
            }
            return Margin(**{**content, **special})
        except (KeyError, TypeError, ValueError) as error:
            raise ConfigError(f"this is not a margin's record ({error}): run the calibration again") from None

    @property
    def promise(self) -> str:
        """What holds of a new group, as the end of a sentence, without the numbers of the calibration."""
        group, kept = self.data.group, f"{100 * (1 - self.alpha):g} %"
        place = {
            "outer": "within the predicted one grown by its outer margin",
            "inner": "around the predicted one shrunk by its inner margin",
            "both": "between the predicted one shrunk by its inner margin and grown by its outer margin",
        }[self.sides]
        return {
            "object": f"at least {kept} of a new {group}'s matched objects lie {place}, a mean over {PLURALS[group]}",
            "group": f"with a chance of at least {kept} every matched object of a new {group} lies {place}",
            "risk": f"at least {kept} of the edge of a new {group}'s matched objects lies {place}, a mean over "
            f"{PLURALS[group]}",
        }[self.guarantee]

    def __str__(self) -> str:
        mean, low, high = (100 * share for share in self.covered)
        unit, spacing = self.length_unit, "" if self.length_unit == "mm" else " (the images have no spacing)"
        typical = " and ".join(
            f"{side} {self.typical[side]:.3g} {unit}" for side in SIDES if self.sides in (side, "both")
        )
        sure = "" if self.confidence is None else f", with a confidence of {100 * self.confidence:g} %"
        return (
            f"{self.promise}{sure} (alpha {self.alpha:g}, n = {self.n} {PLURALS[self.data.group]}). Median margin: "
            f"{typical}{spacing}, {self.width}. Coverage of this one calibration: {low:.0f} to {high:.0f} % in 9 of "
            f"10, {mean:.1f} % on average"
        )


def _mean_scale(edge: EdgeSpread | None, floor: float) -> float:
    return floor if edge is None or not edge.sigma.size else float(edge.sigma.mean()) + floor


def demands_of(objects: Iterable[MatchedObject], width: Width, sides: Sides) -> list[Demand]:
    """Return what objects ask of the factor; those that were not measured with the width's floor are left out."""
    of_sides = sides_of(sides)
    return [
        _demand(one, width, of_sides)
        for one in objects
        if all((side, width.floor) in one.needed for side in of_sides)
    ]


def _demand(one: MatchedObject, width: Width, sides: Sequence[Side]) -> Demand:
    parts = [one.needed[side, width.floor] for side in sides]
    whole = max(
        float(width.factor(side, one.features, part.whole)) for side, part in zip(sides, parts, strict=True)
    )
    steps = [
        (width.factor(side, one.features, part.distances), part.outside)
        for side, part in zip(sides, parts, strict=True)
    ]
    factors, outside = steps[0] if len(steps) == 1 else _larger(steps)
    return Demand(group=one.group, whole=whole, factors=factors, outside=outside)


def _larger(
    steps: Sequence[tuple[NDArray[np.float64], NDArray[np.float64]]],
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the larger of falling step functions, as steps."""
    factors = np.unique(np.concatenate([places for places, _ in steps]))
    below = [
        np.append(outside, 0.0)[np.searchsorted(places, factors, side="left")] for places, outside in steps
    ]
    return factors, np.max(below, axis=0)


def losses_of(
    objects: Iterable[MatchedObject], width: Width, sides: Sides, guarantee: Guarantee
) -> GroupLosses:
    """Return the losses of the groups with a matched object, as functions of the factor."""
    return GroupLosses(demands_of(objects, width, sides), guarantee)


def fit_margin(
    objects: Sequence[MatchedObject],
    groups: Iterable[str],
    width: Width,
    *,
    guarantee: Guarantee,
    sides: Sides,
    alpha: float,
    confidence: float | None = None,
    length_unit: Unit,
    match_iou: float,
    data: CalibrationData,
) -> Margin:
    """Return the margin with which the mean loss of new groups is at most ``alpha``.

    Args:
        objects: All matched objects of the calibration groups.
        groups: All calibration groups, with and without a matched object.
        width: Fixed on other groups.
        guarantee: Which loss.
        sides: Sides of the object's edge.
        alpha: What the mean loss may be.
        confidence: See `least_factor`.
        length_unit: Length unit of all lengths.
        match_iou: IoU from which objects are matched.
        data: Where the groups come from.

    Raises:
        InputError: Too few groups with a matched object; the level that they reach is said.
        ValueError: An object belongs to no calibration group.
    """
    everyone = set(groups)
    losses = losses_of(objects, width, sides, guarantee)
    if not set(losses.groups) <= everyone:
        raise ValueError(f"{len(set(losses.groups) - everyone)} group(s) have objects and are not listed")
    named = "the margin on both sides" if sides == "both" else f"the {sides} margin"
    factor = least_factor(losses, alpha, confidence=confidence, name=named)
    margin = Margin(
        guarantee=guarantee,
        sides=sides,
        alpha=alpha,
        confidence=confidence,
        factor=factor,
        width=width,
        length_unit=length_unit,
        n=losses.n,
        without=len(everyone) - losses.n,
        match_iou=match_iou,
        covered=coverage_range(losses, factor),
        typical=dict.fromkeys(SIDES, 0.0),
        data=data,
    )
    return replace(margin, typical={side: typical_length(objects, margin, side) for side in SIDES})


def typical_length(objects: Iterable[MatchedObject], margin: Margin, side: Side) -> float:
    """Return the median margin of objects on one side, in the unit of length; 0 if it is not asked for, or of none."""
    if margin.sides not in (side, "both"):
        return 0.0
    floor = margin.width.floor
    lengths = [
        margin.width.margin(side, one.features, margin.factor)
        * (1.0 if floor is None else one.mean_scale[floor])
        for one in objects
        if (side, floor) in one.needed
    ]
    return float(np.median(lengths)) if lengths else 0.0

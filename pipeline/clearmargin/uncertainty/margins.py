"""Margins with a promise: split-conformal, one score a unit, and a record that says what it holds for.

A unit's score is the largest margin that any of its matched instances needed, so that the calibrated margin
covers all of them at once. A unit without a matched instance asks for nothing: it is left out and counted, and
the promise is about units that have one. Missed instances have no margin; `misses` controls them.

Source: Papadopoulos et al., "Inductive confidence machines for regression", ECML 2002 (split conformal, and
scores normalised by a local scale); Vovk et al., 2005 (Mondrian strata); Mossina and Friedrich, "ConSeMa",
MICCAI 2025 (margins by nested dilations of a predicted mask).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from clearmargin.core import Grid, Mask
from clearmargin.core.grid import Unit
from clearmargin.core.slack import with_slack
from clearmargin.errors import ConfigError, InputError
from clearmargin.uncertainty.conformal import conformal_quantile, expected_coverage
from clearmargin.uncertainty.needed import Need, Promise
from clearmargin.uncertainty.reach import EdgeScale, grow, shrink

__all__ = [
    "CalibrationData",
    "Margin",
    "StratifiedMargins",
    "covered_units",
    "fit_margin",
    "fit_margins",
    "unit_scores",
]


@dataclass(frozen=True, kw_only=True)
class CalibrationData:
    """Where a margin comes from.

    Attributes:
        exchangeable: What one unit is: ``patient``, ``surgery``, or ``image`` where nothing better is known.
        date: Of the calibration, ISO 8601.
        digest: SHA-256 of the calibration data.
    """

    exchangeable: str
    date: str
    digest: str


@dataclass(frozen=True, kw_only=True)
class Margin:
    """A calibrated margin and what it promises.

    Attributes:
        promise: What holds of each matched instance.
        value: The margin in ``length_unit``; with a floor, the factor that (sigma + floor) is multiplied by.
        length_unit: ``mm``, or ``px`` where the calibration images have no spacing.
        alpha: Share of units that may fail.
        n: Units that it was calibrated on.
        without: Further calibration units, which had no matched instance (of the stratum).
        stratum: Of the instances; ``all`` for no strata.
        data: Where it comes from.
    """

    promise: Promise
    value: float
    length_unit: Unit
    alpha: float
    n: int
    without: int
    stratum: str
    data: CalibrationData

    def region(self, mask: Mask, grid: Grid, scale: EdgeScale | None = None) -> Mask:
        """Return the predicted ``mask`` grown (outer) or shrunk (inner) by this margin.

        Raises:
            InputError: The margin is in mm and the grid in px, or the other way round.
            ValueError: The margin has a floor and ``scale`` is missing or has another one.
        """
        if grid.unit != self.length_unit:
            raise InputError(
                f"the margin is in {self.length_unit} and the image in {grid.unit}: a margin holds for images "
                "like those it was calibrated on; calibrate one on images with the same unit"
            )
        if (None if scale is None else scale.floor) != self.promise.floor:
            raise ValueError(f"the margin has floor {self.promise.floor}, the scale {scale and scale.floor}")
        return (grow if self.promise.side == "outer" else shrink)(mask, grid, self.value, scale)

    def to_data(self) -> dict[str, Any]:
        """Return the record as plain data, for YAML and JSON."""
        return asdict(self)

    @staticmethod
    def from_data(content: Mapping[str, Any]) -> Margin:
        """Return the record that `to_data` gave.

        Raises:
            ConfigError: A field is missing or unknown.
        """
        try:
            rest = {k: v for k, v in content.items() if k not in ("promise", "data")}
            return Margin(
                promise=Promise(**content["promise"]), data=CalibrationData(**content["data"]), **rest
            )
        except (KeyError, TypeError) as error:
            raise ConfigError(f"this is not a margin's record ({error}): run the calibration again") from None

    def __str__(self) -> str:
        unit, promise = self.length_unit, self.promise
        size = f"{self.value:.3g} {unit}"
        if promise.floor is not None:
            size = f"{self.value:.3g} x (the edge's standard deviation + {promise.floor:g} {unit})"
        who = "" if self.stratum == "all" else f" of stratum '{self.stratum}'"
        spacing = "" if unit == "mm" else " The images have no spacing, so this is in pixels."
        return (
            f"{promise.side} margin {size}: for a new {self.data.exchangeable} the chance is at least "
            f"{100 * (1 - self.alpha):g} % that for every matched instance{who} {promise}. alpha {self.alpha:g}, "
            f"n = {self.n} {self.data.exchangeable} units ({self.without} more had no matched instance), expected "
            f"coverage {100 * expected_coverage(self.n, self.alpha):.1f} %, calibrated {self.data.date} on data "
            f"{self.data.digest[:12]}. It holds for data like the calibration data and says nothing of instances "
            f"that were missed.{spacing}"
        )


@dataclass(frozen=True, kw_only=True)
class StratifiedMargins:
    """A margin for each stratum that has the units for one (Mondrian conformal prediction).

    Attributes:
        margins: By stratum.
        refused: Why there is none, by stratum.
    """

    margins: Mapping[str, Margin]
    refused: Mapping[str, str]

    def of(self, stratum: str) -> Margin:
        """Return a stratum's margin.

        Raises:
            InputError: It was refused, or no calibration instance was in it; with the reason.
        """
        if stratum in self.margins:
            return self.margins[stratum]
        raise InputError(
            self.refused.get(stratum, f"no calibration instance is in stratum '{stratum}': it has no margin")
        )


def unit_scores(needs: Iterable[Need]) -> dict[str, float]:
    """Return the largest needed margin of each unit, by unit."""
    out: dict[str, float] = {}
    for need in needs:
        out[need.unit] = max(out.get(need.unit, 0.0), need.value)
    return out


def fit_margin(
    needs: Sequence[Need],
    units: Iterable[str],
    promise: Promise,
    alpha: float,
    data: CalibrationData,
    *,
    stratum: str = "all",
) -> Margin:
    """Return the margin that at least ``1 - alpha`` of new units are covered by.

    Args:
        needs: Of all matched instances of the calibration units, for this promise.
        units: All calibration units, with and without a matched instance.
        promise: What was asked for.
        alpha: Share of units that may fail.
        data: Where the units come from.
        stratum: What the record calls these instances.

    Raises:
        InputError: Too few units with a matched instance for ``alpha`` (the best reachable level is said), or
            instances in mm and in px together.
        ValueError: An instance belongs to no calibration unit.
    """
    scores = unit_scores(needs)
    everyone = set(units)
    if not scores.keys() <= everyone:
        raise ValueError(f"{len(scores.keys() - everyone)} unit(s) have instances and are not listed")
    _refuse_mixed_lengths(needs)
    name = f"the {promise.side} margin" + ("" if stratum == "all" else f" of stratum '{stratum}'")
    value = conformal_quantile(list(scores.values()), alpha, name=name)
    return Margin(
        promise=promise,
        value=value,
        length_unit=needs[0].length_unit,
        alpha=alpha,
        n=len(scores),
        without=len(everyone) - len(scores),
        stratum=stratum,
        data=data,
    )


def fit_margins(
    needs: Sequence[Need], units: Iterable[str], promise: Promise, alpha: float, data: CalibrationData
) -> StratifiedMargins:
    """Return a margin for each stratum, each calibrated on the units with a matched instance in it.

    Arguments are those of `fit_margin`. A stratum too small for ``alpha`` gets no margin but the reason.

    Raises:
        InputError: Instances in mm and in px together.
    """
    _refuse_mixed_lengths(needs)
    everyone = list(units)
    margins, refused = {}, {}
    for stratum in sorted({need.stratum for need in needs}):
        chosen = [need for need in needs if need.stratum == stratum]
        try:
            margins[stratum] = fit_margin(chosen, everyone, promise, alpha, data, stratum=stratum)
        except InputError as error:
            refused[stratum] = str(error)
    return StratifiedMargins(margins=margins, refused=refused)


def _refuse_mixed_lengths(needs: Iterable[Need]) -> None:
    if len({need.length_unit for need in needs}) > 1:
        raise InputError("images in mm and in px cannot share a margin: calibrate them apart")


def covered_units(margin: Margin, needs: Iterable[Need]) -> dict[str, bool]:
    """Return for each unit with a matched instance whether the margin covers all of them.

    Args:
        margin: Calibrated on other units, or on other data, to see what a shift does to it.
        needs: For the margin's promise, of its stratum.

    Raises:
        InputError: The instances are in another unit of length than the margin.
    """
    chosen = list(needs)
    if any(need.length_unit != margin.length_unit for need in chosen):
        raise InputError(
            f"the margin is in {margin.length_unit} and some instance is not: judge it on others"
        )
    return {unit: score <= with_slack(margin.value) for unit, score in unit_scores(chosen).items()}

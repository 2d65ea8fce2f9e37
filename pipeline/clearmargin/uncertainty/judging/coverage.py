"""How often margins hold on units that they were not calibrated on, alike and from another stratum."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from clearmargin.core.slack import with_slack
from clearmargin.errors import InputError
from clearmargin.uncertainty.calibration import Calibration
from clearmargin.uncertainty.conformal import conformal_quantile, coverage_over_splits, expected_coverage
from clearmargin.uncertainty.judging.case import JudgedCase
from clearmargin.uncertainty.margins import Margin, covered_units, unit_scores
from clearmargin.uncertainty.needed import Need
from clearmargin.uncertainty.observed import ObservedCase, needs_of

__all__ = ["SPLITS", "Coverage", "Shift", "coverage_of", "shifts_of"]

SPLITS = 100
"""Random splits of the margin and judged units together."""


@dataclass(frozen=True, kw_only=True)
class Coverage:
    """One margin on the judged units.

    Attributes:
        margin: What was calibrated.
        units: Judged units with a matched instance.
        covered: Those of them that it covers.
        low: Clopper-Pearson interval of the share, 95 %.
        high: Its other end.
        expected: Mean coverage over calibrations, `expected_coverage`.
        stretch: Mean area with margin over true area; None for inner margins and strata.
        over_splits: Coverage of each random split of the margin and judged units together; empty where no judged
            unit has a matched instance.
    """

    margin: Margin
    units: int
    covered: int
    low: float
    high: float
    expected: float
    stretch: float | None
    over_splits: tuple[float, ...]

    @property
    def splits(self) -> tuple[float, float, float]:
        """Mean coverage over the splits, and what 2.5 % of them are below and above; zeros for none."""
        if not self.over_splits:
            return 0.0, 0.0, 0.0
        low, high = np.quantile(self.over_splits, [0.025, 0.975])
        return float(np.mean(self.over_splits)), float(low), float(high)


@dataclass(frozen=True, kw_only=True)
class Shift:
    """A 100 % margin calibrated on one stratum of the card and judged on another.

    Attributes:
        name: Of the margin, such as ``outer, 100 %`` or ``outer, 100 %, scaled``.
        alpha: Share of units that may fail.
        column: Of the card.
        calibrated_on: Value of the column; empty for all units.
        judged_on: Value of the column.
        n: Units that calibrated.
        value: The margin or factor.
        units: Judged units.
        covered: Those of them that are covered.
    """

    name: str
    alpha: float
    column: str
    calibrated_on: str
    judged_on: str
    n: int
    value: float
    units: int
    covered: int


def coverage_of(
    calibration: Calibration,
    cases: Sequence[JudgedCase],
    margin_cases: Sequence[ObservedCase],
    rng: np.random.Generator,
) -> list[Coverage]:
    """Return how often each margin holds, and would have held over random splits.

    Args:
        calibration: Whose margins.
        cases: Judged ones.
        margin_cases: Those that the margins were calibrated on.
        rng: Of the splits.
    """
    return [
        _coverage(calibration, k, margin, cases, margin_cases, rng)
        for k, margin in enumerate(calibration.margins)
    ]


def shifts_of(
    calibration: Calibration, fitted: Sequence[ObservedCase], fresh: Sequence[ObservedCase]
) -> list[Shift]:
    """Return 100 % margins calibrated on each value of the card's strata, and on all, and judged on each.

    A value with too few units for alpha calibrates nothing; a card without strata, or with one value, has no shift.

    Args:
        calibration: Whose promises, alphas and threshold.
        fitted: Cases of the margin units.
        fresh: Judged cases.
    """
    columns = {
        name: sorted({case.strata[name] for case in fresh if name in case.strata})
        for name in sorted({name for case in fresh for name in case.strata})
    }
    rows = []
    for margin in calibration.margins:
        if margin.promise.share != 1 or margin.stratum != "all":
            continue
        for column, values in columns.items():
            if len(values) > 1:
                before, after = (_by_value(calibration, margin, of, column) for of in (fitted, fresh))
                every = list(unit_scores(needs_of(fitted, margin.promise, calibration.threshold)).values())
                rows += _shifts(margin, column, {"": every} | before, after)
    return rows


def _by_value(
    calibration: Calibration, margin: Margin, cases: Sequence[ObservedCase], column: str
) -> dict[str, list[float]]:
    """Return the scores of the units with a matched instance, by the column's value."""
    return {
        value: list(
            unit_scores(
                needs_of(
                    [case for case in cases if case.strata.get(column) == value],
                    margin.promise,
                    calibration.threshold,
                )
            ).values()
        )
        for value in sorted({case.strata[column] for case in cases if column in case.strata})
    }


def _shifts(
    margin: Margin, column: str, before: dict[str, list[float]], after: dict[str, list[float]]
) -> list[Shift]:
    rows = []
    for here, calibrating in before.items():
        try:
            value = conformal_quantile(calibrating, margin.alpha)
        except InputError:
            continue
        rows += [
            Shift(
                name=f"{margin.promise.side}, {margin.promise.short}",
                alpha=margin.alpha,
                column=column,
                calibrated_on=here,
                judged_on=there,
                n=len(calibrating),
                value=value,
                units=len(judged),
                covered=sum(score <= with_slack(value) for score in judged),
            )
            for there, judged in after.items()
        ]
    return rows


def _coverage(
    calibration: Calibration,
    k: int,
    margin: Margin,
    cases: Sequence[JudgedCase],
    margin_cases: Sequence[ObservedCase],
    rng: np.random.Generator,
) -> Coverage:
    from scipy.stats import binomtest

    def needs(of: Sequence[ObservedCase]) -> list[Need]:
        strata = None if margin.stratum == "all" else calibration.strata
        every = needs_of(of, margin.promise, calibration.threshold, strata)
        return [need for need in every if need.stratum == margin.stratum]

    fitted, fresh = needs(margin_cases), needs([case.observed for case in cases])
    held = list(covered_units(margin, fresh).values())
    share = binomtest(sum(held), len(held)).proportion_ci(0.95, "exact") if held else None
    values = np.zeros(0)
    if held:
        scores = [*unit_scores(fitted).values(), *unit_scores(fresh).values()]
        values, _ = coverage_over_splits(scores, margin.n, margin.alpha, splits=SPLITS, rng=rng)
    areas = [area for case in cases for area in case.stretches.get(k, [])]
    return Coverage(
        margin=margin,
        units=len(held),
        covered=sum(held),
        low=0.0 if share is None else float(share.low),
        high=1.0 if share is None else float(share.high),
        expected=expected_coverage(margin.n, margin.alpha),
        stretch=float(np.mean(areas)) if areas else None,
        over_splits=tuple(float(v) for v in values),
    )

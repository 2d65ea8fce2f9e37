"""What a calibration does on units that nothing was fitted on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from clearmargin.metrics.statistics import Interval, bootstrap_means
from clearmargin.uncertainty.calibration import Calibration
from clearmargin.uncertainty.judging.case import JudgedCase
from clearmargin.uncertainty.judging.coverage import Coverage, Shift, coverage_of, shifts_of
from clearmargin.uncertainty.judging.failures import Failure, failures_of
from clearmargin.uncertainty.judging.scaling_errors import Reliabilities, Scaled, pixel_errors, score_errors
from clearmargin.uncertainty.observed import ObservedCase, PixelCounts

__all__ = ["Judgement", "judge"]


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """Everything that was found.

    Attributes:
        units: Judged units.
        cases: Judged cases.
        misses: Mean share of a unit's instances that are missed at each threshold: that of the margins, and by
            alpha those against misses; none where no unit has an instance.
        coverage: One for each margin.
        shifts: One for each 100 % margin and pair of values of the card's strata.
        scaled: One for each error of each kind of probability.
        diagrams: One for each kind of probability.
        failures: One for each uncertainty and risk.
    """

    units: int
    cases: int
    misses: Mapping[str, Interval]
    coverage: tuple[Coverage, ...]
    shifts: tuple[Shift, ...]
    scaled: tuple[Scaled, ...]
    diagrams: tuple[Reliabilities, ...]
    failures: tuple[Failure, ...]


def judge(
    calibration: Calibration,
    cases: Sequence[JudgedCase],
    pixels: tuple[Mapping[str, PixelCounts], Mapping[str, PixelCounts]],
    margin_cases: Sequence[ObservedCase],
    *,
    risk_limit: float,
    rng: np.random.Generator,
    resamples: int = 1000,
) -> Judgement:
    """Return everything that is reported of the judged cases.

    Args:
        calibration: Fitted on other units.
        cases: At least one.
        pixels: Their counts by unit, before and after scaling; both empty where there is no foreground map.
        margin_cases: Those that the margins were calibrated on.
        risk_limit: HD95 over which an instance or a case has failed, in the grid's unit.
        rng: Of splits and resamples.
        resamples: Of each interval.
    """
    observed = [case.observed for case in cases]
    of_scores, of_pixels = (
        score_errors(calibration, observed, rng, resamples),
        pixel_errors(*pixels, rng, resamples),
    )
    return Judgement(
        units=len({case.unit for case in observed}),
        cases=len(cases),
        misses=_misses(calibration, observed, rng),
        coverage=tuple(coverage_of(calibration, cases, margin_cases, rng)),
        shifts=tuple(shifts_of(calibration, margin_cases, observed)),
        scaled=(*of_scores[1], *of_pixels[1]),
        diagrams=(*of_scores[0], *of_pixels[0]),
        failures=tuple(failures_of(calibration, cases, risk_limit=risk_limit, rng=rng, resamples=resamples)),
    )


def _misses(
    calibration: Calibration, cases: Sequence[ObservedCase], rng: np.random.Generator
) -> dict[str, Interval]:
    thresholds = {"margins": calibration.threshold}
    thresholds |= {f"alpha {m.alpha:g}": m.threshold for m in calibration.misses}
    by_unit: dict[str, list[float]] = {}
    for case in cases:
        for one in case.found:
            by_unit.setdefault(one.unit, []).append(-np.inf if one.score is None else one.score)
    if not by_unit:
        return {}
    losses = {
        name: [float(np.mean(np.array(scores) < threshold)) for scores in by_unit.values()]
        for name, threshold in thresholds.items()
    }
    return bootstrap_means(losses, list(by_unit), rng=rng)

"""What a calibration does on groups that nothing was fitted on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from clearmargin.core.groups import PLURALS
from clearmargin.margins.calibration import Calibration
from clearmargin.margins.judging.case import JudgedCase
from clearmargin.margins.judging.coverage import (
    Coverage,
    FalseAlarms,
    Shift,
    alarms_of,
    coverage_of,
    shifts_of,
)
from clearmargin.margins.judging.expected import Expected, expected_of
from clearmargin.margins.judging.failures import Failure, failures_of
from clearmargin.margins.judging.points import (
    ClearanceCoverage,
    PointCoverage,
    clearance_coverage_of,
    point_coverage_of,
)
from clearmargin.margins.judging.scaling_errors import Reliabilities, Scaled, pixel_errors, score_errors
from clearmargin.margins.observations import ObservedCase, PixelCounts
from clearmargin.margins.requirement import SIDES, Side
from clearmargin.metrics.intervals import Interval, bootstrap_means

__all__ = ["Judgement", "judge"]


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """Everything that was found.

    Attributes:
        groups: Judged groups.
        cases: Judged cases.
        missed: Mean share of a group's instances that are missed, merged or cut; None where no group has an instance.
        coverage: One for each margin.
        sizes: By side, size of the regions over true size, a mean over matched instances.
        empty: Share of the inner regions that are empty; None if there is none.
        shifts: One for each margin that is applied and pair of values of the card's strata.
        alarms: Cases that are warned of as unlike the calibration cases, by stratum.
        expected: Predicted NSD and the edge's standard deviation against what was measured; none without samples.
        scaled: One for each error of each kind of probability.
        diagrams: One for each kind of probability.
        failures: One for each uncertainty and risk; none for landmarks alone.
        points: One for each promise about landmarks.
        clearances: One for each promise about distances to a target.
    """

    groups: int
    cases: int
    missed: Interval | None
    coverage: tuple[Coverage, ...]
    sizes: Mapping[Side, float]
    empty: float | None
    shifts: tuple[Shift, ...]
    alarms: tuple[FalseAlarms, ...]
    expected: tuple[Expected, ...]
    scaled: tuple[Scaled, ...]
    diagrams: tuple[Reliabilities, ...]
    failures: tuple[Failure, ...]
    points: tuple[PointCoverage, ...] = ()
    clearances: tuple[ClearanceCoverage, ...] = ()

    def doubts(self, calibration: Calibration) -> tuple[str, ...]:
        """Return how these cases contradict the promises that are applied, a sentence each; mostly none.

        A promise is contradicted if the interval of the coverage here lies below the range that is stated for one
        calibration. Chance does that in a few per cent of calibrations; judged cases of another kind, in most.
        """
        applied, around = calibration.applied(), calibration.applied_points()
        stated = [
            (f"the {row.margin.sides} margin covers", row.margin.covered, row.groups, row.covered)
            for row in self.coverage
            if row.margin in applied
        ]
        stated += [
            ("the regions of landmarks cover", row.region.covered, row.groups, row.covered)
            for row in self.points
            if row.region == around
        ]
        stated += [
            (
                f"the distances to '{row.clearance.target}' cover",
                row.clearance.covered,
                row.groups,
                row.covered,
            )
            for row in self.clearances
            if row.clearance in calibration.applied_clearances()
        ]
        return tuple(
            f"the judged cases do not bear this out: on {groups} {PLURALS[calibration.data.group]} {what} "
            f"{100 * here.estimate:.0f} % ({100 * (here.low or 0):.0f} to {100 * here.high:.0f}), and "
            f"{100 * least:.0f} to {100 * most:.0f} % are stated: find out how they differ, or calibrate on more"
            for what, (_, least, most), groups, here in stated
            if here is not None and here.high is not None and here.high < least
        )


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
        calibration: Fitted on other groups.
        cases: At least one.
        pixels: Their counts by group, before and after scaling; both empty if there is no foreground map.
        margin_cases: Those that the margins were calibrated on.
        risk_limit: HD95 over which an instance or a case has failed, in the grid's unit.
        rng: Of splits and resamples.
        resamples: Resamples of each interval.
    """
    observed = [case.observed for case in cases]
    inner = [ratio for case in cases for ratio in case.sizes.get("inner", [])]
    of_scores, of_pixels = (
        score_errors(calibration, observed, rng, resamples),
        pixel_errors(*pixels, rng, resamples),
    )
    return Judgement(
        groups=len({case.group for case in observed}),
        cases=len(cases),
        missed=_missed(calibration, observed, rng),
        coverage=tuple(coverage_of(calibration, cases, margin_cases, rng)),
        sizes={
            side: float(np.mean(ratios))
            for side in SIDES
            if (ratios := [ratio for case in cases for ratio in case.sizes.get(side, [])])
        },
        empty=float(np.mean([ratio == 0 for ratio in inner])) if inner else None,
        alarms=tuple(alarms_of(calibration, observed)),
        shifts=tuple(shifts_of(calibration, margin_cases, observed)),
        expected=tuple(expected_of(calibration, observed)),
        scaled=(*of_scores[1], *of_pixels[1]),
        diagrams=(*of_scores[0], *of_pixels[0]),
        failures=tuple(failures_of(calibration, cases, risk_limit=risk_limit, rng=rng, resamples=resamples))
        if calibration.margins or not calibration.points
        else (),
        points=tuple(point_coverage_of(calibration, observed, margin_cases, rng)),
        clearances=tuple(clearance_coverage_of(calibration, observed, margin_cases, rng)),
    )


def _missed(
    calibration: Calibration, cases: Sequence[ObservedCase], rng: np.random.Generator
) -> Interval | None:
    by_group: dict[str, list[bool]] = {}
    for case in cases:
        for one in case.found:
            score = -1.0 if one.score is None or one.iou < calibration.match_iou else one.score
            by_group.setdefault(one.group, []).append(score < calibration.thresholds.of(one.label))
    if not by_group:
        return None
    losses = {"missed": [float(np.mean(missed)) for missed in by_group.values()]}
    return bootstrap_means(losses, list(by_group), rng=rng)["missed"]

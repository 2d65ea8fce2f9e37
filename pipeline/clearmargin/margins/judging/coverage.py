"""How often margins hold on groups that they were not calibrated on, alike and from another stratum."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from clearmargin.core.slack import with_slack
from clearmargin.errors import InputError
from clearmargin.margins.calibration import Calibration
from clearmargin.margins.drift import Features, KnownCases, false_alarms, known_cases, score_features
from clearmargin.margins.guarantees import GroupLosses, least_factor
from clearmargin.margins.judging.case import JudgedCase
from clearmargin.margins.margins import Margin, MatchedObject, demands_of, losses_of, typical_length
from clearmargin.margins.observations import ObservedCase, matched_objects
from clearmargin.margins.requirement import Side
from clearmargin.metrics.intervals import Interval, bootstrap_means

__all__ = [
    "SPLITS",
    "Coverage",
    "FalseAlarms",
    "Shift",
    "SizeCoverage",
    "alarms_of",
    "coverage_of",
    "random_splits",
    "shifts_of",
    "split_range",
]

SPLITS = 100
"""Random splits of the margin and judged groups together."""


@dataclass(frozen=True, kw_only=True)
class SizeCoverage:
    """Objects of one third of the judged sizes: how many the margin covers.

    Attributes:
        name: ``small``, ``medium`` or ``large``.
        objects: Number of matched ones.
        covered: Those of them that it covers as a whole.
        typical: Their median margin on the margin's first side.
    """

    name: str
    objects: int
    covered: int
    typical: float


@dataclass(frozen=True, kw_only=True)
class Coverage:
    """One margin on the judged groups.

    Attributes:
        margin: What was calibrated.
        groups: Judged groups with a matched object.
        covered: One less their mean loss, with a bootstrap interval over groups; None if there is no group.
        objects: Matched objects of the judged groups.
        objects_covered: Those of them that are covered as a whole, each counted alike.
        over_splits: Coverage of each random split of the margin and judged groups together; empty where no judged
            group has a matched object, or too few are left.
        by_size: By thirds of the judged objects' sizes.
    """

    margin: Margin
    groups: int
    covered: Interval | None
    objects: int
    objects_covered: int
    over_splits: tuple[float, ...]
    by_size: tuple[SizeCoverage, ...]

    @property
    def splits(self) -> tuple[float, float, float]:
        """Mean coverage over the splits, and what 5 % of them are below and above; zeros for none."""
        return split_range(self.over_splits)


def split_range(shares: Sequence[float]) -> tuple[float, float, float]:
    """Return the mean of the splits' coverage, and what 5 % of them are below and above; zeros for none."""
    if not shares:
        return 0.0, 0.0, 0.0
    low, high = np.quantile(shares, [0.05, 0.95])
    return float(np.mean(shares)), float(low), float(high)


@dataclass(frozen=True, kw_only=True)
class Shift:
    """A margin calibrated on one stratum of the card and judged on another, with the width of all fit groups.

    Attributes:
        name: Name of the margin, such as ``outer, by object``.
        alpha: What the mean loss may be.
        column: Column of the card.
        calibrated_on: Value of the column; empty for all groups.
        judged_on: Value of the column.
        n: Groups that calibrated.
        groups: Judged groups.
        covered: One less their mean loss.
        refused: Judged cases that look like no calibration case of ``calibrated_on``: nothing is promised of them.
        cases: Judged cases.
        covered_after: One less the mean loss of the groups whose cases were not refused; None if all were.
    """

    name: str
    alpha: float
    column: str
    calibrated_on: str
    judged_on: str
    n: int
    groups: int
    covered: float
    refused: int
    cases: int
    covered_after: float | None


@dataclass(frozen=True, kw_only=True)
class FalseAlarms:
    """How many judged cases of a stratum are warned of as unlike the calibration cases."""

    stratum: str
    cases: int
    warned: int


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
        rng: Random generator for the splits and the resamples.
    """
    fitted = _objects(calibration, margin_cases)
    fresh = _objects(calibration, [case.observed for case in cases])
    return [_coverage(margin, fitted, fresh, rng) for margin in calibration.margins]


def _objects(calibration: Calibration, cases: Sequence[ObservedCase]) -> list[MatchedObject]:
    return matched_objects(cases, calibration.thresholds, calibration.match_iou)


def _coverage(
    margin: Margin, fitted: Sequence[MatchedObject], fresh: Sequence[MatchedObject], rng: np.random.Generator
) -> Coverage:
    losses = losses_of(fresh, margin.width, margin.sides, margin.guarantee)
    interval = None
    if losses.n:
        held = 1 - losses.at(np.array([margin.factor]))[0]
        interval = bootstrap_means({"covered": held.tolist()}, list(losses.groups), rng=rng)["covered"]
    wholes = np.array([demand.whole for demand in demands_of(fresh, margin.width, margin.sides)])
    covered = wholes <= with_slack(margin.factor)
    return Coverage(
        margin=margin,
        groups=losses.n,
        covered=interval,
        objects=len(wholes),
        objects_covered=int(covered.sum()),
        over_splits=random_splits(
            _losses(margin, [*fitted, *fresh]), margin.n, margin.alpha, margin.confidence, rng
        )
        if losses.n
        else (),
        by_size=_by_size(margin, fresh, covered),
    )


def random_splits(
    losses: GroupLosses, n: int, alpha: float, confidence: float | None, rng: np.random.Generator
) -> tuple[float, ...]:
    """Return one less the mean loss of the groups that are left, for random choices of n groups to calibrate on."""
    if n >= losses.n:
        return ()
    shares = []
    for _ in range(SPLITS):
        order = rng.permutation(losses.n)
        known, left = losses.select(order[:n]), losses.select(order[n:])
        try:
            factor = least_factor(known, alpha, confidence=confidence)
        except InputError:  # with a confidence some choices of groups reach no factor
            continue
        shares.append(1 - float(left.at(np.array([factor])).mean()))
    return tuple(shares)


def _losses(margin: Margin, objects: Sequence[MatchedObject]) -> GroupLosses:
    return losses_of(objects, margin.width, margin.sides, margin.guarantee)


def _by_size(
    margin: Margin, objects: Sequence[MatchedObject], covered: NDArray[np.bool_]
) -> tuple[SizeCoverage, ...]:
    if len(objects) != len(covered) or len(objects) < 3:
        return ()
    order = np.argsort([one.features["log size"] for one in objects], kind="stable")
    side: Side = "inner" if margin.sides == "inner" else "outer"
    return tuple(
        SizeCoverage(
            name=name,
            objects=len(third),
            covered=int(covered[third].sum()),
            typical=typical_length([objects[k] for k in third], margin, side),
        )
        for name, third in zip(("small", "medium", "large"), np.array_split(order, 3), strict=True)
    )


def shifts_of(
    calibration: Calibration, fitted: Sequence[ObservedCase], fresh: Sequence[ObservedCase]
) -> list[Shift]:
    """Return the applied margins calibrated on each value of the card's strata, and on all, and judged on each.

    A value with too few groups for alpha calibrates nothing; a card without strata, or with one value, has no shift.

    Args:
        calibration: Whose margins, threshold and check of unlike cases.
        fitted: Cases of the margin groups.
        fresh: Judged cases.
    """
    columns = {
        name: sorted({case.strata[name] for case in fresh if name in case.strata})
        for name in sorted({name for case in fresh for name in case.strata})
    }
    return [
        row
        for margin in calibration.applied()
        for column, values in columns.items()
        if len(values) > 1
        for here in ("", *sorted({case.strata[column] for case in fitted if column in case.strata}))
        for row in _shifts(calibration, margin, column, here, fitted, fresh)
    ]


def _shifts(
    calibration: Calibration,
    margin: Margin,
    column: str,
    here: str,
    fitted: Sequence[ObservedCase],
    fresh: Sequence[ObservedCase],
) -> list[Shift]:
    known = [case for case in fitted if not here or case.strata.get(column) == here]
    losses = _losses(margin, _objects(calibration, known))
    try:
        factor = least_factor(losses, margin.alpha, confidence=margin.confidence)
    except InputError:
        return []
    looks = _fingerprint(calibration, known)
    rows = []
    for there in sorted({case.strata[column] for case in fresh if column in case.strata}):
        judged = [case for case in fresh if case.strata.get(column) == there]
        alarms = false_alarms(looks, [_features(calibration, case) for case in judged])
        held = _held(calibration, margin, factor, judged)
        kept = _held(
            calibration, margin, factor, [c for c, alarm in zip(judged, alarms, strict=True) if not alarm]
        )
        rows.append(
            Shift(
                name=f"{margin.sides}, by {margin.guarantee}",
                alpha=margin.alpha,
                column=column,
                calibrated_on=here,
                judged_on=there,
                n=losses.n,
                groups=len(held),
                covered=float(held.mean()) if len(held) else 1.0,
                refused=sum(alarms),
                cases=len(judged),
                covered_after=float(kept.mean()) if len(kept) else None,
            )
        )
    return rows


def _held(
    calibration: Calibration, margin: Margin, factor: float, cases: Sequence[ObservedCase]
) -> NDArray[np.float64]:
    """Return one less the loss of each group with a matched object."""
    held: NDArray[np.float64] = 1 - _losses(margin, _objects(calibration, cases)).at(np.array([factor]))[0]
    return held


def _fingerprint(calibration: Calibration, cases: Sequence[ObservedCase]) -> KnownCases:
    return known_cases(
        [_features(calibration, case) for case in cases],
        [case.group for case in cases],
        false_alarms=calibration.known_cases.false_alarms,
    )


def _features(calibration: Calibration, case: ObservedCase) -> Features:
    scores = [one.score for one in case.instances if one.score >= calibration.thresholds.of(one.label)]
    return dict(case.looks) | score_features(scores)


def alarms_of(calibration: Calibration, cases: Sequence[ObservedCase]) -> list[FalseAlarms]:
    """Return how many judged cases are warned of, in all and by the card's strata."""
    alarms = false_alarms(calibration.known_cases, [_features(calibration, case) for case in cases])
    counts: dict[str, list[bool]] = {"all": alarms}
    for case, alarm in zip(cases, alarms, strict=True):
        for column, value in case.strata.items():
            counts.setdefault(f"{column} {value}", []).append(alarm)
    return [
        FalseAlarms(stratum=name, cases=len(warned), warned=sum(warned)) for name, warned in counts.items()
    ]

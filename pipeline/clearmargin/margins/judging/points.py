"""How often regions of landmarks, and distances to targets, hold on groups that they were not calibrated on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from clearmargin.margins.calibration import Calibration
from clearmargin.margins.guarantees import GroupLosses
from clearmargin.margins.judging.coverage import random_splits, split_range
from clearmargin.margins.observations import ObservedCase, objects_apart
from clearmargin.margins.paired_points import PairedPoint, paired_points
from clearmargin.margins.regions import PointRegion, point_losses
from clearmargin.margins.towards import Clearance, clearance_losses
from clearmargin.metrics.intervals import Interval, bootstrap_means

__all__ = ["ClearanceCoverage", "PointCoverage", "PointStratum", "clearance_coverage_of", "point_coverage_of"]


@dataclass(frozen=True, kw_only=True)
class PointStratum:
    """The judged points of one type, or of one visibility.

    Attributes:
        name: ``point = NAME``, or ``visibility = hidden``, of the reference.
        points: Number of those that have a partner.
        covered: Those of them whose region holds the true point.
        radius: Median of their regions' longest semi-axes, in the unit of length.
    """

    name: str
    points: int
    covered: int
    radius: float


@dataclass(frozen=True, kw_only=True)
class PointCoverage:
    """One promise about landmarks on the judged groups.

    Attributes:
        region: What was calibrated.
        groups: Judged groups with a paired point.
        covered: One less their mean loss, with a bootstrap interval over groups; None if there is no group.
        strata: All points, then by type and by visibility.
        over_splits: As of `judging.coverage.Coverage`.
    """

    region: PointRegion
    groups: int
    covered: Interval | None
    strata: tuple[PointStratum, ...]
    over_splits: tuple[float, ...]

    @property
    def splits(self) -> tuple[float, float, float]:
        """Mean coverage over the splits, and what 5 % of them are below and above; zeros for none."""
        return split_range(self.over_splits)


@dataclass(frozen=True, kw_only=True)
class ClearanceCoverage:
    """One promise about distances to a target on the judged groups; attributes as of `PointCoverage`."""

    clearance: Clearance
    groups: int
    covered: Interval | None
    over_splits: tuple[float, ...]

    @property
    def splits(self) -> tuple[float, float, float]:
        """Mean coverage over the splits, and what 5 % of them are below and above; zeros for none."""
        return split_range(self.over_splits)


def clearance_coverage_of(
    calibration: Calibration,
    cases: Sequence[ObservedCase],
    margin_cases: Sequence[ObservedCase],
    rng: np.random.Generator,
) -> list[ClearanceCoverage]:
    """Return how often each promised distance holds; arguments as of `point_coverage_of`."""
    coverages = []
    for one in calibration.clearances:
        fitted, fresh = (
            objects_apart(some, one.target, calibration.thresholds, calibration.match_iou)
            for some in (margin_cases, cases)
        )
        losses = clearance_losses(fresh, calibration.thresholds, one.guarantee)
        every = clearance_losses([*fitted, *fresh], calibration.thresholds, one.guarantee)
        coverages.append(
            ClearanceCoverage(
                clearance=one,
                groups=losses.n,
                covered=_held(losses, one.length, rng),
                over_splits=random_splits(every, one.n, one.alpha, one.confidence, rng) if losses.n else (),
            )
        )
    return coverages


def _held(losses: GroupLosses, factor: float, rng: np.random.Generator) -> Interval | None:
    """Return one less the mean loss, with its interval over groups; None without a group."""
    if not losses.n:
        return None
    held = 1 - losses.at(np.array([factor]))[0]
    return bootstrap_means({"covered": held.tolist()}, list(losses.groups), rng=rng)["covered"]


def point_coverage_of(
    calibration: Calibration,
    cases: Sequence[ObservedCase],
    margin_cases: Sequence[ObservedCase],
    rng: np.random.Generator,
) -> list[PointCoverage]:
    """Return how often each promise about landmarks holds; none if none was calibrated.

    Args:
        calibration: Whose regions.
        cases: Judged ones.
        margin_cases: Those that the regions were calibrated on.
        rng: Of the splits and the resamples.
    """
    least = calibration.thresholds.landmarks
    fitted, fresh = (
        paired_points([case.points for case in some if case.points is not None], least)
        for some in (margin_cases, cases)
    )
    return [_coverage(region, fitted, fresh, rng) for region in calibration.points]


def _coverage(
    region: PointRegion, fitted: Sequence[PairedPoint], fresh: Sequence[PairedPoint], rng: np.random.Generator
) -> PointCoverage:
    losses = point_losses(fresh, region.shape, region.guarantee)
    every = point_losses([*fitted, *fresh], region.shape, region.guarantee)
    return PointCoverage(
        region=region,
        groups=losses.n,
        covered=_held(losses, region.factor, rng),
        strata=_strata(region, fresh),
        over_splits=random_splits(every, region.n, region.alpha, region.confidence, rng) if losses.n else (),
    )


def _strata(region: PointRegion, points: Sequence[PairedPoint]) -> tuple[PointStratum, ...]:
    rows: dict[str, list[PairedPoint]] = {"all": list(points)} if points else {}
    for one in points:
        rows.setdefault(f"point = {one.point}", []).append(one)
    for name in ("seen", "hidden"):
        of_name = [one for one in points if one.visibility == name]
        if of_name:
            rows[f"visibility = {name}"] = of_name
    return tuple(
        PointStratum(
            name=name,
            points=len(own),
            covered=sum(region.holds(one) for one in own),
            radius=float(np.median([region.radius(one) for one in own])),
        )
        for name, own in rows.items()
    )

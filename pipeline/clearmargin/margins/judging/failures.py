"""Whether uncertainty finds the cases and instances that go wrong."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from clearmargin.margins.calibration import Calibration
from clearmargin.margins.judging.case import JudgedCase
from clearmargin.margins.observations import ObservedInstance
from clearmargin.margins.referral import WITHIN
from clearmargin.metrics.failure import Referral, aurc, ause, e_aurc, error_auroc, refer
from clearmargin.metrics.intervals import Interval, bootstrap_statistic

__all__ = ["COLUMNS", "Failure", "failures_of"]

COLUMNS = {
    "1 - pairwise Dice": "pairwise_dice",
    "1 - share of members": "found_by",
    "1 - predicted NSD": "predicted_nsd",
    "mean entropy": "mean_entropy",
}
"""Uncertainties beside ``1 - score``, by name: the column; 1 less it where the name says so."""

_DICE_LIMIT = 0.2  # a case whose Dice is under 0.8 has failed


@dataclass(frozen=True, kw_only=True)
class Failure:
    """How well one uncertainty finds what goes wrong.

    Attributes:
        over: ``cases``, ``matched instances``, or ``instances``.
        risk: What goes wrong.
        limit: Over which it has failed.
        unit: Unit of the risk; empty for none.
        uncertainty: What shall find it.
        n: Number of them.
        mean_risk: Mean risk of all.
        aurc: With its interval over groups.
        e_aurc: `metrics.failure`.
        ause: Likewise.
        auroc: AUROC of the uncertainty for a risk over the limit; None if none or all are.
        referral: Smallest referral after which 90 % of the rest are within the limit.
        points: Uncertainty and risk of each.
    """

    over: str
    risk: str
    limit: float
    unit: str
    uncertainty: str
    n: int
    mean_risk: float
    aurc: Interval
    e_aurc: float
    ause: float
    auroc: float | None
    referral: Referral
    points: tuple[tuple[float, ...], tuple[float, ...]]


@dataclass(frozen=True, kw_only=True)
class _Risk:
    over: str
    name: str
    limit: float
    unit: str = ""


def failures_of(
    calibration: Calibration,
    cases: Sequence[JudgedCase],
    *,
    risk_limit: float,
    rng: np.random.Generator,
    resamples: int,
) -> list[Failure]:
    """Return a row for each uncertainty that all kept instances have, and each risk.

    Risks: of a case 1 - Dice of everything in it, and the mean HD95 of its matched instances (cases without one are
    left out); of a matched instance HD95; of an instance whether it is a false positive. A case's uncertainty is the
    mean over its kept instances, and 1 if nothing was kept.

    Args:
        calibration: Whose threshold and unit of length.
        cases: Judged ones.
        risk_limit: HD95 over which an instance or case has failed, in the grid's unit.
        rng: Random generator for the resamples.
        resamples: Resamples of each interval.
    """
    kept = [
        [one for one in case.observed.instances if one.score >= calibration.thresholds.of(one.label)]
        for case in cases
    ]
    groups = [case.observed.group for case in cases]
    every = [one for own in kept for one in own]
    known = [n for n, column in COLUMNS.items() if every and all(column in one.columns for one in every)]
    length = calibration.length_unit
    rows = []
    for name in ("1 - score", *known):
        of_case = [float(np.mean([_doubt(one, name) for one in own])) if own else 1.0 for own in kept]
        points_by_risk: dict[_Risk, list[tuple[float, float, str]]] = {
            _Risk(over="cases", name="1 - Dice", limit=_DICE_LIMIT): [
                (doubt, 1 - case.dice, group)
                for doubt, case, group in zip(of_case, cases, groups, strict=True)
            ],
            _Risk(over="cases", name="mean HD95", limit=risk_limit, unit=length): [
                (doubt, float(np.mean([one.hd95 for one in own if one.matched])), group)
                for doubt, own, group in zip(of_case, kept, groups, strict=True)
                if any(one.matched for one in own)
            ],
            _Risk(over="matched instances", name="HD95", limit=risk_limit, unit=length): [
                (_doubt(one, name), one.hd95, group)
                for own, group in zip(kept, groups, strict=True)
                for one in own
                if one.matched
            ],
            _Risk(over="instances", name="false positive", limit=0.0): [
                (_doubt(one, name), float(not one.matched), group)
                for own, group in zip(kept, groups, strict=True)
                for one in own
            ],
        }
        rows += [
            _failure(risk, name, points, rng, resamples) for risk, points in points_by_risk.items() if points
        ]
    return rows


def _doubt(one: ObservedInstance, name: str) -> float:
    value = one.columns[COLUMNS[name]] if name in COLUMNS else one.score
    return 1 - value if name.startswith("1 - ") else value


def _failure(
    risk: _Risk,
    name: str,
    points: Sequence[tuple[float, float, str]],
    rng: np.random.Generator,
    resamples: int,
) -> Failure:
    def area(sample: Sequence[tuple[float, float, str]]) -> float:
        return aurc([s[0] for s in sample], [s[1] for s in sample])

    doubts, risks, groups = (list(column) for column in zip(*points, strict=True))
    return Failure(
        over=risk.over,
        risk=risk.name,
        limit=risk.limit,
        unit=risk.unit,
        uncertainty=name,
        n=len(points),
        mean_risk=float(np.mean(risks)),
        aurc=bootstrap_statistic(area, points, groups, rng=rng, resamples=resamples),
        e_aurc=e_aurc(doubts, risks),
        ause=ause(doubts, risks),
        auroc=error_auroc(doubts, np.asarray(risks) > risk.limit),
        referral=refer(
            doubts, risks, risk.limit, within=WITHIN, name=risk.name, unit=risk.unit, what=risk.over
        ),
        points=(tuple(doubts), tuple(risks)),
    )

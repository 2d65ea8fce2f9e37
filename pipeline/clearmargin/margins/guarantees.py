"""What a margin promises of a new group, and the least factor that keeps it.

Each matched object asks for a factor that its width is multiplied by; until it has it, its edge lies outside. A group
(patient, surgery, image) has a loss in [0, 1] that never rises with the factor:

- ``object``: the share of its objects that are not covered;
- ``group``: 1 if any of its objects is not covered, else 0;
- ``risk``: the share of an object's edge that is outside, a mean over its objects.

With n exchangeable groups the least factor with ``(n risk + 1) / (n + 1) <= alpha`` keeps the mean loss of a new group
at alpha or less (conformal risk control). For ``group`` this is the split-conformal quantile, and for ``object`` the
hierarchical one, in which each group has the weight 1 / (n + 1), shared by its objects. The mean is over calibrations,
too; with a confidence the factor keeps the loss for that share of the calibrations.

Source: Angelopoulos, Bates, Fisch, Lei and Schuster, "Conformal risk control", ICLR 2024, theorem 1; Lee, Barber and
Willett, "Distribution-free inference with hierarchical data", arXiv:2306.06342, theorem 1; Dunn, Wasserman and Ramdas,
"Distribution-free prediction sets for two-layer hierarchical models", JASA 2023; Vovk, "Conditional validity of
inductive conformal predictors", ACML 2012 (the Beta law); Bates, Angelopoulos, Lei, Malik and Jordan,
"Distribution-free, risk-controlling prediction sets", J ACM 2021, with the betting bound of Waudby-Smith and Ramdas.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from clearmargin.core.slack import SLACK
from clearmargin.errors import ConfigError, InputError

__all__ = [
    "GUARANTEES",
    "Demand",
    "GroupLosses",
    "Guarantee",
    "coverage_range",
    "groups_needed",
    "least_factor",
]

Guarantee = Literal["object", "group", "risk"]
GUARANTEES: tuple[Guarantee, ...] = get_args(Guarantee)

_CANDIDATES = 3000  # factors that are tried; between two the larger is taken
_LEVEL = 0.9  # of the range of coverages

Values = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, eq=False)
class Demand:
    """What one matched object asks of the factor.

    Attributes:
        group: The patient, surgery or image that it belongs to.
        whole: The factor from which on the object is covered as a whole, at least 0.
        factors: ``(K,)`` float64, rising: where less of its edge is outside; none if it never is.
        outside: ``(K,)`` float64 in (0, 1], falling: the share of its edge that is outside just below each factor.
    """

    group: str
    whole: float
    factors: Values
    outside: Values


class GroupLosses:
    """The losses of groups as functions of the factor: steps down, at the demands of their objects."""

    def __init__(self, demands: Sequence[Demand], guarantee: Guarantee) -> None:
        """Put the demands of all matched objects together.

        Args:
            demands: Demands of the objects of one or more groups.
            guarantee: Which loss.
        """
        self.guarantee: Guarantee = guarantee
        self.groups = tuple(sorted({demand.group for demand in demands}))
        by_group: dict[str, list[Demand]] = {group: [] for group in self.groups}
        for demand in demands:
            by_group[demand.group].append(demand)
        steps = [_STEPS[guarantee](by_group[group]) for group in self.groups]
        self._places = [place for place, _ in steps]
        # what is left of a group's loss once the first so many steps are taken
        self._left = [np.append(np.cumsum(drop[::-1])[::-1], 0.0) for _, drop in steps]

    @property
    def n(self) -> int:
        """Number of groups."""
        return len(self.groups)

    def candidates(self) -> Values:
        """Return the factors at which some loss falls, rising, 0 among them; of very many evenly spaced ones."""
        every = np.unique(np.concatenate([np.zeros(1), *self._places]))
        if len(every) > _CANDIDATES:
            every = every[np.linspace(0, len(every) - 1, _CANDIDATES).round().astype(int)]
        return every

    def select(self, places: Sequence[int] | NDArray[np.int64]) -> GroupLosses:
        """Return the losses of the groups at some places of ``groups``."""
        losses = GroupLosses((), self.guarantee)
        losses.groups = tuple(self.groups[k] for k in places)
        losses._places = [self._places[k] for k in places]
        losses._left = [self._left[k] for k in places]
        return losses

    def at(self, factors: Values) -> Values:
        """Return each group's loss at each factor, ``(F, n)``."""
        reached: Values = np.asarray(factors, np.float64) * (1 + SLACK)
        columns = [
            left[np.searchsorted(places, reached, side="right")]
            for places, left in zip(self._places, self._left, strict=True)
        ]
        return np.stack(columns, axis=1) if columns else np.zeros((len(reached), 0))


def _shares(demands: Sequence[Demand]) -> tuple[Values, Values]:
    places = np.sort([demand.whole for demand in demands])
    return places, np.full(len(places), 1 / len(places))


def _any(demands: Sequence[Demand]) -> tuple[Values, Values]:
    return np.array([max(demand.whole for demand in demands)]), np.ones(1)


def _edges(demands: Sequence[Demand]) -> tuple[Values, Values]:
    places = np.concatenate([demand.factors for demand in demands])
    drops = np.concatenate(
        [-np.diff(demand.outside, append=0.0) for demand in demands if len(demand.outside)] or [np.zeros(0)]
    )
    drops = drops / len(demands)
    order = np.argsort(places, kind="stable")
    return places[order], drops[order]


_STEPS = {"object": _shares, "group": _any, "risk": _edges}


def least_factor(
    losses: GroupLosses, alpha: float, *, confidence: float | None = None, name: str = "the margin"
) -> float:
    """Return the least factor at which the mean loss of new groups is at most ``alpha``.

    Args:
        losses: Losses of the calibration groups.
        alpha: What the mean loss may be.
        confidence: None keeps the mean over calibrations and new groups together. A number keeps it as well for that
            share of the calibrations, one by one: by the binomial law for ``group``, by a betting bound otherwise.
        name: What is calibrated, for the message.

    Raises:
        ConfigError: ``alpha`` or ``confidence`` is not between 0 and 1.
        InputError: No factor keeps it: too few groups; with the level that is reached and the groups needed.
    """
    if not 0 < alpha < 1:
        raise ConfigError(f"alpha: expected the share that may fail, between 0 and 1, got {alpha:g}")
    if confidence is not None and not 0 < confidence < 1:
        raise ConfigError(f"confidence: expected a share between 0 and 1, such as 0.9, got {confidence:g}")
    candidates = losses.candidates()
    n = losses.n
    table = losses.at(candidates)
    kept = (table.sum(axis=1) + 1) / (n + 1) <= alpha + 1e-12
    if confidence is not None:
        sure = np.array([n > 0 and _is_kept(row, losses.guarantee, alpha, 1 - confidence) for row in table])
        kept &= np.logical_and.accumulate(sure[::-1])[::-1]  # no larger factor fails
    if not kept.any():
        raise InputError(_too_few(n, alpha, confidence, name))
    return float(candidates[int(np.argmax(kept))])


def groups_needed(alpha: float, confidence: float | None = None) -> int:
    """Return the smallest number of groups that reach ``alpha``; with a confidence, if none of them fails.

    >>> groups_needed(0.1), groups_needed(0.05), groups_needed(0.1, 0.9)
    (9, 19, 22)
    """
    if confidence is None:
        return math.ceil(1 / alpha - 1e-9) - 1
    return math.ceil(math.log(1 - confidence) / math.log(1 - alpha) - 1e-9)


def _is_kept(losses: Values, guarantee: Guarantee, alpha: float, error: float) -> bool:
    """Return whether losses say with an error of at most ``error`` that their mean is at most ``alpha``."""
    from scipy.stats import binom

    if guarantee == "group":
        return bool(binom.cdf(round(float(losses.sum())), len(losses), alpha) <= error)
    shuffled = np.random.default_rng(0).permutation(losses)  # groups come sorted by name
    count = np.arange(1, len(shuffled) + 1)
    means = (0.5 + np.cumsum(shuffled)) / (1 + count)
    variances = (0.25 + np.cumsum((shuffled - means) ** 2)) / (1 + count)
    before = np.concatenate([[0.25], variances[:-1]])
    bets = np.minimum(1.0, np.sqrt(2 * math.log(1 / error) / (len(shuffled) * before)))
    wealth = np.cumsum(np.log1p(-bets * (shuffled - alpha)))
    return bool(wealth.max() >= math.log(1 / error))


def _too_few(n: int, alpha: float, confidence: float | None, name: str) -> str:
    if confidence is not None:
        return (
            f"{name} at alpha {alpha:g} with a confidence of {confidence:g} needs "
            f"{groups_needed(alpha, confidence)} calibration groups at least, and "
            f"more if some of them fail; there are {n}: add groups, or ask for a larger alpha or less confidence"
        )
    if not n:
        return (
            f"{name} at alpha {alpha:g} needs {groups_needed(alpha)} calibration groups with an object that the model "
            "detects, and there is none: train the model for longer, or add groups"
        )
    reach = f"{n} reach {100 * n / (n + 1):.3g} % at best (alpha {1 / (n + 1):.3g})"
    return (
        f"{name} at alpha {alpha:g} needs {groups_needed(alpha)} calibration groups, {reach}: add groups, or ask for a "
        "larger alpha"
    )


def coverage_range(losses: GroupLosses, factor: float) -> tuple[float, float, float]:
    """Return what new groups are covered at ``factor``: the mean over calibrations, and a central 90 % range.

    For the calibration at hand coverage is fixed and not known. By ``group`` it has over calibrations the law
    Beta(n - f, f + 1), f the number of groups that fail, exactly if there are no ties. A loss that is a share varies
    less: its Beta law has the mean that groups left out one by one have, and the variance divided by that of a loss of
        0 or 1.
    That is an approximation (`tests/margins/test_guarantees.py` has how good it is).

    Args:
        losses: Losses of the calibration groups.
        factor: As `least_factor` returned it for them.

    Returns:
        Mean, low and high, in [0, 1]; ``(0, 0, 1)`` for no group.
    """
    from scipy.stats import beta

    n = losses.n
    if not n:
        return 0.0, 0.0, 1.0
    own = losses.at(np.array([factor]))[0]
    risk = float(own.mean())
    if losses.guarantee == "group" or not 0 < risk < 1:
        mean, weight = 1 - (n * risk + 1) / (n + 1), n + 1.0
    else:
        mean = 1 - _left_out(losses, risk)
        weight = (n + 2) * risk * (1 - risk) / max(float(own.var()), 1e-9) - 1
    low, high = beta.ppf([(1 - _LEVEL) / 2, (1 + _LEVEL) / 2], mean * weight, (1 - mean) * weight)
    return mean, float(low), float(high)


def _left_out(losses: GroupLosses, risk: float) -> float:
    """Return the mean loss of each group at the least factor that keeps the others' mean loss at ``risk``."""
    candidates = losses.candidates()
    table = losses.at(candidates)
    total = table.sum(axis=1)
    others = (total[:, None] - table) / max(losses.n - 1, 1)
    indices = np.argmax(others <= risk + 1e-12, axis=0)  # none fails at the largest factor
    return float(table[indices, np.arange(losses.n)].mean())

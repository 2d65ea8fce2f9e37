"""Two models on the same cases: the mean difference with its interval, and what a claim about it is worth.

Patients are the sample, as everywhere in `clearmargin.metrics.intervals`: first the mean over each group's cases.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from clearmargin.errors import InputError
from clearmargin.metrics.intervals import Interval, group_means

__all__ = [
    "FEW",
    "NOMINAL",
    "Comparison",
    "adjust",
    "compare",
    "holm",
    "inter_rater_ceiling",
    "median_interval",
]

FEW = 10
"""Under so many groups nothing is said of an interval's coverage: their resamples tell little of it."""

NOMINAL = 0.02
"""How far from its level an interval's coverage may lie before a table says so."""

TRIALS = 4_000
"""Samples by which an interval's coverage is estimated."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Two models on the same cases.

    Attributes:
        difference: First minus second: mean over groups, with Student's interval; it has no ends where all groups
            differ by the same amount, as they then do not say how far others would lie from it.
        median: The same of the median over groups, with the interval of order statistics; it has no ends where so
            few groups allow none.
        p_value: Two-sided, of the same test over groups: 1 less the level at which the interval begins to hold 0; 1 if
            no group differs, and of the groups' signs alone where all differ by the same amount.
        p_adjusted: After Holm's correction over what is compared together.
        p_false: Probability that the claim "the one with the better mean is better" is false; 0.5 where both are equal.
        coverage: Share of samples drawn from these groups in which Student's interval held their mean. Far below the
            level, single groups decide, and no interval can be trusted. None with fewer than `FEW` groups.
    """

    difference: Interval
    median: Interval
    p_value: float
    p_adjusted: float
    p_false: float
    coverage: float | None

    @property
    def covers(self) -> bool:
        """Whether the interval can be expected to cover as often as its level says."""
        return self.coverage is not None and abs(self.coverage - self.difference.level) <= NOMINAL


def compare(
    first: Mapping[str, ArrayLike],
    second: Mapping[str, ArrayLike],
    groups: Sequence[str],
    *,
    rng: np.random.Generator,
    level: float = 0.95,
    trials: int = TRIALS,
) -> dict[str, Comparison]:
    """Compare two models measured on the same cases, metric by metric.

    Args:
        first: ``(n,)`` numbers for each metric, one per case.
        second: The same metrics of the same cases in the same order.
        groups: The group of each case.
        rng: Of the trials that tell an interval's coverage.
        level: Coverage of the intervals.
        trials: How many estimate the coverage; 0 leaves it unknown.

    Raises:
        InputError: The metrics differ, or see `group_means`.

    Source: Student's paired t over groups' means, Biometrika 1908; Holm, Scandinavian Journal of Statistics 1979;
    coverage by resampling as in Loh, JASA 1987. The probability of a false claim is the posterior mass beyond 0 of the
    mean difference under the flat prior (of normal data, t with n - 1 degrees of freedom), as in Christodoulou et al.,
    "False promises in medical imaging AI?", 2025. What was weighed: the bootstrap of the t, which covers a little
    better of smooth data, and gives intervals of any length where a few groups decide.
    """
    if set(first) != set(second):
        odd = ", ".join(sorted(set(first) ^ set(second)))
        raise InputError(f"two models are compared on the same metrics; only one of them has: {odd}")
    comparisons = {
        name: _paired(_gaps(first[name], second[name]), groups, rng, level, trials) for name in first
    }
    adjusted = holm({name: one.p_value for name, one in comparisons.items()})
    return {name: adjust(one, adjusted[name]) for name, one in comparisons.items()}


def adjust(comparison: Comparison, p_adjusted: float) -> Comparison:
    """Return a comparison with another adjusted p-value, as when more is compared together."""
    return Comparison(**{**vars(comparison), "p_adjusted": p_adjusted})


def _gaps(first: ArrayLike, second: ArrayLike) -> NDArray[np.float64]:
    """Return first minus second, 0 where they differ by rounding alone."""
    ours, theirs = np.asarray(first, np.float64), np.asarray(second, np.float64)
    gaps = ours - theirs
    return np.where(np.abs(gaps) <= 1e-9 * np.maximum(np.abs(ours), np.abs(theirs)), 0.0, gaps)


def _paired(
    gaps: NDArray[np.float64], groups: Sequence[str], rng: np.random.Generator, level: float, trials: int
) -> Comparison:
    from scipy.stats import t as student

    _, means = group_means(gaps, groups)
    n, mean = len(means), float(means.mean())
    low = high = coverage = None
    p_value = 1.0
    if n > 1:
        error = float(means.std(ddof=1)) / n**0.5
        spreads = error > max(1e-15, 1e-9 * abs(mean))  # less is rounding
        reach = float(student.ppf((1 + level) / 2, n - 1))
        # without a spread there is nothing to divide by: all groups differ alike, and their signs are what is left
        p_value = (
            2 * float(student.sf(abs(mean) / error, n - 1)) if spreads else 2.0 ** (1 - n) if mean else 1.0
        )
        if spreads and n >= FEW and trials:
            coverage = float(np.mean(_studentised(means, rng, trials) <= reach))
        if spreads or not mean:
            low, high = mean - reach * error, mean + reach * error
    return Comparison(
        difference=Interval(estimate=mean, low=low, high=high, level=level, groups=n, cases=len(gaps)),
        median=median_interval(means, level=level, cases=len(gaps)),
        p_value=p_value,
        p_adjusted=p_value,
        p_false=p_value / 2 if mean else 0.5,
        coverage=coverage,
    )


def _studentised(means: NDArray[np.float64], rng: np.random.Generator, trials: int) -> NDArray[np.float64]:
    """Return ``(trials,)``: how far the mean of a sample drawn from ``means`` lies from theirs, in its own errors."""
    n = len(means)
    out = []
    step = max(1, 2_000_000 // n)
    for start in range(0, trials, step):
        drawn = means[rng.integers(0, n, (min(step, trials - start), n))]
        off = np.abs(drawn.mean(axis=1) - means.mean())
        error = drawn.std(axis=1, ddof=1) / n**0.5
        out.append(np.where(off > 1e-12, off / np.maximum(error, 1e-300), 0.0))
    return np.concatenate(out)


def median_interval(
    values: NDArray[np.float64], *, level: float = 0.95, cases: int | None = None
) -> Interval:
    """Return the median of independent numbers with the exact interval of two order statistics.

    Its coverage is at least ``level`` whatever the distribution is; of fewer than 6 numbers no pair of order statistics
    reaches 95 %, and the interval has no ends. A bootstrap of the median does not cover.

    Args:
        values: ``(n,)``, at least one.
        level: Coverage.
        cases: What they are means of; None for as many.

    Source: David and Nagaraja, Order Statistics, 2003, section 7.1.
    """
    from scipy.stats import binom

    ordered = np.sort(values)
    n = len(ordered)
    rank = int(binom.ppf((1 - level) / 2, n, 0.5))  # as many may lie below the lower end
    has_ends = rank > 0 and 1 - 2 * float(binom.cdf(rank - 1, n, 0.5)) >= level
    return Interval(
        estimate=float(np.median(ordered)),
        low=float(ordered[rank - 1]) if has_ends else None,
        high=float(ordered[n - rank]) if has_ends else None,
        level=level,
        groups=n,
        cases=n if cases is None else cases,
    )


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Return Holm's step-down adjusted p-values, by name; they hold the family-wise error at any level.

    Source: Holm, Scandinavian Journal of Statistics 1979.

    >>> holm({"dice": 0.01, "hd95": 0.04, "nsd": 0.03})
    {'dice': 0.03, 'hd95': 0.06, 'nsd': 0.06}
    """
    names = sorted(p_values, key=lambda name: p_values[name])
    running, out = 0.0, {}
    for rank, name in enumerate(names):
        running = max(running, min(1.0, (len(names) - rank) * p_values[name]))
        out[name] = running
    return {name: out[name] for name in p_values}


def inter_rater_ceiling(
    model: Mapping[str, ArrayLike],
    readers: Mapping[str, ArrayLike],
    groups: Sequence[str],
    *,
    rng: np.random.Generator,
    level: float = 0.95,
) -> dict[str, Comparison]:
    """Return how far a model is from the agreement between two readers, metric by metric.

    Args:
        model: ``(n, 2)`` numbers for each metric: the model against each reader, one row a case.
        readers: ``(n,)`` numbers for each metric: one reader against the other.
        groups: The group of each case.
        rng: Where randomness comes from.
        level: Coverage of the intervals.

    Returns:
        Comparisons of the model's mean over both readers with the readers' agreement: a difference around 0
        says that the model agrees with readers as they do with each other, and no metric can show more.

    Raises:
        InputError: See `compare`.

    Source: by definition.
    """
    against_both = {name: np.asarray(v, np.float64).mean(axis=1) for name, v in model.items()}
    return compare(against_both, readers, groups, rng=rng, level=level)

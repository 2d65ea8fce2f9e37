"""The one step of arithmetic behind every margin: which of the sorted scores is the quantile.

With n exchangeable units and no ties, the k-th smallest score is at least a new unit's score with probability
k / (n + 1). Ties only add to that.

Source: Vovk, Gammerman and Shafer, "Algorithmic Learning in a Random World", 2005; Angelopoulos and Bates,
"A gentle introduction to conformal prediction", arXiv:2107.07511.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from clearmargin.errors import ConfigError, InputError

__all__ = [
    "conformal_quantile",
    "conformal_rank",
    "coverage_over_splits",
    "expected_coverage",
    "units_needed",
]


def conformal_rank(n: int, alpha: float) -> int:
    """Return ``ceil((n + 1)(1 - alpha))``: the quantile's place among n sorted scores, counted from 1.

    Above n there is no such score.

    Raises:
        ConfigError: ``alpha`` is not between 0 and 1.

    >>> conformal_rank(9, 0.1), conformal_rank(8, 0.1), conformal_rank(99, 0.05)
    (9, 9, 95)
    """
    if not 0 < alpha < 1:
        raise ConfigError(f"alpha is the share of units that may fail, between 0 and 1, not {alpha:g}")
    return math.ceil((n + 1) * (1 - alpha) - 1e-9)  # the hair: 20 x 0.95 is 19, whatever binary makes of it


def expected_coverage(n: int, alpha: float) -> float:
    """Return the mean coverage over calibrations of n units without ties: rank / (n + 1), at least 1 - alpha."""
    return min(conformal_rank(n, alpha) / (n + 1), 1.0)


def units_needed(alpha: float) -> int:
    """Return the smallest number of units that reach ``alpha``.

    >>> units_needed(0.1), units_needed(0.05)
    (9, 19)
    """
    return math.ceil(1 / alpha - 1e-9) - 1


def conformal_quantile(scores: ArrayLike, alpha: float, *, name: str = "the margin") -> float:
    """Return the ``ceil((n + 1)(1 - alpha))``-th smallest of n scores, one score a unit.

    Args:
        scores: ``(n,)`` finite numbers, larger where more is needed.
        alpha: The share of units that may fail.
        name: What is calibrated, for the message.

    Raises:
        InputError: n is too small for ``alpha``, 0 included: the level that n units reach is said.
        ValueError: A score is not finite.
    """
    values = np.sort(np.asarray(scores, np.float64).ravel())
    if not np.isfinite(values).all():
        raise ValueError("a unit's score is finite: what has no score is left out and counted")
    n = len(values)
    rank = conformal_rank(n, alpha)
    if rank > n:
        reach = (
            f"{n} reach {100 * n / (n + 1):.3g} % at best (alpha {1 / (n + 1):.3g})" if n else "there is none"
        )
        raise InputError(
            f"{name} at alpha {alpha:g} needs {units_needed(alpha)} calibration units, {reach}: "
            "add units, or ask for a larger alpha"
        )
    return float(values[rank - 1])


def coverage_over_splits(
    scores: ArrayLike, n: int, alpha: float, *, splits: int, rng: np.random.Generator
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return how often margins hold on units that they were not calibrated on, split after split.

    Args:
        scores: ``(N,)`` one score a unit.
        n: Units drawn to calibrate on, fewer than N; the others are judged.
        alpha: The share of units that may fail.
        splits: Number of random splits.
        rng: Where randomness comes from.

    Returns:
        ``(splits,)`` shares of the judged units with a score of at most the margin, and ``(splits,)`` margins.
        Without ties the mean share is `expected_coverage`, but for the number of splits.

    Raises:
        InputError: n is too small for ``alpha``, or leaves no unit to judge.
    """
    values = np.asarray(scores, np.float64).ravel()
    if n >= len(values):
        raise InputError(
            f"{n} of {len(values)} units to calibrate on leave none to judge: calibrate on fewer"
        )
    shares, margins = np.empty(splits), np.empty(splits)
    for k in range(splits):
        order = rng.permutation(len(values))
        margins[k] = conformal_quantile(values[order[:n]], alpha)
        shares[k] = np.mean(values[order[n:]] <= margins[k])
    return shares, margins

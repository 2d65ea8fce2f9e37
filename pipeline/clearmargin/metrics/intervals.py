"""Intervals that count groups, not cases.

Cases of one group are alike, so that counting them as independent makes intervals too narrow. Everything
here first takes the mean over each group's cases and then treats groups as the sample.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from clearmargin.errors import InputError

__all__ = [
    "Interval",
    "bootstrap_class_means",
    "bootstrap_means",
    "bootstrap_statistic",
    "bootstrap_statistics",
    "group_means",
    "size_strata",
]

_CHUNK = 2_000_000  # drawn indices held at once: 16 MB


@dataclass(frozen=True, kw_only=True)
class Interval:
    """An estimate with its bootstrap interval.

    Attributes:
        estimate: Mean over groups of each group's mean.
        low: Lower end; None with fewer than two groups, as nothing is then known of the spread.
        high: Upper end, likewise.
        level: Coverage asked for, such as 0.95.
        groups: Number of groups.
        cases: Number of cases.
    """

    estimate: float
    low: float | None
    high: float | None
    level: float
    groups: int
    cases: int


def group_means(values: ArrayLike, groups: Sequence[str]) -> tuple[list[str], NDArray[np.float64]]:
    """Return the groups in sorted order and the mean over each one's cases.

    Args:
        values: ``(n,)`` or ``(n, m)`` finite numbers, one row per case.
        groups: The group of each case.

    Returns:
        ``(p,)`` names and ``(p,)`` or ``(p, m)`` means.

    Raises:
        InputError: A value is not finite, the lengths differ, or there is no case.
    """
    table = np.asarray(values, np.float64)
    if table.ndim not in (1, 2) or len(table) != len(groups) or not len(table):
        raise InputError(
            f"values of shape {table.shape} for {len(groups)} cases: give one row per case, and at least one case"
        )
    if not np.isfinite(table).all():
        raise InputError(
            f"{np.count_nonzero(~np.isfinite(table))} values are not finite: a false negative counts its written value "
            "(docs/metrics.md, 'Empty cases') and is not left out"
        )
    names, inverse, counts = np.unique(np.asarray(groups, str), return_inverse=True, return_counts=True)
    sums = np.zeros((len(names), *table.shape[1:]))
    np.add.at(sums, inverse, table)
    return [str(n) for n in names], sums / counts.reshape(-1, *[1] * (table.ndim - 1))


def bootstrap_means(
    values: Mapping[str, ArrayLike],
    groups: Sequence[str],
    *,
    rng: np.random.Generator,
    level: float = 0.95,
    resamples: int = 10_000,
) -> dict[str, Interval]:
    """Return the mean over groups of each metric, with its bias-corrected and accelerated interval.

    Args:
        values: ``(n,)`` finite numbers for each metric, one a case.
        groups: The group of each case; whole groups are drawn.
        rng: Where randomness comes from: the same seed gives the same interval. All metrics share their
            draws.
        level: Coverage.
        resamples: Number of bootstrap samples.

    Returns:
        An interval for each metric. Where all groups agree, it is one point; with one group, it has no
        ends.

    Raises:
        InputError: See `group_means`.

    Source: Efron, "Better bootstrap confidence intervals", JASA 1987; clusters as in Davison and Hinkley,
    1997.
    """
    table = (
        np.column_stack([np.asarray(v, np.float64) for v in values.values()]) if values else np.zeros((0, 0))
    )
    _, means = group_means(table, groups)
    estimates = means.mean(axis=0)
    ends = np.full((2, len(estimates)), np.nan)
    if len(means) > 1:
        n = len(means)
        left_out = (means.sum(axis=0) - means) / (n - 1)
        ends = _bca(_resampled_means(means, rng, resamples), estimates, left_out, level)
    return {
        name: Interval(
            estimate=float(estimates[k]),
            low=None if len(means) < 2 else float(ends[0, k]),
            high=None if len(means) < 2 else float(ends[1, k]),
            level=level,
            groups=len(means),
            cases=len(table),
        )
        for k, name in enumerate(values)
    }


def bootstrap_class_means(
    values: Mapping[str, ArrayLike],
    groups: Sequence[str],
    classes: Sequence[str],
    *,
    rng: np.random.Generator,
    level: float = 0.95,
    resamples: int = 10_000,
) -> dict[str, Interval]:
    """Return the mean over classes of each class's mean over its groups, with its clustered BCa interval.

    Args:
        values: ``(n,)`` finite numbers for each metric, one an object.
        groups: The group of each object; whole groups are drawn, with all their classes.
        classes: The class of each object. A group without a class is not in its mean.
        rng: Where randomness comes from.
        level: Coverage.
        resamples: Number of bootstrap samples.

    Returns:
        An interval for each metric; without ends for one group. A resample in which a class has no group is a
        mean over the others.

    Raises:
        InputError: See `group_means`.

    Source: see `bootstrap_means`.
    """
    names, kinds = sorted(set(map(str, groups))), sorted(set(map(str, classes)))
    p, c = len(names), len(kinds)
    means, there = np.zeros((len(values), c, p)), np.zeros((c, p))
    for k, kind in enumerate(kinds):
        of_kind = [i for i, name in enumerate(classes) if str(name) == kind]
        held = [str(groups[i]) for i in of_kind]
        table = np.column_stack([np.asarray(v, np.float64)[of_kind] for v in values.values()])
        group_names, of_groups = group_means(table, held)
        at = [names.index(name) for name in group_names]
        means[:, k, at] = of_groups.T
        there[k, at] = 1

    def over_classes(weights: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return ``(B, m)`` from ``(B, p)`` weights of groups."""
        counts = weights @ there.T
        sums = np.einsum("bp,mkp->bmk", weights, means)
        of_class = sums / np.maximum(counts, 1e-300)[:, None]
        present = counts > 0
        total = np.where(present[:, None], of_class, 0.0).sum(axis=2)
        return np.asarray(total / np.maximum(present.sum(axis=1), 1)[:, None])

    whole = over_classes(np.ones((1, p)))[0]
    ends = np.full((2, len(values)), np.nan)
    if p > 1:
        draws = rng.multinomial(p, np.full(p, 1 / p), resamples).astype(np.float64)
        step = max(1, _CHUNK // (p * c))
        drawn = np.concatenate([over_classes(draws[i : i + step]) for i in range(0, resamples, step)])
        ends = _bca(drawn, whole, over_classes(1 - np.eye(p)), level)
    return {
        name: Interval(
            estimate=float(whole[k]),
            low=None if p < 2 else float(ends[0, k]),
            high=None if p < 2 else float(ends[1, k]),
            level=level,
            groups=p,
            cases=len(classes),
        )
        for k, name in enumerate(values)
    }


def bootstrap_statistic(
    statistic: Callable[[Sequence[Any]], float],
    cases: Sequence[Any],
    groups: Sequence[str],
    *,
    rng: np.random.Generator,
    level: float = 0.95,
    resamples: int = 1_000,
) -> Interval:
    """Return any statistic of a list of cases, such as average precision, with its clustered BCa interval.

    Whole groups are drawn with all their cases; ``statistic`` is called once for each resample and each
    group.

    Raises:
        InputError: The lengths differ or there is no case.

    Source: see `bootstrap_means`.
    """
    intervals = bootstrap_statistics(
        lambda sample: {"": statistic(sample)}, cases, groups, rng=rng, level=level, resamples=resamples
    )
    return intervals[""]


def bootstrap_statistics(
    statistics: Callable[[Sequence[Any]], Mapping[str, float]],
    cases: Sequence[Any],
    groups: Sequence[str],
    *,
    rng: np.random.Generator,
    level: float = 0.95,
    resamples: int = 1_000,
) -> dict[str, Interval]:
    """Return several statistics of a list of cases by name, all of the same resamples; see `bootstrap_statistic`."""
    if len(cases) != len(groups) or not len(cases):
        raise InputError(
            f"{len(cases)} cases with {len(groups)} groups: give a group for each case, and at least one case"
        )
    of_group: dict[str, list[Any]] = {}
    for case, group in zip(cases, groups, strict=True):
        of_group.setdefault(str(group), []).append(case)
    clusters = [of_group[name] for name in sorted(of_group)]
    n = len(clusters)
    whole = {name: float(value) for name, value in statistics(list(cases)).items()}
    ends = np.full((2, len(whole)), np.nan)
    if n > 1:
        samples = ([c for i in rng.integers(0, n, n) for c in clusters[i]] for _ in range(resamples))
        drawn = np.array([list(statistics(sample).values()) for sample in samples], np.float64)
        without = ([c for i in range(n) if i != k for c in clusters[i]] for k in range(n))
        left_out = np.array([list(statistics(sample).values()) for sample in without], np.float64)
        ends = _bca(drawn, np.array(list(whole.values())), left_out, level)
    return {
        name: Interval(
            estimate=value,
            low=None if n < 2 else float(ends[0, k]),
            high=None if n < 2 else float(ends[1, k]),
            level=level,
            groups=n,
            cases=len(cases),
        )
        for k, (name, value) in enumerate(whole.items())
    }


def size_strata(sizes: ArrayLike, unit: str, *, objects: ArrayLike | None = None) -> list[str]:
    """Return each row's size stratum by tertiles of the objects' sizes, such as ``"small (under 12 mm^3)"``.

    Args:
        sizes: ``(n,)`` sizes of the references, or of false positives.
        unit: Unit of the sizes, as the table shall call it.
        objects: ``(n,)`` bool, which rows are of an object; the others, such as cases that are rightly empty, are
            ``no object`` and move no limit. None: all.
    """
    array = np.asarray(sizes, np.float64)
    of_object = np.ones(array.shape, bool) if objects is None else np.asarray(objects, bool)
    if not of_object.any():
        return ["no object"] * len(array)
    low, high = np.quantile(array[of_object], [1 / 3, 2 / 3])
    names = (f"small (under {low:.3g} {unit})", "medium", f"large (over {high:.3g} {unit})")
    return [
        "no object" if not known else names[0] if v < low else names[2] if v > high else names[1]
        for v, known in zip(array, of_object, strict=True)
    ]


def _resampled_means(
    means: NDArray[np.float64], rng: np.random.Generator, resamples: int
) -> NDArray[np.float64]:
    """Return ``(resamples, m)`` means of groups drawn with replacement: how often each was drawn, times its row."""
    n = len(means)
    out = np.empty((resamples, means.shape[1]))
    step = max(1, _CHUNK // n)
    for start in range(0, resamples, step):
        rows = min(step, resamples - start)
        drawn = rng.integers(0, n, (rows, n), dtype=np.uint32) + n * np.arange(rows, dtype=np.uint32)[:, None]
        counts = np.bincount(drawn.ravel(), minlength=rows * n).reshape(rows, n)
        out[start : start + rows] = counts @ means / n
    return out


def _bca(
    drawn: NDArray[np.float64], estimates: NDArray[np.float64], left_out: NDArray[np.float64], level: float
) -> NDArray[np.float64]:
    """Return ``(2, m)`` ends from ``(B, m)`` resamples, ``(m,)`` estimates and ``(p, m)`` leave-one-out values."""
    from scipy.special import ndtr, ndtri

    size = len(drawn)
    slack = 1e-12 * np.maximum(1.0, np.abs(estimates))
    below = np.count_nonzero(drawn < estimates - slack, axis=0)
    level_with = np.count_nonzero(np.abs(drawn - estimates) <= slack, axis=0)
    share = np.clip((below + level_with / 2) / size, 0.5 / size, 1 - 0.5 / size)
    bias = ndtri(share)
    off = left_out.mean(axis=0) - left_out
    spread = (off**2).sum(axis=0)
    acceleration = np.where(spread > 0, (off**3).sum(axis=0) / np.maximum(6 * spread**1.5, 1e-300), 0.0)
    ends = np.empty((2, len(estimates)))
    for side, tail in enumerate(((1 - level) / 2, (1 + level) / 2)):
        z = bias + ndtri(tail)
        at = ndtr(bias + z / (1 - acceleration * z))
        for k in range(len(estimates)):
            ends[side, k] = np.quantile(drawn[:, k], at[k])
    return ends

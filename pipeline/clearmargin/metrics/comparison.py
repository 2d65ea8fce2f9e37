"""Two or more sets of rows of the same objects, compared: paired by case and object, one word per metric.

A set is one table, or several of one configuration (seeds, folds): an object's numbers are then means over the tables
that have it, and what the tables differ by is told beside them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from clearmargin.errors import ConfigError, InputError, nearest
from clearmargin.metrics.intervals import group_means
from clearmargin.metrics.measurement import metric_of
from clearmargin.metrics.paired import Comparison, adjust, compare, holm
from clearmargin.metrics.tables import CaseRow

__all__ = ["COUNTS", "ComparedMetric", "ComparedSets", "Regression", "Verdict", "compare_rows"]

Verdict = Literal["better", "worse", "not distinguishable"]

COUNTS = ("detected", "false_positives")
"""What is counted beside the metrics (``SET_METRICS``): the share of references that were matched, and false positives
per case."""

Key = tuple[str, str, str]
"""Case, class and id of a reference."""

_MOST_REGRESSIONS = 20


@dataclass(frozen=True, kw_only=True)
class ComparedMetric:
    """One metric of one set against the first set.

    Attributes:
        name: Name of the set.
        metric: Its name; one of `COUNTS`, too.
        stratum: ``all``, or ``column = value``.
        baseline: Mean over groups of the first set; of the size of errors that may go either way.
        value: The same of this set.
        spreads: Standard deviation of the tables' means, of the first set and of this one; None for a single table.
        comparison: This set minus the first, with interval and p-values; Holm's correction is over all metrics and
            sets of ``all``, and over all of the other strata.
        verdict: ``better`` or ``worse`` than the first set where the adjusted p-value is under the level asked for.
    """

    name: str
    metric: str
    stratum: str
    baseline: float
    value: float
    spreads: tuple[float | None, float | None]
    comparison: Comparison
    verdict: Verdict


@dataclass(frozen=True, kw_only=True)
class Regression:
    """One object that a set does worse than the first.

    Attributes:
        name: Of the set.
        case: Case id.
        kind: Class.
        reference_id: Of the object.
        baseline: The first metric in the first set.
        value: The same in this set.
    """

    name: str
    case: str
    kind: str
    reference_id: str
    baseline: float
    value: float


@dataclass(frozen=True, kw_only=True)
class ComparedSets:
    """All comparisons.

    Attributes:
        first: Name of the set that the others are compared with.
        tables: How many tables each set has, by name.
        metrics: A row for each other set and metric, then those of strata.
        objects: References that all sets have.
        cases: Cases that all sets have.
        left_out: Number of objects, and ids of cases, that only some sets have, by name of the set.
        alpha: Level under which an adjusted p-value is a difference.
        ranked_by: The metric by which regressions are ranked.
        regressions: Objects that a set does worst against the first, worst first.
        means: By metric, then by set, each group's mean: what other tools take.
    """

    first: str
    tables: Mapping[str, int]
    metrics: tuple[ComparedMetric, ...]
    objects: int
    cases: int
    left_out: Mapping[str, tuple[int, tuple[str, ...]]]
    alpha: float
    ranked_by: str
    regressions: tuple[Regression, ...]
    means: Mapping[str, Mapping[str, Mapping[str, float]]]


def compare_rows(
    sets: Mapping[str, Sequence[Sequence[CaseRow]]],
    *,
    rng: np.random.Generator,
    metrics: Sequence[str] = (),
    by: Sequence[str] = (),
    alpha: float = 0.05,
    level: float = 0.95,
) -> ComparedSets:
    """Compare each set with the first, on the references that all of them have.

    A reference is known by its case, class and id (the column ``reference_id`` of ``about``); missed ones have their
    written values. False positives have no partner: they are counted by case.

    Args:
        sets: The tables of each set by name, at least two sets, all of one protocol.
        rng: Where randomness comes from.
        metrics: Names; none for all that every set has.
        by: Columns of strata: each value is compared by itself, too.
        alpha: Level of the verdict.
        level: Coverage of the intervals.

    Raises:
        ConfigError: Fewer than two sets, or a metric or a column that a set lacks.
        InputError: Rows without ids, no common object, or references of different size under one id.

    Source: paired differences of groups' means, `clearmargin.metrics.paired.compare`; Holm, 1979.
    """
    if len(sets) < 2:
        raise ConfigError("give two sets of tables or more: one alone is compared with nothing")
    tables = {name: [_Table(name, rows) for rows in of_set] for name, of_set in sets.items()}
    known = {name: set().union(*(t.objects for t in of)) for name, of in tables.items()}
    seen = {name: {case for t in of for case in t.false_positives} for name, of in tables.items()}
    common = sorted(set.intersection(*known.values()))
    shared = sorted(set.intersection(*seen.values()))
    first = next(iter(sets))
    if not common:
        raise InputError(_nothing_shared(first, seen, shared))
    rows = {key: next(t.objects[key] for t in tables[first] if key in t.objects) for key in common}
    _check_sizes(tables, common, rows, first)
    measured = _metrics(tables, metrics)
    places = {"all": (common, shared)} | _strata(rows, by)
    compared: dict[tuple[str, str, str], ComparedMetric] = {}
    means: dict[str, dict[str, dict[str, float]]] = {}
    for stratum, (keys, cases) in places.items():
        groups = {key: rows[key].group for key in keys}
        of_cases = {case: group for t in tables[first] for case, group in t.groups.items() if case in cases}
        tested: list[tuple[str, Mapping[Any, str]]] = [(m, groups) for m in measured]
        tested += [("false_positives", of_cases)] if cases else []
        for metric, of in tested:
            units = list(of)
            base = _pooled(tables[first], metric, units)
            for name in list(sets)[1:]:
                ours = _pooled(tables[name], metric, units)
                comparison = compare({metric: ours}, {metric: base}, list(of.values()), rng=rng, level=level)[
                    metric
                ]
                compared[stratum, name, metric] = ComparedMetric(
                    name=name,
                    metric=metric,
                    stratum=stratum,
                    baseline=_mean(base, list(of.values())),
                    value=_mean(ours, list(of.values())),
                    spreads=(_spread(tables[first], metric, of), _spread(tables[name], metric, of)),
                    comparison=comparison,
                    verdict="not distinguishable",
                )
                if stratum == "all":
                    for set_name, values in ((first, base), (name, ours)):
                        names, of_groups = group_means(values, list(of.values()))
                        means.setdefault(metric, {})[set_name] = dict(
                            zip(names, of_groups.tolist(), strict=True)
                        )
    ranked_by = next(iter(measured))
    return ComparedSets(
        first=first,
        tables={name: len(of) for name, of in tables.items()},
        metrics=tuple(_with_verdicts(compared, alpha)),
        objects=len(common),
        cases=len(shared),
        left_out={n: (len(known[n]) - len(common), tuple(sorted(seen[n] - set(shared)))) for n in sets},
        alpha=alpha,
        ranked_by=ranked_by,
        regressions=tuple(_regressions(tables, first, ranked_by, common)),
        means=means,
    )


def _nothing_shared(first: str, seen: Mapping[str, set[str]], shared: Sequence[str]) -> str:
    """Return why sets cannot be paired, and the way out."""
    if shared:
        return (
            f"the sets have {len(shared)} cases in common, and no object in them: their references differ; measure "
            "both against the same"
        )
    other = next((name for name in seen if name != first and not seen[name] & seen[first]), first)
    return (
        f"'{first}' has {len(seen[first])} cases and '{other}' {len(seen[other])}, and none is in both. A case's id is "
        "made of the path of its reference and of your key. So measure both against one folder of references, not "
        "against a copy of it; or measure both with --names plain, which pairs cases by their files' names, also of "
        "two users; or if the folder was moved, name both places with `clearmargin cases --moved` and measure again"
    )


class _Table:
    """One table: its references by key, and false positives by case."""

    def __init__(self, name: str, rows: Sequence[CaseRow]) -> None:
        self.objects = _by_object(name, rows)
        self.groups = {row.case: row.group for row in rows}
        self.false_positives = dict.fromkeys(self.groups, 0.0)
        for row in rows:
            self.false_positives[row.case] += row.status == "fp"

    def value(self, metric: str, key: Key | str) -> float | None:
        """Return a metric of a reference, or the false positives of a case; None if the table does not have it."""
        if isinstance(key, str):
            return self.false_positives.get(key)
        row = self.objects.get(key)
        if row is None:
            return None
        if metric == "detected":
            return float(row.status == "tp")
        known = metric_of(metric)
        return abs(row.values[metric]) if known is not None and known.better == "zero" else row.values[metric]


def _pooled(tables: Sequence[_Table], metric: str, keys: Sequence[Any]) -> list[float]:
    """Return the mean over the tables that have it, of each."""
    return [float(np.mean([v for t in tables if (v := t.value(metric, key)) is not None])) for key in keys]


def _spread(tables: Sequence[_Table], metric: str, of: Mapping[Any, str]) -> float | None:
    """Return the standard deviation of the tables' means, each over what it has; None with one table."""
    means = []
    for table in tables:
        there = {key: v for key in of if (v := table.value(metric, key)) is not None}
        if there:
            means.append(_mean(list(there.values()), [of[key] for key in there]))
    return float(np.std(means, ddof=1)) if len(means) > 1 else None


def _mean(values: Sequence[float], groups: Sequence[str]) -> float:
    return float(group_means(values, groups)[1].mean())


def _with_verdicts(
    compared: Mapping[tuple[str, str, str], ComparedMetric], alpha: float
) -> list[ComparedMetric]:
    """Return all rows with p-values adjusted within ``all`` and within the strata, and with their words."""
    out = []
    for rows in (
        {k: row for k, row in compared.items() if k[0] == "all"},
        {k: row for k, row in compared.items() if k[0] != "all"},
    ):
        adjusted = holm({"\n".join(k): row.comparison.p_value for k, row in rows.items()})
        for k, row in rows.items():
            p = adjusted["\n".join(k)]
            known, gap = metric_of(row.metric), row.comparison.difference.estimate
            verdict: Verdict = "not distinguishable"
            if p < alpha and gap:
                higher = known is None or known.better == "higher"
                verdict = "better" if (gap > 0) == higher else "worse"
            fields = vars(row) | {"comparison": adjust(row.comparison, p), "verdict": verdict}
            out.append(ComparedMetric(**fields))
    return out


def _regressions(
    tables: Mapping[str, Sequence[_Table]], first: str, metric: str, common: Sequence[Key]
) -> list[Regression]:
    known = metric_of(metric)
    base = _pooled(tables[first], metric, common)
    worse = []
    for name in list(tables)[1:]:
        for key, before, after in zip(common, base, _pooled(tables[name], metric, common), strict=True):
            cost = after - before if known is not None and known.better != "higher" else before - after
            if cost > 0:
                worse.append((cost, Regression(
                    name=name, case=key[0], kind=key[1], reference_id=key[2], baseline=before, value=after
                )))  # fmt: skip
    worse.sort(key=lambda pair: (-pair[0], pair[1].case, pair[1].reference_id))
    return [one for _, one in worse[:_MOST_REGRESSIONS]]


def _strata(rows: Mapping[Key, CaseRow], by: Sequence[str]) -> dict[str, tuple[list[Key], list[str]]]:
    """Return the references of each value of each column; of these, false positives have none."""
    known = sorted({column for row in rows.values() for column in row.strata})
    out: dict[str, tuple[list[Key], list[str]]] = {}
    for column in by:
        if column not in known:
            raise ConfigError(f"no column '{column}' to split by: {nearest(column, known)}")
        for value in sorted({row.strata.get(column, "unknown") for row in rows.values()}):
            keys = [key for key, row in rows.items() if row.strata.get(column, "unknown") == value]
            out[f"{column} = {value}"] = (keys, [])
    return out


def _by_object(name: str, rows: Sequence[CaseRow]) -> dict[Key, CaseRow]:
    """Return the rows of references by case, class and id."""
    out: dict[Key, CaseRow] = {}
    for row in rows:
        if row.status not in ("tp", "fn"):
            continue
        number = row.about.get("reference_id")
        if number is None:
            raise InputError(
                f"the rows of '{name}' do not say which reference each is: measure again, with this version"
            )
        key = (row.case, row.strata.get("class", ""), str(number))
        if key in out:
            raise InputError(f"'{name}' has two rows for one reference (case {row.case}): measure again")
        out[key] = row
    return out


def _check_sizes(
    tables: Mapping[str, Sequence[_Table]], common: Sequence[Key], rows: Mapping[Key, CaseRow], first: str
) -> None:
    for key in common:
        for name, of in tables.items():
            for table in of:
                if key not in table.objects:
                    continue
                for column, size in rows[key].about.items():
                    if not column.startswith("reference_") or not isinstance(size, float):
                        continue
                    theirs = table.objects[key].about.get(column)
                    if isinstance(theirs, float) and abs(theirs - size) > 1e-6 * max(size, theirs):
                        raise InputError(
                            f"a reference of case {key[0]} is {size:g} in '{first}' and {theirs:g} in '{name}' "
                            f"({column}): they were measured against different references"
                        )


def _metrics(tables: Mapping[str, Sequence[_Table]], asked: Sequence[str]) -> list[str]:
    known = [
        list(next(iter(table.objects.values())).values)
        for of in tables.values()
        for table in of
        if table.objects
    ]
    shared = [name for name in known[0] if all(name in names for names in known)]
    for name in asked:
        if name not in (*shared, *COUNTS):
            raise ConfigError(f"not all sets have the metric '{name}': they share {', '.join(shared)}")
    if not shared:
        raise InputError("the sets have no metric in common: measure them alike")
    return [name for name in (asked or shared) if name in shared] + ["detected"]

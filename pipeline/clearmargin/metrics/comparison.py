"""Two or more sets of rows of the same objects, compared: paired by case and object, one word per metric."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from clearmargin.errors import InputError
from clearmargin.metrics.intervals import Comparison, compare, holm
from clearmargin.metrics.measurement import metric_of
from clearmargin.metrics.tables import CaseRow

__all__ = ["COUNTS", "ComparedMetric", "ComparedSets", "Verdict", "compare_rows"]

Verdict = Literal["better", "worse", "not distinguishable"]

COUNTS = ("detected", "false_positives")
"""What is counted beside the metrics (``SET_METRICS``): the share of references that were matched, and false positives
per case."""

Key = tuple[str, str, str]


@dataclass(frozen=True, kw_only=True)
class ComparedMetric:
    """One metric of one set against the first set.

    Attributes:
        name: Of the set.
        metric: Its name; one of `COUNTS`, too.
        baseline: Mean over patients of the first set; of the size of errors that may go either way.
        value: The same of this set.
        comparison: This set minus the first, with interval and p-values; Holm's correction is over all metrics and
            sets.
        verdict: ``better`` or ``worse`` than the first set where the adjusted p-value is under the level asked for.
    """

    name: str
    metric: str
    baseline: float
    value: float
    comparison: Comparison
    verdict: Verdict


@dataclass(frozen=True, kw_only=True)
class ComparedSets:
    """All comparisons.

    Attributes:
        first: Name of the set that the others are compared with.
        metrics: A row for each other set and metric.
        objects: References that all sets have.
        cases: Cases that all sets have.
        left_out: Objects and cases that only some sets have, by name of the set.
        alpha: Level under which an adjusted p-value is a difference.
    """

    first: str
    metrics: tuple[ComparedMetric, ...]
    objects: int
    cases: int
    left_out: Mapping[str, tuple[int, int]]
    alpha: float


def compare_rows(
    sets: Mapping[str, Sequence[CaseRow]],
    *,
    rng: np.random.Generator,
    metrics: Sequence[str] = (),
    alpha: float = 0.05,
    level: float = 0.95,
) -> ComparedSets:
    """Compare each set with the first, on the references that all of them have.

    A reference is known by its case, class and id (the column ``reference_id`` of ``about``); missed ones have their
    written values. False positives have no partner: they are counted by case.

    Args:
        sets: Rows by name, at least two, of one protocol.
        rng: Where randomness comes from.
        metrics: Names; none for all that every set has.
        alpha: Level of the verdict.
        level: Coverage of the intervals.

    Raises:
        InputError: Fewer than two sets, rows without ids, no common object, references of different size under one
            id, or a metric that a set lacks.

    Source: paired differences of patients' means, `clearmargin.metrics.intervals.compare`; Holm, 1979.
    """
    if len(sets) < 2:
        raise InputError("give two sets of tables or more: one alone is compared with nothing")
    objects = {name: _by_object(name, rows) for name, rows in sets.items()}
    cases = {name: {row.case: row.patient for row in rows} for name, rows in sets.items()}
    common = sorted(set.intersection(*(set(of) for of in objects.values())))
    shared = sorted(set.intersection(*(set(of) for of in cases.values())))
    if not common:
        raise InputError(
            "the sets have no object in common: they were measured against other references, or under another "
            "key (measure "
            "with --names plain to compare tables of two users)"
        )
    first = next(iter(sets))
    _check_sizes(objects, common)
    chosen = _metrics(objects, common, metrics)
    patients = [objects[first][key].patient for key in common]
    compared: dict[tuple[str, str], tuple[float, float, Comparison]] = {}
    for name in list(sets)[1:]:
        ours, base = ({m: _values(objects[n], common, m) for m in chosen} for n in (name, first))
        for metric, found in compare(ours, base, patients, rng=rng, level=level).items():
            compared[name, metric] = (*_means(base[metric], ours[metric], patients), found)
        more, fewer = ({"false_positives": _false_positives(sets[n], shared)} for n in (name, first))
        of_cases = [cases[first][case] for case in shared]
        for metric, found in compare(more, fewer, of_cases, rng=rng, level=level).items():
            compared[name, metric] = (*_means(fewer[metric], more[metric], of_cases), found)
    adjusted = holm({f"{n}\n{m}": found.p_value for (n, m), (_, _, found) in compared.items()})
    return ComparedSets(
        first=first,
        metrics=tuple(
            _compared(name, metric, values, adjusted[f"{name}\n{metric}"], alpha)
            for (name, metric), values in compared.items()
        ),
        objects=len(common),
        cases=len(shared),
        left_out={n: (len(objects[n]) - len(common), len(cases[n]) - len(shared)) for n in sets},
        alpha=alpha,
    )


def _compared(
    name: str, metric: str, values: tuple[float, float, Comparison], adjusted: float, alpha: float
) -> ComparedMetric:
    baseline, value, found = values
    known = metric_of(metric)
    gap = found.difference.estimate
    verdict: Verdict = "not distinguishable"
    if adjusted < alpha and gap:
        verdict = "better" if (gap > 0) == (known is None or known.better == "higher") else "worse"
    return ComparedMetric(
        name=name,
        metric=metric,
        baseline=baseline,
        value=value,
        comparison=Comparison(difference=found.difference, p_value=found.p_value, p_adjusted=adjusted),
        verdict=verdict,
    )


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


def _check_sizes(objects: Mapping[str, Mapping[Key, CaseRow]], common: Sequence[Key]) -> None:
    first, *others = objects.items()
    for key in common:
        for name, of in others:
            for column, size in first[1][key].about.items():
                if not column.startswith("reference_") or not isinstance(size, float):
                    continue
                theirs = of[key].about.get(column)
                if isinstance(theirs, float) and abs(theirs - size) > 1e-6 * max(size, theirs):
                    raise InputError(
                        f"a reference of case {key[0]} is {size:g} in '{first[0]}' and {theirs:g} in '{name}' "
                        f"({column}): "
                        "they were measured against different references"
                    )


def _metrics(
    objects: Mapping[str, Mapping[Key, CaseRow]], common: Sequence[Key], asked: Sequence[str]
) -> list[str]:
    known = [list(of[common[0]].values) for of in objects.values()]
    shared = [name for name in known[0] if all(name in names for names in known)]
    for name in asked:
        if name not in (*shared, *COUNTS):
            raise InputError(f"not all sets have the metric '{name}': they share {', '.join(shared)}")
    if not shared:
        raise InputError("the sets have no metric in common: measure them alike")
    return [name for name in (asked or shared) if name in shared] + ["detected"]


def _values(of: Mapping[Key, CaseRow], common: Sequence[Key], metric: str) -> list[float]:
    """Return a metric of each object; errors that may go either way count by their size."""
    if metric == "detected":
        return [float(of[key].status == "tp") for key in common]
    known = metric_of(metric)
    either = known is not None and known.better == "zero"
    return [abs(of[key].values[metric]) if either else of[key].values[metric] for key in common]


def _false_positives(rows: Sequence[CaseRow], cases: Sequence[str]) -> list[float]:
    counts = dict.fromkeys(cases, 0.0)
    for row in rows:
        if row.status == "fp" and row.case in counts:
            counts[row.case] += 1
    return list(counts.values())


def _means(baseline: Sequence[float], value: Sequence[float], patients: Sequence[str]) -> tuple[float, float]:
    from clearmargin.metrics.intervals import patient_means

    return (
        float(patient_means(baseline, patients)[1].mean()),
        float(patient_means(value, patients)[1].mean()),
    )

"""Tables of results: what is summarised, with what counts, and as CSV, JSON or Markdown."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from clearmargin.core.grid import Unit
from clearmargin.csv_files import parse_csv
from clearmargin.errors import InputError, nearest
from clearmargin.files import csv_rows
from clearmargin.metrics.intervals import Interval, bootstrap_means, group_means
from clearmargin.metrics.measurement import metric_of
from clearmargin.metrics.pair import Status

__all__ = [
    "CaseRow",
    "SummaryRow",
    "read_rows_csv",
    "rows_csv",
    "summarise",
    "summary_csv",
    "summary_json",
    "summary_markdown",
]

_STRATA = ("class", "size", "crowding", "occlusion")
_STATUSES: tuple[Status, ...] = ("tp", "fn", "fp", "tn")


@dataclass(frozen=True, kw_only=True)
class CaseRow:
    """One measured object or image, with what a table can be split by.

    Attributes:
        group: Group's id; groups are the unit of all statistics.
        case: Case id.
        status: ``tp``, ``fn``, ``fp`` or ``tn``.
        unit: Unit of the distances.
        ndim: 2 or 3: whether sizes are areas or volumes.
        values: Metric by name; all finite.
        strata: Columns to split by, such as the class, the size stratum or any column of the data card.
        about: Columns by which the object is found again: ids, score, sizes, position.
    """

    group: str
    case: str
    status: Status
    unit: Unit
    ndim: int
    values: Mapping[str, float]
    strata: Mapping[str, str]
    about: Mapping[str, str | float | None] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class SummaryRow:
    """One metric in one stratum.

    Attributes:
        stratum: ``all``, or ``column = value``.
        metric: Name.
        unit: Unit of the metric, such as ``mm`` or ``mm^3``; empty for ratios.
        interval: Mean over groups with its interval.
        median: Median over objects.
        quartiles: First and third quartile over objects.
        sd: Standard deviation of the groups' means (n - 1); None with fewer than two groups.
        surface: The surface model of the distances.
        counts: Objects by status; ``tn`` counts images that rightly hold none.
        cases: Number of cases that they are of; ``interval.cases`` counts the objects.
        miss_rate: Missed references as a share of all references in the stratum; 0 without references.
    """

    stratum: str
    metric: str
    unit: str
    interval: Interval
    median: float
    quartiles: tuple[float, float]
    sd: float | None
    surface: str
    counts: Mapping[Status, int]
    cases: int
    miss_rate: float


def summarise(
    rows: Sequence[CaseRow],
    *,
    rng: np.random.Generator,
    by: Sequence[str] = (),
    resamples: int = 10_000,
    level: float = 0.95,
    surface: str = "surface",
) -> list[SummaryRow]:
    """Summarise cases, all together and for each value of each column in ``by``.

    False negatives and false positives are in every mean with their written values; the counts and the miss rate
    stand beside it. Intervals are of means over groups (`bootstrap_means`).

    Raises:
        InputError: No case, a column that no row has, metrics that differ, or cases in mm and px or images and
            volumes together.
    """
    if not rows:
        raise InputError("nothing to summarise: there is no case")
    if len({(row.unit, row.ndim) for row in rows}) > 1:
        raise InputError(
            "cases in mm and in px, or images and volumes, cannot share a table: summarise them apart"
        )
    known = sorted({name for row in rows for name in row.strata})
    for column in by:
        if column not in known:
            raise InputError(f"no column '{column}' to split by: {nearest(column, known)}")
    out = _stratum("all", rows, rng, resamples, level, surface)
    for column in by:
        for value in sorted({row.strata.get(column, "unknown") for row in rows}):
            members = [row for row in rows if row.strata.get(column, "unknown") == value]
            out += _stratum(f"{column} = {value}", members, rng, resamples, level, surface)
    return out


def summary_csv(summary: Sequence[SummaryRow]) -> str:
    """Return the summary as CSV with full precision; missing interval ends are empty fields."""
    out = io.StringIO()
    rows = [["" if v is None else v for v in _fields(row).values()] for row in summary]
    csv_rows(out, [list(_fields(summary[0])) if summary else [], *rows])
    return out.getvalue()


def summary_json(summary: Sequence[SummaryRow]) -> str:
    """Return the summary as a JSON list of objects; missing interval ends are null, and nothing is NaN."""
    return json.dumps([_fields(row) for row in summary], indent=1, allow_nan=False) + "\n"


def summary_markdown(summary: Sequence[SummaryRow]) -> str:
    """Return the summary as a Markdown table, three decimals."""
    lines = [
        "| stratum | metric | unit | mean | SD | interval | median | IQR | groups | cases | objects | tp | fn | fp "
        "| tn | miss rate |",
        "|---|---|---|---:|---:|---|---:|---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for row in summary:
        interval = row.interval
        counts = " | ".join(str(row.counts[s]) for s in _STATUSES)
        lines.append(
            f"| {row.stratum} | {row.metric} | {row.unit} | {interval.estimate:.3f} | {_number(row.sd)} "
            f"| {_ends(interval)} "
            f"| {row.median:.3f} | {row.quartiles[0]:.3f} to {row.quartiles[1]:.3f} "
            f"| {interval.groups} | {row.cases} | {interval.cases} | {counts} | {row.miss_rate:.3f} |"
        )
    models = sorted({row.surface for row in summary})
    note = f"\nDistances between surfaces by the model {', '.join(models)}." if models else ""
    return "\n".join(lines) + "\n" + (f"{note}\n" if note else "")


def _number(value: float | None) -> str:
    return "none" if value is None else f"{value:.3f}"


def rows_csv(rows: Sequence[CaseRow]) -> str:
    """Return the rows as CSV with full precision: group, case, status, unit, what each is, strata, values."""
    strata = sorted({name for row in rows for name in row.strata})
    about = list(dict.fromkeys(name for row in rows for name in row.about))
    names = list(dict.fromkeys(name for row in rows for name in row.values))
    out = io.StringIO()
    table: list[list[object]] = [["group", "case", "status", "unit", *about, *strata, *names]]
    for row in rows:
        table.append([
            row.group, row.case, row.status, row.unit,
            *("" if row.about.get(a) is None else row.about[a] for a in about),
            *(row.strata.get(s, "") for s in strata),
            *(row.values.get(n, "") for n in names),
        ])  # fmt: skip
    csv_rows(out, table)
    return out.getvalue()


def read_rows_csv(text: str) -> list[CaseRow]:
    """Return the rows that `rows_csv` wrote; what stands before the first stratum and is not a value is ``about``.

    Raises:
        ValueError: Not such a table.
    """
    lines = parse_csv(text)
    columns = list(lines[0]) if lines else text.partition("\n")[0].split(",")
    if not {"group", "case", "status", "unit"} <= set(columns):
        raise ValueError("it lacks the columns group, case, status and unit")
    metrics = [name for name in columns if metric_of(name) is not None]
    strata = [name for name in columns if name in _STRATA]
    about = [n for n in columns if n not in ("group", "case", "status", "unit", *metrics, *strata)]
    rows = []
    for line in lines:
        status = line["status"]
        if status not in _STATUSES or line["unit"] not in ("mm", "px"):
            raise ValueError(f"a row has the status '{status}' and the unit '{line['unit']}'")
        unit: Unit = "mm" if line["unit"] == "mm" else "px"
        rows.append(
            CaseRow(
                group=line["group"],
                case=line["case"],
                status=status,
                unit=unit,
                ndim=3 if any("volume" in name for name in about) else 2,
                values={name: float(str(line[name])) for name in metrics},
                strata={name: line[name] for name in strata},
                about={name: _number_or_text(name, line[name]) for name in about},
            )
        )
    return rows


def _number_or_text(name: str, text: str) -> str | float | None:
    if not text:
        return None
    if name.endswith("_id"):
        return text  # ids may look like numbers
    try:
        return float(text)
    except ValueError:
        return text


def _stratum(
    name: str,
    rows: Sequence[CaseRow],
    rng: np.random.Generator,
    resamples: int,
    level: float,
    surface: str,
) -> list[SummaryRow]:
    metrics = list(rows[0].values)
    if any(list(row.values) != metrics for row in rows):
        raise InputError("all cases of a table are measured by one protocol; these have different metrics")
    values = {metric: [row.values[metric] for row in rows] for metric in metrics}
    intervals = bootstrap_means(
        values, [row.group for row in rows], rng=rng, level=level, resamples=resamples
    )
    _, means = group_means(np.column_stack(list(values.values())), [row.group for row in rows])
    spreads: list[float | None] = [None] * len(metrics)
    if len(means) > 1:
        spreads = [float(v) for v in means.std(axis=0, ddof=1)]
    counts: dict[Status, int] = {status: sum(row.status == status for row in rows) for status in _STATUSES}
    existing = counts["tp"] + counts["fn"]
    return [
        SummaryRow(
            stratum=name,
            metric=metric,
            unit=_unit_of(metric, rows[0]),
            interval=intervals[metric],
            median=float(np.median(values[metric])),
            quartiles=(float(np.quantile(values[metric], 0.25)), float(np.quantile(values[metric], 0.75))),
            sd=spreads[k],
            surface=surface,
            counts=counts,
            cases=len({row.case for row in rows}),
            miss_rate=counts["fn"] / existing if existing else 0.0,
        )
        for k, metric in enumerate(metrics)
    ]


def _unit_of(name: str, row: CaseRow) -> str:
    metric = metric_of(name)
    return metric.unit_on(row.unit, row.ndim) if metric else ""


def _fields(row: SummaryRow) -> dict[str, str | float | int | None]:
    interval = row.interval
    return {
        "stratum": row.stratum,
        "metric": row.metric,
        "unit": row.unit,
        "mean": interval.estimate,
        "low": interval.low,
        "high": interval.high,
        "level": interval.level,
        "sd": row.sd,
        "median": row.median,
        "q1": row.quartiles[0],
        "q3": row.quartiles[1],
        "groups": interval.groups,
        "cases": row.cases,
        "objects": interval.cases,
        **{status: row.counts[status] for status in _STATUSES},
        "miss_rate": row.miss_rate,
        "surface": row.surface,
    }


def _ends(interval: Interval) -> str:
    if interval.low is None or interval.high is None:
        return f"none ({interval.groups} group)"
    return f"[{interval.low:.3f}, {interval.high:.3f}]"

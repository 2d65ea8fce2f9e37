"""A comparison as Markdown, CSV, LaTeX and HTML, and as the table that the tool Claims Reloaded takes."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from clearmargin.files import csv_rows, write_text
from clearmargin.metrics.comparison import ComparedMetric, ComparedSets
from clearmargin.metrics.intervals import Interval
from clearmargin.metrics.measurement import metric_title
from clearmargin.metrics.paired import FEW
from clearmargin.report.web import table, text, web_page

__all__ = ["Costs", "comparison_markdown", "comparison_table", "write_comparison"]

Costs = Mapping[str, Mapping[str, float]]
"""What each set costs, by its name: ``seconds per case``, ``megabytes``; empty where nobody knows."""


def comparison_markdown(done: ComparedSets, costs: Costs | None = None) -> str:
    """Return the comparison as Markdown, with what it is of and what was left out."""
    lines = [*_preface(done), ""]
    for stratum in dict.fromkeys(row.stratum for row in done.metrics):
        if stratum != "all":
            lines += ["", f"**{stratum}**", ""]
        lines += _markdown([_row(row, done) for row in done.metrics if row.stratum == stratum])
    cautions = _cautions(done)
    if cautions:
        lines += ["", *(f"- {caution}" for caution in cautions)]
    cost = _cost_rows(costs or {})
    if cost:
        lines += ["", *_markdown(cost)]
    if done.regressions:
        lines += ["", f"Objects that lose most, by {metric_title(done.ranked_by)}:", ""]
        lines += _markdown(_regression_rows(done)[:10])
    return "\n".join(lines)


def comparison_table(done: ComparedSets) -> str:
    """Return the rows of all objects together as an HTML table, as a notebook shows it."""
    return table([_row(row, done) for row in done.metrics if row.stratum == "all"], marked="it is")


def write_comparison(
    done: ComparedSets, folder: Path, *, costs: Costs | None = None, pictures: Mapping[int, str] | None = None
) -> None:
    """Write ``comparison`` as ``.csv`` (full precision), ``.md``, ``.tex`` and ``.html``, and ``claims/METRIC.csv``.

    Args:
        done: The comparison.
        folder: Made if it does not exist.
        costs: Of each set.
        pictures: HTML of a picture for some regressions, by position.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "comparison.csv", _csv(done))
    write_text(folder / "comparison.md", comparison_markdown(done, costs) + "\n")
    write_text(folder / "comparison.tex", _latex(done))
    write_text(folder / "comparison.html", _page(done, costs or {}, pictures or {}))
    for metric, means in done.means.items():
        out = io.StringIO()
        units = sorted(set.intersection(*(set(of) for of in means.values())))
        csv_rows(out, [["case", *means], *([unit, *(means[name][unit] for name in means)] for unit in units)])
        write_text(folder / "claims" / f"{metric}.csv", out.getvalue())


def _preface(done: ComparedSets) -> list[str]:
    overall = sum(row.stratum == "all" for row in done.metrics)
    lines = [
        f"against {done.first}: {done.objects} references and {done.cases} cases that all have; mean differences over "
        f"groups with Student's intervals, Holm over {overall} comparisons, level {done.alpha:g}",
    ]
    lines += [
        f"{name}: a mean over {n} tables of one configuration" for name, n in done.tables.items() if n > 1
    ]
    for name, (objects, cases) in done.left_out.items():
        if objects or cases:
            which = f" ({', '.join(cases[:5])}{', ...' if len(cases) > 5 else ''})" if cases else ""
            lines.append(
                f"{name}: {objects} objects and {len(cases)} cases{which} left out, which not all have"
            )
    return lines


def _row(row: ComparedMetric, done: ComparedSets) -> dict[str, Any]:
    gap = row.comparison
    return {
        "tool": row.name,
        "metric": row.metric,
        done.first: _with_spread(row.baseline, row.spreads[0]),
        "tool's": _with_spread(row.value, row.spreads[1]),
        "difference": f"{gap.difference.estimate:+.3f}",
        "interval": _ends(gap.difference, alike=gap.difference.groups > 1),
        "median difference": f"{gap.median.estimate:+.3f} {_ends(gap.median)}",
        "p (Holm)": f"{gap.p_adjusted:.3g}",
        "claim false": f"{gap.p_false:.3f}",
        "it is": row.verdict,
    }


def _with_spread(value: float, spread: float | None) -> str:
    return f"{value:.3f}" if spread is None else f"{value:.3f} ± {spread:.3f}"


def _ends(interval: Interval, *, alike: bool = False) -> str:
    """Return an interval's ends, or why it has none: too few groups, or ``alike``."""
    if interval.low is None or interval.high is None:
        groups = f"{interval.groups} group{'s' if interval.groups > 1 else ''}"
        return f"none ({groups}{', all by the same' if alike else ''})"
    return f"[{interval.low:+.3f}, {interval.high:+.3f}]"


def _cautions(done: ComparedSets) -> list[str]:
    """Return where an interval cannot be taken at its word."""
    few, off = [], []
    for row in done.metrics:
        comparison = row.comparison
        what = f"{row.name}, {row.metric}" + ("" if row.stratum == "all" else f", {row.stratum}")
        if comparison.coverage is None and comparison.difference.groups < FEW:
            few.append(what)
        elif comparison.coverage is not None and not comparison.covers and comparison.difference.estimate:
            off.append(f"{what} ({100 * comparison.coverage:.0f} %)")
    lines = []
    if few:
        lines.append(f"fewer than {FEW} groups, the coverage of the interval is not known: {'; '.join(few)}")
    if off:
        level = 100 * done.metrics[0].comparison.difference.level
        lines.append(
            f"intervals that do not cover {level:g} % on samples like these, so that their verdicts are less sure: "
            f"{'; '.join(off)}"
        )
    return lines


def _cost_rows(costs: Costs) -> list[dict[str, Any]]:
    names = dict.fromkeys(name for of in costs.values() for name in of)
    return [
        {"tool": tool} | {name: f"{of[name]:.3g}" if name in of else "-" for name in names}
        for tool, of in costs.items()
        if of
    ]


def _regression_rows(done: ComparedSets) -> list[dict[str, Any]]:
    return [
        {
            "tool": one.name, "case": one.case, "class": one.kind, "object": one.reference_id,
            done.first: f"{one.baseline:.3f}", "tool's": f"{one.value:.3f}",
        }
        for one in done.regressions
    ]  # fmt: skip


def _markdown(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    columns = list(rows[0]) if rows else []
    return [
        f"| {' | '.join(columns)} |",
        f"|{'|'.join('---' for _ in columns)}|",
        *(f"| {' | '.join(str(row[c]) for c in columns)} |" for row in rows),
    ]


def _csv(done: ComparedSets) -> str:
    rows: list[list[object]] = [[
        "tool", "against", "metric", "stratum", "baseline", "baseline_sd", "value", "value_sd", "difference", "low",
        "high", "level", "coverage", "median", "median_low", "median_high", "p", "p_holm", "p_false", "verdict",
        "groups", "pairs",
    ]]  # fmt: skip
    for row in done.metrics:
        comparison = row.comparison
        gap, median = comparison.difference, comparison.median
        values = [
            row.name, done.first, row.metric, row.stratum, row.baseline, row.spreads[0], row.value, row.spreads[1],
            gap.estimate, gap.low, gap.high, gap.level, comparison.coverage, median.estimate, median.low, median.high,
            comparison.p_value, comparison.p_adjusted, comparison.p_false, row.verdict, gap.groups, gap.cases,
        ]  # fmt: skip
        rows.append(["" if v is None else v for v in values])
    out = io.StringIO()
    csv_rows(out, rows)
    return out.getvalue()


def _latex(done: ComparedSets) -> str:
    """Return a table for the package booktabs."""
    lines = [
        r"% needs \usepackage{booktabs}",
        r"\begin{table}",
        r"\centering",
        rf"\caption{{Against {_escaped(done.first)}, {done.objects} objects: mean difference "
        r"over groups with Student's interval; $p$ after Holm's correction; $P$: probability that the claim is false.}",
        r"\begin{tabular}{llccccl}",
        r"\toprule",
        r"Tool & Metric & Difference & Interval & $p$ & $P$ & Verdict \\",
        r"\midrule",
    ]
    for row in done.metrics:
        if row.stratum != "all":
            continue
        gap = row.comparison
        cells = [
            _escaped(row.name), _escaped(metric_title(row.metric)), f"${gap.difference.estimate:+.3f}$",
            _escaped(_ends(gap.difference)), f"{gap.p_adjusted:.3g}", f"{gap.p_false:.3f}", row.verdict,
        ]  # fmt: skip
        lines.append(" & ".join(cells) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", r"\end{table}", ""])


def _escaped(words: str) -> str:
    special = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    return "".join(special.get(c, f"\\{c}" if c in "&%$#_{}" else c) for c in words)


def _page(done: ComparedSets, costs: Costs, pictures: Mapping[int, str]) -> str:
    parts = [f'<p class="faint">{text(line)}</p>' for line in _preface(done)]
    for stratum in dict.fromkeys(row.stratum for row in done.metrics):
        parts.append(f"<h2>{text('All together' if stratum == 'all' else stratum)}</h2>")
        parts.append(
            table([_row(row, done) for row in done.metrics if row.stratum == stratum], marked="it is")
        )
    parts += [f"<p>{text(caution)}.</p>" for caution in _cautions(done)]
    cost = _cost_rows(costs)
    if cost:
        parts += ["<h2>Time and size</h2>", table(cost)]
    if done.regressions:
        parts.append(f"<h2>Objects that lose most, by {text(metric_title(done.ranked_by))}</h2>")
        rows = _regression_rows(done)
        parts.append(table(rows))
        parts += [
            f"<h3>{text(one.name)}, {text(one.case)}, {text(one.kind)}: {one.baseline:.3f} to {one.value:.3f}</h3>"
            f"{pictures[k]}"
            for k, one in enumerate(done.regressions)
            if k in pictures
        ]
    return web_page(f"{' and '.join(list(done.tables)[1:])} against {done.first}", parts)

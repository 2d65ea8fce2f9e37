"""The table that a paper prints: class by metric, with spread and intervals, as CSV, Markdown and LaTeX."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from clearmargin.files import csv_rows, write_text
from clearmargin.metrics.intervals import bootstrap_class_means
from clearmargin.metrics.measurement import metric_title
from clearmargin.metrics.tables import CaseRow, SummaryRow, summarise

__all__ = ["FOREGROUND", "PaperCell", "PaperTable", "paper_table", "write_paper"]

FOREGROUND = "foreground mean"
"""The mean over the classes, each the mean over its groups: as nnU-Net's ``foreground_mean``."""


@dataclass(frozen=True, kw_only=True)
class PaperCell:
    """One metric of one class.

    Attributes:
        mean: Over groups; of the foreground over classes.
        sd: Of the groups' means; None with one group.
        low: Lower end of the interval of the mean; None with one group.
        high: Its upper end.
        median: Over objects; None for the foreground.
        q1: First quartile over objects; None for the foreground.
        q3: Third quartile.
        groups: Number of groups.
        objects: Number of objects, false negatives and false positives included.
    """

    mean: float
    sd: float | None
    low: float | None
    high: float | None
    median: float | None
    q1: float | None
    q3: float | None
    groups: int
    objects: int


@dataclass(frozen=True, kw_only=True)
class PaperTable:
    """Classes by metrics.

    Attributes:
        cells: By class, then by metric; the foreground mean last, if there are several classes. Empty without any
            object.
        units: Units of each metric; empty for ratios.
        surface: The surface model of the distances.
        level: Coverage of the intervals.
    """

    cells: Mapping[str, Mapping[str, PaperCell]]
    units: Mapping[str, str]
    surface: str
    level: float


def paper_table(
    rows: Sequence[CaseRow], *, rng: np.random.Generator, surface: str, level: float = 0.95
) -> PaperTable:
    """Return the table of rows that have the stratum ``class``; rows of class ``none`` are in no class.

    False negatives and false positives are in every mean, with their written values.

    Args:
        rows: Measured by one protocol.
        rng: Where randomness comes from.
        surface: The surface model, to stand with the table.
        level: Coverage of the intervals.
    """
    held = [row for row in rows if row.strata.get("class", "none") != "none"]
    if not held:
        return PaperTable(cells={}, units={}, surface=surface, level=level)
    summary = summarise(held, rng=rng, by=["class"], level=level, surface=surface)
    cells: dict[str, dict[str, PaperCell]] = {}
    for row in summary:
        if row.stratum.startswith("class = "):
            cells.setdefault(row.stratum.removeprefix("class = "), {})[row.metric] = _cell(row)
    names = list(held[0].values)
    if len(cells) > 1:
        means = bootstrap_class_means(
            {name: [row.values[name] for row in held] for name in names},
            [row.group for row in held],
            [row.strata["class"] for row in held],
            rng=rng,
            level=level,
        )
        cells[FOREGROUND] = {
            name: PaperCell(
                mean=interval.estimate, sd=_foreground_sd(held, name), low=interval.low, high=interval.high,
                median=None, q1=None, q3=None,
                groups=interval.groups, objects=interval.cases,
            )
            for name, interval in means.items()
        }  # fmt: skip
    units = {row.metric: row.unit for row in summary}
    return PaperTable(cells=cells, units=units, surface=surface, level=level)


def _foreground_sd(rows: Sequence[CaseRow], metric: str) -> float | None:
    """Return the standard deviation over groups of their means over classes."""
    by_group: dict[str, dict[str, list[float]]] = {}
    for row in rows:
        by_group.setdefault(row.group, {}).setdefault(row.strata["class"], []).append(row.values[metric])
    means = [np.mean([np.mean(v) for v in of.values()]) for of in by_group.values()]
    return float(np.std(means, ddof=1)) if len(means) > 1 else None


def write_paper(table: PaperTable, folder: Path) -> None:
    """Write ``paper.csv`` (a line for each class and metric), ``paper.md`` and ``paper.tex``."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in (
        ("paper.csv", _csv(table)),
        ("paper.md", _markdown(table)),
        ("paper.tex", _latex(table)),
    ):
        write_text(folder / name, text)


def _cell(row: SummaryRow) -> PaperCell:
    return PaperCell(
        mean=row.interval.estimate,
        sd=row.sd,
        low=row.interval.low,
        high=row.interval.high,
        median=row.median,
        q1=row.quartiles[0],
        q3=row.quartiles[1],
        groups=row.interval.groups,
        objects=row.interval.cases,
    )


def _csv(table: PaperTable) -> str:
    rows: list[list[object]] = [[
        "class", "metric", "unit", "mean", "sd", "low", "high", "level", "median", "q1", "q3", "groups", "objects",
        "surface",
    ]]  # fmt: skip
    for name, cells in table.cells.items():
        for metric, cell in cells.items():
            values = (cell.mean, cell.sd, cell.low, cell.high, table.level, cell.median, cell.q1, cell.q3)
            rows.append([
                name, metric, table.units[metric], *("" if v is None else v for v in values), cell.groups,
                cell.objects, table.surface,
            ])  # fmt: skip
    out = io.StringIO()
    csv_rows(out, rows)
    return out.getvalue()


def _markdown(table: PaperTable) -> str:
    if not table.cells:
        return "No object at all.\n"
    lines = [f"Mean ± SD over groups [{100 * table.level:g} % interval of the mean]", ""]
    lines += _markdown_table(table, _mean_text)
    lines += ["", "Median over objects (first to third quartile)", ""]
    lines += _markdown_table(table, _median_text)
    return "\n".join([*lines, "", _footnote(table), ""])


def _markdown_table(table: PaperTable, text: Callable[[PaperCell, int], str]) -> list[str]:
    metrics = list(table.units)
    head = ["class", "groups", "objects", *(metric_title(m, table.units[m]) for m in metrics)]
    lines = [f"| {' | '.join(head)} |", f"|---|---:|---:|{'---|' * len(metrics)}"]
    for name, cells in table.cells.items():
        first = next(iter(cells.values()))
        texts = [text(cells[m], _places(table.units[m])) for m in metrics]
        lines.append(f"| {name} | {first.groups} | {first.objects} | {' | '.join(texts)} |")
    return lines


def _latex(table: PaperTable) -> str:
    """Return a table for the package booktabs."""
    if not table.cells:
        return "% no object at all\n"
    metrics = list(table.units)
    titles = " & ".join(_escaped(metric_title(m, table.units[m])) for m in metrics)
    lines = [
        r"% needs \usepackage{booktabs}",
        r"\begin{table}",
        r"\centering",
        rf"\caption{{Mean $\pm$ SD over groups, [{100 * table.level:g}\,\% interval]; median (IQR) over objects. "
        rf"{_escaped(_footnote(table))}}}",
        rf"\begin{{tabular}}{{l{'c' * len(metrics)}}}",
        r"\toprule",
        rf"Class & {titles} \\",
        r"\midrule",
    ]
    for name, cells in table.cells.items():
        if name == FOREGROUND:
            lines.append(r"\midrule")
        means = [_mean_text(cells[m], _places(table.units[m])) for m in metrics]
        lines.append(rf"{_escaped(name)} & {' & '.join(_escaped(v) for v in means)} \\")
        medians = [_median_text(cells[m], _places(table.units[m])) for m in metrics]
        if any(medians):
            lines.append(rf" & {' & '.join(_escaped(v) for v in medians)} \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", r"\end{table}", ""])


def _footnote(table: PaperTable) -> str:
    words = f"False negatives and false positives are in all numbers; surface model: {table.surface}."
    if FOREGROUND in table.cells:
        words += " The foreground mean is over classes."
    return words


def _mean_text(cell: PaperCell, places: int) -> str:
    text = f"{cell.mean:.{places}f}"
    text += "" if cell.sd is None else f" ± {cell.sd:.{places}f}"
    if cell.low is not None and cell.high is not None:
        text += f" [{cell.low:.{places}f}, {cell.high:.{places}f}]"
    return text


def _median_text(cell: PaperCell, places: int) -> str:
    if cell.median is None or cell.q1 is None or cell.q3 is None:
        return ""
    return f"{cell.median:.{places}f} ({cell.q1:.{places}f} to {cell.q3:.{places}f})"


def _places(unit: str) -> int:
    """Return the decimals that a unit is worth: ratios three, lengths two, areas and volumes one."""
    return 3 if not unit else 1 if "^" in unit else 2


def _escaped(text: str) -> str:
    text = text.replace("\\", "\0")
    for plain, code in (
        ("{", r"\{"), ("}", r"\}"), ("\0", r"\textbackslash{}"), ("~", r"\textasciitilde{}"), ("mm^3", "\1"),
        ("mm^2", "\2"), ("px^2", "\3"), ("^", r"\textasciicircum{}"), ("\1", "mm^3"), ("\2", "mm^2"), ("\3", "px^2"),
        ("&", r"\&"), ("%", r"\%"), ("$", r"\$"), ("#", r"\#"), ("_", r"\_"), ("±", r"$\pm$"),
        ("mm^3", r"mm$^3$"), ("mm^2", r"mm$^2$"), ("px^2", r"px$^2$"),
    ):  # fmt: skip
        text = text.replace(plain, code)
    return text

"""Compare tools by their tables: paired by case and object, Holm's correction, one word per metric."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from clearmargin.errors import ConfigError, InputError
from clearmargin.files import csv_rows, write_text
from clearmargin.metrics.comparison import ComparedSets, compare_rows
from clearmargin.metrics.tables import CaseRow, read_rows_csv

__all__ = ["compare", "read_tables", "render", "write_comparison"]

_FILES = ("objects.csv", "instances.csv")  # of `measure` and of `evaluate`


def compare(
    tables: Sequence[Path],
    *,
    names: Sequence[str] = (),
    metrics: Sequence[str] = (),
    alpha: float = 0.05,
    seed: int = 0,
    out: Path | None = None,
) -> ComparedSets:
    """Compare the tables of two or more tools; the first is what the others are compared with.

    Args:
        tables: Folders that `measure --out` or `evaluate --out` wrote, or their ``objects.csv`` or ``instances.csv``.
        names: A name for each; none for the folders' own.
        metrics: Names; none for all that every table has.
        alpha: Level under which an adjusted p-value is a difference.
        seed: Random seed for the bootstrap.
        out: Folder for ``comparison.csv`` and ``comparison.md``; None writes nothing.

    Raises:
        InputError: Tables that cannot be read, or cannot be compared (`compare_rows`).
        ConfigError: Names that are not one for each, or a level that is none.
    """
    if not 0 < alpha < 1:
        raise ConfigError(f"alpha: expected a level between 0 and 1, got {alpha:g}")
    given = list(names) or [Path(table).resolve().name for table in tables]
    if len(given) != len(tables) or len(set(given)) < len(given):
        raise ConfigError(f"give each of the {len(tables)} tables a name of its own, not {', '.join(given)}")
    sets = {name: read_tables(Path(table)) for name, table in zip(given, tables, strict=True)}
    _check_alike(sets)
    done = compare_rows(sets, rng=np.random.default_rng(seed), metrics=metrics, alpha=alpha)
    if out is not None:
        write_comparison(done, Path(out))
    return done


def read_tables(path: Path) -> list[CaseRow]:
    """Return the rows of a folder of tables, or of one table.

    Raises:
        InputError: No such table, or not one of ours.
    """
    if path.is_dir():
        found = [path / name for name in _FILES if (path / name).is_file()]
        if not found:
            raise InputError(
                f"no {' or '.join(_FILES)} in '{path.name}': give a folder that `measure --out` wrote"
            )
        path = found[0]
    if not path.is_file():
        raise InputError(f"no file or folder '{path.name}'")
    try:
        return read_rows_csv(path.read_text(encoding="utf-8"))
    except (ValueError, KeyError) as error:
        raise InputError(f"'{path.name}' is not a table of objects ({error})") from None


def render(done: ComparedSets) -> str:
    """Return the comparison as a Markdown table, with what it is of."""
    lines = [
        f"against {done.first}: {done.objects} references and {done.cases} cases that all have; p by Wilcoxon "
        "over groups, "
        f"Holm over {len(done.metrics)} comparisons, level {done.alpha:g}",
    ]
    lines += [
        f"{name}: {objects} objects and {cases} cases left out, which not all have"
        for name, (objects, cases) in done.left_out.items()
        if objects or cases
    ]
    lines += [
        "",
        f"| tool | metric | {done.first} | tool's | difference | interval | p | p (Holm) | it is |",
        "|---|---|---:|---:|---:|---|---:|---:|---|",
    ]
    for row in done.metrics:
        gap = row.comparison.difference
        ends = (
            "none (1 group)" if gap.low is None or gap.high is None else f"[{gap.low:+.3f}, {gap.high:+.3f}]"
        )
        lines.append(
            f"| {row.name} | {row.metric} | {row.baseline:.3f} | {row.value:.3f} | {gap.estimate:+.3f} | {ends} "
            f"| {row.comparison.p_value:.3g} | {row.comparison.p_adjusted:.3g} | {row.verdict} |"
        )
    return "\n".join(lines)


def write_comparison(done: ComparedSets, folder: Path) -> None:
    """Write ``comparison.csv``, in full precision, and ``comparison.md``."""
    folder.mkdir(parents=True, exist_ok=True)
    rows: list[list[object]] = [[
        "tool", "against", "metric", "baseline", "value", "difference", "low", "high", "level", "p", "p_holm",
        "verdict", "groups", "pairs",
    ]]  # fmt: skip
    for row in done.metrics:
        gap = row.comparison.difference
        rows.append([
            row.name, done.first, row.metric, row.baseline, row.value, gap.estimate,
            *("" if end is None else end for end in (gap.low, gap.high)), gap.level, row.comparison.p_value,
            row.comparison.p_adjusted, row.verdict, gap.groups, gap.cases,
        ])  # fmt: skip
    out = io.StringIO()
    csv_rows(out, rows)
    write_text(folder / "comparison.csv", out.getvalue())
    write_text(folder / "comparison.md", render(done) + "\n")


def _check_alike(sets: Mapping[str, Sequence[CaseRow]]) -> None:
    """Refuse tables whose distances are not the same thing."""
    models = {name: {str(row.about.get("surface")) for row in rows} for name, rows in sets.items()}
    units = {name: {str(row.unit) for row in rows} for name, rows in sets.items()}
    thresholds = {name: {str(row.about.get("iou_threshold")) for row in rows} for name, rows in sets.items()}
    caps = {name: {str(row.about.get("distance_cap")) for row in rows} for name, rows in sets.items()}
    for what, by_name in (
        ("surface models", models),
        ("units", units),
        ("IoU thresholds", thresholds),
        ("distance caps", caps),
    ):
        if len(set().union(*by_name.values())) > 1:
            shown = "; ".join(f"{name}: {', '.join(sorted(values))}" for name, values in by_name.items())
            raise InputError(f"the tables have different {what} ({shown}): measure them alike")

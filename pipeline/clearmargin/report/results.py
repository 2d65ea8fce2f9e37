"""Results of a set of cases: what a console shows, and the tables in a folder. `evaluate` and `measure` share both."""

from __future__ import annotations

import io
import json
import logging
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from clearmargin.files import csv_rows, write_text
from clearmargin.metrics.results import Results
from clearmargin.metrics.tables import SummaryRow, rows_csv, summary_csv, summary_json, summary_markdown
from clearmargin.report.detections import write_detections
from clearmargin.report.paper import paper_table, write_paper

__all__ = ["PARTIAL", "instance_lines", "set_lines", "write_partial", "write_results"]

log = logging.getLogger(__name__)

PARTIAL = "partial"
"""The folder, beside the tables, of what an interrupted verb had measured."""


def set_lines(results: Results) -> list[str]:
    """Return the numbers of the whole set, a line each."""
    counts = ", ".join(f"{value} {name}" for name, value in results.counts.items())
    lines = [f"{counts}; lengths in {results.unit}, surface model {results.surface}"]
    lines += [f"  {name:<24} {value:.4f}" for name, value in results.numbers.items()]
    if results.precision is not None:
        shown = ", ".join(f"{name} {value:g}" for name, value in results.thresholds.items())
        lines.append(f"  least scores: {shown}")
        lines.append(
            f"  AP counts at most {results.precision.max_detections} predictions of a class per image"
        )
    if results.rows:
        lines.append(f"  {'IoU':<8} {'precision':>10} {'recall':>10} {'F1':>10} {'TP/(TP+FP+FN)':>14}")
        lines += [
            f"  {c.iou:<8g} {c.precision:>10.4f} {c.recall:>10.4f} {c.f1:>10.4f} {c.accuracy:>14.4f}"
            for c in results.detections["all"]
        ]
    return lines + [f"  {note}" for note in results.notes]


def instance_lines(results: Results) -> list[str]:
    """Return the means over instances, a line per metric: of matched pairs, and with all errors; intervals over groups.

    Nothing without instances.
    """
    if not results.rows:
        return []
    lines = [f"  {'per instance':<24} {'matched':<28} with false negatives and false positives"]
    matched = {row.metric: _mean(row) for row in results.matched}
    for row in results.summary:
        if row.stratum == "all":
            name = f"{row.metric} ({row.unit})" if row.unit else row.metric
            lines.append(f"  {name:<24} {matched.get(row.metric, '-'):<28} {_mean(row)}")
    return lines


def _mean(row: SummaryRow) -> str:
    low, high = row.interval.low, row.interval.high
    ends = "" if low is None or high is None else f" [{low:.3f}, {high:.3f}]"
    return f"{row.interval.estimate:.4f}{ends}"


def write_results(
    results: Results,
    folder: Path,
    *,
    facts: Mapping[str, Any] | None = None,
    plain: Mapping[str, str] | None = None,
) -> None:
    """Write the tables of a set of cases into a folder, which is made if it does not exist.

    ``numbers.json`` holds the numbers of the set, ``summary.*`` and ``matched.csv`` the means, ``paper.*`` class by
    metric, ``instances.csv`` a row per instance, ``detections.csv`` the counts at each IoU. With scores there are
    ``score_thresholds.csv`` and ``.png``, with refused cases ``failures.csv``.

    Args:
        results: Without instances (of landmarks alone) there are ``numbers.json`` and ``failures.csv`` only.
        folder: Files of the same names are replaced.
        facts: Further entries of ``numbers.json``.
        plain: What cases and groups are called in ``instances.csv`` and ``failures.csv``; None keeps their ids.
    """
    folder.mkdir(parents=True, exist_ok=True)
    names = plain or {}
    rows = [
        replace(row, case=names.get(row.case, row.case), group=names.get(row.group, row.group))
        for row in results.rows
    ]
    failed = {names.get(case, case): why for case, why in results.failed.items()}
    numbers: dict[str, object] = {
        "numbers": results.flat(), "counts": dict(results.counts), "length_unit": results.unit, **(facts or {})
    }  # fmt: skip
    if results.failed:
        numbers["failed"] = dict(results.failed)
    write_text(folder / "numbers.json", json.dumps(numbers, indent=1, allow_nan=False) + "\n")
    _write_failures(folder / "failures.csv", failed)
    if not results.rows:
        return
    shown = "\n".join(set_lines(results)) + "\n\n" + summary_markdown(results.summary)
    for name, text in (
        ("summary.csv", summary_csv(results.summary)),
        ("summary.json", summary_json(results.summary)),
        ("summary.md", shown),
        ("matched.csv", summary_csv(results.matched)),
        ("instances.csv", rows_csv(rows)),
    ):
        write_text(folder / name, text)
    write_detections(folder, results.detections, results.curves, results.thresholds)
    rng = np.random.default_rng(0)
    write_paper(paper_table(results.rows, rng=rng, surface=results.surface), folder)


def write_partial(out: Path, write: Callable[[Path, str], object], measured: int, total: int) -> None:
    """Write what an interrupted verb has measured into ``OUT/partial``, marked as such; whole tables in OUT stay.

    Args:
        out: The verb's folder for tables.
        write: Given the folder and the mark, which goes into ``numbers.json`` as ``partial``.
        measured: Number of cases that were measured.
        total: Number of cases in the split or the folder.
    """
    folder = out / PARTIAL
    shutil.rmtree(folder, ignore_errors=True)
    mark = f"{measured} of {total} cases: interrupted"
    write(folder, mark)
    log.warning("interrupted after %d of %d cases: their tables are in '%s'", measured, total, folder)


def _write_failures(path: Path, failed: Mapping[str, str]) -> None:
    path.unlink(missing_ok=True)  # an earlier run's
    if failed:
        out = io.StringIO()
        csv_rows(out, [("case", "why"), *failed.items()])
        write_text(path, out.getvalue())

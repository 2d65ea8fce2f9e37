"""Tables of landmarks: a row per point, and a row per stratum."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import asdict

from clearmargin.files import csv_rows
from clearmargin.metrics.landmark_rows import PointRow, PointSummary

__all__ = ["point_lines", "point_numbers", "point_rows_csv", "points_csv"]


def points_csv(summaries: Sequence[PointSummary]) -> str:
    """Return a table of strata as CSV."""
    rows = []
    for one in summaries:
        error, unit = one.radial_error, one.unit
        row: dict[str, object] = {"stratum": one.stratum, **one.counts}
        row |= {
            f"radial_error_mean_{unit}": None if error is None else error.estimate,
            "low": None if error is None else error.low,
            "high": None if error is None else error.high,
            "groups": 0 if error is None else error.groups,
            f"radial_error_median_{unit}": one.median,
            f"radial_error_sd_{unit}": one.sd,
        }
        row |= {f"success_{radius:g}{unit}": share for radius, share in one.success.items()}
        rows.append(row | {"visibility_f1": one.visibility_f1, "hidden_f1": one.hidden_f1})
    return _csv(rows)


def point_rows_csv(rows: Sequence[PointRow]) -> str:
    """Return a table of points as CSV."""
    return _csv([asdict(row) for row in rows])


def point_numbers(summaries: Sequence[PointSummary]) -> dict[str, float]:
    """Return the numbers of all points together by name, as the tracking store takes them; none for no point."""
    numbers: dict[str, float] = {}
    for one in summaries[:1]:
        if one.radial_error is not None and one.median is not None:
            numbers[f"landmarks/radial_error_mean_{one.unit}"] = one.radial_error.estimate
            numbers[f"landmarks/radial_error_median_{one.unit}"] = one.median
        numbers |= {f"landmarks/success_{r:g}{one.unit}": share for r, share in one.success.items()}
        numbers["landmarks/visibility_f1"] = one.visibility_f1
        if one.hidden_f1 is not None:
            numbers["landmarks/hidden_f1"] = one.hidden_f1
        numbers |= {f"landmarks/{status}": float(n) for status, n in one.counts.items()}
    return numbers


def point_lines(summaries: Sequence[PointSummary]) -> list[str]:
    """Return the lines that a console shows; none for no point."""
    if not summaries:
        return []
    unit, radii = summaries[0].unit, list(summaries[0].success)
    head = (
        f"  {'landmarks':<32} {'tp/fn/fp':>12} {'radial error, mean [95 %] (' + unit + ')':>36} {'median':>8}"
    )
    lines = [head + f" {'SD':>8}" + "".join(f" {f'<= {r:g} {unit}':>9}" for r in radii)]
    for one in summaries:
        error = one.radial_error
        mean = "-"
        if error is not None:
            ends = "" if error.low is None or error.high is None else f" [{error.low:.2f}, {error.high:.2f}]"
            mean = f"{error.estimate:.2f}{ends}"
        counts = "/".join(str(one.counts[s]) for s in ("tp", "fn", "fp"))
        values = [f"{'-' if v is None else format(v, '.2f'):>8}" for v in (one.median, one.sd)]
        shares = [f"{one.success[r]:>9.3f}" if r in one.success else f"{'-':>9}" for r in radii]
        lines.append(f"  {one.stratum:<32} {counts:>12} {mean:>36} " + " ".join([*values, *shares]))
    return lines


def _csv(rows: Sequence[dict[str, object]]) -> str:
    if not rows:
        return ""
    names = list(dict.fromkeys(name for row in rows for name in row))
    stream = io.StringIO()
    csv_rows(stream, [names, *([row.get(n) for n in names] for row in rows)])
    return stream.getvalue()

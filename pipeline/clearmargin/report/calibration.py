"""A calibration and its judgement as tables, figures and a page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clearmargin.files import whole, write_text
from clearmargin.metrics.failure import risk_coverage
from clearmargin.metrics.statistics import Interval
from clearmargin.report.figures import coverage_splits, reliability_compared, risk_coverage_curves
from clearmargin.report.tables import write_rows_csv
from clearmargin.uncertainty.calibration import Calibration
from clearmargin.uncertainty.chosen import ChosenScaling
from clearmargin.uncertainty.conformal import expected_coverage
from clearmargin.uncertainty.judging.coverage import SPLITS, Coverage
from clearmargin.uncertainty.judging.judge import Judgement
from clearmargin.uncertainty.margins import Margin

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["figures_of", "margin_name", "metrics_of", "report_text", "write_calibration"]

Row = dict[str, Any]


def margin_name(margin: Margin) -> str:
    """Return a short name, such as ``outer, 99 %, alpha 0.1``."""
    stratum = "" if margin.stratum == "all" else f", {margin.stratum}"
    return f"{margin.promise.side}, {margin.promise.short}, alpha {margin.alpha:g}{stratum}"


def report_text(calibration: Calibration, judged: Judgement | None = None) -> str:
    """Return a page of Markdown: what was fitted with its full sentences, what was refused, how it was judged."""
    units = ", ".join(f"{n} {name}" for name, n in calibration.units.items())
    lines = [
        f"# Calibration of uncertainty '{calibration.mode}' on card '{calibration.card}'",
        "",
        f"Units ({calibration.data.exchangeable}): {units}. Weights {calibration.weights_sha256[:12]}, data "
        f"{calibration.data.digest[:12]}, {calibration.data.date}. Margins hold for matched instances with a score "
        f"(as predicted) of {calibration.threshold:.4g} or more.",
        f"`predict` returns instances with a calibrated score of {calibration.thresholds.lowest:.4g} or more.",
        "",
        "## Margins",
        "",
        *(f"- {margin}" for margin in calibration.margins if margin.stratum == "all"),
        *([] if calibration.margins else ["None."]),
        *_strata_lines(calibration),
        "",
        "## Misses",
        "",
        *(f"- {threshold}" for threshold in calibration.misses),
        *([] if calibration.misses else ["No threshold; see what was refused."]),
        "",
        "## Scaling",
        "",
        *(f"- {line}" for line in _scaling_lines(calibration)),
        "",
        "## Referral",
        "",
        *(
            f"- {name} under {getattr(calibration.referral, name):.3g}: "
            f"{calibration.referral.fitted.get(name, 'default')}"
            for name in ("pairwise_dice", "predicted_nsd", "score", "found_by")
        ),
    ]
    if calibration.refused:
        lines += ["", "## Refused", "", *_refused_lines(calibration)]
    if judged is not None:
        lines += _judged_lines(judged)
    return "\n".join(lines) + "\n"


def write_calibration(
    folder: Path, calibration: Calibration, judged: Judgement | None, figures: Mapping[str, Figure]
) -> None:
    """Write ``report.md``, ``margins.csv``, and of a judgement ``calibration.csv``, ``failure.csv``, ``shift.csv``."""
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "report.md", report_text(calibration, judged))
    write_rows_csv(folder / "margins.csv", _margin_rows(calibration, judged), ())
    if judged is not None:
        write_rows_csv(folder / "calibration.csv", _scaled_rows(judged), ())
        write_rows_csv(folder / "failure.csv", _failure_rows(judged), ())
        if judged.shifts:
            write_rows_csv(folder / "shift.csv", _shift_rows(judged), ())
    for name, figure in figures.items():
        with whole(folder / f"{name}.png") as draft:
            figure.savefig(draft)


def metrics_of(calibration: Calibration, judged: Judgement | None) -> dict[str, float]:
    """Return the numbers under flat names, as the tracking store takes them."""
    found = {f"margin/{margin_name(m)}": m.value for m in calibration.margins}
    found |= {f"threshold/alpha {m.alpha:g}": m.threshold for m in calibration.misses}
    found["threshold/margins"] = calibration.threshold
    if judged is None:
        return found
    found |= {f"missed/{name}": interval.estimate for name, interval in judged.misses.items()}
    for row in judged.coverage:
        if row.units:
            found[f"coverage/{margin_name(row.margin)}"] = row.covered / row.units
            found[f"coverage_over_splits/{margin_name(row.margin)}"] = row.splits[0]
    for one in judged.scaled:
        found[f"before/{one.what}/{one.number}"] = one.before.estimate
        found[f"after/{one.what}/{one.number}"] = one.after.estimate
    for failure in judged.failures:
        found[f"aurc/{failure.over}/{failure.risk}/{failure.uncertainty}"] = failure.aurc.estimate
    return found


def figures_of(judged: Judgement) -> dict[str, Figure]:
    """Return the figures by name: reliability of each kind of probability, risk and coverage, coverage over splits."""
    figures = {
        f"reliability_{_file_name(one.what)}": reliability_compared(
            {"as predicted": one.before.curve(), "scaled": one.after.curve()}, f"{one.what}, judged units"
        )
        for one in judged.diagrams
    }
    groups: dict[tuple[str, str, str], list[Any]] = {}
    for failure in judged.failures:
        groups.setdefault((failure.over, failure.risk, failure.unit), []).append(failure)
    for (over, risk, unit), members in groups.items():
        risks = members[0].points[1]
        named = f"mean {risk.removeprefix('mean ')}" if risk != "spurious" else "share of spurious ones"
        figures[f"risk_coverage_{_file_name(over)}_{_file_name(risk)}"] = risk_coverage_curves(
            {one.uncertainty: risk_coverage(*one.points) for one in members},
            title=f"{over} that are not referred (n = {members[0].n})",
            risk=f"{named} ({unit})" if unit else named,
            best=risk_coverage(risks, risks),
        )
    whole = [row for row in judged.coverage if row.margin.stratum == "all" and row.over_splits]
    chosen = [row for row in whole if row.margin.promise.share == 1]
    if chosen:
        figures["coverage_over_splits"] = coverage_splits(
            {margin_name(row.margin): (row.over_splits, row.expected) for row in chosen},
            f"coverage over {SPLITS} random splits of the margin and judged units",
        )
    return figures


def _refused_lines(calibration: Calibration) -> list[str]:
    """Return a line for each reason, however many promises share it; ``margins.csv`` lists them one by one."""
    by_reason: dict[str, list[str]] = {}
    for refusal in calibration.refused:
        by_reason.setdefault(refusal.why, []).append(refusal.what)
    return [
        f"- {names[0]}{f' and {len(names) - 1} more' if len(names) > 1 else ''}: {why}"
        for why, names in by_reason.items()
    ]


def _strata_lines(calibration: Calibration) -> list[str]:
    """Return a table of the margins of strata; their sentences are those of all, but for the numbers."""
    rows = [
        {
            "margin": margin_name(margin),
            "value": _value(margin),
            "n": margin.n,
            "without": margin.without,
            "expected": f"{100 * expected_coverage(margin.n, margin.alpha):.1f} %",
        }
        for margin in calibration.margins
        if margin.stratum != "all"
    ]
    if not rows:
        return []
    data = calibration.data
    return [
        "",
        "### Of strata",
        "",
        f"As above, for the matched instances of a stratum; n counts the {data.exchangeable} units that have one. "
        f"Calibrated {data.date} on data {data.digest[:12]}; they hold for data like the calibration data and say "
        "nothing of instances that were missed.",
        "",
        *_markdown(rows),
    ]


def _value(margin: Margin) -> str:
    unit = "scales" if margin.promise.floor is not None else margin.length_unit
    return f"{margin.value:.3g} {unit}"


def _scaling_lines(calibration: Calibration) -> list[str]:
    kinds: dict[str, ChosenScaling | None] = {"scores": calibration.scores, "pixels": calibration.pixels}
    lines = []
    for name, scaling in kinds.items():
        if scaling is None:
            lines.append(f"{name}: none")
            continue
        heat = getattr(scaling.temperature, "temperature", None)
        lines.append(
            f"{name}: {scaling.why} (temperature {'left at 1' if heat is None else f'{heat:.3g}'}, "
            f"n = {scaling.temperature.n} events)"
        )
    if calibration.nsd is not None:
        lines.append(f"predicted NSD: isotonic, n = {calibration.nsd.n} instances")
    return lines


def _judged_lines(judged: Judgement) -> list[str]:
    lines = ["", f"## Judged on {judged.units} other units ({judged.cases} cases)", ""]
    for name, interval in judged.misses.items():
        share = f"{_interval(interval, 100)} % (mean over units)"
        lines += [f"- Instances missed at the threshold of {name}: {share}."]
    lines += [""] if judged.misses else []
    lines += ["### Coverage", "", *_markdown(_coverage_rows(judged.coverage))]
    if judged.shifts:
        lines += [
            "",
            "### Shift: calibrated on one stratum, judged on another",
            "",
            *_markdown(_shift_rows(judged)),
        ]
    if judged.scaled:
        shown = [
            {
                "of": one.what,
                "error": one.number,
                "as predicted": _interval(one.before),
                "scaled": _interval(one.after),
                "change": _interval(one.change),
            }
            for one in judged.scaled
        ]
        lines += ["", "### Calibration errors, 95 % intervals over units", "", *_markdown(shown)]
    if judged.failures:
        rows = [{k: v for k, v in row.items() if k != "referral"} for row in _failure_rows(judged)]
        lines += ["", "### Failure detection", "", *_markdown(rows), ""]
        lines += [
            f"- {one.over}, by {one.uncertainty}: {one.referral}." for one in judged.failures if one.limit
        ]
    return lines


def _coverage_rows(coverage: Sequence[Coverage]) -> list[Row]:
    rows = []
    for row in coverage:
        mean, low, high = row.splits
        share = 100 * row.covered / row.units if row.units else 0.0
        margin = row.margin
        rows.append(
            {
                "margin": margin_name(margin),
                "value": _value(margin),
                "n": margin.n,
                "covered": f"{row.covered} of {row.units} = {share:.1f} % [{100 * row.low:.1f}, {100 * row.high:.1f}]",
                f"over {SPLITS} splits": f"{100 * mean:.1f} % [{100 * low:.1f}, {100 * high:.1f}]",
                "expected": f"{100 * row.expected:.1f} %",
                "stretch": "" if row.stretch is None else f"{row.stretch:.2f}",
            }
        )
    return rows


def _margin_rows(calibration: Calibration, judged: Judgement | None) -> list[Row]:
    rows = []
    for k, margin in enumerate(calibration.margins):
        row: Row = {
            "margin": margin_name(margin),
            "side": margin.promise.side,
            "share": margin.promise.share,
            "of": margin.promise.of,
            "floor": margin.promise.floor,
            "stratum": margin.stratum,
            "alpha": margin.alpha,
            "value": margin.value,
            "unit": margin.length_unit,
            "n": margin.n,
            "without": margin.without,
        }
        if judged is not None:
            found = judged.coverage[k]
            mean, low, high = found.splits
            row |= {"units": found.units, "covered": found.covered, "low": found.low, "high": found.high}
            row |= {"expected": found.expected, "splits": mean, "splits_low": low, "splits_high": high}
            row["stretch"] = found.stretch
        rows.append(row)
    rows += [{"margin": refusal.what, "refused": refusal.why} for refusal in calibration.refused]
    return rows


def _shift_rows(judged: Judgement) -> list[Row]:
    return [
        {
            "margin": row.name,
            "alpha": row.alpha,
            "calibrated on": f"{row.column} {row.calibrated_on or 'any'}",
            "n": row.n,
            "value": round(row.value, 3),
            "judged on": f"{row.column} {row.judged_on}",
            "covered": row.covered,
            "units": row.units,
            "share": round(row.covered / row.units, 3) if row.units else None,
        }
        for row in judged.shifts
    ]


def _scaled_rows(judged: Judgement) -> list[Row]:
    rows = []
    for one in judged.scaled:
        row: Row = {"of": one.what, "error": one.number, "units": one.before.patients}
        for name, interval in (("before", one.before), ("after", one.after), ("change", one.change)):
            row |= {name: interval.estimate, f"{name}_low": interval.low, f"{name}_high": interval.high}
        rows.append(row)
    return rows


def _failure_rows(judged: Judgement) -> list[Row]:
    return [
        {
            "over": one.over,
            "risk": f"{one.risk} ({one.unit})" if one.unit else one.risk,
            "uncertainty": one.uncertainty,
            "n": one.n,
            "mean risk": round(one.mean_risk, 4),
            "AURC": round(one.aurc.estimate, 4),
            "low": None if one.aurc.low is None else round(one.aurc.low, 4),
            "high": None if one.aurc.high is None else round(one.aurc.high, 4),
            "E-AURC": round(one.e_aurc, 4),
            "AUSE": round(one.ause, 4),
            "error AUROC": None if one.auroc is None else round(one.auroc, 3),
            "referral": str(one.referral),
        }
        for one in judged.failures
    ]


def _interval(interval: Interval, factor: float = 1.0) -> str:
    ends = (
        ""
        if interval.low is None or interval.high is None
        else f" [{factor * interval.low:.4g}, {factor * interval.high:.4g}]"
    )
    return f"{factor * interval.estimate:.4g}{ends}"


def _markdown(rows: Sequence[Row]) -> list[str]:
    """Return rows as the lines of a table; none for no row."""
    if not rows:
        return ["None."]
    names = list(rows[0])
    shown = [["" if row[name] is None else str(row[name]) for name in names] for row in rows]
    return [
        f"| {' | '.join(names)} |",
        f"|{'---|' * len(names)}",
        *(f"| {' | '.join(cells)} |" for cells in shown),
    ]


def _file_name(text: str) -> str:
    return "_".join(text.replace(",", "").replace("1 - ", "one_minus_").split()).lower()

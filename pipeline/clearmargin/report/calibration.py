"""A calibration and its judgement as tables, figures and a page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clearmargin.core.groups import PLURALS
from clearmargin.files import whole, write_text
from clearmargin.margins.calibration import Calibration
from clearmargin.margins.judging.coverage import SPLITS, Coverage
from clearmargin.margins.judging.judge import Judgement
from clearmargin.margins.margins import Margin, sides_of
from clearmargin.margins.scaling_choice import ChosenScaling
from clearmargin.metrics.failure import risk_coverage
from clearmargin.metrics.intervals import Interval
from clearmargin.report.figures import coverage_splits, reliability_compared, risk_coverage_curves
from clearmargin.report.regions import point_figures, point_metrics, point_rows_of, point_strata_rows
from clearmargin.report.tables import write_rows_csv

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["figures_of", "margin_name", "metrics_of", "report_text", "write_calibration"]

Row = dict[str, Any]


def margin_name(margin: Margin) -> str:
    """Return a short name, such as ``outer, by object, alpha 0.1``."""
    return f"{margin.sides}, by {margin.guarantee}, alpha {margin.alpha:g}"


def _scores(calibration: Calibration) -> str:
    """Return the least scores of what is returned, as predicted and as shown."""
    (raw, most), (shown, _) = (
        t.stated for t in (calibration.thresholds, calibration.shown(calibration.thresholds))
    )
    return f"{raw:.4g} as predicted ({shown:.4g} as shown){'' if raw == most else ' or more, by class,'}"


def report_text(calibration: Calibration, judged: Judgement | None = None) -> str:
    """Return a page of Markdown: the promises that are applied, then what else was fitted and how it was judged."""
    groups = ", ".join(f"{n} {name}" for name, n in calibration.groups.items())
    applied = calibration.applied()
    around = calibration.applied_points()
    lines = [
        f"# Calibration of uncertainty '{calibration.mode}' on card '{calibration.card}'",
        "",
        "## What `predict` promises",
        "",
        *(f"- {_first_upper(str(margin))}." for margin in applied),
        *([] if around is None else [f"- {_first_upper(str(around))}."]),
        *(f"- {_first_upper(str(one))}." for one in calibration.applied_clearances()),
        *([] if applied or around else ["- No margin; see what was refused."]),
        *_judged_promises(calibration, judged),
        *(f"- **{_first_upper(doubt)}.**" for doubt in calibration.doubts),
        *([] if calibration.misses is None else [f"- {_first_upper(str(calibration.misses))}"]),
        f"- {_scope(calibration)}",
        "",
        f"Groups ({calibration.data.group}): {groups}. Weights {calibration.weights_sha256[:12]}, data "
        f"{calibration.data.digest[:12]}, {calibration.data.date}. Leakage: {calibration.checked}.",
        "",
        "## Every promise, and what it costs",
        "",
        *(_markdown(_promise_rows(calibration, judged)) if calibration.margins or around is None else []),
        *_width_lines(calibration),
        *_point_lines(calibration, judged),
        *_distance_lines(calibration, judged),
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
            if calibration.margins or around is None
        ),
        *_region_limit(calibration),
        "",
        "## Cases unlike these",
        "",
        *_drift_lines(calibration, judged),
    ]
    if calibration.refused:
        lines += ["", "## Refused", "", *_refused_lines(calibration)]
    if judged is not None:
        lines += _judged_lines(judged)
    return "\n".join(lines) + "\n"


def _first_upper(text: str) -> str:
    return text[:1].upper() + text[1:]


def _judged_promises(calibration: Calibration, judged: Judgement | None) -> list[str]:
    """Return a line for the coverage of each applied margin on the judged groups, and for what is missed."""
    if judged is None:
        return []
    applied = calibration.applied()
    lines = [
        f"- On {row.groups} other {PLURALS[calibration.data.group]} ({row.margin.sides}): "
        f"{_interval(row.covered, 100)} %."
        for row in judged.coverage
        if row.margin in applied and row.covered is not None
    ]
    lines += [
        f"- On {one.groups} other {PLURALS[calibration.data.group]} (landmarks): {_interval(one.covered, 100)} %."
        for one in judged.points
        if one.region == calibration.applied_points() and one.covered is not None
    ]
    if judged.missed is not None:
        lines.append(
            f"- Missed, merged or cut there: {_interval(judged.missed, 100)} % of a "
            "group's objects, a mean over groups."
        )
    return lines


def _scope(calibration: Calibration) -> str:
    """Return what all promises hold for, and what not."""
    here = f"All of it holds for data like the calibration data, for predictions from a score of {_scores(calibration)}"
    points = "A landmark that is not detected has no region, and a false positive is promised nothing."
    if not calibration.margins and calibration.points:
        return f"{here}. {points}"
    masks = (
        f"{here} that match an object at an IoU of {calibration.match_iou:g} or more. What is missed, merged or cut "
        "has no margin."
    )
    return f"{masks} {points}" if calibration.points else masks


def _region_limit(calibration: Calibration) -> list[str]:
    limit = calibration.referral.region
    if calibration.applied_points() is None:
        return []
    unit = calibration.length_unit
    return [
        "- a landmark is referred by no size of its region: give --region-limit"
        if limit is None
        else f"- a landmark whose region reaches farther than {limit:g} {unit}: stated"
    ]


def _point_lines(calibration: Calibration, judged: Judgement | None) -> list[str]:
    """Return the table of promises about landmarks, and how they did by type and visibility; none without regions."""
    if not calibration.points:
        return []
    shown = []
    for k, region in enumerate(calibration.points):
        mean, low, high = (100 * share for share in region.covered)
        row: Row = {
            "landmarks": f"by {region.guarantee}"
            + (", applied" if region == calibration.applied_points() else ""),
            "alpha": f"{region.alpha:g}",
            f"median radius, {region.length_unit}": f"{region.typical:.3g}",
            "shape": str(region.shape),
            "n": region.n,
            "expected, % (one calibration)": f"{mean:.1f} [{low:.0f}, {high:.0f}]",
        }
        if judged is not None:
            here = judged.points[k]
            over, least, most = (100 * share for share in here.splits)
            row |= {
                "judged groups, %": "" if here.covered is None else _interval(here.covered, 100),
                f"over {SPLITS} splits, %": f"{over:.1f} [{least:.0f}, {most:.0f}]"
                if here.over_splits
                else "",
            }
        shown.append(row)
    return ["", *_markdown(shown)]


def _distance_lines(calibration: Calibration, judged: Judgement | None) -> list[str]:
    """Return the table of promises about distances to a target; none without one."""
    if not calibration.clearances:
        return []
    shown = []
    for k, one in enumerate(calibration.clearances):
        mean, low, high = (100 * share for share in one.covered)
        row: Row = {
            "distance to": one.target,
            "promise": f"by {one.guarantee}"
            + (", applied" if one in calibration.applied_clearances() else ""),
            "alpha": f"{one.alpha:g}",
            f"taken off, {one.length_unit}": f"{one.length:.3g}",
            "n": one.n,
            "expected, % (one calibration)": f"{mean:.1f} [{low:.0f}, {high:.0f}]",
        }
        if judged is not None:
            here = judged.clearances[k]
            over, least, most = (100 * share for share in here.splits)
            row |= {
                "judged groups, %": "" if here.covered is None else _interval(here.covered, 100),
                f"over {SPLITS} splits, %": f"{over:.1f} [{least:.0f}, {most:.0f}]"
                if here.over_splits
                else "",
            }
        shown.append(row)
    return ["", *_markdown(shown)]


def _promise_rows(calibration: Calibration, judged: Judgement | None) -> list[Row]:
    rows = []
    for k, margin in enumerate(calibration.margins):
        mean, low, high = (100 * share for share in margin.covered)
        row: Row = {
            "promise": f"by {margin.guarantee}" + (", applied" if margin in calibration.applied() else ""),
            "sides": margin.sides,
            "alpha": f"{margin.alpha:g}",
            f"median margin, {margin.length_unit}": " / ".join(
                f"{margin.typical[side]:.3g}" for side in sides_of(margin.sides)
            ),
            "width": margin.width.kind,
            "n": margin.n,
            "expected, % (one calibration)": f"{mean:.1f} [{low:.0f}, {high:.0f}]",
        }
        if judged is not None:
            coverage = judged.coverage[k]
            over, least, most = (100 * share for share in coverage.splits)
            row |= {
                "judged groups, %": "" if coverage.covered is None else _interval(coverage.covered, 100),
                "objects": f"{coverage.objects_covered} of {coverage.objects}",
                f"over {SPLITS} splits, %": f"{over:.1f} [{least:.0f}, {most:.0f}]"
                if coverage.over_splits
                else "",
            }
        rows.append(row)
    return rows


def _width_lines(calibration: Calibration) -> list[str]:
    """Return what the table's words mean, and why margins are as wide as they are; none without a margin."""
    if not calibration.margins:
        return []
    kinds = {margin.width.kind for margin in calibration.applied()}
    said = {
        "constant": "One margin for all objects was as narrow as any that follows them, on the fit groups.",
        "predicted": "A margin that follows size, score and class was narrower on the fit groups than one for all.",
        "edge": "A margin that follows the samples' edges was narrower on the fit groups than one for all.",
    }
    return [
        "",
        "By object: share of a group's objects that are covered. By group: share of the groups of which every object "
        "is covered. By risk: share of an object's edge. In brackets: nine of ten calibrations.",
        *(said[kind] for kind in sorted(kinds)),
    ]


def _drift_lines(calibration: Calibration, judged: Judgement | None) -> list[str]:
    known = calibration.known_cases
    if not known.reaches:
        return [
            f"- {len(set(known.groups))} groups are too few to warn of a single case at a false alarm rate of "
            f"{100 * known.false_alarms:g} %: no case is warned of."
        ]
    own = ", ".join(f"{name} {warned} of {count}" for name, (warned, count) in known.by_stratum.items())
    lines = [
        f"- At most {100 * known.false_alarms:g} % of the cases like these are warned of; then no margin is promised."
        + (f" Calibration cases, each against the others: {own}." if own else "")
    ]
    if judged is not None:
        lines.append(
            "- Judged cases: "
            + ", ".join(f"{a.stratum} {a.warned} of {a.cases}" for a in judged.alarms)
            + "."
        )
    return lines


def write_calibration(
    folder: Path, calibration: Calibration, judged: Judgement | None, figures: Mapping[str, Figure]
) -> None:
    """Write ``report.md``, ``margins.csv``, of landmarks ``landmarks.csv``.

    And of a judgement ``calibration.csv``, ``failure.csv``, ``shift.csv``.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "report.md", report_text(calibration, judged))
    write_rows_csv(folder / "margins.csv", _margin_rows(calibration, judged), ())
    if calibration.points:
        write_rows_csv(folder / "landmarks.csv", point_rows_of(calibration, judged), ())
    if judged is not None:
        write_rows_csv(folder / "calibration.csv", _scaled_rows(judged), ())
        write_rows_csv(folder / "failure.csv", _failure_rows(judged), ())
        if judged.points:
            write_rows_csv(folder / "landmark_strata.csv", point_strata_rows(judged), ())
        if judged.shifts:
            write_rows_csv(folder / "shift.csv", _shift_rows(judged), ())
    for name, figure in figures.items():
        with whole(folder / f"{name}.png") as draft:
            figure.savefig(draft)


def metrics_of(calibration: Calibration, judged: Judgement | None) -> dict[str, float]:
    """Return the few numbers that a run shows, of the margins that are applied; all others are in the tables."""
    applied = calibration.applied()
    numbers = {"headline/threshold": calibration.thresholds.stated[0]} | point_metrics(calibration, judged)
    numbers |= {f"headline/margin_{side}": m.typical[side] for m in applied for side in sides_of(m.sides)}
    if judged is not None:
        numbers |= {
            f"headline/coverage_{row.margin.sides}": row.covered.estimate
            for row in judged.coverage
            if row.margin in applied and row.covered is not None
        }
        numbers |= {} if judged.missed is None else {"headline/missed": judged.missed.estimate}
    return numbers


def figures_of(judged: Judgement) -> dict[str, Figure]:
    """Return the figures by name: reliability of each kind of probability, risk and coverage, coverage over splits."""
    figures = {
        f"reliability_{_file_name(one.what)}": reliability_compared(
            {"as predicted": one.before.curve(), "scaled": one.after.curve()}, f"{one.what}, judged groups"
        )
        for one in judged.diagrams
    }
    curves: dict[tuple[str, str, str], list[Any]] = {}
    for failure in judged.failures:
        curves.setdefault((failure.over, failure.risk, failure.unit), []).append(failure)
    for (over, risk, unit), members in curves.items():
        risks = members[0].points[1]
        named = (
            f"mean {risk.removeprefix('mean ')}" if risk != "false positive" else "share of false positives"
        )
        figures[f"risk_coverage_{_file_name(over)}_{_file_name(risk)}"] = risk_coverage_curves(
            {one.uncertainty: risk_coverage(*one.points) for one in members},
            title=f"{over} that are not referred (n = {members[0].n})",
            risk=f"{named} ({unit})" if unit else named,
            best=risk_coverage(risks, risks),
        )
    shown = {
        margin_name(row.margin): (row.over_splits, row.margin.covered[0], row.covered.estimate)
        for row in judged.coverage
        if row.over_splits and row.covered is not None and row.margin.alpha == judged.coverage[0].margin.alpha
    }
    figures |= point_figures(judged)
    if shown:
        figures["coverage_over_splits"] = coverage_splits(
            shown, f"coverage over {SPLITS} random splits of the margin and judged groups"
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
    lines = ["", f"## Judged on {judged.groups} other groups ({judged.cases} cases)", ""]
    lines += [
        f"- Size of the {side} region over the true size: {ratio:.2f}."
        for side, ratio in judged.sizes.items()
    ]
    if judged.empty is not None:
        lines += [f"- Inner regions that are empty: {100 * judged.empty:.1f} %."]
    if judged.coverage or not judged.points:
        lines += [
            "",
            "### Coverage by size of the predicted object",
            "",
            *_markdown(_size_rows(judged.coverage)),
        ]
    if judged.points:
        title = "### Landmarks by type, and by visibility of the true point"
        lines += ["", title, "", *_markdown(point_strata_rows(judged))]
    if judged.shifts:
        lines += [
            "",
            "### Shift: calibrated on one stratum, judged on another",
            "",
            *_markdown(_shift_rows(judged)),
        ]
    if judged.expected:
        lines += [
            "",
            "### What samples say of an edge, and what came true",
            "",
            *_markdown(_expected_rows(judged)),
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
        lines += ["", "### Calibration errors, 95 % intervals over groups", "", *_markdown(shown)]
    if judged.failures:
        rows = [{k: v for k, v in row.items() if k != "referral"} for row in _failure_rows(judged)]
        lines += ["", "### Failure detection", "", *_markdown(rows), ""]
        lines += [
            f"- {one.over}, by {one.uncertainty}: {one.referral}." for one in judged.failures if one.limit
        ]
    return lines


def _size_rows(coverage: Sequence[Coverage]) -> list[Row]:
    return [
        {
            "margin": margin_name(row.margin),
            "size": third.name,
            "covered": f"{third.covered} of {third.objects}",
            "%": round(100 * third.covered / third.objects, 1),
            f"median margin, {row.margin.length_unit}": round(third.typical, 2),
        }
        for row in coverage
        if row.margin.guarantee == "object"
        for third in row.by_size
    ]


def _expected_rows(judged: Judgement) -> list[Row]:
    return [
        {
            "said": row.column,
            "fifth": row.part,
            "n": row.n,
            "mean said": round(row.said, 3),
            "measured": row.measured,
            "mean measured": round(row.found, 3),
            "Spearman": None if row.spearman is None else round(row.spearman, 2),
        }
        for row in judged.expected
    ]


def _margin_rows(calibration: Calibration, judged: Judgement | None) -> list[Row]:
    rows: list[Row] = []
    applied = calibration.applied()
    for k, margin in enumerate(calibration.margins):
        mean, low, high = margin.covered
        row: Row = {
            "margin": margin_name(margin),
            "applied": margin in applied,
            "promise": margin.guarantee,
            "sides": margin.sides,
            "alpha": margin.alpha,
            "confidence": margin.confidence,
            "match_iou": margin.match_iou,
            "width": margin.width.kind,
            "floor": margin.width.floor,
            "factor": margin.factor,
            "typical_outer": margin.typical["outer"],
            "typical_inner": margin.typical["inner"],
            "unit": margin.length_unit,
            "n": margin.n,
            "without": margin.without,
            "expected": mean,
            "one_calibration_low": low,
            "one_calibration_high": high,
        }
        if judged is not None:
            coverage = judged.coverage[k]
            over, least, most = coverage.splits
            row |= {
                "groups": coverage.groups,
                "covered": None if coverage.covered is None else coverage.covered.estimate,
                "covered_low": None if coverage.covered is None else coverage.covered.low,
                "covered_high": None if coverage.covered is None else coverage.covered.high,
                "objects": coverage.objects,
                "objects_covered": coverage.objects_covered,
                "splits": over,
                "splits_low": least,
                "splits_high": most,
            }
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
            "judged on": f"{row.column} {row.judged_on}",
            "groups": row.groups,
            "covered, %": round(100 * row.covered, 1),
            "cases refused": f"{row.refused} of {row.cases}",
            "covered of the others, %": None
            if row.covered_after is None
            else round(100 * row.covered_after, 1),
        }
        for row in judged.shifts
    ]


def _scaled_rows(judged: Judgement) -> list[Row]:
    rows = []
    for one in judged.scaled:
        row: Row = {"of": one.what, "error": one.number, "groups": one.before.groups}
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

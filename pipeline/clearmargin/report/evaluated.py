"""Figures of an evaluation: what is found at what cost, where it is weak, and whether its scores can be believed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from clearmargin.files import whole
from clearmargin.metrics.calibration import Reliability
from clearmargin.metrics.confusion import NOTHING, Confusion
from clearmargin.metrics.failure import risk_coverage
from clearmargin.metrics.measurement import metric_title
from clearmargin.metrics.tables import CaseRow, SummaryRow
from clearmargin.metrics.thresholds import ScoreCurve
from clearmargin.report.figures import (
    COLOURS,
    finish,
    new_figure,
    precision_recall,
    reliability,
    risk_coverage_curves,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = [
    "FIGURES",
    "confusion_figure",
    "count_errors",
    "forest",
    "froc_figure",
    "write_evaluation_figures",
]

FIGURES = {
    "precision_recall": "Precision and recall",
    "froc": "Free-response ROC",
    "reliability": "Reliability of scores",
    "risk_coverage": "Risk and coverage",
    "forest": "By stratum",
    "confusion": "Confusion of classes (IoU above 0.5, any class; a shade is a share of the reference class)",
    "count_errors": "Count errors",
}
"""Figures by file name, in the order of the page, with their titles."""


def write_evaluation_figures(
    folder: Path,
    *,
    rows: Sequence[CaseRow],
    summary: Sequence[SummaryRow],
    curves: Mapping[str, ScoreCurve],
    cases: int,
    confusion: Confusion,
) -> list[Path]:
    """Write what there is something to show of, as PNG named after `FIGURES`.

    Args:
        folder: Made if it does not exist.
        rows: An object each.
        summary: Means, all together and by stratum.
        curves: Counts at each score threshold, at an IoU above 0.5, by class and of ``all``.
        cases: Number of cases.
        confusion: Of classes.
    """
    some = {name: curve for name, curve in curves.items() if len(curve.scores)}
    figures: dict[str, Figure | None] = {
        "precision_recall": precision_recall(
            {name: (curve.recall, curve.precision) for name, curve in some.items()}
        )
        if some
        else None,
        "froc": froc_figure(some, cases) if some else None,
        "reliability": _reliability(rows),
        "risk_coverage": _risk_coverage(rows),
        "forest": forest(summary),
        "confusion": confusion_figure(confusion),
        "count_errors": count_errors(rows),
    }
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name, figure in figures.items():
        if figure is not None:
            with whole(folder / f"{name}.png") as draft:
                figure.savefig(draft, format="png")
            written.append(folder / f"{name}.png")
    return written


def froc_figure(curves: Mapping[str, ScoreCurve], cases: int) -> Figure:
    """Return the share of references found over the false positives per case, at an IoU above 0.5.

    Source: Bunch et al., SPIE 1977.
    """
    figure = new_figure(4.6, 4.2)
    axes = figure.add_subplot()
    for i, (name, curve) in enumerate(curves.items()):
        axes.plot(
            curve.fp / max(cases, 1),
            curve.recall,
            label=name,
            drawstyle="steps-post",
            color=COLOURS[i % len(COLOURS)],
        )
    axes.set_xscale("symlog", linthresh=0.125)
    axes.set_xlim(left=0)
    axes.set_ylim(0, 1.02)
    finish(
        axes,
        title="free-response ROC, IoU above 0.5",
        x="false positives per case",
        y="sensitivity",
        legend=True,
    )
    return figure


def forest(every: Sequence[SummaryRow], *, most: int = 40) -> Figure | None:
    """Return the mean of the first surface Dice (or metric) of each stratum with its interval; None without a row."""
    metrics = list(dict.fromkeys(row.metric for row in every))
    if not metrics:
        return None
    metric = next((name for name in metrics if name.startswith("nsd_")), metrics[0])
    shown = [row for row in every if row.metric == metric][:most]
    figure = new_figure(6.4, 0.9 + 0.26 * len(shown))
    axes = figure.add_subplot()
    for k, row in enumerate(shown):
        low, high = row.interval.low, row.interval.high
        colour = COLOURS[6] if row.stratum == "all" else COLOURS[0]
        if low is not None and high is not None:
            axes.plot((low, high), (k, k), color=colour, linewidth=1.4)
        axes.plot(
            row.interval.estimate, k, marker="D" if row.stratum == "all" else "s", color=colour, markersize=5
        )
    axes.axvline(shown[0].interval.estimate, color="#999999", linewidth=1, linestyle="--")
    labels = [f"{row.stratum} ({row.interval.groups} groups, {row.interval.cases} objects)" for row in shown]
    axes.set_yticks(range(len(shown)), labels)
    axes.set_ylim(len(shown) - 0.5, -0.5)
    level = 100 * shown[0].interval.level
    finish(
        axes,
        title=f"{metric_title(metric)}, mean over groups, {level:g} % intervals",
        x=metric_title(metric),
        legend=False,
    )
    return figure


def confusion_figure(confusion: Confusion) -> Figure | None:
    """Return the counts of reference classes over predicted ones; None for nothing at all.

    Matched at an IoU above 0.5, whatever the class. A cell's shade is its share of its row: of the reference class.
    """
    names = sorted({name for pair in confusion for name in pair} - {NOTHING})
    if not names:
        return None
    rows, columns = [*names, NOTHING], [*names, NOTHING]
    counts = np.array([[confusion.get((r, c), 0) for c in columns] for r in rows], np.float64)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    side = 1.8 + 0.55 * len(rows)
    figure = new_figure(side + 0.8, side)
    axes = figure.add_subplot()
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for (r, c), count in np.ndenumerate(counts):
        if r < len(names) or c < len(names):
            dark = shares[r, c] > 0.6
            axes.text(
                c, r, f"{count:.0f}", ha="center", va="center", fontsize=8, color="#fff" if dark else "#000"
            )
    axes.set_xticks(range(len(columns)), [*names, "nothing"], rotation=40, ha="right")
    axes.set_yticks(range(len(rows)), [*names, "nothing"])
    finish(
        axes, title="counts, and shades of their share of the row", x="predicted", y="reference", legend=False
    )
    axes.grid(visible=False)
    return figure


def count_errors(rows: Sequence[CaseRow]) -> Figure | None:
    """Return a histogram of predicted less reference objects per case; None without a case."""
    cases = sorted({row.case for row in rows})
    if not cases:
        return None
    errors = dict.fromkeys(cases, 0)
    for row in rows:
        errors[row.case] += (row.status == "fp") - (row.status == "fn")
    values: NDArray[np.int64] = np.array(list(errors.values()))
    edges = (
        np.arange(values.min() - 0.5, values.max() + 1.5)
        if np.ptp(values) < 60
        else np.linspace(values.min() - 0.5, values.max() + 0.5, 60)
    )
    figure = new_figure(4.8, 3.4)
    axes = figure.add_subplot()
    axes.hist(values, bins=list(edges), color=COLOURS[0])
    mean = float(np.abs(values).mean())
    finish(
        axes,
        title=f"mean absolute count error {mean:.2f}",
        x="predicted less reference objects",
        y="cases",
        legend=False,
    )
    return figure


def _reliability(rows: Sequence[CaseRow]) -> Figure | None:
    """Return how often a prediction with a score was right: matched at the protocol's IoU."""
    said = [
        (score, row.status == "tp")
        for row in rows
        if isinstance(score := row.about.get("score"), int | float)
    ]
    if not said:
        return None
    scores, right = zip(*said, strict=True)
    return reliability(*Reliability.of(scores, right).curve())


def _risk_coverage(rows: Sequence[CaseRow]) -> Figure | None:
    """Return the mean loss of surface Dice among predictions over the share that is kept, most certain first."""
    shown = [(row, s) for row in rows if isinstance(s := row.about.get("score"), int | float)]
    if len(shown) < 2:
        return None
    metric = next((name for name in shown[0][0].values if name.startswith("nsd_")), "dice")
    doubt = [1 - score for _, score in shown]
    risk = [1 - row.values[metric] for row, _ in shown]
    return risk_coverage_curves(
        {"score": risk_coverage(doubt, risk)}, title="predictions, most certain first",
        risk=f"1 - {metric_title(metric)}", best=risk_coverage(risk, risk),
    )  # fmt: skip

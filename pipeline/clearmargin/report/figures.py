"""Figures of a training and an evaluation; matplotlib is imported when one is drawn, and shows no window."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from clearmargin.metrics.thresholds import ScoreCurve

__all__ = [
    "COLOURS",
    "Series",
    "coverage_splits",
    "finish",
    "new_figure",
    "precision_recall",
    "reliability",
    "reliability_compared",
    "risk_coverage_curves",
    "score_thresholds",
    "trade_off",
    "training_curves",
]

Series = Sequence[tuple[float, float]]
"""``(step, value)`` pairs in step order."""

COLOURS = (
    "#0072b2",
    "#d55e00",
    "#009e73",
    "#cc79a7",
    "#e69f00",
    "#56b4e9",
    "#000000",
)  # Okabe and Ito, 2008
_STYLES = ("-", "--", ":", "-.")
_EVENTS = 10  # of a bin that a reliability curve goes through
_FEW = 0.05  # share of the cases whose mean risk jumps: it may leave the picture


def training_curves(history: Mapping[str, Series]) -> Figure:
    """Return one panel for each metric: ``train/loss`` and ``validation/loss`` share the panel ``loss``.

    Args:
        history: Values by name. NaN leaves a gap. None at all gives an empty figure.
    """
    panels: dict[str, dict[str, Series]] = {}
    for name, values in history.items():
        group, _, metric = name.rpartition("/")
        panels.setdefault(metric, {})[group or metric] = values
    columns = min(3, max(1, len(panels)))
    rows = max(1, -(-len(panels) // columns))
    figure = new_figure(4.2 * columns, 3.0 * rows)
    for k, (metric, lines) in enumerate(panels.items()):
        axes = figure.add_subplot(rows, columns, k + 1)
        for i, (group, values) in enumerate(lines.items()):
            points = np.array(values, np.float64).reshape(-1, 2)
            mark = "o" if len(points) < 3 else None
            axes.plot(points[:, 0], points[:, 1], label=group, marker=mark, **_look(i))
        finish(axes, title=metric, x="epoch", legend=len(lines) > 1)
    return figure


def precision_recall(curves: Mapping[str, tuple[ArrayLike, ArrayLike]]) -> Figure:
    """Return precision over recall, one line for each name.

    Args:
        curves: Recall and precision, arrays of one length in [0, 1], by class or model.
    """
    figure = new_figure(4.6, 4.2)
    axes = figure.add_subplot()
    for i, (name, (recall, precision)) in enumerate(curves.items()):
        axes.plot(np.asarray(recall), np.asarray(precision), label=name, drawstyle="steps-post", **_look(i))
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1.02)
    finish(axes, title="precision and recall", x="recall", y="precision", legend=bool(curves))
    return figure


def reliability(confidence: ArrayLike, accuracy: ArrayLike, count: ArrayLike) -> Figure:
    """Return how often detections of a confidence were right, with the number of detections behind each bar.

    Args:
        confidence: ``(B,)``, mean confidence of each bin.
        accuracy: ``(B,)``, share that was right; NaN where the bin is empty.
        count: ``(B,)``, detections in each bin.
    """
    said, right, detections = (np.asarray(v, np.float64) for v in (confidence, accuracy, count))
    figure = new_figure(4.6, 5.2)
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    top.plot((0, 1), (0, 1), color="#999999", linewidth=1, linestyle="--")
    top.plot(said, right, marker="o", **_look(0))
    top.set_ylim(0, 1.02)
    finish(top, title="reliability", y="share that is right", legend=False)
    bottom.bar(said, detections, width=0.8 / max(1, len(said)), color=COLOURS[0])
    bottom.set_xlim(0, 1)
    finish(bottom, x="confidence", y="detections", legend=False)
    return figure


def reliability_compared(curves: Mapping[str, tuple[ArrayLike, ArrayLike, ArrayLike]], title: str) -> Figure:
    """Return several reliability curves in one diagram, such as before and after scaling, and how many are behind.

    Args:
        curves: ``(B,)`` mean confidence, share that was right (NaN for an empty bin) and count of each bin, by name.
        title: What was said with a confidence.

    Bins of fewer than ten events are hollow points beside the line.
    """
    figure = new_figure(4.6, 5.2)
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    top.plot((0, 1), (0, 1), color="#999999", linewidth=1, linestyle="--")
    for i, (name, (said, right, count)) in enumerate(curves.items()):
        cases = np.asarray(count, np.float64)
        x, share = np.asarray(said, np.float64), np.asarray(right, np.float64)
        marker = "os^"[i % 3]
        # A share of a handful of events is noise, and a line through it takes the eye: such bins are points apart.
        many, few = cases >= _EVENTS, (cases > 0) & (cases < _EVENTS)
        top.plot(x[many], share[many], marker=marker, markersize=4, label=name, **_look(i))
        top.plot(
            x[few],
            share[few],
            marker=marker,
            markersize=4,
            linestyle="",
            fillstyle="none",
            color=COLOURS[i],
            alpha=0.5,
        )
        bottom.plot(x[cases > 0], cases[cases > 0], marker=marker, markersize=3, **_look(i))
    top.set_ylim(0, 1.02)
    bottom.set_xlim(0, 1)
    bottom.set_yscale("log")
    finish(top, title=title, y="share that is right", legend=True)
    finish(bottom, x="probability that was said", y="events", legend=False)
    return figure


def risk_coverage_curves(
    curves: Mapping[str, tuple[ArrayLike, ArrayLike]],
    *,
    title: str,
    risk: str,
    best: tuple[ArrayLike, ArrayLike],
) -> Figure:
    """Return the mean risk of what is kept over the share that is kept, a line for each uncertainty.

    Args:
        curves: Coverages and risks by name (`metrics.risk_coverage`).
        title: Over what.
        risk: Its name and unit.
        best: The curve of the order by the risk itself.
    """
    figure = new_figure(5.4, 4.0)
    axes = figure.add_subplot()
    top = 0.0
    for i, (name, (coverage, risks)) in enumerate(curves.items()):
        shares, values = np.asarray(coverage, np.float64), np.asarray(risks, np.float64)
        axes.plot(shares, values, label=name, **_look(i))
        top = max(top, float(values[shares > _FEW].max(initial=0.0)))
    axes.plot(
        np.asarray(best[0]),
        np.asarray(best[1]),
        color="#999999",
        linewidth=1,
        linestyle="--",
        label="best order",
    )
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1.1 * top or 1.0)
    finish(axes, title=title, x="share that is not referred", y=f"their {risk}", legend=True)
    return figure


def score_thresholds(curve: ScoreCurve, used: Sequence[float]) -> Figure:
    """Return precision, recall and what they are weighed into over score thresholds.

    Args:
        curve: Counts at each threshold; an empty one gives empty axes.
        used: The thresholds in use, a line each.
    """
    figure = new_figure(5.4, 4.0)
    axes = figure.add_subplot()
    lines = {"precision": curve.precision, "recall": curve.recall, "F1": curve.f1, "PQ": curve.pq}
    lines["TP / (TP + FP + FN)"] = curve.accuracy
    for i, (name, values) in enumerate(lines.items()):
        axes.plot(curve.scores, values, label=name, **_look(i))
    for threshold in used:
        axes.axvline(threshold, color="#999999", linewidth=1, linestyle="--")
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1.02)
    finish(axes, title="detections at an IoU above 0.5", x="score threshold", legend=True)
    return figure


def coverage_splits(panels: Mapping[str, tuple[ArrayLike, float, float]], title: str) -> Figure:
    """Return a histogram of the coverages of random splits for each margin, with what is expected.

    Args:
        panels: By name: ``(S,)`` covered shares, the expected share, and what the judged split alone gives.
        title: What was split.
    """
    columns = min(2, max(1, len(panels)))
    rows = max(1, -(-len(panels) // columns))
    figure = new_figure(4.2 * columns, 2.4 * rows)
    figure.suptitle(title, fontsize=10)
    lowest = min(
        [
            0.7,
            *(float(np.min(np.asarray(values))) for values, *_ in panels.values()),
            *(judged for *_, judged in panels.values()),
        ]
    )
    shared: Axes | None = None
    for k, (name, (values, expected, judged)) in enumerate(panels.items()):
        axes = shared = figure.add_subplot(rows, columns, k + 1, sharex=shared)
        shares = np.asarray(values, np.float64)
        axes.hist(100 * shares, bins=list(np.linspace(100 * lowest, 100, 25)), color=COLOURS[5])
        axes.axvline(100 * expected, color=COLOURS[1], linestyle="--", label=f"expected {100 * expected:.1f}")
        axes.axvline(100 * shares.mean(), color=COLOURS[0], label=f"mean {100 * shares.mean():.1f}")
        axes.axvline(100 * judged, color="#000000", linestyle=":", label=f"judged {100 * judged:.1f}")
        last = k >= len(panels) - columns
        finish(axes, title=name, x="covered, %" if last else "", y="splits", legend=True)
        axes.legend(fontsize=8, frameon=False, loc="upper left")
    return figure


def trade_off(
    points: Mapping[str, tuple[float, float, float | None, float | None]],
    *,
    front: Sequence[str],
    winner: str,
    budget: float,
    metric: str,
) -> Figure:
    """Return a metric over time, a point for each model, with the Pareto front and the budget.

    Args:
        points: Milliseconds, the metric and its interval's ends by name.
        front: Names of those that none beats in both, the fastest first.
        winner: A name; empty for none.
        budget: In milliseconds.
        metric: Its name.
    """
    figure = new_figure(6.4, 4.4)
    axes = figure.add_subplot()
    axes.axvline(budget, color="#999999", linewidth=1, linestyle="--")
    ends = [points[name] for name in front]
    axes.step([p[0] for p in ends], [p[1] for p in ends], where="post", color="#bbbbbb", linewidth=1)
    for i, (name, (time_ms, value, low, high)) in enumerate(points.items()):
        spread = None if low is None or high is None else [[value - low], [high - value]]
        colour = COLOURS[i % len(COLOURS)]
        axes.errorbar(time_ms, value, yerr=spread, color=colour, capsize=2, linewidth=1)
        axes.plot(time_ms, value, marker="*" if name == winner else "o", color=colour, markersize=9)
        label = f"{name} (chosen)" if name == winner else name
        axes.annotate(label, (time_ms, value), textcoords="offset points", xytext=(7, 5), fontsize=8)
    axes.set_xscale("log")
    axes.margins(x=0.2)
    finish(axes, title="accuracy and time", x="ms an image (95 %)", y=metric, legend=False)
    return figure


def new_figure(width: float, height: float) -> Figure:
    """Return a figure outside pyplot: no window, no global state, nothing to close."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=120, layout="constrained")


def _look(i: int) -> dict[str, Any]:
    """Return colour and dashes of line ``i``: told apart without colour, too."""
    return {
        "color": COLOURS[i % len(COLOURS)],
        "linestyle": _STYLES[i % len(_STYLES)],
        "linewidth": 1.6,
    }


def finish(axes: Axes, *, title: str = "", x: str = "", y: str = "", legend: bool) -> None:
    """Give axes their words and the look of all figures here."""
    axes.set_title(title, fontsize=10)
    axes.set_xlabel(x, fontsize=9)
    axes.set_ylabel(y, fontsize=9)
    axes.grid(alpha=0.25)
    axes.tick_params(labelsize=8, which="both")
    axes.spines[["top", "right"]].set_visible(False)
    if legend:
        axes.legend(fontsize=8, frameon=False)

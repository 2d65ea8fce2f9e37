"""Figures of a measurement: spread per class, agreement of volumes, detection against size, and pairs drawn."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from clearmargin.core import InstanceSet, Mask
from clearmargin.datasets.pairs import Listing, read_pair
from clearmargin.files import whole
from clearmargin.formats.label_files import Objects
from clearmargin.metrics.measurement import metric_of, metric_title
from clearmargin.metrics.tables import CaseRow
from clearmargin.report.figures import COLOURS, finish, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
__all__ = ["agreement", "detection_by_size", "drawn_pairs", "spread", "write_figures"]

_STATUS = {"tp": ("matched", "#0072b2"), "fn": ("missed", "#d55e00"), "fp": ("false positive", "#e69f00")}
_BINS = 8


def write_figures(
    all_rows: Sequence[CaseRow],
    listing: Listing,
    folder: Path,
    *,
    surface: str,
    objects: Objects | None = None,
    resample_predictions: bool = False,
) -> list[Path]:
    """Write the figures of a measurement as PNG into ``folder`` and return them.

    ``spread_METRIC`` for each metric; ``volumes`` and ``detection``; ``pairs`` with the worst, the middle and the best
    matched pair, by the first metric. Cases are named by keyed ids. What has nothing to show is not written.

    Args:
        all_rows: All rows of the measurement.
        listing: Where its pairs are read again to be drawn.
        folder: Made if it does not exist.
        surface: The surface model of the distances.
        objects: As `clearmargin.measure.measure` was called.
        resample_predictions: Likewise.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rows = [row for row in all_rows if row.status != "tn"]
    figures: dict[str, Figure | None] = {
        f"spread_{name}": spread(rows, name, surface) for name in (rows[0].values if rows else ())
    }
    figures |= {"volumes": agreement(rows), "detection": detection_by_size(rows)}
    figures["pairs"] = drawn_pairs(rows, listing, objects=objects, resample_predictions=resample_predictions)
    written = []
    for name, figure in figures.items():
        if figure is not None:
            path = folder / f"{name}.png"
            with whole(path) as draft:
                figure.savefig(draft)
            written.append(path)
    return written


def spread(rows: Sequence[CaseRow], metric: str, surface: str) -> Figure:
    """Return boxes and strips of one metric per class, one point per object; false negatives and positives are marked.

    Boxes are of all objects: quartiles, the median, and whiskers to the farthest within 1.5 IQR.

    Args:
        rows: No true negatives; at least one.
        metric: Its name.
        surface: The surface model of the distances.
    """
    classes = sorted({row.strata.get("class", "") for row in rows})
    figure = new_figure(max(3.6, 1.6 + 1.1 * len(classes)), 4.0)
    axes = figure.add_subplot()
    rng = np.random.default_rng(0)  # of the strips' widths alone
    values = [[row.values[metric] for row in rows if row.strata.get("class", "") == name] for name in classes]
    axes.boxplot(
        values, positions=range(len(classes)), widths=0.5, showfliers=False, medianprops={"color": "#000000"}
    )
    for status, (label, colour) in _STATUS.items():
        points = [
            (k + rng.uniform(-0.18, 0.18), row.values[metric])
            for k, name in enumerate(classes)
            for row in rows
            if row.strata.get("class", "") == name and row.status == status
        ]
        if points:
            x, y = zip(*points, strict=True)
            axes.scatter(x, y, s=12, color=colour, alpha=0.7, label=label, zorder=3, linewidths=0)
    axes.set_xticks(range(len(classes)), classes, rotation=30 if len(classes) > 4 else 0)
    known = metric_of(metric)
    unit = known.unit_on(rows[0].unit, rows[0].ndim) if known else ""
    title = "" if metric in ("dice", "iou") else f"surface model: {surface}"
    finish(axes, title=title, y=metric_title(metric, unit), legend=len({row.status for row in rows}) > 1)
    return figure


def agreement(rows: Sequence[CaseRow]) -> Figure | None:
    """Return Bland and Altman's plot of predicted and reference sizes of matched objects; None for fewer than two.

    Lines: the mean difference, and the limits of agreement, 1.96 SD to either side.

    Source: Bland and Altman, Lancet 1986.
    """
    pairs = []
    name = ""
    for row in rows:
        sizes = {
            key: value for key, value in row.about.items() if key.startswith(("predicted_", "reference_"))
        }
        name = next(
            (
                key.removeprefix("reference_")
                for key in sizes
                if key.startswith(("reference_v", "reference_a"))
            ),
            name,
        )
        ours, theirs = row.about.get(f"predicted_{name}"), row.about.get(f"reference_{name}")
        if row.status == "tp" and isinstance(ours, float | int) and isinstance(theirs, float | int):
            pairs.append((float(ours), float(theirs), row.strata.get("class", "")))
    if len(pairs) < 2:
        return None
    figure = new_figure(5.4, 4.0)
    axes = figure.add_subplot()
    differences = np.array([a - b for a, b, _ in pairs])
    for k, kind in enumerate(sorted({kind for _, _, kind in pairs})):
        points = [((a + b) / 2, a - b) for a, b, of in pairs if of == kind]
        x, y = zip(*points, strict=True)
        axes.scatter(x, y, s=14, color=COLOURS[k % len(COLOURS)], label=kind, alpha=0.75, linewidths=0)
    mean, sd = float(differences.mean()), float(differences.std(ddof=1))
    right = 1.0
    for value, style, text in (
        (mean, "-", "mean"),
        (mean + 1.96 * sd, "--", "+1.96 SD"),
        (mean - 1.96 * sd, "--", "-1.96 SD"),
    ):
        axes.axhline(value, color="#444444", linestyle=style, linewidth=1)
        axes.annotate(
            f"{text} {value:.3g}", (right, value), xycoords=("axes fraction", "data"), xytext=(-2, 2),
            textcoords="offset points", ha="right", fontsize=8, color="#444444",
        )  # fmt: skip
    what = name.replace("_", " ").replace("mm3", "(mm³)").replace("mm2", "(mm²)")
    finish(
        axes, title="agreement of sizes, matched objects", x=f"mean of both, {what}", y="predicted minus reference",
        legend=len({kind for _, _, kind in pairs}) > 1,
    )  # fmt: skip
    return figure


def detection_by_size(rows: Sequence[CaseRow]) -> Figure | None:
    """Return the share of references that were matched, in bins of equally many by size; None for fewer than two.

    Bars are Wilson's 95 % intervals. Source: Wilson, JASA 1927.
    """
    sizes, matched = [], []
    for row in rows:
        size = next((v for k, v in row.about.items() if k.startswith(("reference_v", "reference_a"))), None)
        if row.status in ("tp", "fn") and isinstance(size, float | int):
            sizes.append(float(size))
            matched.append(row.status == "tp")
    if len(sizes) < 2:
        return None
    order = np.argsort(sizes)
    groups = [g for g in np.array_split(order, min(_BINS, max(1, len(order) // 5))) if len(g)]
    extent, hit = np.array(sizes), np.array(matched, np.float64)
    figure = new_figure(5.4, 3.8)
    axes = figure.add_subplot()
    middles = [float(np.median(extent[g])) for g in groups]
    rates = [float(hit[g].mean()) for g in groups]
    ends = [_wilson(int(hit[g].sum()), len(g)) for g in groups]
    lows = [max(r - low, 0.0) for r, (low, _) in zip(rates, ends, strict=True)]
    highs = [max(high - r, 0.0) for r, (_, high) in zip(rates, ends, strict=True)]
    axes.errorbar(middles, rates, yerr=[lows, highs], marker="o", color=COLOURS[0], capsize=3, linewidth=1.4)
    for x, y, group in zip(middles, rates, groups, strict=True):
        axes.annotate(f"n={len(group)}", (x, y), textcoords="offset points", xytext=(4, -11), fontsize=7)
    if min(middles) > 0 and max(middles) > 10 * min(middles):
        axes.set_xscale("log")
    axes.set_ylim(0, 1.05)
    name = next(k for k in rows[0].about if k.startswith(("reference_v", "reference_a")))
    what = name.removeprefix("reference_").replace("_", " ").replace("mm3", "(mm³)").replace("mm2", "(mm²)")
    finish(
        axes, title="detection against size", x=f"{what} of the reference", y="share matched", legend=False
    )
    return figure


def drawn_pairs(
    rows: Sequence[CaseRow],
    listing: Listing,
    *,
    objects: Objects | None = None,
    resample_predictions: bool = False,
) -> Figure | None:
    """Return the worst, the middle and the best matched pair by the first metric, drawn in their fullest slice.

    The reference is filled, the prediction an outline; None if nothing matched.
    """
    if not rows or not rows[0].values:
        return None
    metric = next(iter(rows[0].values))
    known = metric_of(metric)
    matched = [row for row in rows if row.status == "tp"]
    if known:
        matched.sort(key=lambda row: known.cost(row.values[metric]), reverse=True)
    if not matched:
        return None
    places = dict.fromkeys((0, len(matched) // 2, len(matched) - 1))
    entries = {entry.case: entry for entry in listing.entries}
    figure = new_figure(3.4 * len(places), 3.6)
    for k, place in enumerate(places):
        row = matched[place]
        pair = read_pair(
            entries[row.case], listing, objects=objects, resample_predictions=resample_predictions
        )
        masks = [
            side.masks[ids.index(str(row.about[name]))]
            for side, ids, name in (
                (pair.predicted, pair.predicted_ids, "predicted_id"),
                (pair.reference, pair.reference_ids, "reference_id"),
            )
        ]
        axes = figure.add_subplot(1, len(places), k + 1)
        _draw(axes, masks[0], masks[1], pair.reference)
        words = (
            ("worst", "middle", "best")[k]
            if len(places) == 3
            else ("worst", "best")[k]
            if len(places) == 2
            else "only"
        )
        kind = row.strata.get("class", "")
        axes.set_title(
            f"{words}: {row.case}\n{kind}, {metric_title(metric)} {row.values[metric]:.3g}", fontsize=9
        )
    return figure


def _draw(axes: Axes, ours: Mask, theirs: Mask, on: InstanceSet) -> None:
    """Draw two masks in the slice that both fill most, in the unit of the grid's spacing."""
    both = Mask.union([ours, theirs], on.grid.shape)
    box = tuple(
        slice(max(s.start - 3, 0), min(s.stop + 3, n)) for s, n in zip(both.slices, both.shape, strict=True)
    )
    predicted, reference = ours.within(box), theirs.within(box)
    spacing = on.grid.spacing
    label = ""
    if predicted.ndim == 3:
        z = int((predicted.sum(axis=(1, 2)) + reference.sum(axis=(1, 2))).argmax())
        label = f"slice {box[0].start + z}, "
        predicted, reference, spacing = predicted[z], reference[z], spacing[1:]
    height, width = (n * s for n, s in zip(reference.shape, spacing, strict=True))
    axes.imshow(_tinted(reference), extent=(0, width, height, 0), interpolation="nearest")
    x = (np.arange(reference.shape[1]) + 0.5) * spacing[1]
    y = (np.arange(reference.shape[0]) + 0.5) * spacing[0]
    if predicted.any():
        axes.contour(x, y, predicted.astype(float), levels=[0.5], colors=[_STATUS["fn"][1]], linewidths=1.4)
    axes.set_aspect("equal")
    axes.tick_params(labelsize=7)
    there = "" if predicted.any() else " (in other slices)"
    axes.set_xlabel(f"{label}{on.grid.unit}; blue: reference, line: prediction{there}", fontsize=7)


def _tinted(mask: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Return a mask as a picture, light blue on white."""
    out = np.ones((*mask.shape, 3))
    out[mask] = (0.62, 0.79, 0.92)
    return out


def _wilson(hits: int, n: int, z: float = 1.96) -> tuple[float, float]:
    """Return the 95 % interval of a share.

    >>> tuple(round(v, 3) for v in _wilson(8, 10))
    (0.49, 0.943)
    """
    share = hits / n
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * float(np.sqrt(share * (1 - share) / n + z * z / (4 * n * n)))
    return middle - half, middle + half

"""Coverage of the regions of landmarks, and of distances to a neighbour, over random splits: ``make bench-coverage``.

Landmarks of phantoms are known exactly, and predictions are off by a known law (`tests/pointed.py`); each split runs
`calibrate` and its judgement. Ends with 1 if a mean coverage is farther than 3 points from what is promised.
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

import numpy as np
from calibrated import DATA, drawn_set
from matplotlib.figure import Figure
from pointed import DEEP, FLAT, PointSet, calibrated, judged, shares

from clearmargin.core import Thresholds
from clearmargin.margins.observations import objects_apart, observe
from clearmargin.margins.towards import clearance_losses, fit_clearance
from clearmargin.report.figures import COLOURS, finish, new_figure

FARTHEST = 0.03


def landmark_splits(name: str, drawn: PointSet, groups: int, splits: int) -> dict[str, list[float]]:
    """Print a row for a set of phantoms; return coverage by split: of all points, of those seen and hidden."""
    found: dict[str, list[float]] = {"all": [], "seen": [], "hidden": []}
    radii = []
    for split in range(splits):
        order = np.random.default_rng(split).permutation(groups).tolist()
        known, fresh = order[: 5 * groups // 8], order[5 * groups // 8 :]
        calibration, margin_cases = calibrated(drawn, drawn.of(known), seed=split)
        judgement = judged(drawn, drawn.of(fresh), calibration, margin_cases)
        for key, share in zip(found, shares(judgement), strict=True):
            found[key].append(share)
        strata = {s.name: s.radius for s in judgement.points[0].strata}
        radii.append([strata["visibility = seen"], strata["visibility = hidden"]])
    cells = [f"{100 * np.mean(v):.1f} ({100 * np.std(v):.1f})" for v in found.values()]
    seen, hidden = np.mean(radii, axis=0)
    print(
        f"| {name} | {calibration.points[0].n} | {' | '.join(cells)} | {seen:.2f} / {hidden:.2f} mm |",
        flush=True,
    )
    return found


def distance_splits(groups: int, splits: int) -> float:
    """Print coverage of the distance to a neighbour by object and by group; return the farthest under 90 %."""
    drawn = drawn_set(groups, edges=False, maps=False)
    cases = []
    for case in drawn.cases:
        image, reference = drawn.read(case)
        cases.append(observe(case.group, image, drawn(image), reference, towards=["large"]))
    thresholds, worst = Thresholds(0.5), -1.0
    for guarantee in ("object", "group"):
        held, lengths = [], []
        for split in range(splits):
            order = np.random.default_rng(split).permutation(groups)
            known, fresh = (
                objects_apart([cases[k] for k in some], "large", thresholds, 0.6)
                for some in (order[: 5 * groups // 8], order[5 * groups // 8 :])
            )
            one = fit_clearance(
                "large",
                known,
                [group for group, _ in known],
                thresholds,
                guarantee=guarantee,
                alpha=0.1,
                length_unit="mm",
                data=DATA,
            )
            losses = clearance_losses(fresh, thresholds, guarantee)
            held.append(1 - float(losses.at(np.array([one.length])).mean()))
            lengths.append(one.length)
        worst = max(worst, 0.9 - float(np.mean(held)))
        print(
            f"| by {guarantee} | {one.n} | {100 * np.mean(held):.1f} ({100 * np.std(held):.1f}) | "
            f"{np.mean(lengths):.2f} mm |",
            flush=True,
        )
    return worst


def draw(shown: dict[str, list[float]], splits: int) -> Figure:
    """Return a histogram of coverage by split for each set and visibility."""
    figure = new_figure(9, 4.6)
    figure.suptitle(f"landmarks within their 95 % regions, {splits} random splits", fontsize=10)
    for k, (name, covered) in enumerate(shown.items()):
        axes = figure.add_subplot(2, 3, k + 1)
        axes.hist(100 * np.array(covered), bins=list(np.linspace(75, 100, 26)), color=COLOURS[5])
        axes.axvline(95, color=COLOURS[1], linestyle="--", label="promised 95")
        axes.axvline(100 * np.mean(covered), color=COLOURS[0], label=f"mean {100 * np.mean(covered):.1f}")
        finish(
            axes, title=name, x="covered, %" if k >= 3 else "", y="splits" if k % 3 == 0 else "", legend=True
        )
        axes.legend(fontsize=8, frameon=False, loc="upper left")
    return figure


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--groups", type=int, default=128)
    options.add_argument("--splits", type=int, default=30)
    options.add_argument("--figure", type=Path, help="file for the figure of coverage over splits")
    chosen = options.parse_args()
    logging.disable(logging.WARNING)
    print("| landmarks, 95 % promised | n | all, % (sd) | seen | hidden | median radius, seen / hidden |")
    print("|---|---:|---:|---:|---:|---:|")
    shown, farthest = {}, 0.0
    for where, grid in (("plane", FLAT), ("space", DEEP)):
        for said, says in ((", told which are hidden", True), (", not told", False)):
            drawn = PointSet(chosen.groups, grid, says_hidden=says, seed=1)
            found = landmark_splits(where + said, drawn, chosen.groups, chosen.splits)
            farthest = max(farthest, abs(float(np.mean(found["all"])) - 0.95))
            if says:
                shown |= {f"{where}, {key}": v for key, v in found.items()}
    print(
        "\n| distance to a neighbour, 90 % promised | n | covered, % (sd) | taken off |\n|---|---:|---:|---:|"
    )
    under = distance_splits(chosen.groups, chosen.splits)
    if chosen.figure is not None:
        draw(shown, chosen.splits).savefig(chosen.figure)
    print(f"\nfarthest from 95 %: {100 * farthest:.1f} points (goal: 3)")
    return int(farthest > FARTHEST or under > FARTHEST)


if __name__ == "__main__":
    raise SystemExit(main())

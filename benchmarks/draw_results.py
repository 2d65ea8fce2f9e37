"""The figure of docs/results.md, from the tables on the pages: ``python benchmarks/draw_results.py``.

Left: accuracy on nuclei over the IoU that a match needs (docs/lab/nuclei.md). Right: coverage of the outer margin on
new groups beside the promise (docs/results.md). So a number is written once, and the figure cannot differ from it.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes

ROOT = Path(__file__).parents[1]
BLUE, ORANGE, GREY = "#0b7285", "#e8590c", "#868e96"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--docs", type=Path, default=ROOT / "docs")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "figures" / "results.png")
    options = parser.parse_args()
    figure, (left, right) = plt.subplots(1, 2, figsize=(9.6, 3.6), layout="constrained")
    draw_accuracy(left, accuracies(options.docs / "lab" / "nuclei.md"))
    draw_coverage(right, coverages(options.docs / "results.md"))
    figure.savefig(options.out, dpi=120)


def table(page: Path, heading: str) -> list[list[str]]:
    """Return the cells of the first table whose header row holds ``heading``, header first."""
    lines = page.read_text().splitlines()
    first = next((i for i, line in enumerate(lines) if line.startswith("|") and heading in line), None)
    if first is None:
        raise SystemExit(f"{page.name} has no table with '{heading}' in its header")
    rows = []
    for line in lines[first:]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip().replace("**", "") for cell in line.strip("|").split("|")])
    return [rows[0], *rows[2:]]


def accuracies(page: Path) -> dict[str, list[tuple[float, float]]]:
    """Return TP / (TP + FP + FN) over the IoU, per model."""
    header, *rows = table(page, "torchvision, 939 steps")
    lines = [row for row in rows if re.search(r"at (IoU )?0\.\d$", row[0]) and "precision" not in row[0]]
    return {
        name: [(float(row[0][-3:]), float(row[k])) for row in lines]
        for k, name in enumerate(header[1:], start=1)
    }


def coverages(page: Path) -> list[tuple[str, float, float, float]]:
    """Return for each data set its name, the coverage on the test set, and the interval, in per cent."""
    _, *rows = table(page, "covered, test set")
    intervals = []
    for row in rows:
        value, low, high = (float(x) for x in re.findall(r"[\d.]+", row[3]))
        intervals.append((row[0], value, low, high))
    return intervals


def draw_accuracy(axes: Axes, curves: dict[str, list[tuple[float, float]]]) -> None:
    for (name, points), colour, style in zip(
        curves.items(), (BLUE, ORANGE, ORANGE), ("-", "--", "-"), strict=True
    ):
        minutes = re.findall(r"\d+ minutes", name)[-1]
        tool = "Clear Margin" if name.startswith("ours") else "torchvision Mask R-CNN"
        axes.plot(*zip(*points, strict=True), style, color=colour, marker="o", label=f"{tool}, {minutes}")
    axes.set(title="Nuclei, 79 test images", xlabel="IoU that a match needs", ylabel="TP / (TP + FP + FN)")
    axes.set_ylim(0, 0.9)
    axes.legend(frameon=False, loc="upper right", fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)


def draw_coverage(axes: Axes, rows: list[tuple[str, float, float, float]]) -> None:
    for y, (_, value, low, high) in enumerate(reversed(rows)):
        axes.plot([low, high], [y, y], color=BLUE, lw=2)
        axes.plot(value, y, "o", color=BLUE if high >= 90 else ORANGE, ms=8)
    axes.axvline(90, color=GREY, ls="--", lw=1)
    axes.text(90, len(rows) - 0.45, "promised", color=GREY, ha="center")
    axes.set_yticks(range(len(rows)), [name.replace(", ", ",\n", 1) for name, *_ in reversed(rows)])
    axes.set(title="Objects covered by the outer margin", xlabel="% of a new group's objects", xlim=(40, 102))
    axes.set_ylim(-0.6, len(rows) - 0.2)
    axes.spines[["top", "right"]].set_visible(False)


if __name__ == "__main__":
    main()

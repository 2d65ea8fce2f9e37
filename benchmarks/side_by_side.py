"""Times of several tools on the same work, in turns."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable


def interleaved(rounds: int, **sides: Callable[[], object]) -> dict[str, float]:
    """Return the median time of each side in seconds, run in turns after one call each that is not counted."""
    for side in sides.values():
        side()
    times: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, side in sides.items():
            start = time.perf_counter()
            side()
            times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in times.items()}


def report(title: str, times: dict[str, float], limits: dict[str, float]) -> None:
    """Print one table: each tool's time and how many times ours goes into it, with what was aimed at."""
    ours = times["clearmargin"]
    print(f"\n### {title}\n\n| tool | seconds | ratio | asked for |\n|---|---:|---:|---:|")
    for name, value in times.items():
        limit = f"{limits[name]:g}" if name in limits else ""
        print(f"| {name.replace('_', ' ')} | {value:.4f} | {value / ours:.1f} | {limit} |")

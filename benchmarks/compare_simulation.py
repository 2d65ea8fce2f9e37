"""How often `compare` calls a model different from itself, and how often its intervals hold the truth.

    python benchmarks/compare_simulation.py TABLES_A TABLES_B

Two evaluations of our own models on one split are the population: the groups' mean differences of every metric, as
`compare` takes them. Each trial draws n groups with replacement.

- Self-comparison: a coin says which of the two models a group's numbers come from, so that both sides are one model.
  Different is whatever gets a word other than "not distinguishable" for any metric, after Holm's correction.
- Coverage: the interval of the mean difference against the population's mean; and of the median likewise. Beside it the
  share of trials in which the output says that the interval does not cover.
"""

import sys
from pathlib import Path

import numpy as np

from clearmargin.metrics.comparison import compare_rows
from clearmargin.metrics.paired import compare
from clearmargin.runs import rows_of_tables

SIZES = (20, 50, 100, 500)
TRIALS = 1_000


def population(folders: list[Path]) -> dict[str, np.ndarray]:
    """Return the difference of each group's means by metric, over the groups that have every metric."""
    sets = {name: [rows_of_tables(folder)] for name, folder in zip("ab", folders, strict=True)}
    done = compare_rows(sets, rng=np.random.default_rng(0))
    groups = sorted(set.intersection(*(set(of["a"]) for of in done.means.values())))
    return {
        metric: np.array([of["b"][group] - of["a"][group] for group in groups])
        for metric, of in done.means.items()
    }


def main() -> None:
    gaps = population([Path(path) for path in sys.argv[1:3]])
    size = len(next(iter(gaps.values())))
    print(f"population: {size} groups, {len(gaps)} metrics\n")
    print(
        "| n | called different from itself | coverage of the mean's interval, worst metric | median of metrics "
        "| said not to cover, that metric | coverage of the median's interval, worst metric |"
    )
    print("|---:|---:|---:|---:|---:|---:|")
    for n in SIZES:
        rng = np.random.default_rng(n)
        different = 0
        held = dict.fromkeys(gaps, 0)
        of_median = dict.fromkeys(gaps, 0)
        told = dict.fromkeys(gaps, 0)
        names = [str(k) for k in range(n)]
        nothing = {metric: np.zeros(n) for metric in gaps}
        for _ in range(TRIALS):
            at = rng.integers(0, size, n)
            coin = rng.choice([-1.0, 1.0], n)
            null = compare({m: v[at] * coin for m, v in gaps.items()}, nothing, names, rng=rng, trials=1_000)
            different += any(found.p_adjusted < 0.05 for found in null.values())
            drawn = compare({m: v[at] for m, v in gaps.items()}, nothing, names, rng=rng, trials=1_000)
            for metric, found in drawn.items():
                low, high = found.difference.low, found.difference.high
                held[metric] += low <= gaps[metric].mean() <= high
                median = np.median(gaps[metric])
                of_median[metric] += found.median.low <= median <= found.median.high
                told[metric] += found.coverage is not None and not found.covers
        worst = min(held, key=held.get)
        print(
            f"| {n} | {100 * different / TRIALS:.1f} % | {100 * held[worst] / TRIALS:.1f} % ({worst}) "
            f"| {100 * np.median(list(held.values())) / TRIALS:.1f} % | {100 * told[worst] / TRIALS:.0f} % "
            f"| {100 * min(of_median.values()) / TRIALS:.1f} % |"
        )


if __name__ == "__main__":
    main()

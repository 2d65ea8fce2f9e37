"""Coverage, width and stretch of margins on units without number: ``make bench-coverage``.

Also that scaled margins are narrower, what a shift does, and that misses stay under control. The scores of all
units are computed once; random splits are then cheap. Coverage is the share of the units not calibrated on whose
matched instances are all covered. Ends with 1 where a proof fails.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace

import numpy as np
from displaced import PLANE, SPACE, STRATA, Pool, over_splits, pool, scores_of

from clearmargin.uncertainty.conformal import conformal_quantile, expected_coverage
from clearmargin.uncertainty.margins import unit_scores
from clearmargin.uncertainty.misses import LOSSES, Found, fit_threshold
from clearmargin.uncertainty.needed import Need, Promise
from clearmargin.uncertainty.reach import grow

ALPHAS = (0.1, 0.05)
FLOOR = PLANE.floor


def report_coverage(name: str, needs: list[Need], n: int, splits: int) -> float:
    """Print a line for each alpha; return the largest distance from the expected coverage."""
    worst = 0.0
    scores = scores_of(needs)
    for alpha in ALPHAS:
        mean, spread, margin = over_splits(scores, n, alpha, splits)
        expected = expected_coverage(n, alpha)
        worst = max(worst, abs(mean - expected))
        print(
            f"| {name} | {len(scores)} | {n} | {100 * (1 - alpha):g} % | {100 * expected:.2f} | {100 * mean:.2f} "
            f"| {100 * spread:.1f} | {margin:.3f} |",
            flush=True,
        )
    return worst


def report_stretch(plane: Pool, n: int) -> None:
    """Print the area with margin over the true area, and coverage by the regions themselves, on held-out units."""
    print("\n| promise | alpha | margin | stretch | covered, by the regions |\n|---|---|---:|---:|---:|")
    names = [u.name for u in plane.units]
    for promise in (
        Promise(share=0.9, of="area"),
        Promise(share=0.99, of="area"),
        Promise(share=0.95),
        Promise(share=0.99),
        Promise(),
        Promise(floor=FLOOR),
    ):
        scores = unit_scores(plane.needs(promise))
        for alpha in ALPHAS:
            margin = conformal_quantile([scores[u] for u in names[:n] if u in scores], alpha)
            ratios, covered = [], []
            for unit, matches in list(zip(plane.units, plane.matches, strict=True))[n:]:
                whole = True
                for i, j in matches.pairs:
                    scale = unit.scales[i] if promise.floor is not None else None
                    grown = grow(unit.predicted.masks[i], unit.predicted.grid, margin, scale)
                    truth = unit.reference.masks[j]
                    ratios.append(grown.area / truth.area)
                    if promise.share == 1 or promise.of == "area":
                        inside = grown.intersection(truth) / truth.area
                        whole &= inside >= promise.share * (1 - 1e-12)
                    else:
                        whole &= scores[unit.name] <= margin
                covered.append(whole)
            print(
                f"| {promise.side}, {100 * promise.share:g} % of the {promise.of}"
                f"{', scaled' if promise.floor else ''} | {alpha:g} | {margin:.3f} | {np.mean(ratios):.3f} "
                f"| {100 * np.mean(covered):.1f} % |",
                flush=True,
            )


def report_width(name: str, found: Pool, n: int, splits: int, floor: float) -> list[float]:
    """Print the mean width of the scaled margin over that of the scalar one, at the same coverage."""
    plain = scores_of(found.needs(Promise()))
    scaled = scores_of(found.needs(Promise(floor=floor)))
    scale = found.mean_scale()
    ratios = []
    for alpha in ALPHAS:
        one, _, margin = over_splits(plain, n, alpha, splits)
        two, _, factor = over_splits(scaled, n, alpha, splits)
        width = factor * scale
        ratios.append(width / margin)
        print(
            f"| {name} | {alpha:g} | {100 * one:.2f} | {100 * two:.2f} | {margin:.3f} | {width:.3f} "
            f"| {width / margin:.3f} |",
            flush=True,
        )
    return ratios


def report_shift(plane: Pool, n: int, units: int) -> None:
    """Print how often margins of these units hold on units whose blur is wider, known and unknown to the scale."""
    print("\n| blur of the new units (calibrated at 0.9) | alpha | covered, one margin | covered, scaled |")
    print("|---:|---:|---:|---:|")
    names = {u.name for u in plane.units[:n]}
    for blurred in (0.9, 1.2, 1.6):
        new = pool(units, replace(PLANE, blurred=blurred), 7)
        for alpha in ALPHAS:
            shares = []
            for promise in (Promise(), Promise(floor=FLOOR)):
                known = [need for need in plane.needs(promise) if need.unit in names]
                margin = conformal_quantile(scores_of(known), alpha)
                shares.append(100 * np.mean(scores_of(new.needs(promise)) <= margin))
            print(f"| {blurred} | {alpha:g} | {shares[0]:.1f} % | {shares[1]:.1f} % |", flush=True)


def report_misses(splits: int) -> float:
    """Print the mean loss of new units under controlled thresholds; return how far the worst is over alpha."""
    print("\n| loss | n | alpha | mean loss of new units, % |\n|---|---:|---:|---:|")
    rng, worst = np.random.default_rng(4), -1.0
    # a unit's detections share a quality; 2 in 1000 instances are never found
    scores = [rng.beta(5, 2) * rng.beta(8, 1, rng.integers(1, 8)) for _ in range(300)]
    scores = [np.where(rng.random(len(s)) < 0.002, -np.inf, s) for s in scores]
    for loss, rule in LOSSES.items():
        for alpha in (0.1, 0.2):
            found = []
            for _ in range(splits):
                order = rng.permutation(len(scores))
                known = [
                    Found(unit=str(i), score=None if s < 0 else float(s))
                    for i in order[:100]
                    for s in scores[i]
                ]
                units = {one.unit for one in known}
                threshold = fit_threshold(known, units, alpha, exchangeable="image", loss=loss).threshold
                found.append(np.mean([rule(scores[i] < threshold) for i in order[100:]]))
            worst = max(worst, float(np.mean(found)) - alpha)
            print(f"| {loss} | 100 | {alpha:g} | {100 * np.mean(found):.2f} |", flush=True)
    return worst


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--units", type=int, default=400, help="in the plane; half as many in space")
    options.add_argument("--splits", type=int, default=500)
    chosen = options.parse_args()
    began = time.perf_counter()
    plane, space = pool(chosen.units, PLANE, 1), pool(chosen.units // 2, SPACE, 2)
    instances = sum(len(m.pairs) for m in plane.matches)
    print(
        f"{len(plane.units)} images ({instances} matched instances), {len(space.units)} volumes, made in "
        f"{time.perf_counter() - began:.0f} s\n"
    )
    print("| what | pool | n | level | expected % | mean coverage % | its sd over splits | mean margin |")
    print("|---|---:|---:|---:|---:|---:|---:|---:|")
    worst = []
    for promise, kind in (
        (Promise(), "plane, outer"),
        (Promise(share=0.99), "plane, outer, 99 % of the surface"),
        (Promise(share=0.95), "plane, outer, 95 % of the surface"),
        (Promise(side="inner"), "plane, inner"),
        (Promise(side="inner", share=0.95), "plane, inner, 95 % of the surface"),
        (Promise(floor=FLOOR), "plane, outer, scaled"),
        (Promise(side="inner", floor=FLOOR), "plane, inner, scaled"),
    ):
        worst.append(report_coverage(kind, plane.needs(promise), 100, chosen.splits))
    for promise, kind in ((Promise(), "plane, outer"), (Promise(floor=FLOOR), "plane, outer, scaled")):
        stratified = plane.needs(promise, STRATA)
        for stratum in sorted({need.stratum for need in stratified}):
            own = [need for need in stratified if need.stratum == stratum]
            worst.append(report_coverage(f"{kind}, {stratum}", own, 60, chosen.splits))
    for promise, kind in (
        (Promise(), "space, outer"),
        (Promise(side="inner"), "space, inner"),
        (Promise(floor=SPACE.floor), "space, outer, scaled"),
    ):
        worst.append(report_coverage(kind, space.needs(promise), 60, chosen.splits))
    print(f"\nfarthest from expected: {100 * max(worst):.2f} points (asked for: under 2)")
    report_stretch(plane, chosen.units // 2)
    print(
        "\n| scale | alpha | coverage, one margin | coverage, scaled | margin | mean scaled width | ratio |"
    )
    print("|---|---|---:|---:|---:|---:|---:|")
    known = report_width("plane, sigma known", plane, 100, chosen.splits, FLOOR)
    known += report_width("space, sigma known", space, 60, chosen.splits, SPACE.floor)
    for members, floor in ((5, 0.25), (20, 0.12)):
        guessed = pool(chosen.units // 2, replace(PLANE, members=members, floor=floor), 3)
        report_width(f"plane, sigma of {members} members", guessed, 100, chosen.splits, floor)
    report_shift(plane, chosen.units // 2, chosen.units // 4)
    missed = report_misses(min(chosen.splits, 200))
    print(
        f"\nwidest ratio with sigma known: {max(known):.3f} (asked for: 0.8); {time.perf_counter() - began:.0f} s"
    )
    return int(max(worst) >= 0.02 or max(known) > 0.8 or missed > 0.005)


if __name__ == "__main__":
    raise SystemExit(main())

"""Regions of landmarks as tables and lines: what is promised, and what of it came true."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from clearmargin.margins.calibration import Calibration
from clearmargin.margins.judging.coverage import SPLITS
from clearmargin.margins.judging.judge import Judgement
from clearmargin.margins.regions import PointRegion
from clearmargin.report.figures import coverage_splits

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["point_figures", "point_metrics", "point_rows_of", "point_strata_rows", "region_name"]

Row = dict[str, Any]


def region_name(region: PointRegion) -> str:
    """Return a short name, such as ``landmarks, by object, alpha 0.05``."""
    return f"landmarks, by {region.guarantee}, alpha {region.alpha:g}"


def point_rows_of(calibration: Calibration, judged: Judgement | None) -> list[Row]:
    """Return a row for each promise about landmarks, with its coverage on the judged groups if there are any."""
    rows = []
    for k, region in enumerate(calibration.points):
        mean, low, high = region.covered
        row: Row = {
            "promise": region.guarantee,
            "applied": region == calibration.applied_points(),
            "alpha": region.alpha,
            "confidence": region.confidence,
            "shape": str(region.shape),
            "factor": region.factor,
            "typical_radius": region.typical,
            "unit": region.length_unit,
            "group": calibration.data.group,
            "n": region.n,
            "without": region.without,
            "expected": mean,
            "one_calibration_low": low,
            "one_calibration_high": high,
        }
        if judged is not None:
            here = judged.points[k]
            over, least, most = here.splits
            row |= {
                "groups": here.groups,
                "covered": None if here.covered is None else here.covered.estimate,
                "covered_low": None if here.covered is None else here.covered.low,
                "covered_high": None if here.covered is None else here.covered.high,
                "points": here.strata[0].points if here.strata else 0,
                "points_covered": here.strata[0].covered if here.strata else 0,
                f"over_{SPLITS}_splits": over,
                "splits_low": least,
                "splits_high": most,
            }
        rows.append(row)
    return rows


def point_strata_rows(judged: Judgement) -> list[Row]:
    """Return a row for each type and visibility of the judged points, of each promise."""
    return [
        {
            "regions": region_name(one.region),
            "stratum": stratum.name,
            "covered": f"{stratum.covered} of {stratum.points}",
            "%": round(100 * stratum.covered / stratum.points, 1),
            f"median radius, {one.region.length_unit}": round(stratum.radius, 2),
        }
        for one in judged.points
        for stratum in one.strata
    ]


def point_metrics(calibration: Calibration, judged: Judgement | None) -> dict[str, float]:
    """Return the numbers of the applied regions that a run shows; none if there are none."""
    region = calibration.applied_points()
    if region is None:
        return {}
    numbers = {"headline/landmark_radius": region.typical}
    for one in () if judged is None else judged.points:
        if one.region == region and one.covered is not None:
            numbers["headline/coverage_landmarks"] = one.covered.estimate
    return numbers


def point_figures(judged: Judgement) -> Mapping[str, Figure]:
    """Return coverage over random splits, if there are any."""
    shown = {
        region_name(one.region): (one.over_splits, one.region.covered[0], one.covered.estimate)
        for one in judged.points
        if one.over_splits and one.covered is not None
    }
    title = f"coverage over {SPLITS} random splits of the margin and judged groups"
    return {"landmark_coverage_over_splits": coverage_splits(shown, title)} if shown else {}

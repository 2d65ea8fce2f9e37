"""Landmarks of many images, measured: a row per point, and what they come to by type and visibility."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from clearmargin.core import Grid, Landmarks
from clearmargin.core.grid import Unit
from clearmargin.core.landmarks import SEEN, VISIBILITIES
from clearmargin.core.slack import with_slack
from clearmargin.metrics.intervals import Interval, bootstrap_means
from clearmargin.metrics.pair import Status
from clearmargin.metrics.thresholds import LEAST_REFERENCES, between

__all__ = [
    "RADII",
    "PointRow",
    "PointSummary",
    "best_point_threshold",
    "landmark_quality",
    "pair_points",
    "point_rows",
    "success_radius",
    "summarise_points",
    "visibility_f1",
]

RADII: Mapping[Unit, tuple[float, ...]] = {"px": (5.0, 10.0, 20.0), "mm": (2.0, 2.5, 3.0, 4.0)}
"""Radii of success rates by unit."""

_TRIED = 40  # thresholds at most

_VISIBILITY = {True: "seen", False: "hidden"}  # that is predicted, by whether it is seen


@dataclass(frozen=True, kw_only=True)
class PointRow:
    """One landmark of one image.

    Attributes:
        group: The case's group.
        case: Case id.
        point: Name of its type.
        visibility: Of the reference: ``seen`` or ``hidden``; ``absent`` for a false positive.
        status: ``tp``, ``fn`` or ``fp``.
        error: Distance from the reference in ``unit``; None if it has no partner.
        score: Of the prediction; None for a false negative.
        predicted_seen: Whether it was predicted as seen.
        unit: Unit of ``error``.
    """

    group: str
    case: str
    point: str
    visibility: str
    status: Status
    error: float | None
    score: float | None
    predicted_seen: bool
    unit: Unit


@dataclass(frozen=True, kw_only=True)
class PointSummary:
    """What the points of one stratum come to.

    Attributes:
        stratum: ``all``, ``point = NAME``, or ``visibility = seen``.
        unit: Unit of the distances.
        counts: Of ``tp``, ``fn`` and ``fp``.
        radial_error: Mean over groups of the true positives' mean distance, with its interval; None without any.
        median: Of the true positives' distances; None without any.
        sd: Their standard deviation (n - 1); None with fewer than two.
        success: Share of the reference points that are detected within each radius; empty without a reference.
        visibility_f1: F1 of "seen"; 1 if nothing is seen or said to be.
        hidden_f1: F1 of "hidden"; None if nothing is hidden or said to be.
    """

    stratum: str
    unit: Unit
    counts: Mapping[str, int]
    radial_error: Interval | None
    median: float | None
    sd: float | None
    success: Mapping[float, float]
    visibility_f1: float
    hidden_f1: float | None


def pair_points(
    predicted: Landmarks, reference: Landmarks, grid: Grid
) -> dict[tuple[int, int], tuple[int, float]]:
    """Return the pairs of points of a type for which the sum of their distances is least.

    Args:
        predicted: Points on ``grid``.
        reference: Points on ``grid``, of the same types.
        grid: Its spacing measures distances, in mm where it is known.

    Returns:
        By object and type of a reference point, the predicted object and their distance; one without a partner is not
        in it.

    Raises:
        ValueError: The types differ.

    Source: Kuhn, "The Hungarian method for the assignment problem", 1955 (`scipy.optimize.linear_sum_assignment`).
    """
    from scipy.optimize import linear_sum_assignment

    if predicted.types != reference.types:
        raise ValueError("predicted and reference landmarks are of different types")
    pairs = {}
    for k in range(len(reference.types)):
        ours, theirs = (np.flatnonzero(s.visible[:, k] > 0) for s in (predicted, reference))
        apart = _distances(predicted.points[ours, k], reference.points[theirs, k], grid)
        for p, r in zip(*linear_sum_assignment(apart), strict=True):
            pairs[int(theirs[r]), k] = int(ours[p]), float(apart[p, r])
    return pairs


def point_rows(
    predicted: Landmarks, reference: Landmarks, *, grid: Grid, case: str = "", group: str = ""
) -> list[PointRow]:
    """Return a row per point of one image.

    Points of a type are paired so that the sum of their distances is least; one that has no partner is a false negative
    or a false positive, and is counted as such.

    Args:
        predicted: Points on ``grid``.
        reference: Points on ``grid``, of the same types.
        grid: Its spacing measures distances, in mm where it is known.
        case: Case id.
        group: The case's group.

    Raises:
        ValueError: The types differ.
    """
    pairs = pair_points(predicted, reference, grid)
    rows = []
    for k, kind in enumerate(reference.types):
        for i in np.flatnonzero(reference.visible[:, k] > 0).tolist():
            p, error = pairs.get((i, k), (None, None))
            rows.append(
                PointRow(
                    group=group,
                    case=case,
                    point=kind.name,
                    visibility=VISIBILITIES[reference.visible[i, k]],
                    status="fn" if p is None else "tp",
                    error=error,
                    score=None if p is None else float(predicted.scores[p, k]),
                    predicted_seen=p is not None and bool(predicted.visible[p, k] == SEEN),
                    unit=grid.unit,
                )
            )
        taken = {p for (_, of_type), (p, _) in pairs.items() if of_type == k}
        rows += [
            PointRow(
                group=group,
                case=case,
                point=kind.name,
                visibility=VISIBILITIES[0],
                status="fp",
                error=None,
                score=float(predicted.scores[i, k]),
                predicted_seen=bool(predicted.visible[i, k] == SEEN),
                unit=grid.unit,
            )
            for i in np.flatnonzero(predicted.visible[:, k] > 0).tolist()
            if i not in taken
        ]
    return rows


def summarise_points(
    rows: Sequence[PointRow], *, rng: np.random.Generator, radii: Sequence[float] | None = None
) -> list[PointSummary]:
    """Return what the rows come to, all together, by type and by visibility; nothing for no row.

    Args:
        rows: Of one unit.
        rng: Of the bootstrap over groups.
        radii: Of success rates; None for `RADII`.

    Raises:
        ValueError: Some are in mm and some in px.
    """
    if not rows:
        return []
    if len({row.unit for row in rows}) > 1:
        raise ValueError("points in mm and in px cannot share a table")
    within = RADII[rows[0].unit] if radii is None else tuple(radii)
    strata: dict[str, list[PointRow]] = {"all": list(rows)}
    for row in rows:
        strata.setdefault(f"point = {row.point}", []).append(row)
    for name in ("seen", "hidden"):
        of_name = [row for row in rows if row.visibility == name]
        if of_name:
            strata[f"visibility = {name}"] = of_name
    return [_summary(name, own, rng, within) for name, own in strata.items()]


def landmark_quality(rows: Sequence[PointRow]) -> float:
    """Return one number for places and detections, as panoptic quality is of masks.

    Points count as detected within the largest of `RADII`, R. The sum of ``1 - error / R`` over these, divided by their
    number and half of the false positives and false negatives: 1 if all is exact, 0 if nothing is detected.

    Args:
        rows: All in mm or all in px; the quality of an empty list is 0.
    """
    if not rows:
        return 0.0
    reach = RADII[rows[0].unit][-1]
    errors = [row.error for row in rows if row.error is not None and row.error <= with_slack(reach)]
    references = sum(row.status != "fp" for row in rows)
    predicted = sum(row.status != "fn" for row in rows)
    return float(sum(max(0.0, 1 - error / reach) for error in errors) / ((references + predicted) / 2))


def best_point_threshold(
    cases: Sequence[tuple[Landmarks, Landmarks, Grid]], *, least: int = LEAST_REFERENCES
) -> float | None:
    """Return the score threshold of landmarks at which `landmark_quality` is best; of equals the highest.

    Points are paired anew at each threshold, since a point that is left out leaves its partner to another. Of many
    distinct scores so many quantiles are tried as `_TRIED` says.

    Args:
        cases: Predicted points down to the lowest score that a threshold may have, true points, and their grid.
        least: References that a threshold needs.

    Returns:
        As `choose_thresholds` rounds it; None if there are fewer references, or if no point is near its reference.
    """
    references = sum(int((truth.visible > 0).sum()) for _, truth, _ in cases)
    scores = np.unique(np.concatenate([np.zeros(0), *(p.scores[p.visible > 0] for p, _, _ in cases)]))[::-1]
    if references < least or not len(scores):
        return None
    tried = scores[np.unique(np.linspace(0, len(scores) - 1, _TRIED).round().astype(int))]
    qualities = [
        landmark_quality(
            [row for p, truth, grid in cases for row in point_rows(p.at_least(t), truth, grid=grid)]
        )
        for t in tried.tolist()
    ]
    best = int(np.argmax(qualities))
    if not qualities[best]:
        return None
    below = scores[scores < tried[best]]
    return between(float(tried[best]), *below[:1].tolist())


def success_radius(metric: str, unit: str) -> float | None:
    """Return the radius of a metric such as ``success_5px``, in ``unit``; None if it is another metric.

    >>> success_radius("success_2.5mm", "mm"), success_radius("success_2.5mm", "px"), success_radius("dice", "px")
    (2.5, None, None)
    """
    stated = re.fullmatch(rf"success_(\d+(?:\.\d+)?){unit}", metric)
    return float(stated[1]) if stated and float(stated[1]) > 0 else None


def visibility_f1(rows: Sequence[PointRow], visibility: Literal["seen", "hidden"] = "seen") -> float | None:
    """Return F1 of a visibility: a point that has it and is said to have it is right; None if none is either."""
    says = [_VISIBILITY[row.predicted_seen] if row.score is not None else "absent" for row in rows]
    right = sum(said == visibility == row.visibility for said, row in zip(says, rows, strict=True))
    either = says.count(visibility) + sum(row.visibility == visibility for row in rows)
    return 2 * right / either if either else None


def _summary(
    name: str, rows: Sequence[PointRow], rng: np.random.Generator, radii: Sequence[float]
) -> PointSummary:
    paired = [row for row in rows if row.error is not None]
    errors = np.array([row.error for row in paired], np.float64)
    references = sum(row.status != "fp" for row in rows)
    interval, seen = None, visibility_f1(rows)
    if paired:
        interval = bootstrap_means({"error": errors}, [row.group for row in paired], rng=rng)["error"]
    return PointSummary(
        stratum=name,
        unit=rows[0].unit,
        counts={status: sum(row.status == status for row in rows) for status in ("tp", "fn", "fp")},
        radial_error=interval,
        median=float(np.median(errors)) if paired else None,
        sd=float(errors.std(ddof=1)) if len(paired) > 1 else None,
        success={r: float((errors <= with_slack(r)).sum() / references) for r in radii} if references else {},
        visibility_f1=1.0 if seen is None else seen,
        hidden_f1=visibility_f1(rows, "hidden"),
    )


def _distances(ours: NDArray[np.float64], theirs: NDArray[np.float64], grid: Grid) -> NDArray[np.float64]:
    apart: NDArray[np.float64] = np.linalg.norm(
        grid.to_world(ours)[:, None] - grid.to_world(theirs)[None], axis=2
    )
    return apart

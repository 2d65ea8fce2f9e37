"""Calibration errors before and after scaling, on units that the scaling was not fitted on, with intervals."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from clearmargin.metrics.calibration import Reliability
from clearmargin.metrics.detection_calibration import detection_calibration_error
from clearmargin.metrics.statistics import Interval, bootstrap_statistic
from clearmargin.uncertainty.calibration import Calibration
from clearmargin.uncertainty.observed import ObservedCase, PixelCounts

__all__ = ["ERRORS", "Reliabilities", "Scaled", "pixel_errors", "score_errors"]

T = TypeVar("T")

ERRORS: dict[str, Callable[[Reliability], float]] = {
    "ECE": lambda counts: counts.ece(),
    "ACE": lambda counts: counts.ace(),
    "MCE": lambda counts: counts.mce(),
    "Brier": lambda counts: counts.brier().score,
}


@dataclass(frozen=True, kw_only=True)
class Scaled:
    """A calibration error before and after scaling, intervals over units.

    Attributes:
        what: Of which probabilities.
        number: Which error.
        before: As predicted.
        after: Scaled.
        change: After less before, paired.
    """

    what: str
    number: str
    before: Interval
    after: Interval
    change: Interval


@dataclass(frozen=True, kw_only=True)
class Reliabilities:
    """Counts before and after scaling, for a diagram."""

    what: str
    before: Reliability
    after: Reliability


@dataclass(frozen=True, kw_only=True)
class _Scores:
    """The instances of one case: scores before and after, whether right, relative sizes."""

    before: NDArray[np.float64]
    after: NDArray[np.float64]
    right: NDArray[np.bool_]
    sizes: NDArray[np.float64]


def score_errors(
    calibration: Calibration, cases: Sequence[ObservedCase], rng: np.random.Generator, resamples: int
) -> tuple[list[Reliabilities], list[Scaled]]:
    """Return the errors of the scores of all instances and of the kept ones, of these the D-ECE as well.

    Nothing where no instance was predicted.
    """
    diagrams, rows = [], []
    units = [case.unit for case in cases]
    for what, least in (("scores, all instances", 0.0), ("scores, kept instances", calibration.threshold)):
        tables = [_scores(case, calibration, least) for case in cases]
        if not sum(len(table.right) for table in tables):
            continue
        before, after = _merged(tables, "before"), _merged(tables, "after")
        diagrams.append(Reliabilities(what=what, before=before, after=after))
        for name, error in ERRORS.items():
            rows.append(_compared(what, name, partial(_cells_error, error), tables, units, rng, resamples))
        rows.append(_compared(what, "D-ECE", _detection_error, tables, units, rng, resamples))
    return diagrams, rows


def pixel_errors(
    before: Mapping[str, PixelCounts],
    after: Mapping[str, PixelCounts],
    rng: np.random.Generator,
    resamples: int,
) -> tuple[list[Reliabilities], list[Scaled]]:
    """Return the errors of pixels, all and near the edge; nothing where there is no foreground map.

    Args:
        before: By unit.
        after: By unit, scaled.
        rng: Of the resamples.
        resamples: Of each interval.
    """
    diagrams, rows = [], []
    units = list(before)
    for what, part in (("pixels, all", "every"), ("pixels near the edge", "band")):
        pairs = [(getattr(before[unit], part), getattr(after[unit], part)) for unit in units]
        if not sum(pair[0].total for pair in pairs):
            continue
        whole = [Reliability.together(pair[k] for pair in pairs) for k in range(2)]
        diagrams.append(Reliabilities(what=what, before=whole[0], after=whole[1]))
        for name, error in ERRORS.items():
            number = partial(_pixels_error, error)
            rows.append(_compared(what, name, number, pairs, units, rng, resamples))
    return diagrams, rows


def _scores(case: ObservedCase, calibration: Calibration, least: float) -> _Scores:
    chosen = [one for one in case.instances if one.score >= least]
    before = np.array([one.score for one in chosen], np.float64)
    return _Scores(
        before=before,
        after=before if calibration.scores is None else calibration.scores.apply(before).astype(np.float64),
        right=np.array([one.matched for one in chosen], bool),
        sizes=np.array([one.relative_size for one in chosen], np.float64),
    )


def _merged(sample: Sequence[_Scores], side: str) -> Reliability:
    return Reliability.of(
        np.concatenate([getattr(one, side) for one in sample]), np.concatenate([one.right for one in sample])
    )


def _cells_error(error: Callable[[Reliability], float], sample: Sequence[_Scores], side: str) -> float:
    return error(_merged(sample, side))


def _pixels_error(
    error: Callable[[Reliability], float], sample: Sequence[tuple[Reliability, Reliability]], side: str
) -> float:
    return error(Reliability.together(pair[side == "after"] for pair in sample))


def _detection_error(sample: Sequence[_Scores], side: str) -> float:
    said, right, sizes = (
        np.concatenate([getattr(one, name) for one in sample]) for name in (side, "right", "sizes")
    )
    return detection_calibration_error(said, right, sizes)


def _compared(
    what: str,
    name: str,
    number: Callable[[Sequence[T], str], float],
    tables: Sequence[T],
    units: Sequence[str],
    rng: np.random.Generator,
    resamples: int,
) -> Scaled:
    def interval(statistic: Callable[[Sequence[T]], float]) -> Interval:
        return bootstrap_statistic(statistic, tables, units, rng=rng, resamples=resamples)

    return Scaled(
        what=what,
        number=name,
        before=interval(lambda sample: number(sample, "before")),
        after=interval(lambda sample: number(sample, "after")),
        change=interval(lambda sample: number(sample, "after") - number(sample, "before")),
    )

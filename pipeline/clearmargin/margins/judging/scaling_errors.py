"""Calibration errors before and after scaling, on groups that the scaling was not fitted on, with intervals."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from clearmargin.core import Thresholds
from clearmargin.margins.calibration import Calibration
from clearmargin.margins.observations import ObservedCase, PixelCounts
from clearmargin.metrics.calibration import Reliability
from clearmargin.metrics.detection_calibration import detection_calibration_error
from clearmargin.metrics.intervals import Interval, bootstrap_statistics

__all__ = ["ERRORS", "Reliabilities", "Scaled", "pixel_errors", "score_errors"]

T = TypeVar("T")
_SIDES = ("before", "after")

ERRORS: dict[str, Callable[[Reliability], float]] = {
    "ECE": lambda counts: counts.ece(),
    "ACE": lambda counts: counts.ace(),
    "MCE": lambda counts: counts.mce(),
    "Brier": lambda counts: counts.brier().score,
}


@dataclass(frozen=True, kw_only=True)
class Scaled:
    """A calibration error before and after scaling, intervals over groups.

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
    """Return the errors of the scores of all instances and of the kept ones, the D-ECE as well.

    Nothing where no instance was predicted.
    """
    groups = [case.group for case in cases]
    diagrams: list[Reliabilities] = []
    rows: list[Scaled] = []
    for what, least in (
        ("scores, all instances", Thresholds(0.0)),
        ("scores, kept instances", calibration.thresholds),
    ):
        tables = [_scores(case, calibration, least) for case in cases]
        if sum(len(table.right) for table in tables):
            diagrams.append(_of_scores(what, tables))
            rows += _compared(what, partial(_score_numbers, what), tables, groups, rng, resamples)
    return diagrams, rows


def pixel_errors(
    before: Mapping[str, PixelCounts],
    after: Mapping[str, PixelCounts],
    rng: np.random.Generator,
    resamples: int,
) -> tuple[list[Reliabilities], list[Scaled]]:
    """Return the errors of pixels, all and near the edge; nothing if there is no foreground map.

    Args:
        before: By group.
        after: By group, scaled.
        rng: Random generator for the resamples.
        resamples: Resamples of each interval.
    """
    groups = list(before)
    diagrams: list[Reliabilities] = []
    rows: list[Scaled] = []
    for what, part in (("pixels, all", "every"), ("pixels near the edge", "band")):
        pairs = [(getattr(before[group], part), getattr(after[group], part)) for group in groups]
        if sum(pair[0].total for pair in pairs):
            diagrams.append(_of_pixels(what, pairs))
            rows += _compared(what, partial(_pixel_numbers, what), pairs, groups, rng, resamples)
    return diagrams, rows


def _scores(case: ObservedCase, calibration: Calibration, least: Thresholds) -> _Scores:
    kept = [one for one in case.instances if one.score >= least.of(one.label)]
    before = np.array([one.score for one in kept], np.float64)
    return _Scores(
        before=before,
        after=calibration.scores.apply(before).astype(np.float64),
        right=np.array([one.matched for one in kept], bool),
        sizes=np.array([one.relative_size for one in kept], np.float64),
    )


def _of_scores(what: str, sample: Sequence[_Scores]) -> Reliabilities:
    right = np.concatenate([one.right for one in sample])
    before, after = (np.concatenate([getattr(one, side) for one in sample]) for side in _SIDES)
    return Reliabilities(what=what, before=Reliability.of(before, right), after=Reliability.of(after, right))


def _of_pixels(what: str, sample: Sequence[tuple[Reliability, Reliability]]) -> Reliabilities:
    before, after = (Reliability.together(pair[k] for pair in sample) for k in range(2))
    return Reliabilities(what=what, before=before, after=after)


def _score_numbers(what: str, sample: Sequence[_Scores]) -> dict[tuple[str, str], float]:
    right, sizes = (np.concatenate([getattr(one, name) for one in sample]) for name in ("right", "sizes"))
    errors = _errors(_of_scores(what, sample))
    for side in _SIDES:
        said = np.concatenate([getattr(one, side) for one in sample])
        errors["D-ECE", side] = detection_calibration_error(said, right, sizes)
    return errors


def _pixel_numbers(
    what: str, sample: Sequence[tuple[Reliability, Reliability]]
) -> dict[tuple[str, str], float]:
    return _errors(_of_pixels(what, sample))


def _errors(counts: Reliabilities) -> dict[tuple[str, str], float]:
    return {(name, side): error(getattr(counts, side)) for name, error in ERRORS.items() for side in _SIDES}


def _compared(
    what: str,
    numbers: Callable[[Sequence[T]], dict[tuple[str, str], float]],
    tables: Sequence[T],
    groups: Sequence[str],
    rng: np.random.Generator,
    resamples: int,
) -> list[Scaled]:
    """Return each error before, after, and the change, all of the same resamples."""

    def flat(sample: Sequence[T]) -> dict[str, float]:
        intervals = numbers(sample)
        names = [name for name, side in intervals if side == "before"]
        changes = {f"{name} change": intervals[name, "after"] - intervals[name, "before"] for name in names}
        return {f"{name} {side}": value for (name, side), value in intervals.items()} | changes

    intervals = bootstrap_statistics(flat, tables, groups, rng=rng, resamples=resamples)
    return [
        Scaled(
            what=what,
            number=name,
            before=intervals[f"{name} before"],
            after=intervals[f"{name} after"],
            change=intervals[f"{name} change"],
        )
        for name in (key.removesuffix(" change") for key in intervals if key.endswith(" change"))
    ]

"""Whether what samples say of an edge comes true: predicted NSD against NSD, the standard deviation against HD95."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from clearmargin.margins.calibration import Calibration
from clearmargin.margins.observations import ObservedCase, ObservedInstance

__all__ = ["Expected", "expected_of"]

_PARTS = 5


@dataclass(frozen=True, kw_only=True)
class Expected:
    """A fifth of the matched instances, by what samples say of them.

    Attributes:
        column: What is said: ``predicted_nsd`` (scaled), or ``edge_sd`` in the unit of length.
        measured: What it is held against: ``nsd``, or ``hd95`` in the unit of length.
        part: Number of the part of the instances, from 1 for the least expected.
        n: Instances in it.
        said: Mean of the column.
        found: Mean of the measured.
        spearman: Rank correlation over all parts; None if one of both never varies.
    """

    column: str
    measured: str
    part: int
    n: int
    said: float
    found: float
    spearman: float | None


def expected_of(calibration: Calibration, cases: Sequence[ObservedCase]) -> list[Expected]:
    """Return the fifths of matched instances by predicted NSD and by edge sd; none without samples, or fewer than five.

    Args:
        calibration: Whose threshold, unit of length and scaling of predicted NSD.
        cases: Judged ones.
    """
    matched = [
        one
        for case in cases
        for one in case.instances
        if one.matched and one.score >= calibration.thresholds.of(one.label)
    ]
    edge = f"edge_sd_{calibration.length_unit}"
    rows = _parts(matched, "predicted_nsd", "nsd", calibration) if _has(matched, "predicted_nsd") else []
    return rows + (_parts(matched, edge, "hd95", calibration) if _has(matched, edge) else [])


def _has(matched: Sequence[ObservedInstance], column: str) -> bool:
    return len(matched) >= _PARTS and all(column in one.columns for one in matched)


def _parts(
    matched: Sequence[ObservedInstance], column: str, measured: str, calibration: Calibration
) -> list[Expected]:
    from scipy.stats import spearmanr

    said = np.array([one.columns[column] for one in matched])
    if column == "predicted_nsd" and calibration.nsd is not None:
        said = np.asarray(calibration.nsd.apply(said))
    values = np.array([getattr(one, measured) for one in matched])
    varies = bool(np.ptp(said) and np.ptp(values))
    rank = float(spearmanr(said, values).statistic) if varies else None
    return [
        Expected(
            column=column,
            measured=measured,
            part=k + 1,
            n=len(part),
            said=float(said[part].mean()),
            found=float(values[part].mean()),
            spearman=rank,
        )
        for k, part in enumerate(np.array_split(np.argsort(said, kind="stable"), _PARTS))
    ]

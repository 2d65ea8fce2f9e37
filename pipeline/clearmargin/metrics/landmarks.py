"""Landmarks: how far off, and how many within reach."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from clearmargin.core.reprs import short_repr
from clearmargin.core.slack import with_slack
from clearmargin.metrics.pair import Status

__all__ = ["LandmarkErrors", "landmark_errors"]


@short_repr
@dataclass(frozen=True, kw_only=True, eq=False)
class LandmarkErrors:
    """Radial errors of K landmarks.

    Attributes:
        errors: ``(K,)`` float64, in the points' unit: the distance where both exist, at most the cap; the cap
            for a false negative or a false positive; 0 for a true negative.
        statuses: K of ``tp``, ``fn``, ``fp``, ``tn``.
    """

    errors: NDArray[np.float64]
    statuses: tuple[Status, ...]

    @property
    def mean(self) -> float:
        """Mean radial error over the landmarks that exist or were found; 0 if there are none."""
        counted = np.array([s != "tn" for s in self.statuses], bool)
        return float(self.errors[counted].mean()) if counted.any() else 0.0

    def success_rate(self, tolerance: float) -> float:
        """Return the share of existing landmarks found within ``tolerance`` (inclusive); 1 if none exists."""
        existing = np.array([s in ("tp", "fn") for s in self.statuses], bool)
        hit = np.array([s == "tp" for s in self.statuses], bool) & (self.errors <= with_slack(tolerance))
        return float(hit.sum() / existing.sum()) if existing.any() else 1.0


def landmark_errors(
    predicted: ArrayLike,
    reference: ArrayLike,
    *,
    distance_cap: float,
    detected: Sequence[bool] | None = None,
    existing: Sequence[bool] | None = None,
) -> LandmarkErrors:
    """Return the radial errors of landmarks, one row each, in the same order.

    Args:
        predicted: ``(K, 2)`` or ``(K, 3)`` points, in mm or px.
        reference: Points of the same shape and unit.
        distance_cap: What a false negative or a false positive counts, and the most an error counts.
        detected: Whether each landmark was predicted; None for all.
        existing: Whether each exists in the image; None for all. Rows that do not exist are not read.

    Raises:
        ValueError: The shapes differ, a point that exists is not finite, or the cap is not positive.

    Source: mean radial error and success detection rate, Wang et al., IEEE TMI 2015.
    """
    ours, theirs = np.asarray(predicted, np.float64), np.asarray(reference, np.float64)
    if ours.shape != theirs.shape or ours.ndim != 2 or ours.shape[1] not in (2, 3):
        raise ValueError(f"landmarks are two arrays (K, 2) or (K, 3), not {ours.shape} and {theirs.shape}")
    if not distance_cap > 0:
        raise ValueError(f"a distance cap is positive, not {distance_cap}")
    is_detected = np.ones(len(ours), bool) if detected is None else np.asarray(detected, bool)
    exists = np.ones(len(ours), bool) if existing is None else np.asarray(existing, bool)
    if is_detected.shape != (len(ours),) or exists.shape != (len(ours),):
        raise ValueError(f"detected and existing have one value for each of {len(ours)} landmarks")
    both = is_detected & exists
    apart = np.linalg.norm(ours[both] - theirs[both], axis=1)
    if not np.isfinite(apart).all():
        raise ValueError(
            "a landmark that is detected and exists has finite coordinates; mark absent ones by detected=False"
        )
    errors = np.where(is_detected | exists, float(distance_cap), 0.0)
    errors[both] = np.minimum(apart, distance_cap)
    names: dict[tuple[bool, bool], Status] = {
        (True, True): "tp", (False, True): "fn", (True, False): "fp", (False, False): "tn",
    }  # fmt: skip
    statuses = tuple(names[bool(f), bool(e)] for f, e in zip(is_detected, exists, strict=True))
    return LandmarkErrors(errors=errors, statuses=statuses)

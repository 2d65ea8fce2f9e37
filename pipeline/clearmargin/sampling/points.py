"""The same landmark in different samples of a prediction, and the one point they agree on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clearmargin.core import Landmarks
from clearmargin.core.landmarks import ABSENT, HIDDEN, SEEN

__all__ = ["agreed_points"]

_SAME = 3.0  # standard deviations of the distance of two samples' points, within which they are one


def agreed_points(samples: Sequence[Landmarks]) -> Landmarks:
    """Return the points of all samples, each an object of its own, best score first.

    The point with the best score that is still free begins a cluster, and of each other sample the nearest free one of
    its type joins if it lies within three standard deviations: of the distance, by both covariances. The point is the
    clusters' mean, weighted by score. Its covariance is the mean of the samples' covariances, plus the covariance of
    their points: what each sample is in doubt about, and what they disagree on. Its score is the mean over all
    samples, 0 in one that misses it; it is seen if samples with half of the summed score say so.

    Args:
        samples: One or more, on one grid, of the same types, with covariances, down to low scores.

    Source: the law of total covariance; clusters after `clearmargin.sampling.clusters.find_clusters`.
    """
    singles = [s.singles() for s in samples]
    owner = np.concatenate([np.full(len(s), k) for k, s in enumerate(singles)]).astype(int)
    kinds = [(s.visible > ABSENT).argmax(axis=1) for s in singles]
    types = np.concatenate(kinds).astype(int)

    def column(values: Sequence[NDArray[Any]]) -> NDArray[Any]:
        return np.concatenate([v[np.arange(len(k)), k] for v, k in zip(values, kinds, strict=True)])

    points = column([s.points for s in singles])
    scores = column([s.scores for s in singles])
    seen = column([s.visible == SEEN for s in singles])
    spreads = column([_spreads(s) for s in singles])
    free = np.ones(len(types), bool)
    merged = []
    for seed in np.argsort(-scores, kind="stable").tolist():
        if not free[seed]:
            continue
        members = [seed]
        for k in range(len(samples)):
            others = np.flatnonzero(free & (owner == k) & (types == types[seed]))
            if k == owner[seed] or not len(others):
                continue
            away = points[others] - points[seed]
            both = spreads[others] + spreads[seed]
            apart = np.einsum("ni,ni->n", away, np.linalg.solve(both, away[..., None])[..., 0])
            if apart.min() <= _SAME**2:
                members.append(int(others[apart.argmin()]))
        free[members] = False
        weights = scores[members].astype(np.float64) + 1e-12
        weights /= weights.sum()
        mean = weights @ points[members]
        away = points[members] - mean
        total = np.einsum("n,nij->ij", weights, spreads[members] + away[:, :, None] * away[:, None, :])
        score = float(scores[members].sum(dtype=np.float64)) / len(samples)
        merged.append((score, int(types[seed]), mean, total, bool(weights @ seen[members] >= 0.5)))
    return _landmarks(sorted(merged, key=lambda one: -one[0]), samples[0])


def _spreads(singles: Landmarks) -> NDArray[np.float64]:
    if singles.covariance is None:
        raise ValueError("samples of landmarks have covariances")
    # a spread of nothing has no inverse
    return singles.covariance + 1e-6 * np.eye(singles.ndim)


def _landmarks(
    merged: Sequence[tuple[float, int, NDArray[np.float64], NDArray[np.float64], bool]], like: Landmarks
) -> Landmarks:
    n, k, ndim = len(merged), len(like.types), like.ndim
    points, spread = np.full((n, k, ndim), np.nan), np.full((n, k, ndim, ndim), np.nan)
    visible, scores = np.zeros((n, k), np.int8), np.zeros((n, k), np.float32)
    for i, (score, kind, mean, total, seen) in enumerate(merged):
        points[i, kind], spread[i, kind] = mean, total
        visible[i, kind], scores[i, kind] = SEEN if seen else HIDDEN, min(score, 1.0)
    return Landmarks.of(like.types, points, visible, scores=scores, covariance=spread)

"""How far the samples of one object lie apart: numbers for each instance, and the spread along its edge.

Distances are taken from the agreed mask's edge elements to the nearest face between an element inside and one
outside of a sample's mask, in the grid's unit, negative where the sample holds the element. The image's own edge
is not an edge of an object: what lies beyond it is not known.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from clearmargin.core import EdgeSpread, Grid, Mask
from clearmargin.core.slack import with_slack
from clearmargin.sampling.clusters import Cluster

__all__ = ["TOLERANCE", "Spread", "measure_spread", "pairwise_dice"]

TOLERANCE = 2.0
"""Of the predicted NSD, in the grid's unit: that of ``nsd@2`` in evaluation."""

Points = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, eq=False)
class Spread:
    """What the samples of one object say of it.

    Attributes:
        found_by: Share of the samples that have it with a score at which each would have returned it alone, in [0, 1].
        pairwise_dice: Mean Dice over all pairs of samples; a pair of which one misses it counts 0. 1 for one
            sample, which nothing contradicts.
        edge: Standard deviation of the edge, and where; over the samples that have the object.
        edge_sd: Its mean along the edge, in the grid's unit; 0 if there is none.
        predicted_nsd: Share of the edge within `TOLERANCE` of a sample's edge, a mean over all samples; one that
            misses the object counts 0.
        size: Smallest and largest size among the samples that have it, in elements.
    """

    found_by: float
    pairwise_dice: float
    edge: EdgeSpread
    edge_sd: float
    predicted_nsd: float
    size: tuple[int, int]


def measure_spread(
    cluster: Cluster, agreed: Mask, grid: Grid, *, thresholds: Sequence[float] | None = None
) -> Spread:
    """Return what the samples of one object say of it.

    Args:
        cluster: The object in all samples.
        agreed: Its agreed mask.
        grid: That all masks lie on.
        thresholds: Each sample's own score threshold; None for 0.
    """
    masks = cluster.found
    count = len(cluster.masks)
    points = _edge_elements(agreed)
    steps = np.asarray(grid.spacing)
    own = _signed(points, agreed, steps)
    places = np.array([_signed(points, mask, steps) for mask in masks]).reshape(len(masks), len(points))
    places = places[np.isfinite(places).all(axis=1)]  # a mask that fills the image has no edge
    sigma = places.std(axis=0, ddof=1) if len(places) > 1 else np.zeros(len(points))
    near = np.abs(places - own) <= with_slack(TOLERANCE)
    areas = [mask.area for mask in masks]
    own_thresholds = np.zeros(count) if thresholds is None else np.asarray(thresholds)
    has = np.array([mask is not None for mask in cluster.masks])
    return Spread(
        found_by=float(np.mean(has & (cluster.scores >= own_thresholds - 1e-6))),
        pairwise_dice=pairwise_dice(cluster.masks),
        edge=EdgeSpread(points=points, sigma=sigma),
        edge_sd=float(sigma.mean()) if len(sigma) else 0.0,
        predicted_nsd=float(near.mean(axis=1).sum() / count) if near.size else len(masks) / count,
        size=(min(areas), max(areas)),
    )


def pairwise_dice(masks: Sequence[Mask | None]) -> float:
    """Return the mean Dice over all pairs of samples of one object; None is a sample that misses it.

    A pair of which one misses the object counts 0, and so does one of which both do. 1 for a single sample.

    Source: Roy et al., "Bayesian QuickNAT", NeuroImage 2019.
    """
    pairs = list(combinations(masks, 2))
    if not pairs:
        return 1.0
    dices = [2 * a.intersection(b) / (a.area + b.area) for a, b in pairs if a is not None and b is not None]
    return float(sum(dices) / len(pairs))


def _edge_elements(mask: Mask) -> Points:
    """Return the indices of the elements with a face to one outside, ``(K, ndim)``."""
    held, start = _with_rim(mask)
    edge = np.zeros(held.shape, bool)
    for axis in range(held.ndim):
        low, high = _neighbours(axis)
        change = held[low] != held[high]
        edge[low] |= change & held[low]
        edge[high] |= change & held[high]
    points: Points = np.argwhere(edge) + start
    return points


def _faces(mask: Mask) -> Points:
    """Return the centres of the faces between inside and outside, ``(F, ndim)`` array indices."""
    held, start = _with_rim(mask)
    spreads = []
    for axis in range(held.ndim):
        low, high = _neighbours(axis)
        faces = np.argwhere(held[low] != held[high]) + start
        faces[:, axis] += 0.5
        spreads.append(faces)
    return np.concatenate(spreads)


def _signed(points: Points, mask: Mask, steps: Points) -> Points:
    """Return each point's distance to a mask's edge, negative inside, ``(K,)``; infinite where it has none."""
    from scipy.spatial import cKDTree

    faces = _faces(mask)
    if not len(faces):
        return np.full(len(points), np.inf)
    distances, _ = cKDTree(faces * steps).query(points * steps)
    inside = np.zeros(len(points), bool)
    index = points.astype(np.int64) - np.asarray(mask.origin)
    within = np.all((index >= 0) & (index < mask.crop.shape), axis=1)
    inside[within] = mask.crop[tuple(index[within].T)]
    signed: Points = np.where(inside, -distances, distances)
    return signed


def _with_rim(mask: Mask) -> tuple[NDArray[np.bool_], Points]:
    """Return the mask's crop with one element around it, where the grid has one, and its first index."""
    box = tuple(
        slice(max(s.start - 1, 0), min(s.stop + 1, n)) for s, n in zip(mask.slices, mask.shape, strict=True)
    )
    return mask.within(box), np.array([s.start for s in box], np.float64)


def _neighbours(axis: int) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
    before = (slice(None),) * axis
    return (*before, slice(None, -1)), (*before, slice(1, None))

"""Distances between surfaces: functions from a pair to a number in the grid's unit.

All of them read the distances that the pair computes once. Where a mask is empty there are no distances: a
true negative counts as perfect, a miss or a false positive as the pair's distance cap (and NSD 0).
"""

from __future__ import annotations

from clearmargin.metrics.pair import MaskPair

__all__ = ["assd", "hausdorff", "hd95", "masd", "nsd", "surface_bias"]


def hausdorff(pair: MaskPair) -> float:
    """Return the Hausdorff distance: the largest distance of any surface element to the other surface.

    Both empty: 0. One empty: the distance cap.

    Source: Huttenlocher et al., IEEE TPAMI 1993; on the surface elements of surface-distance.
    """
    if pair.either_empty:
        return _empty_distance(pair)
    predicted, reference = pair.surfaces
    return min(max(predicted.maximum, reference.maximum), pair.distance_cap)


def hd95(pair: MaskPair) -> float:
    """Return the 95th-percentile symmetric Hausdorff distance, in the grid's unit.

    The larger of the two directed 95th percentiles, each over surface area; other tools pool both directions
    first, or count voxels, and so give other numbers (docs/metrics.md, "HD95").
    Both empty: 0. One empty: the distance cap.

    Source: Maier-Hein et al., "Metrics reloaded", Nature Methods 2024; surface-distance.
    """
    if pair.either_empty:
        return _empty_distance(pair)
    return min(max(side.percentile(95) for side in pair.surfaces), pair.distance_cap)


def assd(pair: MaskPair) -> float:
    """Return the average symmetric surface distance: the mean over both surfaces' area together.

    Both empty: 0. One empty: the distance cap.

    Source: Heimann et al., IEEE TMI 2009, weighted by area as in surface-distance.
    """
    if pair.either_empty:
        return _empty_distance(pair)
    predicted, reference = pair.surfaces
    area = predicted.total + reference.total
    total = predicted.mean * predicted.total + reference.mean * reference.total
    return min(total / area, pair.distance_cap) if area else 0.0


def masd(pair: MaskPair) -> float:
    """Return the mean average surface distance: the mean of the two directed means.

    Both empty: 0. One empty: the distance cap.

    Source: Maier-Hein et al., "Metrics reloaded", Nature Methods 2024; surface-distance.
    """
    if pair.either_empty:
        return _empty_distance(pair)
    predicted, reference = pair.surfaces
    return min((predicted.mean + reference.mean) / 2, pair.distance_cap)


def surface_bias(pair: MaskPair) -> float:
    """Return how far the predicted surface lies outside the reference's on average; negative where inside.

    Mean over both surfaces' area of the distance, counted positive where the prediction is the outer one: 2
    for a sphere drawn 2 mm too large all around. 0 may hide errors that cancel: read it beside ASSD. Both
    empty: 0. False positive: plus the distance cap. False negative: minus the distance cap.

    Source: the signed distance of Heimann et al., IEEE TMI 2009, taken from both surfaces.
    """
    if pair.either_empty:
        return {"tn": 0.0, "fp": pair.distance_cap, "fn": -pair.distance_cap}[pair.status]
    predicted, reference = pair.surfaces
    area = predicted.total + reference.total
    outward = (predicted.distances * predicted.sides) @ predicted.areas
    inward = (reference.distances * reference.sides) @ reference.areas
    value = float(outward - inward) / area if area else 0.0
    return max(-pair.distance_cap, min(value, pair.distance_cap))


def nsd(pair: MaskPair, tolerance: float) -> float:
    """Return the normalised surface distance (surface Dice), in [0, 1], at a tolerance in the grid's unit.

    The share of both surfaces' area that lies within ``tolerance`` (inclusive) of the other surface.
    Both empty: 1. One empty: 0.

    Raises:
        ValueError: The tolerance is negative.

    Source: Nikolov et al., JMIR 2021; surface-distance.
    """
    if tolerance < 0:
        raise ValueError(f"a tolerance is at least 0, not {tolerance}")
    if pair.either_empty:
        return float(pair.status == "tn")
    predicted, reference = pair.surfaces
    area = predicted.total + reference.total
    return (predicted.area_within(tolerance) + reference.area_within(tolerance)) / area if area else 1.0


def _empty_distance(pair: MaskPair) -> float:
    return 0.0 if pair.status == "tn" else pair.distance_cap

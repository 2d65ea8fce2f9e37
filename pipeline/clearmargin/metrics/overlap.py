"""Overlap, size and place of one object: functions from a pair to a number."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from clearmargin.metrics.diameters import feret_diameter
from clearmargin.metrics.pair import MaskPair

__all__ = [
    "centroid_error",
    "diameter_error",
    "dice",
    "iou",
    "precision",
    "recall",
    "relative_volume_error",
    "volume_error",
]


def dice(pair: MaskPair) -> float:
    """Return the Dice coefficient, in [0, 1]: 2 |P n R| / (|P| + |R|).

    Both empty: 1. One empty: 0.

    Source: Dice, Ecology 1945; Maier-Hein et al., "Metrics reloaded", Nature Methods 2024.
    """
    total = pair.predicted_count + pair.reference_count
    return 2 * pair.intersection_count / total if total else 1.0


def iou(pair: MaskPair) -> float:
    """Return intersection over union (Jaccard index), in [0, 1].

    Both empty: 1. One empty: 0.

    Source: Jaccard, New Phytologist 1912.
    """
    union = pair.predicted_count + pair.reference_count - pair.intersection_count
    return pair.intersection_count / union if union else 1.0


def precision(pair: MaskPair) -> float:
    """Return the share of the prediction that lies in the reference, in [0, 1].

    Both empty: 1. One empty: 0.

    Source: Maier-Hein et al., 2024 (positive predictive value of elements).
    """
    if pair.either_empty:
        return float(pair.status == "tn")
    return pair.intersection_count / pair.predicted_count


def recall(pair: MaskPair) -> float:
    """Return the share of the reference that the prediction covers, in [0, 1].

    Both empty: 1. One empty: 0.

    Source: Maier-Hein et al., 2024 (sensitivity of elements).
    """
    if pair.either_empty:
        return float(pair.status == "tn")
    return pair.intersection_count / pair.reference_count


def volume_error(pair: MaskPair) -> float:
    """Return predicted minus reference volume (area, in the plane), in cubed (squared) units of the grid.

    Both empty: 0. One empty: the other's volume, negative for a miss.

    Source: by definition; volumes count elements times ``Grid.voxel_size``.
    """
    return (pair.predicted_count - pair.reference_count) * pair.grid.voxel_size


def relative_volume_error(pair: MaskPair) -> float:
    """Return the volume error as a fraction of the reference's volume.

    Both empty: 0. False negative: -1. False positive: +1, by convention, as the quotient has no value there.

    Source: Heimann et al., IEEE TMI 2009 (signed, as a fraction instead of per cent).
    """
    if not pair.reference_count:
        return float(pair.predicted_count > 0)
    return (pair.predicted_count - pair.reference_count) / pair.reference_count


def diameter_error(pair: MaskPair) -> float:
    """Return predicted minus reference largest diameter (Feret), in the grid's unit.

    The diameter is the largest distance between two outer corners of elements, in space, not in one slice.
    Both empty: 0. One empty: the other's diameter, negative for a miss.

    Source: by definition; clinical one-slice diameters (Eisenhauer et al., RECIST 1.1, 2009) are at most as
    large.
    """
    ours, theirs = (
        feret_diameter(_measured(pair, m), pair.spacing) for m in (pair.predicted, pair.reference)
    )
    return ours - theirs


def centroid_error(pair: MaskPair) -> float:
    """Return the distance between the centres of mass, in the grid's unit, at most the pair's distance cap.

    Both empty: 0. One empty: the distance cap.

    Source: by definition.
    """
    if pair.either_empty:
        return 0.0 if pair.status == "tn" else pair.distance_cap
    centres = [_centroid(_measured(pair, mask)) for mask in (pair.predicted, pair.reference)]
    apart = (centres[0] - centres[1]) * pair.spacing
    return min(math.hypot(*apart), pair.distance_cap)


def _measured(pair: MaskPair, mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    return mask if pair.ignored is None else mask & ~pair.ignored


def _centroid(mask: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Return the mean index along each axis from the axis' profile: no list of points is made."""
    centre = np.empty(mask.ndim)
    for axis in range(mask.ndim):
        others = tuple(a for a in range(mask.ndim) if a != axis)
        profile = np.count_nonzero(mask, axis=others)
        centre[axis] = profile @ np.arange(len(profile)) / profile.sum()
    return centre

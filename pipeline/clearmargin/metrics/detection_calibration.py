"""Whether the score of a detection says how likely it is right."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from clearmargin.core import InstanceSet
from clearmargin.metrics.matching import match_instances

__all__ = ["detection_calibration_error", "detection_outcomes"]


def detection_outcomes(
    predicted: InstanceSet, reference: InstanceSet, *, iou_threshold: float = 0.5
) -> tuple[NDArray[np.float64], NDArray[np.bool_], NDArray[np.float64]]:
    """Return score, whether it is right, and relative size of each predicted instance of an image.

    It is right where it matches a reference at ``iou_threshold`` (`match_instances`). Predictions in the
    ignored region are left out. The relative size is that of the mask over that of the image, each to the
    power 1 / dimensions, so that it is a ratio of lengths.
    """
    matches = match_instances(predicted, reference, iou_threshold=iou_threshold)
    kept = np.setdiff1d(np.arange(len(predicted)), matches.ignored)
    right = np.isin(kept, matches.pairs[:, 0])
    areas = np.array([predicted.masks[i].area for i in kept], np.float64)
    sizes = (areas / np.prod(predicted.grid.shape)) ** (1 / predicted.grid.ndim)
    return predicted.scores[kept].astype(np.float64), right, sizes


def detection_calibration_error(
    scores: ArrayLike, right: ArrayLike, sizes: ArrayLike | None = None, *, bins: int = 10
) -> float:
    """Return the D-ECE: the mean gap of score and precision over bins of score, or of score and size.

    Args:
        scores: ``(n,)`` in [0, 1], over all images.
        right: ``(n,)`` bool.
        sizes: ``(n,)`` in [0, 1], `detection_outcomes`; None for bins of the score alone.
        bins: Of equal width, along each of the two.

    Returns:
        0 to 1; 0 for no detection. With sizes it is at least the D-ECE of the score alone.

    Source: Küppers et al., "Multivariate confidence calibration for object detection", CVPR workshops 2020.
    """
    said, came_true = np.asarray(scores, np.float64), np.asarray(right).astype(bool)
    columns = [said] if sizes is None else [said, np.asarray(sizes, np.float64)]
    if any(column.shape != came_true.shape for column in columns):
        raise ValueError("scores, outcomes and sizes have one length")
    if not said.size:
        return 0.0
    if not all(column.min() >= 0 and column.max() <= 1 for column in columns):
        raise ValueError("scores and relative sizes lie in [0, 1]")
    cell = np.zeros(len(said), np.int64)
    for column in columns:
        cell = cell * bins + np.maximum(np.ceil(column * bins - 1e-9).astype(np.int64) - 1, 0)
    return float(np.abs(np.bincount(cell, said - came_true)).sum() / len(said))

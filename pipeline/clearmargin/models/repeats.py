"""Second looks at one object, which a network may return beside the first."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from clearmargin.core import InstanceSet, Mask
from clearmargin.metrics.matching import iou_matrix

__all__ = ["first_looks", "without_repeats"]


def without_repeats(instances: InstanceSet, mask_nms: float) -> InstanceSet:
    """Return the instances, best score first, less those that repeat a better one of their label.

    A repeat has a mask IoU above ``mask_nms`` with an instance that is kept. Objects may still overlap and nest.
    """
    return instances.select(first_looks(instances.masks, instances.labels, instances.scores, mask_nms))


def first_looks(
    masks: Sequence[Mask], labels: NDArray[np.int64], scores: NDArray[np.float32], mask_nms: float
) -> NDArray[np.int64]:
    """Return the positions of ``without_repeats``, for N masks with ``(N,)`` labels and scores."""
    order = np.argsort(-scores, kind="stable")
    ious = iou_matrix(masks, masks, labels[:, None] == labels)
    kept: list[int] = []
    for i in order:
        if not kept or ious[i, kept].max() <= mask_nms:
            kept.append(int(i))
    return np.array(kept, np.int64)

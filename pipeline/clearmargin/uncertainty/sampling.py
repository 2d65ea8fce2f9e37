"""Samples of a prediction by test-time augmentation: the network looks again, mirrored and at other scales."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from clearmargin.core import Image, InstanceSet, Prediction
from clearmargin.models.segmenter import NetworkSegmenter, View
from clearmargin.uncertainty.maps import MAPS, Moments

__all__ = ["TTA_VIEWS", "predict_with_tta"]

TTA_VIEWS: tuple[View, ...] = (
    View(),
    View(flip=(False, True)),
    View(flip=(True, False)),
    View(flip=(True, True)),
    View(zoom=0.85),
    View(zoom=1.2),
)
"""The first is the image as it is: the instances come from it. Each is undone exactly."""

_REPORTED = ("foreground", "entropy")


def predict_with_tta(
    segmenter: NetworkSegmenter, image: Image, views: tuple[View, ...] = TTA_VIEWS
) -> Prediction:
    """Segment an image and map where the views of it disagree.

    Args:
        segmenter: A network's.
        image: As the segmenter takes it.
        views: The first gives the instances; all of them give the maps.

    Returns:
        The segmenter's own prediction with the maps ``foreground`` (mean probability) and ``entropy``
        (predictive entropy, bits) on the image's grid, and for each instance ``mean_entropy`` over its mask.
    """
    parts: list[InstanceSet] = []
    maps = {name: np.zeros(image.grid.shape, np.float32) for name in _REPORTED}
    walks = [segmenter.detect(image, view) for view in views]
    # All views of one plane are taken before the next plane: the memory is a plane's, not a volume's times views.
    for z, looks in enumerate(zip(*walks, strict=True)):
        moments = Moments.zeros(looks[0].plane.grid.shape)
        for look in looks:
            moments.add(look.foreground())
        parts.append(looks[0].instances(segmenter.choice.mask_nms))
        for name in _REPORTED:
            plane = maps[name] if image.grid.ndim == 2 else maps[name][z]
            plane[...] = MAPS[name](moments)
    instances = segmenter.merge(parts, image)
    column = _mean_within(instances, maps["entropy"])
    return segmenter.predicted(replace(instances, uncertainty={"mean_entropy": column}), **maps)


def _mean_within(instances: InstanceSet, values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the mean of a map over each instance's mask, ``(N,)``."""
    return np.array([values[m.slices][m.crop].mean() for m in instances.masks], np.float32)

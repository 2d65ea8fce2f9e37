"""Samples of a prediction by test-time augmentation: the network looks again, mirrored and at other scales."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from clearmargin.core import Image, InstanceSet, Prediction
from clearmargin.models.segmenter import NetworkSegmenter, View
from clearmargin.transforms.view import AugmentSettings
from clearmargin.uncertainty.maps import MAPS, Moments

__all__ = ["predict_with_tta", "tta_views"]

_ZOOM = 1.2


def tta_views(augment: AugmentSettings) -> tuple[View, ...]:
    """Return the views of test-time augmentation, the image as it is first.

    Only what training varied: a network that never saw mirrored anatomy does not know it, and its silence on a
    mirrored view would say nothing about the image. Zooms go as far as training did, and to 1.2 at most.

    >>> len(tta_views(AugmentSettings())), len(tta_views(AugmentSettings(flip_y=False)))
    (8, 6)
    """
    flips = [(y, x) for y in (False, True)[: 1 + augment.flip_y] for x in (False, True)[: 1 + augment.flip_x]]
    most = min(augment.scale, _ZOOM)
    zooms = sorted({most**power for power in (-1.0, -0.5, 0.5, 1.0)} - {1.0})
    return (*(View(flip=flip) for flip in flips), *(View(zoom=zoom) for zoom in zooms))


_REPORTED = ("foreground", "entropy")


def predict_with_tta(
    segmenter: NetworkSegmenter, image: Image, views: tuple[View, ...] | None = None
) -> Prediction:
    """Segment an image and map where the views of it disagree.

    Args:
        segmenter: A network's.
        image: As the segmenter takes it.
        views: The first gives the instances; all of them give the maps. None for ``tta_views`` of the training.

    Returns:
        The segmenter's own prediction with the maps ``foreground`` (mean probability) and ``entropy``
        (predictive entropy, bits) on the image's grid, each the largest over the classes,
        and for each instance ``mean_entropy`` over its mask.
    """
    views = views or tta_views(segmenter.augment)
    classes = len(segmenter.label_map)
    parts: list[InstanceSet] = []
    maps = {name: np.zeros(image.grid.shape, np.float32) for name in _REPORTED}
    walks = [segmenter.detect(image, view) for view in views]
    # All views of one plane are taken before the next plane: the memory is a plane's, not a volume's times views.
    for z, looks in enumerate(zip(*walks, strict=True)):
        moments = Moments.zeros((classes, *looks[0].plane.grid.shape))
        for look in looks:
            moments.add(look.foreground(classes))
        parts.append(looks[0].instances(segmenter.choice.mask_nms))
        for name in _REPORTED:
            plane = maps[name] if image.grid.ndim == 2 else maps[name][z]
            plane[...] = MAPS[name](moments).max(axis=0)
    instances = segmenter.merge(parts, image)
    column = _mean_within(instances, maps["entropy"])
    return segmenter.predicted(replace(instances, uncertainty={"mean_entropy": column}), **maps)


def _mean_within(instances: InstanceSet, values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the mean of a map over each instance's mask, ``(N,)``."""
    return np.array([values[m.slices][m.crop].mean() for m in instances.masks], np.float32)

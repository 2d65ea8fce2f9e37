"""Samples: an image and its instances as a MONAI dictionary, and back.

Instances travel as label layers (``core.layers``), so any MONAI spatial transform can move them beside the
image with ``mode="nearest"``. Resampling can miss an instance of a few pixels; each therefore also carries an
anchor, a pixel of its own, through the same geometry, and one that vanished comes back as its anchor.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, TypedDict

import numpy as np
import torch
from monai.data import MetaTensor
from numpy.typing import NDArray

from clearmargin.core import Grid, Image, InstanceSet, Landmarks, Mask
from clearmargin.core.layers import pack_layers, unpack_layers
from clearmargin.errors import InputError
from clearmargin.transforms.tensors import grid_of, to_tensor

__all__ = ["KEYS", "MODES", "Sample", "anchor_of", "make_sample", "read_instances"]

KEYS = ("image", "layers")
MODES = ("bilinear", "nearest")


class Sample(TypedDict):
    """What MONAI's dictionary transforms see.

    ``image``: MetaTensor ``(C, *spatial)`` float32. ``layers``: MetaTensor ``(L, *spatial)`` float32 holding
    whole numbers, 0 or the instance's position + 1. ``labels``: ``(N,)`` int64. ``anchors``: ``(N, ndim)``
    float64 indices on the source's grid. ``landmarks``: on the source's grid, too; None if there are none.
    """

    image: MetaTensor
    layers: MetaTensor
    labels: NDArray[np.int64]
    anchors: NDArray[np.float64]
    landmarks: Landmarks | None


def make_sample(image: Image, instances: InstanceSet) -> Sample:
    """Return ``image`` and ``instances`` (on its grid) as a sample."""
    if not image.grid.same_as(instances.grid):
        raise ValueError(f"image on {image.grid}, instances on {instances.grid}")
    return Sample(
        image=to_tensor(image.pixels, image.grid),
        # float32 holds whole numbers up to 2**24 exactly, and MONAI resamples it without a copy
        layers=to_tensor(pack_layers(instances), image.grid),
        labels=instances.labels,
        anchors=np.array([anchor_of(m) for m in instances.masks], np.float64).reshape(-1, image.grid.ndim),
        landmarks=instances.landmarks,
    )


def read_instances(sample: Mapping[str, Any], source: Grid) -> InstanceSet:
    """Return the instances of a transformed sample, on its grid, in their first order.

    Args:
        sample: A ``Sample`` after any spatial transforms.
        source: The grid it was made on.

    Returns:
        One instance for each of the source's; those that left the field of view have an empty mask. Landmarks that
        left it are absent.

    Raises:
        InputError: The layers were interpolated.
    """
    layers: MetaTensor = sample["layers"]
    grid, matrix = grid_of(layers, source)
    values = layers.as_tensor()
    if not torch.equal(values, values.round()):
        raise InputError(
            "'layers' was interpolated, and its fractions name nothing: move it with mode='nearest', as in "
            "Spacingd(('image', 'layers', 'ignore'), pixdim=..., mode=('bilinear', 'nearest', 'nearest'))"
        )
    whole = values.to(torch.int32).numpy()
    labels, anchors = np.asarray(sample["labels"], np.int64), np.asarray(sample["anchors"], np.float64)
    instances = unpack_layers(whole, grid, labels, np.ones(len(labels), np.float32))
    masks = list(instances.masks)
    lost = [i for i, mask in enumerate(masks) if mask.area == 0]
    inverse = np.linalg.inv(matrix)
    for i in lost:
        index = np.rint(inverse[:-1, :-1] @ anchors[i] + inverse[:-1, -1]).astype(int)
        if (index >= 0).all() and (index < grid.shape).all():
            masks[i] = Mask.from_crop(
                np.ones((1,) * grid.ndim, bool), tuple(int(k) for k in index), grid.shape
            )
    landmarks: Landmarks | None = sample.get("landmarks")
    if landmarks is not None:
        landmarks = landmarks.moved(np.asarray(inverse, np.float64)).inside(grid.shape)
    return replace(instances, masks=tuple(masks), landmarks=landmarks)


def anchor_of(mask: Mask) -> NDArray[np.float64]:
    """Return the element of the mask that lies nearest its centroid."""
    if mask.area == 0:
        return np.full(len(mask.shape), -1.0)
    elements = np.argwhere(mask.crop)
    nearest = ((elements - elements.mean(axis=0)) ** 2).sum(axis=1).argmin()
    anchor: NDArray[np.float64] = elements[nearest] + np.array(mask.origin, np.float64)
    return anchor

"""Copy-paste: instances of one picture, laid over another."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from clearmargin.core import InstanceSet, Mask

__all__ = ["paste"]


def paste(
    pixels: NDArray[np.float32],
    instances: InstanceSet,
    donor: NDArray[np.float32],
    pasted: InstanceSet,
    *,
    feather: float = 1.0,
    least_share: float = 0.2,
) -> tuple[NDArray[np.float32], InstanceSet]:
    """Return a picture with the donor's instances laid over it, and the instances of both.

    What a pasted instance covers is taken from the masks beneath; the pasted ones stay as they are, also where they
    overlap each other. An instance of which less than ``least_share`` is left is dropped: a rim of a few pixels
    teaches nothing of its class. Its pixels stay, as they do where an instrument hides most of another.

    Args:
        pixels: ``(C, Y, X)``, prepared: in [0, 1].
        instances: On a grid of ``(Y, X)``.
        donor: ``(C, Y, X)``, prepared.
        pasted: Instances of the donor on a grid of the same shape, at the place where they are laid.
        feather: Standard deviation in pixels of the Gaussian that blends the edges, so that no network learns
            the seam; 0 for a sharp edge.
        least_share: In [0, 1].

    Raises:
        ValueError: The shapes differ.

    Source: Ghiasi et al., "Simple Copy-Paste is a Strong Data Augmentation Method for Instance Segmentation",
        CVPR 2021.
    """
    if pixels.shape != donor.shape or instances.grid.shape != pasted.grid.shape:
        raise ValueError(f"pictures {pixels.shape} and {donor.shape} on {instances.grid} and {pasted.grid}")
    cover = np.zeros(instances.grid.shape, bool)
    for mask in pasted.masks:
        cover[mask.slices] |= mask.crop
    share = cover.astype(np.float32)
    if feather:
        share = ndimage.gaussian_filter(share, feather, mode="nearest")
    blended = pixels + share * (donor - pixels)
    left = [_without(mask, cover) for mask in instances.masks]
    kept = np.array(
        [
            new.area > 0 and new.area >= least_share * old.area
            for new, old in zip(left, instances.masks, strict=True)
        ],
        bool,
    )
    beneath = replace(instances, masks=tuple(left)).select(kept)
    return blended, replace(
        beneath,
        masks=(*beneath.masks, *pasted.masks),
        labels=np.concatenate([beneath.labels, pasted.labels]),
        scores=np.concatenate([beneath.scores, pasted.scores]),
        uncertainty={},
    )


def _without(mask: Mask, cover: NDArray[np.bool_]) -> Mask:
    return Mask.from_crop(mask.crop & ~cover[mask.slices], mask.origin, mask.shape)

"""Whether a transform can be trusted with instances: it is tried on a scene whose answer is known, before training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from clearmargin.errors import ConfigError
from clearmargin.transforms.samples import KEYS
from clearmargin.transforms.variation import Step, displaced, make_step

__all__ = ["check_transforms", "distrust"]

_SEEDS = 3
_LEAST_SHOWN = 0.1  # of a window, by the mildest of these seeds


def check_transforms(transforms: Sequence[dict[str, dict[str, Any]]], shape: tuple[int, ...]) -> None:
    """Refuse a configuration's transforms that do not exist, do not fit, or lose or misplace instances.

    Args:
        transforms: ``augment.transforms``.
        shape: Of the training windows, ``(Y, X)`` or ``(Z, Y, X)``.

    Raises:
        ConfigError: With the transform's name and the reason.
    """
    for entry in transforms:
        for name, arguments in entry.items():
            step = make_step(
                name, arguments, ndim=len(shape)
            )  # as it is written; and then as often as can be
            if step.listing.random:
                step = make_step(name, {**arguments, "prob": 1.0}, ndim=len(shape))
            reason = distrust(replace(step, prob=1.0), shape)
            if reason:
                raise ConfigError(f"augment.transforms: {name} is not for training windows: {reason}")


def distrust(step: Step, shape: tuple[int, ...]) -> str | None:
    """Return why a step cannot be trusted on windows of ``shape``, or None.

    It has to give the same window for the same seed, whatever the process has drawn before; and if it moves
    instances, a label has to be what lies, in the window before, at the place that the image's own indices come from.

    Raises:
        ConfigError: It fails, or changes the window's extents.
    """
    image, layers = _scene(shape)
    item = {KEYS[0]: image, KEYS[1]: layers} if step.listing.kind == "spatial" else {KEYS[0]: image}
    changed, shown = False, 0.0
    with torch.random.fork_rng(devices=[]):
        for seed in range(_SEEDS):
            varied = step(item, (seed,))
            torch.manual_seed(seed + 1)
            np.random.seed(seed + 1)  # noqa: NPY002 - what a transform that draws from it would betray itself by
            again = step(item, (seed,))
            if not all(torch.equal(varied[key], again[key]) for key in item):
                return "it does not follow from its seed alone, so that a resumed training would see other windows"
            changed |= not torch.equal(varied[KEYS[0]], image)
            if step.listing.kind == "spatial":
                places = displaced(step, layers, (seed,))
                shown = max(shown, float((places[-1] > 0.5).mean()))
                reason = _misplaced(varied[KEYS[1]], layers, places)
                if reason:
                    return reason
    if step.listing.kind == "spatial" and shown < _LEAST_SHOWN:
        return (
            f"with these arguments at most {100 * shown:.0f} % of the window still shows the image; lengths are in "
            "pixels of the window"
        )
    return None if changed else "with these arguments it changes nothing"


def _scene(shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Return a smooth image and two layers: halves in quarters, and one block within another."""
    rng = np.random.default_rng(0)
    image = ndimage.gaussian_filter(rng.random(shape), 3)
    image = 0.05 + 0.85 * (image - image.min()) / (np.ptp(image) + 1e-9)
    layers: NDArray[np.float32] = np.zeros((2, *shape), np.float32)
    middle = tuple(slice(n // 4, n - n // 4) for n in shape)
    within = tuple(slice(3 * n // 8, n - 3 * n // 8) for n in shape)
    half = (*middle[:-1], slice(shape[-1] // 4, shape[-1] // 2))
    layers[0][middle], layers[0][half] = 1, 2
    layers[1][within] = 3
    return torch.from_numpy(image[None].astype(np.float32)), torch.from_numpy(layers)


def _misplaced(varied: Tensor, layers: Tensor, places: NDArray[np.float32]) -> str | None:
    after, before = varied.numpy(), layers.numpy()
    strange = np.setdiff1d(np.unique(after), np.unique(before))
    if len(strange):
        return f"it makes labels of nothing ({strange[0]:g} between whole ones)"
    indices, inside = places[:-1], places[-1]
    if (after[:, inside < 1e-3] != 0).any():
        return "it draws instances where the image shows nothing"
    sure = inside > 1 - 1e-3
    sources = np.rint(indices[:, sure]).astype(int)
    sources = np.clip(sources, 0, np.array(before.shape[1:])[:, None] - 1)
    wrong = total = 0
    for layer, moved in zip(before, after, strict=True):
        # Within a pixel of an edge either side is right.
        plain = ndimage.maximum_filter(layer, 3) == ndimage.minimum_filter(layer, 3)
        there = plain[tuple(sources)]
        wrong += int((moved[sure][there] != layer[tuple(sources)][there]).sum())
        total += int(there.sum())
    if wrong > 0.001 * total:
        return f"{100 * wrong / total:.1f} % of the labels lie elsewhere than the image that they mark"
    return None

"""Variation of training windows by MONAI's dictionary transforms, in order; instances follow, also those of a pixel."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from monai.transforms.transform import Randomizable
from monai.utils import InterpolateMode
from numpy.typing import NDArray
from torch import Tensor

from clearmargin.core import InstanceSet, Landmarks, Mask
from clearmargin.core.layers import pack_layers, unpack_layers
from clearmargin.errors import ConfigError, TrainingError
from clearmargin.transforms.catalogue import Listing, find, unknown_argument
from clearmargin.transforms.samples import KEYS, anchor_of

__all__ = ["Step", "Variation", "make_step"]

_OURS = ("keys", "allow_missing_keys")
_MODES, _PADDINGS = ("mode", "grid_mode"), ("padding_mode", "grid_padding_mode")
_SEED_OF_STEPS = 2  # the third number of a seed: 0 and 1 are the window's own and its donor's


@dataclass(frozen=True, kw_only=True)
class Step:
    """One transform of a configuration.

    Attributes:
        listing: What it is.
        transform: MONAI's, made.
        prob: Of a transform that is not random itself: how often it is applied. 1 if it draws itself.
    """

    listing: Listing
    transform: Any
    prob: float

    def __call__(self, item: dict[str, Tensor], seed: tuple[int, ...]) -> dict[str, Tensor]:
        """Return the item (``image``, and of a spatial transform ``layers``), varied as ``seed`` alone says.

        Raises:
            ConfigError: The transform fails, or gives another shape.
        """
        state = int(np.random.SeedSequence(seed).generate_state(1)[0])
        if self.prob < 1 and np.random.default_rng(state).random() >= self.prob:
            return item
        if isinstance(self.transform, Randomizable):
            self.transform.set_random_state(seed=state)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of MONAI to its developers
                # some of MONAI's write into what they are given
                varied = self.transform({key: tensor.clone() for key, tensor in item.items()})
        except Exception as error:
            raise ConfigError(
                f"augment.transforms: {self.listing.name} fails on a window of {tuple(item['image'].shape)}: "
                f"{type(error).__name__}: {error}"
            ) from error
        result = {key: torch.as_tensor(varied[key]).as_subclass(Tensor) for key in item}
        for key, tensor in result.items():
            if tensor.shape != item[key].shape:
                raise ConfigError(
                    f"augment.transforms: {self.listing.name} makes a window of {tuple(tensor.shape[1:])} of one of "
                    f"{tuple(item[key].shape[1:])}: windows keep their extents"
                )
        return result


def make_step(name: str, arguments: Mapping[str, Any], *, ndim: int) -> Step:
    """Return a step of a configuration.

    Args:
        name: Of a dictionary transform of MONAI.
        arguments: Of its constructor, less ``keys``; ``prob`` also for one that is not random.
        ndim: 2 for windows of planes, 3 for those of volumes.

    Raises:
        ConfigError: There is no such transform, it is not for windows, or an argument is not one of its.
    """
    listing = find(name)
    options = dict(arguments)
    for argument in options:
        if argument in _OURS or (argument not in listing.parameters and argument != "prob"):
            raise ConfigError(unknown_argument(listing, argument))
    prob = 1.0
    for argument, value in options.items():
        if argument.split("_")[-1] == "prob" and not _is_share(value):
            raise ConfigError(
                f"augment.transforms: {name}: {argument} is a share in (0, 1], not {value}: 1 applies it to each window"
            )
    if not listing.random:
        prob = _own_prob(name, options)
    keys = KEYS if listing.kind == "spatial" else KEYS[:1]
    if listing.kind == "spatial":
        options |= _modes(listing, options, ndim)
    for argument, parameter in listing.parameters.items():
        if parameter.default == InterpolateMode.TRILINEAR and ndim == 2:  # MONAI's defaults are for volumes
            options.setdefault(argument, "bilinear")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            transform = listing.make(keys=keys, **options)
    except Exception as error:
        raise ConfigError(
            f"augment.transforms: {name} does not take these arguments: {type(error).__name__}: {error}"
        ) from error
    return Step(listing=listing, transform=transform, prob=prob)


def _is_share(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value <= 1


def _own_prob(name: str, given: dict[str, Any]) -> float:
    prob = given.pop("prob", None)
    if not isinstance(prob, int | float) or isinstance(prob, bool) or not 0 < prob < 1:
        raise ConfigError(
            f"augment.transforms: {name} is not random: give it a prob between 0 and 1. What every image is to go "
            "through belongs to image.intensity, which prediction sees too"
        )
    return float(prob)


def _modes(listing: Listing, given: Mapping[str, Any], ndim: int) -> dict[str, Any]:
    """Return how a spatial transform reads between pixels, and beyond the edge.

    Raises:
        ConfigError: The configuration says so itself.
    """
    setting = next((name for name in (*_MODES, *_PADDINGS) if name in given), None)
    if setting is not None:
        raise ConfigError(
            f"augment.transforms: {listing.name}: leave out '{setting}': the image is read linearly and instances by "
            "nearest neighbour, and beyond the edge is nothing, since an edge that is mirrored or drawn out would "
            "show objects that no mask has"
        )
    options: dict[str, Any] = {}
    for name, parameter in listing.parameters.items():
        if name in _MODES:
            interpolates = isinstance(parameter.default, InterpolateMode)
            options[name] = ["trilinear" if interpolates and ndim == 3 else "bilinear", "nearest"]
        elif name in _PADDINGS:
            options[name] = "zeros" if _reads_a_grid(listing) else "constant"
    return options


def _reads_a_grid(listing: Listing) -> bool:
    """Return whether it pads as ``grid_sample`` does, and not as ``numpy.pad``."""
    for name in _PADDINGS:
        default = listing.parameters.get(
            name, inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY)
        ).default
        if str(getattr(default, "value", default)) in ("zeros", "border", "reflection"):
            return True
    return False


class Variation:
    """The transforms of a configuration, in order. What they do to a window is a function of the seed alone."""

    def __init__(self, transforms: Sequence[Mapping[str, Mapping[str, Any]]], *, ndim: int) -> None:
        """Make the transforms.

        Args:
            transforms: ``augment.transforms``: a name with its arguments, each.
            ndim: 2 for windows of planes, 3 for those of volumes.

        Raises:
            ConfigError: As of `make_step`.
        """
        self.steps = tuple(
            make_step(name, arguments, ndim=ndim) for step in transforms for name, arguments in step.items()
        )

    def __call__(
        self, pixels: Tensor, instances: InstanceSet, seed: tuple[int, int]
    ) -> tuple[Tensor, InstanceSet]:
        """Return a window varied.

        Args:
            pixels: ``(C, *shape)`` float32 in [0, 1].
            instances: On a grid of ``shape``.
            seed: Of the training, and the window's number.

        Returns:
            The pixels, clipped to [0, 1], and the instances in their order: those that left the window are empty.

        Raises:
            ConfigError: A transform fails on such a window, or changes its extents.
            TrainingError: It gives values that are not finite.
        """
        if not self.steps:
            return pixels, instances
        for number, step in enumerate(self.steps):
            of_step = (*seed, _SEED_OF_STEPS, number)
            if step.listing.kind == "spatial":
                pixels, instances = _move(step, pixels, instances, of_step)
            else:
                pixels = step({KEYS[0]: pixels}, of_step)[KEYS[0]]
            if not torch.isfinite(pixels).all():
                raise TrainingError(
                    f"augment.transforms: {step.listing.name} gave values that are not finite in window {seed[1]}: "
                    "change its arguments"
                )
        return pixels.to(torch.float32).clamp(0, 1), instances


def _move(
    step: Step, pixels: Tensor, instances: InstanceSet, seed: tuple[int, ...]
) -> tuple[Tensor, InstanceSet]:
    layers = torch.from_numpy(pack_layers(instances).astype(np.float32))
    moved = step({KEYS[0]: pixels, KEYS[1]: layers}, seed)
    whole = moved[KEYS[1]].round().to(torch.int32).numpy()
    instances_after = unpack_layers(whole, instances.grid, instances.labels, instances.scores)
    masks = list(instances_after.masks)
    vanished = [
        k for k, (a, b) in enumerate(zip(instances.masks, masks, strict=True)) if a.area and not b.area
    ]
    landmarks = instances.landmarks
    if vanished or landmarks is not None:
        places = displaced(step, layers, seed)
        for k in vanished:
            masks[k] = _at(places, anchor_of(instances.masks[k]), instances.grid.shape)
        if landmarks is not None:
            landmarks = _points_at(places, landmarks)
    return moved[KEYS[0]], replace(instances, masks=tuple(masks), landmarks=landmarks)


def _points_at(places: NDArray[np.float32], landmarks: Landmarks) -> Landmarks:
    """Return landmarks where ``places`` (`displaced`) shows them: between pixels along the slope of the indices there.

    Exact for what maps lines to lines; those that left the window are absent. A transform that mirrors swaps left and
    right.
    """
    inside = places[-1] >= 1 - 1e-4  # at the edge, indices are mixed with what lies beyond
    indices = np.where(inside, places[:-1].astype(np.float64), np.nan)
    slopes = np.stack([np.gradient(one) for one in indices])  # (ndim, ndim, *shape)
    usable = np.isfinite(slopes).all(axis=(0, 1))
    if not usable.any():
        return landmarks.only(np.zeros(landmarks.visible.shape, bool))
    ndim = len(indices)
    along = np.moveaxis(slopes[:, :, usable], -1, 0)  # (pixels, index axis, window axis)
    mirrors = float(np.median(np.linalg.det(along))) < 0
    # its linear part says no more than whether it mirrors; each point is then put where it is shown
    turn = np.eye(ndim + 1)
    turn[0, 0] = -1.0 if mirrors else 1.0
    swapped = landmarks.moved(turn)
    sources = swapped.points @ turn[:-1, :-1]
    points, shown = np.full(sources.shape, np.nan), np.zeros(swapped.visible.shape, bool)
    elements, known = np.argwhere(usable), indices[:, usable]
    for i, k in np.argwhere(swapped.visible > 0):
        nearest = int(((known - sources[i, k][:, None]) ** 2).sum(axis=0).argmin())
        step = np.linalg.solve(along[nearest], sources[i, k] - known[:, nearest])
        if np.abs(step).max() <= 1.5:  # else the window does not show it
            points[i, k], shown[i, k] = elements[nearest] + step, True
    visible = np.where(shown, swapped.visible, 0).astype(np.int8)
    kept = replace(swapped, visible=visible, points=points, covariance=None)
    return kept.inside(places.shape[1:])


def displaced(step: Step, layers: Tensor, seed: tuple[int, ...]) -> NDArray[np.float32]:
    """Return where each pixel of the varied window was before, ``(ndim + 1, *shape)``; the last channel is 1 inside.

    The image's own indices go through the same transform, whatever it is: no transform has to tell of its matrix, and
    an elastic one has none.
    """
    shape = layers.shape[1:]
    indices = np.stack(np.meshgrid(*[np.arange(n, dtype=np.float32) for n in shape], indexing="ij"))
    inside = np.ones((1, *shape), np.float32)
    moved = step({KEYS[0]: torch.from_numpy(np.concatenate([indices, inside])), KEYS[1]: layers}, seed)
    result: NDArray[np.float32] = moved[KEYS[0]].numpy()
    return result


def _at(places: NDArray[np.float32], anchor: NDArray[np.float64], shape: tuple[int, ...]) -> Mask:
    """Return the pixel that shows the anchor as a mask; an empty one if the anchor has left the window."""
    empty = Mask(shape=shape, origin=(0,) * len(shape), crop=np.zeros((0,) * len(shape), bool))
    inside = places[-1] >= 0.5
    if not inside.any():
        return empty
    # A pixel at the edge is in part of what lies beyond, which is 0.
    indices = np.where(inside, places[:-1] / np.maximum(places[-1], 0.5), np.nan)
    away = np.nansum((indices - anchor.reshape(-1, *(1,) * len(shape))) ** 2, axis=0)
    away[~inside] = np.inf
    nearest = tuple(int(k) for k in np.unravel_index(int(away.argmin()), shape))
    # The anchor lies between pixels: no further from the nearest than half the way to its neighbours, on each axis.
    around = indices[(slice(None), *(slice(max(k - 1, 0), k + 2) for k in nearest))]
    steps = [np.abs(np.diff(around, axis=axis)) for axis in range(1, around.ndim) if around.shape[axis] > 1]
    step = max([1.0, *(float(np.nanmax(one, initial=0.0)) for one in steps)])
    if away[nearest] > (0.25 + 0.5 * step * len(shape) ** 0.5) ** 2:
        return empty
    return Mask.from_crop(np.ones((1,) * len(shape), bool), nearest, shape)

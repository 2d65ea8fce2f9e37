"""The window of a volume that a network is trained on, and how its axes are halved: nnU-Net's rules of thumb."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np

from clearmargin.networks.planning import Choice, Facts, Shown

__all__ = ["halvings", "seconds_per_voxel", "window_choices", "window_objection"]

_SMALLEST = 4  # elements of an axis on the deepest level, as in nnU-Net
_LEVELS = 6
_UNIFORM = 1.001  # times that spacings differ, by the rounding of headers alone
_BYTES = 64  # of training memory per voxel and filter of the finest level, float32; measured
_WINDOWS = {"cpu": 1_000, "cuda": 10_000}  # that a training should see
_PASSES = 100  # through the training cases, from which a network is given more filters
_VOXELS = {"cpu": 300_000, "cuda": 4_000_000}  # of a window at most
_FILTERS = {"cpu": (16, 24, 32), "cuda": (32,)}


def seconds_per_voxel(filters: int, device: str) -> float:
    """Return what a voxel of a training window costs one core: loss and gradient of the default network.

    Measured: 0.19, 0.44 and 0.64 s for 40 x 56 x 40 voxels with 16, 24 and 32 filters. A GPU is taken for 200 cores.
    """
    return 2.1e-6 * float((filters / 16) ** 1.8) / (200 if device == "cuda" else 1)


def window_objection(patch: Sequence[int], strides: Sequence[Sequence[int]], levels: int) -> str | None:
    """Return why a window does not fit the levels of a U-shaped network; None if it does."""
    if len(strides) != levels - 1 or {s for one in strides for s in one} - {1, 2}:
        return f"strides are {levels - 1} rows (levels less one) of 1 or 2 for each axis, not {strides}"
    steps = [int(step) for step in np.prod(strides, axis=0)]
    if any(n < step or n % step for n, step in zip(patch, steps, strict=True)):
        return (
            f"with {levels} levels the extents of patch are multiples of {', '.join(map(str, steps))}, not "
            f"{', '.join(map(str, patch))}"
        )
    return None


def halvings(extents: Sequence[float], spacing: Sequence[float]) -> list[tuple[int, ...]]:
    """Return how an axis is halved (2) or not (1) from each level to the next, for a window of ``extents`` voxels.

    An axis is halved while it keeps four elements, and not before the finer ones have come to within twice of
    its spacing.

    Source: Isensee et al., "nnU-Net", Nature Methods 2021.
    """
    sizes, steps = [float(n) for n in extents], [float(s) for s in spacing]
    strides: list[tuple[int, ...]] = []
    while len(strides) < _LEVELS - 1:
        large = [axis for axis, n in enumerate(sizes) if n >= 2 * _SMALLEST]
        if not large:
            break
        finest = min(steps[axis] for axis in large)
        halved = [axis for axis in large if steps[axis] < 2 * finest]
        for axis in halved:
            sizes[axis], steps[axis] = math.ceil(sizes[axis] / 2), 2 * steps[axis]
        strides.append(tuple(2 if axis in halved else 1 for axis in range(len(sizes))))
    return strides


def _padded(extents: Sequence[float], strides: Sequence[tuple[int, ...]]) -> list[int]:
    steps = np.prod(strides, axis=0).tolist() if strides else [1] * len(extents)
    return [step * max(1, math.ceil(n / step)) for n, step in zip(extents, steps, strict=True)]


def _window(
    extents: Sequence[float], spacing: Sequence[float], most: int
) -> tuple[list[int], list[tuple[int, ...]]]:
    """Return the window, and its halvings, that covers ``extents`` or as much of them as ``most`` voxels do."""
    seen = [float(n) for n in extents]
    while True:
        strides = halvings(seen, spacing)
        while len(strides) < 2:  # the network's fewest levels
            strides.append((1,) * len(seen))
        patch = _padded(seen, strides)
        longest = max(range(len(seen)), key=lambda axis: seen[axis] * spacing[axis])
        if math.prod(patch) <= most or seen[longest] <= 2 * _SMALLEST:
            return patch, strides
        seen[longest] = max(2 * _SMALLEST, min(patch[longest] - 1, 0.95 * seen[longest]))


def window_choices(facts: Facts, shown: Shown) -> Iterator[Choice]:
    """Yield voxel size, filters, window, levels and strides of a U-shaped network of volumes.

    As nnU-Net plans: the median spacing; the median volume, or as much of it as the memory takes; axes halved while
    they keep four elements. Where time is short, the window is smaller and the network narrower.
    """
    every = np.column_stack([facts.distances, facts.spacings])
    median = np.median(every, axis=0)
    spread = float((every.max(axis=0) / every.min(axis=0)).max())
    uniform = spread < _UNIFORM
    # of equal volumes the very spacing: they are then seen voxel by voxel
    spacing = [float(s) if uniform else float(round(s, 3)) for s in median]
    extents = np.column_stack([facts.depths, facts.shapes]).astype(float)
    if facts.unit == "mm":
        extents *= every / median
        why = (
            "that of all volumes" if uniform else f"spacings vary {spread:.2g} times: the median of each axis"
        )
        yield Choice("model.spacing_mm", spacing, f"{why}; a volume of other voxels is seen in these")
    middle = np.median(extents, axis=0).tolist()
    budget = None if shown.minutes is None else 60 * shown.minutes * shown.cores
    fits = shown.memory_mb * 2**20 / (2 * _BYTES)
    filters, why = _filters(facts, shown, middle, budget)
    yield Choice("model.filters", filters, why)
    most, limit = min((_VOXELS[shown.device], shown.device), (int(fits / filters), "the memory"))
    if budget is not None:
        affordable = budget / (_WINDOWS[shown.device] * seconds_per_voxel(filters, shown.device))
        most, limit = min((most, limit), (max(32**3, int(affordable)), f"{shown.minutes:g} min"))
    patch, strides = _window(middle, spacing, most)
    size = " x ".join(f"{n:.0f}" for n in middle)
    yield Choice(
        "model.patch", patch, f"volumes are {size} voxels in the median; {limit} allows {most} a window"
    )
    levels = len(strides) + 1
    yield Choice("model.levels", levels, "axes are halved while they keep four voxels, as in nnU-Net")
    if any(1 in one for one in strides):
        yield Choice(
            "model.strides",
            [list(one) for one in strides],
            "an axis is halved once the finer ones are within twice its spacing, and while it keeps four voxels",
        )


def _filters(facts: Facts, shown: Shown, extents: Sequence[float], budget: float | None) -> tuple[int, str]:
    choices = _FILTERS[shown.device]
    if budget is None:
        return choices[0], f"on {shown.device}"
    voxels = min(math.prod(extents) * 1.4, _VOXELS[shown.device])
    passes = {f: budget / (seconds_per_voxel(f, shown.device) * voxels * max(1, facts.of)) for f in choices}
    most = max([f for f in choices if passes[f] >= _PASSES], default=choices[0])
    return most, (
        f"with these about {passes[most]:.0f} passes through {facts.of} volumes in {shown.minutes:g} min"
    )

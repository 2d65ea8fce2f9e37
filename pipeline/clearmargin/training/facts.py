"""What a model keeps of its training data beside the weights: what images are like, and whether objects nest."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from clearmargin.core import Grid, Image, InstanceSet
from clearmargin.core.meeting import meeting
from clearmargin.datasets.cases import Case, Dataset
from clearmargin.datasets.fingerprint import check_channels
from clearmargin.models.domain import Domain, domain_of
from clearmargin.report.progress import counted
from clearmargin.transforms.intensity import narrowest_window
from clearmargin.transforms.settings import Intensity, Percentiles
from clearmargin.transforms.turning import common_codes, turn_to

__all__ = ["Facts", "nested_shares", "take_facts"]

_CASES = 32  # at most, evenly spread
_NESTED = 0.01  # share of a class's objects from which on they are said to nest
_NARROW = 0.05  # share of the images whose windows are widened: an odd one is nearly blank


@dataclass(frozen=True, kw_only=True)
class Facts:
    """Facts of the training data.

    Attributes:
        domain: What the images are like.
        least_width: 5 % quantile of the widths of the percentile windows of images with an instance, in the images'
            values; None if windows are fixed, or no image has an instance.
        nested: Labels of which at least one object in a hundred lies in another of the label.
        axes: Most common order of the axes of volumes (`ImageSettings.axes`); None if there is no volume in mm.
    """

    domain: Domain
    least_width: float | None
    nested: frozenset[int]
    axes: str | None


def take_facts(dataset: Dataset, cases: Sequence[Case], intensity: Intensity, containment: float) -> Facts:
    """Return the facts of at most 32 of the training cases, evenly spread; each is read once.

    Args:
        dataset: Where they are read from.
        cases: At least one.
        intensity: How images are shown to the network.
        containment: Share of an object in another one from which on it lies in it.
    """
    widths: list[float] = []
    objects: dict[int, list[float]] = {}
    grids: list[Grid] = []
    channels: set[int] = set()

    def images() -> Iterator[Image]:
        for case in counted("read training cases", cases[:: math.ceil(len(cases) / _CASES)]):
            image, instances = dataset.read(case)
            check_channels(channels, image)
            if isinstance(intensity, Percentiles) and len(instances):
                widths.append(narrowest_window(image.pixels, intensity))
            for label, share in nested_shares(instances):
                objects.setdefault(label, []).append(share)
            grids.append(image.grid)
            yield image

    domain = domain_of(images())
    axes = common_codes(grids)
    turns = [turn_to(axes, grid) for grid in grids]
    seen_grids = [grid if turn is None else turn.grid for grid, turn in zip(grids, turns, strict=True)]
    seen = [width for width in widths if width > 0]
    return Facts(
        axes=axes,
        domain=domain.with_spacings(seen_grids),
        least_width=float(np.quantile(seen, _NARROW)) if seen else None,
        nested=frozenset(
            label for label, shares in objects.items() if np.mean(np.array(shares) > containment) >= _NESTED
        ),
    )


def nested_shares(instances: InstanceSet) -> list[tuple[int, float]]:
    """Return the label of each instance, and the largest share of it that lies in one larger instance of the label.

    0 for an instance that meets no larger one; of two of one size the later one lies in the earlier.
    """
    masks, labels = instances.masks, instances.labels
    held = [0] * len(masks)
    firsts, seconds = meeting(masks, masks)
    alike = (labels[firsts] == labels[seconds]) & (firsts != seconds)
    for i, j in zip(firsts[alike].tolist(), seconds[alike].tolist(), strict=True):
        if (masks[j].area, -j) > (masks[i].area, -i):
            held[i] = max(held[i], masks[i].intersection(masks[j]))
    shares = [held[i] / mask.area if mask.area else 0.0 for i, mask in enumerate(masks)]
    return [(int(label), share) for label, share in zip(labels, shares, strict=True)]

"""What of the reference instances each kind of a semantic network's targets gives back."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Mapping

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from clearmargin.core import InstanceSet, Mask
from clearmargin.networks.components import connected_components
from clearmargin.networks.cores import CoreMaps, TargetKind
from clearmargin.networks.planning import BORDER

__all__ = ["KINDS", "lost_instances", "near", "touch"]

log = logging.getLogger(__name__)

KINDS: tuple[TargetKind, ...] = ("classes", "distance", "border")
"""Kinds of targets in the order in which they are preferred, if they give back as much (docs/lab/nuclei.md)."""

_GIVEN_BACK = 0.5  # IoU of an instance with what the targets make of it
_MOST = 500_000_000  # elements of the masks of a group that is looked at


def lost_instances(instances: InstanceSet) -> Mapping[TargetKind, int]:
    """Return how many instances are not given back by a network that knew its targets exactly.

    Those that touch another one of their class may be joined; one with a waist, or in pieces, may be several. A group
    of so many that its masks would fill the memory counts as lost for ``classes`` alone, and is logged.
    """
    lost: Counter[TargetKind] = Counter(dict.fromkeys(KINDS, 0))
    for group in _groups(instances):
        low = np.maximum(np.min([m.box[0] for m in group], axis=0) - 1, 0)
        high = np.max([m.box[1] for m in group], axis=0) + 1
        window = tuple(
            slice(int(a), min(int(b), n)) for a, b, n in zip(low, high, instances.grid.shape, strict=True)
        )
        if len(group) * np.prod(high - low) > _MOST:
            log.info("a group of %d objects that touch is too large to try targets on", len(group))
            lost["classes"] += len(group) if len(group) > 1 else 0
            continue
        masks = np.stack([m.within(window) for m in group]).astype(np.uint8)
        for kind in KINDS:
            lost[kind] += len(group) - _given_back(masks, kind, instances.grid.spacing)
    return lost


def _groups(instances: InstanceSet) -> Iterable[list[Mask]]:
    """Yield the instances of one class that touch, directly or by way of others; one that touches none is alone."""
    for label in np.unique(instances.labels):
        masks = [
            m for m, own in zip(instances.masks, instances.labels, strict=True) if own == label and m.area
        ]
        left = set(range(len(masks)))
        while left:
            group, edge = [], [left.pop()]
            while edge:
                group.append(one := edge.pop())
                met = {k for k in left if near(masks[one], masks[k]) and touch(masks[one], masks[k])}
                left -= met
                edge += met
            yield [masks[k] for k in group]


def _given_back(masks: NDArray[np.uint8], kind: TargetKind, spacing: tuple[float, ...]) -> int:
    cores = None
    if kind != "classes":
        encode = CoreMaps(kind=kind, classes=1, border=BORDER)
        cores = encode(masks, np.ones(len(masks), np.int64), spacing)[0]
    components, _ = connected_components(masks.max(axis=0).astype(np.float32), 1, cores)
    free = set(range(len(masks)))
    for component in components:
        place = tuple(
            slice(o, o + n) for o, n in zip(component.origin, component.probabilities.shape, strict=True)
        )
        foreground = component.probabilities >= 0.5
        for k in free:
            truth = masks[k] > 0
            common = int((truth[place] & foreground).sum())
            if common >= _GIVEN_BACK * (int(truth.sum()) + int(foreground.sum()) - common):
                free.remove(k)
                break
    return len(masks) - len(free)


def near(a: Mask, b: Mask) -> bool:
    """Return whether the masks' boxes overlap or touch."""
    return all(
        low <= other_high and other_low <= high
        for low, high, other_low, other_high in zip(*a.box, *b.box, strict=True)
    )


def touch(a: Mask, b: Mask) -> bool:
    """Return whether the masks share an element, or a face of an element of one is a face of one of the other."""
    low = [min(x, y) - 1 for x, y in zip(a.box[0], b.box[0], strict=True)]
    high = [max(x, y) + 1 for x, y in zip(a.box[1], b.box[1], strict=True)]
    window = tuple(slice(max(0, x), min(n, y)) for x, y, n in zip(low, high, a.shape, strict=True))
    return bool((ndimage.binary_dilation(a.within(window)) & b.within(window)).any())

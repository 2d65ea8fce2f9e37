"""The four task forms of one set of instances: semantic, instance, panoptic, detection; arrays and plain rows.

`clearmargin.report.tasks` writes them to files.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from clearmargin.core import InstanceSet, LabelMap
from clearmargin.core.layers import pack_layers
from clearmargin.core.reprs import short_repr
from clearmargin.metrics.panoptic import join_stuff, resolve_overlap

__all__ = ["BoxRow", "PanopticMap", "as_boxes", "as_layers", "as_panoptic", "as_semantic"]


@short_repr
@dataclass(frozen=True, kw_only=True, eq=False)
class PanopticMap:
    """One segment at each element.

    Attributes:
        segments: int32 of the grid's shape; 0 is background, otherwise a position in ``labels`` plus 1.
        labels: ``(S,)`` int64, each segment's class.
        scores: ``(S,)`` float32.
        instances: ``(S,)`` int64, each segment's first instance in the set it came from.
    """

    segments: NDArray[np.int32]
    labels: NDArray[np.int64]
    scores: NDArray[np.float32]
    instances: NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class BoxRow:
    """One detection.

    Attributes:
        label: Class id.
        score: In [0, 1].
        start: First index on each axis.
        stop: One past the last index on each axis.
    """

    label: int
    score: float
    start: tuple[int, ...]
    stop: tuple[int, ...]


def as_semantic(instances: InstanceSet) -> NDArray[np.int32]:
    """Return the class of each element, int32 of the grid's shape; 0 is background.

    Where classes overlap, the higher score wins, then the smaller instance, as in the panoptic form.
    """
    classes = np.zeros(instances.grid.shape, np.int32)
    clear = resolve_overlap(instances)
    for mask, label in zip(clear.masks, clear.labels, strict=True):
        classes[mask.slices][mask.crop] = label
    return classes


def as_layers(instances: InstanceSet) -> NDArray[np.int32]:
    """Return the instance form, ``(L, *grid.shape)`` int32: value ``i + 1`` is instance ``i``, overlap kept.

    L is 1 if nothing overlaps (`clearmargin.core.layers.pack_layers`).
    """
    return pack_layers(instances)


def as_panoptic(instances: InstanceSet, label_map: LabelMap) -> PanopticMap:
    """Return the panoptic form: stuff as one segment per class, overlap resolved, nothing empty.

    Raises:
        ConfigError: A label that the label map does not hold.

    Source: Kirillov et al., "Panoptic segmentation", CVPR 2019.
    """
    stuff = frozenset(int(v) for v in np.unique(instances.labels) if label_map.by_id(int(v)).kind == "stuff")
    marked = InstanceSet(
        grid=instances.grid,
        masks=instances.masks,
        labels=instances.labels,
        scores=instances.scores,
        uncertainty={"position": np.arange(len(instances), dtype=np.float32)},
    )
    clear = resolve_overlap(join_stuff(marked, stuff))
    segments = np.zeros(instances.grid.shape, np.int32)
    for number, mask in enumerate(clear.masks, start=1):
        segments[mask.slices][mask.crop] = number
    return PanopticMap(
        segments=segments,
        labels=clear.labels,
        scores=clear.scores,
        instances=clear.uncertainty["position"].astype(np.int64),
    )


def as_boxes(instances: InstanceSet) -> list[BoxRow]:
    """Return the detection form: the bounding box of each instance that is not empty, in the set's order."""
    return [
        BoxRow(label=int(label), score=float(score), start=mask.box[0], stop=mask.box[1])
        for mask, label, score in zip(instances.masks, instances.labels, instances.scores, strict=True)
        if mask.area
    ]

"""Counts: how many too many, what was split and what was merged, and what surrounds each instance."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from clearmargin.core import InstanceSet, Mask
from clearmargin.core.reprs import short_repr

__all__ = ["SplitMerge", "Surroundings", "count_error", "split_and_merge", "surroundings"]


def count_error(
    predicted: InstanceSet, reference: InstanceSet, *, score_threshold: float = 0.0, label: int | None = None
) -> int:
    """Return predicted minus reference number of instances, of one label or of all (None); 0 when both are empty.

    Predictions below ``score_threshold`` are left out, as are those that lie in the ignored region or a crowd of
    their class by half or more.

    Source: by definition.
    """
    from clearmargin.metrics.matching import neutral_share

    counted = [
        mask
        for mask, score, v in zip(predicted.masks, predicted.scores, predicted.labels, strict=True)
        if score >= score_threshold
        and (label is None or v == label)
        and neutral_share(mask, int(v), reference) < 0.5
    ]
    there = len(reference) if label is None else int(np.count_nonzero(reference.labels == label))
    return len(counted) - there


@dataclass(frozen=True, kw_only=True)
class SplitMerge:
    """Split and merge errors of one image.

    Attributes:
        splits: For each reference held by several predictions, the predictions beyond the first; summed.
        merges: For each prediction that holds several references, the references beyond the first; summed.
        split_references: Positions of the references that were split.
        merging_predictions: Positions of the predictions that merge.
    """

    splits: int
    merges: int
    split_references: tuple[int, ...]
    merging_predictions: tuple[int, ...]


def split_and_merge(predicted: InstanceSet, reference: InstanceSet) -> SplitMerge:
    """Return what was split and what was merged, within each label; nothing where either set is empty.

    A prediction belongs to the reference that holds more than half of it; a reference belongs to the
    prediction that holds more than half of it. Two predictions in one reference are a split, two references
    in one prediction a merge.

    Raises:
        ValueError: The sets lie on grids of different shape.

    Source: Coelho et al., ISBI 2009, with the majority rule made explicit.
    """
    if predicted.grid.shape != reference.grid.shape:
        raise ValueError(
            f"predicted instances lie on {predicted.grid}, reference instances on {reference.grid}"
        )
    in_reference = np.zeros(len(reference), np.int64)
    in_prediction = np.zeros(len(predicted), np.int64)
    for i, ours in enumerate(predicted.masks):
        for j, theirs in enumerate(reference.masks):
            if predicted.labels[i] == reference.labels[j] and ours.overlaps(theirs):
                common = ours.intersection(theirs)
                in_reference[j] += 2 * common > ours.area
                in_prediction[i] += 2 * common > theirs.area
    return SplitMerge(
        splits=int(np.maximum(in_reference - 1, 0).sum()),
        merges=int(np.maximum(in_prediction - 1, 0).sum()),
        split_references=tuple(int(j) for j in np.flatnonzero(in_reference > 1)),
        merging_predictions=tuple(int(i) for i in np.flatnonzero(in_prediction > 1)),
    )


@short_repr
@dataclass(frozen=True, kw_only=True, eq=False)
class Surroundings:
    """What may make an instance hard, as columns of N values for stratified tables.

    Attributes:
        size: float64, volume (area) in cubed (squared) units.
        neighbours: int64, other instances within reach: crowding.
        pieces: int64, face-connected parts: more than one where occlusion cuts an instance in two; 0 when
            empty.
        overlap: float64, share of the instance that others hold as well: nesting and amodal occlusion.
    """

    size: NDArray[np.float64]
    neighbours: NDArray[np.int64]
    pieces: NDArray[np.int64]
    overlap: NDArray[np.float64]


def surroundings(instances: InstanceSet, *, reach: float) -> Surroundings:
    """Return size, crowding and occlusion of each instance.

    Args:
        instances: N instances; may be none.
        reach: Another instance is a neighbour when some of its elements lie within ``reach``, centre to
            centre, in the grid's unit.

    Source: by definition.
    """
    from scipy.ndimage import label

    n = len(instances)
    overlap, boxes = np.zeros(n), _boxes(instances)
    for i, mask in enumerate(instances.masks):
        others = np.zeros(mask.crop.shape, bool)
        for j in _meeting(mask, boxes):
            if i != j:
                others |= instances.masks[j].within(mask.slices)
        overlap[i] = np.count_nonzero(mask.crop & others) / mask.area if mask.area else 0.0
    return Surroundings(
        size=np.array([m.area for m in instances.masks], np.float64) * instances.grid.voxel_size,
        neighbours=_neighbours(instances, reach),
        pieces=np.array([label(m.crop)[1] if m.area else 0 for m in instances.masks], np.int64),
        overlap=overlap,
    )


def _neighbours(instances: InstanceSet, reach: float) -> NDArray[np.int64]:
    from clearmargin.metrics.tissue import dilated

    boxes = _boxes(instances)
    counts = np.zeros(len(instances), np.int64)
    for i, mask in enumerate(instances.masks):
        wide = dilated(mask, instances.grid, reach)
        near = [j for j in _meeting(wide, boxes) if j != i]
        counts[i] = sum(wide.overlaps(instances.masks[j]) for j in near)
    return counts


def _boxes(instances: InstanceSet) -> NDArray[np.int64]:
    """Return ``(N, 2, ndim)`` starts and stops."""
    return np.array([m.box for m in instances.masks], np.int64).reshape(
        len(instances), 2, instances.grid.ndim
    )


def _meeting(mask: Mask, boxes: NDArray[np.int64]) -> list[int]:
    """Return the positions of the boxes that meet the mask's: few, if there are many instances."""
    start, stop = mask.box
    return [int(j) for j in np.flatnonzero(np.all((boxes[:, 0] < stop) & (boxes[:, 1] > start), axis=1))]

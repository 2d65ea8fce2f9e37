"""Counts: how many too many, what was split and what was merged, and what surrounds each instance."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from clearmargin.core import InstanceSet, Mask
from clearmargin.core.meeting import meeting
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
    rows, columns = meeting(predicted.masks, reference.masks)
    alike = predicted.labels[rows] == reference.labels[columns]
    for i, j in zip(rows[alike].tolist(), columns[alike].tolist(), strict=True):
        ours, theirs = predicted.masks[i], reference.masks[j]
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

    overlap = np.zeros(len(instances))
    for i, near in _others_near(instances.masks, instances.masks):
        mask = instances.masks[i]
        others = np.zeros(mask.crop.shape, bool)
        for j in near:
            others |= instances.masks[j].within(mask.slices)
        overlap[i] = np.count_nonzero(mask.crop & others) / mask.area
    return Surroundings(
        size=np.array([m.area for m in instances.masks], np.float64) * instances.grid.voxel_size,
        neighbours=_neighbours(instances, reach),
        pieces=np.array([label(m.crop)[1] if m.area else 0 for m in instances.masks], np.int64),
        overlap=overlap,
    )


def _neighbours(instances: InstanceSet, reach: float) -> NDArray[np.int64]:
    from clearmargin.metrics.tissue import dilated

    counts = np.zeros(len(instances), np.int64)
    wide = [dilated(mask, instances.grid, reach) for mask in instances.masks]
    for i, near in _others_near(wide, instances.masks):
        counts[i] = sum(wide[i].overlaps(instances.masks[j]) for j in near)
    return counts


def _others_near(masks: Sequence[Mask], others: Sequence[Mask]) -> Iterator[tuple[int, list[int]]]:
    """Yield the positions of masks whose box meets the box of another number of ``others``, and those numbers."""
    firsts, seconds = meeting(masks, others)
    apart = firsts != seconds
    firsts, seconds = firsts[apart], seconds[apart]
    for group in np.split(np.arange(len(firsts)), np.flatnonzero(np.diff(firsts)) + 1):
        if len(group):
            yield int(firsts[group[0]]), seconds[group].tolist()

"""Panoptic quality and semantic Dice of data sets of instances."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np

from clearmargin.core import InstanceSet, Mask
from clearmargin.core.meeting import meeting
from clearmargin.metrics.matching import match_optimally

__all__ = [
    "PanopticCounts",
    "PanopticQuality",
    "add_counts",
    "join_stuff",
    "panoptic_counts",
    "panoptic_quality",
    "quality_of",
    "resolve_overlap",
    "semantic_dice",
]

PanopticCounts = dict[int, tuple[float, int, int, int]]
"""By label: the sum of IoU over matched pairs, matched pairs, false positives, false negatives."""


@dataclass(frozen=True, kw_only=True)
class PanopticQuality:
    """Panoptic quality of one class or, as means, of several; each ratio in [0, 1].

    Attributes:
        pq: Segmentation times recognition quality. No reference and no prediction: 1.
        sq: Mean IoU of the matched pairs; 1 without references and predictions, 0 without a match otherwise.
        rq: F1 of the matching.
        tp: Matched pairs.
        fp: Predictions without a partner.
        fn: References without a partner.
        by_class: The same for each label; empty in the entries themselves.
    """

    pq: float
    sq: float
    rq: float
    tp: int
    fp: int
    fn: int
    by_class: Mapping[int, PanopticQuality]


def panoptic_quality(
    pairs: Iterable[tuple[InstanceSet, InstanceSet]], *, stuff: frozenset[int] = frozenset()
) -> PanopticQuality:
    """Return panoptic quality of (predicted, reference) pairs, one per image or volume.

    Overlap is resolved first (`resolve_overlap`), as a panoptic map has one instance at each element;
    instances of a label in ``stuff`` are one region. A pair matches at an IoU above 0.5, strictly, so that
    matches are unique. The ignored region is in no IoU; predictions that lie by more than half in it and the crowds of
    their class do not count, nor do references that lie in it as a whole.

    Returns:
        Counts over all images; ratios as means over the labels that references have: a class that is only
        predicted has its false positives in ``fp`` and ``by_class``. No reference: 1 without predictions, else 0.

    Source: Kirillov et al., "Panoptic segmentation", CVPR 2019; crowds as in its published code.
    """
    total: PanopticCounts = {}
    for predicted, reference in pairs:
        add_counts(total, panoptic_counts(predicted, reference, stuff=stuff))
    return quality_of(total)


def panoptic_counts(
    predicted: InstanceSet, reference: InstanceSet, *, stuff: frozenset[int] = frozenset()
) -> PanopticCounts:
    """Return what one image adds: by label the sum of IoU over matches, and tp, fp, fn; see `panoptic_quality`."""
    counts: PanopticCounts = {}
    ours, theirs = (resolve_overlap(join_stuff(side, stuff)) for side in (predicted, reference))
    matches = match_optimally(ours, theirs, iou_threshold=0.5, strict=True)
    for (i, _), iou in zip(matches.pairs, matches.ious, strict=True):
        add_counts(counts, {int(ours.labels[i]): (float(iou), 1, 0, 0)})
    for i in matches.false_positives:
        add_counts(counts, {int(ours.labels[i]): (0.0, 0, 1, 0)})
    for j in matches.false_negatives:
        add_counts(counts, {int(theirs.labels[j]): (0.0, 0, 0, 1)})
    return counts


def add_counts(total: PanopticCounts, more: PanopticCounts) -> None:
    """Add ``more`` to ``total``, in place."""
    for label, (iou, tp, fp, fn) in more.items():
        known = total.get(label, (0.0, 0, 0, 0))
        total[label] = (known[0] + iou, known[1] + tp, known[2] + fp, known[3] + fn)


def quality_of(counts: PanopticCounts) -> PanopticQuality:
    """Return the panoptic quality of counts over all images."""
    by_class = {label: _quality(*tally) for label, tally in sorted(counts.items())}
    existing = [quality for quality in by_class.values() if quality.tp + quality.fn]
    if not by_class:
        return _quality(0.0, 0, 0, 0)
    return PanopticQuality(
        pq=float(np.mean([q.pq for q in existing])) if existing else 0.0,
        sq=float(np.mean([q.sq for q in existing])) if existing else 0.0,
        rq=float(np.mean([q.rq for q in existing])) if existing else 0.0,
        tp=sum(q.tp for q in by_class.values()),
        fp=sum(q.fp for q in by_class.values()),
        fn=sum(q.fn for q in by_class.values()),
        by_class=MappingProxyType(by_class),
    )


def semantic_dice(predicted: InstanceSet, reference: InstanceSet, label: int) -> float:
    """Return the Dice coefficient of one class's region, all its instances together.

    The ignored region and the crowds of the class are left out. Both empty: 1. One empty: 0.

    Raises:
        ValueError: The sets lie on grids of different shape.

    Source: see `clearmargin.metrics.overlap.dice`.
    """
    from clearmargin.metrics.overlap import dice
    from clearmargin.metrics.pair import MaskPair

    regions = [
        Mask.union([m for m, v in zip(s.masks, s.labels, strict=True) if v == label], s.grid.shape)
        for s in (predicted, reference)
    ]
    ignore = reference.unmeasured(label)
    return dice(MaskPair.from_masks(regions[0], regions[1], reference.grid, ignore=ignore))


def resolve_overlap(instances: InstanceSet) -> InstanceSet:
    """Return the instances without overlap: each element goes to the highest score, then to the smaller instance.

    The order of the set stays; an instance that keeps nothing has an empty mask and is left out.
    """
    areas = np.array([m.area for m in instances.masks], np.int64)
    order = np.lexsort((areas, -instances.scores))
    firsts, seconds = meeting(instances.masks, instances.masks)
    starts = np.searchsorted(firsts, np.arange(len(instances) + 1))
    kept: dict[int, Mask] = {}
    for i in order.tolist():
        mask = instances.masks[i]
        before = [kept[j] for j in seconds[starts[i] : starts[i + 1]].tolist() if j in kept]
        if before:
            crop = mask.crop.copy()
            for other in before:
                crop &= ~other.within(mask.slices)
            mask = Mask.from_crop(crop, mask.origin, mask.shape)
        if mask.area:
            kept[i] = mask
    remaining = instances.select(np.array(sorted(kept), np.int64))
    return InstanceSet(
        grid=remaining.grid,
        masks=tuple(kept[i] for i in sorted(kept)),
        labels=remaining.labels,
        scores=remaining.scores,
        uncertainty=remaining.uncertainty,
        ignore=remaining.ignore,
        crowds=remaining.crowds,
    )


def join_stuff(instances: InstanceSet, stuff: frozenset[int]) -> InstanceSet:
    """Return the set with all instances of each stuff label as one, at their highest score and the first's rest."""
    loose = [i for i, label in enumerate(instances.labels) if int(label) not in stuff]
    groups = [
        np.flatnonzero(instances.labels == label) for label in sorted(stuff) if label in instances.labels
    ]
    if not groups:
        return instances
    masks = [instances.masks[i] for i in loose] + [
        Mask.union([instances.masks[i] for i in g], instances.grid.shape) for g in groups
    ]
    firsts = loose + [int(g[0]) for g in groups]
    scores = [instances.scores[i] for i in loose] + [instances.scores[g].max() for g in groups]
    return InstanceSet(
        grid=instances.grid,
        masks=tuple(masks),
        labels=instances.labels[firsts],
        scores=np.array(scores, np.float32),
        uncertainty={name: column[firsts] for name, column in instances.uncertainty.items()},
        ignore=instances.ignore,
        crowds=instances.crowds,
    )


def _quality(total_iou: float, tp: float, fp: float, fn: float) -> PanopticQuality:
    if not tp + fp + fn:
        sq = rq = 1.0
    else:
        sq = total_iou / tp if tp else 0.0
        rq = tp / (tp + fp / 2 + fn / 2)
    return PanopticQuality(
        pq=sq * rq, sq=sq, rq=rq, tp=int(tp), fp=int(fp), fn=int(fn), by_class=MappingProxyType({})
    )

"""The same object in different samples of a prediction, and the one mask they agree on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from clearmargin.core import InstanceSet, Mask
from clearmargin.metrics.matching import mask_iou

__all__ = ["Cluster", "agreed_mask", "find_clusters"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Cluster:
    """One object, as each sample has it.

    Attributes:
        label: Label of all of them.
        masks: One for each sample; None where it misses the object.
        scores: ``(N,)`` float64, one for each sample; 0 where it misses the object.
    """

    label: int
    masks: tuple[Mask | None, ...]
    scores: NDArray[np.float64]

    @property
    def existence(self) -> float:
        """Mean score over all samples: one that misses the object lowers it."""
        return float(self.scores.mean())

    @property
    def found(self) -> list[Mask]:
        """The masks of the samples that have the object; at least one."""
        return [mask for mask in self.masks if mask is not None]


def find_clusters(samples: Sequence[InstanceSet], *, iou_threshold: float = 0.5) -> list[Cluster]:
    """Match the instances of all samples.

    The instance with the best score that is still free begins a cluster, and of each other sample the free one
    of its label that it overlaps best joins, where the IoU is at least ``iou_threshold``. So the order of the
    samples plays no part, ties in score aside, and each instance is in one cluster.

    Args:
        samples: One or more sets on one grid, down to low scores; sets may be empty.
        iou_threshold: IoU from which two masks are the same object.

    Returns:
        Clusters by falling existence; none where no sample found anything.

    Source: after Miller et al., "Evaluating merging strategies for sampling-based uncertainty techniques in
    object detection", ICRA 2019.
    """
    owner = np.concatenate([np.full(len(s), k) for k, s in enumerate(samples)])
    masks = [mask for s in samples for mask in s.masks]
    labels = np.concatenate([s.labels for s in samples])
    scores = np.concatenate([s.scores for s in samples]).astype(np.float64)
    boxes = np.array([mask.box for mask in masks]).reshape(len(masks), 2, samples[0].grid.ndim)
    free = np.ones(len(masks), bool)
    clusters = []
    for seed in np.argsort(-scores, kind="stable"):
        if not free[seed]:
            continue
        meet = free & (owner != owner[seed]) & (labels == labels[seed])
        meet &= np.all((boxes[:, 0] < boxes[seed, 1]) & (boxes[seed, 0] < boxes[:, 1]), axis=1)
        best: dict[int, tuple[float, int]] = {}
        for i in np.flatnonzero(meet):
            iou = mask_iou(masks[seed], masks[i])
            if iou >= iou_threshold and iou > best.get(int(owner[i]), (0.0, -1))[0]:
                best[int(owner[i])] = (iou, int(i))
        joined = {k: i for k, (_, i) in best.items()} | {int(owner[seed]): int(seed)}
        free[list(joined.values())] = False
        clusters.append(
            Cluster(
                label=int(labels[seed]),
                masks=tuple(masks[joined[k]] if k in joined else None for k in range(len(samples))),
                scores=np.array([scores[joined[k]] if k in joined else 0.0 for k in range(len(samples))]),
            )
        )
    return sorted(clusters, key=lambda c: -c.existence)


def agreed_mask(cluster: Cluster) -> Mask:
    """Return the elements that samples with more than half of the summed score hold.

    Scores break the tie of an even number of samples, so that two of them give the surer one's mask and not
    their union. Where no element has the majority it is the surest sample's mask.
    """
    masks = cluster.found
    if len(masks) == 1:
        return masks[0]
    weights = cluster.scores[[mask is not None for mask in cluster.masks]]
    low = np.min([mask.origin for mask in masks], axis=0)
    high = np.max([mask.box[1] for mask in masks], axis=0)
    box = tuple(slice(int(a), int(b)) for a, b in zip(low, high, strict=True))
    votes = np.zeros([s.stop - s.start for s in box], np.float32)
    for mask, weight in zip(masks, weights, strict=True):
        part = tuple(
            slice(s.start - b.start, s.stop - b.start) for s, b in zip(mask.slices, box, strict=True)
        )
        votes[part] += mask.crop * np.float32(weight)
    agreed = Mask.from_crop(votes > 0.5 * weights.sum(), tuple(s.start for s in box), masks[0].shape)
    return agreed if agreed.area else masks[int(weights.argmax())]

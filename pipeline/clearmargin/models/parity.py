"""Whether a network computed by a runtime finds what it finds in torch."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from clearmargin.core import InstanceSet, Landmarks, Mask
from clearmargin.metrics.matching import iou_matrix
from clearmargin.metrics.pair import MaskPair
from clearmargin.metrics.surface import nsd
from clearmargin.models.placing import Crop, threshold
from clearmargin.models.segmenter import Look

__all__ = ["LIMITS", "Parity", "compare", "compare_maps", "compare_points", "worst"]

LIMITS = {
    "score": 1e-3, "probability": 1e-3, "flipped": 1.0, "nsd": 2e-3, "lost": 0.0, "foreground": 1e-3, "moved": 0.02,
}  # fmt: skip
"""The largest values of a parity that holds."""

_SAME_OBJECT = 0.5


@dataclass(frozen=True, kw_only=True)
class Parity:
    """The largest differences between two runtimes' instances.

    Attributes:
        instances: How many were compared.
        lost: Instances of one that the other lacks, beyond those whose score is within the limit of the floor, and
            those of one pixel.
        score: Difference of an instance's scores.
        probability: Difference of mask probabilities at a pixel of the source; not of instances cut out of maps.
        flipped: Pixels of an instance that changed sides, as a share of those that may: the larger of 1 and 0.5 %.
        nsd: Change of the NSD to the reference, at a tolerance of two pixels.
        foreground: Difference of a pixel's probabilities of the classes, of networks that know them.
        points: How many landmarks were compared; those that one lacks are ``lost``, and ``score`` is theirs too.
        moved: Distance of a landmark's places, in pixels of the source.
    """

    instances: int = 0
    points: int = 0
    lost: int = 0
    score: float = 0.0
    probability: float = 0.0
    flipped: float = 0.0
    nsd: float = 0.0
    foreground: float = 0.0
    moved: float = 0.0

    @property
    def problems(self) -> tuple[str, ...]:
        """What is beyond its limit, in words."""
        return tuple(
            f"{name} {getattr(self, name):.3g} (at most {limit:g})"
            for name, limit in LIMITS.items()
            if not getattr(self, name) <= limit
        )


def worst(parities: Iterable[Parity]) -> Parity:
    """Return the largest differences of all, and the sums of what is counted."""
    every = list(parities)
    return Parity(
        instances=sum(p.instances for p in every),
        points=sum(p.points for p in every),
        lost=sum(p.lost for p in every),
        score=max((p.score for p in every), default=0.0),
        probability=max((p.probability for p in every), default=0.0),
        flipped=max((p.flipped for p in every), default=0.0),
        nsd=max((p.nsd for p in every), default=0.0),
        foreground=max((p.foreground for p in every), default=0.0),
        moved=max((p.moved for p in every), default=0.0),
    )


def compare(first: Look, second: Look, reference: InstanceSet, *, floor: float, cut: bool = False) -> Parity:
    """Return how far the second's instances are from the first's.

    Args:
        first: From torch.
        second: From the runtime, in the same plane or volume.
        reference: The true instances there; may be empty.
        floor: Only detections with this score or more are compared. Those without a pixel are not instances.
        cut: Instances are cut out of maps where they meet (`Network.cuts_maps`). Rounding moves the cut, and so the
            probabilities beside it: those of the maps are compared, by `compare_maps`, and here where masks end.
    """
    one, two = _instances(first, floor), _instances(second, floor)
    pairs = _partners(first, one, second, two)
    clear = floor + LIMITS["score"]
    lost = sum(
        bool(look.scores[i] >= clear) and mask.area > 1
        for look, masks, paired in ((first, one, set(pairs)), (second, two, set(pairs.values())))
        for i, mask in masks.items()
        if i not in paired
    )
    compared = [_compare_masks(first, i, second, j, reference) for i, j in pairs.items()]
    if cut:
        compared = [replace(one, probability=0.0) for one in compared]
    return worst(
        [Parity(lost=lost), *compared, compare_points(first.landmarks(), second.landmarks(), floor=floor)]
    )


def compare_points(first: Landmarks | None, second: Landmarks | None, *, floor: float) -> Parity:
    """Return how far the second's landmarks are from the first's; those without a partner of their type are lost.

    Args:
        first: From torch.
        second: From the runtime, on the same grid.
        floor: Only points with this score or more are compared; of those just above it one may lack its partner.
    """
    if first is None or second is None:
        return Parity(lost=int(first is not second))
    one, two = (side.at_least(floor).singles() for side in (first, second))
    clear = floor + LIMITS["score"]
    differences = []
    for k in range(len(first.types)):
        rows = [np.flatnonzero(side.visible[:, k]) for side in (one, two)]
        apart = np.linalg.norm(one.points[rows[0], None, k] - two.points[None, rows[1], k], axis=2)
        pairs = list(zip(*linear_sum_assignment(apart), strict=True))
        for side, own, partners in zip(
            (one, two), rows, zip(*pairs, strict=True) if pairs else ((), ()), strict=True
        ):
            alone = np.delete(own, np.array(partners, np.int64))
            differences.append(Parity(lost=int((side.scores[alone, k] >= clear).sum())))
        for i, j in pairs:
            scores = float(one.scores[rows[0][i], k]), float(two.scores[rows[1][j], k])
            differences.append(Parity(points=1, score=abs(scores[0] - scores[1]), moved=float(apart[i, j])))
    return worst(differences)


def compare_maps(first: Look, second: Look) -> Parity:
    """Return how far the second's foreground is from the first's, in the same plane or volume."""
    pairs = zip(first.foreground(), second.foreground(), strict=True)
    return Parity(foreground=max(float(np.abs(one - two).max()) for one, two in pairs))


def _instances(look: Look, floor: float) -> dict[int, Mask]:
    """Return the masks of what is at least at the floor, by their positions."""
    kept = np.flatnonzero(look.scores >= floor).tolist()
    masks = {i: threshold(*look.placed(i), look.grid.shape) for i in kept}
    return {i: mask for i, mask in masks.items() if mask.area}


def _partners(first: Look, one: dict[int, Mask], second: Look, two: dict[int, Mask]) -> dict[int, int]:
    """Return the position in the second of the first's instances: of one label, the free one that overlaps best."""
    ious = iou_matrix(tuple(one.values()), tuple(two.values()))
    partners: dict[int, int] = {}
    for row, i in zip(ious, one, strict=True):
        free = {
            j: iou
            for j, iou in zip(two, row.tolist(), strict=True)
            if second.labels[j] == first.labels[i] and j not in partners.values()
        }
        best = max(free, key=lambda j: free[j], default=None)
        if best is not None and free[best] >= _SAME_OBJECT:
            partners[i] = best
    return partners


def _compare_masks(first: Look, i: int, second: Look, j: int, reference: InstanceSet) -> Parity:
    one, two, origin = _side_by_side(first.placed(i), second.placed(j))
    flipped = int(((one >= 0.5) != (two >= 0.5)).sum())
    masks = [threshold(crop, origin, first.grid.shape) for crop in (one, two)]
    return Parity(
        instances=1,
        score=abs(float(first.scores[i] - second.scores[j])),
        probability=float(np.abs(one - two).max()),
        flipped=flipped / max(1.0, 0.005 * masks[0].area),
        nsd=_nsd_change(masks[0], masks[1], reference),
    )


def _side_by_side(one: Crop, two: Crop) -> tuple[NDArray[np.float32], NDArray[np.float32], tuple[int, ...]]:
    """Return both crops in the box that holds them, and its origin."""
    low = np.min([one[1], two[1]], axis=0)
    high = np.max([np.add(origin, crop.shape) for crop, origin in (one, two)], axis=0)
    grown = []
    for crop, origin in (one, two):
        whole = np.zeros(high - low, np.float32)
        whole[tuple(slice(o, o + n) for o, n in zip(origin - low, crop.shape, strict=True))] = crop
        grown.append(whole)
    return grown[0], grown[1], tuple(low.tolist())


def _nsd_change(one: Mask, two: Mask, reference: InstanceSet) -> float:
    """Return how the NSD to the reference that overlaps best changes; 0 if there is none."""
    if not len(reference) or not one.area or not two.area:
        return 0.0
    ious = iou_matrix((one,), reference.masks)[0]
    truth = reference.masks[int(ious.argmax())]
    if not truth.area:
        return 0.0
    tolerance = 2 * max(reference.grid.spacing)
    before, after = (nsd(MaskPair.from_masks(mask, truth, reference.grid), tolerance) for mask in (one, two))
    return abs(before - after)

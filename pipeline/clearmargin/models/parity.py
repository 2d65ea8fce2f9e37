"""Whether a network computed by a runtime finds what it finds in torch."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torchvision.ops import box_iou

from clearmargin.core import InstanceSet, Mask
from clearmargin.metrics.matching import iou_matrix
from clearmargin.metrics.pair import MaskPair
from clearmargin.metrics.surface import nsd
from clearmargin.models.placing import place, threshold
from clearmargin.models.segmenter import PlaneDetections

__all__ = ["LIMITS", "Parity", "compare_planes", "worst"]

LIMITS = {"score": 1e-3, "probability": 1e-3, "flipped": 1.0, "nsd": 2e-3, "lost": 0.0}
"""The largest values of a parity that holds."""

_SAME_BOX = 0.5


@dataclass(frozen=True, kw_only=True)
class Parity:
    """The largest differences between two runtimes' instances.

    Attributes:
        instances: How many were compared.
        lost: Instances of one that the other lacks, beyond those whose score is within the limit of the floor.
        score: Difference of an instance's scores.
        probability: Difference of mask probabilities at a pixel of the source.
        flipped: Pixels of an instance that changed sides, as a share of those that may: the larger of 1 and 0.5 %.
        nsd: Change of the NSD to the reference, at a tolerance of two pixels.
    """

    instances: int = 0
    lost: int = 0
    score: float = 0.0
    probability: float = 0.0
    flipped: float = 0.0
    nsd: float = 0.0

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
        lost=sum(p.lost for p in every),
        score=max((p.score for p in every), default=0.0),
        probability=max((p.probability for p in every), default=0.0),
        flipped=max((p.flipped for p in every), default=0.0),
        nsd=max((p.nsd for p in every), default=0.0),
    )


def compare_planes(
    first: PlaneDetections, second: PlaneDetections, reference: InstanceSet, *, floor: float
) -> Parity:
    """Return how far the second's detections of a plane are from the first's.

    Args:
        first: From torch.
        second: From the runtime.
        reference: The plane's true instances; may be empty.
        floor: Only detections with this score or more are compared.
    """
    partners = _partners(first, second, floor)
    found, other = first.found, second.found
    used = {j for j in partners.values() if j is not None}
    clear = floor + LIMITS["score"]
    lost = sum(j is None and float(found.scores[i]) >= clear for i, j in partners.items())
    lost += sum(j not in used and float(score) >= clear for j, score in enumerate(other.scores))
    pairs = [(i, j) for i, j in partners.items() if j is not None]
    return worst(
        [
            Parity(lost=lost),
            *(
                _compare_masks(first, second, i, j, reference, abs(float(found.scores[i] - other.scores[j])))
                for i, j in pairs
            ),
        ]
    )


def _partners(first: PlaneDetections, second: PlaneDetections, floor: float) -> dict[int, int | None]:
    """Return for each of the first's detections above the floor the second's of its label with the nearest box."""
    ious = box_iou(first.found.boxes, second.found.boxes)
    partners: dict[int, int | None] = {}
    taken: set[int] = set()
    for i, label in enumerate(first.found.labels.tolist()):
        if float(first.found.scores[i]) < floor:
            continue
        free = [
            j for j, other in enumerate(second.found.labels.tolist()) if other == label and j not in taken
        ]
        best = max(free, key=lambda j: float(ious[i, j]), default=None)
        partners[i] = best if best is not None and float(ious[i, best]) >= _SAME_BOX else None
        taken |= {best} if partners[i] is not None and best is not None else set()
    return partners


def _compare_masks(
    first: PlaneDetections, second: PlaneDetections, i: int, j: int, reference: InstanceSet, score: float
) -> Parity:
    one = _placed(first, first.found.masks[i], first.found.regions[i])
    two = _placed(second, second.found.masks[j], second.found.regions[j])
    flipped = int(((one >= 0.5) != (two >= 0.5)).sum())
    shape = (first.plane.grid.shape[0], first.plane.grid.shape[1])
    masks = [threshold(dense, (0, 0), shape) for dense in (one, two)]
    return Parity(
        instances=1,
        score=score,
        probability=float(np.abs(one - two).max()),
        flipped=flipped / max(1.0, 0.005 * masks[0].area),
        nsd=_nsd_change(masks[0], masks[1], reference),
    )


def _placed(plane: PlaneDetections, mask: Tensor, region: Tensor) -> NDArray[np.float32]:
    shape = (plane.plane.grid.shape[0], plane.plane.grid.shape[1])
    dense = np.zeros(shape, np.float32)
    crop, (y, x) = place(mask, region, plane.matrix, shape)
    dense[y : y + crop.shape[0], x : x + crop.shape[1]] = crop
    return dense


def _nsd_change(one: Mask, two: Mask, reference: InstanceSet) -> float:
    """Return how the NSD to the reference that overlaps best changes; 0 where there is none."""
    if not len(reference) or not one.area or not two.area:
        return 0.0
    ious = iou_matrix((one,), reference.masks)[0]
    truth = reference.masks[int(ious.argmax())]
    if not truth.area:
        return 0.0
    tolerance = 2 * max(reference.grid.spacing)
    before, after = (nsd(MaskPair.from_masks(mask, truth, reference.grid), tolerance) for mask in (one, two))
    return abs(before - after)

"""What a calibration keeps of a case: a few numbers an instance, and counts of pixels. Masks and maps go.

Predictions come with every instance, whatever its score. As they are matched in order of score, leaving out those
under a threshold changes no partner of the others (`misses`), so that each threshold can be judged afterwards.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from clearmargin.core import Image, InstanceSet, Prediction
from clearmargin.core.grid import Unit
from clearmargin.metrics.calibration import Reliability, boundary_band
from clearmargin.metrics.matching import match_instances
from clearmargin.metrics.pair import MaskPair
from clearmargin.metrics.surface import hd95, nsd
from clearmargin.metrics.thresholds import ScoredMatches, match_scores
from clearmargin.uncertainty.drift import intensity_features
from clearmargin.uncertainty.misses import Found, find_references
from clearmargin.uncertainty.needed import Need, Promise, Strata, needed_by_promise
from clearmargin.uncertainty.reach import EdgeScale
from clearmargin.uncertainty.spread import TOLERANCE

__all__ = ["ObservedCase", "ObservedInstance", "PixelCounts", "needs_of", "observe"]


@dataclass(frozen=True, kw_only=True)
class ObservedInstance:
    """One predicted instance.

    Attributes:
        label: Its class.
        size: In the grid's unit, squared or cubed.
        relative_size: See `detection_outcomes`.
        score: As predicted.
        columns: Its uncertainty columns.
        matched: Whether it is right, at IoU 0.5.
        needs: By promise, what it needed; empty where it is not matched.
        mean_scale: By floor, the mean scale of its edge.
        hd95: In the grid's unit, of a matched one.
        nsd: At `TOLERANCE`, of a matched one.
    """

    label: int
    size: float
    relative_size: float
    score: float
    columns: Mapping[str, float]
    matched: bool
    needs: Mapping[Promise, float]
    mean_scale: Mapping[float, float]
    hd95: float
    nsd: float


@dataclass(kw_only=True)
class PixelCounts:
    """Foreground probabilities against the union of the reference's instances, counted over the cases of a unit.

    Attributes:
        every: All pixels outside the ignored region.
        band: Those near the reference's edge.
        doubtful: Those whose probability is neither 0 nor 1.
    """

    every: Reliability = field(default_factory=Reliability.zeros)
    band: Reliability = field(default_factory=Reliability.zeros)
    doubtful: Reliability = field(default_factory=Reliability.zeros)

    def add(
        self, probabilities: NDArray[np.floating], reference: InstanceSet, band: float | None = None
    ) -> None:
        """Count the pixels of a case.

        Args:
            probabilities: Of the foreground, on the reference's grid.
            reference: What is there.
            band: Half the width of the band at the edge, in the grid's unit; None for two of its largest steps.
        """
        grid = reference.grid
        truth = np.zeros(grid.shape, bool)
        for mask in reference.masks:
            truth[mask.slices] |= mask.crop
        asked = np.ones(grid.shape, bool)
        unmeasured = reference.unmeasured()
        if unmeasured is not None:
            asked[unmeasured.slices] &= ~unmeasured.crop
        near = boundary_band(truth, grid.spacing, 2 * max(grid.spacing) if band is None else band)
        self.every.add(probabilities, truth, where=asked)
        self.band.add(probabilities, truth, where=asked & near)
        self.doubtful.add(probabilities, truth, where=asked & (probabilities > 0) & (probabilities < 1))


@dataclass(frozen=True, kw_only=True)
class ObservedCase:
    """One case.

    Attributes:
        unit: Its unit.
        strata: Of the card.
        length_unit: ``mm`` or ``px``.
        ndim: 2 or 3.
        instances: Predicted ones, but for those in the ignored region.
        found: Of each reference, when it is found.
        intensities: See `intensity_features`.
        scored: By label, what each prediction matches, for thresholds on scores.
    """

    unit: str
    strata: Mapping[str, str]
    length_unit: Unit
    ndim: int
    instances: tuple[ObservedInstance, ...]
    found: tuple[Found, ...]
    intensities: Mapping[str, float]
    scored: Mapping[int, ScoredMatches]

    @property
    def size_unit(self) -> str:
        """Unit of the sizes of its instances."""
        return f"{self.length_unit}^{self.ndim}"


def observe(
    unit: str,
    image: Image,
    prediction: Prediction,
    reference: InstanceSet,
    *,
    promises: Sequence[Promise],
    strata: Mapping[str, str] | None = None,
) -> ObservedCase:
    """Return what is kept of one case.

    Args:
        unit: The unit of exchangeability that it belongs to.
        image: The segmented image.
        prediction: Of every instance, down to score 0.
        reference: On the same grid.
        promises: What margins shall promise; one with a floor is measured where the prediction has edges.
        strata: Of the card.
    """
    instances = prediction.instances
    matches = match_instances(instances, reference)
    partners = {int(i): int(j) for i, j in matches.pairs}
    ignored = {int(i) for i in matches.ignored}
    kept = [
        _instance(prediction, i, reference, partners.get(i), promises)
        for i in range(len(instances))
        if i not in ignored
    ]
    return ObservedCase(
        unit=unit,
        strata=dict(strata or {}),
        length_unit=instances.grid.unit,
        ndim=instances.grid.ndim,
        instances=tuple(kept),
        found=tuple(find_references(unit, instances, reference, matches=matches)),
        intensities=intensity_features(image.pixels),
        scored=match_scores(instances, reference),
    )


def needs_of(
    cases: Iterable[ObservedCase], promise: Promise, threshold: float, strata: Strata | None = None
) -> list[Need]:
    """Return what the matched instances at or above a score threshold needed."""
    chosen = strata or Strata()
    return [
        Need(
            unit=case.unit,
            stratum=chosen.named(one.label, one.size, case.size_unit),
            value=one.needs[promise],
            length_unit=case.length_unit,
        )
        for case in cases
        for one in case.instances
        if promise in one.needs and one.score >= threshold
    ]


def _instance(
    prediction: Prediction,
    i: int,
    reference: InstanceSet,
    partner: int | None,
    promises: Sequence[Promise],
) -> ObservedInstance:
    instances, grid = prediction.instances, reference.grid
    mask = instances.masks[i]
    needs: dict[Promise, float] = {}
    mean_scale: dict[float, float] = {}
    distance, surface = 0.0, 0.0
    if partner is not None:
        truth = reference.masks[partner]
        for floor in {promise.floor for promise in promises}:
            if floor is None:
                scale = None
            elif prediction.edges:
                edge = prediction.edges[i]
                scale = EdgeScale(points=edge.points, sigma=edge.sigma, floor=floor)
                mean_scale[floor] = float(edge.sigma.mean() if edge.sigma.size else 0.0) + floor
            else:
                continue
            asked = [promise for promise in promises if promise.floor == floor]
            needs |= needed_by_promise(mask, truth, grid, asked, scale=scale, ignore=reference.ignore)
        pair = MaskPair.from_masks(mask, truth, grid, ignore=reference.ignore)
        distance, surface = hd95(pair), nsd(pair, TOLERANCE)
    return ObservedInstance(
        label=int(instances.labels[i]),
        size=mask.area * grid.voxel_size,
        relative_size=float((mask.area / np.prod(grid.shape)) ** (1 / grid.ndim)),
        score=float(instances.scores[i]),
        columns={name: float(column[i]) for name, column in instances.uncertainty.items()},
        matched=partner is not None,
        needs=needs,
        mean_scale=mean_scale,
        hd95=distance,
        nsd=surface,
    )

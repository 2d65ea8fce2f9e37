"""What a calibration keeps of a case: a few numbers per instance, and counts of pixels. Masks and maps go.

Predictions come with every instance, whatever its score. As they are matched in order of score, leaving out those
under a threshold changes no partner of the others (`misses`), so that each threshold can be judged afterwards.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from clearmargin.core import Grid, Image, InstanceSet, Prediction, Thresholds
from clearmargin.core.grid import Unit
from clearmargin.margins.drift import image_features
from clearmargin.margins.margins import MatchedObject
from clearmargin.margins.misses import Found, find_references
from clearmargin.margins.paired_points import ObservedPoints
from clearmargin.margins.reach import EdgeScale
from clearmargin.margins.requirement import SIDES, Needed, Side, needed_margin
from clearmargin.margins.towards import Apart, apart_from
from clearmargin.margins.width import features_of
from clearmargin.metrics.calibration import Reliability, boundary_band
from clearmargin.metrics.matching import match_instances
from clearmargin.metrics.pair import MaskPair
from clearmargin.metrics.surface import hd95, nsd
from clearmargin.metrics.thresholds import ScoredMatches, match_scores
from clearmargin.sampling.spread import TOLERANCE

__all__ = [
    "ObservedCase",
    "ObservedInstance",
    "PixelCounts",
    "element_of",
    "matched_objects",
    "object_features",
    "objects_apart",
    "observe",
]


@dataclass(frozen=True, kw_only=True)
class ObservedInstance:
    """One predicted instance.

    Attributes:
        label: Its class.
        size: In the grid's unit, squared or cubed.
        relative_size: See `detection_outcomes`.
        score: As predicted.
        columns: Its uncertainty columns.
        iou: With its partner; 0 if it has none at IoU 0.5.
        features: What the width of a margin may be predicted from.
        needed: What it needed, by side and by the floor of the edge's scale; empty if it is not matched.
        mean_scale: By floor, the mean scale of its edge.
        hd95: In the grid's unit, of a matched one.
        nsd: At `TOLERANCE`, of a matched one.
        apart: By name of the target, how far a matched one is from it.
    """

    label: int
    size: float
    relative_size: float
    score: float
    columns: Mapping[str, float]
    iou: float
    features: Mapping[str, float]
    needed: Mapping[tuple[Side, float | None], Needed]
    mean_scale: Mapping[float, float]
    hd95: float
    nsd: float
    apart: Mapping[str, Apart] = field(default_factory=dict)

    @property
    def matched(self) -> bool:
        """Whether it is right, at IoU 0.5."""
        return self.iou > 0


@dataclass(kw_only=True)
class PixelCounts:
    """Foreground probabilities against the union of the reference's instances, counted over the cases of a group.

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
            probabilities: Probabilities of the foreground, on the reference's grid.
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
        group: Its group.
        strata: Strata of the card.
        length_unit: ``mm`` or ``px``.
        element: Edge length of a cube (square) of the size of an element, in that group.
        instances: Predicted ones, but for those in the ignored region.
        found: Of each reference, from which score on it is detected, and how well.
        looks: See `image_features`.
        scored: By label, what each prediction matches, for thresholds on scores.
        points: Its landmarks; None if they were not looked for.
    """

    group: str
    strata: Mapping[str, str]
    length_unit: Unit
    element: float
    instances: tuple[ObservedInstance, ...]
    found: tuple[Found, ...]
    looks: Mapping[str, float]
    scored: Mapping[int, ScoredMatches]
    points: ObservedPoints | None = None


def observe(
    group: str,
    image: Image,
    prediction: Prediction,
    reference: InstanceSet,
    *,
    floors: Sequence[float] = (),
    strata: Mapping[str, str] | None = None,
    towards: Sequence[str] = (),
) -> ObservedCase:
    """Return what is kept of one case.

    Args:
        group: The patient, surgery or image that it belongs to.
        image: The segmented image.
        prediction: Prediction of every instance, down to score 0.
        reference: On the same grid.
        floors: Floors of the edge's scale, with which needed margins are measured too if the prediction has edges.
        strata: Strata of the card.
        towards: Names of the targets to which distances are measured.
    """
    instances = prediction.instances
    matches = match_instances(instances, reference)
    partners = {int(i): (int(j), float(iou)) for (i, j), iou in zip(matches.pairs, matches.ious, strict=True)}
    ignored = {int(i) for i in matches.ignored}
    kept = [
        _instance(prediction, i, reference, partners.get(i), floors, towards)
        for i in range(len(instances))
        if i not in ignored
    ]
    return ObservedCase(
        group=group,
        strata=dict(strata or {}),
        length_unit=instances.grid.unit,
        element=element_of(instances.grid),
        instances=tuple(kept),
        found=tuple(find_references(group, instances, reference, matches=matches)),
        looks=image_features(image.pixels),
        scored=match_scores(instances, reference),
        points=_points(group, instances, reference),
    )


def _points(group: str, instances: InstanceSet, reference: InstanceSet) -> ObservedPoints | None:
    ours, theirs = instances.landmarks, reference.landmarks
    if ours is None or theirs is None:
        return None
    return ObservedPoints(group=group, predicted=ours, reference=theirs, grid=reference.grid)


def matched_objects(
    cases: Iterable[ObservedCase], thresholds: Thresholds, match_iou: float
) -> list[MatchedObject]:
    """Return the objects at or above their score threshold that match a true one at an IoU or better."""
    return [
        MatchedObject(group=case.group, features=one.features, needed=one.needed, mean_scale=one.mean_scale)
        for case in cases
        for one in case.instances
        if one.score >= thresholds.of(one.label) and one.needed and one.iou >= match_iou
    ]


def objects_apart(
    cases: Iterable[ObservedCase], name: str, thresholds: Thresholds, match_iou: float
) -> list[tuple[str, Apart]]:
    """Return group and distances to a target of the objects that `matched_objects` returns, less the targets."""
    return [
        (case.group, one.apart[name])
        for case in cases
        for one in case.instances
        if name in one.apart and one.score >= thresholds.of(one.label) and one.iou >= match_iou
    ]


def object_features(prediction: Prediction, i: int) -> dict[str, float]:
    """Return what the width of the margin of instance ``i`` may be predicted from, as predicted and not scaled."""
    instances = prediction.instances
    grid = instances.grid
    edge_sd = None
    if prediction.edges:
        sigma = prediction.edges[i].sigma
        edge_sd = float(sigma.mean()) if sigma.size else 0.0
    return features_of(
        size=max(instances.masks[i].area, 1) * grid.voxel_size,
        score=float(instances.scores[i]),
        label=int(instances.labels[i]),
        edge_sd=edge_sd,
        element=element_of(grid),
    )


def element_of(grid: Grid) -> float:
    """Return the edge length of a cube (in the plane a square) of the size of an element, in the grid's unit."""
    return float(np.prod(grid.spacing) ** (1 / grid.ndim))


def _instance(
    prediction: Prediction,
    i: int,
    reference: InstanceSet,
    partner: tuple[int, float] | None,
    floors: Sequence[float],
    towards: Sequence[str],
) -> ObservedInstance:
    instances, grid = prediction.instances, reference.grid
    mask = instances.masks[i]
    needed: dict[tuple[Side, float | None], Needed] = {}
    mean_scale: dict[float, float] = {}
    iou, distance, surface = 0.0, 0.0, 0.0
    apart: dict[str, Apart] = {}
    if partner is not None:
        truth, iou = reference.masks[partner[0]], partner[1]
        scales: list[tuple[float | None, EdgeScale | None]] = [(None, None)]
        for floor in floors if prediction.edges else ():
            edge = prediction.edges[i]
            scales.append((floor, EdgeScale(points=edge.points, sigma=edge.sigma, floor=floor)))
            mean_scale[floor] = float(edge.sigma.mean() if edge.sigma.size else 0.0) + floor
        for scaled_with, scale in scales:
            for side in SIDES:
                needed[side, scaled_with] = needed_margin(
                    mask, truth, grid, side, scale=scale, ignore=reference.ignore
                )
        pair = MaskPair.from_masks(mask, truth, grid, ignore=reference.ignore)
        distance, surface = hd95(pair), nsd(pair, TOLERANCE)
        measured = {name: apart_from(name, prediction, i, reference, partner[0]) for name in towards}
        apart = {name: one for name, one in measured.items() if one is not None}
    return ObservedInstance(
        label=int(instances.labels[i]),
        size=mask.area * grid.voxel_size,
        relative_size=float((mask.area / np.prod(grid.shape)) ** (1 / grid.ndim)),
        score=float(instances.scores[i]),
        columns={name: float(column[i]) for name, column in instances.uncertainty.items()},
        iou=iou,
        features=object_features(prediction, i),
        needed=needed,
        mean_scale=mean_scale,
        hd95=distance,
        nsd=surface,
        apart=apart,
    )

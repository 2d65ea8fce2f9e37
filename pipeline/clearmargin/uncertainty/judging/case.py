"""What is kept of a case that a calibration is judged on."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from clearmargin.core import InstanceSet, Prediction
from clearmargin.metrics.matching import match_instances
from clearmargin.uncertainty.calibration import Calibration
from clearmargin.uncertainty.margins import Margin
from clearmargin.uncertainty.observed import ObservedCase
from clearmargin.uncertainty.reach import EdgeScale

__all__ = ["JudgedCase", "judge_case"]


@dataclass(frozen=True, kw_only=True)
class JudgedCase:
    """A case of the judged split.

    Attributes:
        observed: As it was predicted.
        stretches: By position of the margin in the calibration, of each matched instance: area with margin over
            true area. Outer margins of all instances only.
        dice: Of the union of kept instances and the union of references; 1 where both are empty.
    """

    observed: ObservedCase
    stretches: dict[int, list[float]]
    dice: float


def judge_case(
    calibration: Calibration, observed: ObservedCase, prediction: Prediction, reference: InstanceSet
) -> JudgedCase:
    """Return what is kept of a judged case.

    Args:
        calibration: What is judged.
        observed: Of the prediction, with the promises of the calibration's margins.
        prediction: Of every instance, down to score 0, as predicted.
        reference: On the same grid.
    """
    instances = prediction.instances
    kept = instances.scores >= calibration.threshold
    pairs = [(int(i), int(j)) for i, j in match_instances(instances, reference).pairs if kept[i]]
    stretches = {
        k: [_stretch(margin, prediction, i, reference, j) for i, j in pairs]
        for k, margin in enumerate(calibration.margins)
        if margin.promise.side == "outer" and margin.stratum == "all"
    }
    return JudgedCase(
        observed=observed, stretches=stretches, dice=_union_dice(instances.select(kept), reference)
    )


def _stretch(margin: Margin, prediction: Prediction, i: int, reference: InstanceSet, j: int) -> float:
    scale = None
    if margin.promise.floor is not None:
        edge = prediction.edges[i]
        scale = EdgeScale(points=edge.points, sigma=edge.sigma, floor=margin.promise.floor)
    grid = prediction.instances.grid
    return margin.region(prediction.instances.masks[i], grid, scale).area / reference.masks[j].area


def _union_dice(predicted: InstanceSet, reference: InstanceSet) -> float:
    ours, theirs = np.zeros((2, *reference.grid.shape), bool)
    for instances, dense in ((predicted, ours), (reference, theirs)):
        for mask in instances.masks:
            dense[mask.slices] |= mask.crop
    unmeasured = reference.unmeasured()
    if unmeasured is not None:
        ours &= ~unmeasured.dense()
        theirs &= ~unmeasured.dense()
    both = int(ours.sum() + theirs.sum())
    return 2 * int((ours & theirs).sum()) / both if both else 1.0

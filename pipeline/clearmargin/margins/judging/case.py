"""What is kept of a case that a calibration is judged on."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from clearmargin.core import InstanceSet, Prediction
from clearmargin.margins.calibration import Calibration
from clearmargin.margins.observations import ObservedCase
from clearmargin.margins.requirement import SIDES, Side
from clearmargin.metrics.matching import match_instances

__all__ = ["JudgedCase", "judge_case"]


@dataclass(frozen=True, kw_only=True)
class JudgedCase:
    """A case of the judged split.

    Attributes:
        observed: As it was predicted.
        sizes: By side, of each matched instance with a margin: size of its region over its true size. Of the margins
            that are applied.
        dice: Dice of the union of kept instances and the union of references; 1 where both are empty.
    """

    observed: ObservedCase
    sizes: dict[Side, list[float]]
    dice: float


def judge_case(
    calibration: Calibration, observed: ObservedCase, prediction: Prediction, reference: InstanceSet
) -> JudgedCase:
    """Return what is kept of a judged case.

    Args:
        calibration: What is judged.
        observed: What is kept of the prediction, with the floors of the calibration's margins.
        prediction: Prediction of every instance, down to score 0, as predicted.
        reference: On the same grid.
    """
    instances = prediction.instances
    reached = calibration.thresholds.reached(instances)
    kept = np.zeros(len(instances), bool)
    kept[reached] = True
    matches = match_instances(instances, reference)
    pairs = [
        (int(i), int(j))
        for (i, j), iou in zip(matches.pairs, matches.ious, strict=True)
        if kept[i] and iou >= calibration.match_iou
    ]
    sizes: dict[Side, list[float]] = {
        side: [calibration.region(prediction, i, side).area / reference.masks[j].area for i, j in pairs]
        for side in SIDES
        if calibration.margin(side) is not None
    }
    return JudgedCase(observed=observed, sizes=sizes, dice=_union_dice(instances.select(kept), reference))


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

"""What a person is told of a prediction: margins, whom to look at and why, and whether the case is like the others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from clearmargin.core import Image, Prediction, Thresholds, at_least
from clearmargin.margins.calibration import Calibration
from clearmargin.margins.drift import Features
from clearmargin.margins.referral import ReferralRules, point_reasons, reasons
from clearmargin.margins.towards import with_distances

__all__ = ["Assessment", "assess"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Assessment:
    """A prediction with what is to be said of it.

    Attributes:
        prediction: As `Calibration.apply` returns it, if there is a calibration that fits; with the column
            ``refer``, 1 where a person should look and 0 elsewhere.
        reasons: For each instance, why a person should look; nothing where no rule speaks.
        refer_case: Why a person should look at the case as a whole: how it differs from the calibration cases or the
            training images. It refers no instance by itself.
        warnings: Warnings of the case: those, or why the calibration does not apply.
        features: Features of the case, for a check of many together; none if there is no calibration that fits.
        point_reasons: By object and type of a landmark, why a person should look at it (`referral.point_reasons`).
        promised: Whether the calibration's promises hold for the case: it fits, and the case looks like its own.
    """

    prediction: Prediction
    reasons: tuple[tuple[str, ...], ...]
    refer_case: tuple[str, ...]
    warnings: tuple[str, ...]
    features: Features
    promised: bool
    point_reasons: Mapping[tuple[int, int], str] = field(default_factory=dict)


def assess(
    prediction: Prediction,
    image: Image,
    calibration: Calibration | None,
    *,
    thresholds: Thresholds,
    shown: Thresholds | None = None,
    unlike: tuple[str, ...] = (),
    towards: Sequence[str] = (),
) -> Assessment:
    """Apply a model's calibration to a prediction and say which instances a person should look at.

    Args:
        prediction: On the image's grid, of all instances that ``thresholds`` keep, and of those down to the
            calibration's own, by which cases are compared.
        image: The segmented image.
        calibration: Of the model and its way of sampling; None if it was not calibrated: the rules' defaults
            stand.
        thresholds: Least scores, as predicted, of what is returned.
        shown: Least scores, as the calibration scales them, in place of ``thresholds`` if it fits; None for these.
        unlike: How the image differs from the model's training images: a warning each, for which the case is referred.
        towards: Names of targets whose distances are given beside those that were calibrated (`towards`).

    A case that looks like no calibration case has no margins, since none is promised for it.
    """
    warnings: tuple[str, ...] = ()
    features: Features = {}
    applied = at_least(prediction, thresholds)
    rules = ReferralRules()
    refer_case = unlike
    promised = False
    if calibration is not None and calibration.length_unit != image.grid.unit:
        way_out = (
            "give the image a spacing" if image.grid.unit == "px" else "calibrate on images with a spacing"
        )
        warnings = (
            f"the model was calibrated on images in {calibration.length_unit} and this one is in {image.grid.unit}: "
            f"no margins, and scores as predicted; {way_out}",
        )
    elif calibration is not None:
        features = calibration.features(image, prediction)
        warnings = calibration.drift([features]).warnings
        refer_case = (*unlike, *warnings)
        promised = not warnings
        kept = applied if shown is None else calibration.at_least(prediction, shown)
        applied = calibration.apply(kept, margins=promised)
        rules = calibration.referral
    clearances = calibration.applied_clearances() if calibration is not None and promised else ()
    known = () if calibration is None else (one.target for one in calibration.applied_clearances())
    applied = with_distances(applied, (*known, *towards), clearances)
    warnings = (*unlike, *warnings)
    every = tuple(tuple(reasons(applied, i, rules)) for i in range(len(applied.instances)))
    flags = np.array([bool(why) for why in every], np.float32)
    flagged = replace(applied.instances, uncertainty={**applied.instances.uncertainty, "refer": flags})
    return Assessment(
        prediction=replace(applied, instances=flagged),
        reasons=every,
        refer_case=refer_case,
        warnings=warnings,
        features=features,
        promised=promised,
        point_reasons=point_reasons(applied, rules),
    )

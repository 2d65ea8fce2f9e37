"""From observed cases to a calibration: limits, scalings and widths on the fit groups, margins on the margin groups."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from clearmargin.core import Thresholds
from clearmargin.core.grid import Unit
from clearmargin.core.slack import with_slack
from clearmargin.errors import InputError
from clearmargin.margins.calibration import Applied, Calibration, Refusal
from clearmargin.margins.drift import known_cases, score_features
from clearmargin.margins.guarantees import GUARANTEES, Guarantee
from clearmargin.margins.margins import BOTH, CalibrationData, Margin, Sides, fit_margin
from clearmargin.margins.misses import MissThreshold, fit_threshold
from clearmargin.margins.observations import (
    ObservedCase,
    ObservedInstance,
    PixelCounts,
    matched_objects,
    objects_apart,
)
from clearmargin.margins.paired_points import paired_points
from clearmargin.margins.referral import LIMITED, ReferralRules, fit_rules
from clearmargin.margins.regions import POINT_GUARANTEES, PointRegion, choose_shape, fit_region
from clearmargin.margins.scaling import Scaling, fit_isotonic
from clearmargin.margins.scaling_choice import ChosenScaling, fit_scaling
from clearmargin.margins.towards import Clearance, fit_clearance
from clearmargin.margins.width_choice import ChosenWidth, choose_widths
from clearmargin.metrics.calibration import Reliability
from clearmargin.metrics.thresholds import Measure, choose_thresholds
from clearmargin.sampling.samples import Mode
from clearmargin.sampling.spread import TOLERANCE

__all__ = ["Asked", "Limits", "fit_calibration", "fit_limits", "trial_floors"]


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What a calibration shall give.

    Attributes:
        promise: What the margins that are applied guarantee; the others are fitted as well.
        sides: ``each``: an outer and an inner margin are applied, each with its own promise. ``both``: the pair
            whose promise is about both at once.
        alphas: What the mean loss may be; the first is applied.
        point_alphas: The same of the regions of landmarks.
        confidence: None, or the share of calibrations for which the loss is kept.
        miss_alpha: Share of a group's objects that may be missed, merged or cut; None asks for no such promise.
        match_iou: IoU with the true object from which a prediction has a margin; under it, it is missed, merged or cut.
        risk_limit: HD95 over which an instance is one that a person should have looked at, in the grid's unit.
        threshold_measure: What thresholds on scores are chosen anew for; None keeps the model's own. A promise of
            misses comes before it.
        towards: Names of the classes and types of points to which distances get a promise.
        region_limit: Longest semi-axis over which the region of a landmark refers it, in the grid's unit; None refers
            none.
    """

    promise: Guarantee = "object"
    sides: Applied = "each"
    alphas: tuple[float, ...] = (0.1,)
    point_alphas: tuple[float, ...] = (0.05,)
    confidence: float | None = None
    miss_alpha: float | None = None
    match_iou: float = 0.6
    risk_limit: float = 4.0
    threshold_measure: Measure | None = None
    region_limit: float | None = None
    towards: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What is fitted on the fit groups, before a margin is looked at; attributes are those of `Calibration`.

    Attributes:
        widths: By side or both, guarantee and alpha.
    """

    thresholds: Thresholds
    misses: MissThreshold | None
    scores: ChosenScaling
    pixels: ChosenScaling | None
    nsd: Scaling | None
    widths: Mapping[tuple[Sides, Guarantee, float], ChosenWidth]
    referral: ReferralRules
    refused: tuple[Refusal, ...]

    @property
    def floors(self) -> tuple[float, ...]:
        """The floors of the widths that follow the edge."""
        return tuple(sorted({one.width.floor for one in self.widths.values() if one.width.floor is not None}))


def trial_floors(element: float) -> tuple[float, ...]:
    """Return the floors that are tried for margins that follow the edge: half of, one, two and four elements."""
    return tuple(element * factor for factor in (0.5, 1.0, 2.0, 4.0))


def fit_limits(
    cases: Sequence[ObservedCase],
    pixels: Mapping[str, PixelCounts],
    asked: Asked,
    *,
    own_thresholds: Thresholds,
    group: str,
) -> Limits:
    """Fit everything but the margins.

    Args:
        cases: Cases of the fit groups, observed with `trial_floors`.
        pixels: Pixels of the fit groups; empty where predictions have no foreground map.
        asked: Promises and limits to fit.
        own_thresholds: The model's score thresholds, for classes for which none is chosen here.
        group: ``patient``, ``surgery`` or ``image``.

    Raises:
        InputError: No instance and no landmark was predicted in any case, or cases are in mm and in px.
    """
    instances = [one for case in cases for one in case.instances]
    _length_unit(cases)
    if not instances and not any(case.points is not None and case.points.predicted.count for case in cases):
        raise InputError(
            f"the model found nothing in {len(cases)} calibration cases that limits are fitted on, whatever the "
            "score: there is nothing to calibrate; train it longer, or look at the card's intensities"
        )
    refused: list[Refusal] = []
    misses = _misses(cases, asked, group, refused)
    if misses is not None:
        thresholds = Thresholds(misses.threshold, points=own_thresholds.landmarks)
    elif asked.threshold_measure is not None:
        by_label = choose_thresholds([case.scored for case in cases], asked.threshold_measure)
        thresholds = replace(own_thresholds, by_label={**own_thresholds.by_label, **by_label})
    else:
        thresholds = own_thresholds
    kept = [one for one in instances if one.score >= thresholds.of(one.label)]
    scores = fit_scaling(list(_score_counts(cases).values()))
    predicted = [
        (one.columns["predicted_nsd"], one.nsd)
        for one in kept
        if one.matched and "predicted_nsd" in one.columns
    ]
    nsd = fit_isotonic(*zip(*predicted, strict=True)) if predicted else None
    return Limits(
        thresholds=thresholds,
        misses=misses,
        scores=scores,
        pixels=_pixel_scaling(pixels, refused),
        nsd=nsd,
        widths=_widths(cases, asked, thresholds),
        referral=replace(_referral(kept, scores, nsd, asked.risk_limit), region=asked.region_limit),
        refused=tuple(refused),
    )


def fit_calibration(
    limits: Limits,
    fit: Sequence[ObservedCase],
    margin: Sequence[ObservedCase],
    asked: Asked,
    data: CalibrationData,
    *,
    mode: Mode,
    weights_sha256: str,
    card: str,
    checked: str,
) -> Calibration:
    """Fit the margins and put everything together.

    Args:
        limits: Fitted on ``fit``.
        fit: Cases of the fit groups.
        margin: Cases of the margin groups, observed with the limits' floors.
        asked: What shall be had.
        data: Where the groups come from.
        mode: How the model was sampled.
        weights_sha256: Of the model.
        card: Name of the card.
        checked: How it was checked that the model saw none of the cases.

    Raises:
        InputError: Cases are in mm and in px.
    """
    every = [*fit, *margin]
    length_unit = _length_unit(every)
    margins, refused = _margins(margin, limits, asked, data, length_unit) if _masks(every) else ([], [])
    points, lacking = _regions(fit, margin, limits, asked, data, length_unit)
    clearances, unreached = _clearances(margin, limits, asked, data, length_unit)
    return Calibration(
        mode=mode,
        weights_sha256=weights_sha256,
        card=card,
        checked=checked,
        data=data,
        groups={"fit": len({c.group for c in fit}), "margin": len({c.group for c in margin})},
        length_unit=length_unit,
        thresholds=limits.thresholds,
        match_iou=asked.match_iou,
        scores=limits.scores,
        pixels=limits.pixels,
        nsd=limits.nsd,
        tolerance=TOLERANCE,
        misses=limits.misses,
        promise=asked.promise,
        sides=asked.sides,
        margins=tuple(margins),
        points=tuple(points),
        clearances=tuple(clearances),
        refused=(*limits.refused, *refused, *lacking, *unreached),
        referral=limits.referral,
        known_cases=known_cases(
            [_features(case, limits.thresholds) for case in every],
            [case.group for case in every],
            [case.strata for case in every],
        ),
    )


def _features(case: ObservedCase, thresholds: Thresholds) -> dict[str, float]:
    scores = [one.score for one in case.instances if one.score >= thresholds.of(one.label)]
    return dict(case.looks) | score_features(scores)


def _length_unit(cases: Sequence[ObservedCase]) -> Unit:
    units = {case.length_unit for case in cases}
    if len(units) > 1:
        raise InputError(
            "--card has calibration images in mm and others in px: calibrate on a card of one kind"
        )
    return units.pop()


def _widths(
    cases: Sequence[ObservedCase], asked: Asked, thresholds: Thresholds
) -> dict[tuple[Sides, Guarantee, float], ChosenWidth]:
    objects = matched_objects(cases, thresholds, asked.match_iou)
    element = float(np.mean([case.element for case in cases]))
    return {
        (*key, alpha): width
        for alpha in asked.alphas
        for key, width in choose_widths(objects, alpha, element).items()
    }


def _margins(
    cases: Sequence[ObservedCase], limits: Limits, asked: Asked, data: CalibrationData, length_unit: Unit
) -> tuple[list[Margin], list[Refusal]]:
    groups = {case.group for case in cases}
    objects = matched_objects(cases, limits.thresholds, asked.match_iou)
    margins: list[Margin] = []
    refused: list[Refusal] = []
    for alpha in asked.alphas:
        for guarantee in (asked.promise, *(g for g in GUARANTEES if g != asked.promise)):
            for sides in BOTH:
                try:
                    margin = fit_margin(
                        objects,
                        groups,
                        limits.widths[sides, guarantee, alpha].width,
                        guarantee=guarantee,
                        sides=sides,
                        alpha=alpha,
                        confidence=asked.confidence,
                        length_unit=length_unit,
                        match_iou=asked.match_iou,
                        data=data,
                    )
                except InputError as error:
                    named = f"margin '{sides}' by {guarantee}, alpha {alpha:g}"
                    refused.append(Refusal(what=named, why=str(error)))
                else:
                    margins.append(margin)
    return margins, refused


def _masks(cases: Sequence[ObservedCase]) -> bool:
    """Return whether there is anything to have a margin: not for a network of landmarks alone."""
    return any(case.instances or case.points is None for case in cases)


def _regions(
    fit: Sequence[ObservedCase],
    margin: Sequence[ObservedCase],
    limits: Limits,
    asked: Asked,
    data: CalibrationData,
    length_unit: Unit,
) -> tuple[list[PointRegion], list[Refusal]]:
    known, fresh = (
        paired_points([case.points for case in cases if case.points is not None], limits.thresholds.landmarks)
        for cases in (fit, margin)
    )
    regions: list[PointRegion] = []
    refused: list[Refusal] = []
    if not any(case.points is not None for case in margin):
        return regions, refused
    element = float(np.mean([case.element for case in fit]))
    for alpha in asked.point_alphas:
        for guarantee in POINT_GUARANTEES:
            try:
                region = fit_region(
                    fresh,
                    {case.group for case in margin},
                    choose_shape(known, guarantee, alpha, element),
                    guarantee=guarantee,
                    alpha=alpha,
                    confidence=asked.confidence,
                    length_unit=length_unit,
                    data=data,
                )
            except InputError as error:
                refused.append(
                    Refusal(what=f"regions of landmarks by {guarantee}, alpha {alpha:g}", why=str(error))
                )
            else:
                regions.append(region)
    return regions, refused


def _clearances(
    margin: Sequence[ObservedCase], limits: Limits, asked: Asked, data: CalibrationData, length_unit: Unit
) -> tuple[list[Clearance], list[Refusal]]:
    fitted: list[Clearance] = []
    refused: list[Refusal] = []
    for name in asked.towards:
        rows = objects_apart(margin, name, limits.thresholds, asked.match_iou)
        for alpha in asked.alphas:
            for guarantee in POINT_GUARANTEES:
                try:
                    clearance = fit_clearance(
                        name,
                        rows,
                        {case.group for case in margin},
                        limits.thresholds,
                        guarantee=guarantee,
                        alpha=alpha,
                        confidence=asked.confidence,
                        length_unit=length_unit,
                        data=data,
                    )
                except InputError as error:
                    refused.append(
                        Refusal(what=f"distance to '{name}' by {guarantee}, alpha {alpha:g}", why=str(error))
                    )
                else:
                    fitted.append(clearance)
    return fitted, refused


def _misses(
    cases: Sequence[ObservedCase], asked: Asked, group: str, refused: list[Refusal]
) -> MissThreshold | None:
    if asked.miss_alpha is None:
        return None
    references = [one for case in cases for one in case.found]
    groups = {case.group for case in cases}
    try:
        return fit_threshold(references, groups, asked.miss_alpha, group=group, match_iou=asked.match_iou)
    except InputError as error:
        named = f"score threshold for misses, alpha {asked.miss_alpha:g}"
        refused.append(Refusal(what=named, why=str(error)))
        return None


def _score_counts(cases: Sequence[ObservedCase]) -> dict[str, Reliability]:
    """Return the counts of each group's instances."""
    counts: dict[str, Reliability] = {}
    for case in cases:
        of_group = counts.setdefault(case.group, Reliability.zeros())
        of_group.add([one.score for one in case.instances], [one.matched for one in case.instances])
    return counts


def _pixel_scaling(pixels: Mapping[str, PixelCounts], refused: list[Refusal]) -> ChosenScaling | None:
    if not pixels:
        return None
    judged = [{"all pixels": group.every, "pixels near the edge": group.band} for group in pixels.values()]
    try:
        return fit_scaling([counts.doubtful for counts in pixels.values()], judged)
    except InputError as error:
        refused.append(Refusal(what="scaling of pixels", why=str(error)))
        return None


def _referral(
    kept: Sequence[ObservedInstance], scores: ChosenScaling, nsd: Scaling | None, risk_limit: float
) -> ReferralRules:
    """Return the rules, with limits on what `Calibration.apply` makes of the columns."""
    if not kept:
        return ReferralRules()
    raw = np.array([one.score for one in kept], np.float32)
    columns = {"score": scores.apply(raw)}
    for name in LIMITED:
        if all(name in one.columns for one in kept):
            values = np.array([one.columns[name] for one in kept], np.float32)
            columns[name] = nsd.apply(values) if nsd is not None and name == "predicted_nsd" else values
    return fit_rules(columns, [not one.matched or one.hd95 > with_slack(risk_limit) for one in kept])

"""From observed cases to a calibration: limits and scalings on the fit units, margins on the margin units."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from clearmargin.core import Thresholds
from clearmargin.core.grid import Unit
from clearmargin.core.slack import with_slack
from clearmargin.errors import InputError
from clearmargin.metrics.calibration import Reliability
from clearmargin.metrics.thresholds import Measure, choose_thresholds
from clearmargin.uncertainty.calibration import Calibration, Refusal
from clearmargin.uncertainty.chosen import ChosenScaling, fit_scaling
from clearmargin.uncertainty.conformal import conformal_rank
from clearmargin.uncertainty.drift import fingerprint, score_features
from clearmargin.uncertainty.margins import CalibrationData, Margin, fit_margin, fit_margins, unit_scores
from clearmargin.uncertainty.misses import MissThreshold, fit_threshold
from clearmargin.uncertainty.needed import SIDES, Promise, Strata
from clearmargin.uncertainty.observed import ObservedCase, ObservedInstance, PixelCounts, needs_of
from clearmargin.uncertainty.referral import LIMITED, ReferralRules, fit_rules
from clearmargin.uncertainty.sampling import Mode
from clearmargin.uncertainty.scaling import Scaling, fit_isotonic
from clearmargin.uncertainty.spread import TOLERANCE

__all__ = ["Asked", "By", "Limits", "fit_calibration", "fit_limits", "promises_of", "trial_floors"]

By = Literal["class", "size"]


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What a calibration shall give.

    Attributes:
        alphas: Shares of units that may fail.
        shares: Of the instance's surface, 1 among them.
        areas: Of the instance's elements, for outer margins: what is published as coverage of pixels.
        by: What strata are made of; nothing for none.
        risk_limit: HD95 over which an instance is one that a person should have looked at, in the grid's unit.
        threshold_measure: What the thresholds on scores shall be best for.
    """

    alphas: tuple[float, ...] = (0.1, 0.05)
    shares: tuple[float, ...] = (1.0, 0.99, 0.95)
    areas: tuple[float, ...] = ()
    by: tuple[By, ...] = ()
    risk_limit: float = 4.0
    threshold_measure: Measure = "pq"


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What is fitted on the fit units, before a margin is looked at; attributes are those of `Calibration`.

    Attributes:
        floor: Of scaled margins; None where predictions have no edges.
    """

    threshold: float
    misses: tuple[MissThreshold, ...]
    scores: ChosenScaling
    thresholds: Thresholds
    pixels: ChosenScaling | None
    nsd: Scaling | None
    strata: Strata
    floor: float | None
    referral: ReferralRules
    refused: tuple[Refusal, ...]


def trial_floors(element: float) -> tuple[float, ...]:
    """Return the floors that are tried for scaled margins: half of, one, two and four elements."""
    return tuple(element * factor for factor in (0.5, 1.0, 2.0, 4.0))


def promises_of(asked: Asked, floors: Sequence[float] = ()) -> tuple[Promise, ...]:
    """Return what margins shall promise: each side and share, and 100 % of a scaled one for each floor."""
    plain = [Promise(side=side, share=share) for side in SIDES for share in asked.shares]
    areas = [Promise(share=share, of="area") for share in asked.areas]
    return (*plain, *areas, *(Promise(side=side, floor=floor) for floor in floors for side in SIDES))


def fit_limits(
    cases: Sequence[ObservedCase],
    pixels: Mapping[str, PixelCounts],
    asked: Asked,
    *,
    own_threshold: float,
    exchangeable: str,
    class_names: Mapping[int, str],
) -> Limits:
    """Fit everything but the margins.

    Args:
        cases: Of the fit units, observed with the promises of `trial_floors`.
        pixels: Of the fit units; empty where predictions have no foreground map.
        asked: What shall be had.
        own_threshold: The model's score threshold, for classes for which none can be chosen here.
        exchangeable: What a unit is.
        class_names: By label.

    Raises:
        InputError: No instance was predicted in any case, or cases are in mm and in px.
    """
    instances = [one for case in cases for one in case.instances]
    _length_unit(cases)
    if not instances:
        raise InputError(
            f"the model found nothing in {len(cases)} calibration cases that limits are fitted on, whatever the "
            "score: there is nothing to calibrate; train it longer, or look at the card's intensities"
        )
    refused: list[Refusal] = []
    misses = _misses(cases, asked, exchangeable, refused)
    scores = fit_scaling(list(_score_counts(cases).values()))
    thresholds = _thresholds(cases, scores, own_threshold, asked.threshold_measure)
    least = scores.least(thresholds.lowest)  # margins are for what `predict` returns
    threshold = min([least, *(m.threshold for m in misses if m.alpha == max(asked.alphas))])
    kept = [one for one in instances if one.score >= threshold]
    predicted = [
        (one.columns["predicted_nsd"], one.nsd)
        for one in kept
        if one.matched and "predicted_nsd" in one.columns
    ]
    nsd = fit_isotonic(*zip(*predicted, strict=True)) if predicted else None
    return Limits(
        threshold=threshold,
        misses=tuple(misses),
        scores=scores,
        thresholds=thresholds,
        pixels=_pixel_scaling(pixels, refused),
        nsd=nsd,
        strata=_strata(kept, asked, class_names, refused),
        floor=_floor(cases, threshold, max(asked.alphas)),
        referral=_referral(kept, scores, nsd, asked.risk_limit),
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
) -> Calibration:
    """Fit the margins and put everything together.

    Args:
        limits: Fitted on ``fit``.
        fit: Cases of the fit units.
        margin: Cases of the margin units, observed with the promises of the floor.
        asked: What shall be had.
        data: Where the units come from.
        mode: How the model was sampled.
        weights_sha256: Of the model.
        card: Name of the card.

    Raises:
        InputError: Cases are in mm and in px.
    """
    length_unit = _length_unit([*fit, *margin])
    margins, refused = _margins(margin, limits, asked, data)
    return Calibration(
        mode=mode,
        weights_sha256=weights_sha256,
        card=card,
        data=data,
        units={"fit": len({c.unit for c in fit}), "margin": len({c.unit for c in margin})},
        length_unit=length_unit,
        threshold=limits.threshold,
        scores=limits.scores,
        thresholds=limits.thresholds,
        pixels=limits.pixels,
        nsd=limits.nsd,
        tolerance=TOLERANCE,
        misses=limits.misses,
        strata=limits.strata,
        margins=tuple(margins),
        refused=(*limits.refused, *refused),
        referral=limits.referral,
        fingerprint=fingerprint([_features(case, limits.threshold) for case in (*fit, *margin)]),
    )


def _features(case: ObservedCase, threshold: float) -> dict[str, float]:
    scores = [one.score for one in case.instances if one.score >= threshold]
    return dict(case.intensities) | score_features(scores)


def _length_unit(cases: Sequence[ObservedCase]) -> Unit:
    units = {case.length_unit for case in cases}
    if len(units) > 1:
        raise InputError("some calibration images are in mm and others in px: calibrate them apart")
    return units.pop()


def _margins(
    cases: Sequence[ObservedCase], limits: Limits, asked: Asked, data: CalibrationData
) -> tuple[list[Margin], list[Refusal]]:
    units = {case.unit for case in cases}
    found: list[Margin] = []
    refused: list[Refusal] = []
    for promise in promises_of(asked, () if limits.floor is None else (limits.floor,)):
        for alpha in asked.alphas:
            name = f"{promise.side} margin, {promise.short}, alpha {alpha:g}"
            try:
                needs = needs_of(cases, promise, limits.threshold)
                found.append(fit_margin(needs, units, promise, alpha, data))
            except InputError as error:
                refused.append(Refusal(what=name, why=str(error)))
            if limits.strata != Strata():
                stratified = fit_margins(
                    needs_of(cases, promise, limits.threshold, limits.strata), units, promise, alpha, data
                )
                found += stratified.margins.values()
                refused += [
                    Refusal(what=f"{name}, stratum '{stratum}'", why=why)
                    for stratum, why in stratified.refused.items()
                ]
    return found, refused


def _misses(
    cases: Sequence[ObservedCase], asked: Asked, exchangeable: str, refused: list[Refusal]
) -> list[MissThreshold]:
    found = [one for case in cases for one in case.found]
    units = {case.unit for case in cases}
    out = []
    for alpha in asked.alphas:
        try:
            out.append(fit_threshold(found, units, alpha, exchangeable=exchangeable))
        except InputError as error:
            refused.append(Refusal(what=f"score threshold for misses, alpha {alpha:g}", why=str(error)))
    return out


def _thresholds(
    cases: Sequence[ObservedCase], scaling: ChosenScaling, own: float, measure: Measure
) -> Thresholds:
    """Return the thresholds on scaled scores that are best for a measure."""
    images = [
        {
            label: replace(matches, scores=np.asarray(scaling.apply(matches.scores), np.float64))
            for label, matches in case.scored.items()
        }
        for case in cases
    ]
    shown = float(np.clip(scaling.apply(np.array([own])), 0, 1)[0])
    return Thresholds(shown, choose_thresholds(images, measure))


def _score_counts(cases: Sequence[ObservedCase]) -> dict[str, Reliability]:
    """Return the counts of each unit's instances."""
    counts: dict[str, Reliability] = {}
    for case in cases:
        of_unit = counts.setdefault(case.unit, Reliability.zeros())
        of_unit.add([one.score for one in case.instances], [one.matched for one in case.instances])
    return counts


def _pixel_scaling(pixels: Mapping[str, PixelCounts], refused: list[Refusal]) -> ChosenScaling | None:
    if not pixels:
        return None
    try:
        return fit_scaling([counts.doubtful for counts in pixels.values()])
    except InputError as error:
        refused.append(Refusal(what="scaling of pixels", why=str(error)))
        return None


def _strata(
    kept: Sequence[ObservedInstance],
    asked: Asked,
    class_names: Mapping[int, str],
    refused: list[Refusal],
) -> Strata:
    """Return the strata; the limits between sizes are the tertiles of the fit units' matched instances."""
    limits = None
    if "size" in asked.by:
        sizes = [one.size for one in kept if one.matched]
        if sizes:
            low, high = np.quantile(sizes, [1 / 3, 2 / 3])
            limits = (float(low), float(high))
        else:
            refused.append(Refusal(what="strata of size", why="no instance of the fit units is matched"))
    return Strata(class_names=dict(class_names) if "class" in asked.by else {}, size_limits=limits)


def _floor(cases: Sequence[ObservedCase], threshold: float, alpha: float) -> float | None:
    """Return the floor with which outer margins are narrowest on the fit units: factor times the mean scale."""
    scaled = {p for case in cases for one in case.instances for p in one.needs if p.floor is not None}
    widths: dict[float, float] = {}
    for promise in sorted((p for p in scaled if p.side == "outer"), key=lambda p: p.floor or 0.0):
        if promise.floor is None:
            continue
        scores = sorted(unit_scores(needs_of(cases, promise, threshold)).values())
        scales = [
            one.mean_scale[promise.floor]
            for case in cases
            for one in case.instances
            if promise in one.needs and one.score >= threshold
        ]
        if scores:  # with few units the largest score stands for the quantile: nothing is promised here
            factor = scores[min(conformal_rank(len(scores), alpha), len(scores)) - 1]
            widths[promise.floor] = factor * float(np.mean(scales))
    return min(widths, key=lambda floor: widths[floor]) if widths else None


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

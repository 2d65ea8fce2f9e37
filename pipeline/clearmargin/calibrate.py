"""Calibrate a model on a card's calibration split: scores, pixels, and margins of safety with a promise."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from clearmargin.capsules import log_capsule, log_model_card, model_name
from clearmargin.core import Image, InstanceSet, Prediction, Segmenter, Thresholds
from clearmargin.core.groups import PLURALS
from clearmargin.datasets.card import Split
from clearmargin.datasets.cases import Case, Dataset, open_dataset
from clearmargin.datasets.contents import contents_of
from clearmargin.errors import ConfigError, InputError
from clearmargin.files import made_folder
from clearmargin.margins.calibration import Applied, Calibration, save_calibration
from clearmargin.margins.fitting import Asked, fit_calibration, fit_limits, trial_floors
from clearmargin.margins.groups import check_unseen, split_groups
from clearmargin.margins.guarantees import Guarantee, groups_needed
from clearmargin.margins.judging.case import JudgedCase, judge_case
from clearmargin.margins.judging.judge import Judgement, judge
from clearmargin.margins.margins import CalibrationData
from clearmargin.margins.observations import ObservedCase, PixelCounts, element_of, observe
from clearmargin.margins.towards import check_targets
from clearmargin.metrics.thresholds import Measure
from clearmargin.models.segmenter import NetworkSegmenter
from clearmargin.privacy import key_fingerprint
from clearmargin.report.calibration import figures_of, metrics_of, report_text, write_calibration
from clearmargin.report.progress import Bar, counted, progress
from clearmargin.sampling.samples import Mode, SampledSegmenter, open_segmenter, seen_by
from clearmargin.tracking.run import TrackedRun

__all__ = ["Calibrated", "calibrate", "calibrate_cases", "judge_cases", "render_calibration"]

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Calibrated:
    """A calibration, where it lies, and how it was judged.

    Attributes:
        calibration: What was fitted.
        file: Below the model's folder.
        judged: None where no split was to judge it.
        run_id: In the tracking store; empty if it was not tracked.
    """

    calibration: Calibration
    file: Path
    judged: Judgement | None
    run_id: str


def calibrate(
    model: Path,
    card: Path,
    *,
    promise: Guarantee = "object",
    sides: Applied = "each",
    alphas: Sequence[float] | None = None,
    confidence: float | None = None,
    miss_alpha: float | None = None,
    match_iou: float = 0.6,
    uncertainty: Mode = "none",
    split: Split = "calibration",
    judge_on: Split | None = None,
    fit_share: float = 0.3,
    risk_limit: float = 4.0,
    region_limit: float | None = None,
    towards: Sequence[str] = (),
    threshold_measure: Measure | None = None,
    band: float | None = None,
    seed: int = 0,
    device: str | None = None,
    out: Path | None = None,
    track: bool = True,
) -> Calibrated:
    """Calibrate a model and save the calibration with it; log it as a run of its own.

    Args:
        model: A model folder.
        card: A data card with the model's classes.
        promise: What the applied margins guarantee: a share of a group's objects (``object``), all objects of a share
            of the groups (``group``), or a share of an object's edge (``risk``).
        sides: Whether the outer and the inner margin have a promise ``each``, or one about ``both`` at once.
        alphas: What may fail; margins and regions of the first are applied. None: 0.1 for margins, 0.05 for the regions
            of landmarks.
        confidence: Share of calibrations for which the promise is kept; None keeps it in the mean over calibrations.
        miss_alpha: Share of a group's objects that may be missed, merged or cut: it chooses the score threshold. None
            keeps the model's own.
        match_iou: IoU with the true object from which a prediction has a margin; under it the object counts as missed,
            merged or cut.
        uncertainty: How the model is sampled; each way has its own calibration.
        split: Split of the card; the model was trained and chosen on none of its groups.
        judge_on: A further split on which everything is judged; nothing is fitted on it.
        fit_share: Share of the groups for the threshold, widths, scalings and limits; the others are for margins.
        risk_limit: HD95 over which an instance should have been referred, in the images' unit.
        region_limit: Longest semi-axis over which the region of a landmark refers it, in the images' unit; None refers
            none.
        towards: Classes and types of points to which the distance of other objects gets a promise.
        threshold_measure: Choose the least score of each class anew, best for ``pq``, ``f1`` or ``accuracy`` on the fit
            groups; None keeps the model's own.
        band: Half the width of the band of the boundary errors, in the images' unit; None for two elements.
        seed: Random seed for splitting the groups, for random splits and for resamples.
        device: As of ``load_segmenter``.
        out: A folder for tables, figures and the report; None writes none.
        track: Whether to log a run.

    Raises:
        ConfigError: An option, the card, or the model's classes do not fit; the split is empty.
        InputError: A group was trained on, or the model does not say on which it was; nothing was found; too few
            groups to divide.
    """
    asked = _asked(
        Asked(
            promise=promise,
            sides=sides,
            alphas=Asked.alphas if alphas is None else tuple(dict.fromkeys(alphas)),
            point_alphas=Asked.point_alphas if alphas is None else tuple(dict.fromkeys(alphas)),
            confidence=confidence,
            miss_alpha=miss_alpha,
            match_iou=match_iou,
            risk_limit=risk_limit,
            threshold_measure=threshold_measure,
            region_limit=region_limit,
            towards=tuple(dict.fromkeys(towards)),
        )
    )
    if judge_on == split:
        raise ConfigError(f"split '{split}' cannot both calibrate and judge: name another one to judge on")
    if not 0 < fit_share < 1:
        raise ConfigError(f"fit_share: expected a share between 0 and 1, got {fit_share:g}")
    if band is not None and not (math.isfinite(band) and band > 0):
        raise ConfigError(f"band: expected a length of more than 0, got {band:g}")
    if out is not None:
        made_folder(out)  # refused before hours of work
    segmenter = open_segmenter(model, uncertainty, device=device)
    alone = _finds_points_alone(segmenter)
    if alone:
        asked = _of_points(asked, segmenter.provenance.model)
    dataset = open_dataset(card)
    dataset.card.check_model(segmenter.label_map, model="the model", task="calibrate")
    check_targets(asked.towards, segmenter.label_map)
    if alone and not dataset.card.points:
        raise ConfigError(
            f"{segmenter.provenance.model} finds landmarks, and card '{dataset.card.name}' has none: calibrate on a "
            "card with the model's points"
        )
    cases = dataset.split(split)
    others = dataset.split(judge_on) if judge_on is not None else ()
    _divided(cases, asked, fit_share, seed, dataset.card.group)
    checked = _check_unseen(model, dataset, cases, "calibration")
    if others:
        _check_unseen(model, dataset, others, "judged")
    data = _where_from(dataset, cases)
    name = f"calibrate-{{}}-{dataset.card.name}-{uncertainty}"
    run = TrackedRun(name=name.format(model_name(segmenter.provenance)), enabled=track)
    run.on_start(
        params={
            "card": dataset.card.name,
            "split": split,
            "judge": judge_on or "none",
            "uncertainty": uncertainty,
            "promise": promise,
            "sides": sides,
            "alphas": list(asked.point_alphas if alone else asked.alphas),
            "confidence": "none" if confidence is None else confidence,
            "miss_alpha": "none" if miss_alpha is None else miss_alpha,
            "match_iou": match_iou,
            "towards": list(asked.towards),
            "region_limit": "none" if region_limit is None else region_limit,
            "fit_share": fit_share,
            "seed": seed,
            "weights_sha256": segmenter.provenance.weights_sha256,
        },
        tags={"verb": "calibrate"},
    )
    with run:
        run.log_model_used(segmenter.provenance.weights_sha256, name)
        run.log_data(dataset.card.name, data.digest, context=split)
        ranked = segmenter.with_threshold(0.0)
        calibration, margin_cases = calibrate_cases(
            ranked,
            dataset,
            cases,
            asked,
            data,
            mode=uncertainty,
            weights_sha256=segmenter.provenance.weights_sha256,
            own_thresholds=segmenter.thresholds,
            fit_share=fit_share,
            seed=seed,
            band=band,
            checked=checked,
        )
        file = save_calibration(model, calibration)
        for refusal in calibration.refused if miss_alpha is not None and calibration.misses is None else ():
            log.warning("no promise: %s: %s", refusal.what, refusal.why)
        judged = None
        if others:
            judged = judge_cases(
                ranked, dataset, others, calibration, margin_cases, asked, seed=seed, band=band
            )
            calibration = replace(calibration, doubts=judged.doubts(calibration))
            for doubt in calibration.doubts:
                log.warning("%s", doubt)
            file = save_calibration(model, calibration)
        done = Calibrated(calibration=calibration, file=file, judged=judged, run_id=run.run_id)
        _report(done, run, out)
        run.log_artifact(file, "calibration")
        log_capsule(
            run, verb="calibrate", dataset=dataset, cases=(*cases, *others), models={"": model},
            settings=vars(asked)
            | {"uncertainty": uncertainty, "split": split, "judge": judge_on, "fit_share": fit_share},
            snapshots=uncertainty == "checkpoints", seeds={"split": seed}, data={"split": split},
        )  # fmt: skip
        log_model_card(run, model, {}, dataset)
    return done


def _finds_points_alone(segmenter: NetworkSegmenter | SampledSegmenter) -> bool:
    first = segmenter if isinstance(segmenter, NetworkSegmenter) else segmenter.members[0].segmenter
    return bool(getattr(getattr(first.network, "config", None), "learns", "masks") == "landmarks")


def _of_points(asked: Asked, model: str) -> Asked:
    """Return what is asked of a network of landmarks alone, with the alphas of regions in place of those of margins.

    Raises:
        ConfigError: An option is about masks.
    """
    plain = Asked()
    of_masks = {
        "--promise risk": asked.promise == "risk",
        "--sides both": asked.sides != plain.sides,
        "--miss-alpha": asked.miss_alpha is not None,
        "--match-iou": asked.match_iou != plain.match_iou,
        "--risk-limit": asked.risk_limit != plain.risk_limit,
        "--towards": bool(asked.towards),
        "--threshold-measure": asked.threshold_measure is not None,
    }
    wrong = [name for name, given in of_masks.items() if given]
    if wrong:
        raise ConfigError(f"{model} finds landmarks, and {', '.join(wrong)} is about masks: leave it out")
    return replace(asked, alphas=asked.point_alphas)


def _check_unseen(model: Path, dataset: Dataset, cases: Sequence[Case], what: str) -> str:
    """Return in a sentence how it was checked that the model saw none of the cases.

    Raises:
        InputError: It saw some, or it cannot be checked.
    """
    checked = check_unseen(
        [case.group for case in cases],
        contents_of(dataset, counted("recognise images", cases)),
        seen_by(model),
        key=key_fingerprint(),
        card=dataset.card.name,
        what=what,
    )
    if "could not" in checked:
        log.warning("leakage: %s", checked)
    return checked


def calibrate_cases(
    segmenter: Segmenter,
    dataset: Dataset,
    cases: Sequence[Case],
    asked: Asked,
    data: CalibrationData,
    *,
    mode: Mode,
    weights_sha256: str,
    own_thresholds: Thresholds,
    fit_share: float = 0.3,
    seed: int = 0,
    band: float | None = None,
    checked: str = "not checked",
) -> tuple[Calibration, list[ObservedCase]]:
    """Return the calibration on ``cases``, and the observed cases of its margin groups.

    Each case is segmented once: those of the fit groups first, as they say how wide margins are.

    Args:
        segmenter: Returns every instance, down to score 0.
        dataset: Where the cases are read from.
        cases: Cases of groups that the model was not trained or chosen on.
        asked: Promises and limits to fit.
        data: Where they come from.
        mode: How the segmenter samples.
        weights_sha256: Of its weights.
        own_thresholds: The model's score thresholds.
        fit_share: See `calibrate`.
        seed: Random seed for splitting the groups.
        band: See `calibrate`.
        checked: How it was checked that the model saw none of the cases.
    """
    parts = _divided(cases, asked, fit_share, seed, data.group)
    _say_unreached(parts, asked, data.group)
    of_part = {name: [case for case in cases if case.group in groups] for name, groups in parts.items()}
    grid = dataset.read(of_part["fit"][0])[0].grid  # one floor for all images, of about an element
    floors = trial_floors(element_of(grid))
    with progress("calibrate", len(cases)) as bar:
        fit, pixels = _observed(segmenter, dataset, of_part["fit"], floors, band, bar)
        limits = fit_limits(
            fit,
            pixels,
            asked,
            own_thresholds=own_thresholds,
            group=data.group,
        )
        margin, _ = _observed(
            segmenter, dataset, of_part["margin"], limits.floors, band, bar, towards=asked.towards
        )
    calibration = fit_calibration(
        limits,
        fit,
        margin,
        asked,
        data,
        mode=mode,
        weights_sha256=weights_sha256,
        card=dataset.card.name,
        checked=checked,
    )
    return calibration, margin


def judge_cases(
    segmenter: Segmenter,
    dataset: Dataset,
    cases: Sequence[Case],
    calibration: Calibration,
    margin_cases: Sequence[ObservedCase],
    asked: Asked,
    *,
    seed: int = 0,
    band: float | None = None,
    resamples: int = 1000,
) -> Judgement:
    """Return how a calibration does on cases that nothing was fitted on; arguments as of `calibrate_cases`."""
    known = {margin.width.floor for margin in calibration.margins}
    floors = tuple(sorted(floor for floor in known if floor is not None))
    cases_judged: list[JudgedCase] = []
    before: _Pixels = {}
    after: _Pixels = {}
    with progress("judge", len(cases)) as bar:
        for case, image, prediction, reference in _predicted(segmenter, dataset, cases):
            observed = observe(
                case.group,
                image,
                prediction,
                reference,
                floors=floors,
                strata=case.strata,
                towards=asked.towards,
            )
            cases_judged.append(judge_case(calibration, observed, prediction, reference))
            if calibration.pixels is not None and "foreground" in prediction.maps:
                _count(before, case.group, prediction, reference, band)
                scaled = np.asarray(calibration.pixels.apply(prediction.maps["foreground"]), np.float32)
                after.setdefault(case.group, PixelCounts()).add(scaled, reference, band)
            bar.advance()
    return judge(
        calibration,
        cases_judged,
        (before, after),
        margin_cases,
        risk_limit=asked.risk_limit,
        rng=np.random.default_rng(seed),
        resamples=resamples,
    )


def _divided(
    cases: Sequence[Case], asked: Asked, fit_share: float, seed: int, group: str
) -> dict[str, tuple[str, ...]]:
    """Return the groups of the fit part and of the margin part; too few are refused."""
    parts = split_groups([c.group for c in cases], {"fit": fit_share, "margin": 1 - fit_share}, seed)
    _refuse_too_few(parts, asked, group)
    return parts


def _refuse_too_few(parts: Mapping[str, Sequence[str]], asked: Asked, group: str) -> None:
    """Refuse groups that reach no alpha before anything is segmented."""
    margin, fit = len(parts["margin"]), len(parts["fit"])
    needed = {alpha: groups_needed(alpha, asked.confidence) for alpha in asked.alphas}
    least = min(needed.values())
    if margin < least:
        missing = math.ceil((least - margin) * (margin + fit) / margin)
        raise InputError(
            f"too little to calibrate on: alpha {max(asked.alphas):g} needs {least} {PLURALS[group]} for margins or "
            f"regions, and of the {margin + fit} in the split {margin} are for them: add about {missing}, or ask for "
            f"--alpha {_least_alpha(margin, asked.confidence):g}"
        )


def _least_alpha(groups: int, confidence: float | None) -> float:
    """Return the least alpha, in hundredths, that so many groups reach."""
    return next(k / 100 for k in range(1, 100) if groups_needed(k / 100, confidence) <= groups)


def _say_unreached(parts: Mapping[str, Sequence[str]], asked: Asked, group: str) -> None:
    """Say which alphas get no promise, while others do."""
    margin = len(parts["margin"])
    for alpha in asked.alphas:
        number = groups_needed(alpha, asked.confidence)
        if margin < number:
            log.warning(
                "no promise at alpha %g: it needs %d %s for margins, got %d",
                alpha, number, PLURALS[group], margin,
            )  # fmt: skip


_Pixels = dict[str, PixelCounts]


def _asked(asked: Asked) -> Asked:
    """Return what is asked for, once every number fits."""
    if not asked.alphas:
        raise ConfigError("give at least one alpha: the share that may fail, such as 0.1")
    for alpha in (*asked.alphas, *(() if asked.miss_alpha is None else (asked.miss_alpha,))):
        if not 0 < alpha < 1:
            raise ConfigError(f"alpha: expected the share that may fail, between 0 and 1, got {alpha:g}")
    if asked.confidence is not None and not 0 < asked.confidence < 1:
        raise ConfigError(
            f"confidence: expected a share between 0 and 1, such as 0.9, got {asked.confidence:g}"
        )
    if not 0.5 <= asked.match_iou < 1:
        raise ConfigError(f"match_iou: expected an IoU from 0.5 to 1, got {asked.match_iou:g}")
    return asked


def _predicted(
    segmenter: Segmenter, dataset: Dataset, cases: Sequence[Case]
) -> Iterator[tuple[Case, Image, Prediction, InstanceSet]]:
    for case in cases:
        image, reference = dataset.read(case)
        yield case, image, segmenter(image), reference


def _observed(
    segmenter: Segmenter,
    dataset: Dataset,
    cases: Sequence[Case],
    floors: Sequence[float],
    band: float | None,
    bar: Bar,
    towards: Sequence[str] = (),
) -> tuple[list[ObservedCase], _Pixels]:
    """Return what is kept of each case, and the counts of pixels by group; none without a foreground map."""
    observed: list[ObservedCase] = []
    pixels: _Pixels = {}
    for case, image, prediction, reference in _predicted(segmenter, dataset, cases):
        one = observe(
            case.group, image, prediction, reference, floors=floors, strata=case.strata, towards=towards
        )
        observed.append(one)
        _count(pixels, case.group, prediction, reference, band)
        bar.advance()
    return observed, pixels


def _count(
    pixels: _Pixels, group: str, prediction: Prediction, reference: InstanceSet, band: float | None
) -> None:
    if "foreground" in prediction.maps:
        pixels.setdefault(group, PixelCounts()).add(prediction.maps["foreground"], reference, band)


def _where_from(dataset: Dataset, cases: Sequence[Case]) -> CalibrationData:
    return CalibrationData(
        group=dataset.card.group,
        date=datetime.now(UTC).date().isoformat(),
        digest=replace(dataset, cases=tuple(cases)).digest(),
    )


def _report(done: Calibrated, run: TrackedRun, out: Path | None) -> None:
    figures = figures_of(done.judged) if done.judged is not None else {}
    run.log_metrics(metrics_of(done.calibration, done.judged), step=0)
    for name, figure in figures.items():
        run.log_figure(figure, f"figures/{name}.png")
    with TemporaryDirectory() as folder:
        write_calibration(Path(folder), done.calibration, done.judged, {})
        run.log_artifact(Path(folder), "calibration")
    if out is not None:
        write_calibration(out, done.calibration, done.judged, figures)


def render_calibration(done: Calibrated) -> str:
    """Return the report as the console shows it."""
    return report_text(done.calibration, done.judged)

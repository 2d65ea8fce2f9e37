"""Segment DICOM, volumes, pictures, folders of pictures, or a clip, and write what was found."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from clearmargin.config import validate
from clearmargin.core import Image, InstanceSet, Prediction
from clearmargin.errors import ConfigError, InputError
from clearmargin.failures import reason_of
from clearmargin.formats import READERS, VIDEO_SUFFIXES, case_of, is_dicom, is_video, open_video, read_image
from clearmargin.models.domain import mismatch
from clearmargin.models.segmenter import NetworkSegmenter
from clearmargin.models.settings import PredictionSettings
from clearmargin.privacy import case_of_file, record_case
from clearmargin.report.case_folder import (
    by_class,
    case_rows,
    one_run,
    picture,
    write_case,
    write_picture,
    write_rows,
    write_summary,
)
from clearmargin.report.progress import progress
from clearmargin.transforms.settings import Window
from clearmargin.uncertainty.assessment import Assessment, assess
from clearmargin.uncertainty.calibration import Calibration, load_calibration
from clearmargin.uncertainty.drift import Features
from clearmargin.uncertainty.sampling import Mode, SampledSegmenter, open_segmenter

if TYPE_CHECKING:
    from clearmargin.formats.video import Clip

__all__ = ["Predicted", "PredictionReport", "predict"]

log = logging.getLogger(__name__)

Look = Callable[[Image], Assessment]


@dataclass(frozen=True, kw_only=True)
class Predicted:
    """One input that was segmented.

    Attributes:
        case: Its case id, which is the name of its folder.
        folder: What was written lies here.
        instances: How many were found, over all slices or frames.
        by_class: The same for each class name.
        referred: How many of them a person should look at; ``instances.csv`` says why.
        warnings: How the case differs from the calibration cases, or why the calibration does not apply.
    """

    case: str
    folder: Path
    instances: int
    by_class: dict[str, int]
    referred: int
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class PredictionReport:
    """What a prediction did.

    Attributes:
        done: The inputs that were segmented, in order.
        failed: Case id and message of those that failed, with the error's type if it is not one of ours.
        promises: What the margins hold for, a sentence each; nothing where the model was not calibrated.
        drift: How all inputs together differ from the calibration cases.
    """

    done: tuple[Predicted, ...]
    failed: dict[str, str] = field(default_factory=dict)
    promises: tuple[str, ...] = ()
    drift: tuple[str, ...] = ()


def predict(
    source: Path,
    out: Path,
    *,
    model: Path,
    uncertainty: Mode = "none",
    series: str | None = None,
    device: str | None = None,
    runtime: str = "torch",
    score_threshold: float | None = None,
    tile: int | None = None,
    display_window: bool = False,
    allow_gaps: bool = False,
    allow_tilt: bool = False,
    force: bool = False,
    on_done: Callable[[Predicted], object] = lambda _: None,
    volume: str | None = None,
    tolerance_mm: float | None = None,
) -> PredictionReport:
    """Segment what lies at ``source`` and write the results under ``out``.

    Args:
        source: A DICOM file or folder, a volume file, a picture, a folder of pictures or volumes, or a clip.
        out: A folder; each input gets its own in it, named by its case id (the private crosswalk says which
            file that is).
        model: A model folder; for ``ensemble`` an ensemble's.
        uncertainty: What is sampled (`uncertainty.sampling.open_segmenter`). Any but ``none`` adds maps and the
            columns that say how far the samples lie apart.
        series: Which DICOM series, if there are several.
        device: ``cpu`` or ``cuda``; None takes CUDA where it is.
        runtime: ``torch``, or what the model was exported to.
        score_threshold: Instances below it are not returned; None takes the model's own.
        tile: Images larger than so many network pixels are shown in square tiles; None does as the model's settings
            say.
        display_window: The input's values 0..255 are what a screen shows of the model's intensity window, as in
            captures and clips of CT.
        allow_gaps: Resample a DICOM series with missing slices; it is refused otherwise.
        allow_tilt: Straighten a DICOM series of a tilted gantry; it is refused otherwise.
        force: Segment also an image of another kind than the model's training images; it is refused otherwise.
        on_done: Called with each input as soon as its results are written.
        volume: Which volume of a DICOM series that holds several phases, echoes or stacks; ``all`` makes each a case.
        tolerance_mm: How far a DICOM slice's corners may lie from the grid; None for 0.01 mm. ``summary.json`` says
            what was accepted.

    Returns:
        What was done. Inputs of a folder that were refused are listed, and the others are done all the same.

    Raises:
        InputError: ``source`` is refused, or nothing in it could be read.
    """
    if score_threshold is not None and not 0 <= score_threshold <= 1:
        raise ConfigError(f"a score threshold lies in [0, 1], not {score_threshold}")
    if not source.exists():
        raise InputError(f"no file or folder '{source}' (looked for at {source.absolute()})")

    def adjust(segmenter: NetworkSegmenter) -> NetworkSegmenter:
        changed = segmenter if tile is None else _in_tiles(segmenter, tile)
        return _for_display(changed) if display_window else changed

    segmenter = open_segmenter(model, uncertainty, device=device, runtime=runtime, adjust=adjust)
    calibration = load_calibration(model, uncertainty, segmenter.provenance.weights_sha256)
    wanted = segmenter.choice.score_threshold if calibration is None else calibration.threshold
    if score_threshold is not None:
        wanted = score_threshold
    if calibration is not None:
        if wanted != calibration.threshold:
            log.warning(
                "the promises are about instances with a score of %.3g or more, and --score-threshold is %.3g",
                calibration.threshold,
                wanted,
            )
        segmenter = segmenter.with_threshold(min(wanted, calibration.threshold))
    else:
        segmenter = segmenter.with_threshold(wanted)

    def look(image: Image) -> Assessment:
        unlike = _unlike(segmenter, image, displayed=display_window, force=force)
        return assess(segmenter(image), image, calibration, threshold=wanted, unlike=unlike)

    made_with = _made_with(calibration, wanted)
    out.mkdir(parents=True, exist_ok=True)
    if is_video(source):
        report = PredictionReport(done=(_predict_clip(source, out, look, made_with),))
        on_done(report.done[0])
    elif source.is_dir() and not is_dicom(source):
        report = _predict_folder(source, out, look, calibration, made_with, on_done)
    else:
        gates = {"allow_gaps": allow_gaps, "allow_tilt": allow_tilt, "tolerance_mm": tolerance_mm}
        done = []
        for image in _volumes(source, series, volume, gates):
            record_case(image.source.case, source)
            if image.source.kind == "dicom":  # before the time is spent: results are DICOM, too
                _ = [c.codes for c in segmenter.label_map.classes]
            done.append(_predict_image(image, out, look(image), made_with))
            on_done(done[-1])
        report = PredictionReport(done=tuple(done))
    return replace(report, promises=_promises(calibration, wanted))


def _volumes(source: Path, series: str | None, volume: str | None, gates: dict[str, Any]) -> Iterator[Image]:
    if volume == "all" and is_dicom(source):
        from clearmargin.formats.dicom import read_dicom_volumes

        yield from read_dicom_volumes(source, series=series, **gates)
    else:
        yield read_image(source, series=series, volume=volume, **gates)


def _unlike(
    segmenter: NetworkSegmenter | SampledSegmenter, image: Image, *, displayed: bool, force: bool
) -> tuple[str, ...]:
    """Return how an image differs from the training images.

    Raises:
        InputError: It is of another kind altogether, and that is not forced.
    """
    remarks = _remarks(image)
    if segmenter.domain is None:  # a model folder written before models knew their training images
        return remarks
    difference = mismatch(segmenter.domain, image, segmenter.image.intensity, displayed=displayed)
    if difference.refusals and not force:
        raise InputError(
            f"{image.source.case}: {'; '.join(difference.refusals)}: choose a model for such images, or segment it all "
            "the same with --force, which refers the case"
        )
    return remarks + difference.refusals + difference.warnings


def _remarks(image: Image) -> tuple[str, ...]:
    """Return what a reader had to decide, and how many values are not finite.

    Raises:
        InputError: No value is finite.
    """
    if not image.not_finite:
        return image.source.remarks
    if image.not_finite == image.pixels.size:
        raise InputError(f"{image.source.case}: none of its {image.pixels.size} values is finite")
    counted = f"{image.not_finite} of {image.pixels.size} values are not finite (NaN or infinite): they were left out"
    return (*image.source.remarks, counted)


def _promises(calibration: Calibration | None, threshold: float) -> tuple[str, ...]:
    """Return the sentences of what is applied; none of misses if another threshold misses more."""
    if calibration is None:
        return ()
    misses = calibration.misses
    kept = misses is not None and threshold <= misses.threshold
    return (*(str(margin) for margin in calibration.applied()), *([str(misses)] if kept else []))


def _made_with(calibration: Calibration | None, threshold: float) -> dict[str, Any]:
    """Return what ``summary.json`` says of the calibration."""
    if calibration is None:
        return {"calibration": None}
    data = calibration.data
    return {
        "calibration": {
            "card": calibration.card,
            "unit": data.exchangeable,
            "units": dict(calibration.units),
            "date": data.date,
            "data_sha256": data.digest,
            "score_threshold": calibration.threshold,
            "match_iou": calibration.match_iou,
            "promises": list(_promises(calibration, threshold)),
        }
    }


def _in_tiles(segmenter: NetworkSegmenter, tile: int) -> NetworkSegmenter:
    overlap = min(segmenter.choice.tile_overlap, tile // 64 * 32)  # at most half a tile, in multiples of 32
    chosen = segmenter.choice.model_dump() | {"tile": (tile, tile), "tile_overlap": overlap}
    return replace(segmenter, choice=validate(chosen, PredictionSettings, name="--tile"))


def _for_display(segmenter: NetworkSegmenter) -> NetworkSegmenter:
    if not isinstance(segmenter.image.intensity, Window):
        raise ConfigError(
            "--display-window is for models with one intensity window; "
            f"this one takes {segmenter.image.intensity.kind}"
        )
    shown = segmenter.image.model_copy(update={"intensity": Window(low=0, high=255)})
    return replace(segmenter, image=shown)


def _predict_folder(
    folder: Path,
    out: Path,
    look: Look,
    calibration: Calibration | None,
    made_with: dict[str, Any],
    on_done: Callable[[Predicted], object],
) -> PredictionReport:
    every = sorted(p for p in folder.iterdir() if p.is_file() and not p.name.startswith("."))
    files = [p for p in every if p.name.lower().endswith((*READERS, *VIDEO_SUFFIXES))]
    if files and len(files) < len(every):
        log.warning("%d file(s) of other kinds in the folder are left out", len(every) - len(files))
    if not files:
        raise InputError(
            f"'{folder}' holds nothing that can be segmented: expected DICOM, or files ending in {', '.join(READERS)}"
        )
    done: list[Predicted] = []
    failed: dict[str, str] = {}
    features: list[Features] = []
    with progress("predict", len(files)) as bar:
        for path in files:
            name = case_of_file(path)
            try:
                name = case_of(path)
                if name in {*failed, *(d.case for d in done)}:
                    raise InputError(f"another file is called '{name}', too: leave out --names plain")
                if is_video(path):
                    done.append(_predict_clip(path, out, look, made_with))
                else:
                    image = read_image(path)
                    record_case(image.source.case, path)
                    assessed = look(image)
                    done.append(_predict_image(image, out, assessed, made_with))
                    features.append(assessed.features)
                on_done(done[-1])
            except Exception as error:  # noqa: BLE001 - whatever one file provokes, the others are done
                reason = reason_of(error)
                while name in failed:  # with plain names
                    name += "-2"
                record_case(name, path)
                # The message may name the file, which was not typed by the user: the crosswalk knows it.
                failed[name] = reason.replace(path.name, name)
                log.warning("%s failed: %s", name, failed[name])
            bar.advance()
    if not done:
        first = next(iter(failed.values()))
        raise InputError(
            f"none of the {len(files)} files in '{folder}' could be segmented; the first: {first}"
        )
    drift = (
        calibration.drift([f for f in features if f]).warnings
        if calibration is not None and any(features)
        else ()
    )
    return PredictionReport(done=tuple(done), failed=failed, drift=drift)


def _predict_image(image: Image, out: Path, assessed: Assessment, made_with: dict[str, Any]) -> Predicted:
    folder = out / image.source.case
    write_case(folder, assessed, image, **made_with)
    return Predicted(
        case=image.source.case,
        folder=folder,
        instances=len(assessed.prediction.instances),
        by_class=by_class(assessed.prediction),
        referred=sum(bool(why) for why in assessed.reasons),
        warnings=assessed.warnings,
    )


def _predict_clip(path: Path, out: Path, look: Look, made_with: dict[str, Any]) -> Predicted:
    clip = open_video(path)
    record_case(clip.case, path)
    folder = out / clip.case
    with one_run(folder) as draft:
        predicted = _predict_frames(clip, path, draft, look, made_with)
    return replace(predicted, folder=folder)


def _predict_frames(clip: Clip, path: Path, folder: Path, look: Look, made_with: dict[str, Any]) -> Predicted:
    """Segment every frame on its own; tables carry frame and time, and a DICOM clip gets a SEG of all frames."""
    from clearmargin.formats.coco import write_coco
    from clearmargin.formats.video import write_video

    rows: list[dict[str, Any]] = []
    counts: dict[str, int] = {}
    warned: set[str] = set()
    refer_case: set[str] = set()
    last: list[tuple[Image, Prediction]] = []
    masks: dict[int, Prediction] = {}
    numbers: list[int] = []
    with progress("predict", clip.frame_count) as bar:
        frames = clip.frames()
        first = next(frames, None)
        if first is None:
            raise InputError(f"'{path.name}' holds no frame that can be decoded")
        (folder / "overlay").mkdir()

        def pictures() -> Iterator[NDArray[np.uint8]]:
            image: Image | None = first
            while image is not None:
                assessed = look(image)
                prediction = assessed.prediction
                number = image.source.frame or 0
                rows.extend(case_rows(assessed, image))
                warned.update(assessed.warnings)
                refer_case.update(assessed.refer_case)
                for name, count in by_class(prediction).items():
                    counts[name] = counts.get(name, 0) + count
                drawn = picture(prediction, image)
                # One picture a second lies beside the clip, for those who cannot play it.
                if number % max(1, round(clip.fps)) == 0:
                    write_picture(folder / "overlay" / f"frame-{number:06d}.png", drawn)
                last[:] = [(image, prediction)]
                numbers.append(number)
                if len(prediction.instances):
                    masks[number] = replace(prediction, maps={}, edges=(), outer=(), inner=())
                bar.advance(instances=str(len(prediction.instances)))
                yield np.moveaxis(drawn, -1, 0)
                image = next(frames, None)

        write_video(folder / "overlay.mp4", pictures(), clip.fps)
    write_rows(folder, rows)
    image, prediction = last[0]
    empty = InstanceSet.empty(image.grid)
    write_coco(
        folder / "coco.json",
        [(f"frame-{n:06d}", masks[n].instances if n in masks else empty) for n in numbers],
        prediction.label_map,
    )
    if masks and image.source.kind == "dicom":
        from clearmargin.formats.dicom_seg import write_clip_seg

        try:
            write_clip_seg(folder / "seg.dcm", masks, image)
        except InputError as error:  # a clip that no result can refer to keeps its tables and pictures
            warned.add(f"no SEG was written: {error}")
    referred = sum(bool(row["refer_because"]) for row in rows)
    warnings = tuple(sorted(warned))
    write_summary(
        folder,
        prediction,
        image,
        len(rows),
        referred=referred,
        refer_case=sorted(refer_case),
        warnings=list(warnings),
        **made_with,
    )
    return Predicted(
        case=image.source.case,
        folder=folder,
        instances=len(rows),
        by_class=counts,
        referred=referred,
        warnings=warnings,
    )

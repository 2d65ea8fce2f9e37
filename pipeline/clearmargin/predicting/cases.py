"""One input from its file to its case folder: an image, a volume, every volume of a series, or a clip."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from clearmargin.core import Image, Prediction
from clearmargin.errors import InputError
from clearmargin.formats import Opened
from clearmargin.formats.video import Clip, video_writer
from clearmargin.margins.assessment import Assessment
from clearmargin.margins.drift import Features
from clearmargin.outputs.folder import Written, by_class, one_run, write_case, write_footage
from clearmargin.outputs.writers import (
    Footage,
    Planned,
    case_rows,
    chosen_outputs,
    clip_outputs,
    picture,
    point_rows,
    write_picture,
)
from clearmargin.predicting.predictor import Predictor
from clearmargin.privacy import naming, paths_of_case, record_case
from clearmargin.report.progress import progress

log = logging.getLogger(__name__)

__all__ = ["Predicted", "Reading", "predict_clip", "predict_source", "refuse_another", "write_image"]


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How DICOM is read; see `formats.read_image`.

    Attributes:
        series: Which series, if there are several.
        volume: Which volume of a series that holds several; ``all`` makes each a case.
        allow_gaps: Resample a series with missing slices.
        allow_tilt: Straighten a tilted gantry.
        tolerance_mm: How far a slice's corners may lie from the grid; None for 0.01 mm.
    """

    series: str | None = None
    volume: str | None = None
    allow_gaps: bool = False
    allow_tilt: bool = False
    tolerance_mm: float | None = None


@dataclass(frozen=True, kw_only=True)
class Predicted:
    """One input that was segmented.

    Attributes:
        case: Its case id, which is the name of its folder.
        folder: What was written lies here.
        instances: How many were detected, over all slices or frames.
        by_class: The same for each class name.
        referred: How many of them, and of the landmarks, a person should look at; ``instances.csv`` and
            ``landmarks.csv`` say why.
        warnings: How the case differs from the calibration cases, or why the calibration does not apply.
        left_out: Why an output that was to be written was not, by its name.
        features: Features of the case, for a check of many together; none if the model has no calibration that fits.
        promised: Whether the promises of the model's calibration hold for it.
    """

    case: str
    folder: Path
    instances: int
    by_class: dict[str, int]
    referred: int
    warnings: tuple[str, ...] = ()
    left_out: Mapping[str, str] = field(default_factory=dict)
    features: Features = field(default_factory=dict, repr=False)
    promised: bool = False


def predict_source(
    opened: Opened,
    out: Path,
    predictor: Predictor,
    *,
    reading: Reading = Reading(),
    outputs: Sequence[str] | None = None,
) -> Iterator[Predicted]:
    """Segment what a path holds, but for folders of pictures, and write a case folder for each image in it.

    Args:
        opened: A DICOM series, a file or a clip.
        out: Case folders are made in it.
        predictor: The model.
        reading: How DICOM is read.
        outputs: What is written (`outputs.writers.named_outputs`); None for the default.

    Raises:
        InputError: It cannot be read, or the model is not for such images.
    """
    if opened.kind == "clip":
        clip = opened.clip()
        refuse_another(out, clip.case, opened.path)
        record_case(clip.case, opened.path)
        yield predict_clip(clip, out / clip.case, predictor, outputs)
        return
    if opened.others:
        log.warning(
            "%d volume(s), picture(s) or video(s) in the folder are not DICOM and are left out: without --series and "
            "--volume each input is segmented",
            opened.others,
        )
    for image in opened.images(**vars(reading)):
        refuse_another(out, image.source.case, opened.path)
        record_case(image.source.case, opened.path)
        yield _image(image, out / image.source.case, predictor, outputs)


def refuse_another(out: Path, case: str, path: Path) -> None:
    """Refuse to put the results of one input in place of another's of the same plain name.

    Raises:
        InputError: The crosswalk knows a path of that name outside ``path``, and there is a folder of results.
    """
    if naming() != "plain" or not (out / case).exists():
        return
    others = [known for known in paths_of_case(case) if not Path(known).is_relative_to(path.resolve())]
    if others:
        raise InputError(
            f"'{case}' in '{out}' may be of another input of that name: leave out --names plain, or name another folder"
        )


def _image(image: Image, folder: Path, predictor: Predictor, outputs: Sequence[str] | None) -> Predicted:
    planned = chosen_outputs(outputs, image, predictor.label_map)  # before the time is spent
    return write_image(image, folder, predictor.predict_case(image), predictor, planned)


def write_image(
    image: Image,
    folder: Path,
    assessed: Assessment,
    predictor: Predictor,
    planned: Planned,
    *,
    predecessor: str | None = None,
) -> Predicted:
    """Write an image's case folder, and say what was predicted.

    Args:
        image: The image.
        folder: Its case folder.
        assessed: What `Predictor.predict_case` gave.
        predictor: The model.
        planned: Outputs that the image can have (`outputs.writers.chosen_outputs`).
        predecessor: The folder of the result whose place this one takes, as the series has grown.
    """
    written = write_case(
        folder,
        assessed,
        image,
        planned,
        calibration=predictor.calibration_record(promised=assessed.promised),
        predecessor=predecessor,
    )
    return Predicted(
        case=image.source.case,
        folder=folder,
        instances=len(assessed.prediction.instances),
        by_class=by_class(assessed.prediction, label_map=predictor.label_map),
        referred=sum(bool(why) for why in assessed.reasons) + len(assessed.point_reasons),
        warnings=_warnings(assessed.warnings, written),
        left_out=written.left_out,
        features=assessed.features,
        promised=assessed.promised,
    )


def predict_clip(clip: Clip, folder: Path, predictor: Predictor, outputs: Sequence[str] | None) -> Predicted:
    """Segment every frame on its own; pictures are written as frames come, the rest at the end."""
    with one_run(folder) as draft:
        footage, planned, refer_case, warned, promised = _frames(clip, draft, predictor, outputs)
        written = write_footage(
            draft,
            footage,
            predictor.provenance,
            planned,
            refer_case=refer_case,
            warnings=warned,
            calibration=predictor.calibration_record(promised=promised),
        )
    return Predicted(
        case=clip.case,
        folder=folder,
        instances=len(footage.rows),
        by_class=by_class(*footage.predictions.values(), label_map=predictor.label_map),
        referred=sum(bool(row.get("refer_because")) for row in (*footage.rows, *footage.point_rows)),
        warnings=_warnings(warned, written),
        left_out=written.left_out,
        promised=promised,
    )


def _frames(
    clip: Clip, folder: Path, predictor: Predictor, outputs: Sequence[str] | None
) -> tuple[Footage, Planned, list[str], list[str], bool]:
    """Predict every frame and draw it.

    Returns:
        What is kept of all frames, the outputs, why to look at the clip, warnings, and whether any frame is promised
        something.

    Raises:
        InputError: No frame can be decoded.
    """
    rows: list[dict[str, Any]] = []
    rows_of_points: list[dict[str, Any]] = []
    numbers: list[int] = []
    predictions: dict[int, Prediction] = {}
    refer_case: set[str] = set()
    warned: set[str] = set()
    promised = False
    planned = Planned(outputs=())
    shown: Image | None = None
    with ExitStack() as open_files, progress("predict", clip.frame_count) as bar:
        for image, assessed in predictor.predict_clip(clip):
            if shown is None:
                shown, planned = image, clip_outputs(outputs, image, predictor.label_map)
                draws = "overlay" in planned.outputs
                draw = open_files.enter_context(_drawing(folder, clip.fps, draws=draws))
            number, prediction = image.source.frame or 0, assessed.prediction
            draw(prediction, image)
            rows += case_rows(assessed, image)
            rows_of_points += point_rows(assessed, image)
            refer_case.update(assessed.refer_case)
            warned.update(assessed.warnings)
            promised = promised or assessed.promised
            numbers.append(number)
            landmarks = prediction.instances.landmarks
            if len(prediction.instances) or (landmarks is not None and landmarks.count):
                predictions[number] = replace(prediction, maps={}, edges=(), outer=(), inner=(), image=None)
            bar.advance(instances=str(len(prediction.instances)))
    if shown is None:
        raise InputError(f"{clip.case}: no frame can be decoded")
    if clip.corrupt:
        warned.add(f"{len(clip.corrupt)} of {clip.frame_count} frames are damaged and were left out")
    footage = Footage(
        image=shown,
        label_map=predictor.label_map,
        rows=rows,
        numbers=numbers,
        predictions=predictions,
        frame=clip.frame,
        point_rows=rows_of_points,
    )
    return footage, planned, sorted(refer_case), sorted(warned), promised


@contextmanager
def _drawing(folder: Path, fps: float, *, draws: bool) -> Iterator[Callable[[Prediction, Image], None]]:
    """Give a function that draws a frame: into a video, and one a second beside it for those who cannot play it."""
    if not draws:
        yield lambda prediction, image: None
        return
    every = max(1, round(fps))
    (folder / "overlay").mkdir()
    with video_writer(folder / "overlay.mp4", fps) as add:

        def draw(prediction: Prediction, image: Image) -> None:
            drawn = picture(prediction, image)
            number = image.source.frame or 0
            if number % every == 0:
                write_picture(folder / "overlay" / f"frame-{number:06d}.png", drawn)
            add(np.moveaxis(drawn, -1, 0))

        yield draw


def _warnings(warnings: Sequence[str], written: Written) -> tuple[str, ...]:
    return (*warnings, *(f"{name} was not written: {why}" for name, why in written.left_out.items()))

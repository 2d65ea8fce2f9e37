"""A model as it is asked: how it is sampled, from which score on, and how it is shown an image."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from clearmargin.config import validate
from clearmargin.core import Image, LabelMap, Provenance, Thresholds
from clearmargin.errors import ConfigError, InputError
from clearmargin.formats.video import Clip
from clearmargin.margins.assessment import Assessment, assess
from clearmargin.margins.calibration import Calibration, load_calibration
from clearmargin.margins.towards import check_targets, promise_between_margins
from clearmargin.models.domain import mismatch
from clearmargin.models.segmenter import NetworkSegmenter
from clearmargin.models.settings import PredictionSettings
from clearmargin.sampling.samples import Mode, SampledSegmenter, open_segmenter
from clearmargin.transforms.settings import Window

__all__ = ["Predictor"]

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Predictor:
    """A model and how it is asked, as values: it may go to another process, which loads the weights itself, once.

    Attributes:
        model: A model folder; for ``ensemble`` an ensemble's.
        uncertainty: What is sampled (`sampling.samples.open_segmenter`).
        device: ``cpu`` or ``cuda``; None takes CUDA if there is one.
        runtime: ``torch``, or what the model was exported to.
        score_threshold: Least score of what is returned, as it is shown; None takes the calibration's thresholds, or
            else the model's.
        tile: Images larger than so many network pixels are shown in square tiles; None does as the model's settings
            say.
        display_window: The input's values 0..255 are what a screen shows of the model's intensity window.
        force: Segment also an image of another kind than the model's training images.
        towards: Classes and types of points to which distances are given, beside those that were calibrated.
    """

    model: Path
    uncertainty: Mode = "none"
    device: str | None = None
    runtime: str = "torch"
    score_threshold: float | None = None
    tile: int | None = None
    display_window: bool = False
    force: bool = False
    towards: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.score_threshold is not None and not 0 <= self.score_threshold <= 1:
            raise ConfigError(f"score_threshold: expected a value in [0, 1], got {self.score_threshold}")

    def __getstate__(self) -> dict[str, Any]:
        """Return the values alone: what was loaded stays in its process."""
        return {name: self.__dict__[name] for name in self.__dataclass_fields__}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)

    @cached_property
    def calibration(self) -> Calibration | None:
        """The model's calibration for this way of sampling; None if it has none."""
        return load_calibration(self.model, self.uncertainty, self._opened.provenance.weights_sha256)

    @property
    def asked(self) -> Thresholds | None:
        """The score threshold that was asked for, which is of scores as they are shown; None for the model's own."""
        return None if self.score_threshold is None else Thresholds(self.score_threshold)

    @cached_property
    def thresholds(self) -> Thresholds:
        """Least scores, as predicted, of the instances that are returned."""
        if self.calibration is None:
            return self.asked or self._opened.thresholds
        if self.score_threshold is None:
            return self.calibration.thresholds
        return Thresholds(self.calibration.scores.least(self.score_threshold))

    @cached_property
    def segmenter(self) -> NetworkSegmenter | SampledSegmenter:
        """The network, with its weights: loaded when it is first asked for.

        It returns instances down to the calibration's threshold, too, by which cases are compared.
        """
        least = self.thresholds.lowest
        if self.calibration is not None:
            if self.score_threshold is not None and self.thresholds != self.calibration.thresholds:
                log.warning(
                    "the promises are about instances with a score of %.3g or more, and --score-threshold is %.3g",
                    self.calibration.shown(self.calibration.thresholds).stated[0],
                    self.score_threshold,
                )
            least = min(least, self.calibration.thresholds.lowest)
        elif self.score_threshold is None:
            return self._opened  # with its own threshold for each class
        return self._opened.with_threshold(least)

    @property
    def label_map(self) -> LabelMap:
        """What the labels mean."""
        return self._opened.label_map

    @property
    def provenance(self) -> Provenance:
        """What makes the predictions."""
        return self._opened.provenance

    def predict_case(self, image: Image) -> Assessment:
        """Return the prediction of one image, volume or frame, with its margins, referrals and warnings.

        Raises:
            InputError: The image is of another kind than the training images, and ``force`` is not set; no value of
                it is finite; channels or spacing are not what the network needs.
        """
        unlike = self._unlike(image)
        prediction = replace(self.segmenter(image), image=image)
        return assess(
            prediction,
            image,
            self.calibration,
            thresholds=self.thresholds,
            shown=self.asked,
            unlike=unlike,
            towards=self.towards,
        )

    def predict_clip(self, clip: Clip) -> Iterator[tuple[Image, Assessment]]:
        """Yield each frame of a clip that can be decoded with its prediction, in order."""
        for frame in clip.frames():
            yield frame, self.predict_case(frame)

    def promises(self) -> tuple[str, ...]:
        """Return what is promised, a sentence each; none if the model was not calibrated.

        Nothing is promised of misses if another threshold misses more.
        """
        if self.calibration is None:
            return ()
        misses = self.calibration.misses
        kept = misses is not None and self.thresholds.stated[1] <= misses.threshold
        around = self.calibration.applied_points()
        applied = (
            *self.calibration.applied(),
            *(() if around is None else (around,)),
            *self.calibration.applied_clearances(),
        )
        between = (promise_between_margins(self.calibration, name, self.label_map) for name in self.towards)
        return (*map(str, applied), *between, *([str(misses)] if kept else []), *self.calibration.doubts)

    def calibration_record(self, *, promised: bool) -> dict[str, Any] | None:
        """Return what ``summary.json`` says of the calibration; None if there is none.

        Args:
            promised: Whether its promises hold for the case (`Assessment.promised`); they are left out otherwise.
        """
        if self.calibration is None:
            return None
        data = self.calibration.data
        return {
            "card": self.calibration.card,
            "group": data.group,
            "groups": dict(self.calibration.groups),
            "date": data.date,
            "data_sha256": data.digest,
            "score_thresholds": self.thresholds.named(self.label_map),
            "match_iou": self.calibration.match_iou,
            "promises": list(self.promises()) if promised else [],
        }

    @cached_property
    def _opened(self) -> NetworkSegmenter | SampledSegmenter:
        opened = open_segmenter(
            self.model, self.uncertainty, device=self.device, runtime=self.runtime, adjust=self._adjusted
        )
        check_targets(self.towards, opened.label_map)
        return opened

    def _adjusted(self, segmenter: NetworkSegmenter) -> NetworkSegmenter:
        if self.tile is not None:
            overlap = min(
                segmenter.choice.tile_overlap, self.tile // 64 * 32
            )  # half a tile, in multiples of 32
            settings = segmenter.choice.model_dump() | {
                "tile": (self.tile, self.tile),
                "tile_overlap": overlap,
            }
            segmenter = replace(segmenter, choice=validate(settings, PredictionSettings, name="--tile"))
        if not self.display_window:
            return segmenter
        if not isinstance(segmenter.image.intensity, Window):
            raise ConfigError(
                "--display-window is for models with one intensity window; "
                f"this one takes {segmenter.image.intensity.kind}"
            )
        shown = segmenter.image.model_copy(update={"intensity": Window(low=0, high=255)})
        return replace(segmenter, image=shown)

    def _unlike(self, image: Image) -> tuple[str, ...]:
        """Return how an image differs from the training images, and what a reader had to decide."""
        remarks = _remarks(image)
        segmenter = self.segmenter
        if segmenter.domain is None:  # a model folder written before models knew their training images
            return remarks
        difference = mismatch(
            segmenter.domain, image, segmenter.image.intensity, displayed=self.display_window
        )
        if difference.refusals and not self.force:
            raise InputError(
                f"{image.source.case}: {'; '.join(difference.refusals)}: choose a model for such images, or segment it "
                "all the same with --force, which refers the case"
            )
        spacing = segmenter.unlike_spacing(image.grid)
        return remarks + difference.refusals + difference.warnings + (() if spacing is None else (spacing,))


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

"""Which detections become instances, as settings: no torch, so that a configuration is checked at once."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from clearmargin.config import Settings
from clearmargin.core import LabelMap, Thresholds

__all__ = ["SCORE_THRESHOLD", "PredictionSettings"]

SCORE_THRESHOLD = 0.5
"""Least score if nothing says which would be better."""

_Score = Annotated[float, Field(ge=0, le=1)]


class PredictionSettings(Settings):
    """Which detections become instances. Saved with the model."""

    score_threshold: _Score | dict[str, _Score] | None = Field(
        None,
        description="score threshold of an instance, or one per class by name; null: train chooses one for each class "
        "on the validation split, and 0.5 if there is none",
    )
    landmark_threshold: _Score | None = Field(
        None,
        description="score threshold of a landmark; null: score_threshold if that is a number, else train chooses one "
        "on the validation split, and 0.5 if there is none",
    )
    mask_nms: float = Field(
        0.5, gt=0, le=1, description="mask IoU above which the lower score of one class goes; 1 keeps all"
    )
    containment: float = Field(
        0.5,
        gt=0,
        le=1,
        description="share of a mask in better ones of its class above which it goes, as a part of them or several of "
        "them as one; 1 keeps all",
    )
    nested: tuple[str, ...] | None = Field(
        None,
        description="classes whose objects lie in one another: containment is not asked of them; none: train looks "
        "at its data",
    )
    link_iou: float = Field(0.2, ge=0, le=1, description="least overlap that links instances of two slices")
    link_gap: int = Field(
        0,
        ge=0,
        le=2,
        description="slices in a row without an instance that a link bridges; they are interpolated",
    )
    tile: tuple[int, int] | None = Field(
        None, description="(Y, X) network pixels shown at a time; none: the whole image at once"
    )
    tile_overlap: int = Field(128, ge=32, description="network pixels that neighbouring tiles share")

    def thresholds(self, label_map: LabelMap) -> Thresholds:
        """Return the least scores by label; 0.5 for a class that has none.

        Raises:
            ConfigError: A class of ``score_threshold`` is not in the label map.
        """
        least = self.score_threshold
        if isinstance(least, dict):
            by_label = {label_map.by_name(name).id: value for name, value in least.items()}
            return Thresholds(SCORE_THRESHOLD, by_label, points=self.landmark_threshold)
        return Thresholds(SCORE_THRESHOLD if least is None else least, points=self.landmark_threshold)

    @model_validator(mode="after")
    def _tiles_fit(self) -> PredictionSettings:
        if self.tile is None:
            return self
        if any(n < 64 or n % 32 for n in self.tile) or self.tile_overlap % 32:
            raise ValueError(
                "tile extents are multiples of 32 from 64 on, tile_overlap from 32 on: "
                f"not {self.tile} and {self.tile_overlap}"
            )
        if 2 * self.tile_overlap > min(self.tile):
            raise ValueError(f"tile_overlap is at most half a tile, not {self.tile_overlap} of {self.tile}")
        return self

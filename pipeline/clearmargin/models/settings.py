"""Which detections become instances, as settings: no torch, so that a configuration is checked at once."""

from __future__ import annotations

from pydantic import Field, model_validator

from clearmargin.config import Settings

__all__ = ["PredictionSettings"]


class PredictionSettings(Settings):
    """Which detections become instances. Saved with the model."""

    score_threshold: float = Field(0.5, ge=0, le=1, description="instances below it are not returned")
    mask_nms: float = Field(
        0.5, gt=0, le=1, description="mask IoU above which the lower score of one label goes; 1 keeps all"
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

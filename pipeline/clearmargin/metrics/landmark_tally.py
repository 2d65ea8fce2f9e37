"""Landmarks of a set of images, added up image by image."""

from __future__ import annotations

import numpy as np

from clearmargin.core import InstanceSet
from clearmargin.metrics.detection import PrecisionTally
from clearmargin.metrics.keypoints import match_oks
from clearmargin.metrics.landmark_rows import PointRow, point_rows

__all__ = ["LandmarkTally"]

_MOST = 20  # of a type in an image, as COCO counts objects of key points


class LandmarkTally:
    """Landmarks of the images in which they were looked for.

    Attributes:
        rows: A row per landmark.
    """

    def __init__(self, threshold: float) -> None:
        self._threshold = threshold
        self._tally = PrecisionTally()
        self._has_areas = True
        self.rows: list[PointRow] = []

    def add(self, predicted: InstanceSet, reference: InstanceSet, *, case: str, group: str) -> None:
        """Count one image; what is below the threshold counts for average precision alone."""
        ours, theirs = predicted.landmarks, reference.landmarks
        if ours is None or theirs is None:
            return
        kept = ours.at_least(self._threshold)
        self.rows += point_rows(kept, theirs, grid=reference.grid, case=case, group=group)
        self._has_areas = self._has_areas and bool(np.isfinite(theirs.areas).all())
        if self._has_areas:
            self._tally.add(match_oks(ours, theirs, by_type=ours.owners is None))

    def precision(self) -> dict[str, float]:
        """Return OKS average precision, of objects or of a type each; none if some object's area is not known."""
        if not self.rows or not self._has_areas:
            return {}
        average = self._tally.result(_MOST)
        return {"landmarks/oks_ap": average.ap, "landmarks/oks_ap50": average.ap50}

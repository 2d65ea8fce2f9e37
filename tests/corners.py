"""Where the corners of DICOM slices lie by their headers alone: the oracle of the tests on stacks and volumes."""

from __future__ import annotations

import warnings

import numpy as np
import pydicom
from pydicom.dataset import Dataset

__all__ = ["worst_corner"]


def _corners(position, orientation, spacing, rows, columns) -> np.ndarray:
    """The corner pixels by the equation of PS3.3, C.7.6.2.1.1, as the headers state them."""
    p, o, s = (np.array([float(v) for v in values]) for values in (position, orientation, spacing))
    return np.array(
        [p + o[:3] * s[1] * x + o[3:] * s[0] * y for y in (0, rows - 1) for x in (0, columns - 1)]
    )


def _header_corners(dataset: Dataset) -> list[np.ndarray]:
    """The corners of every frame, by pydicom alone."""
    size = dataset.Rows, dataset.Columns
    if "PerFrameFunctionalGroupsSequence" not in dataset:
        return [
            _corners(
                dataset.ImagePositionPatient, dataset.ImageOrientationPatient, dataset.PixelSpacing, *size
            )
        ]
    shared = dataset.SharedFunctionalGroupsSequence[0]
    found = []
    for item in dataset.PerFrameFunctionalGroupsSequence:
        groups = [
            (item if name in item else shared)[name][0]
            for name in ("PlanePositionSequence", "PlaneOrientationSequence", "PixelMeasuresSequence")
        ]
        position, orientation = groups[0].ImagePositionPatient, groups[1].ImageOrientationPatient
        found.append(_corners(position, orientation, groups[2].PixelSpacing, *size))
    return found


def worst_corner(image) -> float:
    """Largest distance of a header's corner from the grid; slices matched by the file or frame that they are of."""
    planes = []
    for file in image.source.files:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            dataset = pydicom.dcmread(file, stop_before_pixels=True, force=True)
            planes.append(_header_corners(dataset))
    if image.source.frames:
        corners = [planes[file][frame] for file, frame in image.source.frames]
    else:
        corners = [frame for frames in planes for frame in frames]
    if image.grid.ndim == 2:
        index = [(y, x) for y in (0, image.grid.shape[0] - 1) for x in (0, image.grid.shape[1] - 1)]
        return float(np.linalg.norm(image.grid.to_world(index) - corners[0], axis=1).max())
    assert len(corners) == image.grid.shape[0]
    worst = 0.0
    for z, expected in enumerate(corners):
        index = [(z, y, x) for y in (0, image.grid.shape[1] - 1) for x in (0, image.grid.shape[2] - 1)]
        worst = max(worst, float(np.linalg.norm(image.grid.to_world(index) - expected, axis=1).max()))
    return worst

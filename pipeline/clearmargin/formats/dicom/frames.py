"""Frames of a derived object: where each lies, which source frame it comes from (PS3.3, C.7.6.16)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple, TypedDict

import numpy as np

from clearmargin.core import Code, Grid
from clearmargin.formats.dicom.output import Origin, derived_uid, is_placed

if TYPE_CHECKING:
    from highdicom.content import PixelMeasuresSequence, PlaneOrientationSequence, PlanePositionSequence
    from pydicom.dataset import Dataset

__all__ = ["FrameParts", "HeadGeometry", "frame_item", "frame_parts", "head_geometry", "set_frames"]

_FOR_PROCESSING = Code(value="121322", scheme="DCM", meaning="Source image for image processing operation")


class HeadGeometry(TypedDict, total=False):
    """highdicom's geometry arguments."""

    plane_positions: list[PlanePositionSequence]
    plane_orientation: PlaneOrientationSequence
    pixel_measures: PixelMeasuresSequence


class FrameParts(NamedTuple):
    """What all frames of a slice share.

    Attributes:
        position: Where the slice lies; None without a place in the patient.
        derivation: The source frame; an empty list if there is none.
    """

    position: PlanePositionSequence | None
    derivation: list[Dataset]


def head_geometry(grid: Grid) -> HeadGeometry:
    """Return highdicom's geometry arguments for one plane; none for a picture without a place.

    highdicom keeps the stand-in headers' values instead of ours if they come close to them, so they only bring its
    objects into being: :func:`set_frames` states the geometry.
    """
    if not is_placed(grid):
        return {}
    return {
        "plane_positions": [_plane_position(grid, 0)],
        "plane_orientation": _plane_orientation(grid),
        "pixel_measures": _pixel_measures(grid),
    }


def _plane_orientation(grid: Grid) -> PlaneOrientationSequence:
    import highdicom

    right = grid.affine[:3, 2] / np.linalg.norm(grid.affine[:3, 2])
    down = grid.affine[:3, 1] / np.linalg.norm(grid.affine[:3, 1])
    cosines = [float(v) for v in np.concatenate((right, down))]
    return highdicom.PlaneOrientationSequence("PATIENT", cosines)


def _plane_position(grid: Grid, z: int) -> PlanePositionSequence:
    import highdicom

    return highdicom.PlanePositionSequence("PATIENT", [float(v) for v in grid.affine[:3] @ (z, 0, 0, 1)])


def _pixel_measures(grid: Grid) -> PixelMeasuresSequence:
    """Return the spacing, and the slices' distance as their thickness; a lone picture's thickness is not known."""
    import highdicom

    if grid.ndim == 2:
        measures = highdicom.PixelMeasuresSequence(pixel_spacing=list(grid.spacing), slice_thickness=1.0)
        del measures[0].SliceThickness
        return measures
    normal = np.cross(grid.affine[:3, 2], grid.affine[:3, 1])
    distance = abs(float(grid.affine[:3, 0] @ normal / np.linalg.norm(normal)))
    return highdicom.PixelMeasuresSequence(
        pixel_spacing=[grid.spacing[1], grid.spacing[2]],
        slice_thickness=distance,
        spacing_between_slices=distance,
    )


def frame_parts(grid: Grid, z: int, origin: Origin | None, derivation: Code) -> FrameParts:
    """Return what the frames of slice ``z`` share.

    Args:
        grid: The object's grid.
        z: The slice.
        origin: The source frame.
        derivation: How the frame was made from it.
    """
    position = _plane_position(grid, z) if is_placed(grid) else None
    return FrameParts(position, [] if origin is None else [_derivation(origin, derivation)])


def frame_item(grid: Grid, index: Sequence[int], parts: FrameParts) -> Dataset:
    """Return the functional group item of a frame.

    Args:
        grid: The object's grid.
        index: Dimension index values, the slice's rank last; left out if there is no place in the patient.
        parts: From :func:`frame_parts`.
    """
    from pydicom.dataset import Dataset

    item = Dataset()
    content = Dataset()
    position, derivation = parts
    content.DimensionIndexValues = list(index) if position or len(index) == 1 else list(index[:-1])
    item.FrameContentSequence = [content]
    if position is not None:
        item.PlanePositionSequence = position
    item.DerivationImageSequence = derivation
    return item


def set_frames(dataset: Dataset, grid: Grid, items: list[Dataset]) -> None:
    """Put frames of the grid's size and at its place instead of highdicom's one-pixel frames."""
    organization = derived_uid("dimensions", dataset.SOPInstanceUID)
    for item in (*dataset.DimensionIndexSequence, *dataset.DimensionOrganizationSequence):
        item.DimensionOrganizationUID = organization
    shared = dataset.SharedFunctionalGroupsSequence[0]
    if "SegmentIdentificationSequence" in shared:
        del shared.SegmentIdentificationSequence
    if is_placed(grid):
        shared.PixelMeasuresSequence = _pixel_measures(grid)
        shared.PlaneOrientationSequence = _plane_orientation(grid)
    dataset.ContentCreatorName = ""  # type 2, which highdicom leaves out
    dataset.PerFrameFunctionalGroupsSequence = items
    dataset.NumberOfFrames = len(items)
    dataset.Rows, dataset.Columns = grid.shape[-2:]


def _derivation(origin: Origin, derivation: Code) -> Dataset:
    from pydicom.dataset import Dataset

    source = Dataset()
    source.ReferencedSOPClassUID = origin.header.SOPClassUID
    source.ReferencedSOPInstanceUID = origin.header.SOPInstanceUID
    if origin.frame is not None:
        source.ReferencedFrameNumber = origin.frame
    source.SpatialLocationsPreserved = "YES" if origin.preserved else "NO"
    source.PurposeOfReferenceCodeSequence = [_code_item(_FOR_PROCESSING)]
    item = Dataset()
    item.SourceImageSequence = [source]
    item.DerivationCodeSequence = [_code_item(derivation)]
    return item


def _code_item(code: Code) -> Dataset:
    from pydicom.dataset import Dataset

    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = code.value, code.scheme, code.meaning
    return item

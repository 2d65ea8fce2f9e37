"""Long and short axis of each instance as lines in a Comprehensive 3D SR (TID 1500), for viewers that draw them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clearmargin.core import Code, Grid, Image, Prediction
from clearmargin.formats.dicom.boundary import quiet_pydicom
from clearmargin.formats.dicom.output import coded, derived_uid, provenance_parts, source_headers
from clearmargin.formats.dicom.structured_report import write_report

__all__ = ["DrawnAxes", "write_axes"]

# The name by which OHIF (Cornerstone3D) knows that two lines are one measurement.
_TRACKING = "Cornerstone3DTools@^0.1.0:Bidirectional"
_NAMES = (
    Code(value="103339001", scheme="SCT", meaning="Long Axis"),
    Code(value="103340004", scheme="SCT", meaning="Short Axis"),
)
_MM = Code(value="mm", scheme="UCUM", meaning="millimeter")


@dataclass(frozen=True, kw_only=True, eq=False)
class DrawnAxes:
    """Both axes of one instance in one slice.

    Attributes:
        instance: Its index in the prediction.
        z: The slice.
        ends: ``(4, 2)``, ``(y, x)`` in mm from the outer corner of the slice's first pixel: both ends of the long axis,
            and both of the short one.
    """

    instance: int
    z: int
    ends: NDArray[np.float64]


@quiet_pydicom()
def write_axes(path: Path, prediction: Prediction, image: Image, axes: Sequence[DrawnAxes]) -> Path | None:
    """Write a measurement group for each instance's axes; return the path, or None if there is no instance.

    Raises:
        InputError: The image does not come from DICOM, or its slices are not files of their own.
    """
    if not axes:
        return None
    headers = source_headers(image)
    values = [(a.instance, a.z, a.ends.round(4).tolist()) for a in axes]
    sources = [str(h.SOPInstanceUID) for h in headers]
    identity = (*sources, *provenance_parts(prediction.provenance), repr(values))
    frame = str(headers[0].FrameOfReferenceUID)
    groups = [_group(prediction, a, image.grid, frame, identity) for a in axes]
    write_report(Path(path), "axes", 904, headers, headers, groups, prediction.provenance, identity)
    return Path(path)


def _group(prediction: Prediction, axes: DrawnAxes, grid: Grid, frame: str, identity: Sequence[str]) -> Any:
    import highdicom

    kind = prediction.label_map.by_id(int(prediction.instances.labels[axes.instance]))
    index = np.column_stack(
        [np.full(4, axes.z), axes.ends / grid.spacing[-2:] - 0.5]
    )  # centres are whole numbers
    points = grid.to_world(index)
    measurements = []
    for name, first in zip(_NAMES, (0, 2), strict=True):
        length = float(np.linalg.norm(axes.ends[first] - axes.ends[first + 1]))
        measurement = highdicom.sr.Measurement(name=coded(name), value=round(length, 4), unit=coded(_MM))
        measurement[0].ContentSequence = highdicom.sr.ContentSequence(
            [_line(points[first : first + 2], frame)], is_sr=True
        )
        measurements.append(measurement)
    return highdicom.sr.MeasurementsAndQualitativeEvaluations(
        tracking_identifier=highdicom.sr.TrackingIdentifier(
            uid=derived_uid("axes of", str(axes.instance), *identity), identifier=_TRACKING
        ),
        finding_type=coded(kind.codes[1]),
        finding_category=coded(kind.codes[0]),
        measurements=measurements,
    )


def _line(points: NDArray[np.float64], frame_of_reference: str) -> Any:
    import highdicom
    from pydicom.sr.codedict import codes

    return highdicom.sr.Scoord3DContentItem(
        name=codes.DCM.Path,
        graphic_type=highdicom.sr.GraphicTypeValues3D.POLYLINE,
        graphic_data=points,
        frame_of_reference_uid=frame_of_reference,
        relationship_type=highdicom.sr.RelationshipTypeValues.INFERRED_FROM,
    )

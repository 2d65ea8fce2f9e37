"""Landmarks in a DICOM SR by TID 1500: a measurement group per point, on a frame (SCOORD) or in the patient (SCOORD3D).

What is read need not be ours: a point is any SCOORD or SCOORD3D of the type POINT within a measurement group, as
highdicom, Cornerstone and Slicer write it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from clearmargin.core import Code, Grid, Image, Landmarks, Provenance
from clearmargin.core.landmarks import SEEN, VISIBILITIES
from clearmargin.errors import InputError
from clearmargin.formats.dicom.boundary import (
    converting,
    dicom_boundary,
    items_of,
    quiet_pydicom,
    read_header,
)
from clearmargin.formats.dicom.output import (
    coded,
    derived_uid,
    provenance_parts,
    source_headers,
    source_planes,
)
from clearmargin.formats.dicom.structured_report import (
    SCHEME,
    model_of,
    quantity_code,
    unit_code,
    write_report,
)

__all__ = ["ReportedPoint", "points_on", "read_landmark_report", "write_landmark_report"]

_VISIBILITY = Code(value="visibility", scheme=SCHEME, meaning="Visibility of the landmark")
_OBJECT = Code(value="object", scheme=SCHEME, meaning="Number of the object")
_NAME = Code(value="landmark", scheme=SCHEME, meaning="Name of the landmark")
_TRACKING = "Cornerstone3DTools@^0.1.0:Probe"  # by which OHIF (Cornerstone3D) knows that a group is a point
_ONE = Code(value="1", scheme="UCUM", meaning="no units")


class ReportedPoint(NamedTuple):
    """A point of a report.

    ``codes`` are value and scheme of its finding and finding site, ``names`` what it is called (our name, the tracking
    identifier, the codes' meanings), ``object`` the number of its object, "" if it is not said. ``at`` is ``(3,)`` LPS
    in mm of ``frame_of_reference``, or ``(x, y)`` in pixels from the corner of the first pixel of ``image`` (its SOP
    instance UID) in ``frames`` (from 1; none: all).
    """

    names: tuple[str, ...]
    codes: tuple[tuple[str, str], ...]
    object: str
    visible: int
    at: NDArray[np.float64]
    frame_of_reference: str
    image: str
    frames: tuple[int, ...]


@quiet_pydicom()
def write_landmark_report(
    path: Path,
    frames: Mapping[int, Landmarks] | Landmarks,
    rows: Sequence[Mapping[str, Any]],
    provenance: Provenance,
    image: Image,
) -> Path | None:
    """Write a measurement group per landmark; return the path, or None if there is no landmark.

    Points of volumes are SCOORD3D in the source's frame of reference, those of pictures and clips SCOORD on their
    frame. Score, standard deviations and the calibrated region's axes are measurements; the region itself is the
    ellipse (ellipsoid) that its longest axis was measured on.

    Args:
        path: The file to write.
        frames: Landmarks on ``image.grid``; of a clip by number of the frame from 0.
        rows: Of each landmark in that order, as the tables have them: what is measured.
        provenance: Of the predictions.
        image: The image, or any frame of the clip, read from DICOM.

    Raises:
        InputError: The image does not come from DICOM. ConfigError: A type of points has no code.
    """
    if not rows:
        return None
    headers = source_headers(image)
    sets = [(None, frames)] if isinstance(frames, Landmarks) else list(frames.items())
    identity = (
        *(str(h.SOPInstanceUID) for h in headers),
        *provenance_parts(provenance),
        repr([(frame, one.points.tolist(), one.visible.tolist()) for frame, one in sets]),
        repr([list(row.items()) for row in rows]),
    )
    numbered = iter(enumerate(rows))
    groups = [
        _group(one, int(i), int(k), frame, next(numbered), provenance, image, headers, identity)
        for frame, one in sets
        for i, k in np.argwhere(one.visible > 0)
    ]
    write_report(path, "landmarks", 905, headers, headers, groups, provenance, identity)
    return path


def _group(
    landmarks: Landmarks,
    i: int,
    k: int,
    frame: int | None,
    row: tuple[int, Mapping[str, Any]],
    provenance: Provenance,
    image: Image,
    headers: Sequence[Any],
    identity: Sequence[str],
) -> Any:
    import highdicom

    sr = highdicom.sr
    kind, number = landmarks.types[k], frame if frame is not None else image.source.frame
    at = landmarks.points[i, k]
    places = {"score": _drawn("POINT", at[None], number, image, headers)}
    if landmarks.regions is not None:
        shape = "ELLIPSE" if image.grid.ndim == 2 else "ELLIPSOID"
        ends = at + _axis_ends(landmarks.regions[i, k], image.grid)
        places[f"region_major_{image.grid.unit}"] = _drawn(shape, ends, number, image, headers)
    measurements = [
        sr.Measurement(
            name=coded(quantity_code(column)),
            value=float(value),
            unit=coded(unit_code(column)),
            referenced_coordinates=[places[column]] if column in places else None,
        )
        for column, value in row[1].items()
        if column.startswith(("score", "sd_", "region_")) and isinstance(value, float)
    ]
    measurements.append(sr.Measurement(name=coded(_OBJECT), value=i + 1, unit=coded(_ONE)))
    visibility = VISIBILITIES[landmarks.visible[i, k]]
    evaluations = [
        sr.QualitativeEvaluation(name=coded(_NAME), value=coded(quantity_code(kind.name, meaning=kind.name))),
        sr.QualitativeEvaluation(
            name=coded(_VISIBILITY),
            value=coded(Code(value=visibility, scheme=SCHEME, meaning=visibility.capitalize())),
        ),
    ]
    if row[1].get("refer_because"):
        look = Code(value="refer", scheme=SCHEME, meaning="A person should look at it")
        reason = Code(value="region", scheme=SCHEME, meaning="Its region is over the stated limit")
        evaluations.append(sr.QualitativeEvaluation(name=coded(look), value=coded(reason)))
    return sr.MeasurementsAndQualitativeEvaluations(
        tracking_identifier=sr.TrackingIdentifier(
            uid=derived_uid("landmark", row[0], *identity), identifier=_TRACKING
        ),
        finding_type=coded(kind.coded),
        algorithm_id=model_of(provenance),
        measurements=measurements,
        qualitative_evaluations=evaluations,
    )


def _drawn(
    shape: str, points: NDArray[np.float64], number: int | None, image: Image, headers: Sequence[Any]
) -> Any:
    """Return indices ``(N, ndim)`` as the coordinates that a measurement was made on, in the patient or on the frame.

    SCOORD counts columns and rows from the corner of the first pixel.
    """
    import highdicom

    sr = highdicom.sr
    if image.grid.ndim == 3:
        return sr.CoordinatesForMeasurement3D(
            graphic_type=shape,
            graphic_data=image.grid.to_world(points),
            frame_of_reference_uid=str(headers[0].FrameOfReferenceUID),
        )
    source = sr.SourceImageForRegion(
        str(headers[0].SOPClassUID), str(headers[0].SOPInstanceUID), None if number is None else [number + 1]
    )
    return sr.CoordinatesForMeasurement(
        graphic_type=shape, graphic_data=points[:, ::-1] + 0.5, source_image=source
    )


def _axis_ends(squares: NDArray[np.float64], grid: Grid) -> NDArray[np.float64]:
    """Return the ends ``(2 ndim, ndim)`` of the axes, in indices from the centre; axes are at right angles in space."""
    steps = grid.affine[:3, 3 - grid.ndim : 3]
    values, axes = np.linalg.eigh(steps @ squares @ steps.T)
    semi = (axes * np.sqrt(np.maximum(values, 0)))[:, ::-1][:, : grid.ndim]  # in the world, longest first
    back = np.linalg.pinv(steps)
    return np.concatenate([np.stack([-(back @ one), back @ one]) for one in semi.T])


@dicom_boundary()
def read_landmark_report(path: Path) -> list[ReportedPoint]:
    """Return the points of the measurement groups of a report.

    Raises:
        InputError: It is not a structured report, a group holds several points, or no group holds one.
    """
    report = read_header(path)
    if "ContentSequence" not in report:
        raise InputError(f"'{path.name}' is not a DICOM structured report")
    points = []
    for group in _containers(report, "125007"):
        graphics = [
            item
            for item in _below(group)
            if item.get("ValueType") in ("SCOORD", "SCOORD3D") and item.get("GraphicType") == "POINT"
        ]
        if len(graphics) > 1:
            raise InputError(
                f"a measurement group of '{path.name}' holds {len(graphics)} points, expected one"
            )
        points += [_point(group, item) for item in graphics]
    if not points:
        raise InputError(f"'{path.name}' holds no point: expected SCOORD or SCOORD3D of the type POINT")
    return points


def _below(item: Any) -> Iterator[Any]:
    for child in items_of(item, "ContentSequence"):
        yield child
        yield from _below(child)


def _containers(report: Any, value: str) -> Iterator[Any]:
    return (
        item
        for item in _below(report)
        if item.get("ValueType") == "CONTAINER" and _code(item, "ConceptNameCodeSequence")[0] == value
    )


def _code(item: Any, name: str) -> tuple[str, str, str]:
    """Return value, scheme and meaning; empty ones without a code."""
    for code in items_of(item, name):
        value = code.get("CodeValue") or code.get("LongCodeValue") or ""
        return str(value), str(code.get("CodingSchemeDesignator") or ""), str(code.get("CodeMeaning") or "")
    return "", "", ""


_FINDINGS = (("121071", "DCM"), ("363698007", "SCT"), ("G-C0E3", "SRT"))


@converting("a point of the report")
def _point(group: Any, item: Any) -> ReportedPoint:
    names: list[str] = []
    codes: list[tuple[str, str]] = []
    number, visible = "", SEEN
    for child in items_of(group, "ContentSequence"):
        concept = _code(child, "ConceptNameCodeSequence")[:2]
        value = _code(child, "ConceptCodeSequence")
        if concept == (_NAME.value, _NAME.scheme):
            names.insert(0, value[2])
        elif concept == ("112039", "DCM"):
            names.insert(0, str(child.get("TextValue") or ""))
        elif concept in _FINDINGS:
            codes.append(value[:2])
            names.append(value[2])
        elif concept == (_OBJECT.value, _OBJECT.scheme):
            number = f"{float(items_of(child, 'MeasuredValueSequence')[0].NumericValue):g}"
        elif concept == (_VISIBILITY.value, _VISIBILITY.scheme) and value[0] in VISIBILITIES:
            visible = VISIBILITIES.index(value[0])
    data = np.array([float(v) for v in item.GraphicData], np.float64)
    in_space = item.ValueType == "SCOORD3D"
    if data.shape != ((3,) if in_space else (2,)) or not np.isfinite(data).all():
        raise InputError(
            f"a point has {len(data)} coordinates, expected {3 if in_space else 2} finite numbers"
        )
    image = ""
    frames: tuple[int, ...] = ()
    for of in items_of(item, "ContentSequence"):
        for reference in items_of(of, "ReferencedSOPSequence"):
            image = str(reference.get("ReferencedSOPInstanceUID") or "")
            given = reference.get("ReferencedFrameNumber")
            given = [] if given is None else given if isinstance(given, Sequence) else [given]
            frames = tuple(int(n) for n in given)
    return ReportedPoint(
        names=tuple(name for name in names if name),
        codes=tuple(codes),
        object=number,
        visible=visible,
        at=data,
        frame_of_reference=str(item.get("ReferencedFrameOfReferenceUID") or "") if in_space else "",
        image=image,
        frames=frames,
    )


def points_on(
    points: Sequence[ReportedPoint], image: Image
) -> list[tuple[ReportedPoint, NDArray[np.float64]]]:
    """Return the points that lie on an image, each with its array index there.

    Args:
        points: Of a report (`read_landmark_report`).
        image: A picture, a frame or a volume; from DICOM, if points refer to frames.

    Raises:
        InputError: Points lie in another frame of reference, or refer to images, and none of them to this one.
    """
    grid = image.grid
    placed: list[tuple[ReportedPoint, NDArray[np.float64]]] = []
    planes = _planes(image) if any(len(p.at) == 2 for p in points) else {}
    strangers = 0
    for point in points:
        if len(point.at) == 3:
            if grid.unit != "mm":
                raise InputError(
                    "the report's points are in mm of the patient, and the image has no place there"
                )
            if point.frame_of_reference and grid.frame_of_reference not in ("", point.frame_of_reference):
                raise InputError(
                    "the report's points lie in another frame of reference than the image: give the report of this "
                    "image, or register them first"
                )
            placed.append((point, grid.to_index(point.at)))
            continue
        if point.image not in planes:
            strangers += 1
            continue
        placed += [(point, at) for at in _on_frames(point, planes[point.image], grid)]
    if strangers == len(points):
        raise InputError(
            f"none of the report's {len(points)} points refers to this image: give the report of this image"
        )
    return placed


Planes = Mapping[int | None, Any]


def _planes(image: Image) -> Mapping[str, Planes]:
    """Return by SOP instance UID, and by frame from 1, the planes of a volume; of a picture its own frame alone."""
    if image.source.kind != "dicom":
        raise InputError(
            "the report's points refer to DICOM images by their UIDs, and the case's image is not DICOM"
        )
    planes = source_planes(image)
    if image.grid.ndim == 3:
        return planes
    number = None if image.source.frame is None else image.source.frame + 1
    return {uid: {number: None} for uid in planes}


def _on_frames(point: ReportedPoint, planes: Planes, grid: Grid) -> Iterator[NDArray[np.float64]]:
    column, row = point.at - 0.5
    for number, plane in planes.items():
        if number is not None and point.frames and number not in point.frames:
            continue
        if plane is None:
            yield np.array([row, column])
        else:
            world = (
                plane.position + plane.right * plane.spacing[1] * column + plane.down * plane.spacing[0] * row
            )
            yield grid.to_index(world)

"""Landmarks of a case as its card says, on the image's grid."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from clearmargin.core import Grid, Image, InstanceSet, LabelMap, Landmarks, Mask
from clearmargin.datasets.landmark_card import (
    CocoKeypoints,
    DicomReport,
    LabelPoint,
    LabelPoints,
    LandmarkSource,
    Markups,
    PointTable,
    PoseFrames,
)
from clearmargin.errors import InputError, nearest
from clearmargin.formats.keypoints import (
    NamedPoint,
    read_coco_keypoints,
    read_point_rows,
    read_pose_frame,
)
from clearmargin.formats.markups import read_markups

if TYPE_CHECKING:
    from clearmargin.formats.dicom.landmark_report import ReportedPoint

__all__ = ["read_landmarks"]

_AXES = "zyx"


def read_landmarks(
    source: LandmarkSource,
    path: Path,
    *,
    reference: InstanceSet,
    label_map: LabelMap,
    image: Image,
    path_of_image: str,
    frame: int | None,
    case: str | None,
) -> Landmarks:
    """Return the landmarks of one case.

    Args:
        source: The card's section.
        path: The landmarks' file.
        reference: The case's masks, on the image's grid.
        label_map: Names the points.
        image: The case's image.
        path_of_image: Its path, as COCO's ``file_name`` ends it.
        frame: Number of the frame; None if the image is not one.
        case: What the table's column ``case`` holds for this case; None if it has one case.

    Raises:
        InputError: A point is not one of the card's, comes twice, or lies outside the image.
    """
    grid = reference.grid
    match source:
        case LabelPoints():
            return _label_points(source.points, reference, label_map)
        case CocoKeypoints():
            _plane_only(grid, "COCO key points")
            named = _indices(read_coco_keypoints(path, path_of_image), grid, "index")
        case PoseFrames():
            _plane_only(grid, "poses")
            if frame is None:
                raise InputError("a list of poses needs cases.frames: an entry is of a frame")
            named = _indices(read_pose_frame(path, frame), grid, "index")
        case PointTable():
            ndim = grid.ndim if source.coordinates == "index" else 3
            rows = read_point_rows(path, ndim=ndim, case=case)
            named = _indices(rows, grid, source.coordinates)
        case DicomReport():
            named = _reported(path, image, source, label_map)
        case Markups():
            lists = read_markups(path)
            named = [
                NamedPoint(
                    str(number),
                    point.label,
                    tuple(np.full(grid.ndim, np.nan))
                    if point.position is None
                    else tuple(_to_index(grid, point.position)),
                    0 if point.position is None else (2 if point.visible else 1),
                )
                for number, one in enumerate(lists, start=1)
                for point in one
            ]
    kept = [p._replace(name=source.names.get(p.name, p.name)) for p in named if p.name not in source.left_out]
    return _inside(_columns(kept, label_map, grid.ndim), grid, source.outside)


def _plane_only(grid: Grid, what: str) -> None:
    if grid.ndim != 2:
        raise InputError(f"{what} are of pictures, and the image is a volume")


def _indices(points: Sequence[NamedPoint], grid: Grid, coordinates: str) -> list[NamedPoint]:
    """Return points ``(x, y[, z])`` of a file as array indices."""
    if coordinates == "index":
        return [p._replace(at=tuple(reversed(p.at))) for p in points]
    sign = np.array([-1.0, -1.0, 1.0]) if coordinates == "RAS" else np.ones(3)
    return [p._replace(at=tuple(_to_index(grid, np.array(p.at) * sign))) for p in points]


def _reported(path: Path, image: Image, source: DicomReport, label_map: LabelMap) -> list[NamedPoint]:
    """Return the points of a report that lie on the image; one of no type keeps the first name that it has.

    Points without a number of their object are of one object, unless a type comes twice: then each is its own.
    """
    from clearmargin.formats.dicom.landmark_report import points_on, read_landmark_report

    placed = points_on(read_landmark_report(path), image)
    known = [_type_of(point, source.names, source.left_out, label_map) for point, _ in placed]
    repeated = len(set(known)) < len(known)
    return [
        NamedPoint(point.object or (f"alone {k}" if repeated else "1"), name, tuple(at), point.visible)
        for k, ((point, at), name) in enumerate(zip(placed, known, strict=True))
    ]


def _type_of(
    point: ReportedPoint, names: Mapping[str, str], left_out: Sequence[str], label_map: LabelMap
) -> str:
    types = {t.name: t.code for t in label_map.points}
    for name in point.names:
        if name in names or name in types or name in left_out:
            return name
    coded = [n for n, code in types.items() if code is not None and (code.value, code.scheme) in point.codes]
    return coded[0] if len(coded) == 1 else (point.names or ("",))[0]


def _to_index(grid: Grid, world: NDArray[np.float64]) -> NDArray[np.float64]:
    if grid.unit != "mm":
        raise InputError(
            "the points are in mm of the patient, and the image has no spacing: expected source file or constant "
            "under spacing"
        )
    return grid.to_index(world)


def _columns(points: Sequence[NamedPoint], label_map: LabelMap, ndim: int) -> Landmarks:
    types = label_map.points
    order = {t.name: k for k, t in enumerate(types)}
    objects = list(dict.fromkeys(p.object for p in points))
    at = np.full((len(objects), len(types), ndim), np.nan)
    visible = np.zeros((len(objects), len(types)), np.int8)
    areas = np.full(len(objects), np.nan)
    given: set[tuple[str, str]] = set()
    for point in points:
        if point.name not in order:
            raise InputError(
                f"the card has no point '{point.name}': {nearest(point.name, list(order))}; name it in "
                "landmarks.names or landmarks.left_out"
            )
        if (point.object, point.name) in given:
            raise InputError(f"an object has the point '{point.name}' twice")
        given.add((point.object, point.name))
        i, k = objects.index(point.object), order[point.name]
        if point.visible and not np.isfinite(point.at).all():
            raise InputError(f"the point '{point.name}' has coordinates that are not finite")
        if point.visible:
            at[i, k] = point.at
        visible[i, k], areas[i] = point.visible, point.area
    boxes = Landmarks.of(types, at, visible).areas
    known = np.where(np.isfinite(areas) & (areas > 0), areas, boxes)
    return Landmarks.of(types, at, visible, areas=known)


def _inside(landmarks: Landmarks, grid: Grid, outside: str) -> Landmarks:
    kept = landmarks.inside(grid.shape)
    lost = landmarks.count - kept.count
    if lost and outside == "refuse":
        raise InputError(
            f"{lost} of {landmarks.count} point(s) lie outside the image ({grid}): correct them, or set "
            "landmarks.outside to absent"
        )
    return kept


def _label_points(points: Mapping[str, LabelPoint], reference: InstanceSet, label_map: LabelMap) -> Landmarks:
    types, ndim = label_map.points, reference.grid.ndim
    at = np.full((1, len(types), ndim), np.nan)
    visible = np.zeros((1, len(types)), np.int8)
    for k, kind in enumerate(types):
        rule = points[kind.name]
        label = label_map.by_name(rule.class_).id
        masks = [m for m, own in zip(reference.masks, reference.labels, strict=True) if own == label]
        elements = np.argwhere(Mask.union(masks, reference.grid.shape).dense()) if masks else np.zeros((0, 1))
        if not len(elements):
            continue
        if rule.axis is not None:
            axis = _AXES[3 - ndim :].find(rule.axis)
            if axis < 0:
                raise InputError(f"a picture has no axis '{rule.axis}'")
            end = elements[:, axis].min() if rule.at == "first" else elements[:, axis].max()
            elements = elements[elements[:, axis] == end]
        at[0, k], visible[0, k] = elements.mean(axis=0), 2
    landmarks = Landmarks.of(types, at, visible, areas=np.array([_extent(reference)]))
    return landmarks.only(visible > 0)


def _extent(reference: InstanceSet) -> float:
    """Return the elements that the reference's masks hold; NaN if they hold none."""
    size = sum(mask.area for mask in reference.masks)
    return float(size) if size else float("nan")

"""DICOM Parametric Map: uncertainty and probability as 32-bit floats on the source's planes (PS3.3, A.75)."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from clearmargin.core import Code, Grid, Image, Prediction
from clearmargin.errors import GeometryError, InputError, nearest
from clearmargin.formats.dicom.boundary import (
    converting,
    dicom_boundary,
    items_of,
    quiet_pydicom,
    read_header,
)
from clearmargin.formats.dicom.frames import frame_item, frame_parts, head_geometry, set_frames
from clearmargin.formats.dicom.geometry import Plane
from clearmargin.formats.dicom.output import (
    RESEARCH_USE,
    derived_uid,
    equipment,
    origins,
    provenance_parts,
    refer_to_sources,
    save,
    source_headers,
    stand_ins,
    write_dates,
)
from clearmargin.formats.dicom.planes import frame_planes
from clearmargin.formats.dicom.seg_content import spanned_grid
from clearmargin.formats.limits import max_bytes

if TYPE_CHECKING:
    from highdicom.pm import ParametricMap
    from pydicom.dataset import Dataset

__all__ = ["read_parametric_map", "write_parametric_map"]

_PARAMETRIC_MAP = "1.2.840.10008.5.1.4.1.1.30"
_DERIVED = Code(value="112187", scheme="DCM", meaning="Unspecified method of calculation")


@quiet_pydicom()
def write_parametric_map(path: Path, prediction: Prediction, map_name: str, image: Image) -> str:
    """Write one map of a prediction as a Parametric Map and return its SOP instance UID.

    Its UID follows from the source, the provenance and the values.

    Args:
        path: The file to write.
        prediction: Its maps lie on ``image.grid``.
        map_name: Which map, such as ``entropy``.
        image: Read from DICOM.

    Raises:
        InputError: No such map, a value that is not finite, an image not from DICOM.
        GeometryError: The prediction does not lie on the image's grid.
    """
    if map_name not in prediction.maps:
        raise InputError(f"no map '{map_name}': {nearest(map_name, prediction.maps)}")
    if not prediction.instances.grid.same_as(image.grid):
        raise GeometryError(f"the map lies on {prediction.instances.grid}, the image on {image.grid}")
    values = np.ascontiguousarray(prediction.maps[map_name], "<f4").reshape(-1, *image.grid.shape[-2:])
    if not np.isfinite(values).all():
        raise InputError(f"map '{map_name}' holds values that are not finite, which a Parametric Map cannot")
    headers = source_headers(image)
    dataset = _head(prediction, map_name, image, headers, values)
    refer_to_sources(dataset, headers)
    places = origins(image.grid, image)
    parts = [frame_parts(image.grid, z, place, _DERIVED) for z, place in enumerate(places)]
    items = [frame_item(image.grid, _index(dataset, z), part) for z, part in enumerate(parts)]
    set_frames(dataset, image.grid, items)
    dataset.FloatPixelData = values.tobytes()
    # Laterality is required, if perhaps empty, where no body part says that the part is not paired.
    dataset.Laterality = None
    if "PatientOrientation" in headers[0]:
        dataset.PatientOrientation = ""
    write_dates(dataset, headers)
    save(dataset, Path(path))
    return str(dataset.SOPInstanceUID)


def _index(dataset: Dataset, z: int) -> list[int]:
    """Return the dimension index values of slice ``z``: 1 for each other dimension, then the slice."""
    return [1] * (len(dataset.DimensionIndexSequence) - 1) + [z + 1]


def _head(
    prediction: Prediction, map_name: str, image: Image, headers: list[Dataset], values: NDArray[np.float32]
) -> ParametricMap:
    import highdicom
    from pydicom.sr.codedict import codes

    sources = sorted(str(h.SOPInstanceUID) for h in headers)
    place = repr((image.grid.shape, image.grid.affine.round(6).tolist())).encode()
    digest = hashlib.sha256(place + values.tobytes()).hexdigest()
    identity = (map_name, *sources, *provenance_parts(prediction.provenance), digest)
    low, high = float(values.min()), float(values.max())
    mapping = highdicom.pm.RealWorldValueMapping(
        lut_label=map_name[:16],
        lut_explanation=f"{map_name} ({RESEARCH_USE})"[:64],
        unit=codes.UCUM.NoUnits,
        value_range=(low, high),
        slope=1.0,
        intercept=0.0,
        quantity_definition=highdicom.sr.CodedConcept(map_name[:16], "99CLEARMARGIN", map_name[:64]),
    )
    # LINEAR, the usual function, takes 1 from the width, which is that of integers (PS3.3 C.11.2.1.2.1).
    window = highdicom.VOILUTTransformation(
        (low + high) / 2, high - low if high > low else 1.0, voi_lut_function="LINEAR_EXACT"
    )
    return highdicom.pm.ParametricMap(
        source_images=stand_ins(image),
        pixel_array=np.zeros((1, 1, 1), np.float32),
        series_instance_uid=derived_uid("map series", *identity),
        series_number=901,
        sop_instance_uid=derived_uid("map", *identity),
        instance_number=1,
        contains_recognizable_visual_features=False,
        real_world_value_mappings=[mapping],
        voi_lut_transformations=[window],
        content_label="CLEARMARGIN",
        content_description=RESEARCH_USE,
        series_description=f"Clear Margin {map_name} ({RESEARCH_USE})"[:64],
        **head_geometry(image.grid),
        **equipment(prediction.provenance),
    )


@dicom_boundary()
def read_parametric_map(path: Path, *, grid: Grid | None = None) -> tuple[NDArray[np.float32], Grid]:
    """Return a Parametric Map's real values, float32 of ``grid.shape``, and their grid.

    Args:
        path: The file.
        grid: Where the values must lie; None for the grid that the frames span.

    Raises:
        InputError: No Parametric Map, cut off, or a mapping that is not linear.
        GeometryError: Frames that span no regular grid, or do not lie on ``grid``.
    """
    dataset = read_header(Path(path), pixels=True)
    if str(dataset.get("SOPClassUID") or "") != _PARAMETRIC_MAP:
        raise InputError(f"'{Path(path).name}' is not a Parametric Map")
    frames = _real_values(dataset)
    planes = frame_planes(dataset)
    spanned = spanned_grid(planes, (frames.shape[1], frames.shape[2]))
    if spanned.ndim == 2:
        if len(frames) != 1:
            raise GeometryError(f"{len(frames)} frames without positions are not a map of one picture")
        found_values = frames[0]
    else:
        found_values = _stacked(frames, planes, spanned)
    if grid is None:
        return found_values, spanned
    if not spanned.shares_frame(grid):
        raise GeometryError(
            "the map is of another frame of reference than the grid: its coordinates mean other places"
        )
    if spanned.same_as(grid):
        return found_values, grid
    mirrored = replace(spanned, affine=_upside_down(spanned))
    if spanned.ndim == 3 and mirrored.same_as(grid):
        return np.ascontiguousarray(found_values[::-1]), grid
    raise GeometryError(f"the map lies on {spanned}, not on {grid}: resample one of them")


@converting("the map's description")
def _real_values(dataset: Dataset) -> NDArray[np.float32]:
    kinds = {"FloatPixelData": "<f4", "DoubleFloatPixelData": "<f8", "PixelData": "<u2"}
    keyword = next((k for k in kinds if k in dataset), None)
    if keyword is None:
        raise InputError("the Parametric Map holds no pixels")
    kind = kinds[keyword]
    shape = (int(dataset.get("NumberOfFrames") or 1), int(dataset.Rows), int(dataset.Columns))
    if min(shape) < 1:
        raise InputError(
            f"the Parametric Map states {shape[0]} frames of {shape[1]} x {shape[2]}: it is damaged"
        )
    size = int(np.prod(shape, dtype=np.int64)) * np.dtype(kind).itemsize
    stored = dataset[keyword].value
    if size > max_bytes() or len(stored) < size:
        raise InputError(f"the Parametric Map is cut off: {len(stored)} bytes of {size}")
    values = np.frombuffer(stored, kind, int(np.prod(shape, dtype=np.int64))).reshape(shape)
    shared = next(iter(items_of(dataset, "SharedFunctionalGroupsSequence")), None)
    each = items_of(dataset, "PerFrameFunctionalGroupsSequence")
    real = np.empty(shape, np.float32)
    for k in range(shape[0]):
        holders = (each[k] if k < len(each) else None, shared)
        mappings = next((items_of(h, _MAPPING) for h in holders if items_of(h, _MAPPING)), None)
        slope, intercept = (1.0, 0.0) if not mappings else _linear(mappings[0])
        with np.errstate(all="ignore"):  # a map may hold NaN, and infinities
            real[k] = values[k] * slope + intercept
    return real


_MAPPING = "RealWorldValueMappingSequence"


def _linear(mapping: Dataset) -> tuple[float, float]:
    slope, intercept = mapping.get("RealWorldValueSlope"), mapping.get("RealWorldValueIntercept")
    if slope is None or intercept is None:
        raise InputError("the Parametric Map's values go through a table, which is not read")
    if not np.isfinite([float(slope), float(intercept)]).all():
        raise InputError("the Parametric Map's slope or intercept is not finite")
    return float(slope), float(intercept)


def _stacked(frames: NDArray[np.float32], planes: list[Plane | None], grid: Grid) -> NDArray[np.float32]:
    values = np.zeros(grid.shape, np.float32)
    seen = set()
    for frame, plane in zip(frames, planes, strict=True):
        if plane is None:
            raise GeometryError("some frames of the map have a position and others have none")
        index = grid.to_index(plane.corners())
        z = round(float(index[0, 0]))
        corners = [(z, y, x) for y in (0, grid.shape[1] - 1) for x in (0, grid.shape[2] - 1)]
        if (np.abs(index - corners) * grid.spacing > 0.01).any():
            raise GeometryError("the frames of the map do not lie on one regular grid")
        if z in seen:
            raise GeometryError("two frames of the map lie in one place: it holds several maps")
        seen.add(z)
        values[z] = frame
    if len(seen) < grid.shape[0]:
        raise GeometryError(
            f"the map has values for {len(seen)} of the {grid.shape[0]} slices that it spans: the others are not known"
        )
    return values


def _upside_down(grid: Grid) -> NDArray[np.float64]:
    affine = grid.affine.copy()
    affine[:3, 3] = grid.to_world((grid.shape[0] - 1, 0, 0))
    affine[:3, 0] *= -1
    return affine

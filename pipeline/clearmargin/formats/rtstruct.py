"""RT Structure Set: outlines of instances slice by slice, out and in (PS3.3, A.19 and C.8.8.6)."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clearmargin.core import Grid, Image, InstanceSet, Mask, Prediction
from clearmargin.core.colours import instance_colours
from clearmargin.errors import GeometryError, InputError
from clearmargin.formats.dicom_boundary import converting, dicom_boundary, quiet_pydicom, read_header
from clearmargin.formats.dicom_output import (
    MANUFACTURER,
    RESEARCH_USE,
    Origin,
    derived_uid,
    origins,
    provenance_parts,
    save,
    source_headers,
    write_dates,
)

__all__ = ["RtStructure", "read_rtstruct", "write_rtstruct"]

_RTSTRUCT = "1.2.840.10008.5.1.4.1.1.481.3"
_COPIED = (
    "PatientName",
    "PatientID",
    "PatientBirthDate",
    "PatientSex",
    "StudyInstanceUID",
    "StudyDate",
    "StudyTime",
    "StudyID",
    "AccessionNumber",
    "ReferringPhysicianName",
    "FrameOfReferenceUID",
)


@dataclass(frozen=True, kw_only=True, eq=False)
class RtStructure:
    """A structure set on a grid.

    Attributes:
        instances: One for each region that has contours, in file order; labels are 1..N.
        names: Each region's name. Free text: not for logs.
    """

    instances: InstanceSet
    names: tuple[str, ...]


@quiet_pydicom()
def write_rtstruct(path: Path, prediction: Prediction, image: Image) -> str:
    """Write the instances' outlines as closed planar contours and return the SOP instance UID.

    Outlines run half way between the centres of inner and outer pixels; a hole is a contour of its own within
    the outer one (contours are combined by exclusive or).

    Raises:
        InputError: The image does not come from DICOM, or is no volume in millimetres.
        GeometryError: The prediction does not lie on the image's grid.
    """
    grid = image.grid
    if grid.ndim != 3 or grid.unit != "mm":
        raise InputError(
            f"{image.source.case} is no volume in millimetres: contours need a place in the patient"
        )
    if not prediction.instances.grid.same_as(grid):
        raise GeometryError(f"the prediction lies on {prediction.instances.grid}, the image on {grid}")
    headers = source_headers(image)
    places = origins(grid, image, headers)
    contours = [_contours(mask, grid) for mask in prediction.instances.masks]
    dataset = _head(prediction, headers, contours)
    dataset.StructureSetROISequence, dataset.ROIContourSequence = [], []
    dataset.RTROIObservationsSequence = []
    colours = instance_colours(prediction.instances.labels).tolist()
    for k, found in enumerate(contours):
        _add_region(dataset, prediction, k, found, places, colours[k])
    write_dates(dataset, headers)
    dataset.StructureSetDate, dataset.StructureSetTime = dataset.ContentDate, dataset.ContentTime
    del dataset.ContentDate, dataset.ContentTime
    save(dataset, Path(path))
    return str(dataset.SOPInstanceUID)


def _contours(mask: Mask, grid: Grid) -> list[tuple[int, NDArray[np.float64]]]:
    """Return ``(slice, (P, 3) world points)`` of a mask's outlines, holes included."""
    from skimage.measure import find_contours

    found = []
    for z in range(mask.origin[0], mask.box[1][0]):
        plane = np.pad(mask.crop[z - mask.origin[0]].astype(np.float32), 1)
        for contour in find_contours(plane, 0.5):
            index = contour[:-1] - 1 + np.array(mask.origin[1:])
            found.append((z, grid.to_world(np.insert(index, 0, z, axis=1))))
    return found


def _head(prediction: Prediction, headers: Sequence[Any], contours: Sequence[Any]) -> Any:
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian

    digest = hashlib.sha256(repr(prediction.label_map).encode())
    for found in contours:
        for z, points in found:
            digest.update(repr(z).encode() + points.round(6).tobytes())
    sources = sorted(str(h.SOPInstanceUID) for h in headers)
    identity = (*sources, *provenance_parts(prediction.provenance), digest.hexdigest())
    first = headers[0]
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.SOPClassUID, ds.SOPInstanceUID = _RTSTRUCT, derived_uid("rtstruct", *identity)
    ds.file_meta.MediaStorageSOPClassUID, ds.file_meta.MediaStorageSOPInstanceUID = (
        _RTSTRUCT,
        ds.SOPInstanceUID,
    )
    ds.SpecificCharacterSet = "ISO_IR 192"
    for name in _COPIED:
        setattr(ds, name, first.get(name, ""))
    ds.PositionReferenceIndicator, ds.Modality, ds.SeriesNumber, ds.InstanceNumber = "", "RTSTRUCT", 902, 1
    ds.SeriesInstanceUID = derived_uid("rtstruct series", *identity)
    ds.SeriesDescription = f"Clear Margin contours ({RESEARCH_USE})"[:64]
    ds.OperatorsName, ds.Manufacturer = "", MANUFACTURER
    ds.ManufacturerModelName = prediction.provenance.model[:64]
    ds.SoftwareVersions = prediction.provenance.software[:64]
    ds.StructureSetLabel, ds.StructureSetDescription = "CLEARMARGIN", RESEARCH_USE
    ds.ApprovalStatus = "UNAPPROVED"
    ds.ReferencedFrameOfReferenceSequence = [_references(headers)]
    return ds


def _references(headers: Sequence[Any]) -> Any:
    from pydicom.dataset import Dataset

    series, study, frame = Dataset(), Dataset(), Dataset()
    series.SeriesInstanceUID = headers[0].SeriesInstanceUID
    series.ContourImageSequence = [_image_reference(h, None) for h in headers]
    study.ReferencedSOPClassUID = (
        "1.2.840.10008.3.1.2.3.1"  # retired, yet what the attribute is defined to hold
    )
    study.ReferencedSOPInstanceUID = headers[0].StudyInstanceUID
    study.RTReferencedSeriesSequence = [series]
    frame.FrameOfReferenceUID = headers[0].FrameOfReferenceUID
    frame.RTReferencedStudySequence = [study]
    return frame


def _image_reference(header: Any, frame: int | None) -> Any:
    from pydicom.dataset import Dataset

    item = Dataset()
    item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = header.true_class, header.SOPInstanceUID
    if frame is not None:
        item.ReferencedFrameNumber = frame
    return item


def _add_region(
    dataset: Any, prediction: Prediction, k: int, contours: Sequence[Any], places: Sequence[Origin | None], colour: list[int]
) -> None:
    from pydicom.dataset import Dataset
    from pydicom.valuerep import format_number_as_ds

    kind = prediction.label_map.by_id(int(prediction.instances.labels[k]))
    region, outline, observation = Dataset(), Dataset(), Dataset()
    region.ROINumber, region.ROIName = k + 1, f"{kind.name[:50]} {k + 1}"
    region.ReferencedFrameOfReferenceUID = dataset.FrameOfReferenceUID
    region.ROIGenerationAlgorithm = "AUTOMATIC"
    region.ROIDescription = f"score {float(prediction.instances.scores[k]):.4f}"
    outline.ReferencedROINumber, outline.ROIDisplayColor = k + 1, colour
    items = []
    for z, points in contours:
        item = Dataset()
        origin = places[z]
        if origin is not None:
            item.ContourImageSequence = [_image_reference(origin.header, origin.frame)]
        item.ContourGeometricType, item.NumberOfContourPoints = "CLOSED_PLANAR", len(points)
        item.ContourData = [format_number_as_ds(round(float(v), 6)) for v in points.ravel()]
        items.append(item)
    if items:
        outline.ContourSequence = items
    observation.ObservationNumber = observation.ReferencedROINumber = k + 1
    observation.RTROIInterpretedType, observation.ROIInterpreter = "", ""
    dataset.StructureSetROISequence.append(region)
    dataset.ROIContourSequence.append(outline)
    dataset.RTROIObservationsSequence.append(observation)


@dicom_boundary()
def read_rtstruct(path: Path, *, grid: Grid) -> RtStructure:
    """Return a structure set's closed planar contours as masks: the pixels whose centres they hold.

    References to images are not followed: contours lie in the world, so broken references do no harm.

    Raises:
        InputError: No structure set.
        GeometryError: A contour that lies in none of the grid's slices.
    """
    dataset = read_header(Path(path), pixels=True)
    if str(dataset.get("SOPClassUID") or "") != _RTSTRUCT and dataset.get("Modality") != "RTSTRUCT":
        raise InputError(f"'{Path(path).name}' is not an RT structure set")
    if grid.ndim != 3 or grid.unit != "mm":
        raise GeometryError("contours are placed on a volume in millimetres")
    names = _names(dataset)
    masks, kept = [], []
    for region in dataset.get("ROIContourSequence") or []:
        items = [
            c for c in region.get("ContourSequence") or [] if c.get("ContourGeometricType") == "CLOSED_PLANAR"
        ]
        if items:
            masks.append(_filled(items, grid))
            kept.append(names.get(str(region.get("ReferencedROINumber")), ""))
    instances = InstanceSet(
        grid=grid,
        masks=tuple(masks),
        labels=np.arange(1, len(masks) + 1),
        scores=np.ones(len(masks), np.float32),
    )
    return RtStructure(instances=instances, names=tuple(kept))


def _names(dataset: Any) -> dict[str, str]:
    regions = dataset.get("StructureSetROISequence") or []
    return {str(r.get("ROINumber")): str(r.get("ROIName") or "") for r in regions}


@converting("a contour")
def _points(item: Any) -> NDArray[np.float64]:
    points = np.array([float(v) for v in item.ContourData]).reshape(-1, 3)
    if len(points) == 0 or not np.isfinite(points).all() or np.abs(points).max() > 1e6:
        raise ValueError("points that are nowhere")
    return points


def _filled(items: Sequence[Any], grid: Grid) -> Mask:
    """Return the exclusive or of contours on the grid."""
    from skimage.draw import polygon2mask

    planes: dict[int, NDArray[np.bool_]] = {}
    for item in items:
        points = grid.to_index(_points(item))
        z = round(float(points[:, 0].mean()))
        if np.abs(points[:, 0] - z).max() > 0.25 or not 0 <= z < grid.shape[0]:
            raise GeometryError(f"a contour lies in none of the slices of the grid {grid}")
        low = np.clip(np.floor(points[:, 1:].min(axis=0)).astype(int), 0, grid.shape[1:])
        high = np.clip(np.ceil(points[:, 1:].max(axis=0)).astype(int) + 1, 0, grid.shape[1:])
        if (high <= low).any():
            continue
        plane = planes.setdefault(z, np.zeros(grid.shape[1:], bool))
        inside = polygon2mask(tuple(int(n) for n in high - low), points[:, 1:] - low)
        plane[low[0] : high[0], low[1] : high[1]] ^= inside
    if not planes:
        return Mask.from_crop(np.zeros((0, 0, 0), bool), (0, 0, 0), grid.shape)
    first, last = min(planes), max(planes)
    crop = np.zeros((last - first + 1, *grid.shape[1:]), bool)
    for z, plane in planes.items():
        crop[z - first] = plane
    return Mask.from_crop(crop, (first, 0, 0), grid.shape)

"""RT Structure Set: outlines of instances slice by slice, out and in (PS3.3, A.19 and C.8.8.6)."""

from __future__ import annotations

import hashlib
import logging
import struct
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from clearmargin.core import Grid, Image, InstanceSet, Mask, Prediction
from clearmargin.core.colours import instance_colours
from clearmargin.errors import GeometryError, InputError
from clearmargin.formats.dicom.boundary import (
    converting,
    dicom_boundary,
    items_of,
    quiet_pydicom,
    read_header,
)
from clearmargin.formats.dicom.output import (
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
from clearmargin.formats.outlines import filled, outlines, overlaid

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

__all__ = ["RtStructure", "read_rtstruct", "write_rtstruct"]

log = logging.getLogger(__name__)

_RTSTRUCT = "1.2.840.10008.5.1.4.1.1.481.3"
_CONTOURS, _POINTS, _ITEM = 0x3006_0040, 0x3006_0050, 0xFFFE_E000
_CLOSED = ("CLOSED_PLANAR", "CLOSEDPLANAR_XOR")
_NO_AREA = ("POINT", "OPEN_PLANAR", "OPEN_NONPLANAR")
_NUMERIC = frozenset(b"0123456789+-.eE\\ \0")
# How far contours may lie beside their slice: a share of the slice distance, or the rounding of planning systems.
_OF_A_SLICE, _BESIDE_MM = 0.05, 0.1
_ROUNDING = 0.01  # of a pixel: contours along the image's edge are written with so many digits
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
        instances: One for each region that has closed contours, in file order; labels are 1..N. A region wholly beyond
            the grid has an empty mask.
        names: Each region's name. Free text: not for logs.
        left_out: What of the file is not in the masks, a sentence each, regions by their place in the file: contours
            beyond the grid, contours that enclose no area, regions of another frame of reference.
    """

    instances: InstanceSet
    names: tuple[str, ...]
    left_out: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, eq=False)
class _Outline:
    """The outlines of one instance.

    Attributes:
        points: ``(P, 3)`` millimetres.
        counts: ``(C,)`` how many of them each contour has.
        slices: ``(C,)`` the slice of each.
    """

    points: NDArray[np.float64]
    counts: NDArray[np.int64]
    slices: NDArray[np.int64]


@quiet_pydicom()
def write_rtstruct(path: Path, prediction: Prediction, image: Image) -> str:
    """Write the instances' outlines as closed planar contours and return the SOP instance UID.

    Outlines run half way between the centres of inner and outer pixels; a hole is a contour of its own within
    the outer one. The transfer syntax is implicit VR, in which a contour may be longer than 64 KiB.

    Raises:
        InputError: The image does not come from DICOM, or is not a volume in millimetres.
        GeometryError: The prediction does not lie on the image's grid.
    """
    grid = image.grid
    if grid.ndim != 3 or grid.unit != "mm":
        raise InputError(
            f"{image.source.case} is not a volume in millimetres: contours need a place in the patient"
        )
    if not prediction.instances.grid.same_as(grid):
        raise GeometryError(f"the prediction lies on {prediction.instances.grid}, the image on {grid}")
    headers = source_headers(image)
    places = origins(grid, image)
    contours = [_contours(mask, grid) for mask in prediction.instances.masks]
    dataset = _head(prediction, headers, contours)
    dataset.StructureSetROISequence, dataset.ROIContourSequence = [], []
    dataset.RTROIObservationsSequence = []
    colours = instance_colours(prediction.instances.labels).tolist()
    references = [b"" if place is None else _image_sequence(place) for place in places]
    for k, outline in enumerate(contours):
        _add_region(dataset, prediction, k, outline, references, colours[k])
    write_dates(dataset, headers)
    dataset.StructureSetDate, dataset.StructureSetTime = dataset.ContentDate, dataset.ContentTime
    del dataset.ContentDate, dataset.ContentTime
    save(dataset, Path(path))
    return str(dataset.SOPInstanceUID)


def _contours(mask: Mask, grid: Grid) -> _Outline:
    if not mask.area:
        return _Outline(points=np.zeros((0, 3)), counts=np.zeros(0, np.int64), slices=np.zeros(0, np.int64))
    points, counts, places = outlines(mask.crop)
    slices = places + mask.origin[0]
    index = np.column_stack((np.repeat(slices, counts), points + np.array(mask.origin[1:])))
    return _Outline(points=grid.to_world(index), counts=counts, slices=slices)


def _head(prediction: Prediction, headers: Sequence[Dataset], contours: Sequence[_Outline]) -> Dataset:
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import UID, ImplicitVRLittleEndian

    digest = hashlib.sha256(repr(prediction.label_map).encode())
    for outline in contours:
        digest.update(outline.slices.tobytes() + outline.counts.tobytes() + outline.points.round(6).tobytes())
    sources = sorted(str(h.SOPInstanceUID) for h in headers)
    identity = (*sources, *provenance_parts(prediction.provenance), digest.hexdigest())
    first = headers[0]
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
    ds.SOPClassUID, ds.SOPInstanceUID = UID(_RTSTRUCT), UID(derived_uid("rtstruct", *identity))
    ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID
    ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID
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


def _references(headers: Sequence[Dataset]) -> Dataset:
    from pydicom.dataset import Dataset

    series, study, frame = Dataset(), Dataset(), Dataset()
    series.SeriesInstanceUID = headers[0].SeriesInstanceUID
    series.ContourImageSequence = [_image_reference(h) for h in headers]
    study.ReferencedSOPClassUID = (
        "1.2.840.10008.3.1.2.3.1"  # retired, yet what the attribute is defined to hold
    )
    study.ReferencedSOPInstanceUID = headers[0].StudyInstanceUID
    study.RTReferencedSeriesSequence = [series]
    frame.FrameOfReferenceUID = headers[0].FrameOfReferenceUID
    frame.RTReferencedStudySequence = [study]
    return frame


def _image_reference(header: Dataset) -> Dataset:
    from pydicom.dataset import Dataset

    item = Dataset()
    item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = header.SOPClassUID, header.SOPInstanceUID
    return item


def _add_region(
    dataset: Dataset,
    prediction: Prediction,
    k: int,
    outline: _Outline,
    references: Sequence[bytes],
    colour: list[int],
) -> None:
    from pydicom.dataelem import RawDataElement
    from pydicom.dataset import Dataset
    from pydicom.tag import Tag

    kind = prediction.label_map.by_id(int(prediction.instances.labels[k]))
    region, contours, observation = Dataset(), Dataset(), Dataset()
    region.ROINumber, region.ROIName = k + 1, f"{kind.name[:50]} {k + 1}"
    region.ReferencedFrameOfReferenceUID = dataset.FrameOfReferenceUID
    region.ROIGenerationAlgorithm = "AUTOMATIC"
    region.ROIDescription = f"score {float(prediction.instances.scores[k]):.4f}"
    contours.ReferencedROINumber, contours.ROIDisplayColor = k + 1, colour
    if len(outline.counts):
        items = _contour_items(outline, references)
        # As "OB" pydicom does not take the items apart again; implicit VR, of which this is, does not write the VR.
        contours[_CONTOURS] = RawDataElement(Tag(_CONTOURS), "OB", len(items), items, 0, True, True)
    observation.ObservationNumber = observation.ReferencedROINumber = k + 1
    observation.RTROIInterpretedType, observation.ROIInterpreter = "", ""
    dataset.StructureSetROISequence.append(region)
    dataset.ROIContourSequence.append(contours)
    dataset.RTROIObservationsSequence.append(observation)


def _contour_items(outline: _Outline, references: Sequence[bytes]) -> bytes:
    """Return the items of a ContourSequence, encoded: as objects, ten thousand contours would take a minute."""
    flat, at, items = outline.points.ravel().tolist(), 0, []
    for z, count in zip(outline.slices.tolist(), outline.counts.tolist(), strict=True):
        numbers = ("%.9g\\" * (3 * count) % tuple(flat[at : at + 3 * count]))[:-1]
        at += 3 * count
        elements = (
            references[z],
            _element(0x3006_0042, b"CLOSED_PLANAR"),
            _element(0x3006_0046, str(count).encode()),
            _element(_POINTS, numbers.encode()),
        )
        items.append(_element(_ITEM, b"".join(elements)))
    return b"".join(items)


def _image_sequence(origin: Origin) -> bytes:
    """Return the ContourImageSequence of a slice, encoded."""
    parts = [
        _element(0x0008_1150, str(origin.header.SOPClassUID).encode(), b"\0"),
        _element(0x0008_1155, str(origin.header.SOPInstanceUID).encode(), b"\0"),
    ]
    if origin.frame is not None:
        parts.append(_element(0x0008_1160, str(origin.frame).encode()))
    return _element(0x3006_0016, _element(_ITEM, b"".join(parts)))


def _element(tag: int, value: bytes, fill: bytes = b" ") -> bytes:
    """Return an element in implicit VR, little-endian (PS3.5, 7.1.3), its value filled up to an even length."""
    padded = value + fill * (len(value) % 2)
    return struct.pack("<HHI", tag >> 16, tag & 0xFFFF, len(padded)) + padded


@dicom_boundary()
def read_rtstruct(path: Path, *, grid: Grid) -> RtStructure:
    """Return a structure set's closed contours as masks: the pixels whose centres they hold.

    CLOSED_PLANAR contours of one slice are united, those within another one are holes and islands in turn, and the
    same contour stored twice counts once; CLOSEDPLANAR_XOR contours are combined by exclusive or (PS3.3, C.8.8.6.3).
    References to images are not followed: contours lie in the world, so broken references do no harm.

    Args:
        path: The file.
        grid: A volume in millimetres, whose slices the contours lie in; parts beyond it are left out and reported.

    Raises:
        InputError: No structure set, or damaged.
        GeometryError: A contour between the grid's slices or across them; no contour within the grid; another frame of
            reference than the grid's.
    """
    dataset = read_header(Path(path), pixels=True)
    if str(dataset.get("SOPClassUID") or "") != _RTSTRUCT and dataset.get("Modality") != "RTSTRUCT":
        raise InputError(f"'{Path(path).name}' is not an RT structure set")
    if grid.ndim != 3 or grid.unit != "mm":
        raise GeometryError("contours are placed on a volume in millimetres")
    described = {str(r.get("ROINumber")): r for r in items_of(dataset, "StructureSetROISequence")}
    masks, names = [], []
    tally = _Tally()
    for position, region in enumerate(items_of(dataset, "ROIContourSequence"), start=1):
        number = str(region.get("ReferencedROINumber"))
        contours = _region_contours(region, position, tally)
        if not contours:
            continue
        if not grid.shares_frame(replace(grid, frame_of_reference=_frame_of(dataset, described.get(number)))):
            tally.elsewhere += 1
            tally.notes.append(f"region {position} is of another frame of reference than the grid")
            continue
        masks.append(_filled(contours, grid, position, tally))
        names.append(str(described[number].get("ROIName") or "") if number in described else "")
    if tally.elsewhere and not masks:
        raise GeometryError(
            "the structure set is of another frame of reference than the grid: its coordinates mean other places"
        )
    if tally.contours and not tally.within:
        raise GeometryError(
            f"the structure set's {tally.contours} contours lie in none of the slices of the grid {grid}: it is of "
            "another series"
        )
    for note in tally.notes:
        log.warning("structure set: %s", note)
    instances = InstanceSet(
        grid=grid,
        masks=tuple(masks),
        labels=np.arange(1, len(masks) + 1),
        scores=np.ones(len(masks), np.float32),
    )
    return RtStructure(instances=instances, names=tuple(names), left_out=tuple(tally.notes))


@dataclass(kw_only=True)
class _Tally:
    """What came of the contours: how many were placed, what was left out."""

    contours: int = 0
    within: int = 0
    elsewhere: int = 0
    notes: list[str] = field(default_factory=list)


def _frame_of(dataset: Dataset, region: Dataset | None) -> str:
    own = "" if region is None else str(region.get("ReferencedFrameOfReferenceUID") or "")
    return own or str(dataset.get("FrameOfReferenceUID") or "")


@dataclass(frozen=True, kw_only=True, eq=False)
class _Contour:
    points: NDArray[np.float64]  # (P, 3) millimetres
    exclusive: bool


def _region_contours(region: Dataset, position: int, tally: _Tally) -> list[_Contour]:
    """Return a region's closed contours; others are counted, as they enclose nothing."""
    contours, others = [], Counter[str]()
    for item in items_of(region, "ContourSequence"):
        kind = str(item.get("ContourGeometricType") or "").strip().upper()
        if kind in _CLOSED:
            points = _points(item)
            if len(points) > 2:
                contours.append(_Contour(points=points, exclusive=kind == "CLOSEDPLANAR_XOR"))
            else:
                others["closed with fewer than three points"] += 1
        elif kind in _NO_AREA:
            others[kind] += 1
        else:
            raise InputError(
                f"region {position} of the structure set has a contour of no known geometric type"
            )
    for kind, count in others.items():
        tally.notes.append(f"region {position}: {count} contour(s) enclose no area ({kind})")
    return contours


@converting("a contour")
def _points(item: Dataset) -> NDArray[np.float64]:
    element = item.get_item("ContourData") if "ContourData" in item else None
    value = b"" if element is None or element.value is None else element.value
    if isinstance(value, bytes):  # not converted yet: fifty times quicker than one object a number
        # fromstring ends at the first thing that is not a number, and in part takes what is left
        if not set(value) <= _NUMERIC:
            raise ValueError("not a number")
        stated = value.count(b"\\") + 1
        numbers = np.fromstring(value.replace(b"\\", b" ").strip(b"\0 ").decode("ascii"), sep=" ")
        if value.strip(b"\0 ") and len(numbers) != stated:
            raise ValueError("not as many numbers as were stated")
    else:
        numbers = np.array([float(v) for v in value])
    points = numbers.reshape(-1, 3)
    if len(points) == 0 or not np.isfinite(points).all() or np.abs(points).max() > 1e6:
        raise ValueError("points that are nowhere")
    return points


def _filled(contours: Sequence[_Contour], grid: Grid, position: int, tally: _Tally) -> Mask:
    """Return the mask of one region's contours."""
    counts = np.array([len(c.points) for c in contours])
    index = grid.to_index(np.concatenate([c.points for c in contours]))
    starts = np.concatenate(([0], np.cumsum(counts)[:-1]))
    low, high = np.minimum.reduceat(index, starts), np.maximum.reduceat(index, starts)
    slices = np.rint(np.add.reduceat(index[:, 0], starts) / counts).astype(np.int64)
    off = np.maximum(high[:, 0] - slices, slices - low[:, 0])
    beyond = (slices < 0) | (slices >= grid.shape[0])
    _in_slices(off[~beyond], grid, position)
    inside = low[:, 1:] >= -0.5 - _ROUNDING, high[:, 1:] <= np.array(grid.shape[1:]) - 0.5 + _ROUNDING
    cut = ~beyond & ~(inside[0] & inside[1]).all(axis=1)
    outside = ~beyond & ((high[:, 1:] < -0.5) | (low[:, 1:] > np.array(grid.shape[1:]) - 0.5)).any(axis=1)
    tally.contours += len(contours)
    tally.within += int((~beyond & ~outside).sum())
    for count, what in (
        (int(beyond.sum() + outside.sum()), "lie beyond the grid"),
        (int((cut & ~outside).sum()), "reach beyond the grid, and are cut off there"),
    ):
        if count:
            tally.notes.append(f"region {position}: {count} of {len(contours)} contour(s) {what}")
    kept = np.flatnonzero(~beyond & ~outside).tolist()
    if not kept:
        return Mask.from_crop(np.zeros((0, 0, 0), bool), (0, 0, 0), grid.shape)
    first = np.array([slices[kept].min(), *np.clip(np.floor(low[kept, 1:].min(axis=0)), 0, None)]).astype(
        np.int64
    )
    ends = np.clip(np.ceil(high[kept, 1:].max(axis=0)) + 1, None, grid.shape[1:])
    end = np.array([slices[kept].max() + 1, *ends]).astype(np.int64)
    shape = (int(end[0] - first[0]), int(end[1] - first[1]), int(end[2] - first[2]))
    polygons = np.split(index[:, 1:] - first[1:], starts[1:])
    crop = _combined(
        [polygons[i] for i in kept],
        slices[kept] - first[0],
        np.array([contours[i].exclusive for i in kept]),
        shape,
    )
    return Mask.from_crop(crop, (int(first[0]), int(first[1]), int(first[2])), grid.shape)


def _in_slices(off: NDArray[np.float64], grid: Grid, position: int) -> None:
    """Refuse contours whose points lie beside the slice they are closest to."""
    normal = np.cross(grid.affine[:3, 2], grid.affine[:3, 1])
    distance = abs(float(grid.affine[:3, 0] @ normal / np.linalg.norm(normal)))
    worst = float(off.max(initial=0.0))
    if worst > min(0.25, max(_OF_A_SLICE, _BESIDE_MM / distance)):
        raise GeometryError(
            f"a contour of region {position} lies in none of the slices of the grid {grid}: {worst * distance:.2f} mm "
            "beside the nearest one"
        )


def _combined(
    polygons: Sequence[NDArray[np.float64]],
    slices: NDArray[np.int64],
    exclusive: NDArray[np.bool_],
    shape: tuple[int, int, int],
) -> NDArray[np.bool_]:
    """Return the pixels of all contours.

    A slice with one contour, or exclusive ones only, is filled with all such slices at once; where closed contours
    share a slice, how they lie to each other decides. Exclusive ones beside them part them as they part each other.
    """
    shared = np.bincount(slices, minlength=shape[0])[slices] > 1
    single = np.flatnonzero(~shared | exclusive).tolist()
    crop: NDArray[np.bool_] = np.zeros(shape, bool)
    if single:
        points = np.concatenate([polygons[i] for i in single])
        counts = np.array([len(polygons[i]) for i in single])
        crop = filled(points, counts, slices[single], shape)
    groups: dict[int, list[int]] = {}
    for i in np.flatnonzero(shared & ~exclusive).tolist():
        groups.setdefault(int(slices[i]), []).append(i)
    for z, members in groups.items():
        crop[z] ^= overlaid([polygons[i] for i in members], shape[1:])
    return crop

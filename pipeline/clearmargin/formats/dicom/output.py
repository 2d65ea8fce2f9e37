"""What every DICOM object we write shares: cleaned source headers, deterministic UIDs, equipment, dates."""

from __future__ import annotations

import hashlib
import json
import re
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

import numpy as np
from numpy.typing import NDArray

from clearmargin.core import Code, Grid, Image, Provenance
from clearmargin.errors import InputError
from clearmargin.files import whole
from clearmargin.formats.dicom.boundary import dicom_boundary, items_of, modality_of, parsed_header
from clearmargin.formats.dicom.geometry import Plane
from clearmargin.formats.dicom.headers import Elements
from clearmargin.formats.dicom.planes import Picture, frame_count, pictures_of

if TYPE_CHECKING:
    from highdicom.color import CIELabColor
    from highdicom.content import AlgorithmIdentificationSequence
    from highdicom.sr.coding import CodedConcept
    from pydicom.dataset import Dataset

__all__ = [
    "MANUFACTURER",
    "RESEARCH_USE",
    "Equipment",
    "Origin",
    "algorithm_identification",
    "cielab",
    "coded",
    "derived_uid",
    "equipment",
    "is_placed",
    "origins",
    "provenance_parts",
    "refer_to_sources",
    "save",
    "source_headers",
    "source_planes",
    "stand_ins",
    "write_dates",
]

MANUFACTURER = "Clear Margin"
RESEARCH_USE = "Research use only, not for diagnosis"

_CT_IMAGE = "1.2.840.10008.5.1.4.1.1.2"
_SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
_UIDS = ("SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID")
_TEXTS = (
    "PatientID",
    "PatientName",
    "AccessionNumber",
    "StudyID",
    "ReferringPhysicianName",
    "StudyDescription",
)
_DATES = ("PatientBirthDate", "StudyDate", "SeriesDate", "AcquisitionDate", "ContentDate")
_TIMES = ("StudyTime", "SeriesTime", "AcquisitionTime", "ContentTime")


@dataclass(frozen=True, kw_only=True)
class Origin:
    """The source frame that one plane of an output comes from.

    Attributes:
        header: The source's cleaned header.
        frame: Frame number from 1 within a multi-frame source, None for a single-frame one.
        preserved: Whether pixels of both lie at the same places.
    """

    header: Dataset
    frame: int | None
    preserved: bool


@dataclass(frozen=True, kw_only=True, eq=False)
class _SourceFile:
    """One file of an image.

    Attributes:
        header: Its cleaned elements.
        pictures: Its slices with their places; none if they have no place in the patient.
        many: Whether it has several frames.
    """

    header: Dataset
    pictures: tuple[Picture, ...]
    many: bool


def source_headers(image: Image) -> list[Dataset]:
    """Return cleaned headers of an image's DICOM files: what derived objects copy, with odd values emptied.

    Type 2 attributes that are absent become empty; a derived object then needs no special case, and a source
    that lacks an optional attribute never keeps a result from being written.

    Raises:
        InputError: The image does not come from DICOM, or its files lack the UIDs that a result must refer
            to.
    """
    return [source.header for source in _source_files(image)]


def source_planes(image: Image) -> dict[str, dict[int | None, Plane | None]]:
    """Return where the pictures of an image's DICOM files lie, by SOP instance UID and by frame.

    Frames count from 1, None is that of a single-frame file; None for one without a place. Raises as `source_headers`.
    """
    return {
        str(source.header.SOPInstanceUID): {
            picture.frame + 1 if source.many else None: picture.plane for picture in source.pictures
        }
        for source in _source_files(image)
    }


def stand_ins(image: Image) -> list[Dataset]:
    """Return the source headers as highdicom is to see them: of a storage class that it knows.

    It knows only some, and treats them differently; :func:`refer_to_sources` puts the true ones in place.
    """
    from pydicom.dataelem import DataElement
    from pydicom.dataset import Dataset

    headers = []
    storage_class = _CT_IMAGE if is_placed(image.grid) else _SECONDARY_CAPTURE
    for header in source_headers(image):
        stand_in = Dataset()
        stand_in.update(header)  # the elements are shared, so that this one is replaced and not set
        stand_in["SOPClassUID"] = DataElement("SOPClassUID", "UI", storage_class)
        headers.append(stand_in)
    return headers


@dicom_boundary()
def _source_files(image: Image) -> list[_SourceFile]:
    if image.source.kind != "dicom" or not image.source.files:
        raise InputError(
            f"{image.source.case} does not come from DICOM: a DICOM result has nothing to refer to"
        )
    sources = _sources.get(image)
    if sources is None:
        sources = _sources[image] = [_source_file(file, image) for file in image.source.files]
    return sources


# Of images that are still in use: every object that is written of one shares them, and nothing changes them.
_sources: weakref.WeakKeyDictionary[Image, list[_SourceFile]] = weakref.WeakKeyDictionary()


def _source_file(file: Path, image: Image) -> _SourceFile:
    source = parsed_header(file)
    return _SourceFile(
        header=_cleaned(source.elements, image),
        pictures=tuple(pictures_of(source)) if is_placed(image.grid) else (),
        many=frame_count(source.elements) > 1,
    )


def is_placed(grid: Grid) -> bool:
    """Return whether a grid lies in the patient: a volume in millimetres, or a picture whose plane is known.

    The plane of a picture is known if it has a frame of reference, or lies elsewhere than at the world's origin.
    """
    if grid.unit != "mm" or grid.ndim == 3:
        return grid.unit == "mm"
    nowhere = Grid.from_spacing(grid.shape, grid.spacing)
    return bool(grid.frame_of_reference) or not np.array_equal(grid.affine[:, 1:], nowhere.affine[:, 1:])


def _cleaned(source: Elements, image: Image) -> Dataset:
    from pydicom.dataset import Dataset

    header = Dataset()
    for name in _UIDS:
        value = str(source.get(name) or "")
        if not re.fullmatch(r"[0-9.]{1,64}", value):
            raise InputError(
                f"{image.source.case}: a source file has no valid {name}, which results refer to"
            )
        setattr(header, name, value)
    for name in _TEXTS:
        value = re.sub(r"[\x00-\x1f\\]", " ", str(source.get(name) or ""))
        setattr(header, name, value[:64] if name == "PatientName" else value[: 16 if name[-1] != "D" else 64])
    header.StudyID = header.StudyID[:16]
    for name in _DATES:
        value = str(source.get(name) or "")
        setattr(header, name, value if re.fullmatch(r"\d{8}", value) else "")
    for name in _TIMES:
        value = str(source.get(name) or "")
        setattr(header, name, value if re.fullmatch(r"\d{2}(\d{2}(\d{2}(\.\d{1,6})?)?)?", value) else "")
    sex = str(source.get("PatientSex") or "")
    header.PatientSex = sex if sex in ("M", "F", "O") else ""
    header.Modality = modality_of(source) or "OT"
    header.Rows = header.Columns = 1  # derived objects state their own grid's size
    header.SpecificCharacterSet = "ISO_IR 192"
    header.LossyImageCompression = "01" if source.get("LossyImageCompression") == "01" else "00"
    lossy = _is_lossy(source)
    if lossy:
        header.LossyImageCompression = "01"
        _copy_lossy_history(source, header)
    spatial = is_placed(image.grid)
    frame_of_reference = str(source.get("FrameOfReferenceUID") or "")
    if re.fullmatch(r"[0-9.]{1,64}", frame_of_reference):
        header.FrameOfReferenceUID = frame_of_reference
    elif spatial or header.Modality in ("CT", "MR", "PT", "NM"):
        header.FrameOfReferenceUID = derived_uid("frame of reference", header.SeriesInstanceUID)
    if spatial:  # highdicom asks whether there is a position before it accepts ours
        header.ImagePositionPatient = [0, 0, 0]
        header.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
        header.PixelSpacing, header.SliceThickness = [1, 1], 1
        header.PositionReferenceIndicator = ""
    else:
        header.PatientOrientation = ""
    return header


def refer_to_sources(dataset: Dataset, headers: Sequence[Dataset]) -> None:
    """Name each source's true storage class in the references that highdicom made from stand-ins."""
    true_class = {str(h.SOPInstanceUID): h.SOPClassUID for h in headers}
    lists = [items_of(dataset, "SourceImageSequence")]
    lists += [series.ReferencedInstanceSequence for series in items_of(dataset, "ReferencedSeriesSequence")]
    for items in lists:
        for item in items:
            item.ReferencedSOPClassUID = true_class[str(item.ReferencedSOPInstanceUID)]


def _is_lossy(source: Elements) -> bool:
    return str(source.get("LossyImageCompression") or "00") == "01"


def _copy_lossy_history(source: Elements, header: Dataset) -> None:
    for name in ("LossyImageCompressionRatio", "LossyImageCompressionMethod"):
        if source.get(name) not in (None, ""):
            setattr(header, name, source.get(name))


def origins(grid: Grid, image: Image) -> list[Origin | None]:
    """Return for each plane of ``grid`` the source frame that lies in it, None where no source does.

    Planes are matched in the world, to a hundredth of a millimetre along the normal (or a hundredth of the
    slice distance): an output need not have the source's number of slices.
    """
    sources = _source_files(image)
    if not is_placed(grid):
        frame = None if image.source.frame is None else image.source.frame + 1
        return [Origin(header=sources[0].header, frame=frame, preserved=True)] * (
            1 if grid.ndim == 2 else grid.shape[0]
        )
    origins: list[tuple[Plane, Origin]] = []
    frames = set(image.source.frames)
    for number, source in enumerate(sources):
        for picture in source.pictures:
            if picture.plane is None or (source.many and frames and (number, picture.frame) not in frames):
                continue
            frame = picture.frame + 1 if source.many else None
            origins.append((picture.plane, Origin(header=source.header, frame=frame, preserved=False)))
    normal = np.cross(grid.affine[:3, 2], grid.affine[:3, 1])
    normal /= np.linalg.norm(normal)
    heights = np.array([plane.position @ normal for plane, _ in origins])
    tolerance = max(0.01, 0.01 * abs(float(grid.affine[:3, 0] @ normal)))
    result: list[Origin | None] = []
    for z in range(grid.shape[0] if grid.ndim == 3 else 1):
        corner = grid.affine[:3] @ (z, 0, 0, 1)
        nearest = int(np.abs(heights - corner @ normal).argmin()) if len(heights) else -1
        if nearest < 0 or abs(heights[nearest] - corner @ normal) > tolerance:
            result.append(None)
            continue
        plane, origin = origins[nearest]
        result.append(
            Origin(header=origin.header, frame=origin.frame, preserved=_same_pixels(grid, corner, plane))
        )
    return result


def _same_pixels(grid: Grid, corner: NDArray[np.float64], plane: Plane) -> bool:
    far = corner + grid.affine[:3, 1] * (grid.shape[-2] - 1) + grid.affine[:3, 2] * (grid.shape[-1] - 1)
    rows, columns = plane.shape
    end = (
        plane.position
        + plane.down * plane.spacing[0] * (rows - 1)
        + plane.right * plane.spacing[1] * (columns - 1)
    )
    return (
        plane.shape == grid.shape[-2:]
        and float(np.abs(corner - plane.position).max()) < 0.01
        and float(np.abs(far - end).max()) < 0.01
    )


def derived_uid(*parts: object) -> str:
    """Return a ``2.25.`` UID that is a function of ``parts`` alone (PS3.5, B.2): the same parts, the same
    UID.

    >>> derived_uid("seg", 1) == derived_uid("seg", 1), derived_uid("seg", 1) == derived_uid("seg", 2)
    (True, False)
    """
    digest = hashlib.sha256(json.dumps([str(p) for p in parts]).encode()).digest()
    return f"2.25.{int.from_bytes(digest[:16], 'big')}"


def provenance_parts(provenance: Provenance) -> tuple[str, ...]:
    """Return what distinguishes one algorithm from another, for :func:`derived_uid`."""
    made_by = (provenance.model, provenance.weights_sha256, provenance.config_sha256)
    return *made_by, provenance.runtime, provenance.software


class Equipment(TypedDict):
    """highdicom's arguments for the equipment module."""

    manufacturer: str
    manufacturer_model_name: str
    software_versions: str
    device_serial_number: str


def equipment(provenance: Provenance) -> Equipment:
    """Return highdicom's keyword arguments for the equipment module."""
    return {
        "manufacturer": MANUFACTURER,
        "manufacturer_model_name": provenance.model[:64] or "clearmargin",
        "software_versions": provenance.software[:64],
        "device_serial_number": (provenance.weights_sha256 or "none")[:64],
    }


def algorithm_identification(provenance: Provenance) -> AlgorithmIdentificationSequence:
    """Return the algorithm's name, version, weights and configuration (PS3.3, 10.16)."""
    import highdicom
    from pydicom.sr.codedict import codes

    return highdicom.AlgorithmIdentificationSequence(
        name=provenance.model[:64] or "clearmargin",
        version=f"{provenance.software} weights {provenance.weights_sha256[:16]}"[:64],
        family=codes.DCM.ArtificialIntelligence,
        source=MANUFACTURER,
        parameters={
            "weights_sha256": provenance.weights_sha256,
            "config_sha256": provenance.config_sha256,
            "intended_use": RESEARCH_USE,
        },
    )


def coded(code: Code) -> CodedConcept:
    """Return highdicom's coded concept of a code triplet."""
    import highdicom

    return highdicom.sr.CodedConcept(
        value=code.value, scheme_designator=code.scheme, meaning=code.meaning[:64]
    )


def cielab(colour: Sequence[int] | NDArray[np.uint8]) -> CIELabColor:
    """Return highdicom's colour of an RGB triplet (0..255), for RecommendedDisplayCIELabValue."""
    import highdicom

    red, green, blue = (int(v) for v in colour)
    return highdicom.color.CIELabColor.from_rgb(red, green, blue)


def write_dates(dataset: Dataset, headers: Sequence[Dataset]) -> None:
    """Set the dates of a derived object to those of its source's content.

    The clock does not enter the file, so that the same input, weights and software give the same bytes under
    the same UID, and storing a re-run is idempotent.
    """
    first = headers[0]
    date = next(
        (first.get(n) for n in ("ContentDate", "AcquisitionDate", "SeriesDate", "StudyDate") if first.get(n)),
        "",
    )
    time = next(
        (first.get(n) for n in ("ContentTime", "AcquisitionTime", "SeriesTime", "StudyTime") if first.get(n)),
        "",
    )
    for name in ("ContentDate", "InstanceCreationDate"):
        setattr(dataset, name, date or "19700101")
    for name in ("ContentTime", "InstanceCreationTime"):
        setattr(dataset, name, time or "000000")
    for item in items_of(dataset, "ContributingEquipmentSequence"):
        item.ContributionDateTime = f"{dataset.ContentDate}{dataset.ContentTime}"


def save(dataset: Dataset, path: Path) -> None:
    """Write a DICOM file whole or not at all."""
    with whole(path) as draft:
        dataset.save_as(draft, enforce_file_format=True)

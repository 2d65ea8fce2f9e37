"""The pictures of DICOM objects, one slice each: a file, a frame, a tile of a mosaic; and where each lies."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from clearmargin.errors import GeometryError, InputError
from clearmargin.formats.dicom.boundary import converting, items_of, modality_of
from clearmargin.formats.dicom.geometry import Plane, plane_of
from clearmargin.formats.dicom.headers import Elements, Header
from clearmargin.formats.dicom.scan import QuickHeader

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

__all__ = [
    "Picture",
    "frame_count",
    "frame_planes",
    "group_of",
    "is_mosaic",
    "object_size",
    "pictures_of",
    "placed",
]

Box = tuple[int, int, int, int]
_TIMES = {0x0018_1063, 0x0018_1065}  # FrameTime and FrameTimeVector: frames that follow each other in time
_MOSAIC_SIZE = 0x0019_100A


@dataclass(frozen=True, kw_only=True, eq=False)
class Picture:
    """One slice of an object.

    Attributes:
        file: Position of its file in the series.
        frame: Frame number from 0; 0 in an object of one frame.
        plane: Where it lies; None if it has no place in the patient.
        tile: First row, end row, first column, end column within the frame; None for the whole frame.
    """

    file: int
    frame: int
    plane: Plane | None
    tile: Box | None = None

    def cut(self, frame: NDArray[Any]) -> NDArray[Any]:
        """Return the picture's part of its frame ``(Y, X)``."""
        if self.tile is None:
            return frame
        top, bottom, left, right = self.tile
        return frame[top:bottom, left:right]


def object_size(header: Elements) -> tuple[int, int] | None:
    """Return rows and columns, None where the object holds no picture.

    Raises:
        InputError: They are not whole numbers.
    """
    rows, columns = (_whole(header, name) for name in ("Rows", "Columns"))
    return (rows, columns) if rows > 0 and columns > 0 else None


def frame_count(header: Elements) -> int:
    """Return the number of frames, at least 1.

    Raises:
        InputError: It is not a whole number.
    """
    return max(1, _whole(header, "NumberOfFrames"))


def _whole(header: Elements, name: str) -> int:
    try:
        return int(str(header.get(name) or 0))
    except Exception:  # noqa: BLE001 - pydicom converts on access and raises what the bytes provoke
        raise InputError(f"{name} is not a whole number") from None


def pictures_of(header: Header, file: int = 0) -> list[Picture]:
    """Return an object's pictures, in the order of its frames.

    Args:
        header: With all elements if it has several frames or is a mosaic.
        file: Position of its file in the series.

    Raises:
        GeometryError: Values that are not a plane; a mosaic that cannot be taken apart.
        InputError: A number of rows, columns or frames that is not a whole number.
    """
    if is_mosaic(header):
        return _tiles(header, file)
    elements = header.elements
    if frame_count(elements) == 1:
        return [Picture(file=file, frame=0, plane=_single_plane(elements))]
    return [Picture(file=file, frame=k, plane=plane) for k, plane in enumerate(frame_planes(elements))]


def _single_plane(header: Elements) -> Plane | None:
    """Return the plane of a single-frame object, None where it has no place in the patient."""
    size = object_size(header)
    if size is None:
        return None
    groups = items_of(header, "SharedFunctionalGroupsSequence") or items_of(
        header, "PerFrameFunctionalGroupsSequence"
    )
    if groups and "ImagePositionPatient" not in header:
        return frame_planes(header)[0]
    return plane_of(header, header, header, size, _frame_of_reference(header))


def _frame_of_reference(header: Elements) -> str:
    return str(header.get("FrameOfReferenceUID") or "")


def frame_planes(header: Elements) -> list[Plane | None]:
    """Return the plane of every frame: by functional groups (PS3.3, C.7.6.16), else by one position and a step."""
    size, frames = object_size(header), frame_count(header)
    shared_items = items_of(header, "SharedFunctionalGroupsSequence")
    shared = shared_items[0] if len(shared_items) else None
    each = items_of(header, "PerFrameFunctionalGroupsSequence")
    if size is None:
        return [None] * frames
    if not each:
        return _stepped_planes(header, size, frames)
    if len(each) != frames:
        raise GeometryError(
            f"the object has {frames} frames and places {len(each)} of them: it is damaged, or was cut"
        )
    frame_of_reference = _frame_of_reference(header)
    planes = []
    for item in each:
        groups = [
            group_of(item, shared, keyword)
            for keyword in ("PlanePositionSequence", "PlaneOrientationSequence", "PixelMeasuresSequence")
        ]
        position, orientation, measures = groups
        known = None not in groups
        planes.append(plane_of(position, orientation, measures, size, frame_of_reference) if known else None)
    return planes


def group_of(item: Elements | None, shared: Elements | None, keyword: str) -> Dataset | None:
    """Return a functional group's item, the frame's own or the shared one; None where neither has it."""
    for holder in (item, shared):
        items = items_of(holder, keyword)
        if items:
            return items[0]
    return None


@converting("the place of a frame (GridFrameOffsetVector, SpacingBetweenSlices, SliceVector)")
def _stepped_planes(header: Elements, size: tuple[int, int], frames: int) -> list[Plane | None]:
    """Return planes a step apart: reconstructed SPECT (PS3.3, C.8.4.15), cone-beam CT; none for a clip."""
    detectors = items_of(header, "DetectorInformationSequence")
    place: Elements = header
    if detectors and "ImagePositionPatient" in detectors[0]:
        place = detectors[0]
    spect = modality_of(header) == "NM"
    if spect and "RECON" not in " ".join(_image_type(header)):
        return [None] * frames  # projections; a detector's position is not that of a slice
    if _TIMES & {int(tag) for tag in _values(header.get("FrameIncrementPointer"))}:
        return [None] * frames
    first = plane_of(place, place, header, size, _frame_of_reference(header))
    if first is None and spect:
        raise GeometryError(
            f"the object is a reconstructed volume of {frames} slices and does not say where in the patient they lie: "
            "position, orientation and pixel spacing are needed"
        )
    if first is None:
        return [None] * frames
    offsets = _values(header.get("GridFrameOffsetVector"))
    if len(offsets) == frames:
        heights = np.array([float(v) for v in offsets]) - float(offsets[0])
    else:
        step = header.get("SpacingBetweenSlices")
        if step in (None, "") or not np.isfinite(float(step)) or float(step) == 0:
            raise GeometryError(
                f"{frames} frames have one position and no SpacingBetweenSlices: how far they lie apart is not known"
            )
        slices = _values(header.get("SliceVector"))
        numbers = [int(v) for v in slices] if len(slices) == frames else list(range(1, frames + 1))
        heights = (np.array(numbers, float) - 1) * float(step)
    if not np.isfinite(heights).all():
        raise GeometryError("the frames' places are not finite numbers")
    return [_moved(first, float(height)) for height in heights]


def _moved(plane: Plane, height: float) -> Plane:
    values = {name: getattr(plane, name) for name in plane.__dataclass_fields__}
    return Plane(**values | {"position": plane.position + height * plane.normal})


def _values(value: Any) -> list[Any]:
    if value is None or value == "":
        return []
    return [value] if isinstance(value, int | float | str) else list(value)


def _texts(value: Any) -> list[str]:
    values = value.split("\\") if isinstance(value, str) else _values(value)
    return [str(v).strip().upper() for v in values]


def is_mosaic(header: Header) -> bool:
    """Return whether the slices of a volume lie side by side in one frame, as Siemens stores functional MR."""
    if modality_of(header.elements) != "MR" or frame_count(header.elements) > 1:
        return False
    return "MOSAIC" in _image_type(header.elements) or _stated_tiles(header) > 1


def _image_type(header: Elements) -> list[str]:
    try:
        return _texts(header.get("ImageType"))
    except Exception:  # noqa: BLE001 - pydicom converts on access and raises what the bytes provoke
        return []


def _stated_tiles(header: Header) -> int:
    """Return the number of slices in a mosaic, 0 if nothing states one."""
    try:
        elements = header.elements
        if not isinstance(elements, QuickHeader) and _MOSAIC_SIZE in elements:
            value = elements[_MOSAIC_SIZE].value
            return int.from_bytes(value[:2], "little") if isinstance(value, bytes) else int(value)
        numbers = header.csa.get("NumberOfImagesInMosaic", {}).get("items") or [0]
        return int(numbers[0])
    except (TypeError, ValueError, KeyError):
        return 0


@converting("the description of a mosaic")
def _tiles(header: Header, file: int) -> list[Picture]:
    """Return the slices of a mosaic; its stated position is that of a single slice as large as all tiles."""
    size, n = object_size(header.elements), _stated_tiles(header)
    whole = _single_plane(header.elements)
    if n < 1 or whole is None or size is None:
        raise GeometryError(
            "the object is a mosaic (its slices lie side by side in one picture) and does not say of how many slices, "
            "or where: take the original files, whose private Siemens elements are needed"
        )
    normal = header.csa.get("SliceNormalVector", {}).get("items") or []
    side = math.ceil(math.sqrt(n))
    if len(normal) != 3 or not whole.distance:
        raise GeometryError(
            f"the object is a mosaic of {n} slices and does not say in which direction, or how far apart, they follow "
            "each other: take the original files, whose private Siemens elements (CSA header) are needed"
        )
    if size[0] % side or size[1] % side:
        raise GeometryError(
            f"the object is a mosaic of {n} slices, and {size[0]} x {size[1]} pixels are not {side} x {side} tiles"
        )
    rows, columns = size[0] // side, size[1] // side
    sign = np.sign(np.dot([float(v) for v in normal], whole.normal))
    if abs(np.dot([float(v) for v in normal], whole.normal)) < 0.99:
        raise GeometryError(
            "the object is a mosaic, and two of its elements disagree on the direction of its slices"
        )
    corner = (
        whole.position
        + whole.down * whole.spacing[0] * (size[0] - rows) / 2
        + whole.right * whole.spacing[1] * (size[1] - columns) / 2
    )
    values = {name: getattr(whole, name) for name in whole.__dataclass_fields__} | {"shape": (rows, columns)}
    pictures = []
    for k in range(n):
        y, x = divmod(k, side)
        plane = Plane(**values | {"position": corner + sign * k * whole.distance * whole.normal})
        tile = (y * rows, (y + 1) * rows, x * columns, (x + 1) * columns)
        pictures.append(Picture(file=file, frame=0, plane=plane, tile=tile))
    return pictures


def placed(pictures: Sequence[Picture]) -> list[Plane]:
    """Return the planes of pictures that all have one."""
    planes = [p.plane for p in pictures]
    if any(p is None for p in planes):
        raise GeometryError("some of the slices have no place in the patient")
    return [p for p in planes if p is not None]

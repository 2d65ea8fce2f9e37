"""Where DICOM slices lie: the gate that makes one regular volume of them, or says why they are not."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from clearmargin.core import Grid
from clearmargin.errors import GeometryError
from clearmargin.formats.dicom.boundary import converting, items_of, modality_of, quiet_pydicom
from clearmargin.formats.dicom.headers import Elements

__all__ = [
    "OTHER_DIRECTION",
    "TOLERANCE_MM",
    "Plane",
    "Stack",
    "grid_as_stated",
    "missing_of_plane",
    "pixel_spacing",
    "plane_of",
    "stack_planes",
]

TOLERANCE_MM = 0.01
"""How far a slice's corner may lie from its place on the volume's grid."""

_OF_A_STEP = (
    0.05  # and how far in shares of a pixel or slice distance: hundredths of a millimetre are many microns
)
OTHER_DIRECTION = 0.02
"""Difference of cosines from which on a slice is of another set, not an uneven one."""
_PERPENDICULAR_TOLERANCE = 1e-3
_PROJECTION = {"CR", "DX", "MG", "XA", "RF", "RG", "PX", "IO"}
_NEEDED = {
    "ImagePositionPatient": "a position",
    "ImageOrientationPatient": "an orientation",
    "PixelSpacing": "a pixel spacing",
}


@dataclass(frozen=True, kw_only=True, eq=False)
class Plane:
    """One image plane in the patient (PS3.3, C.7.6.2).

    Attributes:
        shape: ``(Y, X)``.
        position: ``(3,)`` millimetres, LPS: the centre of the first pixel.
        right: ``(3,)`` unit vector along which the column index grows.
        down: ``(3,)`` unit vector along which the row index grows.
        cosines: ``(2, 3)`` the same two as the file states them, which rounding or damage can make longer or shorter.
        spacing: Millimetres between rows and between columns.
        distance: SpacingBetweenSlices without its sign; 0 if it is not stated.
        thickness: SliceThickness, which need not be the slices' distance; 0 if it is not stated.
        frame_of_reference: FrameOfReferenceUID, ``""`` if it is not stated. Private.
    """

    shape: tuple[int, int]
    position: NDArray[np.float64]
    right: NDArray[np.float64]
    down: NDArray[np.float64]
    cosines: NDArray[np.float64]
    spacing: tuple[float, float]
    distance: float
    thickness: float
    frame_of_reference: str = field(default="", repr=False)

    @property
    def normal(self) -> NDArray[np.float64]:
        """Unit vector at right angles to the plane, right-handed with ``right`` and ``down``."""
        normal = np.cross(self.right, self.down)
        unit: NDArray[np.float64] = normal / np.linalg.norm(normal)
        return unit

    @property
    def extents(self) -> tuple[float, float]:
        """Millimetres from the first to the last column, and from the first to the last row."""
        return self.spacing[1] * (self.shape[1] - 1), self.spacing[0] * (self.shape[0] - 1)

    def corners(self) -> NDArray[np.float64]:
        """Return ``(4, 3)`` the centres of the corner pixels by the equation of PS3.3, C.7.6.2.1.1."""
        along = self.cosines * np.array(self.extents)[:, None]
        corners: NDArray[np.float64] = self.position + np.array([(0, 0), (1, 0), (0, 1), (1, 1)]) @ along
        return corners


@dataclass(frozen=True, kw_only=True, eq=False)
class Stack:
    """Planes in order along their normal.

    Attributes:
        order: Positions in the given list, slice by slice.
        grid: The volume's grid; of a tilted or gapped stack, that of the planes as if they were regular. A lone plane
            of unknown thickness has a grid in the plane.
        offsets_mm: ``(N,)`` distances along the normal from the first plane.
        tilted: Whether slices are displaced sideways as well as along their normal.
        regular: Whether all distances are equal.
        deviation_mm: Largest distance of a corner from its place on the grid, or from the planes' own places along
            the normal if the stack is not regular.
    """

    order: tuple[int, ...]
    grid: Grid
    offsets_mm: NDArray[np.float64]
    tilted: bool
    regular: bool
    deviation_mm: float


def plane_of(
    position: Elements | None,
    orientation: Elements | None,
    measures: Elements | None,
    shape: tuple[int, int],
    frame_of_reference: str = "",
) -> Plane | None:
    """Return the plane that three DICOM items describe; None where one of them is missing.

    Args:
        position: Holder of ImagePositionPatient.
        orientation: Holder of ImageOrientationPatient.
        measures: Holder of PixelSpacing and, where known, of the slice distance.
        shape: ``(Rows, Columns)``.
        frame_of_reference: FrameOfReferenceUID.

    Raises:
        GeometryError: Values that are not a plane: not finite, not at right angles, spacing not positive.
    """
    with quiet_pydicom():
        try:
            where = _numbers(position, "ImagePositionPatient", 3)
            along = _numbers(orientation, "ImageOrientationPatient", 6)
            spacing = _numbers(measures, "PixelSpacing", 2)
            distance, thickness = (_length(measures, k) for k in ("SpacingBetweenSlices", "SliceThickness"))
        except (TypeError, ValueError):
            raise GeometryError("position, orientation or spacing is not a set of finite numbers") from None
    if where is None or along is None or spacing is None:
        return None
    right, down = along[:3], along[3:]
    lengths = np.linalg.norm(right), np.linalg.norm(down)
    if abs(lengths[0] - 1) > 0.01 or abs(lengths[1] - 1) > 0.01 or abs(right @ down) > 0.01:
        raise GeometryError("ImageOrientationPatient is not a pair of unit vectors at right angles")
    if (spacing <= 0).any():
        raise GeometryError("PixelSpacing is not positive")
    return Plane(
        shape=shape,
        position=where,
        right=right / lengths[0],
        down=down / lengths[1],
        cosines=along.reshape(2, 3),
        spacing=(float(spacing[0]), float(spacing[1])),
        distance=distance,
        thickness=thickness,
        frame_of_reference=frame_of_reference,
    )


def missing_of_plane(header: Elements) -> str:
    """Return what a single-frame header lacks to be a plane in the patient, in words; ``""`` for nothing."""
    for keyword, words in _NEEDED.items():
        try:
            if keyword not in header or _numbers(header, keyword, 0) is None:
                return f"{words} ({keyword})"
        except (TypeError, ValueError):  # it holds something
            continue
    return ""


def _numbers(holder: Elements | None, keyword: str, n: int) -> NDArray[np.float64] | None:
    element = holder.get_item(keyword) if holder is not None and keyword in holder else None
    value = None if element is None else element.value
    if isinstance(value, bytes):  # not converted yet: decimal strings are quicker to read than to wrap
        value = [v for v in value.decode("ascii").strip("\0 ").split("\\") if v.strip()]
    if value is None or value == "" or len(value) == 0:
        return None
    numbers = np.array([float(v) for v in value], np.float64)
    if numbers.shape != (n,) or not np.isfinite(numbers).all():
        raise ValueError(keyword)
    return numbers


def _length(measures: Elements | None, keyword: str) -> float:
    value = None if measures is None else measures.get(keyword)
    if value in (None, "") or not np.isfinite(float(value)):
        return 0.0
    return abs(float(value))


def stack_planes(
    planes: Sequence[Plane],
    name: str,
    *,
    allow_gaps: bool = False,
    allow_tilt: bool = False,
    tolerance_mm: float | None = None,
) -> Stack:
    """Return the planes' order and grid, slices along the growing normal.

    The grid's first and last slice lie where the first and the last plane do, its axes in the plane are the first
    plane's. Then every plane's corners are compared with it.

    Args:
        planes: One or more planes.
        name: What an error calls the series, such as ``series 2 (CT)``.
        allow_gaps: Accept missing slices and varying distances; the caller resamples.
        allow_tilt: Accept a sheared stack; the caller resamples.
        tolerance_mm: Largest distance of a corner from its place on the grid; None for 0.01 mm, or a twentieth of the
            smallest spacing if that is less.

    Raises:
        GeometryError: Mixed sizes, orientations or frames of reference, duplicate positions, corners beside the grid;
            gaps or tilt where not allowed.
    """
    first = planes[0]
    frame = _one_set(planes, name)
    positions = np.stack([p.position for p in planes])
    along = positions @ first.normal
    order = np.argsort(along, kind="stable")
    offsets = along[order] - along[order[0]]
    _no_duplicates(positions[order], offsets, first, name)
    ordered = [planes[i] for i in order]
    step = _direction(positions[order], offsets, first)
    steps = np.diff(offsets)
    limit = _limit(ordered, steps) if tolerance_mm is None else tolerance_mm
    tilted = _is_sheared(step, first)
    if tilted and not allow_tilt:
        tilt = float(np.degrees(np.arccos(np.clip(step @ first.normal / np.linalg.norm(step), -1, 1))))
        raise GeometryError(
            f"{name} has a gantry tilt: its slices are displaced by {tilt:.1f} degrees from their normal; "
            "refusing to treat them as a straight volume; --allow-tilt resamples"
        )
    in_line = _deviations(ordered, ordered[0], step, offsets)
    if in_line.max() > limit:
        raise GeometryError(_displaced(ordered, step, offsets, in_line, limit, name))
    even = _deviations(ordered, ordered[0], step, np.linspace(0, offsets[-1], len(ordered)))
    regular = bool(even.max() <= limit) and not _missing(steps)[0]
    if not regular and not allow_gaps:
        raise GeometryError(
            f"{name} has {_irregularity(offsets, float(even.max()))}: refusing to build a volume; "
            f"--allow-gaps resamples{_offer(float(even.max()), steps)}"
        )
    return Stack(
        order=tuple(int(i) for i in order),
        grid=_grid(ordered[0], len(planes), frame, step * offsets[-1] / max(1, len(planes) - 1)),
        offsets_mm=offsets,
        tilted=tilted,
        regular=regular,
        deviation_mm=float((even if regular else in_line).max()),
    )


def _one_set(planes: Sequence[Plane], name: str) -> str:
    """Refuse planes that cannot be of one volume, however large the tolerance; return their frame of reference.

    It is that of the planes that state one.
    """
    frames = {p.frame_of_reference for p in planes} - {""}
    if len(frames) > 1:
        raise GeometryError(
            f"{name} mixes slices of {len(frames)} frames of reference: their positions have no common origin; "
            "give the files of one"
        )
    sizes = {p.shape for p in planes}
    if len(sizes) > 1:
        listed = ", ".join(f"{y} x {x}" for y, x in sorted(sizes))
        raise GeometryError(f"{name} mixes slices of {len(sizes)} sizes ({listed})")
    cosines = np.stack([np.concatenate((p.right, p.down)) for p in planes])
    off = np.abs(cosines - cosines[0]).max(axis=1) > OTHER_DIRECTION
    if off.any():
        raise GeometryError(
            f"{name} has mixed orientations: {int(off.sum())} of {len(planes)} slices lie in another "
            "direction than the first (a localizer, or several acquisitions in one series)"
        )
    return next(iter(frames), "")


def _no_duplicates(
    positions: NDArray[np.float64], offsets: NDArray[np.float64], plane: Plane, name: str
) -> None:
    steps = np.diff(offsets)
    least = 1e-3 * min(plane.spacing)
    typical = float(np.median(steps[steps > least])) if (steps > least).any() else 0.0
    same = steps <= max(least, 1e-3 * typical)
    if same.any():
        apart = np.linalg.norm(np.diff(positions, axis=0), axis=1)[same].max()
        kind = "duplicate positions" if apart < 0.01 else "slices side by side in one plane"
        raise GeometryError(
            f"{name} has {kind}: {int(same.sum())} of {len(offsets)} slices repeat the place of another "
            "(several phases, echoes or reconstructions in one series)"
        )


def _direction(
    positions: NDArray[np.float64], offsets: NDArray[np.float64], plane: Plane
) -> NDArray[np.float64]:
    """Return the displacement of slices per millimetre along the normal.

    It is that from the first to the last slice, unless the stack stands upright but for a slice at its end.
    """
    if len(positions) == 1:
        return plane.normal
    line = (positions[-1] - positions[0]) / offsets[-1]
    usual = np.median(np.diff(positions, axis=0) / np.diff(offsets)[:, None], axis=0)
    upright = _is_sheared(line, plane) and not _is_sheared(usual, plane)
    return plane.normal if upright else line


def _is_sheared(step: NDArray[np.float64], plane: Plane) -> bool:
    return bool(1 - step @ plane.normal / np.linalg.norm(step) > _PERPENDICULAR_TOLERANCE)


def _limit(planes: Sequence[Plane], steps: NDArray[np.float64]) -> float:
    smallest = float(min(*planes[0].spacing, *steps[steps > 0]))
    return min(TOLERANCE_MM, _OF_A_STEP * smallest)


def _deviations(
    planes: Sequence[Plane], first: Plane, step: NDArray[np.float64], offsets: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return ``(N,)`` how far each plane's worst corner lies from where ``first``, moved along ``step``, has it."""
    place = first.position + offsets[:, None] * step
    axes = np.stack([first.right, first.down]) * np.array(first.extents)[:, None]
    grid_corners = place[:, None] + np.array([(0, 0), (1, 0), (0, 1), (1, 1)]) @ axes
    corners = np.stack([p.corners() for p in planes])
    distances: NDArray[np.float64] = np.linalg.norm(corners - grid_corners, axis=-1).max(axis=1)
    return distances


def _displaced(
    planes: Sequence[Plane],
    step: NDArray[np.float64],
    offsets: NDArray[np.float64],
    deviations: NDArray[np.float64],
    limit: float,
    name: str,
) -> str:
    """Return the message for slices that no distances along the normal put on the grid, with the main cause."""
    z = int(deviations.argmax())
    first, plane = planes[0], planes[z]
    width, height = plane.extents
    lengths = np.abs(np.linalg.norm(plane.cosines, axis=1) - 1) @ (width, height)
    causes = {
        "its position lies aside": np.linalg.norm(plane.position - first.position - offsets[z] * step),
        "its ImageOrientationPatient is not of length 1": lengths,
        "its ImageOrientationPatient differs from the first slice's": np.linalg.norm(
            plane.right - first.right
        )
        * width
        + np.linalg.norm(plane.down - first.down) * height,
        "its PixelSpacing differs from the first slice's": np.abs(
            np.subtract(plane.extents, first.extents)
        ).sum(),
    }
    cause = max(causes, key=lambda k: float(causes[k]))
    worst = float(deviations[z])
    return (
        f"{name} is not one regular volume: a corner of slice {z + 1} of {len(planes)} lies {worst:.3f} mm beside its "
        f"place on the grid ({cause}); more than {limit:.3g} mm is refused; "
        f"--tolerance-mm {_rounded_up(worst)} accepts and records it"
    )


def _rounded_up(deviation: float) -> str:
    return f"{np.ceil(deviation * 100) / 100:g}" if deviation > 0.01 else f"{deviation * 1.01:.2g}"


def _offer(deviation: float, steps: NDArray[np.float64]) -> str:
    """Return the offer to accept uneven distances as even; missing slices are not to be accepted."""
    if _missing(steps)[0]:
        return ""
    return f", --tolerance-mm {_rounded_up(deviation)} takes them for even and records it"


def _missing(steps: NDArray[np.float64]) -> tuple[int, list[int]]:
    """Return how many whole slices are missing, and after which slices (from 1); 0 if distances merely vary."""
    if len(steps) < 2:
        return 0, []
    step = float(np.mean(steps[steps < 1.5 * steps.min()]))
    multiples = np.round(steps / step)
    if (np.abs(steps - multiples * step) > 0.05 * step).any() or (multiples < 1).any():
        return 0, []
    (at,) = np.nonzero(multiples > 1)
    return int((multiples[at] - 1).sum()), [int(i) + 1 for i in at]


def _irregularity(offsets: NDArray[np.float64], deviation: float) -> str:
    """Return what is irregular about sorted offsets: gaps of whole slices, or varying distances."""
    steps = np.diff(offsets)
    missing, at = _missing(steps)
    if missing:
        where = ", ".join(str(i) for i in at[:8]) + (", ..." if len(at) > 8 else "")
        return (
            f"{len(offsets)} slices, {missing} missing ({'gap' if len(at) == 1 else 'gaps'} after "
            f"{'slice' if len(at) == 1 else 'slices'} {where})"
        )
    return (
        f"a varying slice distance ({steps.min():.3f} to {steps.max():.3f} mm over {len(offsets)} slices, which puts "
        f"a slice {deviation:.3f} mm beside a regular grid)"
    )


@contextmanager
def grid_as_stated() -> Iterator[None]:
    """Turn a refusal of `Grid` to take what a file states, such as a spacing of 1e-30 mm, into a GeometryError."""
    try:
        yield
    except ValueError as error:
        raise GeometryError(f"its geometry is not usable: {error}") from None


@grid_as_stated()
def _grid(first: Plane, n: int, frame_of_reference: str, step: NDArray[np.float64]) -> Grid:
    if n == 1:
        step = first.normal * (first.distance or first.thickness)
    affine = np.eye(4)
    affine[:3, 0] = step if step.any() else first.normal
    affine[:3, 1] = first.down * first.spacing[0]
    affine[:3, 2] = first.right * first.spacing[1]
    affine[:3, 3] = first.position
    # A lone slice of unknown thickness is a picture in its place: a volume would need an invented distance.
    shape = (n, *first.shape) if step.any() else first.shape
    return Grid(shape=shape, affine=affine, unit="mm", frame_of_reference=frame_of_reference)


def pixel_spacing(header: Elements) -> tuple[float, float] | None:
    """Return millimetres in the patient between rows and between columns of a lone image; None where unknown.

    An ultrasound region's calibration counts (PS3.3, C.8.5.5) when all of its two-dimensional tissue regions
    agree; a projection's spacing counts only when it was corrected to the patient (PS3.3, 10.7.1.3):
    ImagerPixelSpacing is that of the detector, in front of which the anatomy is magnified.
    """
    modality = modality_of(header)
    if header.get("SequenceOfUltrasoundRegions"):
        return _ultrasound_spacing(header)
    try:
        spacing = _numbers(header, "PixelSpacing", 2)
        imager = _numbers(header, "ImagerPixelSpacing", 2)
    except (TypeError, ValueError):
        return None
    if spacing is None or (spacing <= 0).any():
        return None
    corrected = header.get("PixelSpacingCalibrationType") or (
        imager is not None and np.abs(spacing - imager).max() > 1e-6
    )
    if modality in {"CT", "MR", "PT", "NM"} or (modality in _PROJECTION and corrected) or corrected:
        return float(spacing[0]), float(spacing[1])
    return None


@converting("the calibration of an ultrasound region")
def _ultrasound_spacing(header: Elements) -> tuple[float, float] | None:
    """Return the one calibration that all 2-D regions in centimetres share (PS3.3, C.8.5.5.1)."""
    reasons = set()
    for region in items_of(header, "SequenceOfUltrasoundRegions"):
        if region.get("RegionSpatialFormat") != 1:
            continue
        centimetres = (
            region.get("PhysicalUnitsXDirection") == 3 and region.get("PhysicalUnitsYDirection") == 3
        )
        steps = region.get("PhysicalDeltaY"), region.get("PhysicalDeltaX")
        if not centimetres or None in steps or 0 in steps:
            return None
        reasons.add((round(abs(float(steps[0])) * 10, 9), round(abs(float(steps[1])) * 10, 9)))
    return reasons.pop() if len(reasons) == 1 else None

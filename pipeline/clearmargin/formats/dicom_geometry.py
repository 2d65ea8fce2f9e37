"""Where DICOM slices lie: the gate that makes one regular volume of them, or says why they are none."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clearmargin.core import Grid
from clearmargin.errors import GeometryError
from clearmargin.formats.dicom_boundary import modality_of, quiet_pydicom

__all__ = ["Plane", "Stack", "pixel_spacing", "plane_of", "stack_planes"]

_ORIENTATION_TOLERANCE = 1e-3
_PERPENDICULAR_TOLERANCE = 1e-3
_PROJECTION = {"CR", "DX", "MG", "XA", "RF", "RG", "PX", "IO"}


@dataclass(frozen=True, kw_only=True, eq=False)
class Plane:
    """One image plane in the patient (PS3.3, C.7.6.2).

    Attributes:
        shape: ``(Y, X)``.
        position: ``(3,)`` millimetres, LPS: the centre of the first pixel.
        right: ``(3,)`` unit vector along which the column index grows.
        down: ``(3,)`` unit vector along which the row index grows.
        spacing: Millimetres between rows and between columns.
        thickness: SpacingBetweenSlices, else SliceThickness, else 0; only a lone slice needs it.
    """

    shape: tuple[int, int]
    position: NDArray[np.float64]
    right: NDArray[np.float64]
    down: NDArray[np.float64]
    spacing: tuple[float, float]
    thickness: float

    @property
    def normal(self) -> NDArray[np.float64]:
        """Unit vector at right angles to the plane, right-handed with ``right`` and ``down``."""
        return np.cross(self.right, self.down)


@dataclass(frozen=True, kw_only=True, eq=False)
class Stack:
    """Planes in order along their normal.

    Attributes:
        order: Positions in the given list, slice by slice.
        grid: The volume's grid; of a tilted or gapped stack, that of the planes as if they were regular.
        offsets_mm: ``(N,)`` distances along the normal from the first plane.
        tilted: Whether slices are displaced sideways as well as along their normal.
        regular: Whether all distances are equal.
    """

    order: tuple[int, ...]
    grid: Grid
    offsets_mm: NDArray[np.float64]
    tilted: bool
    regular: bool


def plane_of(position: Any, orientation: Any, measures: Any, shape: tuple[int, int]) -> Plane | None:
    """Return the plane that three DICOM items describe; None where one of them is missing.

    Args:
        position: Holder of ImagePositionPatient.
        orientation: Holder of ImageOrientationPatient.
        measures: Holder of PixelSpacing and, where known, of the slice distance.
        shape: ``(Rows, Columns)``.

    Raises:
        GeometryError: Values that are not a plane: not finite, not at right angles, spacing not positive.
    """
    with quiet_pydicom():
        try:
            where = _numbers(position, "ImagePositionPatient", 3)
            along = _numbers(orientation, "ImageOrientationPatient", 6)
            spacing = _numbers(measures, "PixelSpacing", 2)
            thickness = _thickness(measures)
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
        spacing=(float(spacing[0]), float(spacing[1])),
        thickness=thickness,
    )


def _numbers(holder: Any, keyword: str, n: int) -> NDArray[np.float64] | None:
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


def _thickness(measures: Any) -> float:
    for keyword in ("SpacingBetweenSlices", "SliceThickness"):
        value = measures.get(keyword)
        if value not in (None, "") and np.isfinite(float(value)) and float(value) != 0:
            return abs(float(value))
    return 0.0


def stack_planes(
    planes: Sequence[Plane], name: str, *, allow_gaps: bool = False, allow_tilt: bool = False
) -> Stack:
    """Return the planes' order and grid, slices along the growing normal.

    highdicom's ``get_volume_positions`` decides; what it refuses is named here.

    Args:
        planes: One or more planes.
        name: What an error calls the series, such as ``series 2 (CT)``.
        allow_gaps: Accept missing slices and varying distances; the caller resamples.
        allow_tilt: Accept a sheared stack; the caller resamples.

    Raises:
        GeometryError: Mixed sizes, spacings or orientations, duplicate positions; gaps or tilt where not
            allowed.
    """
    first = planes[0]
    _same_planes(planes, name)
    positions = np.stack([p.position for p in planes])
    along = positions @ first.normal
    order = np.argsort(along, kind="stable")
    offsets = along[order] - along[order[0]]
    if len(planes) == 1:
        return Stack(
            order=(0,),
            grid=_grid(first, 1, first.normal * (first.thickness or 1.0)),
            offsets_mm=offsets,
            tilted=False,
            regular=True,
        )
    _no_duplicates(positions[order], offsets, name)
    span = positions[order[-1]] - positions[order[0]]
    tilt = float(np.degrees(np.arccos(np.clip(span @ first.normal / np.linalg.norm(span), -1, 1))))
    tilted = 1 - np.cos(np.radians(tilt)) > _PERPENDICULAR_TOLERANCE
    regular = _is_volume(positions, first) or (tilted and _is_regular(offsets))
    if tilted and not allow_tilt:
        raise GeometryError(
            f"{name} has a gantry tilt: its slices are displaced by {tilt:.1f} degrees from their normal; "
            "refusing to treat them as a straight volume; --allow-tilt resamples"
        )
    if not regular and not allow_gaps:
        raise GeometryError(
            f"{name} has {_irregularity(offsets)}: refusing to build a volume; --allow-gaps resamples"
        )
    step = span / (len(planes) - 1)
    return Stack(
        order=tuple(int(i) for i in order),
        grid=_grid(planes[order[0]], len(planes), step),
        offsets_mm=offsets,
        tilted=tilted,
        regular=regular,
    )


def _same_planes(planes: Sequence[Plane], name: str) -> None:
    first = planes[0]
    sizes = {p.shape for p in planes}
    if len(sizes) > 1:
        listed = ", ".join(f"{y} x {x}" for y, x in sorted(sizes))
        raise GeometryError(
            f"{name} mixes slices of {len(sizes)} sizes ({listed}): give one set with --series"
        )
    cosines = np.stack([np.concatenate((p.right, p.down)) for p in planes])
    off = np.abs(cosines - cosines[0]).max(axis=1) > _ORIENTATION_TOLERANCE
    if off.any():
        raise GeometryError(
            f"{name} has mixed orientations: {int(off.sum())} of {len(planes)} slices lie in another "
            "direction than the first (a localizer, or several acquisitions in one series); leave them out"
        )
    spacings = np.array([p.spacing for p in planes])
    if np.abs(spacings - first.spacing).max() > 1e-3 * max(first.spacing):
        raise GeometryError(
            f"{name} mixes pixel spacings: its slices are no single volume; leave some files out"
        )


def _no_duplicates(positions: NDArray[np.float64], offsets: NDArray[np.float64], name: str) -> None:
    steps = np.diff(offsets)
    typical = float(np.median(steps[steps > 1e-3])) if (steps > 1e-3).any() else 0.0
    same = int((steps <= max(1e-3, 1e-3 * typical)).sum())
    if same:
        apart = np.linalg.norm(np.diff(positions, axis=0), axis=1)[steps <= max(1e-3, 1e-3 * typical)].max()
        kind = "duplicate positions" if apart < 0.01 else "slices side by side in one plane"
        raise GeometryError(
            f"{name} has {kind}: {same} of {len(offsets)} slices repeat the place of another "
            "(several phases, echoes or reconstructions in one series); give the files of one of them"
        )


def _is_volume(positions: NDArray[np.float64], plane: Plane) -> bool:
    from highdicom.spatial import get_volume_positions

    with quiet_pydicom():
        spacing, _ = get_volume_positions(
            image_positions=positions.tolist(),
            image_orientation=[*plane.right.tolist(), *plane.down.tolist()],
            perpendicular_tol=_PERPENDICULAR_TOLERANCE,
        )
    return spacing is not None


def _is_regular(offsets: NDArray[np.float64]) -> bool:
    steps = np.diff(offsets)
    return bool(np.abs(steps - steps.mean()).max() <= 0.01 * steps.mean())


def _irregularity(offsets: NDArray[np.float64]) -> str:
    """Return what is irregular about sorted offsets: gaps of whole slices, or varying distances."""
    steps = np.diff(offsets)
    smallest = float(steps.min())
    step = float(np.mean(steps[steps < 1.5 * smallest]))
    multiples = np.round(steps / step)
    if (np.abs(steps - multiples * step) <= 0.05 * step).all() and (multiples >= 1).all():
        (at,) = np.nonzero(multiples > 1)
        missing = int((multiples[at] - 1).sum())
        where = ", ".join(str(int(i) + 1) for i in at[:8]) + (", ..." if len(at) > 8 else "")
        return (
            f"{len(offsets)} slices, {missing} missing ({'gap' if len(at) == 1 else 'gaps'} after "
            f"{'slice' if len(at) == 1 else 'slices'} {where})"
        )
    return f"a varying slice distance ({steps.min():.3f} to {steps.max():.3f} mm over {len(offsets)} slices)"


def _grid(first: Plane, n: int, step: NDArray[np.float64]) -> Grid:
    affine = np.eye(4)
    affine[:3, 0] = step
    affine[:3, 1] = first.down * first.spacing[0]
    affine[:3, 2] = first.right * first.spacing[1]
    affine[:3, 3] = first.position
    return Grid(shape=(n, *first.shape), affine=affine, unit="mm")


def pixel_spacing(header: Any) -> tuple[float, float] | None:
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


def _ultrasound_spacing(header: Any) -> tuple[float, float] | None:
    """Return the one calibration that all 2-D regions in centimetres share (PS3.3, C.8.5.5.1)."""
    found = set()
    for region in header.SequenceOfUltrasoundRegions:
        if region.get("RegionSpatialFormat") != 1:
            continue
        centimetres = (
            region.get("PhysicalUnitsXDirection") == 3 and region.get("PhysicalUnitsYDirection") == 3
        )
        steps = region.get("PhysicalDeltaY"), region.get("PhysicalDeltaX")
        if not centimetres or None in steps or 0 in steps:
            return None
        found.add((round(abs(float(steps[0])) * 10, 9), round(abs(float(steps[1])) * 10, 9)))
    return found.pop() if len(found) == 1 else None

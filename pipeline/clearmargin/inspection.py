"""What is in a path: what would be read, its geometry, its problems, and a picture of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from clearmargin.core import Grid, Image
from clearmargin.errors import InputError
from clearmargin.failures import reason_of
from clearmargin.formats import READERS, Opened, open_source
from clearmargin.formats.dicom.media import forget_unpacked
from clearmargin.formats.listing import files_beside_dicom
from clearmargin.formats.raster import raster_size
from clearmargin.formats.volume import volume_grid
from clearmargin.privacy import case_of_file, record_cases, without_ids
from clearmargin.report.annotated import side_marks, with_sides
from clearmargin.report.orientation import upright
from clearmargin.report.progress import progress

if TYPE_CHECKING:
    from clearmargin.formats.dicom.index import SeriesEntry
    from clearmargin.formats.dicom.volumes import VolumeEntry

__all__ = ["Finding", "inspect_path", "overview", "write_overview"]


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that a path holds.

    Attributes:
        what: Its number and kind, such as ``1: CT volume``; of a file of a folder its case id and kind.
        readable: Whether it is read as it is.
        refused: Whether it holds, or should hold, pictures and they cannot be read as they are. What is not readable
            and not refused is for another reader (a SEG, a report), or is to be chosen from.
        size: Shape and files, such as ``108 x 512 x 512, 108 file(s)``.
        geometry: Grid, slice direction and how far the slices lie from the grid, ``""`` if unknown.
        values: Dtype and range if it was read, else ``""``.
        problem: Why it is not read, or what to know; ``""`` for nothing.
        selector: The options that read it, ``""`` if there is nothing to choose.
        number: SeriesNumber; None if there is none.
        description: SeriesDescription. Private, as free text: for the terminal, not for logs or tracking.
    """

    what: str
    readable: bool
    size: str
    geometry: str = ""
    values: str = ""
    problem: str = ""
    selector: str = ""
    number: int | None = None
    description: str = field(default="", repr=False)
    refused: bool = False


def inspect_path(path: Path, *, read: bool = True, tolerance_mm: float | None = None) -> list[Finding]:
    """Return what is in a file or folder, without identity but for series' descriptions: no names, ids, dates, paths.

    Args:
        path: Anything that :func:`clearmargin.formats.read_image` or ``open_video`` read, or fail to.
        read: Also read the pixels of what is readable, for their range.
        tolerance_mm: How far corners of DICOM slices may lie from the grid; None for 0.01 mm.

    Raises:
        InputError: The path does not exist, or nothing in it is of a known format.
    """
    if path.is_dir():
        return _folder(path, read=read, tolerance_mm=tolerance_mm)
    with without_ids():
        return _one(open_source(path), read=read, tolerance_mm=tolerance_mm)


def _folder(path: Path, *, read: bool, tolerance_mm: float | None) -> list[Finding]:
    """Return the series of all DICOM below a folder, and each other file that `predict` would take."""
    findings: list[Finding] = []
    refusal: InputError | None = None
    with without_ids():
        try:
            opened = open_source(path)
        except InputError as error:  # of its DICOM files none can be read
            refusal = error
        else:
            findings += _series(opened, read=read, tolerance_mm=tolerance_mm) if opened.series else []
    files, others = files_beside_dicom(path)
    cases = {case_of_file(file): file for file in files}
    with progress("inspect", len(cases)) as bar:
        for case, file in cases.items():
            findings += _file(case, file, read=read, tolerance_mm=tolerance_mm)
            bar.advance()
    record_cases(cases)
    if refusal is not None:
        if not findings:
            raise refusal
        problem = str(refusal)
        findings.insert(
            0, Finding(what="DICOM", readable=False, refused=True, size="no series", problem=problem)
        )
    if not findings:
        raise InputError(f"nothing in '{path.name}' is of a format that is read ({others} file(s) of others)")
    if others:
        findings.append(
            Finding(
                what="other files",
                readable=False,
                size=f"{others} file(s)",
                problem="they are of no format that is read",
            )
        )
    return findings


def _file(case: str, file: Path, *, read: bool, tolerance_mm: float | None) -> list[Finding]:
    """Return what a picture, a volume, a clip or a zip of a folder holds, under its case id."""
    try:
        with without_ids():
            if not read and (stated := _stated(file)) is not None:
                return [replace(stated, what=f"{case}: {stated.what}")]
            held = _one(open_source(file), read=read, tolerance_mm=tolerance_mm)
    except Exception as error:  # noqa: BLE001 - one bad file is listed with the others
        problem = reason_of(error).replace(f"'{file.name}'", case).replace(file.name, case)
        return [Finding(what=case, readable=False, refused=True, size="not read", problem=problem)]
    finally:
        forget_unpacked(file)
    # A choice within a zip is one of the zip alone.
    return [
        replace(one, what=f"{case}: {one.what.partition(': ')[2]}", selector="", number=None) for one in held
    ]


def _stated(file: Path) -> Finding | None:
    """Return what the header of a picture or a volume states; None for a clip and a zip, which are opened."""
    reader = READERS.get(".nii.gz" if file.name.lower().endswith(".nii.gz") else file.suffix.lower(), "")
    if reader.startswith("raster"):
        shape = raster_size(file)
        return Finding(
            what="picture", readable=True, size=" x ".join(str(n) for n in shape), geometry="in pixels"
        )
    if reader.startswith("volume"):
        grid = volume_grid(file)
        size = " x ".join(str(n) for n in grid.shape)
        return Finding(what="volume", readable=True, size=size, geometry=_geometry(grid))
    return None


def _one(opened: Opened, *, read: bool, tolerance_mm: float | None) -> list[Finding]:
    if opened.series:
        return _series(opened, read=read, tolerance_mm=tolerance_mm)
    if opened.kind == "clip":
        clip = opened.clip()
        height, width = clip.size
        return [
            Finding(
                what="1: clip",
                readable=True,
                size=f"{clip.frame_count} frames of {height} x {width}",
                geometry="in pixels",
                values=f"{clip.fps:.3f} frames a second" if clip.fps else "no times stated",
            )
        ]
    image = opened.image()
    size = " x ".join(str(n) for n in image.grid.shape)
    kind = f"1: {'picture' if image.source.kind == 'raster' else image.source.kind}"
    return [
        Finding(what=kind, readable=True, size=size, geometry=_geometry(image.grid), values=_values(image))
    ]


def _series(opened: Opened, *, read: bool, tolerance_mm: float | None) -> list[Finding]:
    findings = []
    for entry, _ in opened.series:
        size = " x ".join(str(n) for n in entry.shape) or "no size"
        selector = f"--series list:{entry.number}"
        finding = Finding(
            what=f"{entry.number}: {entry.modality or 'no modality'} {entry.kind}",
            readable=entry.readable,
            size=f"{size}, {len(entry.files)} file(s)",
            problem=entry.reason,
            selector=selector,
            number=entry.series_number,
            description=entry.description,
            refused=entry.refused,
        )
        if len(entry.volumes) == 1:
            finding = _placed(finding, entry.volumes[0], entry.name, tolerance_mm)
        if finding.readable and read:
            finding = _read(finding, opened, f"list:{entry.number}", tolerance_mm)
        findings.append(finding)
        if len(entry.volumes) > 1:
            parts = [_part(entry, volume, selector, tolerance_mm) for volume in entry.volumes]
            findings[-1] = replace(finding, refused=all(part.refused for part in parts))
            findings += parts
    if opened.damaged:
        findings.append(
            Finding(
                what=f"{len(opened.damaged)} damaged DICOM file(s)",
                readable=False,
                size=f"{len(opened.damaged)} file(s)",
                problem="they begin as DICOM does and cannot be read: damaged, or cut off; inspect one alone for the "
                "reason",
                refused=True,
            )
        )
    return findings


def _part(entry: SeriesEntry, volume: VolumeEntry, selector: str, tolerance_mm: float | None) -> Finding:
    """Return one volume of a series that holds several."""
    part = Finding(
        what=f"{entry.number}.{volume.number}: {volume.label}",
        readable=True,
        size=" x ".join(str(n) for n in volume.shape),
        selector=f"{selector} --volume {volume.number}",
    )
    return _placed(part, volume, entry.name, tolerance_mm)


def _placed(finding: Finding, volume: VolumeEntry, name: str, tolerance_mm: float | None) -> Finding:
    """Return a finding with its volume's geometry, or the reason why it has none."""
    from clearmargin.formats.dicom.geometry import stack_planes
    from clearmargin.formats.dicom.planes import placed

    try:
        stack = stack_planes(placed(volume.pictures), name, tolerance_mm=tolerance_mm)
    except InputError as error:
        return replace(finding, readable=False, refused=True, problem=str(error))
    geometry = _geometry(stack.grid)
    if stack.grid.ndim == 3 and stack.grid.shape[0] > 1:
        geometry += f", slices within {stack.deviation_mm:.4f} mm of it"
    return replace(finding, readable=True, refused=False, problem="", geometry=geometry)


def _read(finding: Finding, opened: Opened, series: str, tolerance_mm: float | None) -> Finding:
    try:
        image = opened.image(series=series, tolerance_mm=tolerance_mm)
    except InputError as error:
        return replace(finding, readable=False, refused=True, problem=str(error), geometry="")
    return replace(finding, geometry=finding.geometry or _geometry(image.grid), values=_values(image))


def _geometry(grid: Grid) -> str:
    if grid.unit == "px":
        return f"{grid}: no spacing in the patient is known"
    if grid.ndim == 2:
        return str(grid)
    return f"{grid}, {_plane_name(grid)}"


def _plane_name(grid: Grid) -> str:
    """Return the plane that slices lie closest to, and how far they are turned from it."""
    normal = np.cross(grid.affine[:3, 2], grid.affine[:3, 1])
    normal = np.abs(normal / np.linalg.norm(normal))
    name = ("sagittal", "coronal", "axial")[int(normal.argmax())]
    angle = float(np.degrees(np.arccos(np.clip(normal.max(), -1, 1))))
    return name if angle < 0.5 else f"{name} turned by {angle:.0f} degrees"


def _values(image: Image) -> str:
    what = "volumes (it is 4-D)" if image.grid.ndim == 3 else "channels"
    channels = "" if len(image.pixels) == 1 else f"{len(image.pixels)} {what}, "
    return f"{channels}{image.pixels.dtype}, {image.pixels.min():g} to {image.pixels.max():g}"


def overview(image: Image, *, size: int = 320) -> NDArray[np.uint8]:
    """Return a picture ``(3, Y, X)``; of a volume its three middle planes, in true proportion, upright, sides marked.

    Grey values are stretched between their 1st and 99th percentile.

    Args:
        image: What was read.
        size: Height of the picture in pixels.
    """
    low, high = (float(v) for v in np.percentile(image.pixels.astype(np.float64), (1, 99)))
    window = (low, max(high, low + 1e-6))
    if image.grid.ndim == 2:
        return _tile(image.pixels, (1.0, 1.0), size, window)
    tiles = []
    for axis in range(3):
        plane, grid = _plane(image, axis)
        turn = upright(grid)
        shown = np.stack([turn.array(channel) for channel in plane])
        spacing = grid.spacing[:0:-1] if turn.transpose else grid.spacing[1:]
        tile = _tile(shown, (spacing[0], spacing[1]), size, window)
        tiles.append(_marked(tile, side_marks(grid), size) if grid.unit == "mm" else tile)
    return np.concatenate(_separated(tiles), axis=2)


def _plane(image: Image, axis: int) -> tuple[NDArray[np.generic], Grid]:
    """Return the middle plane ``(C, Y, X)`` across an axis, and the volume's grid with that axis first."""
    order = [axis, *(k for k in range(3) if k != axis)]
    affine = image.grid.affine[:, [*order, 3]]
    grid = Grid(shape=tuple(image.grid.shape[k] for k in order), affine=affine, unit=image.grid.unit)
    middle: NDArray[np.generic] = np.moveaxis(image.pixels, 1 + axis, 1)[:, image.grid.shape[axis] // 2]
    return middle, grid


def _tile(
    values: NDArray[np.generic], spacing: tuple[float, float], size: int, window: tuple[float, float]
) -> NDArray[np.uint8]:
    """Return one plane as RGB of height ``size``, its pixels as wide as they are in the patient."""
    rows, columns = values.shape[1:]
    width = max(1, min(4 * size, round(size * columns * spacing[1] / (rows * spacing[0]))))
    y = np.minimum((np.arange(size) + 0.5) * rows / size, rows - 1).astype(int)
    x = np.minimum((np.arange(width) + 0.5) * columns / width, columns - 1).astype(int)
    grey = (values[:, y][:, :, x].astype(np.float64) - window[0]) / (window[1] - window[0])
    tile = (np.clip(grey, 0, 1) * 255).astype(np.uint8)
    return tile if len(tile) == 3 else np.repeat(tile[:1], 3, axis=0)


def _marked(tile: NDArray[np.uint8], marks: tuple[str, str, str, str], size: int) -> NDArray[np.uint8]:
    """Return a tile ``(3, Y, X)`` with the sides of the patient at its edges."""
    picture = np.ascontiguousarray(np.moveaxis(tile, 0, -1))
    return np.moveaxis(with_sides(picture, marks, size=max(13, size // 24)), -1, 0)


def _separated(tiles: Sequence[NDArray[np.uint8]]) -> list[NDArray[np.uint8]]:
    gap: NDArray[np.uint8] = np.full((3, tiles[0].shape[1], 4), 255, np.uint8)
    spread: list[NDArray[np.uint8]] = []
    for k, tile in enumerate(tiles):
        spread += [tile] if k == 0 else [gap, tile]
    return spread


def write_overview(
    path: Path,
    out: Path,
    *,
    series: str | None = None,
    volume: str | None = None,
    tolerance_mm: float | None = None,
) -> None:
    """Write the overview of what ``path`` holds as a PNG.

    Raises:
        InputError: As :func:`clearmargin.formats.read_image`.
    """
    from clearmargin.formats.raster import write_raster

    with without_ids():
        opened = open_source(path)
        if opened.kind == "clip":
            clip = opened.clip()
            image = clip.frame(clip.frame_count // 2)
        else:
            image = opened.image(series=series, volume=volume, tolerance_mm=tolerance_mm)
    write_raster(out, overview(image))

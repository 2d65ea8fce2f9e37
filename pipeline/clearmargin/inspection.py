"""What is in a path: what would be read, its geometry, its problems, and a picture of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from clearmargin.core import Grid, Image
from clearmargin.errors import InputError
from clearmargin.formats import is_dicom, is_video, open_video, read_image
from clearmargin.report.annotated import side_marks, with_sides
from clearmargin.report.orientation import upright

__all__ = ["Finding", "inspect_path", "overview", "write_overview"]


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that a path holds.

    Attributes:
        what: Its number and kind, such as ``1: CT volume``.
        readable: Whether it is read as it is.
        size: Shape and files, such as ``108 x 512 x 512, 108 file(s)``.
        geometry: Grid and slice direction where it was read, else ``""``.
        values: Dtype and range where it was read, else ``""``.
        problem: Why it is not read, or what to know; ``""`` for nothing.
        selector: What ``--series`` takes to read it, ``""`` where there is nothing to choose.
    """

    what: str
    readable: bool
    size: str
    geometry: str = ""
    values: str = ""
    problem: str = ""
    selector: str = ""


def inspect_path(path: Path, *, read: bool = True) -> list[Finding]:
    """Return what is in a file or folder, without identity: no names, ids, dates, descriptions or paths.

    Args:
        path: Anything that :func:`clearmargin.formats.read_image` or ``open_video`` reads, or fails to.
        read: Also read the pixels of what is readable, for geometry and range.

    Raises:
        InputError: The path does not exist, or nothing in it is of a known format.
    """
    path = Path(path)
    if not path.exists():
        raise InputError(f"there is no file or folder '{path}'")
    if is_dicom(path):
        return _series(path, read=read)
    if is_video(path):
        clip = open_video(path)
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
    image = read_image(path)
    size = " x ".join(str(n) for n in image.grid.shape)
    kind = f"1: {image.source.kind}"
    return [Finding(what=kind, readable=True, size=size, geometry=_geometry(image), values=_values(image))]


def _series(path: Path, *, read: bool) -> list[Finding]:
    from clearmargin.formats.dicom import index_dicom

    findings = []
    for entry in index_dicom(path):
        geometry = values = ""
        problem, readable = entry.reason, entry.readable
        if readable and read:
            try:
                image = read_image(path, series=str(entry.number))
            except InputError as error:
                problem, readable = str(error), False
            else:
                geometry, values = _geometry(image), _values(image)
        size = " x ".join(str(n) for n in entry.shape) or "no size"
        findings.append(
            Finding(
                what=f"{entry.number}: {entry.modality or 'no modality'} {entry.kind}",
                readable=readable,
                size=f"{size}, {len(entry.files)} file(s)",
                geometry=geometry,
                values=values,
                problem=problem,
                selector=str(entry.number),
            )
        )
    return findings


def _geometry(image: Image) -> str:
    if image.grid.unit == "px":
        return f"{image.grid}: no spacing in the patient is known"
    if image.grid.ndim == 2:
        return str(image.grid)
    return f"{image.grid}, {_plane_name(image)}"


def _plane_name(image: Image) -> str:
    """Return the plane that slices lie closest to, and how far they are turned from it."""
    normal = np.cross(image.grid.affine[:3, 2], image.grid.affine[:3, 1])
    normal = np.abs(normal / np.linalg.norm(normal))
    name = ("sagittal", "coronal", "axial")[int(normal.argmax())]
    angle = float(np.degrees(np.arccos(np.clip(normal.max(), -1, 1))))
    return name if angle < 0.5 else f"{name} turned by {angle:.0f} degrees"


def _values(image: Image) -> str:
    channels = "" if len(image.pixels) == 1 else f"{len(image.pixels)} channels, "
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


def write_overview(path: Path, out: Path, *, series: str | None = None) -> None:
    """Write the overview of what ``path`` holds as a PNG.

    Raises:
        InputError: As :func:`clearmargin.formats.read_image`.
    """
    from clearmargin.formats.raster import write_raster

    if is_video(path):
        clip = open_video(path)
        image = clip.frame(clip.frame_count // 2)
    else:
        image = read_image(path, series=series)
    write_raster(out, overview(image))

"""DICOM images in: a series as a volume, a multi-frame object, one picture; right geometry or a refusal."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from clearmargin.core import Grid, Image, Source
from clearmargin.errors import GeometryError, InputError
from clearmargin.formats.dicom.boundary import dicom_boundary, modality_of, read_header
from clearmargin.formats.dicom.geometry import (
    TOLERANCE_MM,
    Stack,
    grid_as_stated,
    pixel_spacing,
    stack_planes,
)
from clearmargin.formats.dicom.headers import Elements, Header, syntax_of
from clearmargin.formats.dicom.index import SeriesEntry, index_dicom, scan_dicom, select_series
from clearmargin.formats.dicom.pixels import (
    PixelLayout,
    StoredPixels,
    decode_frames,
    load_pixels,
    pixel_layout,
)
from clearmargin.formats.dicom.planes import Picture, frame_count, placed
from clearmargin.formats.dicom.resample import fill_gaps, straighten
from clearmargin.formats.dicom.values import (
    FrameScale,
    brighter_up,
    frame_scales,
    rescaled_dtype,
    to_channels,
    to_units,
)
from clearmargin.formats.dicom.volumes import VolumeEntry, select_volume
from clearmargin.privacy import case_of_file, naming, plain_name

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

__all__ = [
    "SeriesEntry",
    "chosen_series",
    "index_dicom",
    "read_dicom",
    "read_dicom_volumes",
    "read_every_volume",
    "read_pictures",
    "read_series",
]


@dicom_boundary()
def read_dicom(
    path: Path | Iterable[Path],
    *,
    series: str | None = None,
    volume: str | None = None,
    allow_gaps: bool = False,
    allow_tilt: bool = False,
    tolerance_mm: float | None = None,
) -> Image:
    """Return one DICOM series as an image.

    Slices, enhanced multi-frame objects, reconstructed SPECT, cone-beam CT and Siemens mosaics become a
    ``(1, Z, Y, X)`` volume in millimetres, slices along the growing normal; a lone picture becomes ``(C, Y, X)``, in
    millimetres only if its spacing is that of the patient. Values are after the modality rescale, as integers if the
    rescale is integral and as float32 otherwise. ``source.deviation_mm`` says how far the slices lie from the grid.

    Args:
        path: A file, a folder with all below it, a zip, a DICOMDIR, or the files of one series.
        series: Which series, if there are several (:func:`clearmargin.formats.dicom.index.select_series`).
        volume: Which volume of a series that holds several phases, echoes or stacks: a number or words of its list
            (:func:`clearmargin.formats.dicom.volumes.select_volume`).
        allow_gaps: Interpolate missing or unevenly spaced slices instead of refusing them.
        allow_tilt: Shift the slices of a tilted gantry upright instead of refusing them.
        tolerance_mm: How far a slice's corners may lie from their place on the grid; None for 0.01 mm.

    Raises:
        InputError: Nothing readable, several series or volumes and none chosen, pixels that cannot be decoded.
        GeometryError: The slices are not one regular volume; the message names what is wrong.
    """
    return read_series(
        *chosen_series(scan_dicom(path), series),
        volume=volume,
        allow_gaps=allow_gaps,
        allow_tilt=allow_tilt,
        tolerance_mm=tolerance_mm,
    )


@dicom_boundary()
def read_series(
    entry: SeriesEntry,
    headers: Sequence[Header],
    *,
    volume: str | None = None,
    allow_gaps: bool = False,
    allow_tilt: bool = False,
    tolerance_mm: float | None = None,
) -> Image:
    """Return a series that was scanned already; as :func:`read_dicom`."""
    if entry.kind != "volume":
        if not entry.readable:
            raise InputError(entry.reason)
        return read_picture(read_header(entry.files[0], pixels=True), entry.files[0])
    if volume is None and len(entry.volumes) > 1:
        raise GeometryError(entry.reason)
    (first, *_) = volumes = _volumes(entry)
    selected = first if volume is None else select_volume(volumes, volume, entry.name)
    return _read_volume(entry, headers, selected, allow_gaps, allow_tilt, tolerance_mm)


def read_dicom_volumes(
    path: Path | Iterable[Path],
    *,
    series: str | None = None,
    allow_gaps: bool = False,
    allow_tilt: bool = False,
    tolerance_mm: float | None = None,
) -> Iterator[Image]:
    """Yield every volume of one series, each a case of its own; arguments as for :func:`read_dicom`.

    Raises:
        InputError: As :func:`read_dicom`; the series holds no volume.
    """
    yield from read_every_volume(
        *chosen_series(scan_dicom(path), series),
        allow_gaps=allow_gaps,
        allow_tilt=allow_tilt,
        tolerance_mm=tolerance_mm,
    )


def read_every_volume(
    entry: SeriesEntry,
    headers: Sequence[Header],
    *,
    allow_gaps: bool = False,
    allow_tilt: bool = False,
    tolerance_mm: float | None = None,
) -> Iterator[Image]:
    """Yield every volume of a series that was scanned already; as :func:`read_dicom_volumes`."""
    if entry.kind != "volume":
        raise InputError(entry.reason or f"{entry.name} is not a volume but one {entry.kind}")
    for volume in _volumes(entry):
        with dicom_boundary():
            image = _read_volume(entry, headers, volume, allow_gaps, allow_tilt, tolerance_mm)
        yield image


def chosen_series(
    scanned: Sequence[tuple[SeriesEntry, list[Header]]], rule: str | None
) -> tuple[SeriesEntry, list[Header]]:
    """Return the series that a rule names (:func:`clearmargin.formats.dicom.index.select_series`), with its headers."""
    entry = select_series([one for one, _ in scanned], rule)
    return entry, next(headers for one, headers in scanned if one is entry)


def _volumes(entry: SeriesEntry) -> tuple[VolumeEntry, ...]:
    if not entry.volumes:
        raise GeometryError(entry.reason)
    return entry.volumes


def read_pictures(entry: SeriesEntry) -> Iterator[Image]:
    """Yield the pictures of a series that is not a volume one by one, ``(C, Y, X)``: stills, or the frames of clips.

    Raises:
        InputError: As :func:`read_dicom`.
    """
    if entry.kind == "object":
        raise InputError(entry.reason)
    for file in entry.files:
        dataset = read_header(file, pixels=True)
        frames = pixel_layout(dataset).frames
        for k in range(frames):
            yield read_picture(dataset, file, frame=k if frames > 1 else None)


@dicom_boundary()
def read_picture(dataset: Dataset, file: Path, *, frame: int | None = None) -> Image:
    """Return one frame of an object as a picture ``(C, Y, X)``, whatever its position in space.

    Args:
        dataset: Read with its pixels.
        file: Where it was read from.
        frame: Frame number from 0; None for an object of one frame.
    """
    layout = pixel_layout(dataset)
    k = frame or 0
    (stored,) = decode_frames(dataset, [k], layout=layout)
    pixels = to_channels(stored, dataset, layout)
    if len(pixels) == 1:
        pixels = _in_units([pixels[0]], [dataset], [layout], [frame_scales(dataset, layout.frames)[k]])
    with grid_as_stated():
        grid = Grid.from_spacing((layout.rows, layout.columns), pixel_spacing(dataset))
    return Image(
        pixels=pixels,
        grid=grid,
        source=Source(
            case=object_case(dataset, file),
            kind="dicom",
            modality=modality_of(dataset),
            files=(file,),
            frame=frame,
            time_s=None if frame is None else frame_time(dataset, frame),
        ),
    )


def object_case(dataset: Elements, file: Path) -> str:
    """Return the case id of one object: pictures of one series are cases of their own."""
    identity = [str(dataset.get(k) or "") for k in ("SeriesInstanceUID", "SOPInstanceUID")]
    return case_of_file(file, *(identity if all(identity) else ()))


def series_case(entry: SeriesEntry, header: Header, volume: str = "") -> str:
    """Return the case id that reading a series gives its image, from the header of one of its files.

    ``volume`` is the label of one of several volumes in it.
    """
    if entry.kind in ("image", "images", "clip"):
        return object_case(header.elements, entry.files[0])
    place = entry.files[0] if len(entry.files) == 1 else entry.files[0].parent
    identity = () if entry.uid.startswith("file:") else (entry.uid, *([volume] if volume else []))
    case = case_of_file(place, *identity)
    return f"{case}_{plain_name(volume)}" if volume and (naming() == "plain" or not identity) else case


def frame_time(dataset: Elements, frame: int) -> float | None:
    """Return seconds from the first frame by FrameTime or FrameTimeVector (PS3.3, C.7.6.5), else None."""
    try:
        vector = dataset.get("FrameTimeVector")
        if vector:
            return float(sum(float(v) for v in vector[1 : frame + 1]) / 1000)
        step = dataset.get("FrameTime")
        return None if step in (None, "") else float(step) * frame / 1000
    except (TypeError, ValueError):
        return None


def _read_volume(
    entry: SeriesEntry,
    headers: Sequence[Header],
    volume: VolumeEntry,
    allow_gaps: bool,
    allow_tilt: bool,
    tolerance_mm: float | None,
) -> Image:
    stack = stack_planes(
        placed(volume.pictures),
        entry.name,
        allow_gaps=allow_gaps,
        allow_tilt=allow_tilt,
        tolerance_mm=tolerance_mm,
    )
    pictures = [volume.pictures[i] for i in stack.order]
    pixels = _stacked(pictures, headers)
    grid = stack.grid
    if stack.tilted and not stack.regular:
        raise GeometryError(f"{entry.name} has a gantry tilt and gaps: together they are not resampled")
    if stack.tilted:
        pixels, grid = straighten(pixels, grid)
    elif not stack.regular:
        pixels, grid = fill_gaps(pixels, grid, stack.offsets_mm)
    return Image(
        pixels=pixels[None] if grid.ndim == 3 else pixels,
        grid=grid,
        source=_source(entry, headers, volume, pictures, stack, tolerance_mm),
    )


def _source(
    entry: SeriesEntry,
    headers: Sequence[Header],
    volume: VolumeEntry,
    pictures: Sequence[Picture],
    stack: Stack,
    tolerance_mm: float | None,
) -> Source:
    order = list(dict.fromkeys(p.file for p in pictures))
    files = tuple(entry.files[k] for k in order)
    return Source(
        case=series_case(entry, headers[0], volume.label),
        kind="dicom",
        modality=entry.modality,
        files=files,
        frames=tuple(
            (order.index(p.file), p.frame) for p in pictures if frame_count(headers[p.file].elements) > 1
        ),
        deviation_mm=stack.deviation_mm,
        tolerance_mm=tolerance_mm if tolerance_mm is not None and stack.deviation_mm > TOLERANCE_MM else None,
    )


def _stacked(pictures: Sequence[Picture], headers: Sequence[Header]) -> NDArray[Any]:
    """Return ``(Z, Y, X)`` real values, decoded in threads if several files are compressed."""
    needed: dict[int, list[int]] = {}
    for picture in pictures:
        frames = needed.setdefault(picture.file, [])
        if picture.frame not in frames:
            frames.append(picture.frame)
    stored = {k: load_pixels(headers[k]) for k in needed}
    jobs = [(stored[k], sorted(frames)) for k, frames in needed.items()]
    if len(jobs) > 1 and any(_is_compressed(headers[k]) for k in needed):
        with ThreadPoolExecutor() as pool:
            decoded = list(pool.map(lambda job: _decoded(*job), jobs))
    else:
        decoded = [_decoded(*job) for job in jobs]
    frames_of = dict(zip(needed, decoded, strict=True))
    scales = {k: frame_scales(pixels.elements, pixels.layout.frames) for k, pixels in stored.items()}
    return _in_units(
        [p.cut(frames_of[p.file][p.frame]) for p in pictures],
        [stored[p.file].elements for p in pictures],
        [stored[p.file].layout for p in pictures],
        [scales[p.file][p.frame] for p in pictures],
    )


def _is_compressed(header: Header) -> bool:
    syntax = syntax_of(header.elements)
    return syntax is not None and syntax.is_encapsulated


def _decoded(pixels: StoredPixels, frames: list[int]) -> dict[int, NDArray[Any]]:
    if pixels.layout.samples != 1:
        raise InputError("slices in colour are not a volume: read them with read_images")
    decoded = list(pixels.frames(frames))
    if len(decoded) != len(frames):
        raise InputError(f"the object holds {len(decoded)} of the {len(frames)} frames that were asked for")
    return dict(zip(frames, decoded, strict=True))


def _in_units(
    stored: Sequence[NDArray[Any]],
    datasets: Sequence[Elements],
    layouts: Sequence[PixelLayout],
    scales: Sequence[FrameScale],
) -> NDArray[Any]:
    """Return stored frames as real values ``(Z, Y, X)`` in one dtype, padding set to the lowest value."""
    stating = sum(dataset.get("RescaleSlope") not in (None, "") for dataset in datasets)
    if 0 < stating < len(datasets):
        raise InputError(
            f"{len(datasets) - stating} of {len(datasets)} slices state no RescaleSlope, and the others do: their "
            "values cannot be compared; take the original files"
        )
    units = {str(dataset.get("RescaleType") or "").strip().upper() for dataset in datasets} - {""}
    if len(units) > 1:
        raise InputError(
            f"the slices are in {len(units)} units (RescaleType) and cannot be compared: give the files of one"
        )
    bright = [brighter_up(*job) for job in zip(stored, datasets, layouts, strict=True)]
    extremes = [(int(frame.min()), int(frame.max())) for frame in bright]
    kind = np.result_type(*[frame.dtype for frame in stored])
    dtype = rescaled_dtype(kind, extremes, scales)
    frames = [
        to_units(frame, dataset, scale, dtype)
        for frame, dataset, scale in zip(bright, datasets, scales, strict=True)
    ]
    volume = np.stack(frames)
    _level_padding(volume, stored, datasets)
    return volume


def _level_padding(
    volume: NDArray[Any], stored: Sequence[NDArray[Any]], datasets: Sequence[Elements]
) -> None:
    """Set padded pixels (PS3.3, C.7.5.1.1.2) to the lowest value of the others: they are not measured."""
    ranges = [_padding(dataset) for dataset in datasets]
    if not any(ranges):
        return
    padded = np.stack(
        [
            (frame >= pair[0]) & (frame <= pair[1]) if pair else np.zeros(frame.shape, bool)
            for frame, pair in zip(stored, ranges, strict=True)
        ]
    )
    if padded.any() and not padded.all():
        volume[padded] = volume[~padded].min()


def _padding(dataset: Elements) -> tuple[int, int] | None:
    value, limit = dataset.get("PixelPaddingValue"), dataset.get("PixelPaddingRangeLimit")
    if not isinstance(value, int):
        return None
    # A reader may have taken a signed value for an unsigned one, as the VR is ambiguous (US or SS).
    if dataset.get("PixelRepresentation") == 1 and value >= 2 ** (int(dataset.get("BitsAllocated")) - 1):
        value -= 2 ** int(dataset.get("BitsAllocated"))
    other = limit if isinstance(limit, int) else value
    return min(value, other), max(value, other)

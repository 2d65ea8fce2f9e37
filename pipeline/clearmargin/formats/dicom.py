"""DICOM images in: a series as a volume, a multi-frame object, one picture; right geometry or a refusal."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clearmargin.core import Grid, Image, Source
from clearmargin.errors import GeometryError, InputError
from clearmargin.formats.dicom_boundary import dicom_boundary, load_pixels, modality_of, read_header
from clearmargin.formats.dicom_geometry import Plane, Stack, pixel_spacing, stack_planes
from clearmargin.formats.dicom_index import (
    SeriesEntry,
    frame_planes,
    index_dicom,
    scan_dicom,
    select_series,
    single_plane,
)
from clearmargin.formats.dicom_pixels import decode_frames, pixel_layout
from clearmargin.formats.dicom_resample import fill_gaps, straighten
from clearmargin.formats.dicom_values import FrameScale, frame_scales, rescaled_dtype, to_channels, to_units
from clearmargin.privacy import case_of_file

__all__ = ["SeriesEntry", "index_dicom", "read_dicom", "read_dicom_pictures"]


@dicom_boundary()
def read_dicom(
    path: Path | Iterable[Path],
    *,
    series: str | None = None,
    allow_gaps: bool = False,
    allow_tilt: bool = False,
) -> Image:
    """Return one DICOM series as an image.

    Single-frame slices and enhanced multi-frame objects with positions become a ``(1, Z, Y, X)`` volume in
    millimetres, slices along the growing normal; a lone picture without a position becomes ``(C, Y, X)``, in
    millimetres only where its spacing is that of the patient. Values are after the modality rescale, as
    integers where the rescale is integral and as float32 otherwise.

    Args:
        path: A file, a folder with all below it, a zip, a DICOMDIR, or the files of one series.
        series: Which series, where there are several (:func:`clearmargin.formats.dicom_index.select_series`).
        allow_gaps: Interpolate missing or unevenly spaced slices instead of refusing them.
        allow_tilt: Shift the slices of a tilted gantry upright instead of refusing them.

    Raises:
        InputError: Nothing readable, several series and none chosen, pixels that cannot be decoded.
        GeometryError: The slices are not one regular volume; the message names what is wrong.
    """
    scanned = scan_dicom(path)
    entry = select_series([found for found, _ in scanned], series)
    headers = next(h for found, h in scanned if found is entry)
    if not entry.readable and entry.kind != "volume":
        raise InputError(entry.reason)
    if len(headers) == 1:
        dataset = read_header(entry.files[0], pixels=True)
        return _read_one(entry, dataset, allow_gaps=allow_gaps, allow_tilt=allow_tilt)
    planes = [_plane(header, entry) for header in headers]
    stack = stack_planes(planes, entry.name, allow_gaps=allow_gaps, allow_tilt=allow_tilt)
    files = tuple(entry.files[i] for i in stack.order)
    datasets = [load_pixels(headers[i], entry.files[i]) for i in stack.order]
    return _volume(entry, _slices(datasets), stack, files)


def read_dicom_pictures(path: Path | Iterable[Path], *, series: str | None = None) -> Iterator[Image]:
    """Yield the pictures of a series that is no volume one by one, ``(C, Y, X)``: stills, or the frames of
    clips.

    Raises:
        InputError: As :func:`read_dicom`.
    """
    entry = select_series(index_dicom(path), series)
    if entry.kind == "object":
        raise InputError(entry.reason)
    for file in entry.files:
        dataset = read_header(file, pixels=True)
        frames = pixel_layout(dataset).frames
        for k in range(frames):
            yield read_picture(dataset, file, frame=k if frames > 1 else None)


@dicom_boundary()
def read_picture(dataset: Any, file: Path, *, frame: int | None = None) -> Image:
    """Return one frame of an object as a picture ``(C, Y, X)``, whatever its position in space.

    Args:
        dataset: A ``pydicom.Dataset`` read with its pixels.
        file: Where it was read from.
        frame: Frame number from 0; None for an object of one frame.
    """
    layout = pixel_layout(dataset)
    k = frame or 0
    (stored,) = decode_frames(dataset, [k])
    pixels = to_channels(stored, dataset, layout)
    if len(pixels) == 1:
        pixels = _in_units([pixels[0]], [dataset], [frame_scales(dataset, layout.frames)[k]])
    spacing = pixel_spacing(dataset)
    return Image(
        pixels=pixels,
        grid=Grid.from_spacing((layout.rows, layout.columns), spacing),
        source=Source(
            case=object_case(dataset, file),
            kind="dicom",
            modality=modality_of(dataset),
            files=(file,),
            frame=frame,
            time_s=None if frame is None else frame_time(dataset, frame),
        ),
    )


def object_case(dataset: Any, file: Path) -> str:
    """Return the case id of one object: pictures of one series are cases of their own."""
    identity = [str(dataset.get(k) or "") for k in ("SeriesInstanceUID", "SOPInstanceUID")]
    return case_of_file(file, *(identity if all(identity) else ()))


def series_case(entry: SeriesEntry, header: Any) -> str:
    """Return the case id that reading a series gives its image, from the header of one of its files."""
    if entry.kind in ("image", "images", "clip"):
        return object_case(header, entry.files[0])
    place = entry.files[0] if len(entry.files) == 1 else entry.files[0].parent
    return case_of_file(place, *(() if entry.uid.startswith("file:") else (entry.uid,)))


def frame_time(dataset: Any, frame: int) -> float | None:
    """Return seconds from the first frame by FrameTime or FrameTimeVector (PS3.3, C.7.6.5), else None."""
    try:
        vector = dataset.get("FrameTimeVector")
        if vector:
            return float(sum(float(v) for v in vector[1 : frame + 1]) / 1000)
        step = dataset.get("FrameTime")
        return None if step in (None, "") else float(step) * frame / 1000
    except (TypeError, ValueError):
        return None


def _plane(dataset: Any, entry: SeriesEntry) -> Plane:
    plane = single_plane(dataset)
    if plane is None:
        raise GeometryError(entry.reason or f"{entry.name} has an image without a position")
    return plane


def _read_one(entry: SeriesEntry, dataset: Any, *, allow_gaps: bool, allow_tilt: bool) -> Image:
    layout = pixel_layout(dataset)
    if entry.kind == "image":
        return read_picture(dataset, entry.files[0])
    planes = (
        [_plane(dataset, entry)]
        if layout.frames == 1
        else [p for p in frame_planes(dataset) if p is not None]
    )
    stack = stack_planes(planes, entry.name, allow_gaps=allow_gaps, allow_tilt=allow_tilt)
    scales = frame_scales(dataset, layout.frames)
    stored = _decoded(dataset)
    pixels = _in_units(
        [stored[i] for i in stack.order], [dataset] * len(stored), [scales[i] for i in stack.order]
    )
    return _volume(entry, pixels, stack, entry.files)


def _slices(datasets: Sequence[Any]) -> NDArray[Any]:
    """Return ``(Z, Y, X)`` real values of single-frame slices, decoded in threads where compressed."""
    compressed = any(
        d.file_meta.TransferSyntaxUID.is_encapsulated for d in datasets if hasattr(d, "file_meta")
    )
    if compressed:
        with ThreadPoolExecutor() as pool:
            stored = [frames[0] for frames in pool.map(_decoded, datasets)]
    else:
        stored = [_decoded(d)[0] for d in datasets]
    scales = [frame_scales(d, 1)[0] for d in datasets]
    return _in_units(stored, datasets, scales)


def _decoded(dataset: Any) -> list[NDArray[Any]]:
    layout = pixel_layout(dataset)
    dataset.layout = layout
    if layout.samples != 1:
        raise InputError("slices in colour are not a volume: read them with read_images")
    frames = list(decode_frames(dataset))
    if len(frames) != layout.frames:
        raise InputError(f"the object holds {len(frames)} of the {layout.frames} frames it claims")
    return frames


def _in_units(
    stored: Sequence[NDArray[Any]], datasets: Sequence[Any], scales: Sequence[FrameScale]
) -> NDArray[Any]:
    """Return stored frames as real values ``(Z, Y, X)`` in one dtype, padding set to the lowest value."""
    extremes = [(int(frame.min()), int(frame.max())) for frame in stored]
    kind = np.result_type(*[frame.dtype for frame in stored])
    dtype = rescaled_dtype(kind, extremes, scales)
    layouts = [getattr(dataset, "layout", None) or pixel_layout(dataset) for dataset in datasets]
    frames = [
        to_units(frame, dataset, layout, scale, dtype)
        for frame, dataset, layout, scale in zip(stored, datasets, layouts, scales, strict=True)
    ]
    volume = np.stack(frames)
    _level_padding(volume, stored, datasets)
    return volume


def _level_padding(volume: NDArray[Any], stored: Sequence[NDArray[Any]], datasets: Sequence[Any]) -> None:
    """Set padded pixels (PS3.3, C.7.5.1.1.2) to the lowest value of the others: they are no measurement."""
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


def _padding(dataset: Any) -> tuple[int, int] | None:
    value, limit = dataset.get("PixelPaddingValue"), dataset.get("PixelPaddingRangeLimit")
    if not isinstance(value, int):
        return None
    # A reader may have taken a signed value for an unsigned one, as the VR is ambiguous (US or SS).
    if dataset.get("PixelRepresentation") == 1 and value >= 2 ** (int(dataset.get("BitsAllocated")) - 1):
        value -= 2 ** int(dataset.get("BitsAllocated"))
    other = limit if isinstance(limit, int) else value
    return min(value, other), max(value, other)


def _volume(entry: SeriesEntry, pixels: NDArray[Any], stack: Stack, files: tuple[Path, ...]) -> Image:
    grid = stack.grid
    if stack.tilted and not stack.regular:
        raise GeometryError(f"{entry.name} has a gantry tilt and gaps: together they are not resampled")
    if stack.tilted:
        pixels, grid = straighten(pixels, grid)
    elif not stack.regular:
        pixels, grid = fill_gaps(pixels, grid, stack.offsets_mm)
    return Image(
        pixels=pixels[None],
        grid=grid,
        source=Source(case=series_case(entry, None), kind="dicom", modality=entry.modality, files=files),
    )

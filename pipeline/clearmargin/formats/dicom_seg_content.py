"""DICOM Segmentation in: binary, fractional and label-map objects, put in place by world coordinates."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clearmargin.core import Code, Grid, InstanceSet, LabelClass, LabelMap, Mask
from clearmargin.core.reprs import short_repr
from clearmargin.errors import GeometryError, InputError
from clearmargin.formats.dicom_boundary import converting, dicom_boundary, read_header
from clearmargin.formats.dicom_geometry import Plane
from clearmargin.formats.dicom_index import frame_planes
from clearmargin.formats.dicom_pixels import decode_frames, pixel_layout

__all__ = ["SegContent", "Segment", "read_dicom_seg", "read_seg_content", "spanned_grid"]

_SEG_CLASSES = {"1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.66.7"}
_TOLERANCE = 0.05  # of a pixel or of a slice distance: how far a frame may lie from the grid's own elements


@dataclass(frozen=True, kw_only=True)
class Segment:
    """What a SEG says about one segment (PS3.3, C.8.20.4)."""

    number: int
    label: str
    type: Code
    category: Code
    tracking_id: str
    tracking_uid: str
    algorithm: str


@short_repr
@dataclass(frozen=True, kw_only=True, eq=False)
class SegContent:
    """A SEG read back.

    Attributes:
        instances: One for each segment, in segment order; a segment without pixels has an empty mask.
        segments: What each one is, in the same order.
        label_map: One class for each distinct property type, in order of appearance; what ``labels`` refer
            to.
        fractions: Of a fractional SEG, float32 arrays in [0, 1] of ``grid.shape``, one for each segment; else
            empty.
    """

    instances: InstanceSet
    segments: tuple[Segment, ...]
    label_map: LabelMap
    fractions: tuple[NDArray[np.float32], ...] = ()


def read_dicom_seg(path: Path, *, grid: Grid | None = None, label_map: LabelMap | None = None) -> InstanceSet:
    """Return the instances of a DICOM SEG; overlap is kept.

    Args:
        path: The file.
        grid: Where to put them; every frame must lie on it. None for the grid that the frames themselves
            span, with the empty slices between them restored.
        label_map: Classes by coded type; None numbers the types in order of appearance.

    Raises:
        InputError: No SEG, damaged, or of a type that the label map does not list.
        GeometryError: Frames that do not lie on the grid.
    """
    content = read_seg_content(path, grid=grid)
    if label_map is None:
        return content.instances
    labels = []
    for segment in content.segments:
        # pydicom's comparison knows SNOMED's retired SRT values for what they are today
        found = [
            c.id
            for c in label_map.classes
            if c.type is not None and _concept(c.type) == _concept(segment.type)
        ]
        if not found:
            known = ", ".join(c.code_text or f"{c.name} (no code)" for c in label_map.classes)
            raise InputError(
                f"segment {segment.number} is of type {segment.type.value} {segment.type.scheme}, "
                f"which is none of: {known}"
            )
        labels.append(found[0])
    return replace(content.instances, labels=np.array(labels, np.int64))


def _concept(code: Code) -> Any:
    from pydicom.sr.coding import Code as Concept

    return Concept(code.value, code.scheme, code.meaning)


@dicom_boundary()
def read_seg_content(path: Path, *, grid: Grid | None = None) -> SegContent:
    """Return a SEG's instances with the codes and tracking identifiers of its segments.

    A fractional SEG gives masks at half of its maximum, and the fractions. Scores are 1, or what
    :func:`clearmargin.formats.dicom_seg.write_dicom_seg` wrote.

    Raises:
        InputError: No SEG, or damaged.
        GeometryError: Frames that span no regular grid, or do not lie on ``grid``.
    """
    dataset = read_header(Path(path), pixels=True)
    if str(dataset.get("SOPClassUID") or "") not in _SEG_CLASSES:
        raise InputError(f"'{Path(path).name}' is not a DICOM SEG")
    layout = pixel_layout(dataset)
    segments, scores = _segments(dataset)
    planes = frame_planes(dataset)
    if grid is None:
        grid = spanned_grid(planes, (layout.rows, layout.columns))
    pieces: dict[int, list[_Piece]] = {s.number: [] for s in segments}
    for number, frame, plane in _segment_frames(dataset, planes, [s.number for s in segments]):
        piece = _piece(frame, plane)
        if piece is not None:
            pieces.setdefault(number, []).append(piece)
    fractional = dataset.get("SegmentationType") == "FRACTIONAL"
    with converting("MaximumFractionalValue"):
        top = float(dataset.get("MaximumFractionalValue") or 1) if fractional else 1.0
    masks = tuple(_placed(pieces[s.number], grid, top / 2 if fractional else 0.5) for s in segments)
    fractions = tuple(_fraction(pieces[s.number], grid, top) for s in segments) if fractional else ()
    label_map, labels = _classes(segments)
    instances = InstanceSet(grid=grid, masks=masks, labels=labels, scores=scores)
    return SegContent(instances=instances, segments=tuple(segments), label_map=label_map, fractions=fractions)


@converting("the description of a segment")
def _segments(dataset: Any) -> tuple[list[Segment], NDArray[np.float32]]:
    segments, scores = [], []
    for item in dataset.get("SegmentSequence") or []:
        number = int(item.SegmentNumber)
        if number == 0:  # a label map's background
            continue
        segments.append(
            Segment(
                number=number,
                label=str(item.get("SegmentLabel") or f"segment {number}"),
                type=_code(item, "SegmentedPropertyTypeCodeSequence"),
                category=_code(item, "SegmentedPropertyCategoryCodeSequence"),
                tracking_id=str(item.get("TrackingID") or ""),
                tracking_uid=str(item.get("TrackingUID") or ""),
                algorithm=str(item.get("SegmentAlgorithmName") or ""),
            )
        )
        written = re.match(r"score (0\.\d+|1\.0+)(;|$)", str(item.get("SegmentDescription") or ""))
        scores.append(float(written[1]) if written else 1.0)
    if not segments:
        raise InputError("the SEG describes no segment")
    return segments, np.array(scores, np.float32)


def _code(item: Any, keyword: str) -> Code:
    sequence = item.get(keyword)
    if not sequence:
        return Code(value="unknown", scheme="99CLEARMARGIN", meaning="not coded")
    value = (
        sequence[0].get("CodeValue") or sequence[0].get("LongCodeValue") or sequence[0].get("URNCodeValue")
    )
    return Code(
        value=str(value or "unknown"),
        scheme=str(sequence[0].get("CodingSchemeDesignator") or ""),
        meaning=str(sequence[0].get("CodeMeaning") or ""),
    )


def _classes(segments: Sequence[Segment]) -> tuple[LabelMap, NDArray[np.int64]]:
    kinds: dict[tuple[str, str], Segment] = {}
    for segment in segments:
        kinds.setdefault((segment.type.value, segment.type.scheme), segment)
    names: list[str] = []
    for segment in kinds.values():
        name = segment.type.meaning.lower() or f"class {len(names) + 1}"
        names.append(name if name not in names else f"{name} {len(names) + 1}")
    classes = tuple(
        LabelClass(id=k + 1, name=name, type=segment.type, category=segment.category)
        for k, (name, segment) in enumerate(zip(names, kinds.values(), strict=True))
    )
    order = list(kinds)
    labels = [order.index((s.type.value, s.type.scheme)) + 1 for s in segments]
    return LabelMap(classes), np.array(labels, np.int64)


def _segment_frames(
    dataset: Any, planes: Sequence[Plane | None], numbers: Sequence[int]
) -> Iterator[tuple[int, NDArray[Any], Plane | None]]:
    """Yield ``(segment number, values, plane)`` a frame; a label-map frame once for each of its values."""
    if dataset.get("SegmentationType") == "LABELMAP":
        for frame, plane in zip(decode_frames(dataset), planes, strict=True):
            for value in np.unique(frame):
                if value and int(value) in numbers:
                    yield int(value), (frame == value).astype(np.uint8), plane
        return
    shared_items = dataset.get("SharedFunctionalGroupsSequence") or []
    each = dataset.get("PerFrameFunctionalGroupsSequence") or []
    for k, (frame, plane) in enumerate(zip(_frames(dataset), planes, strict=True)):
        holders = [
            item for item in (each[k] if k < len(each) else None, *shared_items[:1]) if item is not None
        ]
        found = next((h for h in holders if h.get("SegmentIdentificationSequence")), None)
        if found is None:
            raise InputError(f"frame {k + 1} of the SEG does not say which segment it belongs to")
        with converting("a frame's segment number"):
            number = int(found.SegmentIdentificationSequence[0].ReferencedSegmentNumber)
        yield number, frame, plane


def _frames(dataset: Any) -> Iterator[NDArray[Any]]:
    """Yield the frames, unpacking bits one frame at a time: all at once take eight times the file."""
    layout = pixel_layout(dataset)
    syntax = dataset.file_meta.TransferSyntaxUID
    if layout.allocated != 1 or syntax.is_encapsulated or not syntax.is_little_endian:
        yield from decode_frames(dataset)
        return
    size = layout.rows * layout.columns
    stream = np.frombuffer(dataset.PixelData, np.uint8)
    if len(stream) * 8 < size * layout.frames:
        raise InputError(f"the SEG is cut off: {len(stream)} bytes of {(size * layout.frames + 7) // 8}")
    for k in range(layout.frames):
        first, lead = divmod(k * size, 8)
        bits = np.unpackbits(stream[first : (k + 1) * size // 8 + 1], bitorder="little")
        yield bits[lead : lead + size].reshape(layout.rows, layout.columns)


def spanned_grid(planes: Sequence[Plane | None], size: tuple[int, int]) -> Grid:
    """Return the grid that the frames span, with the slices in between that hold nothing."""
    placed = [p for p in planes if p is not None]
    if not placed:
        return Grid.from_spacing(size)
    if len(placed) != len(planes):
        raise GeometryError("some frames of the SEG have a position and others have none")
    first = placed[0]
    for plane in placed:
        if max(np.abs(plane.right - first.right).max(), np.abs(plane.down - first.down).max()) > 1e-3:
            raise GeometryError(
                "the frames of the SEG lie in several orientations: no single grid holds them"
            )
    heights = np.array([p.position @ first.normal for p in placed])
    order = np.argsort(heights, kind="stable")
    low, high = placed[order[0]], placed[order[-1]]
    distinct = heights[order][np.concatenate(([True], np.diff(heights[order]) > 1e-3))]
    if len(distinct) == 1:
        return _grid(low, 1, first.normal * (first.thickness or 1.0))
    step = _common_step(distinct - distinct[0], first.thickness)
    n = round(float(distinct[-1] - distinct[0]) / step) + 1
    return _grid(low, n, (high.position - low.position) / (n - 1))


def _common_step(offsets: NDArray[np.float64], stated: float) -> float:
    """Return the slice distance: the stated one where all offsets are multiples of it, else the smallest."""
    for step in (stated, float(np.diff(offsets).min())):
        if step > 0 and np.abs(offsets / step - np.round(offsets / step)).max() < _TOLERANCE:
            return step
    raise GeometryError(
        "the frames of the SEG lie at irregular distances: give the grid of its source images"
    )


def _grid(first: Plane, n: int, step: NDArray[np.float64]) -> Grid:
    affine = np.eye(4)
    affine[:3, 0], affine[:3, 3] = step, first.position
    affine[:3, 1], affine[:3, 2] = first.down * first.spacing[0], first.right * first.spacing[1]
    return Grid(shape=(n, *first.shape), affine=affine, unit="mm")


@dataclass(frozen=True, kw_only=True, eq=False)
class _Piece:
    """The part of a frame that holds something.

    Attributes:
        values: ``(y, x)``, tight around what is not zero.
        corner: Row and column of its first pixel within the frame.
        frame: The frame's size.
        plane: Where the frame lies; None where it has no place.
    """

    values: NDArray[Any]
    corner: tuple[int, int]
    frame: tuple[int, int]
    plane: Plane | None


def _piece(frame: NDArray[Any], plane: Plane | None) -> _Piece | None:
    rows, columns = np.flatnonzero(frame.any(axis=1)), np.flatnonzero(frame.any(axis=0))
    if not len(rows):
        return None
    values = frame[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].copy()
    return _Piece(
        values=values,
        corner=(int(rows[0]), int(columns[0])),
        frame=(int(frame.shape[0]), int(frame.shape[1])),
        plane=plane,
    )


def _indices(piece: _Piece, grid: Grid) -> NDArray[np.int64]:
    """Return ``(y, x, ndim)`` grid indices of a piece's pixels, checked to lie on grid elements."""
    rows, columns = piece.values.shape
    pixels = np.stack(np.meshgrid(np.arange(rows), np.arange(columns), indexing="ij"), -1)
    if piece.plane is None or grid.unit == "px":
        if piece.frame != grid.shape[-2:] or grid.shape[:-2] not in ((), (1,)):
            raise GeometryError(
                f"a frame of {piece.frame} without a position is not on a grid of {grid.shape}"
            )
        flat = pixels + piece.corner
        return flat if grid.ndim == 2 else np.insert(flat, 0, 0, axis=-1)
    plane = piece.plane
    along = np.stack((plane.down * plane.spacing[0], plane.right * plane.spacing[1]))
    origin = grid.to_index(plane.position + np.array(piece.corner) @ along)
    steps = np.stack([grid.to_index(plane.position + step) - grid.to_index(plane.position) for step in along])
    for end in (origin, origin + (rows - 1, columns - 1) @ steps):
        off = float(np.abs(end - np.round(end)).max())
        inside = (np.round(end) >= 0).all() and (np.round(end) < grid.shape).all()
        if off > _TOLERANCE or not inside:
            state = f"{off:.2f} of a pixel beside its elements" if inside else "outside it"
            raise GeometryError(
                f"a frame of the SEG does not lie on the grid {grid}: {state}; resample one of them"
            )
    # The ends lie on elements, so each step is a whole one: exact integers from here on.
    whole = np.round(steps).astype(np.int64)
    return np.round(origin).astype(np.int64) + pixels @ whole


def _placed(pieces: Sequence[_Piece], grid: Grid, threshold: float) -> Mask:
    """Return the mask of one segment from its frames' values above ``threshold``."""
    kept = [p for p in pieces if (p.values > threshold).any()]
    if not kept:
        return Mask.from_crop(np.zeros((0,) * grid.ndim, bool), (0,) * grid.ndim, grid.shape)
    found = [_indices(piece, grid) for piece in kept]
    ends = np.concatenate([index[[0, -1], [0, -1]] for index in found])
    low, high = ends.min(axis=0), ends.max(axis=0)
    crop = np.zeros(tuple(int(n) for n in high - low + 1), bool)
    for piece, index in zip(kept, found, strict=True):
        crop[tuple(np.moveaxis(index - low, -1, 0))] |= piece.values > threshold
    return Mask.from_crop(crop, tuple(int(v) for v in low), grid.shape)


def _fraction(pieces: Sequence[_Piece], grid: Grid, top: float) -> NDArray[np.float32]:
    values = np.zeros(grid.shape, np.float32)
    for piece in pieces:
        values[tuple(np.moveaxis(_indices(piece, grid), -1, 0))] = piece.values / np.float32(top)
    return values

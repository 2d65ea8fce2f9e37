"""DICOM Segmentation in: binary, fractional and label-map objects, put in place by world coordinates."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from clearmargin.core import Code, Grid, InstanceSet, LabelClass, LabelMap, Mask
from clearmargin.core.reprs import short_repr
from clearmargin.errors import GeometryError, InputError
from clearmargin.formats.dicom.boundary import converting, dicom_boundary, items_of, read_header
from clearmargin.formats.dicom.geometry import Plane, grid_as_stated
from clearmargin.formats.dicom.pixels import decode_frames, pixel_layout
from clearmargin.formats.dicom.planes import frame_planes, group_of
from clearmargin.formats.limits import max_bytes, raise_it

if TYPE_CHECKING:
    from pydicom.dataset import Dataset
    from pydicom.sr.coding import Code as Concept

__all__ = ["SegContent", "Segment", "read_clip_seg", "read_dicom_seg", "read_seg_content", "spanned_grid"]

_SEG_CLASSES = {"1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.66.7"}
# How far a frame may lie from the grid's own elements: in shares of a pixel or slice distance, and at most in mm.
_TOLERANCE, _TOLERANCE_MM = 0.05, 0.05


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
        fractions: Fractions of a fractional SEG, float32 arrays in [0, 1] of ``grid.shape``, one for each segment; else
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
        matching = [
            c.id
            for c in label_map.classes
            if c.type is not None and _concept(c.type) == _concept(segment.type)
        ]
        if not matching:
            known = ", ".join(c.code_text or f"{c.name} (no code)" for c in label_map.classes)
            raise InputError(
                f"segment {segment.number} is of type {segment.type.value} {segment.type.scheme}, "
                f"which is none of: {known}"
            )
        labels.append(matching[0])
    return replace(content.instances, labels=np.array(labels, np.int64))


def _concept(code: Code) -> Concept:
    from pydicom.sr.coding import Code as Concept

    return Concept(code.value, code.scheme, code.meaning)


@dicom_boundary()
def read_seg_content(path: Path, *, grid: Grid | None = None) -> SegContent:
    """Return a SEG's instances with the codes and tracking identifiers of its segments.

    A fractional SEG gives masks at half of its maximum, and the fractions. Scores are 1, or what
    :func:`clearmargin.formats.dicom.seg.write_dicom_seg` wrote. A tiled slide's masks lie on its total pixel matrix.

    Raises:
        InputError: No SEG, or damaged; frames of a segment that is not described.
        GeometryError: Frames that span no regular grid, do not lie on ``grid``, or are of another frame of reference;
            masks of several frames of a clip, which :func:`read_clip_seg` reads.
    """
    dataset, segments, scores = _opened(path)
    planes, tiles = _places(dataset)
    if grid is None:
        grid = _own_grid(dataset, planes, tiles)
    elif not grid.shares_frame(
        replace(grid, frame_of_reference=str(dataset.get("FrameOfReferenceUID") or ""))
    ):
        raise GeometryError(
            "the SEG is of another frame of reference than the grid: its coordinates mean other places, and only a "
            "registration could relate them"
        )
    frames = _segment_frames(dataset, [s.number for s in segments])
    pieces = [(number, _piece(frame, planes[k], tiles[k], grid)) for k, number, frame in frames]
    if not tiles[0] and not any(planes):
        _one_picture(dataset, pieces)
    if (
        grid.unit == "px"
        and len({round(float(p.position @ p.normal), 2) for p in planes if p is not None}) > 1
    ):
        raise GeometryError(
            f"the SEG's slices have places in the patient, and the place of the grid {grid} is not known"
        )
    return _content(dataset, segments, scores, [(n, p) for n, p in pieces if p is not None], grid)


@dicom_boundary()
def read_clip_seg(path: Path) -> dict[int, SegContent]:
    """Return the masks of a clip: for each frame number from 0 that has a mask, those of its segments.

    Raises:
        InputError: No SEG, or damaged.
        GeometryError: Frames that have a place in the patient or on a slide, or do not say which frame of the source
            they are of.
    """
    dataset, segments, scores = _opened(path)
    planes, tiles = _places(dataset)
    if tiles[0] or any(planes):
        raise GeometryError("the masks have a place in the patient or on a slide: read_dicom_seg reads them")
    sources = _source_frames(dataset)
    layout = pixel_layout(dataset)
    grid = Grid.from_spacing((layout.rows, layout.columns))
    frames: dict[int, list[tuple[int, _Piece]]] = {}
    for k, number, values in _segment_frames(dataset, [s.number for s in segments]):
        source = sources[k]
        if source is None:
            raise GeometryError(f"frame {k + 1} of the SEG does not say which frame of the source it is of")
        piece = _piece(values, None, None, grid)
        if piece is not None:
            frames.setdefault(source[1] - 1, []).append((number, piece))
    if len({source[0] for source in sources if source is not None}) > 1:
        raise GeometryError("the SEG holds masks of several objects: which clip is meant is not known")
    contents = {}
    for frame, pieces in sorted(frames.items()):
        numbers = {number for number, _ in pieces}
        kept = [i for i, segment in enumerate(segments) if segment.number in numbers]
        contents[frame] = _content(dataset, [segments[i] for i in kept], scores[kept], pieces, grid)
    return contents


def _opened(path: Path) -> tuple[Dataset, list[Segment], NDArray[np.float32]]:
    dataset = read_header(Path(path), pixels=True)
    if str(dataset.get("SOPClassUID") or "") not in _SEG_CLASSES:
        raise InputError(f"'{Path(path).name}' is not a DICOM SEG")
    pixel_layout(dataset)
    return dataset, *_segments(dataset)


def _content(
    dataset: Dataset,
    segments: Sequence[Segment],
    scores: NDArray[np.float32],
    pieces_of: Sequence[tuple[int, _Piece]],
    grid: Grid,
) -> SegContent:
    pieces: dict[int, list[_Piece]] = {s.number: [] for s in segments}
    for number, piece in pieces_of:
        pieces[number].append(piece)
    fractional = dataset.get("SegmentationType") == "FRACTIONAL"
    with converting("MaximumFractionalValue"):
        top = float(dataset.get("MaximumFractionalValue") or 1) if fractional else 1.0
    if fractional and 4 * math.prod(grid.shape) > max_bytes():
        raise InputError(f"the SEG states fractions on {grid}: {raise_it()}")
    masks = tuple(_placed(pieces[s.number], grid, top / 2 if fractional else 0.5) for s in segments)
    fractions = tuple(_fraction(pieces[s.number], grid, top) for s in segments) if fractional else ()
    label_map, labels = _classes(segments)
    instances = InstanceSet(grid=grid, masks=masks, labels=labels, scores=scores)
    return SegContent(instances=instances, segments=tuple(segments), label_map=label_map, fractions=fractions)


def _places(dataset: Dataset) -> tuple[list[Plane | None], list[tuple[int, int] | None]]:
    """Return for each frame its plane in the patient, and its first row and column in a slide's total pixel matrix."""
    layout = pixel_layout(dataset)
    frames = layout.frames
    each = items_of(dataset, "PerFrameFunctionalGroupsSequence")
    shared = _shared(dataset)
    if "TotalPixelMatrixRows" not in dataset:
        positions = [group_of(item, shared, "PlanePositionSlideSequence") for item in each] or [None]
        if any(position is not None for position in positions):
            raise GeometryError("the SEG is of a slide, and does not say how large its total pixel matrix is")
        return frame_planes(dataset), [None] * frames
    with converting("the place of a tile"):
        if int(dataset.get("TotalPixelMatrixFocalPlanes") or 1) > 1:
            raise GeometryError("the SEG is of a slide with several focal planes, which have no common grid")
        total = _total_matrix(dataset)
        if dataset.get("DimensionOrganizationType") == "TILED_FULL":
            down, across = range(0, total[0], layout.rows), range(0, total[1], layout.columns)
            one_set = len(down) * len(across)
            if frames % one_set:
                raise GeometryError(f"the SEG holds {frames} tiles, which are not whole sets of {one_set}")
            tiles = [(y, x) for y in down for x in across]
            return [None] * frames, list(tiles * (frames // one_set))
        if len(each) != frames:
            raise GeometryError(f"the SEG has {frames} tiles and places {len(each)} of them")
        stated = [
            p for item in each if (p := group_of(item, shared, "PlanePositionSlideSequence")) is not None
        ]
        if len(stated) < frames:
            raise GeometryError("a tile of the SEG does not say where it lies on the slide")
        corners = [
            (int(p.RowPositionInTotalImagePixelMatrix) - 1, int(p.ColumnPositionInTotalImagePixelMatrix) - 1)
            for p in stated
        ]
    return [None] * frames, list(corners)


def _own_grid(
    dataset: Dataset, planes: Sequence[Plane | None], tiles: Sequence[tuple[int, int] | None]
) -> Grid:
    """Return the grid that the frames span: in the patient, a slide's total pixel matrix, or one picture."""
    layout = pixel_layout(dataset)
    if not tiles[0]:
        return spanned_grid(planes, (layout.rows, layout.columns))
    shared = _shared(dataset)
    measures = group_of(shared, None, "PixelMeasuresSequence")
    with converting("the size of the total pixel matrix"):
        spacing = None if measures is None else measures.get("PixelSpacing")
        steps = None if not spacing else (float(spacing[0]), float(spacing[1]))
        with grid_as_stated():
            return Grid.from_spacing(_total_matrix(dataset), steps)


def _total_matrix(dataset: Dataset) -> tuple[int, int]:
    """Return rows and columns of a slide's total pixel matrix."""
    rows, columns = int(dataset.TotalPixelMatrixRows), int(dataset.TotalPixelMatrixColumns)
    if min(rows, columns) < 1:
        raise InputError(f"the SEG states a total pixel matrix of {rows} x {columns}: it is damaged")
    return rows, columns


def _shared(dataset: Dataset) -> Dataset | None:
    """Return the functional groups that all frames share."""
    return next(iter(items_of(dataset, "SharedFunctionalGroupsSequence")), None)


def _source_frames(dataset: Dataset) -> list[tuple[str, int] | None]:
    """Return for each frame its source's SOPInstanceUID and frame number from 1; None where it does not say."""
    each = items_of(dataset, "PerFrameFunctionalGroupsSequence")
    shared = _shared(dataset)
    sources: list[tuple[str, int] | None] = []
    for k in range(pixel_layout(dataset).frames):
        derivation = group_of(each[k] if k < len(each) else None, shared, "DerivationImageSequence")
        source = group_of(derivation, None, "SourceImageSequence")
        with converting("the reference to a source frame"):
            number = None if source is None else source.get("ReferencedFrameNumber") or 1
            sources.append(
                None
                if source is None or number is None
                else (str(source.get("ReferencedSOPInstanceUID")), int(number))
            )
    return sources


def _one_picture(dataset: Dataset, pieces: Sequence[tuple[int, _Piece | None]]) -> None:
    """Refuse frames without a place unless all are of one picture."""
    sources = {source for source in _source_frames(dataset) if source is not None}
    numbers = [number for number, _ in pieces]
    if len(sources) > 1:
        raise GeometryError(
            f"the SEG holds masks of {len(sources)} frames of a clip, which do not lie on each other: read_clip_seg "
            "reads them frame by frame"
        )
    if not sources and len(numbers) > len(set(numbers)):
        raise GeometryError(
            "the SEG holds several frames of one segment, and says neither where in the patient they lie nor which "
            "frames of a clip they are of"
        )


@converting("the description of a segment")
def _segments(dataset: Dataset) -> tuple[list[Segment], NDArray[np.float32]]:
    segments, scores = [], []
    for item in items_of(dataset, "SegmentSequence"):
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


def _code(item: Dataset, keyword: str) -> Code:
    codes = items_of(item, keyword)
    if not codes:
        return Code(value="unknown", scheme="99CLEARMARGIN", meaning="not coded")
    code = codes[0]
    value = code.get("CodeValue") or code.get("LongCodeValue") or code.get("URNCodeValue")
    return Code(
        value=str(value or "unknown"),
        scheme=str(code.get("CodingSchemeDesignator") or ""),
        meaning=str(code.get("CodeMeaning") or ""),
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


def _segment_frames(dataset: Dataset, numbers: Sequence[int]) -> Iterator[tuple[int, int, NDArray[Any]]]:
    """Yield ``(frame, segment number, values)``; a label-map frame once for each of its values.

    Raises:
        InputError: A frame of a segment that is not described: it would vanish.
    """
    if dataset.get("SegmentationType") == "LABELMAP":
        padding = dataset.get("PixelPaddingValue")
        background = {0, padding if isinstance(padding, int) and padding not in numbers else 0}
        for k, frame in enumerate(decode_frames(dataset)):
            for value in np.unique(frame):
                if int(value) not in background:
                    yield k, _described(int(value), numbers), (frame == value).astype(np.uint8)
        return
    frames = pixel_layout(dataset).frames
    full = dataset.get("DimensionOrganizationType") == "TILED_FULL"
    if full and frames % len(numbers):
        raise InputError(f"the SEG holds {frames} tiles, which are not whole sets of {len(numbers)} segments")
    shared = _shared(dataset)
    each = items_of(dataset, "PerFrameFunctionalGroupsSequence")
    for k, frame in enumerate(_frames(dataset)):
        identification = group_of(each[k] if k < len(each) else None, shared, "SegmentIdentificationSequence")
        if identification is None:
            if not full:
                raise InputError(f"frame {k + 1} of the SEG does not say which segment it belongs to")
            yield k, numbers[k // (frames // len(numbers))], frame
            continue
        with converting("a frame's segment number"):
            number = int(identification.ReferencedSegmentNumber)
        yield k, _described(number, numbers), frame


def _described(number: int, numbers: Sequence[int]) -> int:
    if number not in numbers:
        raise InputError(
            f"the SEG holds pixels of segment {number}, which it does not describe (there are "
            f"{', '.join(str(n) for n in list(numbers)[:20])}): it is damaged"
        )
    return number


def _frames(dataset: Dataset) -> Iterator[NDArray[Any]]:
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
        return _grid(low, 1, first.normal * (first.distance or first.thickness))
    step = _common_step(distinct - distinct[0], first.distance)
    n = round(float(distinct[-1] - distinct[0]) / step) + 1
    return _grid(low, n, (high.position - low.position) / (n - 1))


def _common_step(offsets: NDArray[np.float64], stated: float) -> float:
    """Return the slice distance: SpacingBetweenSlices if all offsets are multiples of it, else the smallest.

    A slice's thickness is not asked: slices may overlap or have gaps between them.
    """
    for step in (stated, float(np.diff(offsets).min())):
        if step > 0 and np.abs(offsets / step - np.round(offsets / step)).max() < _TOLERANCE:
            return step
    raise GeometryError(
        "the frames of the SEG lie at irregular distances: give the grid of its source images"
    )


@grid_as_stated()
def _grid(first: Plane, n: int, step: NDArray[np.float64]) -> Grid:
    affine = np.eye(4)
    affine[:3, 0], affine[:3, 3] = step if step.any() else first.normal, first.position
    affine[:3, 1], affine[:3, 2] = first.down * first.spacing[0], first.right * first.spacing[1]
    # One plane of unknown thickness is a picture in its place: a volume would need an invented distance.
    shape = (n, *first.shape) if step.any() else first.shape
    return Grid(shape=shape, affine=affine, unit="mm", frame_of_reference=first.frame_of_reference)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Piece:
    """The part of a frame that holds something.

    Attributes:
        values: ``(y, x)``, tight around what is not zero.
        corner: Row and column of its first pixel within the frame, or within a slide's total pixel matrix.
        frame: The frame's size, or the total pixel matrix's.
        plane: Where the frame lies; None where it has no place.
    """

    values: NDArray[Any]
    corner: tuple[int, int]
    frame: tuple[int, int]
    plane: Plane | None


def _piece(
    frame: NDArray[Any], plane: Plane | None, tile: tuple[int, int] | None, grid: Grid
) -> _Piece | None:
    if tile is not None:
        top, left = tile
        if min(tile) < 0 or top >= grid.shape[-2] or left >= grid.shape[-1]:
            raise GeometryError(f"a tile of the SEG lies outside the total pixel matrix {grid}")
        frame = frame[: grid.shape[-2] - top, : grid.shape[-1] - left]  # tiles at the edge are filled up
    rows, columns = np.flatnonzero(frame.any(axis=1)), np.flatnonzero(frame.any(axis=0))
    if not len(rows):
        return None
    values = frame[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].copy()
    top, left = tile or (0, 0)
    return _Piece(
        values=values,
        corner=(int(rows[0]) + top, int(columns[0]) + left),
        frame=(int(frame.shape[0]), int(frame.shape[1]))
        if tile is None
        else (grid.shape[-2], grid.shape[-1]),
        plane=plane,
    )


def _indices(piece: _Piece, grid: Grid) -> NDArray[np.int64]:
    """Return ``(y, x, ndim)`` grid indices of a piece's pixels, checked to lie on grid elements."""
    rows, columns = piece.values.shape
    pixels = np.stack(np.meshgrid(np.arange(rows), np.arange(columns), indexing="ij"), -1)
    if piece.plane is None or grid.unit == "px":
        if piece.plane is not None and grid.ndim == 3 and grid.shape[0] > 1:
            raise GeometryError(
                f"a frame with a place in the patient cannot be put on {grid}, whose place is not known"
            )
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
    limit = np.minimum(_TOLERANCE, _TOLERANCE_MM / np.array(grid.spacing))
    for end in (origin, origin + (rows - 1, columns - 1) @ steps):
        off = np.abs(end - np.round(end))
        inside = bool((np.round(end) >= 0).all() and (np.round(end) < grid.shape).all())
        if grid.ndim == 2:
            height = float((plane.position - grid.affine[:3, 3]) @ plane.normal)
            inside = inside and abs(height) <= _TOLERANCE_MM
        if (off > limit).any() or not inside:
            state = f"{off.max():.2f} of a pixel beside its elements" if inside else "outside it"
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
    places = [_indices(piece, grid) for piece in kept]
    ends = np.concatenate([index[[0, -1], [0, -1]] for index in places])
    low, high = ends.min(axis=0), ends.max(axis=0)
    crop = np.zeros(tuple(int(n) for n in high - low + 1), bool)
    for piece, index in zip(kept, places, strict=True):
        crop[tuple(np.moveaxis(index - low, -1, 0))] |= piece.values > threshold
    return Mask.from_crop(crop, tuple(int(v) for v in low), grid.shape)


def _fraction(pieces: Sequence[_Piece], grid: Grid, top: float) -> NDArray[np.float32]:
    values = np.zeros(grid.shape, np.float32)
    for piece in pieces:
        values[tuple(np.moveaxis(_indices(piece, grid), -1, 0))] = piece.values / np.float32(top)
    return values

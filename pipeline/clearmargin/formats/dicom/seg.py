"""DICOM Segmentation: predictions out as one binary segment per instance, any SEG back in (PS3.3, A.51)."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from clearmargin.core import Code, Grid, Image, Mask, Prediction, Provenance
from clearmargin.core.colours import instance_colours
from clearmargin.core.meeting import meeting
from clearmargin.errors import GeometryError, InputError
from clearmargin.formats.dicom.boundary import quiet_pydicom
from clearmargin.formats.dicom.frames import FrameParts, frame_item, frame_parts, head_geometry, set_frames
from clearmargin.formats.dicom.output import (
    RESEARCH_USE,
    Origin,
    algorithm_identification,
    cielab,
    coded,
    derived_uid,
    equipment,
    origins,
    provenance_parts,
    refer_to_sources,
    save,
    source_headers,
    stand_ins,
    write_dates,
)
from clearmargin.formats.dicom.seg_content import (
    SegContent,
    Segment,
    read_clip_seg,
    read_dicom_seg,
    read_seg_content,
)

if TYPE_CHECKING:
    from highdicom.seg import Segmentation, SegmentDescription
    from pydicom.dataset import Dataset

SEGMENTATION = Code(value="113076", scheme="DCM", meaning="Segmentation")

_MOST_SEGMENTS = 65_535  # SegmentNumber is an unsigned short

__all__ = [
    "SegContent",
    "SegWritten",
    "Segment",
    "read_clip_seg",
    "read_dicom_seg",
    "read_seg_content",
    "write_clip_seg",
    "write_dicom_seg",
]


@dataclass(frozen=True, kw_only=True)
class SegWritten:
    """What :func:`write_dicom_seg` did.

    Attributes:
        path: The file; None if there was no instance, since a SEG cannot hold nothing.
        segments: Number of segments, one for each instance that is not empty.
        frames: Number of frames: slices that an instance touches.
        sop_instance_uid: ``""`` if nothing was written.
        skipped: Instances without a single pixel, which no segment can show.
    """

    path: Path | None
    segments: int
    frames: int
    sop_instance_uid: str
    skipped: int


@quiet_pydicom()
def write_dicom_seg(path: Path, prediction: Prediction, image: Image) -> SegWritten:
    """Write a prediction as a binary DICOM SEG with one segment for each instance, so that overlap survives.

    Frames are packed from each instance's own crop; no dense stack of masks is made. UIDs and dates are
    functions of the source, the provenance and the masks: the same prediction gives the same bytes.

    Args:
        path: The file to write.
        prediction: Its instances lie on ``image.grid``.
        image: Read from DICOM; its headers are read again for patient, study and references.

    Returns:
        What was written; ``path`` is None if there is no instance, and no file is then made.

    Raises:
        InputError: The image does not come from DICOM.
        GeometryError: The prediction does not lie on the image's grid.
    """
    instances = prediction.instances
    if not instances.grid.same_as(image.grid):
        raise GeometryError(
            f"the prediction lies on {instances.grid}, the image on {image.grid}: resample it first"
        )
    kept = [i for i, mask in enumerate(instances.masks) if mask.area]
    if not kept:
        return SegWritten(path=None, segments=0, frames=0, sop_instance_uid="", skipped=len(instances))
    headers = source_headers(image)
    identity = seg_identity(prediction, headers, kept)
    masks = [instances.masks[i] for i in kept]
    frames = [(s + 1, z) for s, mask in enumerate(masks) for z in _planes_of(mask)]
    dataset = seg_head("BINARY", image, segments(prediction, kept, identity), identity, prediction.provenance)
    dataset.SegmentsOverlap = "YES" if _any_overlap(masks) else "NO"
    _finish(
        dataset,
        Path(path),
        image,
        headers,
        frame_items(image, frames),
        _packed(masks, image.grid, frames),
    )
    return SegWritten(
        path=Path(path),
        segments=len(kept),
        frames=len(frames),
        sop_instance_uid=str(dataset.SOPInstanceUID),
        skipped=len(instances) - len(kept),
    )


@quiet_pydicom()
def write_clip_seg(path: Path, predictions: Mapping[int, Prediction], image: Image) -> SegWritten:
    """Write the predictions of a clip's frames as one binary SEG, one segment for each instance of each frame.

    Each frame of the SEG names the source frame that it is of (ReferencedFrameNumber).

    Args:
        path: The file to write.
        predictions: By frame number from 0; their instances lie on ``image.grid``.
        image: Any frame of the clip, read from DICOM.

    Returns:
        As :func:`write_dicom_seg`.

    Raises:
        InputError: The image does not come from DICOM; more instances than a SEG has numbers for.
        GeometryError: A prediction does not lie on the image's grid.
    """
    headers = source_headers(image)
    masks: list[Mask] = []
    items: list[Dataset] = []
    described: list[SegmentDescription] = []
    total = sum(len(p.instances) for p in predictions.values())
    if total > _MOST_SEGMENTS:
        raise InputError(
            f"{total} instances are more than the {_MOST_SEGMENTS} segments that one SEG can number"
        )
    identity = _clip_identity(predictions, headers)
    for frame, prediction in sorted(predictions.items()):
        if not prediction.instances.grid.same_as(image.grid):
            raise GeometryError(
                f"frame {frame} was predicted on {prediction.instances.grid}, the clip is {image.grid}"
            )
        kept = [i for i, mask in enumerate(prediction.instances.masks) if mask.area]
        origin = Origin(header=headers[0], frame=frame + 1, preserved=True)
        parts = frame_parts(image.grid, 0, origin, SEGMENTATION)
        described += segments(prediction, kept, identity, first=len(masks) + 1)
        items += [_segment_item(image.grid, len(masks) + k + 1, 1, parts) for k in range(len(kept))]
        masks += [prediction.instances.masks[i] for i in kept]
    if not masks:
        return SegWritten(path=None, segments=0, frames=0, sop_instance_uid="", skipped=total)
    provenance = next(iter(predictions.values())).provenance
    dataset = seg_head("BINARY", image, described, identity, provenance)
    dataset.SegmentsOverlap = (
        "UNDEFINED"  # segments of one frame may overlap, those of two have no common place
    )
    frames = [(s + 1, 0) for s in range(len(masks))]
    _finish(dataset, Path(path), image, headers, items, _packed(masks, image.grid, frames))
    return SegWritten(
        path=Path(path),
        segments=len(masks),
        frames=len(masks),
        sop_instance_uid=str(dataset.SOPInstanceUID),
        skipped=total - len(masks),
    )


def _clip_identity(predictions: Mapping[int, Prediction], headers: list[Dataset]) -> tuple[str, ...]:
    parts = []
    for frame, prediction in sorted(predictions.items()):
        kept = [i for i, mask in enumerate(prediction.instances.masks) if mask.area]
        parts.append(f"{frame}:{seg_identity(prediction, [], kept)}")
    return str(headers[0].SOPInstanceUID), hashlib.sha256("".join(parts).encode()).hexdigest()


def _finish(
    dataset: Dataset, path: Path, image: Image, headers: list[Dataset], items: list[Dataset], pixels: bytes
) -> None:
    refer_to_sources(dataset, headers)
    set_frames(dataset, image.grid, items)
    dataset.PixelData = pixels
    dataset["PixelData"].VR = "OB"
    if "PatientOrientation" in headers[0]:  # type 2C, required if there is no position in the patient
        dataset.PatientOrientation = ""
    write_dates(dataset, headers)
    save(dataset, path)


def _any_overlap(masks: list[Mask]) -> bool:
    firsts, seconds = meeting(masks, masks)
    later = firsts < seconds
    pairs = zip(firsts[later].tolist(), seconds[later].tolist(), strict=True)
    return any(masks[i].overlaps(masks[j]) for i, j in pairs)


def seg_head(
    kind: Literal["BINARY", "LABELMAP", "FRACTIONAL"],
    image: Image,
    described: list[SegmentDescription],
    identity: tuple[str, ...],
    provenance: Provenance,
) -> Segmentation:
    """Return a SEG of the type ``kind`` without its frames: highdicom builds it from one pixel a segment."""
    import highdicom

    one: NDArray[np.uint8] = np.ones((1, 1, 1, len(described)), np.uint8)
    return highdicom.seg.Segmentation(
        source_images=stand_ins(image),
        pixel_array=one[..., 0] if kind == "LABELMAP" else one,
        segmentation_type=kind,
        segment_descriptions=described,
        series_instance_uid=derived_uid("seg series", kind, *identity),
        series_number=900,
        sop_instance_uid=derived_uid("seg", kind, *identity),
        instance_number=1,
        content_label="CLEARMARGIN",
        content_description=RESEARCH_USE,
        series_description=f"Clear Margin instances ({RESEARCH_USE})"[:64],
        omit_empty_frames=False,
        **head_geometry(image.grid),
        **equipment(provenance),
    )


def seg_identity(prediction: Prediction, headers: list[Dataset], kept: list[int]) -> tuple[str, ...]:
    """Return what the object is a function of: sources, algorithm, classes and the masks themselves."""
    grid = prediction.instances.grid
    digest = hashlib.sha256(repr(prediction.label_map).encode())
    digest.update(repr((grid.shape, grid.affine.round(6).tolist())).encode())
    for i in kept:
        mask = prediction.instances.masks[i]
        digest.update(repr((mask.origin, mask.crop.shape, int(prediction.instances.labels[i]))).encode())
        digest.update(np.packbits(mask.crop).tobytes())
        digest.update(_description(prediction, i).encode())
    sources = sorted(str(h.SOPInstanceUID) for h in headers)
    return (*sources, *provenance_parts(prediction.provenance), digest.hexdigest())


def segments(
    prediction: Prediction, kept: list[int], identity: tuple[str, ...], *, first: int = 1
) -> list[SegmentDescription]:
    """Return a segment description for each kept instance, numbered from ``first``."""
    import highdicom

    algorithm = algorithm_identification(prediction.provenance)
    colours = instance_colours(prediction.instances.labels)
    described = []
    for number, i in enumerate(kept, start=first):
        kind = prediction.label_map.by_id(int(prediction.instances.labels[i]))
        segment = highdicom.seg.SegmentDescription(
            segment_number=number,
            segment_label=f"{kind.name[:50]} {number}",
            segmented_property_category=coded(kind.codes[0]),
            segmented_property_type=coded(kind.codes[1]),
            algorithm_type="AUTOMATIC",
            algorithm_identification=algorithm,
            tracking_id=f"{kind.name[:50]} {number}",
            tracking_uid=derived_uid("tracking", number - 1, *identity),
            display_color=cielab(colours[i]),
        )
        segment.SegmentDescription = _description(prediction, i)
        described.append(segment)
    return described


def _description(prediction: Prediction, i: int) -> str:
    """Return the instance's score and uncertainty as text, which the reader takes the score from again."""
    score = np.format_float_positional(
        prediction.instances.scores[i], trim="0"
    )  # that float32 is read back from
    columns = (f"; {name} {float(v[i]):.4f}" for name, v in prediction.instances.uncertainty.items())
    return f"score {score}{''.join(columns)}"


def _planes_of(mask: Mask) -> Iterator[int]:
    """Yield the slices that the mask touches; 0 for a mask in the plane."""
    if len(mask.shape) == 2:
        yield 0
        return
    for k in np.flatnonzero(mask.crop.any(axis=(1, 2))):
        yield mask.origin[0] + int(k)


def frame_items(image: Image, frames: list[tuple[int, int]]) -> list[Dataset]:
    """Return one functional group item for each ``(segment, slice)``."""
    places = origins(image.grid, image)
    rank = {z: r + 1 for r, z in enumerate(sorted({z for _, z in frames}))}
    items = []
    parts: dict[int, FrameParts] = {}
    for segment, z in frames:
        if z not in parts:  # all segments of a slice share its position and its source
            parts[z] = frame_parts(image.grid, z, places[z], SEGMENTATION)
        items.append(_segment_item(image.grid, segment, rank[z], parts[z]))
    return items


def _segment_item(grid: Grid, segment: int, rank: int, parts: FrameParts) -> Dataset:
    from pydicom.dataset import Dataset

    item = frame_item(grid, [segment, rank], parts)
    identification = Dataset()
    identification.ReferencedSegmentNumber = segment
    item.SegmentIdentificationSequence = [identification]
    return item


def _packed(masks: list[Mask], grid: Grid, frames: list[tuple[int, int]]) -> bytes:
    """Return the frames as one stream of bits, the first in the lowest bit (PS3.5, 8.1.1 and D)."""
    size = grid.shape[-2] * grid.shape[-1]
    stream = np.zeros((len(frames) * size + 7) // 8, np.uint8)
    for k, (segment, z) in enumerate(frames):
        first, lead = divmod(k * size, 8)
        bits = np.zeros(lead + size, np.uint8)
        bits[lead:] = _dense_plane(masks[segment - 1], z).ravel()
        packed = np.packbits(bits, bitorder="little")
        stream[first : first + len(packed)] |= packed
    if len(stream) % 2:
        stream = np.append(stream, np.uint8(0))
    return stream.tobytes()


def _dense_plane(mask: Mask, z: int) -> NDArray[np.bool_]:
    return mask.dense() if len(mask.shape) == 2 else mask.plane(z).dense()

"""SEG in its two other types: a label map without overlap, and the probability of one class (PS3.3, A.51)."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from clearmargin.core import Image, Prediction
from clearmargin.core.colours import class_colour
from clearmargin.errors import GeometryError, InputError, nearest
from clearmargin.formats.dicom.boundary import quiet_pydicom
from clearmargin.formats.dicom.frames import frame_item, frame_parts, set_frames
from clearmargin.formats.dicom.output import (
    algorithm_identification,
    cielab,
    coded,
    derived_uid,
    origins,
    provenance_parts,
    refer_to_sources,
    save,
    source_headers,
    write_dates,
)
from clearmargin.formats.dicom.seg import (
    SEGMENTATION,
    SegWritten,
    frame_items,
    seg_head,
    seg_identity,
    segments,
)
from clearmargin.formats.panoptic import flat_labels

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

__all__ = ["write_fractional_seg", "write_label_map_seg"]


@quiet_pydicom()
def write_label_map_seg(path: Path, prediction: Prediction, image: Image) -> SegWritten:
    """Write a prediction as a label-map SEG: smaller, for viewers that know the type, and without overlap.

    Raises:
        InputError: The image does not come from DICOM, or instances overlap, which this type cannot hold.
        GeometryError: The prediction does not lie on the image's grid.
    """
    instances = prediction.instances
    _on_grid(prediction, image)
    kept = [i for i, mask in enumerate(instances.masks) if mask.area]
    skipped = len(instances) - len(kept)
    if not kept:
        return SegWritten(path=None, segments=0, frames=0, sop_instance_uid="", skipped=skipped)
    flat = flat_labels(instances.select(kept)).reshape(-1, *image.grid.shape[-2:])
    if np.count_nonzero(flat) != sum(instances.masks[i].area for i in kept):
        raise InputError("instances overlap, which a label map cannot hold: write_dicom_seg keeps them apart")
    headers = source_headers(image)
    identity = seg_identity(prediction, headers, kept)
    described = segments(prediction, kept, identity)
    dataset = seg_head("LABELMAP", image, described, identity, prediction.provenance)
    planes = [z for z in range(len(flat)) if flat[z].any()]
    places = origins(image.grid, image)
    items = [
        frame_item(image.grid, [rank + 1], frame_parts(image.grid, z, places[z], SEGMENTATION))
        for rank, z in enumerate(planes)
    ]
    dtype = "<u1" if len(kept) < 256 else "<u2"
    dataset.BitsAllocated = dataset.BitsStored = 8 * np.dtype(dtype).itemsize
    dataset.HighBit = dataset.BitsStored - 1
    _finish(dataset, image, headers, items, flat[planes].astype(dtype).tobytes())
    save(dataset, Path(path))
    return SegWritten(
        path=Path(path),
        segments=len(kept),
        frames=len(planes),
        sop_instance_uid=str(dataset.SOPInstanceUID),
        skipped=skipped,
    )


@quiet_pydicom()
def write_fractional_seg(
    path: Path, prediction: Prediction, map_name: str, label: int, image: Image
) -> SegWritten:
    """Write a probability map as a fractional SEG of one segment, in 255 steps.

    Args:
        path: The file to write.
        prediction: Its map ``map_name`` holds values in [0, 1].
        map_name: Which map, such as ``foreground``.
        label: The class whose probability it is.
        image: Read from DICOM.

    Raises:
        InputError: No such map, values outside [0, 1], or an image that does not come from DICOM.
        GeometryError: The prediction does not lie on the image's grid.
    """
    import highdicom

    if map_name not in prediction.maps:
        raise InputError(f"no map '{map_name}': {nearest(map_name, prediction.maps)}")
    _on_grid(prediction, image)
    values = np.asarray(prediction.maps[map_name]).reshape(-1, *image.grid.shape[-2:])
    if not np.isfinite(values).all() or values.min() < 0 or values.max() > 1:
        raise InputError(f"map '{map_name}' holds values outside 0 to 1: they are not probabilities")
    steps = np.rint(values * 255).astype(np.uint8)
    planes = [z for z in range(len(steps)) if steps[z].any()]
    if not planes:
        return SegWritten(path=None, segments=0, frames=0, sop_instance_uid="", skipped=0)
    headers = source_headers(image)
    place = repr((image.grid.shape, image.grid.affine.round(6).tolist(), map_name, label)).encode()
    identity = (
        *sorted(str(h.SOPInstanceUID) for h in headers),
        *provenance_parts(prediction.provenance),
        hashlib.sha256(place + steps.tobytes()).hexdigest(),
    )
    kind = prediction.label_map.by_id(label)
    described = highdicom.seg.SegmentDescription(
        segment_number=1,
        segment_label=f"{kind.name[:40]} {map_name[:20]}",
        segmented_property_category=coded(kind.codes[0]),
        segmented_property_type=coded(kind.codes[1]),
        algorithm_type="AUTOMATIC",
        algorithm_identification=algorithm_identification(prediction.provenance),
        tracking_id=f"{kind.name[:40]} {map_name[:20]}",
        tracking_uid=derived_uid("tracking", *identity),
        display_color=cielab(class_colour(label)),
    )
    dataset = seg_head("FRACTIONAL", image, [described], identity, prediction.provenance)
    items = frame_items(image, [(1, z) for z in planes])
    _finish(dataset, image, headers, items, steps[planes].tobytes())
    save(dataset, Path(path))
    return SegWritten(
        path=Path(path),
        segments=1,
        frames=len(planes),
        sop_instance_uid=str(dataset.SOPInstanceUID),
        skipped=0,
    )


def _on_grid(prediction: Prediction, image: Image) -> None:
    if not prediction.instances.grid.same_as(image.grid):
        raise GeometryError(f"the prediction lies on {prediction.instances.grid}, the image on {image.grid}")


def _finish(
    dataset: Dataset, image: Image, headers: list[Dataset], items: list[Dataset], pixels: bytes
) -> None:
    refer_to_sources(dataset, headers)
    set_frames(dataset, image.grid, items)
    dataset.PixelData = pixels + b"\0" * (len(pixels) % 2)
    dataset["PixelData"].VR = "OB" if dataset.BitsAllocated == 8 else "OW"
    if "PatientOrientation" in headers[0]:
        dataset.PatientOrientation = ""
    write_dates(dataset, headers)

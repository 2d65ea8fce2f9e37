"""Panoptic PNG with its JSON, and label PNG: one value per pixel (cocodataset.org/#format-data, panoptic)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clearmargin.core import InstanceSet, LabelMap
from clearmargin.errors import GeometryError
from clearmargin.files import write_text
from clearmargin.formats.raster import write_raster

__all__ = ["flat_labels", "write_label_raster", "write_panoptic"]


def flat_labels(instances: InstanceSet) -> NDArray[np.int32]:
    """Return ``instances.grid.shape`` int32: ``i + 1`` where instance ``i`` is, 0 elsewhere.

    Where instances overlap the one with the higher score is on top, and of equal ones the smaller: an object
    inside another stays visible. What lies below is lost, which is why SEG and COCO are the formats to keep.
    """
    flat = np.zeros(instances.grid.shape, np.int32)
    order = sorted(
        range(len(instances)), key=lambda i: (float(instances.scores[i]), -instances.masks[i].area)
    )
    for i in order:
        mask = instances.masks[i]
        flat[mask.slices][mask.crop] = i + 1
    return flat


def write_label_raster(path: Path, instances: InstanceSet) -> None:
    """Write a picture's instances as one 16-bit grey PNG or TIFF, value ``i + 1`` for instance ``i``.

    Raises:
        GeometryError: The grid is not a picture.
    """
    if instances.grid.ndim != 2:
        raise GeometryError(f"expected a picture's grid, got {instances.grid}; write_volume writes volumes")
    write_raster(path, flat_labels(instances).astype(np.uint16))


def write_panoptic(path: Path, instances: InstanceSet, label_map: LabelMap) -> None:
    """Write ``path`` (an RGB PNG of ids, R + 256 G + 65536 B) and beside it ``.json`` with its segments.

    Instances of a stuff class are one segment.

    Raises:
        GeometryError: The grid is not a picture.
    """
    if instances.grid.ndim != 2:
        raise GeometryError(f"expected a picture's grid, got {instances.grid}")
    flat = flat_labels(instances)
    first_of_stuff: dict[int, int] = {}
    segments: list[dict[str, Any]] = []
    for i, label in enumerate(instances.labels):
        kind = label_map.by_id(int(label))
        if kind.kind == "stuff" and kind.id in first_of_stuff:
            flat[flat == i + 1] = first_of_stuff[kind.id]
            continue
        first_of_stuff.setdefault(kind.id, i + 1)
        segments.append({"id": i + 1, "category_id": kind.id, "score": round(float(instances.scores[i]), 6)})
    shown = []
    for segment in segments:
        where = np.argwhere(flat == segment["id"])
        if len(where):
            (top, left), (bottom, right) = where.min(axis=0), where.max(axis=0) + 1
            box = [int(left), int(top), int(right - left), int(bottom - top)]
            shown.append(segment | {"area": len(where), "bbox": box, "iscrowd": 0})
    write_raster(path, np.stack([flat & 255, flat >> 8 & 255, flat >> 16 & 255]).astype(np.uint8))
    classes = [{"id": c.id, "name": c.name, "isthing": int(c.kind == "thing")} for c in label_map.classes]
    content = {"file_name": path.name, "segments_info": shown, "categories": classes}
    write_text(path.with_suffix(".json"), json.dumps(content))

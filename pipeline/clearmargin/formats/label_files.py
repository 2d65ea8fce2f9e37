"""Label files of any format as instances: volumes, pictures, DICOM SEG; the reader says what one object is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from clearmargin.core import Grid, InstanceSet, Mask

__all__ = ["LABEL_SUFFIXES", "Objects", "masks_by_value", "parts_of", "read_labels"]

Objects = Literal["classes", "components", "instances"]
"""What one object is in a label file: all elements of a value, each connected part of them, or a value itself."""

LABEL_SUFFIXES = (
    ".nii.gz",
    ".nii",
    ".nrrd",
    ".nhdr",
    ".mha",
    ".mhd",
    ".png",
    ".tif",
    ".tiff",
    ".bmp",
    ".dcm",
)

_MOST_VALUES = 100_000  # up to which boxes are listed by value


def read_labels(path: Path) -> tuple[NDArray[np.integer], Grid]:
    """Return the values of a label volume or picture and its grid; pictures are in px.

    Raises:
        InputError: The file cannot be read.
    """
    if path.name.lower().endswith((".png", ".bmp", ".tif", ".tiff")):
        from clearmargin.formats.raster import read_label_raster

        labels = read_label_raster(path)
        return labels, Grid.from_spacing(labels.shape)
    from clearmargin.formats.volume import read_label_volume

    return read_label_volume(path)


def parts_of(mask: Mask) -> list[Mask]:
    """Return the parts of a mask that hang together by faces, edges or corners; none for an empty one."""
    from scipy.ndimage import find_objects, generate_binary_structure, label

    if not mask.area:
        return []
    n = mask.crop.ndim
    parts, _ = label(mask.crop, generate_binary_structure(n, n))
    return [
        Mask.from_crop(
            parts[box] == k, tuple(o + s.start for o, s in zip(mask.origin, box, strict=True)), mask.shape
        )
        for k, box in enumerate(find_objects(parts), start=1)
        if box is not None
    ]


def _classes(labels: NDArray[np.integer], grid: Grid) -> InstanceSet:
    """Return one object for each value; the value is its class."""
    masks = masks_by_value(labels, grid)
    return InstanceSet(
        grid=grid,
        masks=tuple(masks.values()),
        labels=np.array(list(masks), np.int64),
        scores=np.ones(len(masks), np.float32),
    )


def masks_by_value(labels: NDArray[np.integer], grid: Grid) -> dict[int, Mask]:
    """Return the mask of each positive value, in order, at the cost of the boxes and not of a sort of the volume."""
    from scipy.ndimage import find_objects

    if labels.max(initial=0) > _MOST_VALUES:  # a list of boxes by value would be long and empty
        values = np.unique(labels[labels > 0])
        return {int(v): Mask.from_dense(labels == v) for v in values}
    positive = labels if labels.min(initial=0) >= 0 else np.maximum(labels, 0)
    return {
        value: Mask.from_crop(labels[box] == value, tuple(s.start for s in box), grid.shape)
        for value, box in enumerate(find_objects(positive), start=1)
        if box is not None
    }


def _components(labels: NDArray[np.integer], grid: Grid) -> InstanceSet:
    """Return one object for each part of each value that hangs together by faces, edges or corners."""
    masks: list[Mask] = []
    values: list[int] = []
    for value, mask in masks_by_value(labels, grid).items():
        parts = parts_of(mask)
        masks += parts
        values += [value] * len(parts)
    return InstanceSet(
        grid=grid,
        masks=tuple(masks),
        labels=np.array(values, np.int64),
        scores=np.ones(len(masks), np.float32),
    )


def _instances(labels: NDArray[np.integer], grid: Grid) -> InstanceSet:
    """Return one object for each value, all of one class."""
    by_value = _classes(labels, grid)
    ones = np.ones(len(by_value), np.int64)
    return InstanceSet(grid=grid, masks=by_value.masks, labels=ones, scores=by_value.scores)


_SPLIT: dict[str, Callable[[NDArray[np.integer], Grid], InstanceSet]] = {
    "classes": _classes,
    "components": _components,
    "instances": _instances,
}

"""Masks as label files in the input's own kind: one label map if none overlap, one file per object if some do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from clearmargin.core import Grid, Mask

__all__ = ["mask_suffix", "write_masks"]

_KINDS = {
    ".nii": ".nii.gz",
    ".nii.gz": ".nii.gz",
    ".nrrd": ".nrrd",
    ".nhdr": ".nrrd",
    ".mha": ".mha",
    ".mhd": ".mha",
    ".tif": ".tif",
    ".tiff": ".tif",
}
_MOST = int(np.iinfo(np.uint16).max)


def mask_suffix(source: Path, grid: Grid) -> str:
    """Return the suffix of a mask file for an input: its own kind, PNG for pictures of lossy kinds.

    A sheared grid is written as NIfTI, since NRRD and MHA cannot hold it.
    """
    name = source.name.lower()
    suffix = next((kind for end, kind in _KINDS.items() if name.endswith(end)), ".png")
    if suffix in (".nrrd", ".mha") and not grid.is_orthogonal:
        return ".nii.gz"
    if suffix == ".png" and grid.ndim == 3:
        return ".nii.gz"
    return suffix


def write_masks(
    stem: Path, suffix: str, masks: Sequence[Mask], values: Sequence[int], grid: Grid
) -> tuple[str, ...]:
    """Write ``STEM.SUFFIX``, a label map, or where masks of different values overlap a folder ``STEM`` of binary files.

    Args:
        stem: The file without its suffix.
        suffix: As :func:`mask_suffix` gives it.
        masks: On ``grid``; none give a label map of zeros.
        values: A positive label for each mask. Masks of one value are one object, and may overlap.
        grid: The input's.

    Returns:
        Names of the files under ``stem.parent``: ``instances.png``, or ``instances/0001.png``, ... of 0 and 1.
    """
    labels = _label_map(masks, values, grid)
    if labels is not None:
        _write(stem.with_name(stem.name + suffix), labels, grid)
        return (stem.name + suffix,)
    stem.mkdir(exist_ok=True)
    names = []
    for value in sorted(set(values)):
        one = _label_map([m for m, v in zip(masks, values, strict=True) if v == value], None, grid)
        name = f"{value:04d}{suffix}"
        _write(stem / name, np.zeros(grid.shape, np.uint8) if one is None else one, grid)
        names.append(f"{stem.name}/{name}")
    return tuple(names)


def _label_map(
    masks: Sequence[Mask], values: Sequence[int] | None, grid: Grid
) -> NDArray[np.unsignedinteger] | None:
    """Return ``grid.shape`` labels, 8 bits if they fit; all 1 without values; None where two values share a pixel."""
    highest = max(values, default=1) if values is not None else 1
    if highest > _MOST:
        return None
    labels = np.zeros(grid.shape, np.uint8 if highest <= 255 else np.uint16)
    for mask, value in zip(masks, values if values is not None else [1] * len(masks), strict=True):
        region = labels[mask.slices]
        taken = region[mask.crop]
        if ((taken != 0) & (taken != value)).any():
            return None
        region[mask.crop] = value
    return labels


def _write(path: Path, labels: NDArray[np.unsignedinteger], grid: Grid) -> None:
    if path.name.endswith((".png", ".tif")):
        from clearmargin.formats.raster import write_label_raster

        write_label_raster(path, labels)
    else:
        from clearmargin.formats.volume import write_volume

        if grid.ndim == 2:  # a picture in a volume's format: one slice
            grid, labels = replace(grid, shape=(1, *grid.shape)), labels[None]
        write_volume(path, labels, grid)

"""Instances as tables: CSV and JSON for programs, rich tables for a person.

A column's name carries its unit. Where the grid's unit is px there is no column in mm, mm2 or mm3.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from clearmargin.core import Grid, Mask, Prediction, Source
from clearmargin.files import csv_rows, dict_rows, whole, write_text
from clearmargin.metrics.diameters import slice_axes

if TYPE_CHECKING:
    pass

__all__ = ["instance_rows", "write_rows_csv", "write_rows_json"]

FIRST_COLUMNS = ("case", "instance", "label", "name", "code", "score")


def instance_rows(source: Source, prediction: Prediction) -> list[dict[str, Any]]:
    """Return one row per instance, in order; no rows if nothing was found.

    Columns: ``case``; ``frame`` and ``time_s`` where the source is a frame; ``instance``, counted from 1;
    ``label``, ``name``, ``code`` (value and scheme); ``score``; ``area_px`` of an image or ``volume_voxels``;
    ``area_mm2`` or ``volume_mm3`` where the unit is mm; ``long_axis`` and ``short_axis`` in one slice, with the
    unit (``long_axis_mm``); the bounding box as first and last index of each
    axis, both inside (``x_first`` ... ``z_last``); the centroid in mm in DICOM's LPS (``centroid_x_mm`` ...)
    or in pixels (``centroid_x_px``, ``centroid_y_px``); and each uncertainty column under its own name. An
    empty mask has size 0 and neither box nor centroid (None).
    """
    instances, grid = prediction.instances, prediction.instances.grid
    rows = []
    for i, mask in enumerate(instances.masks):
        kind = prediction.label_map.by_id(int(instances.labels[i]))
        row: dict[str, Any] = {"case": source.case}
        row |= {} if source.frame is None else {"frame": source.frame}
        row |= {} if source.time_s is None else {"time_s": round(source.time_s, 6)}
        row |= {
            "instance": i + 1,
            "label": kind.id,
            "name": kind.name,
            "code": kind.code_text,
            "score": _number(instances.scores[i]),
        }
        long, short = slice_axes(mask.crop, grid.spacing)
        row |= _size(mask, grid)
        row |= {f"long_axis_{grid.unit}": _number(long), f"short_axis_{grid.unit}": _number(short)}
        row |= _box(mask, grid) | _centroid(mask, grid)
        row |= {name: _number(column[i]) for name, column in instances.uncertainty.items()}
        rows.append(row)
    return rows


def write_rows_csv(
    path: Path, rows: Sequence[Mapping[str, Any]], columns: Sequence[str] = FIRST_COLUMNS
) -> None:
    """Write rows as CSV (UTF-8, comma, header); a column that some rows lack is empty in them.

    Args:
        path: The file; a reader never sees half of it.
        rows: Any number; without one, the file is a header.
        columns: Those that come first, and are there without any row.
    """
    known = dict.fromkeys([*columns, *(name for row in rows for name in row)])
    with whole(path) as draft, draft.open("w", newline="", encoding="utf-8") as stream:
        csv_rows(stream, dict_rows(rows, known))


def write_rows_json(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows as a JSON list of objects; a reader never sees half of the file."""
    write_text(path, json.dumps(list(rows), indent=1, allow_nan=False) + "\n")


def _size(mask: Mask, grid: Grid) -> dict[str, Any]:
    if grid.ndim == 3:
        counted, measured = "volume_voxels", "volume_mm3"
    else:
        counted, measured = "area_px", "area_mm2"
    row: dict[str, Any] = {counted: mask.area}
    if grid.unit == "mm":
        row[measured] = _number(mask.area * grid.voxel_size)
    return row


def _box(mask: Mask, grid: Grid) -> dict[str, Any]:
    row: dict[str, Any] = {}
    for axis, first, stop in zip("zyx"[3 - grid.ndim :], *mask.box, strict=True):
        row[f"{axis}_first"] = first if mask.area else None
        row[f"{axis}_last"] = stop - 1 if mask.area else None
    return row


def _centroid(mask: Mask, grid: Grid) -> dict[str, Any]:
    """Return the mean position of the mask's elements, in mm in the patient or in pixels of the image."""
    inside = np.argwhere(mask.crop).mean(axis=0) + mask.origin if mask.area else np.full(grid.ndim, np.nan)
    if grid.unit == "mm":
        point = grid.to_world(inside)
        return {f"centroid_{axis}_mm": _number(v) for axis, v in zip("xyz", point, strict=True)}
    axes = "zyx"[3 - grid.ndim :]
    return {f"centroid_{axis}_px": _number(v) for axis, v in zip(axes, inside, strict=True)}


def _number(value: Any) -> float | None:
    """Return a float with six significant digits, None for what is not a finite number."""
    number = float(value)
    return float(f"{number:.6g}") if math.isfinite(number) else None


def _shown(value: Any) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "-"
    return f"{value:.3f}" if isinstance(value, float) else str(value)

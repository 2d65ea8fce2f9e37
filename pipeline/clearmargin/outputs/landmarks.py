"""Landmarks as files: tables, COCO key points, 3D Slicer's point lists, and packed beside the masks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clearmargin.core import Code, Grid, Landmarks, PointType
from clearmargin.core.landmarks import VISIBILITIES
from clearmargin.report.tables import write_rows_csv, write_rows_json

__all__ = ["landmark_rows", "packed_landmarks", "unpacked_landmarks", "write_landmarks"]

_COLUMNS = ("points", "visible", "scores", "areas", "covariance", "regions", "owners")


def landmark_rows(
    landmarks: Landmarks,
    grid: Grid,
    *,
    frame: int | None = None,
    reasons: Mapping[tuple[int, int], str] | None = None,
) -> list[dict[str, Any]]:
    """Return a row per point that is not absent: indices, LPS in mm if known, visibility, score, standard deviations.

    ``instance`` is the number of the instance that the point belongs to, from 1 on, if that was asked.
    ``sd_major`` and ``sd_minor`` are of the longest and shortest axis of its covariance, in the grid's unit. If it was
    calibrated, ``region_major`` and ``region_minor`` are the longest and shortest semi-axis of its region, and
    ``region_area`` (``region_volume``) is its size; ``refer_because`` is empty if no rule refers it.

    Args:
        landmarks: On ``grid``.
        grid: Its spacing gives lengths.
        frame: Number of the frame, if the image is one.
        reasons: Why a person should look, by object and type (`Assessment.point_reasons`).
    """
    axes = "zyx"[3 - grid.ndim :]
    rows = []
    for i, k in np.argwhere(landmarks.visible > 0):
        at = landmarks.points[i, k]
        row: dict[str, Any] = {} if frame is None else {"frame": frame}
        row |= {"object": int(i) + 1, "point": landmarks.types[k].name}
        if landmarks.owners is not None:
            row["instance"] = int(landmarks.owners[i]) + 1 if landmarks.owners[i] >= 0 else None
        row |= {axis: round(float(v), 4) for axis, v in zip(axes, at, strict=True)}
        if grid.unit == "mm":
            row |= {
                f"{axis}_mm": round(float(v), 4) for axis, v in zip("xyz", grid.to_world(at), strict=True)
            }
        row |= {
            "visible": VISIBILITIES[landmarks.visible[i, k]],
            "score": round(float(landmarks.scores[i, k]), 4),
        }
        if landmarks.covariance is not None:
            spread = grid.semi_axes(landmarks.covariance[i, k])
            row |= {
                f"sd_major_{grid.unit}": round(float(spread[-1]), 4),
                f"sd_minor_{grid.unit}": round(float(spread[0]), 4),
            }
        if landmarks.regions is not None:
            reach = grid.semi_axes(landmarks.regions[i, k])
            size = np.prod(reach) * (np.pi if grid.ndim == 2 else 4 / 3 * np.pi)
            row |= {
                f"region_major_{grid.unit}": round(float(reach[-1]), 4),
                f"region_minor_{grid.unit}": round(float(reach[0]), 4),
                f"region_{grid.size_name}": round(float(size), 4),
                "refer_because": (reasons or {}).get((int(i), int(k)), ""),
            }
        rows.append(row)
    return rows


def write_landmarks(
    folder: Path,
    images: Sequence[tuple[str, int | None, Landmarks]],
    types: Sequence[PointType],
    grid: Grid,
    rows: Sequence[Mapping[str, Any]],
) -> list[str]:
    """Write ``landmarks.csv`` and ``.json``; of pictures ``landmarks_coco.json``, in mm ``landmarks.mrk.json``.

    Args:
        folder: The case folder.
        images: Name, number of the frame (None for one image) and landmarks of each.
        types: Of the landmarks.
        grid: Of all of them.
        rows: Of all of them (`landmark_rows`).

    Returns:
        The names of the files.
    """
    head = ("object", "point") if images[0][1] is None else ("frame", "object", "point")
    write_rows_csv(folder / "landmarks.csv", rows, tuple(rows[0]) if rows else head)
    write_rows_json(folder / "landmarks.json", rows)
    names = ["landmarks.csv", "landmarks.json"]
    if grid.ndim == 2:
        from clearmargin.formats.keypoints import write_coco_keypoints

        shown = [(name, grid.shape, one) for name, _, one in images]
        write_coco_keypoints(folder / "landmarks_coco.json", shown, types)
        names.append("landmarks_coco.json")
    if grid.unit == "mm" and len(images) == 1:
        _write_markups(folder / "landmarks.mrk.json", images[0][2], grid)
        names.append("landmarks.mrk.json")
    return names


def _write_markups(path: Path, landmarks: Landmarks, grid: Grid) -> None:
    from clearmargin.formats.markups import ControlPoint, write_markups

    write_markups(
        path,
        [
            ControlPoint(
                landmarks.types[k].name,
                grid.to_world(landmarks.points[i, k]),
                VISIBILITIES[landmarks.visible[i, k]] == "seen",
                f"object {i + 1}, score {landmarks.scores[i, k]:.3f}; research use only",
            )
            for i, k in np.argwhere(landmarks.visible > 0)
        ],
    )


def packed_landmarks(sets: Sequence[Landmarks]) -> tuple[list[dict[str, Any]], dict[str, NDArray[Any]]]:
    """Return the types, and arrays that keep landmarks bit for bit; one set per frame."""
    arrays: dict[str, NDArray[Any]] = {"landmark_counts": np.array([len(one) for one in sets], np.int64)}
    for name in _COLUMNS:
        columns = [getattr(one, name) for one in sets]
        if any(column is not None for column in columns):
            # of a clip, a frame that nothing is promised of has no regions: NaN, as where a point is absent
            filled = [
                np.full((*one.points.shape, one.ndim), np.nan) if column is None else column
                for one, column in zip(sets, columns, strict=True)
            ]
            arrays[f"landmark_{name}"] = np.concatenate(filled)
    return [asdict(t) for t in sets[0].types], arrays


def unpacked_landmarks(
    types: Sequence[Mapping[str, Any]], arrays: Mapping[str, NDArray[Any]]
) -> list[Landmarks]:
    """Return what `packed_landmarks` took."""
    kinds = tuple(PointType(**{**t, "code": Code(**t["code"]) if t["code"] else None}) for t in types)
    ends = np.concatenate([[0], np.cumsum(arrays["landmark_counts"])]).tolist()
    sets = []
    for start, stop in pairwise(ends):
        columns = {
            name: arrays[f"landmark_{name}"][start:stop] for name in _COLUMNS if f"landmark_{name}" in arrays
        }
        unknown = [
            name
            for name in ("covariance", "regions")
            if name in columns and not np.isfinite(columns[name]).any() and (columns["visible"] > 0).any()
        ]
        known = {name: column for name, column in columns.items() if name not in unknown}
        sets.append(Landmarks(types=kinds, **known))
    return sets

"""Predictions as one small file without loss: masks as packed bits of their crops, columns as they are."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clearmargin.core import (
    Code,
    EdgeSpread,
    Grid,
    InstanceSet,
    LabelClass,
    LabelMap,
    Mask,
    Prediction,
    Provenance,
)
from clearmargin.errors import InputError
from clearmargin.files import parse_json, whole
from clearmargin.outputs.landmarks import packed_landmarks, unpacked_landmarks

__all__ = ["read_packed", "write_packed"]

_SCHEMA = 1
_ARRAYS = ("frames", "counts", "labels", "scores")


def write_packed(path: Path, predictions: Mapping[int, Prediction]) -> None:
    """Write predictions, by frame number, or a single one under 0, as a compressed ``.npz``.

    Kept bit for bit: masks, landmarks, margins' regions, labels, scores, uncertainty columns, edges, grid, label map
    and provenance. Left out: maps, which have files of their own, and the grid's frame of reference, which is an
    identifier.

    Args:
        path: The file. The same predictions give the same bytes.
        predictions: At least one; all with one grid shape, label map and set of columns.
    """
    frames = sorted(predictions)
    every = [predictions[frame] for frame in frames]
    first = next((p for p in every if len(p.instances)), every[0])
    grid = first.instances.grid
    regions = [side for side in ("outer", "inner") if getattr(first, side)]
    head = {
        "schema": _SCHEMA,
        "shape": grid.shape,
        "affine": grid.affine.tolist(),
        "unit": grid.unit,
        "provenance": asdict(first.provenance),
        "classes": [asdict(c) for c in first.label_map.classes],
        "columns": list(first.instances.uncertainty),
        "regions": regions,
        "edges": bool(first.edges),
    }
    arrays: dict[str, NDArray[Any]] = {
        "head": np.frombuffer(json.dumps(head).encode(), np.uint8),
        "frames": np.array(frames, np.int64),
        "counts": np.array([len(p.instances) for p in every], np.int64),
        "labels": np.concatenate([p.instances.labels for p in every]),
        "scores": np.concatenate([p.instances.scores for p in every]),
    }
    filled = [p for p in every if len(p.instances)]
    for name in first.instances.uncertainty:
        columns = [p.instances.uncertainty[name] for p in filled]
        arrays[f"column_{name}"] = np.concatenate([np.zeros(0, np.float32), *columns])
    arrays |= _masks("masks", [mask for p in every for mask in p.instances.masks], grid.ndim)
    for side in regions:
        arrays |= _masks(side, [mask for p in filled for mask in getattr(p, side)], grid.ndim)
    if head["edges"]:
        edges = [edge for p in filled for edge in p.edges]
        arrays["edge_counts"] = np.array([len(edge.sigma) for edge in edges], np.int64)
        arrays["edge_points"] = np.concatenate([edge.points for edge in edges])
        arrays["edge_sigma"] = np.concatenate([edge.sigma for edge in edges])
    sets = [p.instances.landmarks for p in every]
    known = [one for one in sets if one is not None]
    if known and len(known) == len(sets):
        head["points"], of_points = packed_landmarks(known)
        arrays |= of_points
        arrays["head"] = np.frombuffer(json.dumps(head).encode(), np.uint8)
    with whole(path) as draft, draft.open("wb") as stream:
        np.savez_compressed(stream, allow_pickle=False, **arrays)


def read_packed(path: Path) -> dict[int, Prediction]:
    """Return what :func:`write_packed` wrote, by frame number; 0 for a single prediction.

    Raises:
        InputError: It is not such a file, or is damaged.
    """
    try:
        with np.load(path, allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in stored.files}
        head = parse_json(arrays["head"].tobytes())
        if head["schema"] != _SCHEMA:
            raise InputError(
                f"'{path.name}' is of schema {head['schema']}, expected {_SCHEMA}: predict again with this version"
            )
        return _predictions(head, arrays)
    except (OSError, ValueError, KeyError, TypeError, IndexError, EOFError, zipfile.BadZipFile) as error:
        if isinstance(error, FileNotFoundError):
            raise InputError(
                f"there is no '{path.name}' in the folder: predict with --write prediction"
            ) from None
        raise InputError(f"'{path.name}' is damaged ({type(error).__name__}): predict again") from None


def _predictions(head: dict[str, Any], arrays: Mapping[str, NDArray[Any]]) -> dict[int, Prediction]:
    grid = Grid(shape=tuple(head["shape"]), affine=np.array(head["affine"]), unit=head["unit"])
    landmarks = unpacked_landmarks(head["points"], arrays) if "points" in head else []
    types = landmarks[0].types if landmarks else ()
    label_map = LabelMap(tuple(LabelClass(**_codes(c)) for c in head["classes"]), types)
    provenance = Provenance(**head["provenance"])
    masks = _unpacked("masks", arrays, grid)
    regions = {side: _unpacked(side, arrays, grid) for side in head["regions"]}
    edges = _edges(arrays) if head["edges"] else []
    ends = np.concatenate([[0], np.cumsum(arrays["counts"])])
    if len({len(arrays["labels"]), len(arrays["scores"]), len(masks), int(ends[-1])}) != 1:
        raise ValueError("columns of several lengths")
    predictions = {}
    spans = zip(arrays["frames"].tolist(), pairwise(ends.tolist()), strict=True)
    for number, (frame, (start, stop)) in enumerate(spans):
        part = slice(start, stop)
        instances = InstanceSet(
            grid=grid,
            masks=tuple(masks[part]),
            labels=arrays["labels"][part],
            scores=arrays["scores"][part],
            uncertainty={name: arrays[f"column_{name}"][part] for name in head["columns"]},
            landmarks=landmarks[number] if landmarks else None,
        )
        predictions[frame] = Prediction(
            instances=instances,
            label_map=label_map,
            provenance=provenance,
            edges=tuple(edges[part]),
            outer=tuple(regions.get("outer", [])[part]),
            inner=tuple(regions.get("inner", [])[part]),
        )
    return predictions


def _masks(name: str, masks: Sequence[Mask], ndim: int) -> dict[str, NDArray[Any]]:
    """Return masks as three arrays: the crops' corners and shapes ``(N, ndim)``, and their bits one after another."""
    bits = [np.packbits(mask.crop) for mask in masks]
    return {
        f"{name}_origin": np.array([mask.origin for mask in masks], np.int64).reshape(-1, ndim),
        f"{name}_shape": np.array([mask.crop.shape for mask in masks], np.int64).reshape(-1, ndim),
        f"{name}_bits": np.concatenate(bits) if bits else np.zeros(0, np.uint8),
    }


def _unpacked(name: str, arrays: Mapping[str, NDArray[Any]], grid: Grid) -> list[Mask]:
    masks, start = [], 0
    bits = arrays[f"{name}_bits"]
    for origin, shape in zip(arrays[f"{name}_origin"], arrays[f"{name}_shape"], strict=True):
        size = int(np.prod(shape))
        stop = start + (size + 7) // 8
        crop = np.unpackbits(bits[start:stop], count=size).reshape(shape).astype(bool)
        masks.append(Mask(crop=crop, origin=tuple(int(o) for o in origin), shape=grid.shape))
        start = stop
    return masks


def _edges(arrays: Mapping[str, NDArray[Any]]) -> list[EdgeSpread]:
    ends = np.concatenate([[0], np.cumsum(arrays["edge_counts"])]).tolist()
    return [
        EdgeSpread(points=arrays["edge_points"][start:stop], sigma=arrays["edge_sigma"][start:stop])
        for start, stop in pairwise(ends)
    ]


def _codes(entry: dict[str, Any]) -> dict[str, Any]:
    codes = {key: Code(**entry[key]) if entry[key] else None for key in ("type", "category")}
    return entry | codes

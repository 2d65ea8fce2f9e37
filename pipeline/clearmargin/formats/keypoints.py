"""COCO key points in and out (cocodataset.org/#format-data), and the points' tables."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from clearmargin.core import Landmarks, PointType
from clearmargin.errors import InputError
from clearmargin.files import parse_json, write_text

__all__ = ["NamedPoint", "read_coco_keypoints", "read_point_rows", "read_pose_frame", "write_coco_keypoints"]

_DAMAGE = (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError)


class NamedPoint(NamedTuple):
    """A point of a file: its object, its type's name, coordinates in the file's order, visibility, object's area."""

    object: str
    name: str
    at: tuple[float, ...]
    visible: int
    area: float = float("nan")


def read_coco_keypoints(path: Path, image: str) -> list[NamedPoint]:
    """Return the points ``(x, y)`` of one image, absent ones (COCO's 0) among them; crowds are left out.

    Args:
        path: The JSON file.
        image: ``file_name``, or a path that ends with it.

    Raises:
        InputError: It is not such a file, or lists no such image or several.
    """
    try:
        content = parse_json(path.read_text(encoding="utf-8"))
        names = {
            c["id"]: [str(n) for n in c["keypoints"]] for c in content["categories"] if c.get("keypoints")
        }
        entries = [e for e in content["images"] if f"/{image}".endswith(f"/{e['file_name']}")]
        if len(entries) != 1:
            raise InputError(f"the COCO file lists {len(entries)} images of that name")
        points = []
        for annotation in content["annotations"]:
            if annotation["image_id"] != entries[0]["id"] or "keypoints" not in annotation:
                continue
            if annotation.get("iscrowd"):
                continue
            own = names[annotation["category_id"]]
            values = np.array(annotation["keypoints"], np.float64)
            if values.shape != (3 * len(own),):
                raise InputError(
                    f"annotation {annotation.get('id')} has {len(values)} numbers for {len(own)} key points"
                )
            area = float(annotation.get("area", float("nan")))
            for name, (x, y, v) in zip(own, values.reshape(-1, 3), strict=True):
                if v not in (0, 1, 2):
                    raise InputError(f"a key point has the visibility {v:g}, expected 0, 1 or 2")
                points.append(NamedPoint(str(annotation["id"]), name, (float(x), float(y)), int(v), area))
        return points
    except InputError:
        raise
    except _DAMAGE as error:
        raise InputError(f"'{path.name}' holds no COCO key points ({type(error).__name__})") from None


def read_pose_frame(path: Path, frame: int) -> list[NamedPoint]:
    """Return the points ``(x, y)`` of one frame of a list of poses, all of them seen.

    Raises:
        InputError: It is not such a list, or the frame is not labelled; it says which are.
    """
    try:
        frames = parse_json(path.read_text(encoding="utf-8"))
        labelled = [k for k, entry in enumerate(frames) if entry["annotations"]]
        if frame not in labelled:
            shown = ", ".join(map(str, labelled[:4]))
            raise InputError(
                f"frame {frame} has no points: {len(labelled)} of {len(frames)} frames have them ({shown}, ...); "
                "set cases.frames and cases.first_frame to these"
            )
        return [
            NamedPoint(str(a["id"]), str(a["class"]), (float(a["x"]), float(a["y"])), 2)
            for a in frames[frame]["annotations"]
        ]
    except InputError:
        raise
    except _DAMAGE as error:
        raise InputError(f"'{path.name}' is not a list of poses ({type(error).__name__})") from None


def read_point_rows(path: Path, *, ndim: int, case: str | None = None) -> list[NamedPoint]:
    """Return the points of a CSV or JSON table, coordinates as ``(x, y)`` or ``(x, y, z)``.

    Args:
        path: ``.csv``, or a JSON list of objects with the same names.
        ndim: 2 or 3.
        case: Rows whose column ``case`` holds it; None for all.

    Raises:
        InputError: A column is missing, or a value is not a number; the row is named.
    """
    try:
        if path.suffix.lower() == ".json":
            rows: list[dict[str, Any]] = parse_json(path.read_text(encoding="utf-8"))
            if not isinstance(rows, list):
                raise TypeError("a list of rows is expected")
        else:
            with path.open(newline="", encoding="utf-8") as stream:
                rows = list(csv.DictReader(stream))
        points = []
        for number, row in enumerate(rows, start=1):
            if case is not None and str(row["case"]) != case:
                continue
            visible = str(row.get("visible", "") or "seen").lower()
            codes = {"absent": 0, "hidden": 1, "seen": 2, "0": 0, "1": 1, "2": 2}
            if visible not in codes:
                raise InputError(f"row {number} has visible '{visible}', expected absent, hidden or seen")
            at = (
                tuple(float("nan") for _ in range(ndim))
                if codes[visible] == 0
                else tuple(float(row[axis]) for axis in "xyz"[:ndim])
            )
            points.append(
                NamedPoint(str(row.get("object", "") or "1"), str(row["point"]), at, codes[visible])
            )
        return points
    except InputError:
        raise
    except KeyError as error:
        raise InputError(f"the table of points has no column {error}") from None
    except _DAMAGE as error:
        raise InputError(f"'{path.name}' is not a table of points ({type(error).__name__})") from None


def write_coco_keypoints(
    path: Path, images: Iterable[tuple[str, tuple[int, ...], Landmarks]], types: Sequence[PointType]
) -> None:
    """Write landmarks of pictures as COCO key points with scores, an annotation per object.

    One of an object that belongs to an instance has its area and, beyond COCO's fields, its number: ``instance``.

    Args:
        path: The JSON file.
        images: ``(file_name, (Y, X), landmarks)`` each.
        types: Names of the one category's key points.
    """
    content: dict[str, Any] = {"info": {"description": "Clear Margin; research use only"}}
    content["categories"] = [
        {"id": 1, "name": "landmarks", "keypoints": [t.name for t in types], "skeleton": []}
    ]
    content["images"], content["annotations"] = [], []
    for number, (name, shape, landmarks) in enumerate(images, start=1):
        content["images"].append({"id": number, "file_name": name, "height": shape[0], "width": shape[1]})
        owners = [-1] * len(landmarks) if landmarks.owners is None else landmarks.owners.tolist()
        for at, visible, scores, area, owner in zip(
            landmarks.points, landmarks.visible, landmarks.scores, landmarks.areas, owners, strict=True
        ):
            labelled = visible > 0
            low, high = at[labelled].min(axis=0), at[labelled].max(axis=0)
            flat = [
                v
                for (y, x), seen in zip(at, visible, strict=True)
                for v in ((round(float(x), 4), round(float(y), 4), int(seen)) if seen else (0, 0, 0))
            ]
            content["annotations"].append(
                {
                    "id": len(content["annotations"]) + 1,
                    "image_id": number,
                    "category_id": 1,
                    "keypoints": flat,
                    "num_keypoints": int(labelled.sum()),
                    "iscrowd": 0,
                    "bbox": [float(v) for v in (low[1], low[0], high[1] - low[1], high[0] - low[0])],
                    "area": float(area) if np.isfinite(area) else 0.0,
                    "score": float(f"{scores[labelled].mean():.6g}"),
                }
                | ({"instance": owner + 1} if owner >= 0 else {})
            )
    write_text(path, json.dumps(content) + "\n")

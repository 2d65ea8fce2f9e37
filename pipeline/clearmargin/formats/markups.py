"""3D Slicer's point lists, ``.mrk.json``: points in mm of the patient, LPS or RAS as the file says."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from clearmargin.errors import InputError
from clearmargin.files import parse_json, write_text

__all__ = ["ControlPoint", "read_markups", "write_markups"]

_SCHEMA = (
    "https://raw.githubusercontent.com/slicer/slicer/master/Modules/Loadable/Markups/Resources/Schema/"
    "markups-schema-v1.0.3.json#"
)
_FLIP = np.array([-1.0, -1.0, 1.0])


class ControlPoint(NamedTuple):
    """A control point: its label, ``(3,)`` LPS in mm (None if it is not placed), whether it is shown, its note."""

    label: str
    position: NDArray[np.float64] | None
    visible: bool = True
    description: str = ""


def read_markups(path: Path) -> list[list[ControlPoint]]:
    """Return the control points of each list in a file, in LPS.

    Raises:
        InputError: It is not such a file, is in other units than mm, or does not say LPS or RAS.
    """
    try:
        content = parse_json(path.read_text(encoding="utf-8"))
        return [_points(markup) for markup in content["markups"]]
    except InputError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"'{path.name}' is not a list of points of 3D Slicer ({type(error).__name__})"
        ) from None


def _points(markup: dict[str, Any]) -> list[ControlPoint]:
    system = str(markup.get("coordinateSystem", "LPS")).upper()  # the schema's default
    system = {"0": "RAS", "1": "LPS"}.get(system, system)
    if system not in ("LPS", "RAS"):
        raise InputError(f"a list of points is in '{system}', expected LPS or RAS")
    units = str(markup.get("coordinateUnits", "mm"))
    if units != "mm":
        raise InputError(f"a list of points is in '{units}', expected mm: save it in mm")
    points = []
    for point in markup["controlPoints"]:
        placed = point.get("positionStatus", "defined") == "defined"
        position = None
        if placed:
            position = np.array(point["position"], np.float64)
            if position.shape != (3,) or not np.isfinite(position).all():
                raise InputError("a control point has a position that is not three finite numbers")
            position = position * (_FLIP if system == "RAS" else 1.0)
        points.append(ControlPoint(str(point["label"]), position, bool(point.get("visibility", True))))
    return points


def write_markups(path: Path, points: Sequence[ControlPoint]) -> None:
    """Write a point list in LPS; a point without a position is written as missing."""
    controls = [
        {
            "id": str(number),
            "label": point.label,
            "description": point.description,
            "associatedNodeID": "",
            "position": [0.0, 0.0, 0.0] if point.position is None else [float(v) for v in point.position],
            "orientation": [1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0],
            "selected": True,
            "locked": True,
            "visibility": point.visible,
            "positionStatus": "missing" if point.position is None else "defined",
        }
        for number, point in enumerate(points, start=1)
    ]
    markup = {
        "type": "Fiducial",
        "coordinateSystem": "LPS",
        "coordinateUnits": "mm",
        "locked": True,
        "labelFormat": "%N-%d",
        "controlPoints": controls,
    }
    write_text(path, json.dumps({"@schema": _SCHEMA, "markups": [markup]}, indent=1) + "\n")

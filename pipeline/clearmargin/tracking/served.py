"""What the served model takes and returns: an array or paths in, a table with a row per instance out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from clearmargin.core import Grid, Image, Mask, Prediction
from clearmargin.errors import InputError
from clearmargin.formats import open_source

if TYPE_CHECKING:
    import pandas

__all__ = ["COLUMNS", "images_of", "instances_table"]

COLUMNS = ("image", "case", "label", "name", "score", "box", "mask", "unit")
"""Of the table; a column for each kind of uncertainty, called ``uncertainty.NAME``, comes behind them."""


def images_of(given: Any, *, volume: bool, spacing: Sequence[float]) -> Iterator[Image]:
    """Yield the images that a request holds.

    Args:
        given: ``(N, Y, X, C)`` values as read, or what numpy makes that of; or a path, a list of paths or a data frame
            with a column ``path``, each as `predict` takes it, on the machine that serves.
        volume: The N pictures of an array are the slices of one volume, from foot to head.
        spacing: One number per axis of an array's picture or volume, slices first; empty if unknown.

    Raises:
        InputError: It is neither, or a path cannot be read.
    """
    paths = _paths(given)
    if paths is not None:
        for path in paths:
            yield from _read(path)
        return
    try:
        pixels = np.asarray(given, np.float32)
    except (TypeError, ValueError):
        raise InputError(f"expected an array (N, Y, X, C) or paths, got {type(given).__name__}") from None
    if pixels.ndim != 4:
        raise InputError(f"expected an array of shape (N, Y, X, C), got {pixels.shape}")
    pixels = np.moveaxis(pixels, -1, 1)
    if volume:
        stack = np.ascontiguousarray(np.moveaxis(pixels, 1, 0))
        yield Image(pixels=stack, grid=Grid.from_spacing(stack.shape[1:], spacing or None))
        return
    for picture in pixels:
        yield Image(pixels=picture, grid=Grid.from_spacing(pixels.shape[2:], spacing or None))


def instances_table(predictions: Iterable[tuple[Image, Prediction]]) -> pandas.DataFrame:
    """Return a row per instance; an image in which nothing was detected has none.

    Returns:
        ``image``, its number in the request; ``case``, its id, ``case-array`` for an array; ``label``, ``name``,
        ``score``; ``box``, first and one-past-last index of each axis in array order (``[y0, x0, y1, x1]``, z in front
        for a volume); ``mask``, a list of planes ``{"z", "size", "counts"}`` with COCO's uncompressed run lengths,
        column by column, zeros first (one plane, z 0, for a picture); ``unit`` of the grid; and ``uncertainty.NAME``.
    """
    import pandas

    rows: list[dict[str, Any]] = []
    for number, (image, prediction) in enumerate(predictions):
        instances = prediction.instances
        for k, mask in enumerate(instances.masks):
            label = int(instances.labels[k])
            row = {
                "image": number,
                "case": image.source.case,
                "label": label,
                "name": prediction.label_map.by_id(label).name,
                "score": round(float(instances.scores[k]), 6),
                "box": [int(v) for end in mask.box for v in end],
                "mask": _planes(mask),
                "unit": instances.grid.unit,
            }
            of = instances.uncertainty.items()
            rows.append(row | {f"uncertainty.{name}": round(float(column[k]), 6) for name, column in of})
    further = list(dict.fromkeys(name for row in rows for name in row if name not in COLUMNS))
    return pandas.DataFrame(rows, columns=[*COLUMNS, *further])


def _paths(given: Any) -> list[str] | None:
    """Return the paths of a request; None if it holds an array."""
    if isinstance(given, str | Path):
        return [str(given)]
    if hasattr(given, "columns"):
        if "path" not in given.columns:
            raise InputError(f"expected a column 'path', got {', '.join(map(str, given.columns))}")
        return [str(path) for path in given["path"]]
    if isinstance(given, dict) and "path" in given:
        return [str(path) for path in np.ravel(given["path"])]
    several = isinstance(given, list | tuple | np.ndarray) and len(given) > 0
    if several and isinstance(np.ravel(np.asarray(given, object))[0], str | Path):
        return [str(path) for path in np.ravel(np.asarray(given, object))]
    return None


def _read(path: str) -> Iterator[Image]:
    opened = open_source(Path(path))
    if opened.kind == "clip":
        yield from opened.clip().frames()
    elif opened.kind == "folder":
        for file in opened.files:
            yield from open_source(file).images()
    else:
        yield from opened.images()


def _planes(mask: Mask) -> list[dict[str, Any]]:
    """Return the run lengths of each plane that the mask cuts; none for an empty mask of a volume."""
    size = list(mask.shape[-2:])
    if len(mask.shape) == 2:
        return [{"z": 0, "size": size, "counts": mask.run_lengths()}]
    first, last = mask.box[0][0], mask.box[1][0]
    return [{"z": z, "size": size, "counts": mask.plane(z).run_lengths()} for z in range(first, last)]

"""A case as one HTML file: it loads nothing, sends nothing, and opens from disk as in MLflow's frame."""

from __future__ import annotations

import base64
import gzip
import hashlib
import html
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from importlib.resources import files

import numpy as np
from numpy.typing import NDArray

from clearmargin.core import Grid, Image, InstanceSet, Mask
from clearmargin.core.colours import instance_colours
from clearmargin.report.picture import display_window
from clearmargin.report.viewer.layers import (
    Canvas,
    Layer,
    error_layer,
    heat_layer,
    image_file,
    mask_layer,
    reference_layer,
)
from clearmargin.report.viewer.rows import ListRow

__all__ = ["MOST_BYTES", "CaseView", "viewer_page"]

MOST_BYTES = 16_000_000
"""Largest size of a page; a larger case is drawn on a coarser grid, and the page says so."""

_NIIVUE = "niivue-0.69.0.umd.js"
_STEPS = ((1, 1, 1), (1, 2, 2), (1, 3, 3), (2, 3, 3), (2, 4, 4), (3, 6, 6), (4, 8, 8), (8, 16, 16))
_MOST_ELEMENTS = (
    40_000_000  # of what is drawn: a browser without a graphics card has to hold it, with every layer
)


@dataclass(frozen=True, kw_only=True, eq=False)
class CaseView:
    """What the page shows.

    Attributes:
        title: Such as the case id; it names nobody.
        image: A picture, a volume, or frames as the slices of a volume in px.
        predicted: On the image's grid; labels may be any positive numbers.
        reference: The truth; None if there is none.
        rows: Of the list, in its order (`clearmargin.report.viewer.rows`).
        pairs: Positions of matched predictions and references.
        outer: The region of each prediction's outer margin; empty if there is none.
        inner: Likewise.
        maps: Uncertainty maps by name, of the grid's shape.
        notes: Sentences above the controls.
        window: Values shown as black and white; None for what suits the image.
        slice_name: What a slice is called: ``slice`` or ``frame``.
    """

    title: str
    image: Image
    predicted: InstanceSet
    reference: InstanceSet | None = None
    rows: Sequence[ListRow] = ()
    pairs: Sequence[tuple[int, int]] = ()
    outer: Sequence[Mask] = ()
    inner: Sequence[Mask] = ()
    maps: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)
    notes: Sequence[str] = ()
    window: tuple[float, float] | None = None
    slice_name: str = "slice"


def viewer_page(view: CaseView, *, most_bytes: int = MOST_BYTES) -> str:
    """Return the page.

    Args:
        view: What it shows.
        most_bytes: How large it may be. Elements are joined, within slices first, until it fits.

    Raises:
        ValueError: It does not fit even so.
    """
    size = int(np.prod(view.image.grid.shape))
    flat = view.image.grid.ndim == 2 or view.slice_name == "frame"  # frames are not averaged
    for slices, rows, columns in _STEPS:
        step = (1 if flat else slices, rows, columns)
        if size / np.prod(step) > _MOST_ELEMENTS:
            continue
        page = _page(view, Canvas(grid=view.image.grid, step=step))
        if len(page.encode()) <= most_bytes:
            return page
    raise ValueError(f"an image of {view.image.grid.shape} does not fit into a page of {most_bytes} bytes")


def _page(view: CaseView, canvas: Canvas) -> str:
    window = view.window or display_window(view.image)
    layers = _layers(view, canvas)
    grid = view.image.grid
    affine = canvas.affine()
    colours = instance_colours(view.predicted.labels)
    content = {
        "patient": canvas.has_patient,
        "view": _best_view(grid) if canvas.has_patient else "axial",
        "window": window,
        "grey": view.image.pixels.shape[0] != 3,
        "shape": (*(1,) * (3 - grid.ndim), *grid.shape),
        "drawn": canvas.shape,
        "step": canvas.step,
        "toWorld": affine[:3].tolist(),
        "toIndex": np.linalg.inv(affine)[:3].tolist(),
        "sliceName": view.slice_name,
        "layers": [layer.to_data() | {"opacity": 1.0} for layer in layers],
        "columns": ["#", *(view.rows[0].cells if view.rows else ())],
        "rows": [_row(row, number, view, canvas, colours) for number, row in enumerate(view.rows, start=1)],
        "start": _start(view, canvas),
    }
    script, niivue = _asset("viewer.js"), _asset(_NIIVUE)
    sources = " ".join(f"'sha256-{_digest(text)}'" for text in (script, niivue))
    style = _asset("viewer.css")
    policy = (
        f"default-src 'none'; script-src {sources}; style-src 'sha256-{_digest(style)}'; img-src data: blob:; "
        "base-uri 'none'; form-action 'none'"
    )
    packed = {"niivue": _packed_niivue(), "image": image_file(canvas, view.image, window)}
    packed |= {f"layer-{layer.key}": layer.file for layer in layers}
    parts = {
        "policy": policy,
        "title": html.escape(view.title),
        "style": style,
        "notes": "\n".join(
            f"<p>{html.escape(note)}</p>" for note in (*view.notes, *_display_notes(view, canvas, window))
        ),
        "slice_name": html.escape(view.slice_name),
        "legend": _legend(view),
        "software": _software(),
        "licences": html.escape(_asset("LICENSES.txt")),
        "page": json.dumps(content, allow_nan=False).replace("<", "\\u003c"),
        "files": "\n".join(
            f'<script type="text/plain" id="{html.escape(name)}">{base64.b64encode(file).decode()}</script>'
            for name, file in packed.items()
        ),
        "script": script,
    }
    page = _asset("page.html")
    pieces = page.split("{")
    return pieces[0] + "".join(
        parts[name] + rest for name, _, rest in (piece.partition("}") for piece in pieces[1:])
    )


def _layers(view: CaseView, canvas: Canvas) -> list[Layer]:
    labels = view.predicted.labels
    missed = (
        sorted(set(range(len(view.reference))) - {j for _, j in view.pairs})
        if view.reference is not None
        else []
    )
    layers = [heat_layer(canvas, name, values) for name, values in view.maps.items()]
    layers.append(mask_layer(canvas, "prediction", "prediction", view.predicted.masks, labels))
    for key, masks in (("outer", view.outer), ("inner", view.inner)):
        if masks:
            layers.append(
                mask_layer(canvas, key, f"{key} margin", masks, labels, dotted=True, shown=key == "outer")
            )
    if view.reference is not None:
        error = error_layer(canvas, view.predicted, view.reference, view.pairs)
        layers += [] if error is None else [error]
        layers.append(reference_layer(canvas, view.reference, missed))
    return layers


def _row(
    row: ListRow, number: int, view: CaseView, canvas: Canvas, colours: NDArray[np.uint8]
) -> dict[str, object]:
    mask = None
    colour = "#ff00c8"
    if row.predicted is not None:
        mask = view.predicted.masks[row.predicted]
        colour = "#" + "".join(f"{int(c):02x}" for c in colours[row.predicted])
    elif row.reference is not None and view.reference is not None:
        mask = view.reference.masks[row.reference]
    return {
        "kind": row.kind,
        "cells": [str(number), *row.cells.values()],
        "facts": list(row.facts.items()),
        "at": None if mask is None else canvas.centre(mask),
        "colour": None if mask is None else colour,
    }


def _start(view: CaseView, canvas: Canvas) -> tuple[int, int, int]:
    """Return where the page opens: at the largest predicted or reference instance, else in the middle."""
    masks = [*view.predicted.masks, *(view.reference.masks if view.reference is not None else ())]
    largest = max(masks, key=lambda mask: mask.area, default=None)
    z, y, x = canvas.shape
    return (canvas.centre(largest) if largest is not None else None) or (x // 2, y // 2, z // 2)


def _best_view(grid: Grid) -> str:
    """Return the plane in which the volume was acquired: that of its slices."""
    normal = np.abs(np.cross(grid.affine[:3, 1], grid.affine[:3, 2]))
    return ("sagittal", "coronal", "axial")[int(normal.argmax())]


def _legend(view: CaseView) -> str:
    parts = ["prediction: filled, a colour per instance"]
    if view.reference is not None:
        parts.append("reference: white line, false negative: magenta")
    if view.outer or view.inner:
        parts.append("margins: dotted lines")
    return "; ".join(parts) + "."


def _display_notes(view: CaseView, canvas: Canvas, window: tuple[float, float]) -> list[str]:
    notes = []
    if view.image.pixels.dtype != np.uint8:
        notes.append(
            f"Shown in 256 grey levels, from {window[0]:.4g} to {window[1]:.4g} of the image's values."
        )
    if canvas.step != (1, 1, 1):
        z, y, x = canvas.step
        notes.append(
            f"Drawn on a coarser grid to keep this page small: {x} x {y} x {z} elements of the image are one here. "
            "Numbers in the table are of the full image."
        )
    notes.append(f"{view.image.grid}.")
    return notes


def _software() -> str:
    from clearmargin import __version__

    return f"clearmargin {__version__}"


@lru_cache
def _asset(name: str) -> str:
    return files(__package__).joinpath(name).read_text(encoding="utf-8")


@lru_cache
def _packed_niivue() -> bytes:
    return gzip.compress(_asset(_NIIVUE).encode(), compresslevel=9, mtime=0)


def _digest(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()

"""A prediction as a notebook shows it."""

from __future__ import annotations

import base64
import html
import io

import numpy as np

from clearmargin.core import Image, Prediction
from clearmargin.report.annotated import annotated_overlay
from clearmargin.report.tables import instance_rows

__all__ = ["prediction_html", "prediction_png"]

_MOST_ROWS = 20


def prediction_png(prediction: Prediction) -> bytes | None:
    """Return the overlay as PNG; None if the prediction has no image."""
    if prediction.image is None:
        return None
    from PIL import Image as Pillow

    stream = io.BytesIO()
    picture = annotated_overlay(prediction.image, prediction.instances, label_map=prediction.label_map)
    Pillow.fromarray(picture).save(stream, format="PNG")
    return stream.getvalue()


def prediction_html(prediction: Prediction) -> str:
    """Return the overlay above the first 20 rows of the table of instances."""
    parts = [f"<p>{html.escape(repr(prediction))}</p>"]
    picture = prediction_png(prediction)
    if picture is not None:
        text = base64.b64encode(picture).decode()
        parts.append(f'<img alt="overlay" style="max-width:100%" src="data:image/png;base64,{text}">')
    shown = Image(
        pixels=np.zeros((1, *prediction.instances.grid.shape), np.uint8), grid=prediction.instances.grid
    )
    rows = instance_rows((prediction.image or shown).source, prediction)
    if rows:
        columns = [c for c in rows[0] if not c.endswith(("_first", "_last")) and c != "case"]
        head = "".join(f"<th>{html.escape(c)}</th>" for c in columns)
        body = "".join(
            f"<tr>{''.join(f'<td>{html.escape(str(row.get(c, chr(32))))}</td>' for c in columns)}</tr>"
            for row in rows[:_MOST_ROWS]
        )
        parts.append(f"<table><tr>{head}</tr>{body}</table>")
        if len(rows) > _MOST_ROWS:
            parts.append(f"<p>and {len(rows) - _MOST_ROWS} more</p>")
    return "\n".join(parts)

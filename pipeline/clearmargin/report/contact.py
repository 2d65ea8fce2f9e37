"""A contact sheet: many pictures on one, captioned."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from clearmargin.report.annotated import Key, with_legend
from clearmargin.report.lettering import text_size, write_text
from clearmargin.report.picture import Picture

__all__ = ["contact_sheet"]

_PAPER, _INK, _FAINT = (24, 26, 30), (236, 238, 242), (160, 166, 176)
_GAP, _CAPTION, _LETTERS = 12, 30, 18


def contact_sheet(
    pictures: Sequence[tuple[Picture, str]],
    *,
    title: str = "",
    columns: int | None = None,
    tile: int = 320,
    keys: Sequence[Key] = (),
) -> Picture:
    """Return the pictures in rows on dark paper, each with its caption below it.

    Args:
        pictures: ``(Y, X, 3)`` uint8 and a caption each; sizes may differ, and each keeps its proportions.
        title: Above them.
        columns: By default so many that the sheet is about as wide as 3 by 2.
        keys: A legend below them.
        tile: Width and greatest height of a picture on the sheet, in pixels.

    Returns:
        ``(Y, X, 3)`` uint8; with no pictures, a sheet with the title alone.

    Raises:
        ValueError: If a picture is not 8-bit RGB.
    """
    for picture, caption in pictures:
        if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3:
            raise ValueError(f"'{caption}' is {picture.dtype} of shape {picture.shape}, not 8-bit RGB")
    fitted = [_fit(picture, tile) for picture, _ in pictures]
    across = columns or max(1, min(len(fitted), math.ceil(math.sqrt(1.5 * len(fitted)))))
    rows = [range(k, min(k + across, len(fitted))) for k in range(0, len(fitted), across)]
    heights = [max(fitted[i].shape[0] for i in row) for row in rows]
    top = _GAP + (40 if title else 0)
    size = (top + sum(h + _CAPTION + _GAP for h in heights), _GAP + across * (tile + _GAP))
    sheet: Picture = np.empty((*size, 3), np.uint8)
    sheet[:] = _PAPER
    if title:
        sheet = write_text(
            sheet, _shorten(title, size[1] - 2 * _GAP, 24), (14, _GAP), _INK, size=24, backed=False
        )
    y = top
    for row, height in zip(rows, heights, strict=True):
        for k, i in enumerate(row):
            x = _GAP + k * (tile + _GAP)
            h, w = fitted[i].shape[:2]
            left = x + (tile - w) // 2
            sheet[y + height - h : y + height, left : left + w] = fitted[i]
            caption = _shorten(pictures[i][1], tile, _LETTERS)
            start = max(x, min(left, x + tile - text_size(caption, _LETTERS)[0]))
            sheet = write_text(sheet, caption, (y + height + 6, start), _FAINT, size=_LETTERS, backed=False)
        y += height + _CAPTION + _GAP
    return with_legend(sheet, keys, size=_LETTERS)


def _fit(picture: Picture, tile: int) -> Picture:
    """Return the picture scaled to lie within ``tile`` by ``tile``: smoothly down, by repeating pixels up."""
    from PIL import Image

    scale = tile / max(picture.shape[:2])
    width, height = (max(1, round(n * scale)) for n in (picture.shape[1], picture.shape[0]))
    way = Image.Resampling.LANCZOS if scale < 1 else Image.Resampling.NEAREST
    return np.array(Image.fromarray(picture).resize((width, height), way))


def _shorten(text: str, width: int, size: int) -> str:
    """Return as much of ``text`` as fits, with an ellipsis where something is cut off."""
    if text_size(text, size)[0] <= width:
        return text
    while text and text_size(f"{text}...", size)[0] > width:
        text = text[:-1]
    return f"{text.rstrip()}..."

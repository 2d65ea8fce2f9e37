"""Words on pictures."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

from clearmargin.report.picture import Picture

__all__ = ["letter_size", "text_rise", "text_size", "write_labels", "write_text"]


def write_text(
    picture: Picture,
    text: str,
    at: tuple[int, int],
    rgb: tuple[int, int, int],
    *,
    size: int = 13,
    backed: bool = True,
) -> Picture:
    """Return the picture with ``text`` at row and column ``at``, moved inwards where it would leave the edge.

    Args:
        picture: ``(Y, X, 3)`` uint8; not changed.
        text: One line.
        at: Row and column of its top left corner.
        rgb: Colour of the letters.
        size: In pixels.
        backed: Whether to darken what lies behind it; else letters have a dark edge.
    """
    from PIL import Image, ImageDraw

    canvas = Image.fromarray(picture)
    draw = ImageDraw.Draw(canvas, "RGBA")
    width, height = text_size(text, size)
    x = max(0, min(at[1], picture.shape[1] - width - 2))
    y = max(0, min(at[0], picture.shape[0] - height - 2))
    if backed:
        draw.rectangle((x - 2, y - 1, x + width + 2, y + height + 2), fill=(0, 0, 0, 150))
    edge = 0 if backed else max(1, size // 6)
    draw.text((x, y), text, fill=rgb, font=_font(size), anchor="lt", stroke_width=edge, stroke_fill=(0, 0, 0))
    return np.array(canvas)


def letter_size(picture: Picture) -> int:
    """Return the size of letters in pixels that can be read when a picture of such a size is seen as a whole.

    >>> letter_size(np.zeros((512, 512, 3), np.uint8)), letter_size(np.zeros((1080, 1920, 3), np.uint8))
    (14, 30)
    """
    return int(max(13, min(40, round(min(picture.shape[:2]) / 36))))


def write_labels(
    picture: Picture,
    labels: Sequence[tuple[str, tuple[int, int, int, int], tuple[int, int, int]]],
    *,
    size: int = 13,
) -> Picture:
    """Return the picture with each thing's words beside it, clear of things and other words where possible.

    Args:
        picture: ``(Y, X, 3)`` uint8; not changed.
        labels: Text, box ``(y0, x0, y1, x1)`` of what it names, and colour; the first get the best places.
        size: Size of the letters, in pixels.
    """
    boxes = [box for _, box, _ in labels]
    taken: list[tuple[int, int, int, int]] = []
    for text, box, rgb in labels:
        width, height = text_size(text, size)
        y0, x0, y1, x1 = box
        places = [(y0 - height - 5, x0), (y1 + 4, x0), (y0, x1 + 5), (y0, x0 - width - 6), (y1 + 4, x1)]
        spots = [
            (max(0, min(y, picture.shape[0] - height - 2)), max(0, min(x, picture.shape[1] - width - 2)))
            for y, x in places
        ]
        areas = [(y - 2, x - 3, y + height + 3, x + width + 3) for y, x in spots]
        # Another label is worse to cover than a small thing, and that than a large one.
        costs = [sum(9.0 for t in taken if _overlap(a, t)) + sum(_hidden(a, b) for b in boxes) for a in areas]
        best = costs.index(min(costs))
        taken.append(areas[best])
        picture = write_text(picture, text, spots[best], _light(rgb), size=size)
    return picture


def text_size(text: str, size: int = 13) -> tuple[int, int]:
    """Return the width and height of ``text`` in pixels."""
    left, top, right, bottom = _font(size).getbbox(text, anchor="lt")
    return int(right - left), int(bottom - top)


def text_rise(text: str, size: int = 13) -> int:
    """Return how far ``text`` reaches above its base line, in pixels."""
    return -int(_font(size).getbbox(text, anchor="ls")[1])


def _light(rgb: tuple[int, int, int]) -> tuple[int, int, int]:
    """Return the colour half way to white, so that blue can be read on grey."""
    return (rgb[0] + 255) // 2, (rgb[1] + 255) // 2, (rgb[2] + 255) // 2


def _overlap(a: tuple[int, int, int, int], b: tuple[int, int, int, int]) -> int:
    """Return the area that two boxes share."""
    return max(0, min(a[2], b[2]) - max(a[0], b[0])) * max(0, min(a[3], b[3]) - max(a[1], b[1]))


def _hidden(label: tuple[int, int, int, int], thing: tuple[int, int, int, int]) -> float:
    """Return which share of ``thing``'s box a label would hide."""
    return _overlap(label, thing) / max(1, (thing[2] - thing[0]) * (thing[3] - thing[1]))


@functools.cache
def _font(size: int) -> Any:
    from PIL import ImageFont

    return ImageFont.load_default(size)

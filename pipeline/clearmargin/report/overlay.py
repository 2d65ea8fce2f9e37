"""Instances and maps drawn over the image they belong to."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from clearmargin.core import Image, InstanceSet, LabelMap, Mask
from clearmargin.core.colours import instance_colours
from clearmargin.report.lettering import letter_size, text_size, write_labels, write_text
from clearmargin.report.orientation import Turn, upright
from clearmargin.report.picture import Picture, display, enlarge, enlargement
from clearmargin.report.points import draw_landmarks

__all__ = ["fullest_slice", "heat_overlay", "overlay", "shown_slice"]

_MOST_LABELS = (
    12  # of more instances in one plane, names and scores would hide the picture: the legend counts them
)
_HEAT = np.array(
    [(0, 0, 4), (66, 10, 104), (147, 38, 103), (221, 81, 58), (252, 165, 10), (252, 255, 164)], np.float32
)


def overlay(
    image: Image,
    instances: InstanceSet,
    z: int | None = None,
    *,
    window: tuple[float, float] | None = None,
    label_map: LabelMap | None = None,
    reference: InstanceSet | None = None,
    margins: Sequence[InstanceSet] = (),
    thickness: int | None = None,
) -> Picture:
    """Return the image with each instance's outline and a translucent fill, in a shade of its class's colour.

    An instance keeps its colour from slice to slice. A reference's outlines are white dashes. A slice of a
    volume is turned :func:`~clearmargin.report.orientation.upright`. Landmarks are crosses in their type's colour
    (a reference's white), with a ring if they are hidden.

    Args:
        image: The segmented image.
        instances: On the image's grid; none gives the bare picture.
        z: The slice of a volume; by default the one in which instances (of the reference, if there are
            none) fill most; the middle one if there are none at all.
        window: As for :func:`~clearmargin.report.picture.display`.
        label_map: Where given, each of a few instances is named, with its score unless all scores are 1, as a
            reference's are. Of many, the colours must do.
        reference: The truth, on the same grid.
        margins: What outer and inner margins make of the instances, in their order: dots in the instance's colour.
        thickness: Of outlines, in pixels of the result; None for what suits its size.

    Returns:
        ``(j Y, k X, 3)`` uint8, enlarged by whole factors where the image is small or its pixels are not square;
        ``Y`` and ``X`` as turned.

    Raises:
        ValueError: If instances do not lie on the image's grid.
    """
    for drawn in (instances, *margins, *(() if reference is None else (reference,))):
        if drawn.grid.shape != image.grid.shape:
            raise ValueError(f"instances on a grid {drawn.grid.shape} over an image of {image.grid.shape}")
    if image.grid.ndim == 3 and z is None:
        z = shown_slice(instances, reference)
    turn = upright(image.grid)
    plain = turn.array(display(image, z, window))
    factor = enlargement((plain.shape[0], plain.shape[1]), turn.aspect(image.grid))
    picture = enlarge(plain, factor).astype(np.float32)
    masks, positions = _plane(instances, z, turn)
    order = sorted(range(len(masks)), key=lambda i: -masks[i].area)  # small ones lie on top
    total = plain.shape[0] * plain.shape[1]
    # Every instance has its colour, whether or not it is seen here.
    colours = [(int(r), int(g), int(b)) for r, g, b in instance_colours(instances.labels)]
    thick = thickness or max(1 if min(factor) == 1 else 2, round(min(picture.shape[:2]) / 600))
    for i in order:
        fill = 0.06 if masks[i].area / total > 0.08 else 0.22
        _draw(picture, masks[i], colours[positions[i]], factor, thick, fill=fill)
    for drawn in margins:
        for mask, position in zip(*_plane(drawn, z, turn), strict=True):
            _draw(picture, mask, colours[position], factor, thick, dash=2)
    if reference is not None:
        for mask in _plane(reference, z, turn)[0]:
            _draw(picture, mask, (255, 255, 255), factor, thick, dash=4)
    result = np.clip(np.round(picture), 0, 255).astype(np.uint8)
    for points, truth in ((instances, False), (reference, True)):
        if points is not None and points.landmarks is not None:
            of_plane = points.landmarks if image.grid.ndim == 2 else points.landmarks.plane(z or 0)
            result = draw_landmarks(
                result,
                of_plane,
                turn=turn,
                shape=(image.grid.shape[-2], image.grid.shape[-1]),
                factor=factor,
                thick=thick,
                truth=truth,
            )
    if label_map is not None and len(masks) <= _MOST_LABELS:
        names = [label_map.by_id(int(label)).name for label in instances.labels[positions]]
        scores = instances.scores[positions]
        labels = [
            (
                names[i] if (instances.scores == 1).all() else f"{names[i]} {scores[i]:.2f}",
                _scaled_box(masks[i], factor),
                colours[positions[i]],
            )
            for i in reversed(order)
        ]
        result = write_labels(result, labels, size=letter_size(result))
    return result


def heat_overlay(
    image: Image,
    values: NDArray[np.float32],
    z: int | None = None,
    *,
    window: tuple[float, float] | None = None,
    limit: float | None = None,
    name: str = "",
    unit: str = "",
    opaque: bool = False,
    beyond: tuple[int, int, int] | None = None,
) -> Picture:
    """Return the image with a map such as the predictive entropy glowing over it, and a colour bar.

    What is 0 leaves the image as it is; ``limit`` and above is brightest and most opaque. Turned as for
    :func:`overlay`.

    Args:
        image: The segmented image.
        values: Of ``image.grid.shape``, not negative; NaN shows as 0.
        z: The slice of a volume; by default the one whose values sum to most.
        window: As for :func:`~clearmargin.report.picture.display`.
        limit: The value at the bar's top, by default the map's largest; 1 for a map of zeros.
        name: What the map is called beside the bar.
        unit: Its unit, in brackets behind the name.
        opaque: Whether every value, 0 too, hides the image below it, as of a map that is NaN elsewhere.
        beyond: Colour of infinite values; None shows them as 0.

    Raises:
        ValueError: If the map is not of the image's shape.
    """
    if values.shape != image.grid.shape:
        raise ValueError(f"a map of shape {values.shape} over an image of {image.grid.shape}")
    known = np.isfinite(values)
    finite = np.where(known, np.asarray(values, np.float32), np.float32(0))
    endless = np.isposinf(values)
    top = float(finite.max()) if limit is None else float(limit)
    top = top if top > 0 else 1.0
    if image.grid.ndim == 3:
        z = int(finite.sum(axis=(1, 2)).argmax()) if z is None else z
        finite, known, endless = finite[z], known[z], endless[z]
    turn = upright(image.grid)
    plain = turn.array(display(image, z, window))
    factor = enlargement((plain.shape[0], plain.shape[1]), turn.aspect(image.grid))
    level = np.clip(enlarge(turn.array(finite), factor).astype(np.float32) / top, 0, 1)
    opacity = (0.85 * np.sqrt(level))[..., None]
    if opaque:
        opacity = np.asarray(enlarge(turn.array(known), factor), np.float32)[..., None]
    glowing = enlarge(plain, factor) * (1 - opacity) + _heat(level) * opacity
    if beyond is not None:
        glowing[enlarge(turn.array(endless), factor).astype(bool)] = beyond
    title = f"{name} ({unit})" if name and unit else name
    return _with_bar(np.round(glowing).astype(np.uint8), top, title)


def shown_slice(*sets: InstanceSet | None) -> int | None:
    """Return the slice that the masks of the first set with any fill most, small ones counting as large.

    None if no set has any, or for a picture.
    """
    for drawn in sets:
        if drawn is None or drawn.grid.ndim == 2:
            continue
        if not any(mask.area for mask in drawn.masks):
            if drawn.landmarks is not None and drawn.landmarks.count:
                depths = np.rint(drawn.landmarks.points[drawn.landmarks.visible > 0][:, 0]).astype(int)
                return int(np.bincount(np.clip(depths, 0, drawn.grid.shape[0] - 1)).argmax())
            continue
        filled = np.zeros(drawn.grid.shape[0])
        for mask in drawn.masks:
            if mask.area:
                filled[mask.slices[0]] += mask.crop.sum(axis=(1, 2)) / mask.area
        return int(filled.argmax())
    return None


def fullest_slice(reference: InstanceSet) -> int | None:
    """Return the slice that cuts most instances, without any that of most landmarks; None for a picture."""
    if reference.grid.ndim == 2:
        return None
    if not len(reference):
        return shown_slice(reference)
    return int(np.argmax([len(reference.plane(z)[0]) for z in range(reference.grid.shape[0])]))


def _plane(instances: InstanceSet, z: int | None, turn: Turn) -> tuple[list[Mask], NDArray[np.int64]]:
    """Return the masks that are seen in the turned plane, and their positions among the instances."""
    if instances.grid.ndim == 3:
        flat, positions = instances.plane(0 if z is None else z)
        return [turn.mask(mask) for mask in flat.masks], positions
    kept = np.array([i for i, mask in enumerate(instances.masks) if mask.area], np.int64)
    return [instances.masks[i] for i in kept], kept


def _draw(
    picture: NDArray[np.float32],
    mask: Mask,
    rgb: tuple[int, int, int],
    factor: tuple[int, int],
    thick: int,
    *,
    fill: float = 0.0,
    dash: int = 0,
) -> None:
    """Draw one mask of the plane into the enlarged picture, in place; ``dash`` is a dash's length."""
    (y0, x0), (y1, x1) = mask.box
    inside = np.asarray(enlarge(mask.crop, factor), bool)
    line = inside & ~ndimage.binary_erosion(inside, iterations=thick)
    if dash:
        y, x = np.ogrid[: inside.shape[0], : inside.shape[1]]
        length = (
            dash * thick if max(inside.shape) >= 24 * thick else thick
        )  # several dashes round a small one, too
        line &= ((y + x) // length) % 2 == 0
    region = picture[y0 * factor[0] : y1 * factor[0], x0 * factor[1] : x1 * factor[1]]
    tint = np.array(rgb, np.float32)
    region[inside] += fill * (tint - region[inside])
    region[line] = tint


def _scaled_box(mask: Mask, factor: tuple[int, int]) -> tuple[int, int, int, int]:
    (y0, x0), (y1, x1) = mask.box
    return y0 * factor[0], x0 * factor[1], y1 * factor[0], x1 * factor[1]


def _heat(level: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return ``(..., 3)`` colours from black over red to light yellow for levels from 0 to 1."""
    stops = np.linspace(0, 1, len(_HEAT))
    channels = [np.interp(level, stops, _HEAT[:, c]) for c in range(3)]
    return np.stack(channels, -1).astype(np.float32)


def _with_bar(picture: Picture, top: float, title: str) -> Picture:
    """Return the picture with a colour bar at its right, from 0 at the bottom to ``top``, and its title along it."""
    size = letter_size(picture)
    height, ink = picture.shape[0], (235, 235, 235)
    numbers = [f"{share * top:.2g}" for share in (1.0, 0.5, 0.0)]
    widest = max(text_size(n, size)[0] for n in numbers)
    turned = np.zeros((0, 0, 3), np.uint8)
    if title:
        width, tall = text_size(title, size)
        words = np.zeros((tall + 6, min(width + 8, height), 3), np.uint8)
        turned = np.rot90(write_text(words, title, (2, 2), ink, size=size, backed=False))
    left, right = 8 + size, 8 + size + 8 + widest + 8
    bar = np.zeros((height, right + turned.shape[1], 3), np.uint8)
    first, last = size, height - size
    bar[first:last, 8:left] = _heat(np.linspace(1, 0, last - first).astype(np.float32))[:, None]
    for share, number in zip((0.0, 0.5, 1.0), numbers, strict=True):
        row = round(first + share * (last - first)) - size // 2
        bar = write_text(bar, number, (row, left + 8), ink, size=size, backed=False)
    if turned.size:
        start = (height - turned.shape[0]) // 2
        bar[start : start + turned.shape[0], right:] = turned
    return np.concatenate([picture, bar], axis=1)

"""Pictures as they are read: sides of the patient, place of the slice, a scale, and a legend that hides nothing."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from clearmargin.core import Grid, Image, InstanceSet, LabelMap
from clearmargin.core.colours import class_colour
from clearmargin.report.lettering import letter_size, text_rise, text_size, write_text
from clearmargin.report.orientation import upright
from clearmargin.report.overlay import overlay, shown_slice
from clearmargin.report.picture import Picture
from clearmargin.report.points import point_colour

__all__ = [
    "Key",
    "annotated_overlay",
    "class_keys",
    "drawing_keys",
    "side_marks",
    "with_legend",
    "with_marks",
    "with_sides",
]

_INK, _PAPER = (235, 235, 235), (24, 26, 30)
_AXES = (("L", "R"), ("P", "A"), ("H", "F"))  # where x, y and z of DICOM's LPS grow, and shrink
_MOST_KEYS = 60


@dataclass(frozen=True)
class Key:
    """One line of a legend: what is drawn so, in which colour, with which line."""

    text: str
    rgb: tuple[int, int, int]
    line: Literal["filled", "dashed", "dotted", "solid"] = "filled"


def annotated_overlay(
    image: Image,
    instances: InstanceSet,
    z: int | None = None,
    *,
    label_map: LabelMap,
    reference: InstanceSet | None = None,
    margins: Sequence[InstanceSet] = (),
    window: tuple[float, float] | None = None,
) -> Picture:
    """Return :func:`~clearmargin.report.overlay.overlay` with its marks, and a legend below it.

    Args:
        image: The segmented image.
        instances: On the image's grid.
        z: The slice of a volume; by default the one in which instances fill most.
        label_map: What the labels mean.
        reference: The truth, on the same grid.
        margins: What margins make of the instances.
        window: As for :func:`~clearmargin.report.picture.display`.

    Returns:
        ``(Y, X, 3)`` uint8, higher than the overlay by its legend.
    """
    if image.grid.ndim == 3 and z is None:
        z = shown_slice(instances, reference)
        z = image.grid.shape[0] // 2 if z is None else z
    drawn = overlay(
        image,
        instances,
        z,
        window=window,
        label_map=label_map,
        reference=reference,
        margins=margins,
    )
    sets = (instances,) if reference is None else (instances, reference)
    keys = class_keys(label_map, *sets) + drawing_keys(*sets, margins=bool(margins))
    return with_legend(with_marks(drawn, image.grid, z), keys)


def class_keys(label_map: LabelMap, *sets: InstanceSet) -> list[Key]:
    """Return a key for each class that the sets hold, with how many there are of it in each; all, for no set.

    And one for each type of landmark, with how many points of it are not absent.
    """
    if not sets:
        classes = [Key(c.name, class_colour(c.id)) for c in label_map.classes]
        return classes + [Key(p.name, point_colour(k), "solid") for k, p in enumerate(label_map.points)]
    counts = [Counter(int(label) for label in s.labels) for s in sets]
    keys = []
    for c in label_map.classes:
        here = [count[c.id] for count in counts]
        if any(here):
            keys.append(Key(f"{c.name}: {' / '.join(map(str, here))}", class_colour(c.id)))
    for k, point in enumerate(label_map.points):
        here = [0 if s.landmarks is None else int((s.landmarks.visible[:, k] > 0).sum()) for s in sets]
        if any(here):
            keys.append(Key(f"{point.name}: {' / '.join(map(str, here))}", point_colour(k), "solid"))
    return keys


def drawing_keys(
    predicted: InstanceSet, reference: InstanceSet | None = None, *, margins: bool = False
) -> list[Key]:
    """Return the keys that tell a prediction from the truth, with how many each has, and from its margins."""
    keys = []
    if reference is not None:
        masks = len(predicted) + len(reference) > 0
        keys.append(Key(f"prediction: {_held(predicted, masks)}", _INK, "solid"))
        white = "" if reference.landmarks is None else " (white)"
        keys.append(Key(f"ground truth{white}: {_held(reference, masks)}", (255, 255, 255), "dashed"))
    if margins:
        keys.append(Key("margin", _INK, "dotted"))
    return keys


def _held(instances: InstanceSet, masks: bool) -> str:
    """Return how many instances and landmarks there are, as a legend says it; without ``masks`` landmarks alone."""
    if instances.landmarks is None:
        return str(len(instances))
    count = instances.landmarks.count
    points = f"{count} landmark{'' if count == 1 else 's'}"
    return f"{len(instances)}, {points}" if masks else points


def with_marks(picture: Picture, grid: Grid, z: int | None = None, *, size: int | None = None) -> Picture:
    """Return the picture with sides of the patient, place of the slice and a scale.

    Args:
        picture: A plane of the grid, upright and enlarged by whole factors, as overlays are.
        grid: The image's. In px it has no sides, and its scale is in px.
        z: The slice of a volume.
        size: Size of the letters in pixels; None for what suits the picture.
    """
    size = size or letter_size(picture)
    width, gap = picture.shape[1], size // 2
    if grid.ndim == 3 and grid.unit == "mm":
        picture = with_sides(picture, side_marks(grid), size=size)
    if grid.ndim == 3 and z is not None:  # below the side mark of a narrow picture
        for line, text in enumerate(_place(grid, z)):
            at = (gap + (line + 1) * (size + gap // 2), gap)
            picture = write_text(
                picture, text, at, _INK, size=_fitting(text, width - 2 * gap, size), backed=False
            )
    return _with_scale(picture, grid, size)


def with_sides(picture: Picture, marks: tuple[str, str, str, str], *, size: int) -> Picture:
    """Return the picture with a mark at the middle of its left, right, top and bottom edge."""
    height, width = picture.shape[:2]
    gap = size // 2
    for (row, column), text in zip(((0.5, 0.0), (0.5, 1.0), (0.0, 0.5), (1.0, 0.5)), marks, strict=True):
        wide, tall = text_size(text, size)
        at = (round(gap + row * (height - tall - 2 * gap)), round(gap + column * (width - wide - 2 * gap)))
        picture = write_text(picture, text, at, _INK, size=size, backed=False)
    return picture


def side_marks(grid: Grid) -> tuple[str, str, str, str]:
    """Return which side of the patient lies at the left, right, top and bottom of an upright slice.

    Letters are DICOM's (PS3.3, C.7.6.1.1.1): L, R, P, A, H, F; of an oblique slice several, the nearest first.

    >>> side_marks(Grid.from_spacing((3, 4, 5), (2, 1, 1)))
    ('R', 'L', 'A', 'P')
    """
    turn = upright(grid)
    down, right = grid.affine[:3, 1], grid.affine[:3, 2]
    if turn.transpose:
        down, right = right, down
    down = -down if turn.reverse[0] else down
    right = -right if turn.reverse[1] else right
    return _side(-right), _side(right), _side(-down), _side(down)


def _side(direction: NDArray[np.float64]) -> str:
    parts = direction / np.linalg.norm(direction)
    order = sorted(range(3), key=lambda axis: -abs(parts[axis]))
    return "".join(_AXES[a][0] if parts[a] > 0 else _AXES[a][1] for a in order if abs(parts[a]) > 0.2)


def _fitting(text: str, width: int, size: int) -> int:
    """Return the size of letters, at most ``size``, in which a text is so wide."""
    return max(8, min(size, int(size * width / max(1, text_size(text, size)[0]))))


def _place(grid: Grid, z: int) -> list[str]:
    """Return which slice it is, and where it lies along the axis of the patient that it cuts."""
    text = f"slice {z} of 0-{grid.shape[0] - 1}"
    if grid.unit != "mm":
        return [text]
    normal = np.cross(grid.affine[:3, 1], grid.affine[:3, 2])
    axis = int(np.abs(normal).argmax())
    centre = grid.to_world((z, (grid.shape[1] - 1) / 2, (grid.shape[2] - 1) / 2))
    return [text, f"{'xyz'[axis]} = {centre[axis]:.1f} mm"]


def _with_scale(picture: Picture, grid: Grid, size: int) -> Picture:
    """Return the picture with a bar of a round length at its lower left."""
    turn = upright(grid)
    across = grid.spacing[-2] if turn.transpose else grid.spacing[-1]
    rows, columns = grid.shape[-2:]
    factor = picture.shape[1] / (rows if turn.transpose else columns)
    longest = 0.22 * picture.shape[1] / factor * across
    power = 10.0 ** math.floor(math.log10(longest))
    length = max(step * power for step in (1, 2, 5) if step * power <= longest * 1.0001)
    if grid.unit == "px" and length < 1:
        return picture
    wide, thick, gap = round(length / across * factor), max(2, size // 5), size // 2
    bottom, left = picture.shape[0] - gap, gap
    drawn = picture.copy()
    drawn[bottom - thick - 2 : bottom, left - 1 : left + wide + 1] = 0
    drawn[bottom - thick - 1 : bottom - 1, left : left + wide] = _INK
    text = f"{length:g} {grid.unit}"
    at = (bottom - thick - 4 - text_size(text, size)[1] - size // 4, left)
    return write_text(drawn, text, at, _INK, size=size, backed=False)


def with_legend(picture: Picture, keys: Sequence[Key], *, size: int | None = None) -> Picture:
    """Return the picture with a legend on dark paper below it; as it is without a key.

    Args:
        picture: ``(Y, X, 3)`` uint8.
        keys: From left to right, then in further rows. Of more than 60 the rest is counted.
        size: Size of the letters in pixels; None for what suits the picture.
    """
    if not keys:
        return picture
    size = size or letter_size(picture)
    shown = list(keys[:_MOST_KEYS])
    rest = len(keys) - len(shown)
    width, pad, swatch = picture.shape[1], size // 2, 2 * size
    places, row, x = [], 0, pad
    for key in [*shown, *([Key(f"and {rest} more", _INK)] if rest else [])]:
        text = _fitted(key.text, width - swatch - 4 * pad, size)
        wide = swatch + pad + text_size(text, size)[0] + 2 * pad
        if x > pad and x + wide > width:
            row, x = row + 1, pad
        places.append((row, x, text, key))
        x += wide
    line = size + pad
    strip = np.empty(((row + 1) * line + pad, width, 3), np.uint8)
    strip[:] = _PAPER
    for row, x, text, key in places:
        top = pad // 2 + row * line
        _swatch(strip[top : top + line - 2, x : x + swatch], key)
        at = (top + line // 2 + size // 3 - text_rise(text, size), x + swatch + pad)
        strip = write_text(strip, text, at, _INK, size=size, backed=False)
    return np.concatenate([picture, strip])


def _fitted(text: str, width: int, size: int) -> str:
    while len(text) > 4 and text_size(text, size)[0] > width:
        text = f"{text[:-4]}..."
    return text


def _swatch(region: NDArray[np.uint8], key: Key) -> None:
    """Draw a key's sample in place: a filled box as instances are, or a line of its kind."""
    height, width = region.shape[:2]
    tint = np.array(key.rgb)
    if key.line == "filled":
        low, high = height // 6, height - height // 6
        region[low:high] = (0.4 * tint + 0.6 * np.array(_PAPER)).astype(np.uint8)
        edge = max(2, height // 10)
        for side in (np.s_[low : low + edge], np.s_[high - edge : high]):
            region[side] = tint
        region[low:high, :edge] = region[low:high, width - edge :] = tint
        return
    thick = max(2, height // 8)
    middle = height // 2
    period = {"solid": width, "dashed": max(4, width // 5), "dotted": max(2, thick)}[key.line]
    drawn = (np.arange(width) // period) % 2 == 0
    region[middle : middle + thick, drawn] = tint

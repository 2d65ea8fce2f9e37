"""Landmarks drawn over a picture: crosses, open rings if hidden, ellipses for their regions."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from clearmargin.core import Landmarks
from clearmargin.core.colours import class_colour
from clearmargin.core.landmarks import HIDDEN
from clearmargin.report.orientation import Turn
from clearmargin.report.picture import Picture

__all__ = ["draw_landmarks", "point_colour"]

_TRUTH = (255, 255, 255)


def point_colour(k: int) -> tuple[int, int, int]:
    """Return the colour of point type ``k`` (0..K-1)."""
    return class_colour(k + 1)


def draw_landmarks(
    picture: Picture,
    landmarks: Landmarks,
    *,
    turn: Turn,
    shape: tuple[int, int],
    factor: tuple[int, int],
    thick: int,
    truth: bool = False,
) -> Picture:
    """Return the picture with a cross per point, a ring if it is hidden, and its region.

    The region is the calibrated one; without it, the ellipse of two standard deviations of its covariance.

    Args:
        picture: ``(j Y, k X, 3)`` uint8: the turned plane, enlarged; not changed.
        landmarks: With points ``(y, x)`` of the plane as it is stored.
        turn: How the plane was turned.
        shape: ``(Y, X)`` of the plane as it is stored.
        factor: By which it was enlarged.
        thick: Of lines, in pixels of the picture.
        truth: Whether to draw them white and upright, and not in their type's colour and slanted.
    """
    from PIL import Image, ImageDraw

    canvas = Image.fromarray(picture)
    draw = ImageDraw.Draw(canvas)
    arm = 6 * thick
    swap = np.array([[0.0, 1.0], [1.0, 0.0]]) if turn.transpose else np.eye(2)
    for i, k in np.argwhere(landmarks.visible > 0):
        at = _turned(landmarks.points[i, k], turn, shape)
        y, x = (float((v + 0.5) * f) for v, f in zip(at, factor, strict=True))
        rgb = _TRUTH if truth else point_colour(int(k))
        if landmarks.visible[i, k] == HIDDEN:
            draw.ellipse((x - arm, y - arm, x + arm, y + arm), outline=rgb, width=thick)
        if truth:
            ends = (((0, -arm), (0, arm)), ((-arm, 0), (arm, 0)))
        else:
            ends = (((-arm, -arm), (arm, arm)), ((-arm, arm), (arm, -arm)))
        for colour, width in (
            ((0, 0, 0), thick + 2),
            (rgb, thick),
        ):  # a dark edge, to be seen on light and dark
            for (y0, x0), (y1, x1) in ends:
                draw.line((x + x0, y + y0, x + x1, y + y1), fill=colour, width=width)
        squares = _region(landmarks, int(i), int(k))
        if squares is not None:
            outline = _ellipse(swap @ squares @ swap.T, (y, x), factor)
            draw.line([tuple(p) for p in outline], fill=rgb, width=max(1, thick // 2))
    return np.array(canvas)


def _region(landmarks: Landmarks, i: int, k: int) -> NDArray[np.float64] | None:
    """Return the matrix of what is drawn round a point; None if nothing is known of it."""
    if landmarks.regions is not None:
        region: NDArray[np.float64] = landmarks.regions[i, k]
        return region
    if landmarks.covariance is None or not np.isfinite(landmarks.covariance[i, k]).all():
        return None
    doubled: NDArray[np.float64] = 4 * landmarks.covariance[i, k]
    return doubled


def _turned(point: NDArray[np.float64], turn: Turn, shape: tuple[int, int]) -> tuple[float, float]:
    y, x = (float(v) for v in point)
    rows, columns = shape
    if turn.transpose:
        y, x, rows, columns = x, y, columns, rows
    return (rows - 1 - y if turn.reverse[0] else y, columns - 1 - x if turn.reverse[1] else x)


def _ellipse(
    squares: NDArray[np.float64], centre: tuple[float, float], factor: tuple[int, int]
) -> NDArray[np.float64]:
    """Return points ``(x, y)`` of the ellipse ``p' inv(squares) p = 1``."""
    values, axes = np.linalg.eigh(squares)
    angles = np.linspace(0, 2 * np.pi, 49)
    circle = np.stack([np.cos(angles), np.sin(angles)])
    around = axes @ (np.sqrt(np.maximum(values, 0))[:, None] * circle)
    return np.stack([centre[1] + around[1] * factor[1], centre[0] + around[0] * factor[0]], axis=1)

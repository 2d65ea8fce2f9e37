"""Landmarks of large images that are looked at tile by tile: a point that several tiles see is one point."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from clearmargin.models.tiles import Tile
from clearmargin.networks.network import PointDetections

__all__ = ["join_points"]

_SAME = 3.0  # standard deviations of the heat map, within which two tiles' points are one


def join_points(tiled: Sequence[tuple[Tile, PointDetections]], view: tuple[int, ...]) -> PointDetections:
    """Return the tiles' points in the view's pixels, best score first.

    Of points of one type that lie within three standard deviations of each other and come from different tiles, the
    one farthest from the edges that cut its tile is kept: its tile has seen most of what surrounds it.

    Args:
        tiled: At least one tile with its points, in the tile's pixels.
        view: Extents of the view.
    """
    tiles = np.concatenate([np.full(len(one.types), k) for k, (_, one) in enumerate(tiled)]).astype(int)
    types, scores, visible = (
        np.concatenate([getattr(one, name) for _, one in tiled]) for name in ("types", "scores", "visible")
    )
    points = np.concatenate([one.points + np.array(tile.low) for tile, one in tiled])
    spreads = np.concatenate([one.covariance for _, one in tiled])
    trust = np.array([_trust(tiled[k][0], at.tolist(), view) for k, at in zip(tiles, points, strict=True)])
    kept: list[int] = []
    for i in np.argsort(-trust, kind="stable").tolist():
        reach = _SAME * float(np.sqrt(np.linalg.eigvalsh(spreads[i]).max()))
        if not any(
            types[j] == types[i] and tiles[j] != tiles[i] and np.linalg.norm(points[j] - points[i]) <= reach
            for j in kept
        ):
            kept.append(i)
    best = np.array(sorted(kept, key=lambda i: -scores[i]), np.int64)
    return PointDetections(
        types=types[best],
        points=points[best],
        scores=scores[best],
        covariance=spreads[best],
        visible=visible[best],
    )


def _trust(tile: Tile, at: Sequence[float], view: tuple[int, ...]) -> float:
    pixel = [min(max(round(v), a), b - 1) for v, a, b in zip(at, tile.low, tile.high, strict=True)]
    return float(tile.trust(tuple(slice(v, v + 1) for v in pixel), view).item())

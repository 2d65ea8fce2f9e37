"""Landmarks of tiles: what two tiles see is one point, from the tile that saw more around it."""

import numpy as np

from clearmargin.models.tiled_points import join_points
from clearmargin.models.tiles import lay_tiles
from clearmargin.networks.network import PointDetections

VIEW = (64, 160)
TILES = lay_tiles(VIEW, (64, 96), (32, 32))


def points(*rows):
    """Points as ``(type, score, y, x)`` in a tile's pixels, with a standard deviation of 2."""
    return PointDetections(
        types=np.array([r[0] for r in rows], np.int64),
        points=np.array([r[2:] for r in rows], np.float64).reshape(-1, 2),
        scores=np.array([r[1] for r in rows], np.float32),
        covariance=np.broadcast_to(4 * np.eye(2), (len(rows), 2, 2)),
        visible=np.full(len(rows), 2, np.int8),
    )


def test_a_point_in_the_shared_strip_is_one():
    assert [t.low for t in TILES] == [(0, 0), (0, 64)]
    # at column 70 of the view: 26 px from the edge of the first tile, 6 from that of the second
    found = join_points([(TILES[0], points((0, 0.8, 30, 70))), (TILES[1], points((0, 0.9, 30, 8)))], VIEW)
    assert found.points.tolist() == [[30, 70]] and found.scores.tolist() == [np.float32(0.8)]


def test_points_of_one_tile_other_types_and_other_places_stay():
    one = points((0, 0.8, 30, 70), (0, 0.7, 30, 74), (1, 0.9, 30, 70))
    found = join_points([(TILES[0], one), (TILES[1], points((0, 0.6, 30, 30)))], VIEW)
    assert found.points.tolist() == [[30, 70], [30, 70], [30, 74], [30, 94]]
    assert found.types.tolist() == [1, 0, 0, 0]
    nothing = join_points([(TILES[0], points()), (TILES[1], points())], VIEW)
    assert nothing.points.shape == (0, 2)

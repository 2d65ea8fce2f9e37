import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clearmargin.metrics.marching import element_areas, element_lengths, triangles


def members(code: int) -> dict[tuple[int, int, int], bool]:
    return {
        (z, y, x): bool(code >> (7 - (4 * z + 2 * y + x)) & 1)
        for z, y, x in itertools.product((0, 1), repeat=3)
    }


@pytest.mark.parametrize("code", range(256))
def test_triangles_cut_each_mixed_edge_once_and_close_inside_the_cube(code):
    corners = members(code)
    mixed = {
        tuple((np.array(a) + b) / 2)
        for a, b in itertools.combinations(corners, 2)
        if np.abs(np.subtract(a, b)).sum() == 1 and corners[a] != corners[b]
    }
    found = triangles(code)
    assert {tuple(p) for p in found.reshape(-1, 3)} == mixed
    sides: dict[frozenset[tuple[float, ...]], int] = {}
    for triangle in found:
        for a, b in itertools.combinations(map(tuple, triangle), 2):
            sides[frozenset((a, b))] = sides.get(frozenset((a, b)), 0) + 1
    for side, times in sides.items():
        a, b = (np.array(p) for p in side)
        on_face = any(a[k] == b[k] and a[k] in (0, 1) for k in range(3))
        assert times == (1 if on_face else 2)  # open only where the next cube goes on


def test_areas_by_hand():
    areas = element_areas((2.0, 3.0, 4.0))
    assert areas[0] == areas[255] == 0
    assert areas[0b11110000] == 12  # a wall across z: 3 x 4
    assert areas[0b11001100] == 8  # across y: 2 x 4
    assert areas[0b10101010] == 6  # across x: 2 x 3
    corner = 0.5 * np.linalg.norm(np.cross([-1, 1.5, 0], [-1, 0, 2]))
    assert areas[0b10000000] == pytest.approx(corner)
    assert areas[0b01111111] == pytest.approx(corner)


@pytest.mark.filterwarnings("ignore")
@settings(max_examples=20, deadline=None)
@given(st.tuples(*[st.floats(0.1, 10)] * 3))
def test_areas_are_those_of_surface_distance(spacing):
    tables = pytest.importorskip("surface_distance.lookup_tables")
    theirs = tables.create_table_neighbour_code_to_surface_area(spacing)
    np.testing.assert_allclose(element_areas(spacing), theirs, rtol=1e-12)
    flat = tables.create_table_neighbour_code_to_contour_length(spacing[:2])
    np.testing.assert_allclose(element_lengths(spacing[:2]), flat, rtol=1e-12)

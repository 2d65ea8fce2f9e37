import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial import cKDTree

from clearmargin.metrics.nearest import PointTree, distances, morton_order


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 300), st.integers(1, 300), st.integers(0, 200), st.integers(0, 2**32 - 1))
def test_equal_to_a_k_d_tree(n, m, apart, seed):
    rng = np.random.default_rng(seed)
    spacing = (2.5, 0.8, 0.7)
    points = rng.integers(0, 40, (n, 3)).astype(np.int32)
    queries = rng.integers(0, 40, (m, 3)).astype(np.int32) + np.int32(apart)
    points, queries = points[morton_order(points)], queries[morton_order(queries)]
    expected = cKDTree(points * spacing).query(queries * spacing)[0]
    found = distances(queries, np.zeros(m, bool), PointTree.of(points), spacing)
    np.testing.assert_allclose(found, expected, atol=1e-9)

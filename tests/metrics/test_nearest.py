import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial import cKDTree

from clearmargin.metrics.nearest import nearest_distances


def agree(queries, targets, shape, spacing):
    targets = np.unique(targets, axis=0).astype(np.int32)  # also puts them in raster order
    expected = cKDTree(targets * spacing).query(queries * spacing)[0]
    found = nearest_distances(queries.astype(np.int32), targets, shape, spacing)
    np.testing.assert_allclose(found, expected, atol=1e-9)


@settings(max_examples=80, deadline=None)
@given(
    st.integers(1, 300),
    st.integers(1, 300),
    st.integers(0, 2**32 - 1),
    st.sampled_from([0.1, 0.8, 2.5, 30.0]),
)
def test_equal_to_a_k_d_tree(n, m, seed, depth):
    rng = np.random.default_rng(seed)
    shape = (12, 40, 60)
    agree(rng.integers(0, shape, (m, 3)), rng.integers(0, shape, (n, 3)), shape, (depth, 0.8, 0.7))


@pytest.mark.parametrize("shape", [(1, 3, 2000), (2, 2000, 3), (300, 300, 4), (120, 120, 600)])
def test_far_apart_along_every_axis(shape):
    rng = np.random.default_rng(1)
    near = rng.integers(0, np.minimum(shape, 3), (200, 3))
    far = np.array(shape) - 1 - rng.integers(0, np.minimum(shape, 3), (200, 3))
    for spacing in ((1.0, 1.0, 1.0), (5.0, 0.5, 0.7), (0.01, 1.0, 1.0)):
        agree(near, far, shape, spacing)
        agree(np.concatenate([near, far]), far, shape, spacing)

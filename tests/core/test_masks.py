import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from clearmargin.core import Grid, InstanceSet, Mask
from clearmargin.core.layers import pack_layers, unpack_layers

DENSE = arrays(bool, array_shapes(min_dims=2, max_dims=3, min_side=1, max_side=9))


@given(DENSE)
def test_dense_round_trip(dense):
    mask = Mask.from_dense(dense)
    np.testing.assert_array_equal(mask.dense(), dense)
    assert mask.area == dense.sum()
    if dense.any():  # the crop is tight
        for axis in range(dense.ndim):
            lines = mask.crop.any(axis=tuple(a for a in range(dense.ndim) if a != axis))
            assert lines[0] and lines[-1]


@given(DENSE, st.integers(0, 2**32 - 1))
def test_overlap_and_windows_match_dense_arithmetic(dense, seed):
    other = np.random.default_rng(seed).random(dense.shape) < 0.3
    first, second = Mask.from_dense(dense), Mask.from_dense(other)
    assert first.intersection(second) == (dense & other).sum()
    assert first.overlaps(second) == (dense & other).any()
    window = tuple(slice(n // 3, n) for n in dense.shape)
    np.testing.assert_array_equal(first.within(window), dense[window])


def test_crop_is_cut_off_at_the_edge():
    mask = Mask.from_crop(np.ones((4, 4), bool), (-2, 8), (6, 10))
    assert mask.box == ((0, 8), (2, 10))
    assert mask.area == 4
    assert Mask.from_crop(np.ones((4, 4), bool), (20, 20), (6, 10)).area == 0


@given(arrays(bool, array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=9)))
def test_run_lengths_decode_to_the_mask(dense):
    runs = Mask.from_dense(dense).run_lengths()
    values = np.arange(len(runs)) % 2
    np.testing.assert_array_equal(np.repeat(values, runs).reshape(dense.shape[::-1]).T, dense)


def test_label_image_gives_one_instance_a_value_even_in_pieces():
    labels = np.array([[5, 0, 5], [0, 0, 0], [2, 2, 0]], np.uint16)
    found = InstanceSet.from_label_image(Grid.from_spacing((3, 3)), labels)
    assert [m.area for m in found.masks] == [2, 2]
    np.testing.assert_array_equal(found.masks[1].dense(), labels == 5)


def test_columns_must_be_equal():
    grid = Grid.from_spacing((4, 4))
    with pytest.raises(ValueError, match="labels"):
        InstanceSet(
            grid=grid, masks=(Mask.from_dense(np.ones((4, 4))),), labels=np.ones(2), scores=np.ones(1)
        )
    with pytest.raises(ValueError, match="does not lie on the grid"):
        InstanceSet(
            grid=grid, masks=(Mask.from_dense(np.ones((4, 5))),), labels=np.ones(1), scores=np.ones(1)
        )
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        InstanceSet.from_dense(grid, [np.ones((4, 4))], scores=[1.5])


def test_select_and_plane_keep_columns_together():
    grid = Grid.from_spacing((3, 4, 4), (2, 1, 1))
    low, high = np.zeros((2, 3, 4, 4), bool)
    low[:2, 0, 0] = True
    high[2, 1:3, 1] = True
    both = InstanceSet.from_dense(grid, [low, high], labels=[4, 7], scores=[0.25, 0.75])
    cut, kept = both.plane(2)
    assert list(kept) == [1] and list(cut.labels) == [7] and cut.masks[0].area == 2
    assert list(both.select([1, 0]).labels) == [7, 4]
    assert list(both.select(both.scores < 0.5).labels) == [4]


@settings(max_examples=50)
@given(st.integers(0, 2**32 - 1), st.integers(0, 12))
def test_layers_hold_every_overlapping_instance(seed, count):
    rng = np.random.default_rng(seed)
    grid = Grid.from_spacing((16, 16))
    masks = []
    for _ in range(count):
        dense = np.zeros(grid.shape, bool)
        y, x, h, w = rng.integers(0, 12), rng.integers(0, 12), rng.integers(1, 9), rng.integers(1, 9)
        dense[y : y + h, x : x + w] = True
        masks.append(dense)
    instances = InstanceSet.from_dense(grid, masks, labels=rng.integers(1, 4, count))
    layers = pack_layers(instances)
    back = unpack_layers(layers, grid, instances.labels, instances.scores)
    for mask, dense in zip(back.masks, masks, strict=True):
        np.testing.assert_array_equal(mask.dense(), dense)
    neighbours = [sum((a & b).any() for b in masks) - 1 for a in masks]
    assert len(layers) <= max(neighbours, default=0) + 1
    depth = int(np.sum(masks, axis=0).max()) if count else 0
    assert len(layers) >= depth


def test_nested_instances_take_as_many_layers_as_they_are_deep():
    dense = np.zeros((3, 9, 9), bool)
    for k in range(3):
        dense[k, k : 9 - k, k : 9 - k] = True
    apart = np.zeros((9, 9), bool)
    apart[0, 0] = True
    layers = pack_layers(InstanceSet.from_dense(Grid.from_spacing((9, 9)), [*dense, apart & ~dense[0]]))
    assert layers.shape == (3, 9, 9)

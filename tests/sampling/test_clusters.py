"""The same object in several samples: matched, voted on, and measured by hand-checkable boxes."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clearmargin.core import Grid, InstanceSet, Mask
from clearmargin.sampling.clusters import Cluster, agreed_mask, find_clusters
from clearmargin.sampling.spread import measure_spread, pairwise_dice

SHAPE = (40, 60)
GRID = Grid.from_spacing(SHAPE)


def box(y0, y1, x0, x1, shape=SHAPE):
    dense = np.zeros(shape, bool)
    dense[..., y0:y1, x0:x1] = True
    return Mask.from_dense(dense)


def sample(*masks, scores=None, labels=None, grid=GRID):
    n = len(masks)
    return InstanceSet(
        grid=grid,
        masks=masks,
        labels=np.ones(n, np.int64) if labels is None else np.array(labels),
        scores=np.full(n, 0.8) if scores is None else np.array(scores),
    )


def cluster(*masks, scores=None):
    given = [0.0 if m is None else 0.8 for m in masks] if scores is None else scores
    return Cluster(label=1, masks=masks, scores=np.array(given))


def test_one_object_in_all_samples_and_one_in_some():
    left, right = box(5, 15, 5, 15), box(5, 15, 40, 50)
    found = find_clusters([sample(left, right), sample(left), sample(right, left, scores=[0.5, 0.8])])
    assert len(found) == 2
    assert [m is None for m in found[0].masks] == [False, False, False]
    assert found[0].existence == pytest.approx(0.8)
    # the one that a sample misses keeps its lower probability: (0.8 + 0 + 0.5) / 3
    assert [m is None for m in found[1].masks] == [False, True, False]
    assert found[1].existence == pytest.approx(1.3 / 3)


def test_labels_and_small_overlaps_keep_objects_apart():
    one = box(5, 15, 5, 15)
    assert len(find_clusters([sample(one), sample(one, labels=[2])])) == 2
    assert len(find_clusters([sample(one), sample(box(5, 15, 11, 21))])) == 2  # IoU 4/16
    assert len(find_clusters([sample(one), sample(box(5, 15, 7, 17))])) == 1  # IoU 8/12


def test_two_instances_of_one_sample_are_never_one_object():
    one, near = box(5, 15, 5, 15), box(5, 15, 6, 16)
    found = find_clusters([sample(one, near), sample(one)])
    assert len(found) == 2 and found[1].masks[1] is None


def test_no_sample_finds_anything():
    assert find_clusters([sample(), sample()]) == []


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10_000), st.integers(1, 5))
def test_each_instance_is_in_one_cluster_whatever_the_order_of_samples(seed, count):
    rng = np.random.default_rng(seed)
    samples = []
    for _ in range(count):
        corners = rng.integers(0, 25, (rng.integers(0, 6), 2))
        masks = [box(y, y + 8, x, x + 10) for y, x in corners]
        samples.append(sample(*masks, scores=rng.random(len(masks))))
    found = find_clusters(samples)
    for k, one in enumerate(samples):
        held = [c.masks[k] for c in found if c.masks[k] is not None]
        assert sorted(map(id, held)) == sorted(map(id, one.masks))
    turned = find_clusters(samples[::-1])
    assert sorted(c.existence for c in turned) == pytest.approx(sorted(c.existence for c in found))


def test_the_majority_of_scores_draws_the_mask():
    small, large = box(10, 20, 10, 20), box(8, 22, 8, 22)
    assert agreed_mask(cluster(small, large, large)).area == large.area
    assert agreed_mask(cluster(small, large, small)).area == small.area
    # of two the surer one, not their union
    assert agreed_mask(cluster(small, large, scores=[0.9, 0.6])).area == small.area
    assert agreed_mask(cluster(None, large, None)).area == large.area
    apart = cluster(box(0, 4, 0, 4), box(10, 14, 10, 14), box(20, 24, 20, 24), scores=[0.5, 0.4, 0.4])
    np.testing.assert_array_equal(agreed_mask(apart).dense(), apart.masks[0].dense())


def test_pairwise_dice_by_hand():
    one, half = box(0, 10, 0, 10), box(0, 10, 0, 5)
    assert pairwise_dice([one, one, one]) == 1
    assert pairwise_dice([one, half]) == pytest.approx(2 * 50 / 150)
    assert pairwise_dice([one, one, None]) == pytest.approx(1 / 3)  # two of three pairs miss it
    assert pairwise_dice([one]) == 1


def test_an_edge_that_moves_on_one_side_is_in_doubt_there_alone():
    # in mm, on an unequal grid: the right edge lies 0, 2 and 4 columns of 0.5 mm further out
    grid = Grid.from_spacing(SHAPE, (2.0, 0.5))
    masks = [box(10, 20, 10, 20 + k) for k in (0, 2, 4)]
    agreed = agreed_mask(cluster(*masks))
    assert agreed.area == 10 * 12
    found = measure_spread(cluster(*masks), agreed, grid)
    y, x = found.edge.points.T
    middle = (y == 15) & (x == 21)
    assert found.edge.sigma[middle] == pytest.approx([1.0])  # of -1, 0, 1 mm
    assert found.edge.sigma[(y == 15) & (x == 10)] == pytest.approx([0.0])
    assert found.size == (100, 140) and found.found_by == 1
    assert found.predicted_nsd == 1  # nothing is farther than 2 mm


def test_a_sample_far_off_lowers_the_predicted_nsd():
    masks = [box(10, 30, 10, 30), box(10, 30, 10, 30), box(10, 30, 10, 36)]
    found = measure_spread(cluster(*masks), masks[0], GRID)
    y, x = found.edge.points.T
    right = x == 29
    # of one sample in three, the right edge but for its ends, whose nearest face is on the top and bottom
    assert 1 - found.predicted_nsd == pytest.approx(
        (right & (y > 11) & (y < 28)).sum() / len(y) / 3, abs=0.011
    )


@pytest.mark.parametrize("masks", [(box(5, 15, 5, 15),), (box(5, 15, 5, 15), None, None)])
def test_what_one_sample_alone_has_is_certain_of_its_edge_and_not_of_itself(masks):
    found = measure_spread(cluster(*masks), masks[0], GRID)
    assert (found.edge.sigma == 0).all() and found.edge_sd == 0
    assert found.found_by == pytest.approx(1 / len(masks))
    assert found.pairwise_dice == (1 if len(masks) == 1 else 0)
    assert found.predicted_nsd == pytest.approx(1 / len(masks))


def test_a_sample_that_would_not_have_returned_it_has_not_found_it():
    one = box(5, 15, 5, 15)
    unsure = cluster(one, one, None, scores=[0.9, 0.2, 0.0])
    assert measure_spread(unsure, one, GRID).found_by == pytest.approx(2 / 3)
    found = measure_spread(unsure, one, GRID, thresholds=[0.5, 0.5, 0.5])
    assert found.found_by == pytest.approx(1 / 3) and found.pairwise_dice == pytest.approx(1 / 3)


def test_samples_that_agree_give_no_spread():
    one = box(5, 15, 5, 15)
    found = measure_spread(cluster(one, one, one, one), one, GRID)
    assert (found.edge.sigma == 0).all() and found.pairwise_dice == 1 and found.predicted_nsd == 1


def test_the_images_edge_is_no_edge_of_the_object():
    # flush with the left and the top: only the lower and the right side are edges
    masks = [box(0, 10, 0, 10 + k) for k in (0, 1, 2)]
    found = measure_spread(cluster(*masks), masks[1], GRID)
    y, x = found.edge.points.T
    assert ((y == 9) | (x == 10)).all()
    assert found.edge.sigma[(y == 4) & (x == 10)] == pytest.approx([1.0])
    whole = box(0, 40, 0, 60)
    filled = measure_spread(cluster(whole, whole), whole, GRID)
    assert filled.edge.points.shape == (0, 2) and filled.edge_sd == 0 and filled.predicted_nsd == 1


def test_in_space_a_slice_more_is_a_slice_thickness():
    grid = Grid.from_spacing((12, 40, 40), (5.0, 1.0, 1.0))
    masks = []
    for top in (6, 7, 8):
        dense = np.zeros(grid.shape, bool)
        dense[3:top, 5:35, 5:35] = True
        masks.append(Mask.from_dense(dense))
    found = measure_spread(cluster(*masks), masks[1], grid)
    z, y, x = found.edge.points.T
    # the middle sample's upper face, far from the sides: 2.5, -2.5 and -7.5 mm
    assert found.edge.sigma[(z == 6) & (y == 20) & (x == 20)] == pytest.approx([5.0])
    assert found.edge.sigma[(z == 4) & (y == 5) & (x == 20)] == pytest.approx([0.0])

"""Probability masks land where the network saw them, for any scale and mirroring."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from clearmargin.core import Grid, InstanceSet
from clearmargin.linking.slices import link_slices
from clearmargin.metrics.counting import split_and_merge
from clearmargin.models.placing import place, place_view, threshold
from clearmargin.networks.network import Targets
from clearmargin.transforms.spatial import fitting_view

SHAPE = (100, 120)


@settings(max_examples=40, deadline=None)
@given(
    scale=st.floats(0.4, 2.5),
    flip=st.tuples(st.booleans(), st.booleans()),
    edge=st.tuples(st.floats(5, 20), st.floats(5, 20)),
)
def test_a_ramp_is_reproduced_at_every_source_pixel(scale, flip, edge):
    """Bilinear sampling reproduces a linear function, so a half-pixel error anywhere would show."""
    matrix, _ = fitting_view(SHAPE, scale, flip=flip)
    y1, x1 = edge[0] * scale, edge[1] * scale
    step = 2.0 * scale
    ys, xs = (np.arange(28) + 0.5) * step + y1, (np.arange(28) + 0.5) * step + x1

    def ramp(y, x):
        return 0.5 + 0.3 * (y - ys.mean()) / (28 * step) + 0.2 * (x - xs.mean()) / (28 * step)

    region = torch.tensor([x1, y1, x1 + 28 * step, y1 + 28 * step], dtype=torch.float64)
    crop, origin = place(torch.from_numpy(ramp(ys[:, None], xs[None])), region, matrix, SHAPE)
    index = np.stack(
        np.meshgrid(*[np.arange(n) + o for n, o in zip(crop.shape, origin, strict=True)], indexing="ij")
    )
    back = np.linalg.inv(matrix)
    y = back[0, 0] * index[0] + back[0, 2] + 0.5
    x = back[1, 1] * index[1] + back[1, 2] + 0.5
    inside = (y > ys[0]) & (y < ys[-1]) & (x > xs[0]) & (x < xs[-1])
    assert inside.sum() > 100
    np.testing.assert_allclose(crop[inside], ramp(y, x)[inside], atol=1e-5)


@pytest.mark.parametrize("scale", [0.5, 1.0, 2.0])
def test_a_certain_box_covers_just_its_pixels(scale):
    matrix, _ = fitting_view(SHAPE, scale)
    region = torch.tensor([20.0, 10.0, 60.0, 40.0]) * scale
    mask = threshold(*place(torch.ones(28, 28), region, matrix, SHAPE), SHAPE)
    expected = np.zeros(SHAPE, bool)
    expected[10:40, 20:60] = True
    np.testing.assert_array_equal(mask.dense(), expected)


def test_what_lies_beyond_the_edge_is_cut_and_what_lies_outside_is_empty():
    matrix, _ = fitting_view(SHAPE, 1.0)
    half_out = threshold(
        *place(torch.ones(40, 40), torch.tensor([-10.0, -10.0, 10.0, 10.0]), matrix, SHAPE), SHAPE
    )
    assert half_out.area == 100
    for region in ([200.0, 200.0, 220.0, 220.0], [5.0, 5.0, 5.0, 5.0]):
        crop, origin = place(torch.ones(8, 8), torch.tensor(region), matrix, SHAPE)
        assert threshold(crop, origin, SHAPE).area == 0


@settings(max_examples=30, deadline=None)
@given(scale=st.floats(0.4, 2.5), flip=st.tuples(st.booleans(), st.booleans()), finer=st.sampled_from([1, 4]))
def test_a_views_probabilities_cover_the_source_and_a_ramp_comes_back(scale, flip, finer):
    """At every pixel, those at the image's edge too: there values stay as they are at the outermost samples."""
    matrix, extent = fitting_view(SHAPE, scale, flip=flip)
    counts = [n // finer for n in extent]
    ys, xs = ((np.arange(n) + 0.5) * finer for n in counts)
    ramp = np.stack([0.1 + 0.8 * np.add.outer(ys, xs) / (extent[0] + extent[1]), np.ones(counts)])
    values, ones = place_view(torch.from_numpy(ramp), extent, matrix, SHAPE)
    np.testing.assert_allclose(ones, 1, atol=1e-6)
    back = np.linalg.inv(matrix)
    y, x = (back[k, k] * np.arange(SHAPE[k]) + back[k, 2] + 0.5 for k in range(2))
    y, x = (np.clip(v, s[0], s[-1]) for v, s in ((y, ys), (x, xs)))
    np.testing.assert_allclose(values, 0.1 + 0.8 * np.add.outer(y, x) / (extent[0] + extent[1]), atol=1e-5)


def test_target_boxes_hold_their_masks_edge_to_edge():
    masks = torch.zeros(2, 20, 30, dtype=torch.uint8)
    masks[0, 3:7, 10:25] = 1
    masks[1, 19, 29] = 1
    targets = Targets.from_masks(masks, torch.ones(2, dtype=torch.int64))
    assert targets.boxes.tolist() == [[10, 3, 25, 7], [29, 19, 30, 20]]
    assert Targets.from_masks(masks[:0], torch.zeros(0, dtype=torch.int64)).boxes.shape == (0, 4)


def disc(centre, radius):
    y, x = np.mgrid[:40, :40]
    return (y - centre[0]) ** 2 + (x - centre[1]) ** 2 <= radius**2


def plane_set(masks, labels=None, scores=None):
    return InstanceSet.from_dense(Grid.from_spacing((40, 40), (1, 1)), masks, labels, scores)


def test_cuts_of_one_object_become_one_instance():
    grid = Grid.from_spacing((4, 40, 40), (3, 1, 1))
    slices = [
        plane_set([disc((10, 10), 5), disc((28, 28), 6)], scores=[0.9, 0.8]),
        plane_set([disc((28, 28), 6), disc((10, 11), 5)], scores=[0.6, 0.7]),  # in another order
        plane_set([disc((10, 12), 5)], scores=[0.5]),
        plane_set([]),
    ]
    found = link_slices(slices, grid)
    assert len(found) == 2
    sizes = {int(m.dense()[:, 10, 10].sum()) for m in found.masks}
    assert sizes == {0, 3}
    areas = [disc((10, 10), 5).sum(), disc((10, 11), 5).sum(), disc((10, 12), 5).sum()]
    chain = next(i for i, m in enumerate(found.masks) if m.dense()[0, 10, 10])
    assert found.scores[chain] == pytest.approx(np.average([0.9, 0.7, 0.5], weights=areas))


def test_what_linking_splits_and_merges_is_counted():
    """A slice in which one object is missed splits it; one in which two are found as one merges them."""
    grid = Grid.from_spacing((3, 40, 40), (3, 1, 1))
    upper, lower = disc((10, 10), 5), disc((28, 10), 5)
    truth = InstanceSet.from_dense(grid, [np.stack([upper] * 3), np.stack([lower] * 3)])
    missed = [plane_set([upper, lower]), plane_set([lower]), plane_set([upper, lower])]
    split = split_and_merge(link_slices(missed, grid), truth)
    assert (split.splits, split.merges, split.split_references) == (1, 0, (0,))
    joined = [plane_set([upper | lower])] * 3
    merged = split_and_merge(link_slices(joined, grid), truth)
    assert (merged.splits, merged.merges, merged.merging_predictions) == (0, 1, (0,))
    whole = split_and_merge(link_slices([plane_set([upper, lower])] * 3, grid), truth)
    assert (whole.splits, whole.merges) == (0, 0)


def test_a_gap_another_label_and_a_small_overlap_are_not_linked():
    grid = Grid.from_spacing((3, 40, 40), (3, 1, 1))
    here = disc((10, 10), 5)
    assert len(link_slices([plane_set([here]), plane_set([]), plane_set([here])], grid)) == 2
    assert len(link_slices([plane_set([here], [1]), plane_set([here], [2]), plane_set([])], grid)) == 2
    assert len(link_slices([plane_set([here]), plane_set([disc((10, 18), 5)]), plane_set([])], grid)) == 2


def test_overlapping_objects_stay_apart_through_the_slices():
    grid = Grid.from_spacing((3, 40, 40), (3, 1, 1))
    outer, inner = disc((20, 20), 12), disc((20, 22), 4)
    found = link_slices([plane_set([outer, inner], [1, 2])] * 3, grid)
    assert sorted(m.area for m in found.masks) == sorted([3 * outer.sum(), 3 * inner.sum()])


def square(half):
    y, x = np.mgrid[:40, :40]
    return np.maximum(abs(y - 20), abs(x - 20)) <= half


def test_one_missed_slice_is_bridged_by_the_shape_between():
    grid = Grid.from_spacing((5, 40, 40), (3, 1, 1))
    nothing = plane_set([])
    slices = [
        plane_set([square(4)], scores=[0.9]),
        nothing,
        plane_set([square(2)], scores=[0.5]),
        nothing,
        nothing,
    ]
    assert len(link_slices(slices, grid, min_iou=0.2)) == 2
    found = link_slices(slices, grid, min_iou=0.2, gap=1)
    assert len(found) == 1
    np.testing.assert_array_equal(found.masks[0].plane(1).dense(), square(3))  # 9, 7 and 5 wide
    assert found.masks[0].area == 81 + 49 + 25
    assert found.scores[0] == pytest.approx((0.9 * 81 + 0.5 * 25) / 106)  # what was not seen has no say


def test_a_gap_is_bridged_as_far_as_asked_and_not_past_a_nearer_partner():
    grid = Grid.from_spacing((4, 40, 40), (3, 1, 1))
    here, nothing = square(5), plane_set([])
    far = [plane_set([here]), nothing, nothing, plane_set([here])]
    assert [len(link_slices(far, grid, gap=gap)) for gap in (0, 1, 2)] == [2, 2, 1]
    assert link_slices(far, grid, gap=2).masks[0].area == 4 * 121
    # the chain that goes on in slice 1 is the one that slice 2 links to; what ended in slice 0 waits
    grid = Grid.from_spacing((3, 40, 40), (3, 1, 1))
    two = [plane_set([square(6), square(3)]), plane_set([square(6)]), plane_set([square(6), square(3)])]
    areas = sorted(m.area for m in link_slices(two, grid, min_iou=0.5, gap=1).masks)
    assert areas == [3 * 49, 3 * 169]
    assert len(link_slices([plane_set([here], [1]), nothing, plane_set([here], [2])], grid, gap=1)) == 2

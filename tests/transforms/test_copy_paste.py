"""Pasted instances lie on top, and every mask covers just the pixels that show its instance."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clearmargin.core import Grid, InstanceSet
from clearmargin.transforms.copy_paste import paste

GRID = Grid.from_spacing((40, 50))


def picture(boxes, first=1):
    """Boxes ``(y, x, height, width)``, each of a grey value of its own; later ones hide earlier ones."""
    values = np.zeros(GRID.shape, np.int64)
    for value, (y, x, height, width) in enumerate(boxes, start=first):
        values[y : y + height, x : x + width] = value
    shown = [v for v in range(first, first + len(boxes)) if (values == v).any()]
    instances = InstanceSet.from_dense(GRID, [values == v for v in shown], labels=shown)
    return (values / 100).astype(np.float32)[None], instances


def test_areas_by_hand():
    pixels, instances = picture([(0, 0, 10, 10), (20, 20, 10, 10), (0, 30, 10, 10)])
    donor, pasted = picture([(0, 5, 10, 10), (18, 18, 20, 20)], first=11)
    shown, found = paste(pixels, instances, donor, pasted, feather=0)
    # half of the first is hidden, the second is gone, the third is whole, and both pasted ones are
    assert dict(zip(found.labels.tolist(), (m.area for m in found.masks), strict=True)) == {
        1: 50,
        3: 100,
        11: 100,
        12: 400,
    }
    assert shown[0, 5, 12] == pytest.approx(0.11) and shown[0, 5, 2] == pytest.approx(0.01)


def test_what_is_nearly_hidden_is_dropped_and_its_pixels_stay():
    pixels, instances = picture([(0, 0, 10, 10)])
    donor, pasted = picture([(0, 1, 10, 20)], first=11)
    shown, found = paste(pixels, instances, donor, pasted, feather=0)
    assert found.labels.tolist() == [11] and shown[0, 5, 0] == pytest.approx(0.01)
    assert paste(pixels, instances, donor, pasted, feather=0, least_share=0.1)[1].labels.tolist() == [1, 11]


BOXES = st.lists(
    st.tuples(st.integers(0, 35), st.integers(0, 45), st.integers(1, 20), st.integers(1, 20)),
    min_size=1,
    max_size=6,
)


@settings(max_examples=60, deadline=None)
@given(below=BOXES, above=BOXES, chosen=st.integers(1, 6))
def test_each_mask_is_the_pixels_of_its_value(below, above, chosen):
    pixels, instances = picture(below)
    donor, others = picture(above, first=11)
    pasted = others.select(np.arange(min(chosen, len(others))))
    shown, found = paste(pixels, instances, donor, pasted, feather=0, least_share=0)
    values = np.rint(shown[0] * 100).astype(int)
    assert set(np.unique(values)) - {0} == set(found.labels.tolist())
    for mask, label in zip(found.masks, found.labels, strict=True):
        np.testing.assert_array_equal(mask.dense(), values == label)


def test_overlapping_instances_of_the_donor_stay_as_they_are():
    outer, inner = np.zeros(GRID.shape, bool), np.zeros(GRID.shape, bool)
    outer[5:25, 5:25], inner[10:15, 10:15] = True, True
    nested = InstanceSet.from_dense(GRID, [outer, inner])
    blank = np.zeros((1, *GRID.shape), np.float32)
    found = paste(blank, InstanceSet.empty(GRID), blank + 1, nested)[1]
    assert [m.area for m in found.masks] == [400, 25]


def test_edges_are_blended_and_the_inside_is_not():
    pixels, donor = np.zeros((3, *GRID.shape), np.float32), np.ones((3, *GRID.shape), np.float32)
    _, pasted = picture([(10, 10, 20, 20)])
    shown, _ = paste(pixels, InstanceSet.empty(GRID), donor, pasted)
    assert shown[:, 20, 20] == pytest.approx(1, abs=1e-4) and shown[:, 2, 2] == pytest.approx(0, abs=1e-4)
    assert 0.6 < shown[0, 20, 10] < 0.8 and 0.2 < shown[0, 20, 9] < 0.4  # a step of one pixel's blur
    with pytest.raises(ValueError, match="pictures"):
        paste(pixels, InstanceSet.empty(GRID), donor[:1], pasted)

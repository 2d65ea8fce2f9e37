"""What a model keeps of its training data beside the weights."""

from types import SimpleNamespace

import numpy as np
import pytest

from clearmargin.core import Grid, Image, InstanceSet, Source
from clearmargin.training.facts import nested_shares, take_facts
from clearmargin.transforms.settings import Percentiles, Window

GRID = Grid.from_spacing((40, 40))
PERCENTILES = Percentiles(low=0, high=100)


def box(y, x, height, width):
    dense = np.zeros(GRID.shape, bool)
    dense[y : y + height, x : x + width] = True
    return dense


def data(*cases):
    """A data set of ``(brightest value, instances)``; values begin at 0."""
    held = []
    for brightest, instances in cases:
        pixels = np.zeros((1, *GRID.shape), np.uint8)
        pixels[0, 0, 0] = brightest
        held.append((Image(pixels=pixels, grid=GRID, source=Source(case="x")), instances))
    return SimpleNamespace(read=lambda k: held[k]), range(len(held))


def test_the_share_of_each_object_in_a_larger_one_of_its_label():
    """A quarter, all and none of the small ones lie in the large one; of two alike the second lies in the first."""
    masks = [box(0, 0, 20, 20), box(15, 15, 10, 10), box(4, 4, 5, 5), box(30, 30, 5, 5), box(30, 30, 5, 5)]
    instances = InstanceSet.from_dense(GRID, masks, labels=[1, 1, 1, 2, 2])
    assert nested_shares(instances) == [(1, 0.0), (1, 0.25), (1, 1.0), (2, 0.0), (2, 1.0)]
    apart = InstanceSet.from_dense(GRID, masks[:3], labels=[1, 2, 3])
    assert nested_shares(apart) == [(1, 0.0), (2, 0.0), (3, 0.0)]
    assert nested_shares(InstanceSet.empty(GRID)) == []


def test_a_class_nests_if_one_object_in_a_hundred_does():
    whole, part = box(0, 0, 20, 20), box(4, 4, 5, 5)
    alone = InstanceSet.from_dense(GRID, [box(5 * k, 0, 4, 40) for k in range(8)])
    nested = InstanceSet.from_dense(GRID, [whole, part])
    few = [(100, alone)] * 31 + [(100, nested)]  # 1 of 250
    assert take_facts(*data(*few), PERCENTILES, 0.5).nested == frozenset()
    assert take_facts(*data(*few[-4:]), PERCENTILES, 0.5).nested == {1}  # 1 of 26
    crossing = InstanceSet.from_dense(GRID, [box(0, 10, 40, 4), box(10, 0, 4, 40)])
    assert take_facts(*data((100, crossing)), PERCENTILES, 0.5).nested == frozenset()


def test_the_least_width_is_a_low_quantile_of_the_windows_that_show_an_instance():
    """60, 62, ..., 100 in 21 images: 5 % of them lie below 62; what shows nothing does not count."""
    something, nothing = InstanceSet.from_dense(GRID, [box(0, 0, 5, 5)]), InstanceSet.empty(GRID)
    cases = data(*((60 + 2 * k, something) for k in range(21)), (4, nothing))
    facts = take_facts(*cases, PERCENTILES, 0.5)
    assert facts.least_width == pytest.approx(62)
    assert facts.domain.highs[1] >= 0
    assert take_facts(*cases, Window(low=0, high=255), 0.5).least_width is None
    assert take_facts(*data((4, nothing)), PERCENTILES, 0.5).least_width is None

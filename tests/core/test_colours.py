"""Colours: the class gives the hue, and no two instances of a class look the same."""

import colorsys

import numpy as np

from clearmargin.core.colours import class_colour, instance_colours


def test_instances_of_a_class_share_its_hue_and_no_colour():
    colours = instance_colours(np.full(200, 2, np.int64))
    assert len({tuple(c) for c in colours.tolist()}) == 200
    hues = [colorsys.rgb_to_hsv(*(c / 255))[0] for c in colours]
    expected = colorsys.rgb_to_hsv(*(np.array(class_colour(2)) / 255))[0]
    assert np.abs(np.array(hues) - expected).max() < 0.05


def test_a_colour_hangs_on_the_class_and_the_rank_within_it_alone():
    mixed = instance_colours(np.array([1, 2, 1, 2], np.int64))
    np.testing.assert_array_equal(mixed[[0, 2]], instance_colours(np.array([1, 1], np.int64)))
    np.testing.assert_array_equal(mixed[[1, 3]], instance_colours(np.array([2, 2], np.int64)))
    assert tuple(mixed[0]) == class_colour(1)


def test_no_instances_have_no_colours():
    assert instance_colours(np.zeros(0, np.int64)).shape == (0, 3)


def test_the_first_classes_differ():
    assert len({class_colour(k) for k in range(1, 40)}) == 39

"""Margins: right by hand, exact against a slow count, and as often right as they promise."""

import json
import math

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from clearmargin.core import Grid, InstanceSet, Mask
from clearmargin.errors import ConfigError, GeometryError, InputError
from clearmargin.metrics.matching import match_instances
from clearmargin.uncertainty.margins import (
    CalibrationData,
    Margin,
    covered_units,
    fit_margin,
    fit_margins,
    unit_scores,
)
from clearmargin.uncertainty.needed import Need, Promise, Strata, needed_margin, needed_margins
from clearmargin.uncertainty.reach import EdgeScale, face_areas, grow, shrink

DATA = CalibrationData(exchangeable="patient", date="2026-01-31", digest="ab" * 32)
OUTER, INNER = Promise(), Promise(side="inner")


def block(shape, start, stop):
    out = np.zeros(shape, bool)
    out[tuple(slice(a, b) for a, b in zip(start, stop, strict=True))] = True
    return Mask.from_dense(out)


# by hand


def test_a_shift_along_each_axis_in_millimetres():
    grid = Grid.from_spacing((40, 40), (2.0, 0.5))
    predicted = block(grid.shape, (10, 10), (20, 20))
    right = block(grid.shape, (10, 13), (20, 23))
    assert needed_margin(predicted, right, grid, OUTER) == 1.5  # three steps of 0.5
    assert needed_margin(predicted, right, grid, INNER) == 1.5
    down = block(grid.shape, (12, 10), (22, 20))
    assert needed_margin(predicted, down, grid, OUTER) == 4.0  # two steps of 2
    # the stray rows are at most five columns of 0.5 from the side, nearer than two rows of 2
    assert needed_margin(predicted, down, grid, INNER) == 2.5


def test_one_slice_of_a_volume_is_its_thickness():
    grid = Grid.from_spacing((8, 20, 20), (5.0, 1.0, 1.0))
    predicted = block(grid.shape, (2, 5, 5), (4, 15, 15))
    assert needed_margin(predicted, block(grid.shape, (2, 5, 5), (5, 15, 15)), grid, OUTER) == 5.0
    assert needed_margin(predicted, block(grid.shape, (2, 5, 5), (4, 15, 18)), grid, OUTER) == 3.0
    diagonal = needed_margin(predicted, block(grid.shape, (2, 5, 5), (5, 15, 16)), grid, OUTER)
    assert diagonal == pytest.approx(math.hypot(5, 1))


def test_shares_of_the_surface_and_of_the_area():
    grid = Grid.from_spacing((30, 40), (1.0, 1.0))
    predicted = block(grid.shape, (10, 10), (20, 20))
    spike = Mask.from_dense(predicted.dense() | block(grid.shape, (15, 20), (16, 28)).dense())
    # 39 of 56 edge lengths are the block's; the spike's pixels have 2 each, its tip 3, at distances 1 to 8
    found = {s: needed_margin(predicted, spike, grid, Promise(share=s)) for s in (0.69, 0.75, 0.9, 0.95, 1)}
    assert found == {0.69: 0, 0.75: 2, 0.9: 6, 0.95: 8, 1: 8}
    assert needed_margin(predicted, spike, grid, Promise(share=0.95, of="area")) == 3  # 103 of 108 pixels
    # predicted and true change places: the spike is what the inner margin must take away, and it is thin
    assert needed_margin(spike, predicted, grid, INNER) == 1
    assert needed_margin(spike, predicted, grid, Promise(side="inner", share=0.97)) == 0  # 1 of 40 is too far
    assert needed_margin(spike, predicted, grid, Promise(side="inner", share=0.98)) == 1


def test_faces_count_by_their_area():
    held = np.pad(np.ones((1, 1, 2), bool), 1)
    areas = face_areas(held, (5.0, 2.0, 1.0), inside=True)
    assert areas[1, 1, 1] == areas[1, 1, 2] == 2 * 5 + 2 * 2 + 10  # two sides, top and bottom, one end
    assert face_areas(held, (5.0, 2.0, 1.0), inside=False).sum() == areas.sum() == 48


def test_a_hole_in_the_prediction_counts_at_a_share_of_one():
    grid = Grid.from_spacing((30, 30), (1.0, 1.0))
    whole = block(grid.shape, (5, 5), (25, 25))
    ring = Mask.from_dense(whole.dense() & ~block(grid.shape, (10, 10), (20, 20)).dense())
    assert needed_margin(ring, whole, grid, Promise(share=0.99)) == 0
    assert needed_margin(ring, whole, grid, OUTER) == 5


def test_at_the_edge_of_the_image():
    grid = Grid.from_spacing((20, 20), (1.0, 1.0))
    corner, wider = block(grid.shape, (0, 0), (6, 6)), block(grid.shape, (0, 0), (6, 9))
    assert needed_margin(corner, wider, grid, OUTER) == 3
    grown = grow(corner, grid, 3)
    assert grown.box == ((0, 0), (9, 9))
    # what is outside of the image is not held: the core keeps clear of the image's edge too
    assert shrink(corner, grid, 1).box == ((1, 1), (5, 5))
    everywhere = block(grid.shape, (0, 0), (20, 20))
    assert needed_margin(everywhere, corner, grid, INNER) == 10
    assert shrink(everywhere, grid, 10).area == 0
    assert needed_margin(everywhere, corner, grid, OUTER) == 0


def test_the_ignored_region_asks_for_nothing():
    grid = Grid.from_spacing((20, 20), (1.0, 1.0))
    predicted, wider = block(grid.shape, (5, 5), (10, 10)), block(grid.shape, (5, 5), (10, 14))
    ignore = block(grid.shape, (0, 12), (20, 20))
    assert needed_margin(predicted, wider, grid, OUTER) == 4
    assert needed_margin(predicted, wider, grid, OUTER, ignore=ignore) == 2
    assert (
        needed_margin(predicted, wider, grid, Promise(share=0.5), ignore=block(grid.shape, (0, 0), (20, 20)))
        == 0
    )


def test_a_doubtful_side_takes_the_margin_and_a_sharp_side_stays():
    grid = Grid.from_spacing((60, 60), (0.5, 0.5))
    predicted = block(grid.shape, (20, 20), (40, 40))
    points = np.array([(30.0, 39.0), (30.0, 20.0), (20.0, 25.0), (39.0, 25.0)])
    # (sigma + floor) / floor is 4 and 1: both on the ladder
    scale = EdgeScale(points=points, sigma=np.array([1.5, 0, 0, 0]), floor=0.5)
    grown = grow(predicted, grid, 2.0, scale)
    assert not grown.dense()[30, :18].any() and grown.dense()[30, 18:20].all()  # 2 x 0.5 mm: two pixels
    assert grown.dense()[30, 40:48].all() and not grown.dense()[30, 48:].any()  # 2 x 2 mm: eight pixels
    right = block(grid.shape, (20, 20), (40, 44))
    promise = Promise(floor=0.5)
    assert needed_margin(predicted, right, grid, promise, scale=scale) == 1.0  # 2 mm at a scale of 2 mm
    left = block(grid.shape, (25, 16), (35, 40))
    assert needed_margin(predicted, left, grid, promise, scale=scale) == 4.0  # 2 mm at a scale of 0.5 mm


def test_an_all_certain_model_has_one_margin_all_around():
    rng = np.random.default_rng(0)
    grid = Grid.from_spacing((30, 30), (1.0, 0.7))
    predicted = Mask.from_dense(rng.random(grid.shape) > 0.9)
    reference = Mask.from_dense(rng.random(grid.shape) > 0.9)
    certain = EdgeScale(points=rng.uniform(0, 30, (5, 2)), sigma=np.zeros(5), floor=0.25)
    nothing_said = EdgeScale(points=np.zeros((0, 2)), sigma=np.zeros(0), floor=0.25)
    for side in ("outer", "inner"):
        plain = needed_margin(predicted, reference, grid, Promise(side=side))
        for scale in (certain, nothing_said):
            scaled = needed_margin(predicted, reference, grid, Promise(side=side, floor=0.25), scale=scale)
            assert 0.25 * scaled == pytest.approx(plain)
    assert np.array_equal(grow(predicted, grid, 2, certain).dense(), grow(predicted, grid, 0.5).dense())


# exact, by a slow count


@st.composite
def pairs(draw):
    ndim = draw(st.sampled_from([2, 3]))
    shape = tuple(draw(st.integers(2, 7)) for _ in range(ndim))
    spacing = tuple(draw(st.sampled_from([0.5, 1.0, 1.3, 2.5])) for _ in range(ndim))
    rng = np.random.default_rng(draw(st.integers(0, 10_000)))
    masks = []
    for _ in range(2):
        dense = rng.random(shape) < draw(st.sampled_from([0.1, 0.5, 0.9]))
        dense[tuple(rng.integers(0, n) for n in shape)] = True
        masks.append(Mask.from_dense(dense))
    points = rng.uniform(0, 1, (4, ndim)) * shape
    scale = draw(st.sampled_from([None, EdgeScale(points=points, sigma=rng.exponential(1, 4), floor=0.3)]))
    return Grid.from_spacing(shape, spacing), masks[0], masks[1], scale


def slow_region(mask, grid, margin, scale, side):
    """Grow or shrink by looking from every element to every edge element."""
    held = np.pad(mask.dense(), 1)
    sources = np.argwhere(held if side == "outer" else ~held)
    if scale is not None:  # the elements next to the edge only, as the definition says
        flat = {tuple(i) for i in np.argwhere(held)}
        steps = [s * e for e in np.eye(held.ndim, dtype=int) for s in (1, -1)]
        sources = np.array(
            [s for s in sources if any((tuple(s + e) in flat) != (side == "outer") for e in steps)]
        )
    radius = margin * (np.ones(len(sources)) if scale is None else scale.at(sources - 1, grid.spacing))
    every = np.argwhere(np.ones(held.shape))
    away = np.linalg.norm((every[:, None] - sources[None]) * np.array(grid.spacing), axis=-1)
    reached = (away <= radius * (1 + 1e-9)).any(axis=1).reshape(held.shape)
    out = held | reached if side == "outer" else held & ~reached
    return out[(slice(1, -1),) * held.ndim]


@settings(max_examples=60, deadline=None)
@given(pairs(), st.sampled_from(["outer", "inner"]), st.sampled_from([1.0, 0.95, 0.6]))
def test_the_needed_margin_is_enough_and_nothing_less_is(pair, side, share):
    grid, predicted, reference, scale = pair
    promise = Promise(side=side, share=share, floor=None if scale is None else scale.floor)
    needed = needed_margin(predicted, reference, grid, promise, scale=scale)

    def covered(margin):
        region = slow_region(predicted, grid, margin, scale, side)
        theirs = reference.dense()
        if share == 1:
            return not (theirs & ~region if side == "outer" else region & ~theirs).any()
        areas = face_areas(np.pad(theirs, 1), grid.spacing, inside=side == "outer")
        inside = np.pad(region, 1)
        return areas[inside if side == "outer" else ~inside].sum() >= share * areas.sum() * (1 - 1e-9)

    assert covered(needed)
    assert needed == 0 or not covered(needed * (1 - 1e-6))
    fast = (grow if side == "outer" else shrink)(predicted, grid, needed, scale)
    assert np.array_equal(fast.dense(), slow_region(predicted, grid, needed, scale, side))


# records


def needs(values, stratum="all", length_unit="mm", start=0):
    return [
        Need(unit=f"p{start + k}", stratum=stratum, value=float(v), length_unit=length_unit)
        for k, v in enumerate(values)
    ]


def test_a_unit_counts_once_with_its_largest_need():
    twice = needs(range(9)) + needs([7, 0, 0, 0, 0, 0, 0, 0, 0])
    assert unit_scores(twice)["p0"] == 7
    margin = fit_margin(twice, [f"p{k}" for k in range(12)], OUTER, 0.1, DATA)
    assert (margin.value, margin.n, margin.without) == (8, 9, 3)


def test_covered_units_by_hand_and_after_a_shift():
    margin = fit_margin(needs(range(9)), [f"p{k}" for k in range(9)], OUTER, 0.1, DATA)
    again = covered_units(margin, [*needs([8.0, 8.1, 2.0]), *needs([9.0])])
    assert again == {"p0": False, "p1": False, "p2": True}
    assert covered_units(margin, []) == {}
    with pytest.raises(InputError, match="the margin is in mm"):
        covered_units(margin, needs([1.0], length_unit="px"))


def test_the_record_says_all_of_it_and_survives_yaml_and_json():
    margin = fit_margin(needs(range(19)), [f"p{k}" for k in range(20)], Promise(share=0.99), 0.05, DATA)
    text = str(margin)
    for said in (
        "outer margin 18 mm", "at least 95 %", "99 % of the true instance's surface", "alpha 0.05", "n = 19 patient",
        "1 more had no matched instance", "2026-01-31", "abababababab", "data like the calibration data", "missed",
    ):  # fmt: skip
        assert said in text
    assert Margin.from_data(yaml.safe_load(yaml.safe_dump(margin.to_data()))) == margin
    assert Margin.from_data(json.loads(json.dumps(margin.to_data()))) == margin
    with pytest.raises(ConfigError, match="run the calibration again"):
        Margin.from_data({"value": 1})


def test_unknown_spacing_gives_pixels_and_says_so():
    grid = Grid.from_spacing((40, 40))
    one = InstanceSet.from_dense(grid, [block(grid.shape, (5, 5), (20, 20)).dense()])
    two = InstanceSet.from_dense(grid, [block(grid.shape, (5, 5), (20, 22)).dense()])
    found = [n for k in range(9) for n in needed_margins(f"p{k}", one, two, match_instances(one, two), OUTER)]
    margin = fit_margin(found, {n.unit for n in found}, OUTER, 0.1, DATA)
    assert (margin.value, margin.length_unit) == (2, "px")
    assert "2 px" in str(margin) and "no spacing" in str(margin) and "mm" not in str(margin)
    assert margin.region(one.masks[0], grid).area > one.masks[0].area
    with pytest.raises(InputError, match="in px and the image in mm"):
        margin.region(one.masks[0], Grid.from_spacing((40, 40), (1, 1)))
    with pytest.raises(InputError, match="mm and in px cannot share"):
        fit_margin(found + needs([1.0], start=20), [f"p{k}" for k in range(30)], OUTER, 0.1, DATA)


def test_no_instance_no_margin():
    grid = Grid.from_spacing((40, 40), (1, 1))
    empty = InstanceSet.empty(grid)
    assert needed_margins("p", empty, empty, match_instances(empty, empty), OUTER) == []
    with pytest.raises(InputError, match="there is none"):
        fit_margin([], ["p"], OUTER, 0.1, DATA)
    nothing = Mask.from_dense(np.zeros(grid.shape))
    assert grow(nothing, grid, 3).area == shrink(nothing, grid, 3).area == 0


def test_what_does_not_fit_is_refused():
    grid = Grid.from_spacing((9, 9), (1, 1))
    mask = block(grid.shape, (2, 2), (5, 5))
    sheared = np.eye(4)
    sheared[0, 1] = 0.5
    with pytest.raises(GeometryError, match="right angles"):
        needed_margin(mask, mask, Grid(shape=grid.shape, affine=sheared, unit="mm"), OUTER)
    with pytest.raises(ValueError, match="floor"):
        needed_margin(mask, mask, grid, Promise(floor=0.1))
    with pytest.raises(ConfigError, match=r"0\.99 is 99 %"):
        Promise(share=99)
    with pytest.raises(ConfigError, match="inner margin has no share of the area"):
        Promise(side="inner", of="area", share=0.9)
    with pytest.raises(ValueError, match="floor is positive"):
        EdgeScale(points=np.zeros((1, 2)), sigma=np.zeros(1), floor=0)


def test_strata_by_class_and_predicted_size_and_the_small_ones_are_refused():
    grid = Grid.from_spacing((40, 40), (0.5, 0.5))
    masks = [block(grid.shape, (0, 0), (4, 4)).dense(), block(grid.shape, (10, 10), (30, 30)).dense()]
    found = InstanceSet.from_dense(grid, masks, [1, 2])
    strata = Strata(class_names={1: "cyst"}, size_limits=(5, 50))
    assert [strata.of(found, i) for i in (0, 1)] == [
        "cyst, small (under 5 mm^2)",
        "other, large (over 50 mm^2)",
    ]
    assert Strata().of(found, 0) == "all"
    mixed = needs(range(12), "big") + needs([3.0] * 4, "small")
    table = fit_margins(mixed, [f"p{k}" for k in range(12)], OUTER, 0.1, DATA)
    assert table.of("big").value == 11 and table.of("big").stratum == "big"
    with pytest.raises(
        InputError, match=r"stratum 'small' at alpha 0\.1 needs 9 calibration units, 4 reach 80 %"
    ):
        table.of("small")
    with pytest.raises(InputError, match="no calibration instance is in stratum 'none'"):
        table.of("none")
    with pytest.raises(InputError, match="cannot share a margin"):
        fit_margins(mixed + needs([1.0], length_unit="px"), [f"p{k}" for k in range(12)], OUTER, 0.1, DATA)

"""Margins: right by hand, exact against a slow count, and as often right as they promise."""

import json
import math

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from clearmargin.core import EdgeSpread, Grid, Mask
from clearmargin.errors import ConfigError, GeometryError, InputError
from clearmargin.margins.margins import CalibrationData, Margin, MatchedObject, demands_of, fit_margin
from clearmargin.margins.reach import EdgeScale, face_areas, grow, shrink
from clearmargin.margins.requirement import Needed, needed_margin
from clearmargin.margins.width import Width, features_of, fit_predicted

DATA = CalibrationData(group="patient", date="2026-01-31", digest="ab" * 32)
OUTER, INNER = "outer", "inner"


def whole(predicted, reference, grid, side, **options):
    return needed_margin(predicted, reference, grid, side, **options).whole


def outside(predicted, reference, grid, side, margin, **options):
    return needed_margin(predicted, reference, grid, side, **options).share_outside(margin)


def block(shape, start, stop):
    out = np.zeros(shape, bool)
    out[tuple(slice(a, b) for a, b in zip(start, stop, strict=True))] = True
    return Mask.from_dense(out)


# by hand


def test_a_shift_along_each_axis_in_millimetres():
    grid = Grid.from_spacing((40, 40), (2.0, 0.5))
    predicted = block(grid.shape, (10, 10), (20, 20))
    right = block(grid.shape, (10, 13), (20, 23))
    assert whole(predicted, right, grid, OUTER) == 1.5  # three steps of 0.5
    assert whole(predicted, right, grid, INNER) == 1.5
    down = block(grid.shape, (12, 10), (22, 20))
    assert whole(predicted, down, grid, OUTER) == 4.0  # two steps of 2
    # the stray rows are at most five columns of 0.5 from the side, nearer than two rows of 2
    assert whole(predicted, down, grid, INNER) == 2.5


def test_one_slice_of_a_volume_is_its_thickness():
    grid = Grid.from_spacing((8, 20, 20), (5.0, 1.0, 1.0))
    predicted = block(grid.shape, (2, 5, 5), (4, 15, 15))
    assert whole(predicted, block(grid.shape, (2, 5, 5), (5, 15, 15)), grid, OUTER) == 5.0
    assert whole(predicted, block(grid.shape, (2, 5, 5), (4, 15, 18)), grid, OUTER) == 3.0
    diagonal = whole(predicted, block(grid.shape, (2, 5, 5), (5, 15, 16)), grid, OUTER)
    assert diagonal == pytest.approx(math.hypot(5, 1))


def test_the_share_of_the_surface_that_a_margin_leaves_outside():
    grid = Grid.from_spacing((30, 40), (1.0, 1.0))
    predicted = block(grid.shape, (10, 10), (20, 20))
    spike = Mask.from_dense(predicted.dense() | block(grid.shape, (15, 20), (16, 28)).dense())
    # 39 of 56 edge lengths are the block's; the spike's pixels have 2 each, its tip 3, at distances 1 to 8
    left = {m: outside(predicted, spike, grid, OUTER, m) for m in (0, 1, 2, 7, 7.9, 8)}
    assert left == pytest.approx({0: 17 / 56, 1: 15 / 56, 2: 13 / 56, 7: 3 / 56, 7.9: 3 / 56, 8: 0})
    assert whole(predicted, spike, grid, OUTER) == 8
    # predicted and true change places: the spike is what the inner margin must take away, and it is thin
    assert whole(spike, predicted, grid, INNER) == 1
    assert outside(spike, predicted, grid, INNER, 0) == pytest.approx(1 / 40)  # one of 40 faces is too far
    assert outside(spike, predicted, grid, INNER, 1) == 0


def test_faces_count_by_their_area():
    held = np.pad(np.ones((1, 1, 2), bool), 1)
    areas = face_areas(held, (5.0, 2.0, 1.0), inside=True)
    assert areas[1, 1, 1] == areas[1, 1, 2] == 2 * 5 + 2 * 2 + 10  # two sides, top and bottom, one end
    assert face_areas(held, (5.0, 2.0, 1.0), inside=False).sum() == areas.sum() == 48


def test_a_hole_in_the_prediction_counts_for_the_object_as_a_whole():
    grid = Grid.from_spacing((30, 30), (1.0, 1.0))
    full = block(grid.shape, (5, 5), (25, 25))
    ring = Mask.from_dense(full.dense() & ~block(grid.shape, (10, 10), (20, 20)).dense())
    assert outside(ring, full, grid, OUTER, 0) == 0
    assert whole(ring, full, grid, OUTER) == 5


def test_at_the_edge_of_the_image():
    grid = Grid.from_spacing((20, 20), (1.0, 1.0))
    corner, wider = block(grid.shape, (0, 0), (6, 6)), block(grid.shape, (0, 0), (6, 9))
    assert whole(corner, wider, grid, OUTER) == 3
    grown = grow(corner, grid, 3)
    assert grown.box == ((0, 0), (9, 9))
    # what is outside of the image is not held: the core keeps clear of the image's edge too
    assert shrink(corner, grid, 1).box == ((1, 1), (5, 5))
    everywhere = block(grid.shape, (0, 0), (20, 20))
    assert whole(everywhere, corner, grid, INNER) == 10
    assert shrink(everywhere, grid, 10).area == 0
    assert whole(everywhere, corner, grid, OUTER) == 0


def test_the_ignored_region_asks_for_nothing():
    grid = Grid.from_spacing((20, 20), (1.0, 1.0))
    predicted, wider = block(grid.shape, (5, 5), (10, 10)), block(grid.shape, (5, 5), (10, 14))
    ignore = block(grid.shape, (0, 12), (20, 20))
    assert whole(predicted, wider, grid, OUTER) == 4
    assert whole(predicted, wider, grid, OUTER, ignore=ignore) == 2
    nothing = needed_margin(predicted, wider, grid, OUTER, ignore=block(grid.shape, (0, 0), (20, 20)))
    assert nothing.whole == 0 and nothing.share_outside(0) == 0


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
    assert whole(predicted, right, grid, OUTER, scale=scale) == 1.0  # 2 mm at a scale of 2 mm
    left = block(grid.shape, (25, 16), (35, 40))
    assert whole(predicted, left, grid, OUTER, scale=scale) == 4.0  # 2 mm at a scale of 0.5 mm


def test_an_all_certain_model_has_one_margin_all_around():
    rng = np.random.default_rng(0)
    grid = Grid.from_spacing((30, 30), (1.0, 0.7))
    predicted = Mask.from_dense(rng.random(grid.shape) > 0.9)
    reference = Mask.from_dense(rng.random(grid.shape) > 0.9)
    certain = EdgeScale(points=rng.uniform(0, 30, (5, 2)), sigma=np.zeros(5), floor=0.25)
    nothing_said = EdgeScale(points=np.zeros((0, 2)), sigma=np.zeros(0), floor=0.25)
    for side in ("outer", "inner"):
        plain = whole(predicted, reference, grid, side)
        for scale in (certain, nothing_said):
            scaled = whole(predicted, reference, grid, side, scale=scale)
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
@given(pairs(), st.sampled_from(["outer", "inner"]))
def test_the_needed_margin_is_enough_and_nothing_less_is(pair, side):
    grid, predicted, reference, scale = pair
    needed = needed_margin(predicted, reference, grid, side, scale=scale)
    theirs = reference.dense()

    def covered(margin):
        region = slow_region(predicted, grid, margin, scale, side)
        return not (theirs & ~region if side == "outer" else region & ~theirs).any()

    assert covered(needed.whole)
    assert needed.whole == 0 or not covered(needed.whole * (1 - 1e-6))
    fast = (grow if side == "outer" else shrink)(predicted, grid, needed.whole, scale)
    assert np.array_equal(fast.dense(), slow_region(predicted, grid, needed.whole, scale, side))
    # the share of the surface outside, at every step and just below it
    areas = face_areas(np.pad(theirs, 1), grid.spacing, inside=side == "outer")
    for distance in needed.distances:
        for margin in (distance * (1 + 1e-8), distance * (1 - 1e-6)):
            inside = np.pad(slow_region(predicted, grid, margin, scale, side), 1)
            left = areas[~inside if side == "outer" else inside].sum() / areas.sum()
            assert needed.share_outside(margin) == pytest.approx(left)


# records


def objects(values, length_unit="mm", size=100.0):
    """One object a group, with what it needs on both sides."""
    return [
        MatchedObject(
            group=f"p{k:03d}",
            features=features_of(size=size, score=0.9, label=1, edge_sd=None, element=1.0),
            needed={
                (side, None): Needed(whole=float(v), distances=np.array([float(v)]), outside=np.array([0.5]))
                for side, v in (("outer", value), ("inner", value / 2))
            },
            mean_scale={},
        )
        for k, value in enumerate(values)
    ]


ONE = Width(kind="constant", level={"outer": 1.0, "inner": 1.0}, predicted={})


def fitted(values, **options):
    chosen = objects(values)
    wanted = {"guarantee": "object", "sides": "outer", "alpha": 0.1, "length_unit": "mm", "match_iou": 0.6}
    groups = [f"p{k:03d}" for k in range(len(chosen) + 3)]
    return fit_margin(chosen, groups, ONE, **(wanted | options), data=DATA)


def test_groups_without_a_matched_object_are_counted():
    margin = fitted(range(9))
    assert (margin.factor, margin.n, margin.without, margin.typical) == (8, 9, 3, {"outer": 8, "inner": 0})
    with pytest.raises(ValueError, match="are not listed"):
        fit_margin(
            objects(range(9)), ["p000"], ONE, guarantee="group", sides="outer", alpha=0.1, length_unit="mm",
            match_iou=0.6, data=DATA,
        )  # fmt: skip


def test_both_sides_take_the_larger_demand():
    pair = demands_of(objects([4.0]), ONE, "both")[0]
    assert pair.whole == 4 and pair.factors.tolist() == [2, 4]
    narrow = Width(kind="constant", level={"outer": 8.0, "inner": 1.0}, predicted={})
    assert (
        demands_of(objects([4.0]), narrow, "both")[0].whole == 2
    )  # the inner margin of 2 is the larger demand
    assert fitted(range(19), sides="both").typical == {"outer": 17, "inner": 17}


def test_the_record_says_all_of_it_and_survives_yaml_and_json():
    margin = fitted(range(19), alpha=0.05, sides="both", confidence=0.1)
    text = str(margin)
    for said in (
        "at least 95 % of a new patient's matched objects lie between", "a mean over patients",
        "with a confidence of 10 %", "alpha 0.05, n = 19 patients", "outer 18 mm and inner 18 mm",
        "one margin for all objects", "in 9 of 10, 95.0 % on average",
    ):  # fmt: skip
        assert said in text
    assert Margin.from_data(yaml.safe_load(yaml.safe_dump(margin.to_data()))) == margin
    assert Margin.from_data(json.loads(json.dumps(margin.to_data()))) == margin
    for broken in ({"factor": 1}, margin.to_data() | {"width": {}}, margin.to_data() | {"promise": {}}):
        with pytest.raises(ConfigError, match="run the calibration again"):
            Margin.from_data(broken)
    assert "with a chance of at least 90 % every matched object" in str(fitted(range(9), guarantee="group"))
    assert "at least 90 % of the edge of a new patient's" in str(fitted(range(9), guarantee="risk"))


def test_a_margin_in_pixels_says_so_and_is_not_used_in_millimetres():
    margin = fitted(range(9), length_unit="px")
    assert "8 px" in str(margin) and "no spacing" in str(margin) and "mm" not in str(margin)
    grid = Grid.from_spacing((40, 40))
    mask = block(grid.shape, (10, 10), (20, 20))
    features = objects([1])[0].features
    assert margin.region(mask, grid, "outer", features).box == ((2, 2), (28, 28))
    with pytest.raises(InputError, match="in px and the image in mm"):
        margin.region(mask, Grid.from_spacing((40, 40), (1, 1)), "outer", features)
    local = Margin.from_data(margin.to_data() | {"width": (ONE.to_data() | {"kind": "edge", "floor": 0.5})})
    with pytest.raises(ValueError, match="the prediction has no edge"):
        local.region(mask, grid, "outer", features)
    edge = EdgeSpread(points=np.array([[10.0, 10.0]]), sigma=np.array([0.5]))
    assert local.length("outer", features, edge) == 8  # a factor of 8 on a mean scale of 0.5 + 0.5
    assert local.region(mask, grid, "outer", features, edge).box == ((2, 2), (28, 28))


def test_no_object_no_margin():
    with pytest.raises(InputError, match="there is none"):
        fitted([])
    grid = Grid.from_spacing((40, 40), (1, 1))
    nothing = Mask.from_dense(np.zeros(grid.shape))
    assert grow(nothing, grid, 3).area == shrink(nothing, grid, 3).area == 0
    with pytest.raises(ValueError, match="two masks that are not empty"):
        needed_margin(nothing, block(grid.shape, (0, 0), (2, 2)), grid, "outer")


def test_what_does_not_fit_is_refused():
    grid = Grid.from_spacing((9, 9), (1, 1))
    mask = block(grid.shape, (2, 2), (5, 5))
    sheared = np.eye(4)
    sheared[0, 1] = 0.5
    with pytest.raises(GeometryError, match="right angles"):
        needed_margin(mask, mask, Grid(shape=grid.shape, affine=sheared, unit="mm"), OUTER)
    with pytest.raises(ValueError, match="floor is positive"):
        EdgeScale(points=np.zeros((1, 2)), sigma=np.zeros(1), floor=0)


# widths


def test_a_width_follows_what_the_need_follows():
    """Needs are uniform below the square root of the size: their 90 % quantile is 0.9 times it."""
    rng = np.random.default_rng(0)
    sizes = np.exp(rng.uniform(3, 8, 3000))
    rows = [
        features_of(size=s, score=0.8, label=1 + int(k % 2), edge_sd=None, element=1.0)
        for k, s in enumerate(sizes)
    ]
    needs = rng.uniform(0, np.sqrt(sizes))
    width = fit_predicted(rows, needs.tolist(), np.ones(3000).tolist(), 0.9, 1e-6)
    assert width.names == ("log size", "score", "class 2")
    for size in (40.0, 400.0, 2500.0):
        row = features_of(size=size, score=0.8, label=1, edge_sd=None, element=1.0)
        assert width.of(row) == pytest.approx(0.9 * math.sqrt(size), rel=0.06)
    # beyond what was seen it stays
    row = features_of(size=1e9, score=0.8, label=1, edge_sd=None, element=1.0)
    assert width.of(row) < 1.1 * math.sqrt(math.exp(8))
    assert fit_predicted(rows[:30], needs[:30].tolist(), [1.0] * 30, 0.9, 0.5) is None  # four coefficients


def test_the_factor_of_a_need_gives_the_need_back():
    rows = [
        features_of(size=s, score=0.5, label=1, edge_sd=0.3, element=1.0) for s in np.linspace(9, 900, 80)
    ]
    fit = fit_predicted(rows, np.linspace(1, 5, 80).tolist(), [1.0] * 80, 0.9, 0.5)
    width = Width(kind="predicted", level={}, predicted={"outer": fit}, offset=0.5)
    assert fit.names == ("log size", "score", "log edge sd")
    for need in (0.5, 2.0, 9.0):
        factor = float(width.factor("outer", rows[3], need))
        assert width.margin("outer", rows[3], factor) == pytest.approx(need)
    assert float(width.factor("outer", rows[3], 0.0)) == 0 and width.margin("outer", rows[3], 0.0) == 0
    assert Width.from_data(json.loads(json.dumps(width.to_data()))) == width
    with pytest.raises(ConfigError, match="not a margin's width"):
        Width.from_data({"kind": "constant"})

"""Distances to a neighbour or a landmark: by hand on unequal spacing, and their promises over splits."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from calibrated import ASKED, DATA, LABELS, MADE_BY, calibrated, drawn_set, judged

from clearmargin.core import Grid, InstanceSet, LabelMap, Landmarks, PointType, Prediction, Thresholds
from clearmargin.core.landmarks import SEEN
from clearmargin.errors import ConfigError, InputError
from clearmargin.margins.assessment import assess
from clearmargin.margins.calibration import load_calibration, save_calibration
from clearmargin.margins.distances import distance_between, ellipsoid_distance
from clearmargin.margins.guarantees import least_factor
from clearmargin.margins.margins import losses_of
from clearmargin.margins.observations import matched_objects, objects_apart, observe
from clearmargin.margins.reach import grow
from clearmargin.margins.towards import (
    Apart,
    check_targets,
    clearance_losses,
    fit_clearance,
    promise_between_margins,
    with_distances,
)
from clearmargin.margins.width import Width
from clearmargin.report.calibration import report_text

FLAT = Grid.from_spacing((20, 40), (2.0, 0.5))
TIP = PointType(name="the tip")
NAMES = LabelMap(LABELS.classes, (TIP,))


def drawn(boxes, labels, *, point=None, region=None, outer=None, grid=FLAT):
    """A prediction of boxes ``(rows, columns)``, given as slices, and of one point."""
    masks = np.zeros((len(boxes), *grid.shape), bool)
    for mask, (rows, columns) in zip(masks, boxes, strict=True):
        mask[rows, columns] = True
    instances = InstanceSet.from_dense(grid, list(masks), labels)
    if point is not None:
        around = Landmarks.of((TIP,), [[point]], [[SEEN]])
        instances = replace(
            instances,
            landmarks=around if region is None else replace(around, regions=np.array(region)[None, None]),
        )
    made = Prediction(instances=instances, label_map=NAMES, provenance=MADE_BY)
    if outer is None:
        return made
    return replace(made, outer=tuple(grow(mask, grid, outer) for mask in instances.masks))


A = (slice(2, 5), slice(4, 9))  # rows 2 to 4, columns 4 to 8
B = (slice(8, 10), slice(12, 20))  # rows 8 and 9, columns 12 to 19


def columns(prediction):
    return {name: column.tolist() for name, column in prediction.instances.uncertainty.items()}


def test_distances_between_boxes_on_unequal_spacing():
    """From (4, 8) to (8, 12): 4 rows of 2 mm and 4 columns of 0.5 mm, the root of 8^2 + 2^2."""
    found = columns(with_distances(drawn([A, B], [1, 2]), ["large"]))
    assert found["distance_to_large_mm"][0] == pytest.approx(np.hypot(8, 2))
    assert np.isnan(found["distance_to_large_mm"][1]) and len(found) == 1
    both = columns(with_distances(drawn([A, (slice(4, 6), slice(8, 10))], [1, 2]), ["large"]))
    assert both["distance_to_large_mm"][0] == 0  # they share (4, 8)
    alone = columns(with_distances(drawn([A], [1]), ["large", "large"]))
    assert np.isnan(alone["distance_to_large_mm"]).all()


def test_distances_between_margins():
    """A margin of 2 mm adds a row or four columns on each side: least from (5, 8) to (7, 12) or by columns alike."""
    made = drawn([A, B], [1, 2], outer=2.0)
    found = columns(with_distances(made, ["large"]))
    one, two = (np.argwhere(m.dense()) * (2.0, 0.5) for m in made.outer)
    expected = np.linalg.norm(one[:, None] - two[None], axis=2).min()
    assert found["margin_distance_to_large_mm"][0] == pytest.approx(expected)
    assert found["margin_distance_to_large_mm"][0] >= np.hypot(8, 2) - 4
    assert expected == pytest.approx(np.hypot(4, 2))  # (5, 8) and (7, 12)


def test_distances_to_a_landmark_and_its_region():
    """The tip at row 9: 5 rows or 10 mm below row 4; its region reaches 3 mm, the margin 2 mm: 5 mm are left."""
    region = np.diag([1.5**2, 6.0**2])  # a disc of 3 mm
    found = columns(with_distances(drawn([A], [1], point=(9.0, 6.0), region=region, outer=2.0), ["the tip"]))
    assert found["distance_to_the_tip_mm"] == [10.0]
    assert found["margin_distance_to_the_tip_mm"] == pytest.approx([5.0])
    inside = drawn([A], [1], point=(3.0, 6.0), region=region, outer=2.0)
    assert set(map(tuple, columns(with_distances(inside, ["the tip"])).values())) == {(0.0,)}
    bare = columns(with_distances(drawn([A], [1], point=(9.0, 6.0), outer=2.0), ["the tip"]))
    assert list(bare) == ["distance_to_the_tip_mm"]


@pytest.mark.parametrize("ndim", [2, 3])
def test_the_distance_to_an_ellipsoid_is_that_of_its_nearest_surface_point(ndim):
    """Held against many points of the surface; inside it is 0."""
    rng = np.random.default_rng(0)
    half = np.diag([3.0, 1.0, 0.4][:ndim]) @ np.linalg.qr(rng.normal(size=(ndim, ndim)))[0]
    squares, centre = half.T @ half, rng.normal(size=ndim)
    directions = rng.normal(size=(200_000, ndim))
    surface = centre + directions / np.linalg.norm(directions, axis=1, keepdims=True) @ half
    places = centre + rng.normal(size=(40, ndim)) * 4
    inside = np.einsum("ni,ij,nj->n", places - centre, np.linalg.inv(squares), places - centre) <= 1
    slow = np.array([np.linalg.norm(surface - place, axis=1).min() for place in places])
    found = ellipsoid_distance(places, centre, squares)
    np.testing.assert_allclose(found[~inside], slow[~inside], atol=0.05)
    assert (found[~inside] <= slow[~inside] + 1e-9).all() and not found[inside].any()


def test_a_name_that_is_neither_class_nor_point_is_refused():
    check_targets(["large", "the tip"], NAMES)
    with pytest.raises(ConfigError, match=r"--towards lage: no class and no point.*large"):
        check_targets(["lage"], NAMES)


def test_the_length_is_the_conformal_quantile():
    """Nine groups at alpha 0.2: the 8th smallest excess. Without a detected target a group asks for nothing."""
    rows = [
        (f"g{k}", Apart(label=0, scores=np.array([0.9, 0.1]), distances=np.array([20.0, 1.0]), true=20.0 - k))
        for k in range(1, 10)
    ]
    rows.append(("none", Apart(label=0, scores=np.array([0.2]), distances=np.array([5.0]), true=1.0)))
    one = fit_clearance(
        "x", rows, [g for g, _ in rows], Thresholds(0.5),
        guarantee="object", alpha=0.2, length_unit="mm", data=DATA,
    )  # fmt: skip
    assert (one.length, one.n, one.without) == (8.0, 9, 1)
    assert "the predicted distance less 8 mm" in str(one) and "alpha 0.2, n = 9 patients" in str(one)
    with pytest.raises(InputError, match=r"the distance to 'x' at alpha 0\.05 needs 19"):
        fit_clearance(
            "x", rows, ["g"], Thresholds(0.5), guarantee="object", alpha=0.05, length_unit="mm", data=DATA
        )


@pytest.fixture(scope="module")
def observed():
    phantoms = drawn_set(120, edges=False, maps=False)
    return phantoms, [
        observe(case.group, *_parts(phantoms, case), towards=["large"]) for case in phantoms.cases
    ]


def _parts(phantoms, case):
    image, reference = phantoms.read(case)
    return image, phantoms(image), reference


def test_over_30_splits_the_promised_distance_holds(observed):
    """The joint score, by object and by group: 90 % promised, within 3 points and what a quantile of n groups costs."""
    _, cases = observed
    thresholds = Thresholds(0.5)
    for guarantee in ("object", "group"):
        held = []
        for split in range(30):
            order = np.random.default_rng(split).permutation(len(cases))
            parts = [
                objects_apart([cases[k] for k in some], "large", thresholds, 0.6)
                for some in (order[:70], order[70:])
            ]
            one = fit_clearance(
                "large", parts[0], [g for g, _ in parts[0]], thresholds,
                guarantee=guarantee, alpha=0.1, length_unit="mm", data=DATA,
            )  # fmt: skip
            held.append(
                1 - clearance_losses(parts[1], thresholds, guarantee).at(np.array([one.length])).mean()
            )
        assert one.length > 0 and 0.87 < np.mean(held) < 0.9 + 2 / (one.n + 1) + 0.03, (
            guarantee,
            np.mean(held),
        )


def test_over_30_splits_margins_by_group_keep_both_objects_apart(observed):
    """One event for all objects of a group: the distance between margins is under the true one in 90 % at least."""
    phantoms, cases = observed
    pairs = _true_pairs(phantoms)
    width = Width(kind="constant", level={"outer": 1.0}, predicted={})
    held = []
    for split in range(30):
        order = np.random.default_rng(split).permutation(len(cases))
        objects = matched_objects([cases[k] for k in order[:70]], Thresholds(0.5), 0.6)
        factor = least_factor(losses_of(objects, width, "outer", "group"), 0.1)
        fresh = [pairs[k] for k in order[70:] if pairs[k]]
        held.append(np.mean([all(_kept(*pair, factor) for pair in of_group) for of_group in fresh]))
    assert np.mean(held) > 0.9


def _true_pairs(phantoms):
    """By case, of matched small objects: both predicted masks and the true distance to the nearest large one."""
    found = []
    for case in phantoms.cases:
        _, prediction, reference = _parts(phantoms, case)
        ours = prediction.instances
        large = np.flatnonzero(ours.labels == 2)
        found.append(
            [
                (
                    ours.masks[i],
                    ours.masks[j],
                    distance_between(reference.masks[i], reference.masks[j], ours.grid),
                    ours.grid,
                )
                for i in np.flatnonzero(ours.labels == 1)
                for j in large
            ]
        )
    return found


def _kept(one, other, true, grid, factor):
    """The bound needs no region: growing both by m takes at most 2 m off the distance, and at least reaches it."""
    grown = [grow(mask, grid, factor) for mask in (one, other)]
    return distance_between(*grown, grid) <= true + 1e-9


def test_calibrate_fits_judges_and_keeps_distances(tmp_path):
    phantoms = drawn_set(60, edges=False, maps=False)
    asked = replace(ASKED, towards=("large",), promise="group")
    calibration, margin_cases = calibrated(phantoms, phantoms.cases[:40], asked)
    assert {(c.target, c.guarantee, c.alpha) for c in calibration.clearances} == {
        ("large", guarantee, alpha) for guarantee in ("object", "group") for alpha in (0.2, 0.1)
    }
    (applied,) = calibration.applied_clearances()
    assert applied.guarantee == "group" and applied.alpha == 0.2
    judgement = judged(phantoms, phantoms.cases[40:], calibration, margin_cases, asked)
    assert [row.clearance for row in judgement.clearances] == list(calibration.clearances)
    text = report_text(calibration, judgement)
    assert str(applied)[1:] in text and "| distance to |" in text
    save_calibration(tmp_path, calibration)
    assert load_calibration(tmp_path, "checkpoints", MADE_BY.weights_sha256) == calibration
    image, _ = phantoms.read(phantoms.cases[-1])
    prediction = phantoms(image)
    done = assess(prediction, image, calibration, thresholds=calibration.thresholds, towards=("small",))
    found = done.prediction.instances
    assert done.promised and {"distance_to_small_mm", "margin_distance_to_small_mm"} <= set(found.uncertainty)
    least, apart = (found.uncertainty[f"{name}_to_large_mm"] for name in ("least_distance", "distance"))
    known = np.isfinite(apart)
    np.testing.assert_allclose(least[known], np.maximum(apart[known] - applied.length, 0), atol=1e-5)
    assert np.isnan(least[found.labels == 2]).all()
    said = promise_between_margins(calibration, "large", LABELS)
    assert said.startswith("with a chance of at least 80 % all matched objects of a new patient lie within")
    region = SimpleNamespace(alpha=0.05, guarantee="group")
    tip = promise_between_margins(replace(calibration, points=(region,)), "the tip", NAMES)
    assert tip.startswith("with a chance of at least 75 %") and "(alpha 0.2 + 0.05, union bound)" in tip
    assert "have no region" in promise_between_margins(calibration, "the tip", NAMES)
    by_object = replace(calibration, promise="object")
    assert "a promise by object is a mean over objects" in promise_between_margins(by_object, "large", LABELS)

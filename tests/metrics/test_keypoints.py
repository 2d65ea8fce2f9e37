"""Landmarks measured: worked cases, and hotcoco's key point evaluation as the oracle of OKS."""

import warnings

import numpy as np
import pytest
from hotcoco import COCO, COCOeval
from landmarks import TYPES

from clearmargin.core import Grid, Landmarks
from clearmargin.metrics.detection import PrecisionTally
from clearmargin.metrics.keypoints import match_oks, object_similarity
from clearmargin.metrics.landmark_rows import point_rows, summarise_points, visibility_f1

GRID = Grid.from_spacing((50, 60))


def of(points, visible, **more):
    return Landmarks.of(TYPES, points, visible, **more)


def test_rows_of_a_case_worked_by_hand():
    reference = of([[[10, 10], [20, 20], [0, 0]], [[40, 10], [0, 0], [30, 30]]], [[2, 1, 0], [2, 0, 2]])
    predicted = of(
        [[[40, 14], [23, 24], [0, 0]], [[10, 10], [0, 0], [0, 0]], [[1, 1], [0, 0], [0, 0]]],
        [[2, 2, 0], [2, 0, 0], [2, 0, 0]],
    )
    rows = point_rows(predicted, reference, grid=GRID, case="c", group="g")
    got = [(r.point, r.visibility, r.status, r.error) for r in rows]
    assert got == [
        ("left", "seen", "tp", 0.0),
        ("left", "seen", "tp", 4.0),
        ("left", "absent", "fp", None),
        ("right", "hidden", "tp", 5.0),
        ("tip", "seen", "fn", None),
    ]
    every = {s.stratum: s for s in summarise_points(rows, rng=np.random.default_rng(0), radii=(4, 5))}
    assert every["all"].counts == {"tp": 3, "fn": 1, "fp": 1}
    assert every["all"].radial_error.estimate == 3 and every["all"].median == 4
    assert every["all"].sd == pytest.approx(np.std([0, 4, 5], ddof=1))
    assert every["all"].success == {4: 0.5, 5: 0.75}
    assert every["point = tip"].radial_error is None and every["point = tip"].success == {4: 0, 5: 0}
    assert every["visibility = hidden"].success == {4: 0, 5: 1}
    # seen and said to be: 2; said to be: 4; seen: 3
    assert visibility_f1(rows) == pytest.approx(4 / 7)


def test_distances_are_in_mm_along_the_axes_of_the_grid():
    grid = Grid.from_spacing((9, 20, 24), (3.0, 0.5, 0.5))
    reference = of([[[1, 2, 3]] * 3], [[2, 0, 0]])
    predicted = of([[[2, 2, 11]] * 3], [[2, 0, 0]])
    (row,) = point_rows(predicted, reference, grid=grid)
    assert row.error == pytest.approx(5) and row.unit == "mm"


def test_groups_weigh_alike_whatever_their_points():
    rows = []
    for group, errors in (("a", [1, 1, 1, 1]), ("b", [3])):
        for error in errors:
            rows += point_rows(
                of([[[10 + error, 10]] * 3], [[2, 0, 0]]),
                of([[[10, 10]] * 3], [[2, 0, 0]]),
                grid=GRID,
                group=group,
            )
    every = summarise_points(rows, rng=np.random.default_rng(0))[0]
    assert every.radial_error.estimate == 2 and every.radial_error.groups == 2


def test_no_point_gives_no_row_and_no_summary():
    nothing = Landmarks.empty(TYPES, 2)
    assert point_rows(nothing, nothing, grid=GRID) == []
    assert summarise_points([], rng=np.random.default_rng(0)) == []


def test_oks_by_hand():
    reference = of([[[10, 10], [20, 20], [0, 0]]], [[2, 1, 0]], areas=[400.0])
    predicted = of([[[10, 10], [20, 21], [5, 5]], [[10, 10], [0, 0], [0, 0]]], [[2, 2, 2], [2, 0, 0]])
    second = np.exp(-1 / (2 * 400 * 0.05**2))
    np.testing.assert_allclose(object_similarity(predicted, reference), [[(1 + second) / 2], [0.5]])


def test_oks_without_an_area_is_refused():
    with pytest.raises(ValueError, match="area"):
        object_similarity(of([[[1, 2]] * 3], [[2, 0, 0]]), of([[[1, 2]] * 3], [[2, 0, 0]]))


@pytest.mark.parametrize("seed", range(4))
def test_oks_average_precision_is_hotcocos(seed):
    rng = np.random.default_rng(seed)
    tally, images, truths, results = PrecisionTally(), [], [], []
    for image in range(1, 9):
        images.append({"id": image, "file_name": f"{image}.png", "height": 400, "width": 400})
        count = int(rng.integers(1, 5))
        points = rng.uniform(20, 380, (count, 3, 2))
        visible = rng.choice([0, 1, 2], (count, 3), p=[0.2, 0.2, 0.6])
        visible[:, 0] = 2
        areas = rng.uniform(2000, 9000, count)
        reference = of(points, visible, areas=areas)
        for at, seen, area in zip(points, visible, areas, strict=True):
            flat = [
                v for (y, x), s in zip(at, seen, strict=True) for v in (x if s else 0, y if s else 0, int(s))
            ]
            truths.append({
                "id": len(truths) + 1, "image_id": image, "category_id": 1, "keypoints": flat, "iscrowd": 0,
                "num_keypoints": int((seen > 0).sum()), "area": area, "bbox": [0, 0, 400, 400],
            })  # fmt: skip
        guessed = np.concatenate([points + rng.normal(0, 3, points.shape), rng.uniform(20, 380, (2, 3, 2))])
        scores = rng.uniform(0.1, 1, len(guessed))
        predicted = of(guessed, np.full(guessed.shape[:2], 2), scores=np.repeat(scores[:, None], 3, axis=1))
        for at, score in zip(guessed, scores, strict=True):
            flat = [v for y, x in at for v in (x, y, 2)]
            results.append({"image_id": image, "category_id": 1, "keypoints": flat, "score": float(score)})
        tally.add(match_oks(predicted, reference))
    categories = [{"id": 1, "name": "t", "keypoints": [t.name for t in TYPES], "skeleton": []}]
    truth = COCO({"images": images, "annotations": truths, "categories": categories})
    oracle = COCOeval(truth, truth.load_res(results), "keypoints")
    oracle.params.kpt_oks_sigmas = [t.falloff / 2 for t in TYPES]
    oracle.evaluate()
    oracle.accumulate()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it says that these are not a person's key points
        oracle.summarize()
    found = tally.result(20)
    assert 0.05 < found.ap < 0.95
    np.testing.assert_allclose([found.ap, found.ap50, found.ap75], oracle.stats[:3], atol=1e-6)


def test_points_that_know_no_object_are_compared_by_type():
    reference = of([[[10, 10], [20, 20], [30, 30]]], [[2, 2, 2]])
    predicted = reference.singles()
    tally = PrecisionTally()
    tally.add(match_oks(predicted, reference, by_type=True))
    assert tally.result(20).ap == pytest.approx(1)
    tally.add(match_oks(predicted.select([0]), reference, by_type=True))
    assert tally.result(20).by_class == pytest.approx({1: 1.0, 2: 0.505, 3: 0.505}, abs=0.01)

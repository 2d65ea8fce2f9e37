"""Regions of landmarks: by hand, on unequal spacing, and over splits of groups whose errors have a known law."""

from dataclasses import replace

import numpy as np
import pytest
from pointed import DATA, DEEP, FLAT, LABELS, TYPES, PointSet, calibrated, judged, shares

from clearmargin.core import Grid, Landmarks, PointType
from clearmargin.core.landmarks import HIDDEN, SEEN
from clearmargin.errors import InputError
from clearmargin.margins.assessment import assess
from clearmargin.margins.calibration import load_calibration, save_calibration
from clearmargin.margins.fitting import Asked
from clearmargin.margins.paired_points import ObservedPoints, paired_points
from clearmargin.margins.regions import PointRegion, RegionShape, choose_shape, fit_region
from clearmargin.report.calibration import figures_of, metrics_of, report_text, write_calibration

TIP = (PointType(name="tip"),)
WIDE = Grid.from_spacing((100, 100), (2.0, 0.5))


def one_point(error_index, *, group="g", visible=SEEN, covariance=None, grid=WIDE):
    """A prediction at (50, 50) whose true point is off by so many rows and columns."""
    cov = None if covariance is None else np.array(covariance, float)[None, None]
    ours = Landmarks.of(TIP, [[[50.0, 50.0]]], [[visible]], covariance=cov)
    theirs = Landmarks.of(TIP, [[np.array([50.0, 50.0]) + error_index]], [[SEEN]])
    return ObservedPoints(group=group, predicted=ours, reference=theirs, grid=grid)


def region_of(factor, shape):
    return PointRegion(
        guarantee="object", alpha=0.05, confidence=None, factor=factor, shape=shape, length_unit="mm", n=20,
        without=0, covered=(0.95, 0.9, 1.0), typical=0.0, data=DATA,
    )  # fmt: skip


ROUND = RegionShape(kind="constant", floor=0.0, widths={"seen": 1.0, "hidden": 2.0})


def test_a_disc_in_millimetres_is_an_ellipse_in_indices():
    """A radius of 3 mm is 1.5 rows of 2 mm and 6 columns of 0.5 mm; twice that if hidden."""
    region = region_of(3.0, ROUND)
    for visible, times in ((SEEN, 1), (HIDDEN, 2)):
        around = region.around(one_point((0, 0), visible=visible).predicted, WIDE)
        assert around.regions[0, 0] == pytest.approx(np.diag([1.5**2, 6.0**2]) * times**2)
        assert WIDE.semi_axes(around.regions[0, 0]) == pytest.approx([3 * times, 3 * times])
    for error, held in (((1.5, 0), True), ((0, 6.0), True), ((1.51, 0), False), ((0, 6.1), False)):
        (pair,) = paired_points([one_point(error)], 0.0)
        assert region.holds(pair) == held and region.radius(pair) == pytest.approx(3.0)


def test_an_ellipse_follows_the_covariance_and_its_floor():
    """Variances of 1 row and 16 columns are 4 mm2 both ways round: sd 2 mm, and 3 mm2 of floor make 7 mm2."""
    shape = RegionShape(kind="spread", floor=np.sqrt(3.0), widths={"seen": 1.0, "hidden": 1.0})
    case = one_point((0, 0), covariance=np.diag([1.0, 16.0]))
    around = region_of(2.0, shape).around(case.predicted, WIDE)
    assert WIDE.semi_axes(around.regions[0, 0]) == pytest.approx([2 * np.sqrt(7)] * 2)
    with pytest.raises(InputError, match="expected one for each landmark, got none"):
        region_of(2.0, shape).around(one_point((0, 0)).predicted, WIDE)


def test_a_sheared_grid_has_the_same_lengths():
    """Errors and regions are measured in the world, whatever the axes."""
    affine = WIDE.affine.copy()
    affine[:3, 1] += 0.7 * affine[:3, 2]
    sheared = Grid(shape=WIDE.shape, affine=affine, unit="mm")
    (pair,) = paired_points([one_point((1.0, -2.0), grid=sheared)], 0.0)
    step = affine[:3, 1] - 2 * affine[:3, 2]
    assert np.linalg.norm(pair.error) == pytest.approx(np.linalg.norm(step))
    around = region_of(3.0, ROUND).around(one_point((0, 0), grid=sheared).predicted, sheared)
    assert sheared.semi_axes(around.regions[0, 0]) == pytest.approx([3.0, 3.0])


def test_the_factor_is_the_conformal_quantile():
    """19 groups at alpha 0.1: the 18th smallest of the needed radii, (n + 1)(1 - alpha) = 18."""
    radii = np.arange(1, 20) / 2
    points = paired_points([one_point((0, 2 * r), group=f"g{r}") for r in radii], 0.0)
    unit = RegionShape(kind="constant", floor=0.0, widths={"seen": 1.0, "hidden": 1.0})
    fitted = fit_region(
        points, [p.group for p in points] + ["empty"], unit,
        guarantee="object", alpha=0.1, length_unit="mm", data=DATA,
    )  # fmt: skip
    assert fitted.factor == pytest.approx(9.0) and fitted.n == 19 and fitted.without == 1
    assert fitted.typical == pytest.approx(9.0) and sum(map(fitted.holds, points)) == 18
    assert PointRegion.from_data(fitted.to_data()) == fitted
    with pytest.raises(InputError, match="needs 19 calibration groups, 18 reach"):
        fit_region(points[1:], ["x"], unit, guarantee="object", alpha=0.05, length_unit="mm", data=DATA)


def test_regions_go_with_the_points_through_matrices_and_planes():
    around = region_of(3.0, ROUND).around(one_point((0, 0)).predicted, WIDE)
    turn = np.array([[0.0, 2, 0], [3, 0, 0], [0, 0, 1]])
    moved = around.moved(turn)
    assert moved.regions[0, 0] == pytest.approx(np.diag([4 * 36, 9 * 2.25]))
    assert around.select([0]).regions == pytest.approx(around.regions)
    with pytest.raises(ValueError, match="regions has shape"):
        replace(around, regions=np.zeros((1, 1, 3, 3)))


@pytest.mark.parametrize("grid", [FLAT, DEEP], ids=["plane", "space"])
def test_over_30_splits_95_per_cent_of_the_points_lie_in_their_regions(grid):
    """Within 3 points, of those seen and of those hidden if the network says so; hidden ones are wider."""
    drawn = PointSet(150, grid, seed=1)
    held, radii = [], []
    points = {}
    for case in drawn.cases:
        image, reference = drawn.read(case)
        ours = drawn(image).instances.landmarks
        seen = ObservedPoints(group=case.group, predicted=ours, reference=reference.landmarks, grid=grid)
        points.setdefault(case.group, []).extend(paired_points([seen], 0.5))
    groups = sorted(points)
    for split in range(30):
        order = np.random.default_rng(split).permutation(len(groups))
        fit, margin, fresh = (
            [p for k in order[a:b] for p in points[groups[k]]] for a, b in ((0, 30), (30, 100), (100, 150))
        )
        shape = choose_shape(fit, "object", 0.05, 0.6)
        region = fit_region(
            margin, {p.group for p in margin}, shape,
            guarantee="object", alpha=0.05, length_unit="mm", data=DATA,
        )  # fmt: skip
        parts = [fresh, [p for p in fresh if p.seen], [p for p in fresh if not p.seen]]
        held.append([np.mean([region.holds(p) for p in part]) for part in parts])
        radii.append([np.median([region.radius(p) for p in part]) for part in parts[1:]])
    assert np.abs(np.mean(held, axis=0) - 0.95).max() < 0.03, np.mean(held, axis=0)
    seen, hidden = np.mean(radii, axis=0)
    assert hidden > 1.6 * seen


@pytest.fixture(scope="module")
def found():
    drawn = PointSet(90, seed=3)
    asked = Asked(region_limit=5.0)
    calibration, margin_cases = calibrated(drawn, drawn.of(range(60)), asked)
    judgement = judged(drawn, drawn.of(range(60, 90)), calibration, margin_cases, asked)
    return drawn, calibration, judgement


def test_calibrate_fits_and_judges_regions(found, tmp_path):
    _, calibration, judgement = found
    assert not calibration.margins and not calibration.refused and calibration.misses is None
    assert [(p.guarantee, p.alpha) for p in calibration.points] == [("object", 0.05), ("group", 0.05)]
    assert calibration.groups == {"fit": 18, "margin": 42} and calibration.length_unit == "mm"
    row = judgement.points[0]
    assert row.region == calibration.applied_points() and row.groups == 30
    assert row.covered.low <= row.covered.estimate <= row.covered.high and len(row.over_splits) == 100
    assert next(s.name for s in row.strata) == "all" and {s.name for s in row.strata} == {
        "all", "point = apex", "point = entry", "visibility = seen", "visibility = hidden"
    }  # fmt: skip
    assert row.strata[0].covered == round(shares(judgement)[0] * row.strata[0].points)
    assert not judgement.failures and judgement.doubts(calibration) == ()
    figures = figures_of(judgement)
    assert "landmark_coverage_over_splits" in figures
    write_calibration(tmp_path, calibration, judgement, figures)
    text = report_text(calibration, judgement)
    assert str(calibration.points[0])[1:] in text and "over 5 mm: stated" not in text
    assert "reaches farther than 5 mm: stated" in text and "IoU" not in text and "pairwise_dice" not in text
    assert "On 30 other patients (landmarks)" in text and "visibility = hidden" in text
    assert {"landmarks.csv", "landmark_strata.csv", "report.md"} <= {f.name for f in tmp_path.iterdir()}
    assert {"headline/landmark_radius", "headline/coverage_landmarks"} <= set(
        metrics_of(calibration, judgement)
    )


def test_the_record_survives_its_file_and_an_edit_is_refused(found, tmp_path):
    _, calibration, _ = found
    path = save_calibration(tmp_path, calibration)
    assert load_calibration(tmp_path, "none", calibration.weights_sha256) == calibration
    factor = repr(calibration.points[0].factor)
    assert factor in path.read_text()
    path.write_text(path.read_text().replace(factor, "0.5", 1))
    with pytest.raises(Exception, match="has changed since"):
        load_calibration(tmp_path, "none", calibration.weights_sha256)


def test_a_prediction_gets_regions_and_referrals(found):
    drawn, calibration, _ = found
    image, _ = drawn.read(drawn.cases[-1])
    prediction = drawn(image)
    thresholds = calibration.thresholds
    done = assess(prediction, image, calibration, thresholds=thresholds)
    landmarks = done.prediction.instances.landmarks
    assert done.promised and np.isfinite(landmarks.regions[landmarks.visible > 0]).all()
    radii = {
        (i, k): image.grid.semi_axes(landmarks.regions[i, k])[-1]
        for i, k in np.argwhere(landmarks.visible > 0)
    }
    assert set(done.point_reasons) == {place for place, radius in radii.items() if radius > 5.0}
    assert all("over 5 mm" in why for why in done.point_reasons.values())
    # a case unlike the calibration cases has none, and refers no point
    foreign = replace(image, pixels=image.pixels + 1000)
    other = assess(prediction, foreign, calibration, thresholds=thresholds)
    assert not other.promised and other.prediction.instances.landmarks.regions is None
    assert not other.point_reasons and LABELS.points == TYPES

"""The calibration of a model: what it does to a prediction, its record, and inputs with little or nothing in them."""

from dataclasses import replace

import numpy as np
import pytest
import yaml
from calibrated import COARSE, MADE_BY, calibrated, drawn_set
from hypothesis import given
from hypothesis import strategies as st

from clearmargin.core import Grid, InstanceSet, Prediction, Thresholds
from clearmargin.errors import ConfigError, InputError
from clearmargin.report.calibration import report_text
from clearmargin.uncertainty.calibration import Calibration, load_calibration, save_calibration
from clearmargin.uncertainty.chosen import ChosenScaling, fit_scaling
from clearmargin.uncertainty.fitting import Asked
from clearmargin.uncertainty.margins import fit_margin
from clearmargin.uncertainty.needed import Promise
from clearmargin.uncertainty.observed import needs_of
from clearmargin.uncertainty.reach import EdgeScale
from clearmargin.uncertainty.referral import ReferralRules
from clearmargin.uncertainty.scaling import Temperature


@pytest.fixture(scope="module")
def drawn():
    return drawn_set(44)


@pytest.fixture(scope="module")
def fitted(drawn):
    return calibrated(drawn)


def test_the_record_survives_its_file(fitted, tmp_path):
    calibration, _ = fitted
    path = save_calibration(tmp_path, calibration)
    assert path == tmp_path / "calibration" / "checkpoints.yaml"
    assert load_calibration(tmp_path, "checkpoints", MADE_BY.weights_sha256) == calibration
    assert load_calibration(tmp_path, "none", MADE_BY.weights_sha256) is None
    with pytest.raises(InputError, match="of other weights"):
        load_calibration(tmp_path, "checkpoints", "c" * 64)
    path.write_text("mode: checkpoints\n")
    with pytest.raises(ConfigError, match="no calibration"):
        load_calibration(tmp_path, "checkpoints", MADE_BY.weights_sha256)


def test_margins_are_those_of_the_margin_units_alone(fitted):
    calibration, margin_cases = fitted
    assert calibration.units == {"fit": 13, "margin": 31}
    units = {case.unit for case in margin_cases}
    assert len(calibration.margins) == 2 * 2 * 2 + 2 + 2 * 2  # sides, shares, alphas; of the area; scaled
    for margin in calibration.margins:
        needs = needs_of(margin_cases, margin.promise, calibration.threshold)
        again = fit_margin(needs, units, margin.promise, margin.alpha, margin.data)
        assert again == margin


def test_what_it_does_to_a_prediction(drawn, fitted):
    calibration, _ = fitted
    case = drawn.cases[0]
    image, reference = drawn.read(case)
    before = drawn(image)
    after = calibration.apply(before)
    assert after.instances.masks == before.instances.masks and len(after.edges) == len(before.edges)
    columns = after.instances.uncertainty
    outer, inner = calibration.margin("outer"), calibration.margin("inner")
    assert outer.alpha == 0.2 and outer.promise == Promise()
    assert np.allclose(columns["margin_outer_mm"], outer.value) and np.allclose(
        columns["margin_inner_mm"], inner.value
    )
    cell = before.instances.grid.voxel_size
    for i, mask in enumerate(before.instances.masks):
        grown, shrunk = (calibration.region(before, i, side) for side in ("outer", "inner"))
        assert columns["outer_area_mm2"][i] == pytest.approx(grown.area * cell)
        assert columns["inner_area_mm2"][i] == pytest.approx(shrunk.area * cell)
        assert columns["inner_area_mm2"][i] <= mask.area * cell <= columns["outer_area_mm2"][i]
        scaled = calibration.margin("outer", scaled=True)
        assert scaled.promise.floor is not None and grown.area > mask.area
    inside = before.maps["foreground"] > 0.99
    said, right = (
        after.maps["foreground"][inside].mean(),
        np.any([m.dense() for m in reference.masks], 0)[inside],
    )
    assert abs(said - right.mean()) < abs(0.999 - right.mean())  # it was too sure
    assert after.maps["entropy"][inside].min() > 0  # follows the scaled map
    first = before.instances.masks[0]
    assert columns["mean_entropy"][0] == pytest.approx(after.maps["entropy"][first.slices][first.crop].mean())


def test_predicted_nsd_becomes_what_was_measured(drawn, fitted):
    calibration, margin_cases = fitted
    after = [calibration.apply(drawn(drawn.read(case)[0])).instances for case in drawn.cases]
    said = np.mean([v for instances in after for v in instances.uncertainty["predicted_nsd"]])
    right = np.mean([one.nsd for case in margin_cases for one in case.instances if one.matched])
    assert said == pytest.approx(right, abs=0.02)


@given(
    temperature=st.floats(0.05, 20),
    scores=st.lists(st.floats(0, 1, width=32), min_size=2, max_size=20),
)
def test_a_temperature_keeps_the_order_of_scores(fitted, temperature, scores):
    heat = Temperature(temperature=temperature, n=1, nll_before=0, nll_after=0, at_limit=False)
    scaling = ChosenScaling(chosen="temperature", why="", temperature=heat, isotonic=heat)
    calibration = replace(fitted[0], scores=scaling, margins=())
    grid = Grid.from_spacing((4, 4), (1, 1))
    instances = InstanceSet.from_dense(grid, [np.eye(4)] * len(scores), scores=scores)
    prediction = Prediction(instances=instances, label_map=None, provenance=MADE_BY)
    after = calibration.apply(prediction).instances.scores
    order = np.argsort(instances.scores, kind="stable")
    assert (np.diff(after[order]) >= 0).all() and 0 <= after.min() <= after.max() <= 1


def test_strata_have_their_own_margins_or_a_reason(drawn):
    asked = Asked(alphas=(0.1,), shares=(1.0,), by=("class", "size"))
    calibration, _ = calibrated(drawn, asked=asked)
    strata = {m.stratum for m in calibration.margins} - {"all"}
    refused = [r for r in calibration.refused if "stratum" in r.what]
    assert strata and refused  # six strata of 31 units: not each of them has nine
    assert all("% at best" in r.why for r in refused)
    own = next(m for m in calibration.margins if m.stratum in strata and m.promise.side == "outer")
    assert calibration.margin("outer", own.stratum) == own
    assert calibration.margin("outer", "nothing like it").stratum == "all"
    scaled = {m.stratum: m for m in calibration.margins if m.promise.floor and m.promise.side == "outer"}
    assert strata & scaled.keys()
    prediction = drawn(drawn.read(drawn.cases[0])[0])
    for i, mask in enumerate(prediction.instances.masks):  # by its stratum's, where that has one
        margin = scaled.get(calibration.strata.of(prediction.instances, i), scaled["all"])
        edge = prediction.edges[i]
        scale = EdgeScale(points=edge.points, sigma=edge.sigma, floor=margin.promise.floor)
        region = margin.region(mask, prediction.instances.grid, scale)
        assert (region.dense() == calibration.region(prediction, i, "outer").dense()).all()
        assert margin in calibration.applied("outer")
    assert {m.stratum for m in calibration.applied("outer")} == scaled.keys()
    read = Calibration.from_data(calibration.to_data())
    assert read.strata == calibration.strata and read == calibration


def test_pixels_and_millimetres_are_not_mixed(drawn, fitted):
    calibration, _ = fitted
    in_pixels = drawn_set(1, replace(COARSE, spacing=None, radius=(5, 8)))
    with pytest.raises(InputError, match="calibrated on images in mm and this one is in px"):
        calibration.apply(in_pixels(in_pixels.read(in_pixels.cases[0])[0]))
    drawn_px = drawn_set(24, replace(COARSE, spacing=None, radius=(5, 8), blurred=2, floor=1))
    found, _ = calibrated(drawn_px)
    assert found.length_unit == "px" and "in pixels" in str(found.margins[0])
    mixed = drawn_set(12)
    mixed._held |= {f"case-{k:03d}": drawn_px._held[f"case-{k:03d}"] for k in range(6)}
    with pytest.raises(InputError, match="some calibration images are in mm and others in px"):
        calibrated(mixed)


def test_one_unit_cannot_be_divided(drawn):
    with pytest.raises(InputError, match="1 unit"):
        calibrated(drawn, drawn.cases[:1])


def test_too_few_units_are_refused_with_how_many_are_needed(drawn):
    """Alpha 0.2 needs 4 units for margins; of 5 units 3 are for margins."""
    with pytest.raises(InputError, match=r"alpha 0.2 needs 4 patient units .* of the 5 .* add about 2"):
        calibrated(drawn, drawn.cases[:5])


def test_an_alpha_that_few_units_do_not_reach_is_said_once(drawn, caplog):
    """Five units for margins reach alpha 0.2 and not 0.1."""
    with caplog.at_level("WARNING"):
        calibration, _ = calibrated(drawn, drawn.cases[:7])
    said = [r.message for r in caplog.records if "no promise at alpha" in r.message]
    assert said == ["no promise at alpha 0.1: it needs 9 patient units for margins, there are 5"]
    assert {m.alpha for m in calibration.margins} == {0.2}
    lines = report_text(calibration, None).split("## Refused\n\n")[1].splitlines()
    assert len(lines) < len(calibration.refused)


def test_few_events_leave_probabilities_as_they_are():
    """Twelve events, told apart without an error: a temperature at its limit would turn 0.58 into 0.998."""
    from clearmargin.metrics.calibration import Reliability

    scores = np.array([0.55, 0.58, 0.6, 0.62, 0.7, 0.72, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45])
    units = [Reliability.of(scores[k::3], scores[k::3] > 0.5) for k in range(3)]
    scaling = fit_scaling(units)
    assert (
        scaling.chosen == "none"
        and "12 events, of which 6 came true, are too few: 50 are needed" in scaling.why
    )
    np.testing.assert_array_equal(scaling.apply(scores), scores)


def test_a_temperature_at_its_limit_is_not_used():
    from clearmargin.metrics.calibration import Reliability

    rng = np.random.default_rng(1)
    units = []
    for _ in range(6):
        p = np.concatenate([rng.uniform(0.51, 0.6, 40), rng.uniform(0.4, 0.49, 40)])
        units.append(Reliability.of(p, p > 0.5))
    scaling = fit_scaling(units)
    assert scaling.temperature.at_limit and scaling.chosen != "temperature"
    assert "lies at the end of its range and is not used" in scaling.why


def test_a_scaling_that_makes_other_units_worse_is_not_applied():
    """Every other unit is too sure, those between too unsure: what fits one half makes the other worse."""
    from clearmargin.metrics.calibration import Reliability

    rng = np.random.default_rng(2)
    units = []
    for k in range(6):
        p = rng.uniform(0.05, 0.95, 400)
        logit = np.log(p / (1 - p)) * (2.5 if k % 2 else 0.4)
        units.append(Reliability.of(1 / (1 + np.exp(-logit)), rng.uniform(size=400) < p))
    assert fit_scaling(units).chosen == "none"


def nothing(prediction):
    return replace(prediction, instances=InstanceSet.empty(prediction.instances.grid), edges=())


def test_a_model_that_finds_nothing_is_refused():
    with pytest.raises(InputError, match="found nothing in 4 calibration cases"):
        calibrated(drawn_set(12).change(nothing))


def test_an_image_without_an_instance(drawn, fitted):
    after = fitted[0].apply(nothing(drawn(drawn.read(drawn.cases[0])[0])))
    assert len(after.instances) == 0 and after.instances.uncertainty["margin_outer_mm"].shape == (0,)


def test_without_edges_and_maps_there_is_one_margin_all_around():
    plain, _ = calibrated(drawn_set(24, edges=False, maps=False), mode="none")
    assert plain.pixels is None and all(m.promise.floor is None for m in plain.margins)
    assert plain.margin("outer", scaled=True) is None and plain.margin("outer") is not None


def test_an_all_certain_model_has_the_margin_of_one_that_is_not_scaled():
    def certain(prediction):
        return replace(
            prediction, edges=tuple(replace(e, sigma=np.zeros(len(e.sigma))) for e in prediction.edges)
        )

    sure = drawn_set(24).change(certain)
    calibration, _ = calibrated(sure)
    plain, scaled = calibration.margin("outer"), calibration.margin("outer", scaled=True)
    assert scaled.value * scaled.promise.floor == pytest.approx(plain.value)
    prediction = sure(sure.read(sure.cases[0])[0])
    grown = plain.region(prediction.instances.masks[0], prediction.instances.grid)
    assert calibration.region(prediction, 0, "outer").area == grown.area


def test_an_instance_in_one_member_only_has_the_floor_as_scale(drawn, fitted):
    prediction = drawn(drawn.read(drawn.cases[0])[0])
    alone = replace(prediction, edges=tuple(replace(e, sigma=0 * e.sigma) for e in prediction.edges))
    scaled = fitted[0].margin("outer", scaled=True)
    grid = prediction.instances.grid
    one = replace(scaled, value=scaled.value * scaled.promise.floor, promise=Promise())
    expected = one.region(prediction.instances.masks[0], grid)
    assert fitted[0].region(alone, 0, "outer").area == expected.area


def test_drift_is_seen_on_other_intensities(drawn, fitted):
    calibration, _ = fitted
    images = [drawn.read(case)[0] for case in drawn.cases]
    alike = [calibration.features(image, drawn(image)) for image in images]
    assert not calibration.drift(alike).warnings
    brighter = [calibration.features(replace(i, pixels=3 * i.pixels), drawn(i)) for i in images]
    assert calibration.drift(brighter).warnings
    # what lies under the threshold is not counted: predict may return it or not
    low = replace(calibration, threshold=1.0).features(images[0], drawn(images[0]))
    assert low["instances"] == 0 and "mean score" not in low


def test_misses_and_the_threshold_that_margins_hold_from(drawn, fitted):
    calibration, _ = fitted
    # 13 fit units reach 1 / 14: both alphas are had, at the lowest score that keeps them
    assert {m.alpha for m in calibration.misses} == {0.2, 0.1}
    of_misses = next(m.threshold for m in calibration.misses if m.alpha == 0.2)
    # what `predict` returns has a margin, and so has what the promise on misses needs
    assert calibration.threshold == min(calibration.scores.least(calibration.thresholds.lowest), of_misses)


def test_the_scores_that_are_shown_are_the_scores_that_are_filtered(drawn, fitted):
    """A temperature that lowers a score of 0.6 to under 0.5: what was above the threshold as predicted goes."""
    heat = Temperature(temperature=4.0, n=1, nll_before=0, nll_after=0, at_limit=False)
    scaling = ChosenScaling(chosen="temperature", why="", temperature=heat, isotonic=heat)
    low = Temperature(temperature=0.25, n=1, nll_before=0, nll_after=0, at_limit=False)
    before = drawn(drawn.read(drawn.cases[0])[0])
    half = 0.5 + 0.4 * np.arange(len(before.instances)) / len(before.instances)
    before = replace(before, instances=replace(before.instances, scores=half.astype(np.float32)))
    calibration = replace(fitted[0], scores=scaling)
    logits = np.log(half / (1 - half)) / 4  # by hand
    shown = 1 / (1 + np.exp(-logits))
    limit = float(np.median(shown))
    after = calibration.apply(before, Thresholds(limit))
    np.testing.assert_allclose(after.instances.scores, shown[shown >= limit], rtol=1e-5)
    assert len(after.outer) == len(after.edges) == len(after.instances) < len(before.instances)
    assert len(calibration.apply(before).instances) == len(before.instances)
    assert scaling.least(limit) == pytest.approx(np.median(half), abs=2e-4)
    sharp = replace(scaling, temperature=low)
    assert sharp.least(1.0) <= 1.0 and replace(scaling, chosen="none").least(0.3) == 0.3


def test_the_thresholds_of_a_calibration_are_kept_with_it(fitted):
    calibration = replace(fitted[0], thresholds=Thresholds(0.4, {1: 0.61, 2: 0.3}))
    again = Calibration.from_data(yaml.safe_load(yaml.safe_dump(calibration.to_data())))
    assert again.thresholds == calibration.thresholds


def test_limits_of_referral_are_fitted(fitted):
    referral = fitted[0].referral
    assert isinstance(referral, ReferralRules) and set(referral.fitted) == {
        "pairwise_dice", "predicted_nsd", "score",
    }  # fmt: skip


def test_the_better_scaling_is_chosen_by_units_it_was_not_fitted_on():
    from clearmargin.metrics.calibration import Reliability

    rng = np.random.default_rng(0)
    shifted, hot = [], []
    for _ in range(8):
        p = rng.uniform(0, 1, 400)
        shifted.append(Reliability.of(p, rng.uniform(size=400) < 0.1 + 0.3 * (p > 0.7)))
        logit = np.log(p / (1 - p))
        hot.append(Reliability.of(1 / (1 + np.exp(-2.5 * logit)), rng.uniform(size=400) < p))
    assert fit_scaling(shifted).chosen == "isotonic"
    found = fit_scaling(hot)
    assert found.chosen == "temperature" and found.temperature.temperature == pytest.approx(2.5, rel=0.1)
    assert fit_scaling(hot[:1]).chosen == "none" and "two are needed" in fit_scaling(hot[:1]).why
    assert fit_scaling([]).chosen == "none"

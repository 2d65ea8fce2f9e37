"""The calibration of a model: what it does to a prediction, its record, and inputs with little or nothing in them."""

from dataclasses import replace

import numpy as np
import pytest
import yaml
from calibrated import ASKED, COARSE, MADE_BY, calibrated, drawn_set
from hypothesis import given
from hypothesis import strategies as st

from clearmargin.core import Grid, InstanceSet, Prediction, Thresholds
from clearmargin.errors import ConfigError, InputError
from clearmargin.margins.assessment import assess
from clearmargin.margins.calibration import Calibration, load_calibration, save_calibration
from clearmargin.margins.guarantees import GUARANTEES
from clearmargin.margins.margins import BOTH, fit_margin
from clearmargin.margins.observations import matched_objects, object_features
from clearmargin.margins.referral import ReferralRules
from clearmargin.margins.scaling import Temperature
from clearmargin.margins.scaling_choice import ChosenScaling, fit_scaling
from clearmargin.metrics.calibration import Reliability
from clearmargin.report.calibration import metrics_of, report_text


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
    earlier = calibration.to_data() | {"misses": [], "strata": {}}
    for content in ({"mode": "checkpoints"}, earlier):
        path.write_text(yaml.safe_dump(content))
        with pytest.raises(ConfigError, match=r"earlier version.*calibrate` again"):
            load_calibration(tmp_path, "checkpoints", MADE_BY.weights_sha256)


def test_margins_are_those_of_the_margin_groups_alone(fitted):
    calibration, margin_cases = fitted
    assert calibration.groups == {"fit": 13, "margin": 31}
    groups = {case.group for case in margin_cases}
    assert [(m.alpha, m.guarantee, m.sides) for m in calibration.margins] == [
        (alpha, guarantee, sides) for alpha in (0.2, 0.1) for guarantee in GUARANTEES for sides in BOTH
    ]
    objects = matched_objects(margin_cases, calibration.thresholds, calibration.match_iou)
    for margin in calibration.margins:
        again = fit_margin(
            objects, groups, margin.width, guarantee=margin.guarantee, sides=margin.sides, alpha=margin.alpha,
            length_unit="mm", match_iou=0.6, data=margin.data,
        )  # fmt: skip
        assert again == margin


def test_what_it_does_to_a_prediction(drawn, fitted):
    calibration, _ = fitted
    case = drawn.cases[0]
    image, reference = drawn.read(case)
    before = drawn(image)
    after = calibration.apply(before)
    assert after.instances.masks == before.instances.masks and len(after.edges) == len(before.edges)
    columns = after.instances.uncertainty
    grid = before.instances.grid
    assert {(m.sides, m.alpha, m.guarantee) for m in calibration.applied()} == {
        ("outer", 0.2, "object"),
        ("inner", 0.2, "object"),
    }
    for i, mask in enumerate(before.instances.masks):
        for side, more in (("outer", True), ("inner", False)):
            # one margin a row: its length, its region and its size are the same margin's
            margin, edge = calibration.margin(side), before.edges[i]
            known = object_features(before, i)
            region = margin.region(mask, grid, side, known, edge)
            assert (region.dense() == calibration.region(before, i, side).dense()).all()
            assert columns[f"{side}_area_mm2"][i] == pytest.approx(region.area * grid.voxel_size)
            assert columns[f"margin_{side}_mm"][i] == pytest.approx(margin.length(side, known, edge))
            assert (region.area > mask.area) == more
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


def test_a_promise_about_both_sides_applies_one_pair(drawn):
    calibration, _ = calibrated(drawn, asked=replace(ASKED, alphas=(0.2,), sides="both", promise="group"))
    (pair,) = calibration.applied()
    assert pair.sides == "both" and pair.guarantee == "group"
    assert calibration.margin("outer") == calibration.margin("inner") == pair
    columns = calibration.apply(drawn(drawn.read(drawn.cases[0])[0])).instances.uncertainty
    assert (columns["inner_area_mm2"] < columns["outer_area_mm2"]).all()
    assert "between the predicted one shrunk by its inner margin and grown by its outer" in str(pair)


def test_pixels_and_millimetres_are_not_mixed(drawn, fitted):
    calibration, _ = fitted
    in_pixels = drawn_set(1, replace(COARSE, spacing=None, radius=(5, 8)))
    with pytest.raises(InputError, match="calibrated on images in mm and this one is in px"):
        calibration.apply(in_pixels(in_pixels.read(in_pixels.cases[0])[0]))
    drawn_px = drawn_set(24, replace(COARSE, spacing=None, radius=(5, 8), blurred=2, floor=1))
    found, _ = calibrated(drawn_px)
    assert found.length_unit == "px" and "px (the images have no spacing)" in str(found.margins[0])
    mixed = drawn_set(12)
    mixed._held |= {f"case-{k:03d}": drawn_px._held[f"case-{k:03d}"] for k in range(6)}
    with pytest.raises(InputError, match="calibration images in mm and others in px"):
        calibrated(mixed)


def test_one_group_cannot_be_divided(drawn):
    with pytest.raises(InputError, match="1 group"):
        calibrated(drawn, drawn.cases[:1])


def test_too_few_groups_are_refused_with_how_many_are_needed(drawn):
    """Alpha 0.2 needs 4 groups for margins; of 5 groups 3 are for margins."""
    with pytest.raises(InputError, match=r"alpha 0.2 needs 4 patients .* of the 5 .* add about 2"):
        calibrated(drawn, drawn.cases[:5])


def test_an_alpha_that_few_groups_do_not_reach_is_said_once(drawn, caplog):
    """Five groups for margins reach alpha 0.2 and not 0.1."""
    with caplog.at_level("WARNING"):
        calibration, _ = calibrated(drawn, drawn.cases[:7])
    said = [r.message for r in caplog.records if "no promise at alpha" in r.message]
    assert said == ["no promise at alpha 0.1: it needs 9 patients for margins, got 5"]
    assert {m.alpha for m in calibration.margins} == {0.2}
    lines = report_text(calibration, None).split("## Refused\n\n")[1].splitlines()
    assert len(lines) < len(calibration.refused)


def test_few_events_leave_probabilities_as_they_are():
    """Twelve events, told apart without an error: a temperature at its limit would turn 0.58 into 0.998."""
    from clearmargin.metrics.calibration import Reliability

    scores = np.array([0.55, 0.58, 0.6, 0.62, 0.7, 0.72, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45])
    groups = [Reliability.of(scores[k::3], scores[k::3] > 0.5) for k in range(3)]
    scaling = fit_scaling(groups)
    assert (
        scaling.chosen == "none"
        and "12 events, of which 6 came true, are too few: 50 are needed" in scaling.why
    )
    np.testing.assert_array_equal(scaling.apply(scores), scores)


def test_a_temperature_at_its_limit_is_not_used():
    from clearmargin.metrics.calibration import Reliability

    rng = np.random.default_rng(1)
    groups = []
    for _ in range(6):
        p = np.concatenate([rng.uniform(0.51, 0.6, 40), rng.uniform(0.4, 0.49, 40)])
        groups.append(Reliability.of(p, p > 0.5))
    scaling = fit_scaling(groups)
    assert scaling.temperature.at_limit and scaling.chosen != "temperature"
    assert "lies at the end of its range and is not used" in scaling.why


def test_a_scaling_that_makes_other_groups_worse_is_not_applied():
    """Every other group is too sure, those between too unsure: what fits one half makes the other worse."""
    from clearmargin.metrics.calibration import Reliability

    rng = np.random.default_rng(2)
    groups = []
    for k in range(6):
        p = rng.uniform(0.05, 0.95, 400)
        logit = np.log(p / (1 - p)) * (2.5 if k % 2 else 0.4)
        groups.append(Reliability.of(1 / (1 + np.exp(-logit)), rng.uniform(size=400) < p))
    assert fit_scaling(groups).chosen == "none"


def nothing(prediction):
    return replace(prediction, instances=InstanceSet.empty(prediction.instances.grid), edges=())


def test_a_model_that_finds_nothing_is_refused():
    with pytest.raises(InputError, match="found nothing in 4 calibration cases"):
        calibrated(drawn_set(12).change(nothing))


def test_an_image_without_an_instance(drawn, fitted):
    after = fitted[0].apply(nothing(drawn(drawn.read(drawn.cases[0])[0])))
    assert len(after.instances) == 0 and after.instances.uncertainty["margin_outer_mm"].shape == (0,)


def test_without_edges_and_maps_no_margin_follows_the_edge():
    plain, _ = calibrated(drawn_set(24, edges=False, maps=False), mode="none")
    assert plain.pixels is None and all(m.width.kind != "edge" for m in plain.margins)
    assert plain.margin("outer") is not None


def test_an_all_certain_model_has_the_margin_of_one_that_does_not_follow_the_edge():
    def certain(prediction):
        return replace(
            prediction, edges=tuple(replace(e, sigma=np.zeros(len(e.sigma))) for e in prediction.edges)
        )

    sure, plain = (drawn_set(24, edges=edges) for edges in (True, False))
    calibration, _ = calibrated(sure.change(certain))
    without, _ = calibrated(plain)
    assert [m.typical["outer"] for m in calibration.margins] == pytest.approx(
        [m.typical["outer"] for m in without.margins],
        rel=0.1,  # the least level of a side is half an element, or half a floor
    )


def test_a_case_unlike_the_calibration_cases_is_referred_once_and_promised_nothing(drawn, fitted):
    calibration, _ = fitted
    images = [drawn.read(case)[0] for case in drawn.cases]
    alarms = [assess(drawn(i), i, calibration, thresholds=Thresholds(0.5)).refer_case for i in images]
    assert (
        sum(map(bool, alarms)) <= 0.05 * 45
    )  # calibration cases themselves, each with a twin: none as a rule
    bright = replace(images[0], pixels=3 * images[0].pixels)
    told = assess(drawn(images[0]), bright, calibration, thresholds=Thresholds(0.5))
    assert len(told.refer_case) == 1 and "looks like no calibration case" in told.refer_case[0]
    assert told.warnings == told.refer_case
    alike = assess(drawn(images[0]), images[0], calibration, thresholds=Thresholds(0.5))
    assert told.reasons == alike.reasons  # no instance is referred for it
    assert not told.prediction.outer and "margin_outer_mm" not in told.prediction.instances.uncertainty
    assert alike.prediction.outer
    # what lies under the threshold is not counted: predict may return it or not
    low = replace(calibration, thresholds=Thresholds(1.0)).features(images[0], drawn(images[0]))
    assert low["instances"] == 0 and "mean score" not in low


def test_the_threshold_is_the_models_own_or_the_one_that_a_promise_of_misses_asks_for(drawn, fitted):
    calibration, _ = fitted
    assert calibration.misses is None and calibration.thresholds == Thresholds(0.5)
    asked = replace(ASKED, miss_alpha=0.2, match_iou=0.5)
    promised, _ = calibrated(drawn, asked=asked, own_thresholds=Thresholds(0.99))
    # A promise about misses is one about instances: landmarks keep the model's own threshold.
    assert promised.thresholds == Thresholds(promised.misses.threshold, points=0.99)
    assert promised.misses.threshold < 0.99
    assert promised.misses.alpha == 0.2 and (13 * promised.misses.risk + 1) / 14 <= 0.2
    never, _ = calibrated(drawn, asked=replace(ASKED, miss_alpha=0.01))
    assert never.misses is None and never.thresholds == Thresholds(0.5)
    assert any("no score threshold keeps misses" in r.why for r in never.refused)


def test_thresholds_are_chosen_anew_if_that_is_asked_for(drawn):
    """By hand: at the chosen threshold of a class, F1 over the fit groups is no lower than at any other."""
    chosen, _ = calibrated(
        drawn, asked=replace(ASKED, threshold_measure="f1"), own_thresholds=Thresholds(0.99)
    )
    assert chosen.thresholds.by_label and chosen.thresholds.lowest < 0.99
    groups = {c.group for c in drawn.cases}
    assert chosen.groups["fit"] < len(groups)


def test_the_scores_that_are_shown_are_the_scores_that_are_filtered(drawn, fitted):
    """A temperature that lowers a score of 0.6 to under 0.5: a threshold on what is shown keeps the same instances."""
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
    after = calibration.apply(calibration.at_least(before, Thresholds(limit)))
    np.testing.assert_allclose(after.instances.scores, shown[shown >= limit], rtol=1e-5)
    assert len(after.outer) == len(after.edges) == len(after.instances) < len(before.instances)
    assert len(calibration.apply(before).instances) == len(before.instances)
    assert scaling.least(limit) == pytest.approx(np.median(half), abs=2e-4)
    assert calibration.shown(Thresholds(float(np.median(half)))).every == pytest.approx(limit, abs=1e-4)
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


def test_the_better_scaling_is_chosen_by_groups_it_was_not_fitted_on():
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


def test_a_scaling_of_pixels_that_makes_the_edge_worse_is_not_applied():
    """All pixels are too sure but for those near the edge, which are right: a temperature spoils these."""
    from clearmargin.metrics.calibration import Reliability

    rng = np.random.default_rng(3)
    groups, judged = [], []
    for _ in range(8):
        p = rng.uniform(0.05, 0.95, 400)
        logit = np.log(p / (1 - p))
        sure = Reliability.of(1 / (1 + np.exp(-2.5 * logit)), rng.uniform(size=400) < p)
        right = Reliability.of(p[:60], rng.uniform(size=60) < p[:60])
        every = Reliability.together([sure, right])
        groups.append(every)
        judged.append({"all pixels": every, "pixels near the edge": right})
    assert fit_scaling(groups).chosen != "none"
    careful = fit_scaling(groups, judged)
    assert careful.chosen == "none" and "of pixels near the edge worse" in careful.why


def test_the_report_states_the_thresholds_of_the_classes(fitted):
    """Of a class with its own threshold, what holds for classes without one is not told."""
    calibration = replace(fitted[0], thresholds=Thresholds(0.5, {1: 0.61, 2: 0.83}))
    assert calibration.thresholds.stated == (0.61, 0.83) and Thresholds(0.4).stated == (0.4, 0.4)
    text = report_text(calibration)
    assert (
        "from a score of 0.61 as predicted" in text and "by class" in text and "0.5 as predicted" not in text
    )
    assert metrics_of(calibration, None)["headline/threshold"] == 0.61


@pytest.mark.parametrize(
    ("edit", "into"),
    [("alpha: 0.1", "alpha: 0.01"), ("every: ", "every: 0.9  # "), ("match_iou: ", "match_iou: 0.51  # ")],
)
def test_an_edited_calibration_is_refused(fitted, tmp_path, edit, into):
    """Its sentences would promise what was not calibrated; a comment or another layout changes nothing."""
    calibration, _ = fitted
    path = save_calibration(tmp_path, calibration)
    text = path.read_text()
    path.write_text(f"# looked at\n{text}")
    assert load_calibration(tmp_path, "checkpoints", MADE_BY.weights_sha256) == calibration
    assert edit in text
    path.write_text(text.replace(edit, into, 1))
    with pytest.raises(ConfigError, match="has changed since"):
        load_calibration(tmp_path, "checkpoints", MADE_BY.weights_sha256)


def test_a_rising_function_of_few_events_is_not_tried_and_never_gives_0_or_1():
    rng = np.random.default_rng(0)

    def events(n):
        scores = rng.uniform(0, 1, n)
        groups = []
        for part in np.array_split(np.arange(n), 10):
            counts = Reliability.zeros()
            counts.add(scores[part], rng.uniform(0, 1, len(part)) < scores[part] ** 3)
            groups.append(counts)
        return groups

    few, many = fit_scaling(events(120)), fit_scaling(events(4000))
    assert "isotonic" not in few.why and few.chosen != "isotonic"
    assert many.chosen == "isotonic" and min(many.isotonic.values) > 0 and max(many.isotonic.values) < 1

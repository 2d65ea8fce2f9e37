"""Drift: as seldom wrong as it states on cases of the same kind, rare ones too; it says what differs on others."""

import json

import numpy as np
import pytest

from clearmargin.errors import ConfigError, InputError
from clearmargin.margins.drift import (
    KnownCases,
    case_features,
    check_drift,
    false_alarms,
    foreign_p_value,
    known_cases,
)


def cases(n, seed, *, brightness=0.0, sure=8.0):
    rng = np.random.default_rng(seed)
    return [
        case_features(
            rng.normal(100 + rng.normal(0, 5) + brightness, 20, (40, 40)),
            rng.beta(sure, 2, rng.integers(1, 9)),
        )
        for _ in range(n)
    ]


def groups(n):
    return [f"p{k}" for k in range(n)]


KNOWN = known_cases(cases(80, 0), groups(80))


def two_stains(rng, n, rare=0.2):
    """Points of a common stain close together, and of a rare one far away and four times as far apart."""
    kind = rng.random(n) < rare
    places = np.where(kind[:, None], rng.normal(200, 20, (n, 2)), rng.normal(50, 5, (n, 2)))
    features = [{"intensity p05": float(a), "intensity p50": float(b)} for a, b in places]
    return features, [{"stain": "rare" if k else "common"} for k in kind]


def test_one_in_twenty_cases_of_the_same_kind_is_warned_of_and_the_rare_kind_not_more():
    rng = np.random.default_rng(0)
    warned, rare = [], []
    for _ in range(60):
        known, _ = two_stains(rng, 60)
        fresh, strata = two_stains(rng, 30)
        warned += false_alarms(known_cases(known, groups(60)), fresh)
        rare += [s["stain"] == "rare" for s in strata]
    warned, rare = np.array(warned), np.array(rare)
    assert 0.02 < warned.mean() < 0.06  # 1,800 cases: a standard deviation of 0.005, and 3 of 61 is 0.049
    assert warned[rare].mean() < 0.12


def test_p_values_of_cases_of_the_same_kind_are_uniform():
    rng = np.random.default_rng(1)
    values = []
    for _ in range(300):
        points = [{"intensity p50": float(v)} for v in rng.gamma(2, 20, 40)]
        values.append(foreign_p_value(known_cases(points[:39], groups(39)), points[39]))
    for level in (0.05, 0.1, 0.25, 0.5, 0.75):
        assert np.mean(np.array(values) <= level) == pytest.approx(level, abs=0.08)


def test_a_stain_that_was_not_calibrated_on_is_warned_of():
    rng = np.random.default_rng(2)
    known, _ = two_stains(rng, 60, rare=0.0)
    fresh, _ = two_stains(rng, 30, rare=1.0)
    assert all(false_alarms(known_cases(known, groups(60)), fresh))


def test_a_single_strange_case_is_named_and_promised_nothing():
    found = check_drift(KNOWN, cases(1, 10, brightness=200))
    assert list(found.foreign) == [0] and found.foreign[0] == pytest.approx(1 / 81)
    assert (
        len(found.warnings) == 1
        and "the case looks like no calibration case (p = 0.012; 5 %" in found.warnings[0]
    )
    assert "not promised for it" in found.warnings[0]
    assert not check_drift(KNOWN, cases(1, 9)).warnings
    both = check_drift(KNOWN, [*cases(1, 9), *cases(1, 10, brightness=200)])
    assert any(w.startswith("incoming case 2 looks like no") for w in both.warnings)


def test_a_shift_of_a_batch_is_named():
    brighter = check_drift(KNOWN, cases(20, 7, brightness=15))
    assert brighter.p_values["intensity p50"] < 0.01 <= brighter.p_values["mean score"]
    assert any(w.startswith("intensity p50 differs") for w in brighter.warnings)
    unsure = check_drift(KNOWN, cases(20, 8, sure=2.0))
    assert unsure.p_values["mean score"] < 0.01 <= unsure.p_values["intensity p50"]


def test_by_hand():
    """Cases at 0, 1, 3, 6 and one at 20: its neighbour is 14 away, which is 3 from its own."""
    known = known_cases([{"intensity p50": float(v)} for v in (0, 1, 3, 6)], groups(4))
    assert foreign_p_value(known, {"intensity p50": 20.0}) == pytest.approx(1 / 5)
    assert foreign_p_value(known, {"intensity p50": 0.4}) > 0.5
    assert not known.reaches and not any(
        false_alarms(known, [{"intensity p50": 20.0}])
    )  # 19 groups are needed
    assert known_cases([{"intensity p50": float(v)} for v in range(19)], groups(19)).reaches
    assert foreign_p_value(known, {"mean score": 0.2}) == 1.0


def test_cases_of_one_group_are_no_neighbours_and_share_its_weight():
    """Twins of each group: a new case is as far from the others as any group is, and not unlike them."""
    rng = np.random.default_rng(3)
    centres = rng.normal(100, 20, (31, 2))
    features = [
        {"intensity p05": float(a), "intensity p50": float(b)}
        for centre in centres[:30]
        for a, b in centre + rng.normal(0, 1e-3, (5, 2))
    ]
    known = known_cases(features, [f"p{k // 5}" for k in range(150)])
    new = {"intensity p05": float(centres[30, 0]), "intensity p50": float(centres[30, 1])}
    assert foreign_p_value(known, new) > 0.05 and len(set(known.groups)) == 30


def test_alarms_of_the_calibration_cases_are_counted_by_stratum():
    rng = np.random.default_rng(4)
    features, strata = two_stains(rng, 80)
    counts = known_cases(features, groups(80), strata).by_stratum
    assert set(counts) == {"stain common", "stain rare"} and sum(n for _, n in counts.values()) == 80
    assert sum(warned for warned, _ in counts.values()) <= 0.05 * 81


def test_degenerate_cases():
    assert case_features(np.zeros((3, 3)), []) == {f"intensity p{q:02d}": 0 for q in (5, 25, 50, 75, 95)} | {
        "instances": 0
    }
    assert case_features(np.full(4, np.nan), [0.5]) == {"instances": 1, "mean score": 0.5}
    colour = case_features(np.stack([np.full((2, 2), v) for v in (1, 2, 6)]), [])
    assert [colour[f"channel {k}"] for k in (1, 2, 3)] == [1, 2, 6]
    large = np.broadcast_to(np.arange(512, dtype=np.int16), (20, 512, 512))
    assert case_features(large, [])["intensity p50"] == pytest.approx(255.5, abs=1)
    with pytest.raises(InputError, match="no calibration case"):
        known_cases([], [])
    nothing = check_drift(KNOWN, [])
    assert (nothing.cases, nothing.warnings, dict(nothing.p_values)) == (0, (), {})
    one = known_cases(cases(1, 3), groups(1))
    assert not check_drift(one, cases(30, 4)).warnings  # one case proves nothing
    alike = known_cases([{"intensity p50": 3.0}] * 30, groups(30))
    assert not check_drift(alike, [{"intensity p50": 3.0}]).warnings


def test_it_stays_small_names_no_case_and_survives_json():
    many = known_cases([{"instances": float(k)} for k in range(5000)], groups(5000))
    assert len(many.values["instances"]) == many.cases == 500
    assert list(many.values["instances"]) != sorted(many.values["instances"])
    assert KnownCases.from_data(json.loads(json.dumps(KNOWN.to_data()))) == KNOWN
    with pytest.raises(ConfigError, match="calibrate again"):
        KnownCases.from_data({"cases": 3})


def test_one_odd_calibration_case_does_not_hide_a_foreign_domain():
    """Forty-five cases in one place and an odd one far out: what lies farther still is foreign all the same."""
    rng = np.random.default_rng(1)
    cases = [{"intensity p50": float(v)} for v in rng.normal(10, 1, 45)] + [{"intensity p50": 60.0}]
    known = known_cases(cases, [str(k) for k in range(46)])
    foreign = [{"intensity p50": float(v)} for v in (170.0, 180.0, 190.0)]
    assert false_alarms(known, foreign) == [True] * 3  # by one neighbour alone: none
    alike = [{"intensity p50": float(v)} for v in rng.normal(10, 1, 200)]
    assert np.mean(false_alarms(known, alike)) <= 0.07

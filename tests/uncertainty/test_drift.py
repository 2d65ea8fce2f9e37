"""Drift: silent on cases of the same kind, and it says what differs on others."""

import json

import numpy as np
import pytest

from clearmargin.errors import ConfigError, InputError
from clearmargin.uncertainty.drift import Fingerprint, case_features, check_drift, fingerprint


def cases(n, seed, *, brightness=0.0, sure=8.0):
    rng = np.random.default_rng(seed)
    return [
        case_features(
            rng.normal(100 + rng.normal(0, 5) + brightness, 20, (40, 40)),
            rng.beta(sure, 2, rng.integers(1, 9)),
        )
        for _ in range(n)
    ]


KNOWN = fingerprint(cases(80, 0))


def test_cases_of_the_same_kind_are_seldom_warned_of():
    warned = [bool(check_drift(KNOWN, cases(20, seed)).warnings) for seed in range(1, 61)]
    assert sum(warned) <= 3  # 1 in 100 expected


def test_a_shift_is_named():
    brighter = check_drift(KNOWN, cases(20, 7, brightness=15))
    assert brighter.p_values["intensity p50"] < 0.01 <= brighter.p_values["mean score"]
    assert any(w.startswith("intensity p50 differs") for w in brighter.warnings)
    assert "calibrate on data like these" in brighter.warnings[-1]
    unsure = check_drift(KNOWN, cases(20, 8, sure=2.0))
    assert unsure.p_values["mean score"] < 0.01 <= unsure.p_values["intensity p50"]


def test_a_single_strange_case_is_found_by_its_intensities():
    found = check_drift(KNOWN, [*cases(1, 9), *cases(1, 10, brightness=200)])
    assert list(found.outlying) == [1]
    assert set(found.outlying[1]) == {f"intensity p{q:02d}" for q in (5, 25, 50, 75, 95)}
    assert any("incoming case 2: intensity p05 +" in w for w in found.warnings)


def test_by_hand():
    known = fingerprint([{"intensity p50": float(v)} for v in (8, 9, 10, 11, 12)])
    # the median distance from the median is 1
    far = check_drift(known, [{"intensity p50": 10 + 1.4826 * 7}]).outlying[0]
    assert far["intensity p50"] == pytest.approx(7)
    assert not check_drift(known, [{"intensity p50": 10 + 1.4826 * 5}]).outlying


def test_what_never_varied_has_a_hundredth_of_the_range_as_its_scale():
    known = fingerprint([{"intensity p05": 0.0, "intensity p95": 100.0 + v} for v in (-1, 0, 1)])
    assert not check_drift(known, [{"intensity p05": 0.5, "intensity p95": 100.0}]).outlying
    assert check_drift(known, [{"intensity p05": 10.0, "intensity p95": 100.0}]).outlying
    level = fingerprint([{"intensity p05": 3.0}] * 2)
    assert not check_drift(level, [{"intensity p05": 3.0}]).outlying
    assert check_drift(level, [{"intensity p05": 4.0}]).outlying[0]["intensity p05"] == np.inf


def test_degenerate_cases():
    assert case_features(np.zeros((3, 3)), []) == {f"intensity p{q:02d}": 0 for q in (5, 25, 50, 75, 95)} | {
        "instances": 0
    }
    assert case_features(np.full(4, np.nan), [0.5]) == {"instances": 1, "mean score": 0.5}
    large = np.broadcast_to(np.arange(512, dtype=np.int16), (20, 512, 512))
    assert case_features(large, [])["intensity p50"] == pytest.approx(255.5, abs=1)
    with pytest.raises(InputError, match="no calibration case"):
        fingerprint([])
    nothing = check_drift(KNOWN, [])
    assert (nothing.cases, nothing.warnings, dict(nothing.p_values)) == (0, (), {})
    one = fingerprint(cases(1, 3))
    assert not [
        w for w in check_drift(one, cases(30, 4)).warnings if "differs" in w
    ]  # one case proves nothing


def test_it_stays_small_holds_no_case_and_survives_json():
    many = fingerprint([{"instances": float(k)} for k in range(5000)])
    assert len(many.values["instances"]) == 500
    assert (many.values["instances"][0], many.values["instances"][-1]) == (0, 4999)
    assert all(list(v) == sorted(v) for v in KNOWN.values.values())
    assert Fingerprint.from_data(json.loads(json.dumps(KNOWN.to_data()))) == KNOWN
    with pytest.raises(ConfigError, match="calibrate again"):
        Fingerprint.from_data({"cases": 3})

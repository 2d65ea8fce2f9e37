"""Scaling: what was bent comes back straight, an oracle, and what cannot be fitted says why."""

import json

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit, logit
from sklearn.isotonic import IsotonicRegression

from clearmargin.errors import ConfigError, InputError
from clearmargin.margins.scaling import (
    Identity,
    Isotonic,
    Temperature,
    fit_isotonic,
    fit_temperature,
    scaling_from_data,
    scaling_to_data,
)
from clearmargin.metrics.calibration import Reliability


def events(n=20_000, seed=0):
    rng = np.random.default_rng(seed)
    truth = rng.beta(2, 2, n)
    return truth, rng.random(n) < truth


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.5])
def test_a_temperature_that_was_put_in_is_found_and_taken_out(temperature):
    p, right = events()
    bent = expit(logit(p) * temperature)
    found = fit_temperature(bent, right)
    assert found.temperature == pytest.approx(temperature, rel=0.05)
    np.testing.assert_allclose(found.apply(bent), p, atol=0.03)
    assert found.nll_after <= found.nll_before and not found.at_limit
    before, after = Reliability.of(bent, right).ece(), Reliability.of(found.apply(bent), right).ece()
    assert after < 0.02 and (temperature == 1 or after < before / 3)


def test_cells_of_pixels_give_the_same_temperature():
    p, right = events()
    bent = expit(2 * logit(p))
    cells = Reliability.of(bent, right)
    assert fit_temperature(*cells.cells()).temperature == pytest.approx(
        fit_temperature(bent, right).temperature, rel=1e-2
    )
    assert fit_temperature(*cells.cells()).n == len(p)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.booleans())
def test_isotonic_is_scikit_learns(seed, ties):
    rng = np.random.default_rng(seed)
    n = int(rng.integers(2, 40))
    p = np.round(rng.random(n), 1 if ties else 9)
    right = rng.random(n) < p
    right[:2] = True, False
    weights = rng.integers(1, 4, n)
    found = fit_isotonic(p, right, weights)
    theirs = IsotonicRegression(y_min=0, y_max=1, out_of_bounds="clip").fit(p, right, sample_weight=weights)
    at = np.linspace(0, 1, 57)
    np.testing.assert_allclose(found.apply(at), theirs.predict(at), atol=1e-9)
    assert (np.diff(found.apply(at)) >= -1e-12).all()


def test_fixed_points_shape_and_precision():
    scaled = Temperature(temperature=3.0, n=1, nll_before=0, nll_after=0, at_limit=False)
    p = np.array([[0.0, 0.5, 1.0]], np.float32)
    out = scaled.apply(p)
    assert out.dtype == np.float32 and out.tolist() == p.tolist()
    assert scaled.apply(np.array([0.9]))[0] == pytest.approx(expit(logit(0.9) / 3))
    level = Isotonic(points=(0.2, 0.8), values=(0.1, 0.3), n=2)
    np.testing.assert_allclose(level.apply(np.array([0.0, 0.5, 1.0])), [0.1, 0.2, 0.3])


@pytest.mark.parametrize("fit", [fit_temperature, fit_isotonic])
def test_what_cannot_be_fitted_stays_and_says_why(fit):
    with pytest.raises(InputError, match="no prediction to fit a scaling on"):
        fit([], [])
    for outcome in (True, False):
        found = fit([0.3, 0.9], [outcome] * 2)
        assert isinstance(found, Identity) and "same outcome" in found.reason and found.n == 2
        p = np.array([0.25])
        assert found.apply(p) is p
    assert isinstance(fit([0.4], [True]), Identity)


def test_an_all_certain_model():
    p, right = np.array([1.0, 1.0, 1.0, 1.0, 0.0]), np.array([1, 1, 1, 0, 0])
    found = fit_temperature(p, right)
    assert isinstance(found, Identity) and "0 or 1" in found.reason
    np.testing.assert_allclose(fit_isotonic(p, right).apply(np.array([0.0, 1.0])), [0, 0.75])
    assert "one half" in fit_temperature([0.5, 0.5], [1, 0]).reason
    # told apart without an error: the temperature runs to the end of its range, and says so
    assert fit_temperature([0.2, 0.3, 0.7], [0, 0, 1]).at_limit


def test_scalings_survive_yaml_and_json():
    p, right = events(500)
    for scaling in (fit_temperature(p, right), fit_isotonic(p, right), fit_temperature([1.0], [1])):
        data = scaling_to_data(scaling)
        assert scaling_from_data(yaml.safe_load(yaml.safe_dump(data))) == scaling
        assert scaling_from_data(json.loads(json.dumps(data))) == scaling
    with pytest.raises(ConfigError, match="did you mean 'isotonic'"):
        scaling_from_data({"kind": "isotonik"})
    with pytest.raises(ConfigError, match="fit it again"):
        scaling_from_data({"kind": "temperature", "t": 1})

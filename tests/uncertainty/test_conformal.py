"""The quantile, by hand and as often right as it must be; units, split and kept apart."""

import numpy as np
import pytest
from displaced import over_splits

from clearmargin.errors import ConfigError, InputError
from clearmargin.uncertainty.conformal import (
    conformal_quantile,
    conformal_rank,
    coverage_over_splits,
    expected_coverage,
    units_needed,
)
from clearmargin.uncertainty.units import refuse_shared_units, split_units


def test_the_rank_by_hand():
    assert [conformal_rank(n, 0.1) for n in (8, 9, 10, 19, 99)] == [9, 9, 10, 18, 90]
    assert [units_needed(a) for a in (0.1, 0.05, 0.01, 0.5)] == [9, 19, 99, 1]
    assert conformal_quantile([5, 1, 3, 2, 4, 9, 8, 7, 6], 0.1) == 9
    assert conformal_quantile(np.arange(1, 20), 0.1) == 18
    assert conformal_quantile([2.0] * 12, 0.1) == 2.0  # ties
    assert expected_coverage(19, 0.1) == 0.9 and expected_coverage(20, 0.1) == 19 / 21


@pytest.mark.parametrize(
    ("n", "said"), [(8, "8 reach 88.9 % at best"), (1, "1 reach 50 %"), (0, "there is none")]
)
def test_too_few_units_are_refused_with_the_level_they_reach(n, said):
    with pytest.raises(InputError, match=f"needs 9 calibration units, {said}"):
        conformal_quantile(np.ones(n), 0.1)


def test_an_alpha_that_is_no_share_is_refused():
    with pytest.raises(ConfigError, match="between 0 and 1"):
        conformal_quantile(np.ones(5), 90)


def test_units_are_split_and_not_shared():
    units = [f"p{k}" for k in range(10)] * 3
    parts = split_units(units, {"fit": 0.3, "margin": 0.7}, seed=1)
    assert {k: len(v) for k, v in parts.items()} == {"fit": 3, "margin": 7}
    assert not set(parts["fit"]) & set(parts["margin"])
    assert parts == split_units(units[::-1], {"fit": 0.3, "margin": 0.7}, seed=1)
    assert parts != split_units(units, {"fit": 0.3, "margin": 0.7}, seed=2)
    with pytest.raises(InputError, match=r"1 unit\(s\) cannot be split"):
        split_units(["a", "a"], {"fit": 0.5, "margin": 0.5}, seed=0)
    with pytest.raises(InputError, match=r"0 unit\(s\)"):
        split_units([], {"fit": 0.5, "margin": 0.5}, seed=0)
    with pytest.raises(ValueError, match="add up to 1"):
        split_units(units, {"fit": 0.5}, seed=0)


def test_calibration_units_that_were_trained_on_are_refused_without_their_names():
    refuse_shared_units(["a", "b"], ["c"])
    with pytest.raises(InputError, match="1 of 2 calibration units") as caught:
        refuse_shared_units(["anna", "bert"], ["anna", "carl"])
    assert "anna" not in str(caught.value)


@pytest.mark.parametrize("alpha", [0.1, 0.05])
@pytest.mark.parametrize("n", [20, 57])
def test_coverage_over_random_splits_is_the_rank_over_n_plus_one(alpha, n):
    """One line of the proof is the theorem itself: without ties the mean is the expected coverage exactly."""
    scores = np.random.default_rng(3).gamma(2, size=160)
    assert abs(over_splits(scores, n, alpha, 500)[0] - expected_coverage(n, alpha)) < 0.01


def test_splits_that_leave_none_to_judge_are_refused():
    with pytest.raises(InputError, match="leave none to judge"):
        coverage_over_splits(np.ones(20), 20, 0.1, splits=3, rng=np.random.default_rng(0))

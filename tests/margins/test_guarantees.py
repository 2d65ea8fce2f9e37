"""What margins promise: by hand, against other definitions, and as often right as promised where the law is known."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clearmargin.errors import ConfigError, InputError
from clearmargin.margins.groups import split_groups
from clearmargin.margins.guarantees import (
    GUARANTEES,
    Demand,
    GroupLosses,
    coverage_range,
    groups_needed,
    least_factor,
)


def demand(group, whole, factors=None, outside=None):
    factors = [whole] if factors is None else factors
    outside = [1.0] * len(factors) if outside is None else outside
    return Demand(
        group=group, whole=float(whole), factors=np.array(factors, float), outside=np.array(outside)
    )


def one_each(values):
    return [demand(f"p{k:03d}", value) for k, value in enumerate(values)]


# by hand


def test_one_object_a_groups_gives_the_split_conformal_quantile():
    for guarantee in GUARANTEES:
        nine = GroupLosses(one_each([5, 1, 3, 2, 4, 9, 8, 7, 6]), guarantee)
        assert least_factor(nine, 0.1) == 9  # ceil(10 x 0.9) = 9th of 9
        nineteen = GroupLosses(one_each(range(1, 20)), guarantee)
        assert least_factor(nineteen, 0.1) == 18 and least_factor(nineteen, 0.05) == 19
        assert least_factor(GroupLosses(one_each([2.0] * 12), guarantee), 0.1) == 2.0  # ties
        assert least_factor(GroupLosses(one_each([0.0] * 12), guarantee), 0.1) == 0.0


def test_three_losses_of_one_unit():
    # two objects: one is covered at 1, the other at 4 and has a quarter of its edge outside from 2 on
    demands = [demand("a", 1), demand("a", 4, [2, 4], [0.5, 0.25])]
    at = np.array([0.0, 1.0, 2.0, 4.0])
    assert GroupLosses(demands, "object").at(at)[:, 0].tolist() == [1, 0.5, 0.5, 0]
    assert GroupLosses(demands, "group").at(at)[:, 0].tolist() == [1, 1, 1, 0]
    assert GroupLosses(demands, "risk").at(at)[:, 0].tolist() == [0.75, 0.25, 0.125, 0]
    never = GroupLosses(
        [demand("a", 3, [], [])], "risk"
    )  # a hole: its surface is covered, not the whole of it
    assert never.at(at)[:, 0].tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize(
    ("n", "said"), [(8, "8 reach 88.9 % at best"), (1, "1 reach 50 %"), (0, "with an object that the model")]
)
@pytest.mark.parametrize("guarantee", GUARANTEES)
def test_too_few_groups_are_refused_with_the_level_they_reach(guarantee, n, said):
    with pytest.raises(InputError, match=f"needs 9 calibration groups,? {said}"):
        least_factor(GroupLosses(one_each(np.ones(n)), guarantee), 0.1)
    with pytest.raises(InputError, match="needs 22 calibration groups at least"):
        least_factor(GroupLosses(one_each(np.ones(n)), guarantee), 0.1, confidence=0.9)


def test_shares_that_are_none_are_refused():
    losses = GroupLosses(one_each(np.ones(30)), "group")
    with pytest.raises(ConfigError, match="between 0 and 1"):
        least_factor(losses, 90)
    with pytest.raises(ConfigError, match=r"such as 0\.9, got 90"):
        least_factor(losses, 0.1, confidence=90)


def test_a_confidence_takes_the_order_statistic_of_the_binomial_law():
    """Of 22 groups none may fail: 0.9 ^ 22 is 0.098; of 38 one may: P(Bin(38, 0.1) <= 1) = 0.095."""
    assert groups_needed(0.1, 0.9) == 22 and math.comb(38, 1) * 0.1 * 0.9**37 + 0.9**38 < 0.1
    assert least_factor(GroupLosses(one_each(range(22)), "group"), 0.1, confidence=0.9) == 21
    assert least_factor(GroupLosses(one_each(range(37)), "group"), 0.1, confidence=0.9) == 36
    assert least_factor(GroupLosses(one_each(range(38)), "group"), 0.1, confidence=0.9) == 36


# against other definitions


@st.composite
def hierarchies(draw):
    rng = np.random.default_rng(draw(st.integers(0, 10_000)))
    n = draw(st.integers(9, 25))
    values = [np.round(rng.gamma(2, 1, rng.integers(1, 8)), draw(st.sampled_from([0, 6]))) for _ in range(n)]
    return values, draw(st.sampled_from([0.1, 0.2, 0.35]))


@settings(max_examples=80, deadline=None)
@given(hierarchies())
def test_by_object_it_is_the_quantile_of_lee_barber_and_willett(data):
    """Their quantile: each object has the weight 1 / ((n + 1) N), infinity has 1 / (n + 1)."""
    values, alpha = data
    n = len(values)
    points = sorted((float(v), 1 / ((n + 1) * len(own))) for own in values for v in own)
    reached, quantile = 0.0, math.inf
    for value, weight in points:
        reached += weight
        if reached >= 1 - alpha - 1e-9:
            quantile = value
            break
    demands = [demand(f"p{k:03d}", v) for k, own in enumerate(values) for v in own]
    assert least_factor(GroupLosses(demands, "object"), alpha) == pytest.approx(quantile, rel=1e-12)


# as often right as promised: units with a share of failures of their own


def draw_groups(rng, n):
    """Objects whose demands are exponential, with a scale and a number that the group has; edges fall linearly."""
    demands = []
    for k in range(n):
        scale = rng.gamma(4, 0.25)
        for value in rng.exponential(scale, rng.integers(1, 12)):
            steps = value * np.array([0.25, 0.5, 0.75, 1.0])
            demands.append(demand(f"p{k:05d}", value, steps, [0.4, 0.3, 0.2, 0.1]))
    return demands


@pytest.fixture(scope="module")
def truth():
    """The losses of 20,000 groups, which stand for the law."""
    demands = draw_groups(np.random.default_rng(0), 8_000)
    grid = np.linspace(0, 15, 600)
    table = {}
    for guarantee in GUARANTEES:
        table[guarantee] = (grid, GroupLosses(demands, guarantee).at(grid).mean(axis=1))
    return table


@pytest.mark.parametrize("guarantee", GUARANTEES)
def test_over_1000_calibrations_the_mean_loss_is_alpha_or_just_less(truth, guarantee):
    rng = np.random.default_rng(1)
    n, alpha, losses = 40, 0.1, []
    for _ in range(1000):
        factor = least_factor(GroupLosses(draw_groups(rng, n), guarantee), alpha)
        losses.append(np.interp(factor, *truth[guarantee]))
    error = 3 * np.std(losses) / math.sqrt(1000)
    assert alpha - 2 / (n + 1) - error < np.mean(losses) < alpha + error


@pytest.mark.parametrize("guarantee", GUARANTEES)
def test_with_a_confidence_so_many_calibrations_keep_the_loss(truth, guarantee):
    rng = np.random.default_rng(2)
    kept = []
    for _ in range(300):
        losses = GroupLosses(draw_groups(rng, 60), guarantee)
        factor = least_factor(losses, 0.1, confidence=0.9)
        assert factor >= least_factor(losses, 0.1)
        kept.append(np.interp(factor, *truth[guarantee]) <= 0.1)
    assert np.mean(kept) >= 0.9 - 3 * 0.017  # the standard deviation of a share of 0.9 over 300


@pytest.mark.parametrize("guarantee", GUARANTEES)
def test_nine_of_ten_calibrations_lie_in_the_range_that_each_states(truth, guarantee):
    rng = np.random.default_rng(3)
    inside = []
    for _ in range(400):
        losses = GroupLosses(draw_groups(rng, 40), guarantee)
        factor = least_factor(losses, 0.1)
        _, low, high = coverage_range(losses, factor)
        inside.append(low <= 1 - np.interp(factor, *truth[guarantee]) <= high)
    # exact by group; a share's law is matched in mean and variance
    assert np.mean(inside) == pytest.approx(0.9, abs=0.045 if guarantee == "group" else 0.07)


def test_the_range_by_groups_is_the_beta_law():
    from scipy.stats import beta

    losses = GroupLosses(one_each(range(39)), "group")
    mean, low, high = coverage_range(losses, least_factor(losses, 0.1))  # 36th of 39
    assert mean == pytest.approx(36 / 40)
    assert (low, high) == pytest.approx(tuple(beta.ppf([0.05, 0.95], 36, 4)))
    assert coverage_range(GroupLosses([], "group"), 1.0) == (0.0, 0.0, 1.0)


# groups


def test_groups_are_split_and_not_shared():
    groups = [f"p{k}" for k in range(10)] * 3
    parts = split_groups(groups, {"fit": 0.3, "margin": 0.7}, seed=1)
    assert {k: len(v) for k, v in parts.items()} == {"fit": 3, "margin": 7}
    assert not set(parts["fit"]) & set(parts["margin"])
    assert parts == split_groups(groups[::-1], {"fit": 0.3, "margin": 0.7}, seed=1)
    assert parts != split_groups(groups, {"fit": 0.3, "margin": 0.7}, seed=2)
    with pytest.raises(InputError, match=r"1 group\(s\) cannot be split"):
        split_groups(["a", "a"], {"fit": 0.5, "margin": 0.5}, seed=0)
    with pytest.raises(InputError, match=r"0 group\(s\)"):
        split_groups([], {"fit": 0.5, "margin": 0.5}, seed=0)
    with pytest.raises(ValueError, match="add up to 1"):
        split_groups(groups, {"fit": 0.5}, seed=0)

"""Paired comparison against scipy, coverage by simulation, and what a claim is worth."""

import numpy as np
import pytest
from scipy import stats

from clearmargin.errors import InputError
from clearmargin.metrics.paired import compare, holm, inter_rater_ceiling, median_interval


def rng(seed=0):
    return np.random.default_rng(seed)


def test_paired_comparison():
    patients = [str(i) for i in range(30)]
    base = rng(7).normal(0, 5, 30)
    better = base + 1 + rng(8).normal(0, 0.5, 30)
    noise = rng(9).normal(0, 1, 30)
    found = compare({"x": better, "y": base + noise}, {"x": base, "y": base}, patients, rng=rng())
    assert found["x"].difference.low > 0.7
    assert found["x"].p_adjusted < 0.001
    assert found["y"].difference.low < 0 < found["y"].difference.high
    assert found["y"].p_value == pytest.approx(stats.ttest_rel(base + noise, base).pvalue)
    assert compare({"x": base}, {"x": base}, patients, rng=rng())["x"].p_value == 1
    with pytest.raises(InputError, match="only one of them has: y"):
        compare({"x": base, "y": base}, {"x": base}, patients, rng=rng())


def test_holm_by_hand():
    assert holm({"a": 0.005, "b": 0.03, "c": 0.04, "d": 0.01}) == pytest.approx(
        {"a": 0.02, "b": 0.06, "c": 0.06, "d": 0.03}
    )
    assert holm({}) == {}


def test_the_ceiling_is_the_readers_agreement():
    patients = [str(i) for i in range(12)]
    readers = rng(1).uniform(0.8, 0.9, 12)
    model = np.column_stack([readers - 0.05, readers + 0.05])
    found = inter_rater_ceiling({"dice": model}, {"dice": readers}, patients, rng=rng())["dice"]
    assert found.difference.estimate == pytest.approx(0, abs=1e-12)


def test_an_interval_is_students_over_patients_means():
    values = rng(1).normal(0.3, 1, 40)
    patients = [str(i // 2) for i in range(40)]
    found = compare({"x": values}, {"x": np.zeros(40)}, patients, rng=rng())["x"]
    means = values.reshape(20, 2).mean(axis=1)
    expected = stats.ttest_1samp(means, 0)
    low, high = expected.confidence_interval(0.95)
    assert (found.difference.low, found.difference.high) == pytest.approx((low, high))
    assert found.p_value == pytest.approx(expected.pvalue)
    assert found.p_false == pytest.approx(stats.ttest_1samp(means, 0, alternative="greater").pvalue)


@pytest.mark.parametrize("values", [[1.0], [0.0, 0.0, 0.0], [2.0, 2.0, 2.0, 2.0]])
def test_few_or_equal_patients_claim_little(values):
    found = compare(
        {"x": values}, {"x": [0.0] * len(values)}, [str(i) for i in range(len(values))], rng=rng()
    )["x"]
    assert found.p_value == {1: 1.0, 3: 1.0, 4: 0.125}[len(values)]
    assert found.coverage is None and found.median.low is None
    assert (found.difference.low is None) == (values != [0.0, 0.0, 0.0])


def test_an_interval_that_does_not_cover_says_so():
    normal = compare(
        {"x": rng(2).normal(0, 1, 40)}, {"x": np.zeros(40)}, [str(i) for i in range(40)], rng=rng()
    )["x"]
    assert normal.covers
    rare = np.zeros(40)
    rare[0] = 5.0  # one patient in forty: most samples hold none of it, or too much
    found = compare({"x": rare}, {"x": np.zeros(40)}, [str(i) for i in range(40)], rng=rng())["x"]
    assert not found.covers and found.coverage < 0.8


@pytest.mark.parametrize("n", [6, 15, 20, 51])
def test_a_median_is_covered_by_order_statistics(n):
    generator = rng(n)
    held = 0
    for _ in range(2000):
        found = median_interval(generator.exponential(1, n))
        held += found.low <= np.log(2) <= found.high
    assert held / 2000 >= 0.95 - 2 * np.sqrt(0.95 * 0.05 / 2000)


def test_a_median_of_ranks_by_hand():
    found = median_interval(np.arange(1.0, 11.0))  # of ten, the second and the ninth: 97.9 %
    assert (found.estimate, found.low, found.high) == (5.5, 2.0, 9.0)
    assert median_interval(np.arange(5.0)).low is None


def test_rounding_is_not_a_difference():
    values = rng(3).uniform(1, 300, 12)
    found = compare({"x": values * (1 + 1e-15)}, {"x": values}, [str(i) for i in range(12)], rng=rng())["x"]
    assert (found.difference.estimate, found.p_value, found.p_false) == (0.0, 1.0, 0.5)


@pytest.mark.parametrize(("groups", "size"), [(3, 0.1), (6, 1.5), (6, 1e-4)])
def test_groups_that_all_differ_by_the_same_give_no_interval_and_a_p_by_their_signs(groups, size):
    """No spread says nothing of the next group; by the signs alone (a fair coin) p is 2 of 2 ** n."""
    values = rng(4).uniform(50, 300, groups)
    found = compare({"x": values + size}, {"x": values}, [str(i) for i in range(groups)], rng=rng())["x"]
    assert found.difference.estimate == pytest.approx(size)
    assert found.difference.low is None and found.difference.high is None
    assert found.p_value == 2 / 2**groups and found.p_false == found.p_value / 2

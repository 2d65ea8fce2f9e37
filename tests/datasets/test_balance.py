"""Rare classes come more often, and each position follows from the seed."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clearmargin.datasets.balance import Walks, repeat_factors


def test_factors_by_hand():
    # class 1 in all of 100 cases, class 2 in 4, class 3 in 1 of those
    classes = [{1}] * 95 + [{1, 2}] * 3 + [{1, 2, 3}] + [{1}]
    factors = repeat_factors(classes, 0.09)
    assert factors[0] == 1
    assert factors[95] == pytest.approx(np.sqrt(0.09 / 0.04))  # 1.5
    assert factors[98] == pytest.approx(np.sqrt(0.09 / 0.01))  # the rarest class decides: 3
    assert repeat_factors([set(), {1}], 0.001).tolist() == [1, 1]


def test_cases_come_as_often_as_their_factors_say():
    walks = Walks(np.array([1.0, 1.0, 2.25, 3.0]), seed=3)
    seen = Counter(walks.case_at(k) for k in range(7250))
    rounds = 7250 / 7.25
    assert seen[0] == pytest.approx(rounds, abs=10) and seen[3] == pytest.approx(3 * rounds, abs=30)
    assert seen[2] == pytest.approx(2.25 * rounds, abs=40)
    first = Counter(walks.case_at(k) for k in range(walks._starts[1]))
    assert first[0] == first[1] == 1 and first[2] in (2, 3) and first[3] == 3


@settings(max_examples=40, deadline=None)
@given(
    factors=st.lists(st.floats(1, 5), min_size=1, max_size=12),
    seed=st.integers(0, 99),
    asked=st.lists(st.integers(0, 300), min_size=1, max_size=20),
)
def test_a_position_is_the_same_case_whatever_was_asked_before(factors, seed, asked):
    row = Walks(np.array(factors), seed=seed)
    in_order = [row.case_at(k) for k in range(301)]
    assert [Walks(np.array(factors), seed=seed).case_at(k) for k in asked] == [in_order[k] for k in asked]
    jumping = Walks(np.array(factors), seed=seed)
    assert [jumping.case_at(k) for k in asked] == [in_order[k] for k in asked]

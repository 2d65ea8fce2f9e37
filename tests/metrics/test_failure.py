"""Failure detection: by hand, and against slow counts."""

from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from clearmargin.errors import InputError
from clearmargin.metrics.failure import aurc, ause, e_aurc, error_auroc, refer, risk_coverage

few = st.integers(0, 3)


@st.composite
def cases(draw, most=6):
    n = draw(st.integers(1, most))
    doubt = draw(st.lists(few, min_size=n, max_size=n))
    risk = draw(st.lists(st.integers(0, 5), min_size=n, max_size=n))
    return np.array(doubt, float), np.array(risk, float)


def test_by_hand():
    doubt, risk = [0.1, 0.4, 0.2, 0.3], [0, 4, 2, 1]
    coverage, risks = risk_coverage(doubt, risk)
    assert coverage.tolist() == [0.25, 0.5, 0.75, 1]
    np.testing.assert_allclose(risks, [0, 1, 1, 7 / 4])
    assert aurc(doubt, risk) == pytest.approx((0 + 1 + 1 + 1.75) / 4)
    best = (0 + 1 / 2 + 1 + 7 / 4) / 4
    assert e_aurc(doubt, risk) == pytest.approx(3.75 / 4 - best)
    assert ause(doubt, risk) == pytest.approx((3.75 / 4 - best) / 1.75)
    assert error_auroc(doubt, np.array(risk) > 1.5) == pytest.approx(3 / 4)


@settings(max_examples=60, deadline=None)
@given(cases())
def test_ties_are_the_mean_over_all_their_orders(data):
    doubt, risk = data
    orders = [o for o in permutations(range(len(doubt))) if (np.diff(doubt[list(o)]) >= 0).all()]
    curves = [np.cumsum(risk[list(o)]) / np.arange(1, len(risk) + 1) for o in orders]
    np.testing.assert_allclose(risk_coverage(doubt, risk)[1], np.mean(curves, axis=0), atol=1e-12)


@settings(max_examples=80, deadline=None)
@given(cases(12))
def test_the_best_order_has_no_excess_and_others_have_some(data):
    doubt, risk = data
    assert e_aurc(risk, risk) == pytest.approx(0)
    assert e_aurc(doubt, risk) >= -1e-12
    assert ause(doubt, risk) >= -1e-12
    assert ause(doubt, 1000 * risk) == pytest.approx(ause(doubt, risk))
    failed = risk > 2
    if 0 < failed.sum() < len(failed):
        assert error_auroc(doubt, failed) == pytest.approx(roc_auc_score(failed, doubt))
    else:
        assert error_auroc(doubt, failed) is None


@settings(max_examples=80, deadline=None)
@given(cases(10), st.sampled_from([1.0, 0.8, 0.5]))
def test_a_referral_is_the_smallest_that_is_enough(data, within):
    doubt, risk = data
    found = refer(doubt, risk, 2, within=within)
    options = []
    for limit in [-1.0, *sorted(set(doubt))]:  # keep all up to a doubt, ties together
        kept = doubt <= limit
        if not kept.any() or np.mean(risk[kept] <= 2) >= within - 1e-9:
            options.append(int((~kept).sum()))
    assert found.referred == min(options)


def test_the_sentence():
    doubt = np.arange(25.0)
    hd95 = np.where(doubt > 21, 8.0, 1.5)
    hd95[5] = 1.99
    found = refer(doubt, hd95, 2, name="HD95", unit="mm")
    assert (
        str(found)
        == "refer 12 % of the cases (3 of 25), the rest have HD95 of at most 2 mm (of all cases 88 %)"
    )
    hd95[5] = 5
    assert refer(doubt, hd95, 2).referred == 20
    allowed = refer(doubt, hd95, 2, within=0.95, name="HD95", unit="mm")
    assert str(allowed).startswith(
        "refer 12 % of the cases (3 of 25), 95.5 % of the rest have HD95 of at most 2 mm"
    )
    assert "refer all 2 cases" in str(refer([0, 0], [3, 3], 2))


def test_nothing_one_case_and_an_all_certain_model():
    assert risk_coverage([], [])[1].size == 0
    assert aurc([], []) == e_aurc([], []) == ause([], []) == 0
    assert error_auroc([], []) is None
    assert (refer([], [], 2).referred, refer([], [], 2).within) == (0, 1)
    assert aurc([0.3], [2.0]) == 2 and e_aurc([0.3], [2.0]) == 0
    # every case alike in doubt: the mean risk at every coverage, no signal, and all or none is referred
    risk = [0.0, 1.0, 5.0]
    assert risk_coverage([0, 0, 0], risk)[1].tolist() == [2, 2, 2]
    assert error_auroc([0, 0, 0], [0, 1, 1]) == 0.5
    assert refer([0, 0, 0], risk, 2).referred == 3 and refer([0, 0, 0], risk, 5).referred == 0
    assert ause([0.1, 0.2], [0, 0]) == 0


def test_what_cannot_be_ranked_is_refused():
    with pytest.raises(InputError, match="finite"):
        aurc([0.1], [np.inf])
    with pytest.raises(InputError, match="2 uncertainties and 1 risks"):
        aurc([0.1, 0.2], [1.0])
    with pytest.raises(InputError, match="at least 0"):
        ause([0.1], [-1.0])
    with pytest.raises(InputError, match="expected a share"):
        refer([0.1], [1.0], 2, within=95)

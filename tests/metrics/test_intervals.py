"""Intervals against an independent implementation, coverage by simulation, and tables."""

import csv
import io
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from clearmargin.errors import InputError
from clearmargin.metrics.intervals import (
    bootstrap_means,
    bootstrap_statistic,
    group_means,
    size_strata,
)
from clearmargin.metrics.tables import (
    CaseRow,
    rows_csv,
    summarise,
    summary_csv,
    summary_json,
    summary_markdown,
)


def rng(seed=0):
    return np.random.default_rng(seed)


def test_patients_come_first():
    names, means = group_means([1.0, 1.0, 1.0, 5.0], ["a", "a", "a", "b"])
    assert names == ["a", "b"]
    assert means.tolist() == [1, 5]
    found = bootstrap_means({"x": [1.0, 1.0, 1.0, 5.0]}, ["a", "a", "a", "b"], rng=rng())["x"]
    assert found.estimate == 3  # not 2, the mean over cases
    assert (found.groups, found.cases) == (2, 4)


def test_bca_agrees_with_scipy():
    values = rng(1).gamma(1.0, 2.0, 40)
    ours = bootstrap_means({"x": values}, [str(i) for i in range(40)], rng=rng(), resamples=20_000)["x"]
    theirs = stats.bootstrap(
        (values,), np.mean, n_resamples=20_000, method="BCa", rng=rng(2)
    ).confidence_interval
    assert ours.low == pytest.approx(theirs.low, rel=0.03)
    assert ours.high == pytest.approx(theirs.high, rel=0.03)


def test_clusters_widen_the_interval():
    patients = [str(i) for i in range(20) for _ in range(10)]
    values = np.repeat(rng(3).normal(0, 1, 20), 10)
    clustered = bootstrap_means({"x": values}, patients, rng=rng())["x"]
    naive = bootstrap_means({"x": values}, [str(i) for i in range(200)], rng=rng())["x"]
    assert clustered.high - clustered.low > 2.5 * (naive.high - naive.low)


def test_coverage_is_about_what_was_asked_for():
    generator = rng(4)
    hits = 0
    for _ in range(300):
        values = generator.exponential(1.0, 30)
        found = bootstrap_means({"x": values}, [str(i) for i in range(30)], rng=generator, resamples=1000)[
            "x"
        ]
        hits += found.low <= 1 <= found.high
    assert 0.88 <= hits / 300 <= 0.98


def test_the_same_seed_gives_the_same_interval_and_metrics_share_draws():
    patients = [str(i) for i in range(15)]
    values = rng(5).normal(size=15)
    first = bootstrap_means({"x": values, "y": values}, patients, rng=rng(9))
    assert first["x"] == first["y"]
    assert first == bootstrap_means({"x": values, "y": values}, patients, rng=rng(9))


def test_one_patient_has_no_interval_and_agreement_is_a_point():
    one = bootstrap_means({"x": [1.0, 2.0]}, ["a", "a"], rng=rng())["x"]
    assert (one.estimate, one.low, one.high) == (1.5, None, None)
    same = bootstrap_means({"x": [2.0, 2.0, 2.0]}, ["a", "b", "c"], rng=rng())["x"]
    assert (same.low, same.high) == (2.0, 2.0)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.floats(-100, 100), min_size=2, max_size=12), st.integers(0, 99))
def test_the_interval_lies_within_the_data(values, seed):
    found = bootstrap_means(
        {"x": values}, [str(i) for i in range(len(values))], rng=rng(seed), resamples=200
    )["x"]
    assert min(values) - 1e-9 <= found.low <= found.high <= max(values) + 1e-9


def test_what_is_not_finite_is_refused_not_dropped():
    with pytest.raises(InputError, match="is not left out"):
        bootstrap_means({"x": [1.0, np.nan]}, ["a", "b"], rng=rng())
    with pytest.raises(InputError, match="at least one case"):
        bootstrap_means({"x": []}, [], rng=rng())


def test_any_statistic_with_its_interval():
    values = rng(6).gamma(2.0, 1.0, 25)
    patients = [str(i) for i in range(25)]
    means = bootstrap_means({"x": values}, patients, rng=rng(1), resamples=4000)["x"]
    found = bootstrap_statistic(np.mean, list(values), patients, rng=rng(2), resamples=4000)
    assert found.estimate == pytest.approx(means.estimate)
    assert found.low == pytest.approx(means.low, rel=0.04)
    assert found.high == pytest.approx(means.high, rel=0.04)


def test_size_strata():
    assert [s.split()[0] for s in size_strata([1, 2, 3, 4, 5, 6], "mm^3")] == ["small"] * 2 + [
        "medium"
    ] * 2 + ["large"] * 2
    assert size_strata([], "px") == []


def rows():
    statuses = ["tp", "tp", "fn", "fp", "tn", "tp"]
    values = [0.8, 0.6, 0.0, 0.0, 1.0, 0.9]
    return [
        CaseRow(
            group=f"p{i // 2}", case=f"c{i}", status=status, unit="mm", ndim=3,
            values={"dice": value}, strata={"class": "tumour" if i % 2 else "cyst"},
        )
        for i, (status, value) in enumerate(zip(statuses, values, strict=True))
    ]  # fmt: skip


def test_tables_count_every_status_and_drop_nothing():
    summary = summarise(rows(), rng=rng(), by=["class"], resamples=200)
    assert [row.stratum for row in summary] == ["all", "class = cyst", "class = tumour"]
    first = summary[0]
    assert dict(first.counts) == {"tp": 3, "fn": 1, "fp": 1, "tn": 1}
    assert first.miss_rate == 0.25
    assert first.interval.estimate == pytest.approx((0.7 + 0.0 + 0.95) / 3)
    assert first.interval.cases == 6
    assert first.median == pytest.approx(0.7)


def test_tables_in_every_form_say_the_same():
    summary = summarise(rows(), rng=rng(), by=["class"], resamples=200)
    by_csv = list(csv.DictReader(io.StringIO(summary_csv(summary))))
    by_json = json.loads(summary_json(summary))
    assert [float(r["mean"]) for r in by_csv] == [r["mean"] for r in by_json]
    assert summary_markdown(summary).splitlines()[2].startswith("| all | dice |  | 0.550 | 0.492 | [")
    assert rows_csv(rows()).splitlines()[0] == "group,case,status,unit,class,dice"


def test_tables_refuse_what_cannot_share_one():
    mixed = [
        *rows(),
        CaseRow(group="q", case="q", status="tp", unit="px", ndim=2, values={"dice": 1.0}, strata={}),
    ]
    with pytest.raises(InputError, match="mm and in px"):
        summarise(mixed, rng=rng())
    with pytest.raises(InputError, match="did you mean 'class'"):
        summarise(rows(), rng=rng(), by=["clas"])
    with pytest.raises(InputError, match="no case"):
        summarise([], rng=rng())


def test_rows_without_an_object_move_no_limit_of_size():
    """Three sizes and many rightly empty cases, whose size is 0: by hand, a third of the objects in each stratum."""
    sizes = [18.0, 72.0, 600.0, *[0.0] * 12]
    strata = size_strata(sizes, "mm^3", objects=[s > 0 for s in sizes])
    assert [s.split(" ")[0] for s in strata[:3]] == ["small", "medium", "large"]
    assert set(strata[3:]) == {"no object"}
    assert size_strata([0.0, 0.0], "px^2", objects=[False, False]) == ["no object"] * 2

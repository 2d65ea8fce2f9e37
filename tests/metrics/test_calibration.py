"""Calibration errors: by hand, against a slow count, and against scikit-learn."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.calibration import calibration_curve
from sklearn.metrics import brier_score_loss

from clearmargin.core import Grid, InstanceSet
from clearmargin.errors import ConfigError
from clearmargin.metrics.calibration import (
    CELLS,
    Reliability,
    boundary_band,
)
from clearmargin.metrics.detection_calibration import detection_calibration_error, detection_outcomes

from .shapes import block, squares


@st.composite
def events(draw):
    rng = np.random.default_rng(draw(st.integers(0, 100_000)))
    n = draw(st.integers(1, 60))
    p = rng.random(n)
    if draw(st.booleans()):
        p = np.round(p * 10) / 10  # ties, and values on the bins' limits
    return p, rng.random(n) < p ** draw(st.sampled_from([0.5, 1.0, 3.0]))


def slow_bins(p, right, bins):
    """The members of each bin ((k/bins), (k+1)/bins], by looking at every one."""
    for k in range(bins):
        inside = [
            i for i in range(len(p)) if (k / bins + 1e-9 < p[i] or k == 0) and p[i] <= (k + 1) / bins + 1e-9
        ]
        if inside:
            yield len(inside), np.mean(p[inside]), np.mean(right[inside])


@settings(max_examples=80, deadline=None)
@given(events(), st.sampled_from([10, 15, 20]))
def test_ece_and_mce_are_the_slow_count(data, bins):
    p, right = data
    found = Reliability.of(p, right)
    rows = list(slow_bins(p, right, bins))
    assert found.ece(bins) == pytest.approx(sum(n * abs(c - a) for n, c, a in rows) / len(p))
    assert found.mce(bins) == pytest.approx(max(abs(c - a) for _, c, a in rows))


@settings(max_examples=60, deadline=None)
@given(events(), st.sampled_from([5, 10, 15]))
def test_the_curve_and_the_brier_score_are_scikit_learns(data, bins):
    p, right = data
    found = Reliability.of(p, right)
    said, came_true, count = found.curve(bins)
    theirs_right, theirs_said = calibration_curve(right, p - 1e-12 * (p > 0), n_bins=bins)
    np.testing.assert_allclose(said[count > 0], theirs_said, atol=1e-9)
    np.testing.assert_allclose(came_true[count > 0], theirs_right, atol=1e-9)
    assert np.isnan(came_true[count == 0]).all() and count.sum() == len(p)
    if 0 < right.sum() < len(p):
        assert found.brier().score == pytest.approx(brier_score_loss(right, p))


@settings(max_examples=60, deadline=None)
@given(events())
def test_ace_without_ties_cuts_the_sorted_events_in_equal_parts(data):
    _, right = data
    rng = np.random.default_rng(len(right))
    for per_bin, bins in ((1, 7), (4, 5), (6, 10)):
        n = per_bin * bins
        p = rng.permutation(CELLS)[:n] / CELLS  # one event a cell
        outcome = rng.random(n) < 0.5
        order = np.argsort(p).reshape(bins, per_bin)
        expected = np.mean([abs(p[part].mean() - outcome[part].mean()) for part in order])
        assert Reliability.of(p, outcome).ace(bins) == pytest.approx(expected)


def test_by_hand():
    p = np.array([0.1, 0.1, 0.1, 0.1, 0.9, 0.9, 0.9, 0.9])
    right = np.array([0, 0, 0, 1, 1, 1, 1, 1])
    found = Reliability.of(p, right)
    assert found.ece(10) == pytest.approx((0.15 + 0.1) / 2)
    assert found.mce(10) == pytest.approx(0.15)
    assert found.ace(2) == pytest.approx((0.15 + 0.1) / 2)
    assert found.ace(1) == pytest.approx(abs(0.5 - 5 / 8))
    brier = found.brier(10)
    assert brier.score == pytest.approx((3 * 0.01 + 0.81 + 4 * 0.01) / 8)
    assert brier.reliability == pytest.approx((0.15**2 + 0.1**2) / 2)
    assert brier.resolution == pytest.approx((0.375**2 + 0.375**2) / 2)
    assert brier.uncertainty == pytest.approx(5 / 8 * 3 / 8)
    assert brier.within == pytest.approx(0, abs=1e-12)


def test_ties_stay_together_in_bins_of_equal_mass():
    tied = Reliability.of(np.full(100, 0.7), np.arange(100) < 70)
    assert tied.ace(10) == pytest.approx(0, abs=1e-12)
    assert tied.ece(10) == pytest.approx(0, abs=1e-12)


def test_in_parts_or_at_once_and_in_half_the_precision():
    rng = np.random.default_rng(0)
    p = rng.random((4, 50, 50)).astype(np.float32)
    right = rng.random(p.shape) < p
    parts = Reliability.zeros()
    for plane, outcome in zip(p, right, strict=True):
        parts.add(plane, outcome)
    whole = Reliability.of(p, right)
    assert parts.ece() == pytest.approx(whole.ece())
    assert parts.brier().score == pytest.approx(whole.brier().score)
    assert whole.ece() < 0.02 < Reliability.of(p**3, right).ece()


def test_nothing_and_certainty():
    none = Reliability.zeros()
    none.add(np.zeros((0, 4)), np.zeros((0, 4)))
    assert (none.total, none.ece(), none.ace(), none.mce(), none.brier().score) == (0, 0, 0, 0, 0)
    certain = Reliability.of([1.0, 1.0, 0.0, 1.0], [1, 1, 0, 0])
    assert certain.ece() == certain.brier().score == 0.25
    assert certain.mce() == pytest.approx(1 / 3)
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        none.add([np.nan], [True])
    with pytest.raises(ValueError, match="shape"):
        none.add([0.5], [True, False])
    with pytest.raises(ValueError, match="7 bins"):
        none.ece(7)


def test_the_band_is_in_millimetres_on_both_sides_and_the_image_has_no_edge():
    shape, spacing = (30, 30), (2.0, 0.5)
    band = boundary_band(block(shape, (0, 10), (30, 20)), spacing, 1.0)
    assert np.flatnonzero(band[15]).tolist() == [8, 9, 10, 11, 18, 19, 20, 21]
    assert (band == band[15]).all()  # the rows at the image's edge are like the others
    assert not boundary_band(np.zeros(shape, bool), spacing, 1.0).any()
    assert not boundary_band(np.ones(shape, bool), spacing, 1.0).any()
    with pytest.raises(ConfigError, match="thinner than one element"):
        boundary_band(np.ones(shape, bool), spacing, 0.1)


def test_the_boundary_band_shows_what_the_background_hides():
    truth = block((60, 60), (20, 20), (40, 40))
    p = np.where(truth, 1.0, 0.0)
    band = boundary_band(truth, (1.0, 1.0), 2.0)
    p[band] = 0.9  # sure of foreground on both sides of the edge
    found, near = Reliability.of(p, truth), Reliability.zeros()
    near.add(p, truth, where=band)
    assert near.total == band.sum()
    assert near.ece() == pytest.approx(0.9 - truth[band].mean())
    assert found.ece() == pytest.approx(near.ece() * band.mean())


def test_detections_by_hand():
    reference = squares(40, (0, 0, 10), (20, 20, 10))
    predicted = squares(40, (0, 0, 10), (20, 22, 10), (0, 30, 5), scores=[0.95, 0.55, 0.75])
    scores, right, sizes = detection_outcomes(predicted, reference)
    assert right.tolist() == [True, True, False]
    np.testing.assert_allclose(sizes, [0.25, 0.25, 0.125])
    np.testing.assert_allclose(scores, [0.95, 0.55, 0.75], atol=1e-6)
    # bins of 0.1: gaps 0.05, 0.45 and 0.75
    assert detection_calibration_error(scores, right) == pytest.approx(1.25 / 3, abs=1e-6)
    # one bin: |2.25 / 3 - 2 / 3|
    assert detection_calibration_error(scores, right, bins=1) == pytest.approx(0.25 / 3, abs=1e-6)
    # two bins of score, then the small one apart: |1.5 - 2| and |0.7 - 0|
    scores, right, sizes = np.array([0.6, 0.9, 0.7]), np.array([1, 1, 0]), np.array([0.6, 0.6, 0.1])
    assert detection_calibration_error(scores, right, sizes, bins=2) == pytest.approx((0.5 + 0.7) / 3)
    assert detection_calibration_error(scores, right, bins=2) == pytest.approx(0.2 / 3)


def test_no_detection_and_what_lies_in_the_ignored_region():
    grid = Grid.from_spacing((40, 40), (1, 1))
    scores, right, sizes = detection_outcomes(InstanceSet.empty(grid), InstanceSet.empty(grid))
    assert detection_calibration_error(scores, right, sizes) == 0
    reference = squares(40, (0, 0, 10))
    ignored = InstanceSet(
        grid=reference.grid, masks=reference.masks, labels=reference.labels, scores=reference.scores,
        ignore=squares(40, (20, 20, 20)).masks[0],
    )  # fmt: skip
    predicted = squares(40, (0, 0, 10), (25, 25, 8), scores=[0.9, 0.8])
    assert len(detection_outcomes(predicted, ignored)[0]) == 1


@settings(max_examples=40, deadline=None)
@given(events())
def test_detections_by_score_alone_are_the_ece(data):
    p, right = data
    assert detection_calibration_error(p, right, bins=10) == pytest.approx(Reliability.of(p, right).ece(10))


def test_the_curve_is_drawn():
    from clearmargin.report.figures import reliability

    rng = np.random.default_rng(0)
    p = 0.2 + 0.8 * rng.random(500)  # two bins stay empty
    figure = reliability(*Reliability.of(p, rng.random(500) < p).curve(10))
    drawn = figure.axes[0].lines[1].get_ydata()
    assert len(drawn) == 10 and np.isnan(drawn[0]) and np.nanmax(drawn) <= 1
    assert sum(bar.get_height() for bar in figure.axes[1].patches) == 500

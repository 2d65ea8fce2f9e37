"""The threshold under which few are missed: by hand, monotone, and as often right as promised."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clearmargin.core import Grid, InstanceSet, Mask
from clearmargin.errors import ConfigError, InputError
from clearmargin.margins.misses import LOSSES, Found, find_references, fit_threshold
from clearmargin.metrics.matching import match_instances, match_optimally


def found_in(*groups):
    return [Found(group=f"p{k}", score=score) for k, group in enumerate(groups) for score in group]


def fit(found, alpha, loss="share", groups=None):
    names = {one.group for one in found} if groups is None else groups
    return fit_threshold(found, names, alpha, group="patient", loss=loss)


def test_by_hand():
    # ten groups of one instance: with k missed the bound is (k + 1) / 11
    found = found_in(*[[k / 10] for k in range(1, 11)])
    assert fit(found, 0.1).threshold == pytest.approx(0.1)  # none may be missed: 1/11 is 0.0909
    assert fit(found, 0.2).threshold == pytest.approx(0.2)  # one: 2/11 is 0.182
    assert fit(found, 0.5).threshold == pytest.approx(0.5)  # four: 5/11 is 0.4545
    assert fit(found, 0.5).risk == pytest.approx(0.4)
    with pytest.raises(InputError, match=r"10 groups reach 0\.0909 at best"):
        fit(found, 0.09)


def test_shares_and_any():
    found = found_in(*[[0.9, 0.3]] * 19)
    assert fit(found, 0.05).threshold == pytest.approx(0.3)
    assert fit(found, 0.6).threshold == pytest.approx(0.9)  # (19 x 0.5 + 1) / 20 is 0.525
    assert fit(found, 0.6, "any").threshold == pytest.approx(0.3)


def test_what_is_never_found_is_missed_at_every_threshold():
    found = found_in(*[[0.9]] * 16, *[[None]] * 3)
    with pytest.raises(InputError, match=r"19 groups reach 0\.2 at best"):
        fit(found, 0.1)
    assert fit(found, 0.2).threshold == pytest.approx(0.9)


def test_no_instance_one_group_ties_and_an_alpha_that_is_none():
    with pytest.raises(InputError, match="no group has an instance"):
        fit([], 0.1, groups=["p1"])
    with pytest.raises(InputError, match=r"1 groups reach 0\.5 at best"):
        fit(found_in([0.9]), 0.1)
    tied = fit(found_in(*[[1.0]] * 30), 0.1, groups=[f"p{k}" for k in range(33)])
    assert (tied.threshold, tied.n, tied.without, tied.risk) == (1.0, 30, 3, 0.0)
    assert "n = 30 patients, 3 more had no instance" in str(tied)
    with pytest.raises(ConfigError, match="between 0 and 1"):
        fit(found_in([0.9]), 5)


def test_a_merged_or_cut_object_is_missed_at_the_iou_that_is_stated():
    # one group in ten has its object merged with another, at an IoU of 0.55
    found = [Found(group=f"p{k}", score=0.9, iou=0.55 if k % 10 == 0 else 0.9) for k in range(40)]
    at_half = fit_threshold(found, [one.group for one in found], 0.1, group="patient")
    assert at_half.risk == 0 and at_half.match_iou == 0.5
    with pytest.raises(InputError, match=r"40 groups reach 0\.122 at best"):  # 5 of 41
        fit_threshold(found, [one.group for one in found], 0.1, group="patient", match_iou=0.6)
    stated = fit_threshold(found, [one.group for one in found], 0.2, group="patient", match_iou=0.6)
    assert stated.risk == pytest.approx(0.1)
    assert "missed, merged or cut, so that no prediction has an IoU of 0.6 with it" in str(stated)


@st.composite
def images(draw):
    rng = np.random.default_rng(draw(st.integers(0, 100_000)))
    grid = Grid.from_spacing((12, 12), (1, 1))

    def some(n):
        masks = []
        for _ in range(n):
            y, x = rng.integers(0, 9, 2)
            dense = np.zeros(grid.shape, bool)
            dense[y : y + rng.integers(2, 6), x : x + rng.integers(2, 6)] = True
            masks.append(dense)
        return masks

    scores = np.round(rng.random(6), draw(st.sampled_from([1, 6])))
    predicted = InstanceSet.from_dense(grid, some(6), scores=scores)
    return predicted, InstanceSet.from_dense(grid, some(4)), draw(st.sampled_from([0.1, 0.3, 0.5]))


@settings(max_examples=80, deadline=None)
@given(images())
def test_a_reference_is_found_exactly_while_its_partners_score_is_kept(data):
    """What the theory asks for: matching again at each threshold misses what the one full matching says."""
    predicted, reference, iou = data
    scores = [one.score for one in find_references("p", predicted, reference, iou_threshold=iou)]
    before = 0
    for threshold in [0.0, *sorted(set(predicted.scores.tolist())), 1.01]:
        kept = predicted.select(predicted.scores >= threshold)
        missed = set(match_instances(kept, reference, iou_threshold=iou).false_negatives.tolist())
        assert missed == {j for j, s in enumerate(scores) if s is None or s < threshold}
        optimal = len(match_optimally(kept, reference, iou_threshold=iou).false_negatives)
        assert optimal >= before  # monotone as well
        before = optimal


def test_what_lies_in_the_ignored_region_is_not_asked_for():
    grid = Grid.from_spacing((20, 20), (1, 1))
    a, b = np.zeros((2, 20, 20), bool)
    a[2:6, 2:6], b[12:16, 12:16] = True, True
    one = InstanceSet.from_dense(grid, [a, b])
    reference = InstanceSet(
        grid=grid, masks=one.masks, labels=one.labels, scores=one.scores, ignore=Mask.from_dense(b)
    )
    assert [f.score for f in find_references("p", InstanceSet.empty(grid), reference)] == [None]
    half = InstanceSet.from_dense(grid, [a], scores=[0.5])
    assert [f.score for f in find_references("p", half, reference)] == [0.5]


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("alpha", [0.1, 0.2])
def test_new_groups_miss_no_more_than_promised_over_random_splits(loss, alpha):
    rng = np.random.default_rng(4)
    pool = [np.maximum(rng.beta(5, 2) * rng.beta(8, 1, rng.integers(1, 8)), 1e-3) for _ in range(150)]
    losses = []
    for _ in range(60):
        order = rng.permutation(len(pool))
        fitted = fit(found_in(*[pool[i] for i in order[:60]]), alpha, loss)
        losses.append(np.mean([LOSSES[loss](pool[i] < fitted.threshold) for i in order[60:]]))
    # over 60 splits the mean has a standard deviation of about 0.005
    assert alpha - 0.04 < np.mean(losses) <= alpha + 0.01

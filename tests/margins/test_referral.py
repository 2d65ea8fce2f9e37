"""When a person should look, in sentences."""

from dataclasses import replace

import numpy as np
import pytest
from calibrated import LABELS, MADE_BY

from clearmargin.core import Grid, InstanceSet, Prediction
from clearmargin.errors import ConfigError
from clearmargin.margins.referral import NOTHING, ReferralRules, fit_rules, reasons

GRID = Grid.from_spacing((20, 20), (1, 1))


def prediction(*, score=0.9, corner=(5, 5), **columns):
    mask = np.zeros(GRID.shape, bool)
    mask[corner[0] : corner[0] + 6, corner[1] : corner[1] + 6] = True
    instances = InstanceSet.from_dense(GRID, [mask], scores=[score])
    instances = replace(instances, uncertainty={k: np.array([v]) for k, v in columns.items()})
    return Prediction(instances=instances, label_map=LABELS, provenance=MADE_BY)


def test_a_sure_instance_inside_the_image_is_not_flagged():
    sure = prediction(pairwise_dice=0.95, found_by=1.0, predicted_nsd=0.99)
    assert reasons(sure, 0, ReferralRules()) == []
    assert reasons(prediction(), 0, ReferralRules()) == []  # not sampled: only what is known speaks


@pytest.mark.parametrize(
    ("of", "sentence"),
    [
        ({"pairwise_dice": 0.62}, "members disagree on its mask: pairwise Dice 0.62, under 0.80"),
        ({"found_by": 0.4}, "found by 40 % of the members, under 60 %"),
        ({"predicted_nsd": 0.7}, "its edge is expected to be off: predicted NSD 0.70, under 0.80"),
        ({"score": 0.55}, "score near the threshold: 0.55, under 0.60"),
        ({"corner": (0, 5)}, "reaches the image's edge: part of it may be outside"),
        ({"corner": (5, 14)}, "reaches the image's edge: part of it may be outside"),
    ],
)
def test_each_rule_says_its_reason(of, sentence):
    assert reasons(prediction(**of), 0, ReferralRules()) == [sentence]


def test_several_reasons_come_together():
    doubtful = prediction(score=0.5, pairwise_dice=0.5, corner=(0, 0))
    assert len(reasons(doubtful, 0, ReferralRules())) == 3
    assert "reaches" not in " ".join(reasons(doubtful, 0, ReferralRules(edge=False)))


def test_a_volume_of_one_slice_does_not_end_at_its_slice():
    grid = Grid.from_spacing((1, 20, 20), (5, 1, 1))
    mask = np.zeros(grid.shape, bool)
    mask[0, 5:9, 5:9] = True
    flat = Prediction(instances=InstanceSet.from_dense(grid, [mask]), label_map=LABELS, provenance=MADE_BY)
    assert reasons(flat, 0, ReferralRules()) == []


def test_a_limit_flags_as_few_as_needed():
    """Ten instances, two bad at the lowest Dice: referring one leaves 8 of 9 good, two leave all of them."""
    dice = np.linspace(0.5, 0.95, 10)
    failed = np.arange(10) < 2
    rules = fit_rules({"pairwise_dice": dice}, failed)
    assert rules.pairwise_dice == pytest.approx((dice[1] + dice[2]) / 2)
    assert (
        "flags 2 of 10 instances, of the others 100 % are good (of all 80 %)" in rules.fitted["pairwise_dice"]
    )
    assert rules.score == ReferralRules().score and "score" not in rules.fitted


def test_where_all_are_good_what_is_worse_than_all_is_flagged():
    rules = fit_rules({"pairwise_dice": [0.7, 0.9], "score": [0.8, 0.9]}, [False, False])
    assert rules.pairwise_dice == pytest.approx(0.7)
    assert rules.score == ReferralRules().score  # the default is lower than anything seen


def test_a_limit_that_would_flag_everything_flags_nothing_and_says_so():
    rules = fit_rules({"score": [0.1, 0.2, 0.8]}, [True, True, True])
    assert rules.score == NOTHING and "flags nothing" in rules.fitted["score"]
    assert "would flag 3 of 3 instances" in rules.fitted["score"]
    assert reasons(prediction(score=0.0), 0, rules) == []
    assert fit_rules({"score": []}, []) == ReferralRules()


def test_rules_survive_their_plain_form():
    rules = fit_rules({"score": [0.6, 0.7, 0.8]}, [True, False, False])
    assert ReferralRules.from_data(rules.to_data()) == rules
    with pytest.raises(ConfigError, match="not referral rules"):
        ReferralRules.from_data({"dise": 0.5})

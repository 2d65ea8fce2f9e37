"""Folds are disjoint by group, cover the pool, and never hold calibration or test cases."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from toy import write_toy_set

from clearmargin.datasets.cases import Case, Dataset, open_dataset
from clearmargin.datasets.folds import FoldSettings, in_fold
from clearmargin.errors import ConfigError


@pytest.fixture(scope="module")
def card(tmp_path_factory):
    return open_dataset(write_toy_set(tmp_path_factory.mktemp("folds"), cases=8)).card


def made_of(card, groups):
    """A data set with one case for each entry of ``groups``."""
    cases = tuple(
        Case(case=f"c{k}", group=f"u{group}", split=split, strata={}, image=Path(), references=(Path(),))
        for k, (group, split) in enumerate(groups)
    )
    return Dataset(card=card, cases=cases)


@given(
    groups=st.lists(st.integers(0, 12), min_size=30, max_size=60),
    of=st.integers(3, 5),
    validate=st.booleans(),
)
def test_each_unit_is_held_out_once_and_learned_from_otherwise(card, groups, of, validate):
    split_of = ("train", "train", "validation", "calibration", "test")
    dataset = made_of(card, [(u, split_of[u % 5]) for u in groups])
    pool = {c.group for c in dataset.cases if c.split in ("train", "validation")}
    if len(pool) < of:
        with pytest.raises(ConfigError, match="too few"):
            in_fold(dataset, FoldSettings(number=1, of=of), validate=validate)
        return
    held = []
    for number in range(1, of + 1):
        fold = in_fold(dataset, FoldSettings(number=number, of=of), validate=validate)
        by_split = {s: {c.group for c in fold.cases if c.split == s} for s in ("train", "validation", "test")}
        assert set.union(*by_split.values()) == pool
        assert sum(map(len, by_split.values())) == len(pool)
        assert by_split["test"] and by_split["train"]
        assert bool(by_split["validation"]) == validate
        held += by_split["test"]
    assert sorted(held) == sorted(pool)


def test_a_units_fold_does_not_depend_on_the_order_of_the_cases(card):
    groups = [(u, "train") for u in range(9)]
    fold = FoldSettings(number=2, of=3)
    for order in (groups, groups[::-1]):
        held = {
            c.group for c in in_fold(made_of(card, order), fold, validate=False).cases if c.split == "test"
        }
        assert held == {
            c.group for c in in_fold(made_of(card, groups), fold, validate=False).cases if c.split == "test"
        }


def test_folds_that_cannot_be_are_refused(card):
    with pytest.raises(ValidationError, match="no number 4"):
        FoldSettings(number=4, of=3)
    with pytest.raises(ConfigError, match="none to validate on"):
        in_fold(made_of(card, [(1, "train"), (2, "train")]), FoldSettings(number=1, of=2), validate=True)

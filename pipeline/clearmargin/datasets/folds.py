"""Cross-validation by group: what is held out in each fold."""

from __future__ import annotations

import hashlib
from dataclasses import replace

from pydantic import Field, model_validator

from clearmargin.config import Settings
from clearmargin.core.groups import PLURALS
from clearmargin.datasets.card import Split
from clearmargin.datasets.cases import Dataset
from clearmargin.errors import ConfigError

__all__ = ["FoldSettings", "in_fold"]


class FoldSettings(Settings):
    """Which fold of how many is held out."""

    number: int = Field(ge=1, description="number of the fold that is held out")
    of: int = Field(ge=2, description="number of folds")
    seed: int = Field(0, ge=0, description="random seed for the order of the groups")

    @model_validator(mode="after")
    def _among_them(self) -> FoldSettings:
        if self.number > self.of:
            raise ValueError(f"there are {self.of} folds, and no number {self.number}")
        return self


def in_fold(dataset: Dataset, fold: FoldSettings, *, validate: bool) -> Dataset:
    """Return the data set of one fold, made of the card's train and validation groups.

    The held-out fold's groups are the split ``test``; the card's own calibration and test cases are not in it, so
    that no fold sees them. With ``validate`` the next fold is the split ``validation``: what stops a training or
    chooses an epoch is not what it is measured on.

    Args:
        dataset: Data set of a card.
        fold: Which one.
        validate: Whether the training decides anything by validation.

    Raises:
        ConfigError: There are fewer groups than folds, or two folds and one to be validated on.
    """
    pool = [case for case in dataset.cases if case.split in ("train", "validation")]

    # A hash orders the groups, so that a group's fold does not depend on the order of an index.
    def order(group: str) -> str:
        return hashlib.sha256(f"{fold.seed}:{group}".encode()).hexdigest()

    groups = sorted({case.group for case in pool}, key=order)
    if len(groups) < fold.of:
        raise ConfigError(
            f"card '{dataset.card.name}' has {len(groups)} {PLURALS[dataset.card.group]} in train and validation: "
            f"too few for {fold.of} folds"
        )
    if validate and fold.of == 2:
        raise ConfigError("two folds leave none to validate on: take three, or training.early_stopping=null")
    splits: dict[str, Split] = {}
    for place, group in enumerate(groups):
        behind = (place - (fold.number - 1)) % fold.of
        splits[group] = "test" if behind == 0 else "validation" if validate and behind == 1 else "train"
    return replace(dataset, cases=tuple(replace(case, split=splits[case.group]) for case in pool))

"""Which group belongs to which split."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence

from clearmargin.datasets.card import Card, Split
from clearmargin.errors import ConfigError

__all__ = ["assign_splits"]


def assign_splits(card: Card, rows: Sequence[dict[str, str]], groups: Sequence[str]) -> dict[str, Split]:
    """Return each group's split: the shipped one, then shares carved out of train by a seeded order of groups.

    Raises:
        ConfigError: A value of the split column that the card does not list; a group in two splits; carving
            that leaves nothing to train on.
    """
    assigned: dict[str, Split] = {}
    for row, group in zip(rows, groups, strict=True):
        split: Split = "train"
        if card.splits.column is not None:
            value = row[card.splits.column]
            if value not in card.splits.values:
                raise ConfigError(f"card '{card.name}': split value '{value}' is not in splits.values")
            split = card.splits.values[value]
        if assigned.setdefault(group, split) != split:
            raise ConfigError(
                f"card '{card.name}': one {card.group} lies in two splits ({assigned[group]}, {split}); "
                "splits must be disjoint by group"
            )

    # A hash orders the groups, so that a group's place does not depend on which others are there.
    def order(group: str) -> str:
        return hashlib.sha256(f"{card.splits.seed}:{group}".encode()).hexdigest()

    train = sorted((u for u, s in assigned.items() if s == "train"), key=order)
    taken = 0
    for split, share in card.splits.carve.items():
        count = max(1, math.floor(share * len(train) + 0.5))
        for group in train[taken : taken + count]:
            assigned[group] = split
        taken += count
    if card.splits.carve and taken >= len(train):
        raise ConfigError(
            f"card '{card.name}': carving leaves no {card.group} to train on ({len(train)} in all)"
        )
    return assigned

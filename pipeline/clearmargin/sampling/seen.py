"""What a model was trained on, so that nothing is promised from the same patients."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Seen"]


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What a model, or each member of an ensemble, was trained or chosen on.

    Attributes:
        groups: Keyed hashes of the groups.
        contents: Hashes of their images (`datasets.contents`); empty if some member does not record them.
        keys: Fingerprints of the keys that the groups were hashed with.
        cards: Names of the cards, which the hashes depend on.
    """

    groups: frozenset[str]
    contents: frozenset[str]
    keys: frozenset[str]
    cards: frozenset[str]

"""What a ledger holds: items, and what became of them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from clearmargin.errors import InputError

__all__ = ["Item", "NewItem", "Outcome", "State", "item_of"]

State = Literal["pending", "leased", "done", "failed", "refused", "withdrawn"]
"""``failed``: an error that another try may cure. ``refused``: the input's own fault; another try gives the same."""


@dataclass(frozen=True, kw_only=True)
class NewItem:
    """An input to be worked on.

    Attributes:
        key: SHA-256 of its content and of the recipe.
        recipe: Digest of the recipe.
        case_id: Its case id.
        source: How it is read, as plain data. Private: it holds paths or UIDs.
    """

    key: str
    recipe: str
    case_id: str
    source: Mapping[str, Any] = field(repr=False)


@dataclass(frozen=True, kw_only=True)
class Item(NewItem):
    """A row of the ledger.

    Attributes:
        id: Its number, in the order of arrival.
        state: What it is in.
        owner: Who works on it; "" if nobody.
        tries: How often it was begun.
        reason: Why it failed or was refused, without identity; "" otherwise.
        kind: The reason's kind: the error's type.
        folder: Where its results lie, below the output folder; "" if there are none.
        files: Name to SHA-256 of its results.
        predecessor: The item whose place it takes, as the series has grown; None if there is none.
        predecessor_folder: Where that one's results lie, below the output folder; known of a claimed item, else "".
        current: Whether its results are the ones that count for its case.
        seconds: How long the last try took.
    """

    id: int
    state: State
    owner: str = ""
    tries: int = 0
    reason: str = ""
    kind: str = ""
    folder: str = ""
    files: Mapping[str, str] = field(default_factory=dict)
    predecessor: int | None = None
    predecessor_folder: str = ""
    current: bool = False
    seconds: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of an item.

    Attributes:
        state: ``done``, ``failed`` or ``refused``.
        reason: Why not, without identity.
        kind: The error's type.
        folder: Where its results lie, below the output folder.
        files: Name to SHA-256 of its results.
        instances: How many instances were detected.
        warned: Whether the case differs from what the model was trained or calibrated on.
        seconds: How long it took.
        again_in_s: Seconds until a failed item is tried again; None for not at all.
        counted: Whether the try counts; not if what it needed was away for all items.
        sent: SOPInstanceUID, SHA-256 and destination of each object that a destination confirmed.
    """

    state: Literal["done", "failed", "refused"]
    reason: str = ""
    kind: str = ""
    folder: str = ""
    files: Mapping[str, str] = field(default_factory=dict)
    instances: int = 0
    warned: bool = False
    seconds: float = 0.0
    again_in_s: float | None = None
    counted: bool = True
    sent: tuple[tuple[str, str, str], ...] = ()


def item_of(row: Mapping[str, Any]) -> Item:
    """Return the item of a ledger's row, column by column.

    Raises:
        InputError: A column is missing or damaged.
    """
    try:
        return Item(
            id=int(row["id"]),
            key=row["key"],
            recipe=row["recipe"],
            case_id=row["case_id"],
            source=json.loads(row["source"]),
            state=row["state"],
            owner=row["owner"],
            tries=int(row["tries"]),
            reason=row["reason"],
            kind=row["kind"],
            folder=row["folder"],
            files=json.loads(row["files"]),
            predecessor=row["predecessor"],
            current=bool(row["current"]),
            seconds=float(row["seconds"]),
        )
    except (KeyError, ValueError) as error:
        raise InputError(f"row {row.get('id')} of the ledger is damaged: {type(error).__name__}") from None

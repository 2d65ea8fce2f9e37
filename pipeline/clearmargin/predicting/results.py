"""What a batch has done: compared with the ledger, taken back, or sent to where it had not been sent."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from clearmargin.errors import ClearMarginError, InputError
from clearmargin.files import file_digest
from clearmargin.jobs.items import Item
from clearmargin.jobs.ledger import Ledger
from clearmargin.predicting.items import Destination, point_to_current

__all__ = ["send_earlier", "verify", "withdraw"]


def verify(ledger: Ledger, out: Path, *, redo: bool = False) -> dict[str, str]:
    """Return what is wrong with the results that the ledger calls done, by folder; nothing if all are as written.

    With ``redo`` their items are pending again: the next batch writes them anew.
    """
    wrong, ids = {}, []
    for item in ledger.items("done"):
        for name, digest in item.files.items():
            file = out / item.folder / name
            if not file.is_file():
                wrong[item.folder] = f"{name} is missing"
            elif file_digest(file) != digest:
                wrong[item.folder] = f"{name} was changed"
        if item.folder in wrong:
            ids.append(item.id)
    if redo and ids:
        ledger.redo(ids)
    return wrong


def withdraw(ledger: Ledger, out: Path, *, weights_sha256: str | None = None) -> list[Item]:
    """Take back the results of a model, or all: they are no longer current; return them, with what was sent of them.

    Files stay, and archives keep what they have: `Ledger.sent` lists what is to be removed there.

    Args:
        ledger: The batch's.
        out: Its output folder.
        weights_sha256: The model's weights, or how its digest begins; None for all.
    """
    recipes = {}
    items = []
    for item in ledger.items("done"):
        if item.recipe not in recipes:
            recipes[item.recipe] = ledger.recall(f"recipe {item.recipe}") or {}
        weights = str(recipes[item.recipe].get("provenance", {}).get("weights_sha256", ""))
        if weights_sha256 is None or weights.startswith(weights_sha256):
            items.append(item)
    ledger.withdraw([item.id for item in items])
    for case in dict.fromkeys(item.case_id for item in items):
        point_to_current(out, case, "")
    return items


def send_earlier(
    ledger: Ledger, out: Path, recipe: str, destinations: Sequence[Destination]
) -> dict[str, str]:
    """Send what was done before a destination was named; return what it does not have, by case, with the reason."""
    unsent = {}
    for destination in destinations:
        for item in ledger.unsent(destination.name, recipe):
            objects = [name for name in item.files if name.endswith(".dcm")]
            if not objects:
                continue
            folder = out / item.folder
            try:
                if any(file_digest(folder / name) != item.files[name] for name in objects):
                    raise InputError("its files are not as they were written: `clearmargin batch verify`")
                sent = destination.send([folder / name for name in objects])
            except FileNotFoundError:
                unsent[item.case_id] = "its files are gone: `clearmargin batch verify`"
            except ClearMarginError as error:
                unsent[item.case_id] = str(error)
            else:
                ledger.note_sent(item, [(uid, digest, destination.name) for uid, digest in sent])
    return unsent

"""What a batch has done: compared with the ledger, taken back, or sent to where it had not been sent."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from clearmargin.errors import ClearMarginError, InputError
from clearmargin.files import file_digest
from clearmargin.formats.dicom.rejection import write_rejection_note
from clearmargin.jobs.items import Item, State
from clearmargin.jobs.ledger import Ledger
from clearmargin.predicting.items import Destination, point_to_current

__all__ = ["WITHDRAWN", "Rejected", "reject", "send_earlier", "verify", "withdraw"]

WITHDRAWN = "withdrawn"
"""The folder below the output folder that holds Rejection Notes."""


@dataclass
class Rejected:
    """What came of Rejection Notes.

    Attributes:
        notes: The files, by SOPInstanceUID.
        sent: How many an archive has confirmed that had not before.
        failed: Why there is no note, or an archive does not have it, by case.
    """

    notes: dict[str, Path] = field(default_factory=dict)
    sent: int = 0
    failed: dict[str, str] = field(default_factory=dict)


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
    items = list(_of_model(ledger, "done", weights_sha256))
    ledger.withdraw([item.id for item in items])
    for case in dict.fromkeys(item.case_id for item in items):
        point_to_current(out, case, "")
    return items


def reject(
    ledger: Ledger,
    out: Path,
    destinations: Sequence[Destination] = (),
    *,
    weights_sha256: str | None = None,
) -> Rejected:
    """Write a Rejection Note for each withdrawn result with DICOM objects, and send it to where they are.

    What an archive has confirmed of notes is in the ledger: calling it again sends what is left.

    Args:
        ledger: The batch's.
        out: Its output folder; notes lie in ``OUT/withdrawn``.
        destinations: Archives that are sent the notes of what they have.
        weights_sha256: The model's weights, or how its digest begins; None for all.
    """
    rejected = Rejected()
    for item in _of_model(ledger, "withdrawn", weights_sha256):
        objects = [name for name in item.files if name.endswith(".dcm")]
        if not objects:
            continue
        note = out / WITHDRAWN / item.case_id / f"{item.folder.rpartition('/')[2]}.dcm"
        try:
            _check_files(item, out, objects)
            uid = write_rejection_note(note, [out / item.folder / name for name in objects])
            rejected.notes[uid] = note
            there = ledger.sent(item)
            for destination in destinations:
                known = {u for _, u, to in there if to == destination.name}
                if not known or uid in known:
                    continue
                sent = destination.send([note])
                ledger.note_sent(item, [(u, digest, destination.name) for u, digest in sent])
                rejected.sent += 1
        except ClearMarginError as error:
            rejected.failed[item.case_id] = str(error)
    return rejected


def _of_model(ledger: Ledger, state: State, weights_sha256: str | None) -> Iterator[Item]:
    recipes: dict[str, Any] = {}
    for item in ledger.items(state):
        if item.recipe not in recipes:
            recipes[item.recipe] = ledger.recall(f"recipe {item.recipe}") or {}
        weights = str(recipes[item.recipe].get("provenance", {}).get("weights_sha256", ""))
        if weights_sha256 is None or weights.startswith(weights_sha256):
            yield item


def _check_files(item: Item, out: Path, names: Sequence[str]) -> None:
    """Raise an InputError if files of a result are gone, or are not as they were written."""
    try:
        same = all(file_digest(out / item.folder / name) == item.files[name] for name in names)
    except FileNotFoundError:
        raise InputError("its files are gone: `clearmargin batch verify`") from None
    if not same:
        raise InputError("its files are not as they were written: `clearmargin batch verify`")


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
            try:
                _check_files(item, out, objects)
                sent = destination.send([out / item.folder / name for name in objects])
            except ClearMarginError as error:
                unsent[item.case_id] = str(error)
            else:
                ledger.note_sent(item, [(uid, digest, destination.name) for uid, digest in sent])
    return unsent

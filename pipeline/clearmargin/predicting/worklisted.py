"""Work items of a worklist as items of a ledger: claimed, done as any other, and completed or canceled."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clearmargin.errors import InputError, UnavailableError
from clearmargin.formats.dicom.boundary import read_header
from clearmargin.jobs.items import Item
from clearmargin.pacs.archive import Archive, digest_of_uids
from clearmargin.pacs.dimse import Dimse
from clearmargin.pacs.worklist import Output, WorkInput, Worklist
from clearmargin.predicting.archived import find_archived
from clearmargin.predicting.arriving import Arrivals
from clearmargin.predicting.discovery import Found, Left
from clearmargin.predicting.items import new_item

__all__ = ["FromWorklist"]

_ASK_EVERY_S = 5.0
_MOST_CLAIMED = 8
_ENDED = ("done", "failed", "refused", "withdrawn")


@dataclass
class FromWorklist:
    """Work items, a few claimed at a time; what was claimed is kept in the ledger, and goes on after a restart.

    Attributes:
        worklist: The worklist.
        archive: Where their series are; an address that a work item names is not asked.
        destination: Where results are sent.
        out: The output folder.
        what: What is done, in words: the model's name.
        arrivals: Counts them.
    """

    worklist: Worklist
    archive: Archive
    destination: Archive
    out: Path
    what: str
    arrivals: Arrivals
    _asked: float = 0.0

    @property
    def name(self) -> str:
        """The worklist's address."""
        return self.worklist.url.partition("?")[0]

    def look(self) -> None:
        """End the work items whose series have ended, and claim others."""
        if time.monotonic() - self._asked < _ASK_EVERY_S:
            return
        self._asked = time.monotonic()
        claimed = self._claimed()
        for uid in list(claimed):
            if claimed[uid]["keys"] is None:  # of a run that ended before it had read them
                self._begin(uid, claimed)
            else:
                self._end(uid, claimed)
        if len(claimed) >= _MOST_CLAIMED:
            return
        for uid in self.worklist.scheduled():
            if len(claimed) >= _MOST_CLAIMED:
                return
            if uid not in claimed:
                from pydicom.uid import generate_uid

                # Kept before it is claimed: nobody else could give it back.
                claimed[uid] = {"transaction": str(generate_uid()), "keys": None, "began": time.time()}
                self._keep(claimed)
                self._begin(uid, claimed)

    def _begin(self, uid: str, claimed: dict[str, Any]) -> None:
        """Claim a work item, and make items of its series."""
        entry = claimed[uid]
        if not self.worklist.claim(uid, entry["transaction"]):
            del claimed[uid]  # another was quicker
            self._keep(claimed)
            return
        self.arrivals.note("claimed", arrived=True, peer=self.name, uid=uid)
        try:
            inputs = [f for one in self.worklist.inputs(uid) for f in self._found(one)]
        except InputError as error:
            self._cancel(uid, claimed, str(error))
            return
        self.arrivals.add(inputs)
        entry["keys"] = [new_item(f, self.arrivals.recipe).key for f in inputs]
        self._keep(claimed)

    def _found(self, one: WorkInput) -> list[Found]:
        left = Left()
        inputs = list(
            find_archived(
                self.archive,
                ledger=self.arrivals.ledger,
                selection=self.arrivals.selection,
                left=left,
                study=one.study,
                series=one.series,
            )
        )
        if not inputs:
            why = (
                "is left out by --select"
                if left.not_selected
                else "shows no picture, or is not in the archive"
            )
            raise InputError(f"a series of the work item {why}")
        if one.instances and any(f.source["digest"] != digest_of_uids(one.instances) for f in inputs):
            raise InputError("the work item names other objects than its series has in the archive")
        return inputs

    def _end(self, uid: str, claimed: dict[str, Any]) -> None:
        """Complete or cancel a work item if all of its series have ended."""
        entry = claimed[uid]
        items = [self.arrivals.ledger.item(key) for key in entry["keys"]]
        if any(item is not None and item.state not in _ENDED for item in items):
            return
        bad = [item for item in items if item is None or item.state != "done"]
        if bad:
            first = bad[0]
            why = "its series is no longer in the ledger" if first is None else first.reason or first.state
            self._cancel(uid, claimed, why)
            return
        outputs = [o for item in items if item is not None for o in self._outputs(item)]
        ours = self.worklist.complete(uid, entry["transaction"], outputs, entry["began"], self.what)
        self.arrivals.note("completed" if ours else "taken away", peer=self.name, uid=uid)
        del claimed[uid]
        self._keep(claimed)

    def _outputs(self, item: Item) -> Sequence[Output]:
        title = self.destination.address.called if isinstance(self.destination, Dimse) else ""
        url = "" if title else self.destination.name
        outputs = []
        for name in sorted(item.files):
            if name.endswith(".dcm"):
                try:
                    header = read_header(self.out / item.folder / name, tags=_TAGS)
                except InputError:
                    raise UnavailableError("a result is gone: `clearmargin batch verify`") from None
                study, series, uid, sop_class = (str(header[tag].value) for tag in _TAGS)
                outputs.append(
                    Output(study=study, series=series, uid=uid, sop_class=sop_class, title=title, url=url)
                )
        return outputs

    def _cancel(self, uid: str, claimed: dict[str, Any], reason: str) -> None:
        self.worklist.cancel(uid, claimed[uid]["transaction"], reason)
        self.arrivals.note("canceled", peer=self.name, uid=uid, reason=reason)
        del claimed[uid]
        self._keep(claimed)

    def _claimed(self) -> dict[str, Any]:
        return dict(self.arrivals.ledger.recall(f"worklist {self.name}") or {})

    def _keep(self, claimed: dict[str, Any]) -> None:
        self.arrivals.ledger.remember(f"worklist {self.name}", claimed)


_TAGS = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "SOPClassUID")

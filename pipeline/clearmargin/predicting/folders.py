"""A folder of studies, volumes, pictures and clips: what fails is said, the others are done."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from clearmargin.errors import InputError
from clearmargin.formats import READERS
from clearmargin.jobs.items import Item, NewItem, Outcome
from clearmargin.jobs.ledger import Ledger
from clearmargin.jobs.worker import Event, Limits, work_off
from clearmargin.predicting.cases import Predicted, Reading, refuse_another
from clearmargin.predicting.discovery import Found, Left, find_inputs, is_the_only, place_of
from clearmargin.predicting.items import PredictItem
from clearmargin.predicting.predictor import Predictor
from clearmargin.predicting.selection import Selection
from clearmargin.report.progress import Bar, progress

__all__ = ["predict_folder"]

log = logging.getLogger(__name__)

_RECIPE = "predict"
_ALWAYS_S = 1e6  # nobody else takes an item of a ledger that nobody else knows


def predict_folder(
    folder: Path,
    out: Path,
    predictor: Predictor,
    *,
    reading: Reading = Reading(),  # noqa: B008 - frozen
    outputs: tuple[str, ...] | None = None,
    on_done: Callable[[Predicted], object] = lambda _: None,
) -> tuple[list[Predicted], dict[str, str]]:
    """Segment each input below a folder; return what was done, and why others failed, by case id.

    It is a batch in this process: the next input is read while one is computed and the last is written. Its ledger is
    thrown away at the end.

    Args:
        folder: A folder with all below it.
        out: Case folders are made in it.
        predictor: The model.
        reading: How DICOM is read; series and volume are each input's own.
        outputs: What is written (`outputs.writers.named_outputs`); None for the default.
        on_done: Called with each input once it is written, from another thread.

    Raises:
        InputError: The folder holds nothing that is read, nothing could be segmented, or the machine refuses to go on.
    """
    left = Left()
    with (
        TemporaryDirectory(prefix="clearmargin-") as scratch,
        closing(Ledger(Path(scratch) / "ledger.sqlite")) as ledger,
    ):
        inputs = _inputs(folder, ledger, left)
        ledger.add(
            NewItem(key=f"{number:09d}", recipe=_RECIPE, case_id=entry.case, source=entry.source)
            for number, entry in enumerate(inputs)  # a ledger adds items in the order of their keys
        )
        work = _PredictCase(predictor=predictor, reading=reading, outputs=outputs, out=out)
        with progress("predict", len(inputs)) as bar:
            told = _Told(work, left, bar, on_done)
            why = work_off(
                ledger,
                work,
                limits=Limits(recipe=_RECIPE, lease_s=_ALWAYS_S, most_tries=1),
                tell=told.tell,
                stopped=lambda: told.error is not None,
            )
    if told.error is not None:
        raise told.error
    if why:
        raise InputError(why)
    if not told.done:
        first = next(iter(left.unreadable.values()))
        raise InputError(
            f"none of the {len(left.unreadable)} inputs in '{folder}' could be segmented; the first: {first}"
        )
    return told.done, left.unreadable


def _inputs(folder: Path, ledger: Ledger, left: Left) -> list[Found]:
    """Return what lies below a folder, each input once, and say what does not count.

    Raises:
        InputError: There is nothing.
    """
    every = find_inputs(folder, ledger=ledger, selection=Selection(), left=left, contents=False)
    inputs: dict[str, Found] = {}
    for entry in every:
        if is_the_only(entry, ledger, left):
            inputs.setdefault(entry.case, entry)  # a link leads to what is there, too
    if not inputs and not left.unreadable:
        raise InputError(
            f"'{folder}' holds nothing that can be segmented: expected DICOM, or files ending in {', '.join(READERS)}"
            + (f"; {left.no_picture} DICOM series in it show no picture" if left.no_picture else "")
        )
    if left.other_files:
        log.warning("%d file(s) of other kinds in the folder are left out", left.other_files)
    if left.results:
        log.warning("%d case folder(s) of earlier results are left out", left.results)
    if left.no_picture:
        log.warning("%d DICOM series without a picture (reports, masks) are left out", left.no_picture)
    return list(inputs.values())


@dataclass(frozen=True, kw_only=True)
class _PredictCase(PredictItem):
    """The work of `predict`: results lie in ``OUT/CASE``, and what came of each case is kept."""

    predicted: dict[str, Predicted] = field(default_factory=dict)

    def folder_of(self, item: Item) -> str:
        return item.case_id

    def read(self, item: Item) -> Any:
        refuse_another(self.out, item.case_id, place_of(item.source))
        return super().read(item)

    def write(self, item: Item, computed: Any) -> Outcome:
        predicted = self.written(item, computed)
        computed.read.forget()
        self.predicted[item.case_id] = predicted
        return Outcome(state="done", folder=self.folder_of(item), instances=predicted.instances)

    def settle(self, item: Item, current: str) -> None:
        """Leave it: there is one result of a case."""


class _Told:
    """What came of the inputs, as threads tell it."""

    def __init__(
        self, work: _PredictCase, left: Left, bar: Bar, on_done: Callable[[Predicted], object]
    ) -> None:
        self.done: list[Predicted] = []
        self.error: Exception | None = None
        self._work, self._left, self._bar, self._on_done = work, left, bar, on_done
        self._lock = threading.Lock()

    def tell(self, event: Event) -> None:
        """Take note of an input that ended; an error of ``on_done`` is kept, to be raised where it was called for."""
        with self._lock:
            if event.state == "done":
                predicted = self._work.predicted.pop(event.case_id)
                self.done.append(predicted)
                try:
                    self._on_done(predicted)
                except Exception as error:  # noqa: BLE001 - raised by `predict_folder`
                    self.error = self.error or error
            else:
                name = self._left.refuse(event.case_id, event.reason)
                log.warning("%s failed: %s", name, event.reason)
            self._bar.advance()

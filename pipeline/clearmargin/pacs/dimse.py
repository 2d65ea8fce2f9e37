"""An archive by DIMSE: listed by C-FIND, fetched by C-GET or C-MOVE, sent to by C-STORE; what is sent is confirmed."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from clearmargin.errors import ConfigError, InputError, UnavailableError
from clearmargin.formats.dicom.boundary import dicom_boundary
from clearmargin.pacs.archive import Archive, ArchivedSeries, Keep, same_or_refused
from clearmargin.pacs.association import (
    SUCCESS,
    Address,
    NoneAcceptedError,
    address_of,
    associated,
    code_of,
    is_busy,
)
from clearmargin.pacs.retrieving import (
    find_instances,
    find_series,
    get_objects,
    move_objects,
    port_is_free,
    read_object,
)
from clearmargin.pacs.sameness import digest_of

__all__ = ["Dimse"]

_DUPLICATE = 0x0111
_NOT_AUTHORISED = 0x0124
_WARNINGS = (0xB000, 0xB006, 0xB007)  # stored, with elements rewritten or left out: what is kept will show
_PUSH_MODEL = "1.2.840.10008.1.20.1"
_PUSH_INSTANCE = "1.2.840.10008.1.20.1.1"
_GET = "1.2.840.10008.5.1.4.1.2.2.3"


@dataclass(frozen=True, kw_only=True)
class Dimse(Archive):
    """An archive by its application entity: ``dimse://CALLED@HOST:PORT?calling=OURS``, or ``dimse+tls://...``.

    With ``&move=PORT`` series are fetched by C-MOVE to that port of ours, else by C-GET. ``&StudyDate=20260101-`` and
    the like choose studies.
    """

    def __post_init__(self) -> None:
        _ = self.address  # refused now, not by a worker

    @property
    def name(self) -> str:
        """What it is called in the ledger: its address, without how we ask."""
        return self.url.partition("?")[0].rstrip("/")

    @cached_property
    def address(self) -> Address:
        """Whom with, and how."""
        return address_of(self.url)

    def check(self) -> None:
        """Ask for an answer (C-ECHO), so that a wrong address shows before any work.

        Raises:
            ConfigError: It does not know us, or its certificate is not trusted. UnavailableError: It does not answer.
        """
        if self.address.move is not None:
            port_is_free(self.address)
        self.breaker.call(self._echo)

    def list_series(
        self, keywords: Sequence[str] = (), *, study: str = "", series: str = ""
    ) -> Iterator[ArchivedSeries]:
        """Yield each series once (C-FIND by studies); see `Archive`."""
        yield from find_series(self, keywords, study, series)

    def list_instances(self, series: ArchivedSeries) -> tuple[str, ...]:
        """Return the SOPInstanceUIDs of a series, sorted."""
        return tuple(sorted(self.breaker.call(partial(find_instances, self, series.study, series.uid))))

    def read_attributes(self, series: ArchivedSeries, instance: str) -> dict[str, Any]:
        """Return what one object of a series says of itself; it is fetched, as DIMSE has no query for it."""
        return self.breaker.call(partial(read_object, self, series.study, series.uid, instance))

    def receive(self, study: str, series: str, keep: Keep, instance: str = "") -> None:
        """Have a series' objects sent, or one of them; see `Archive`."""
        if self.address.move is None:
            get_objects(self, study, series, keep, instance)
        else:
            move_objects(self, study, series, keep, instance)

    def send(self, files: Sequence[Path]) -> list[tuple[str, str]]:
        """Store DICOM files, and have each confirmed; see `predicting.items.Destination`.

        If the archive offers C-GET, each object is read back and compared. Otherwise it has to commit itself to it
        (storage commitment, with the report on the same association).

        Returns:
            SOPInstanceUID of each, and the SHA-256 (`digest_of`) of the file.

        Raises:
            UnavailableError: The archive is away, or does not show what it was given.
            InputError: It refuses an object, or holds another one under its UID.
            ConfigError: It does not know us, or can confirm nothing.
        """
        return self.breaker.call(partial(self._send, [_read(file) for file in files]))

    def _send(self, datasets: Sequence[Any]) -> list[tuple[str, str]]:
        contexts = [(d.SOPClassUID, [d.file_meta.TransferSyntaxUID]) for d in datasets]
        with self.associated(contexts) as association:
            for dataset in datasets:
                _store(association, dataset)
        try:
            confirmed = self._read_back(datasets)
        except NoneAcceptedError:
            confirmed = False
        if not confirmed:
            self._commit(datasets)
        return [(str(d.SOPInstanceUID), digest_of(d)) for d in datasets]

    def _read_back(self, datasets: Sequence[Any]) -> bool:
        """Compare what the archive keeps with what was sent; False if it offers no C-GET."""
        from pydicom import Dataset
        from pynetdicom import build_role, evt
        from pynetdicom.status import code_to_category

        kept: dict[str, Any] = {}

        def keep(event: Any) -> int:
            dataset = event.dataset
            kept[str(dataset.SOPInstanceUID)] = dataset
            return SUCCESS

        classes = {str(d.SOPClassUID): str(d.file_meta.TransferSyntaxUID) for d in datasets}
        contexts = [(uid, [syntax]) for uid, syntax in classes.items()]
        with self.associated(
            [(_GET, None), *contexts],
            roles=[build_role(uid, scp_role=True) for uid in classes],
            handlers=[(evt.EVT_C_STORE, keep)],
        ) as association:
            if _GET not in [c.abstract_syntax for c in association.accepted_contexts]:
                return False
            for dataset in datasets:
                query = Dataset()
                query.QueryRetrieveLevel = "IMAGE"
                for keyword in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID"):
                    setattr(query, keyword, dataset[keyword].value)
                for status, _ in association.send_c_get(query, _GET):
                    code = code_of(
                        status, "reading an object back by C-GET, which our AE title needs leave for"
                    )
                    if code_to_category(code) == "Failure" and not is_busy(code):
                        return False  # it is not allowed, or not for such objects
        for dataset in datasets:
            mine = kept.get(str(dataset.SOPInstanceUID))
            if mine is None:
                raise UnavailableError("reading an object back: the archive does not show it yet")
            same_or_refused(dataset, mine)
        return True

    def _commit(self, datasets: Sequence[Any]) -> None:
        """Ask the archive to commit itself to keeping the objects (PS3.4, J), and wait until it has."""
        from pydicom import Dataset
        from pydicom.uid import generate_uid
        from pynetdicom import evt

        request, answered = Dataset(), threading.Event()
        request.TransactionUID = generate_uid()
        request.ReferencedSOPSequence = []
        for dataset in datasets:
            item = Dataset()
            item.ReferencedSOPClassUID = dataset.SOPClassUID
            item.ReferencedSOPInstanceUID = dataset.SOPInstanceUID
            request.ReferencedSOPSequence.append(item)
        committed: set[str] = set()

        def report(event: Any) -> tuple[int, None]:
            said = event.event_information
            if said.get("TransactionUID") == request.TransactionUID:
                committed.update(
                    str(i.get("ReferencedSOPInstanceUID")) for i in said.get("ReferencedSOPSequence") or ()
                )
                answered.set()
            return SUCCESS, None

        proposed = [(_PUSH_MODEL, None)]
        try:
            with self.associated(proposed, handlers=[(evt.EVT_N_EVENT_REPORT, report)]) as association:
                status, _ = association.send_n_action(request, 1, _PUSH_MODEL, _PUSH_INSTANCE)
                if code_of(status, "asking for storage commitment") != SUCCESS:
                    raise UnavailableError(
                        "asking for storage commitment: the archive refuses for the moment"
                    )
                if not answered.wait(self.timeout_s):
                    raise UnavailableError("the archive did not report on storage commitment in time")
        except NoneAcceptedError:
            raise ConfigError(
                "the archive can confirm nothing: it lets us read nothing back (C-GET), and offers no storage "
                "commitment; allow one of them for our AE title"
            ) from None
        if not {str(d.SOPInstanceUID) for d in datasets} <= committed:
            raise UnavailableError("the archive does not commit itself to all objects")

    def _echo(self) -> None:
        with self.associated([("1.2.840.10008.1.1", None)]) as association:
            if code_of(association.send_c_echo(), "asking for an answer") != SUCCESS:
                raise UnavailableError("the archive answers, but not to C-ECHO")

    def associated(
        self, contexts: Sequence[tuple[Any, Any]], *, roles: Sequence[Any] = (), handlers: Sequence[Any] = ()
    ) -> AbstractContextManager[Any]:
        """Yield an association with the archive; see `association.associated`."""
        return associated(
            self.address,
            contexts,
            ca_file=self.ca_file,
            timeout_s=self.timeout_s,
            roles=roles,
            handlers=handlers,
        )


def _store(association: Any, dataset: Any) -> None:
    try:
        status = association.send_c_store(dataset)
    except ValueError:
        raise InputError(
            "storing an object: the archive does not take such objects, or not so encoded"
        ) from None
    code = code_of(status, "storing an object")
    if code in (SUCCESS, _DUPLICATE, *_WARNINGS):
        return
    if is_busy(code):
        raise UnavailableError(f"storing an object: the archive is out of room or busy (0x{code:04X})")
    if code == _NOT_AUTHORISED:
        raise ConfigError(
            "storing an object: the archive does not let us (0x0124): it has to allow our AE title"
        )
    raise InputError(f"storing an object: the archive refuses it (0x{code:04X})")


@dicom_boundary()
def _read(file: Path) -> Any:
    import pydicom

    return pydicom.dcmread(file)

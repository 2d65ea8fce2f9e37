"""A DICOMweb archive: listed by QIDO-RS a page at a time, fetched by WADO-RS, sent to by STOW-RS and read back."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from clearmargin.errors import ClearMarginError, ConfigError, InputError, UnavailableError
from clearmargin.formats.dicom.boundary import dicom_boundary
from clearmargin.formats.limits import max_bytes
from clearmargin.pacs.archive import (
    MOST_INSTANCES,
    Archive,
    ArchivedSeries,
    Keep,
    checked_uid,
    plain_values,
    same_or_refused,
)
from clearmargin.pacs.web import checked_url, open_session, status_of, talking_to

__all__ = ["DicomWeb"]

_PAGE = 500
_DUPLICATE = 0x0111
_OTHER = {0xC: "it cannot be understood"}  # by the first digit
_BUSY = range(0xA700, 0xA800)  # out of resources (PS3.4, B.2.3)
_FAILURES = {
    0x0110: "processing failure",
    0x0122: "SOP class not supported",
    0x0124: "not authorised",
    0xA900: "the data set does not match its SOP class",
}


@dataclass(frozen=True, kw_only=True)
class DicomWeb(Archive):
    """An archive by its DICOMweb address, below which ``studies`` lies.

    Attributes:
        longest_s: How long one answer may take as a whole.
    """

    longest_s: float = 1800.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "url", checked_url(self.url))

    def check(self) -> None:
        """Ask for one study, so that a wrong address or password shows before any work.

        Raises:
            ClearMarginError: See `talking_to`.
        """
        self.ask("searching", lambda client: client.search_for_studies(limit=1))

    def send(self, files: Sequence[Path]) -> list[tuple[str, str]]:
        """Store DICOM files, and read each back; see `predicting.items.Destination`.

        Returns:
            SOPInstanceUID of each, and the SHA-256 (`digest_of`) that file and archive have in common.

        Raises:
            UnavailableError: The archive is away, or does not show what it was given.
            InputError: It refuses an object, or holds another one under its UID.
            ConfigError: It does not let us in.
        """
        return [self.breaker.call(partial(self._send_one, file)) for file in files]

    def _send_one(self, file: Path) -> tuple[str, str]:
        dataset = _read(file)
        answer = self.ask_once("storing an object", lambda client: _store(client, dataset))
        _refuse_failures(answer)
        kept = self.ask_once("reading an object back", lambda client: _retrieve(client, dataset))
        return str(dataset.SOPInstanceUID), same_or_refused(dataset, kept)

    def list_series(
        self, keywords: Sequence[str] = (), *, study: str = "", series: str = "", page: int = _PAGE
    ) -> Iterator[ArchivedSeries]:
        """Yield each series once, ``page`` at a time (QIDO-RS); see `Archive`."""
        asked = {"StudyInstanceUID": study, "SeriesInstanceUID": series}
        matching = {keyword: uid for keyword, uid in asked.items() if uid}

        def ask(offset: int) -> Callable[[Any], Any]:
            return lambda client: client.search_for_series(
                limit=page, offset=offset, fields=list(keywords), search_filters=matching
            )

        for said in self._paged("listing series", ask):
            uids = [checked_uid(said, keyword) for keyword in asked]
            yield ArchivedSeries(study=uids[0], uid=uids[1], attributes=said)

    def list_instances(self, series: ArchivedSeries, page: int = 10 * _PAGE) -> tuple[str, ...]:
        """Return the SOPInstanceUIDs of a series, sorted."""

        def ask(offset: int) -> Callable[[Any], Any]:
            return lambda client: client.search_for_instances(
                study_instance_uid=series.study, series_instance_uid=series.uid, limit=page, offset=offset
            )

        uids: set[str] = set()
        for said in self._paged("listing a series", ask):
            uids.add(checked_uid(said, "SOPInstanceUID"))
            if len(uids) > MOST_INSTANCES:
                raise InputError(f"a series of the archive has more than {MOST_INSTANCES} objects")
        return tuple(sorted(uids))

    def read_attributes(self, series: ArchivedSeries, instance: str) -> dict[str, Any]:
        """Return what one object of a series says of itself (WADO-RS metadata), as `ArchivedSeries.attributes`."""
        said = self.ask(
            "reading metadata",
            lambda client: client.retrieve_instance_metadata(series.study, series.uid, instance),
        )
        return plain_values(said)

    def receive(self, study: str, series: str, keep: Keep) -> None:
        """Have a series' objects sent (WADO-RS); see `Archive`."""
        objects = self.ask_once(
            "fetching a series",
            lambda client: client.iter_series(study, series, media_types=(("application/dicom", "*"),)),
        )
        while (dataset := self.ask_once("fetching a series", lambda _: _next(objects))) is not None:
            keep(str(dataset.SOPInstanceUID), partial(dataset.save_as, enforce_file_format=True))

    def _paged(self, what: str, ask: Callable[[int], Callable[[Any], Any]]) -> Iterator[dict[str, Any]]:
        """Yield what pages list, each entry once, until one holds nothing new: some archives ignore the offset."""
        seen: set[str] = set()
        offset = 0
        while True:
            page = self.ask(what, ask(offset))
            if not isinstance(page, list) or not all(isinstance(entry, dict) for entry in page):
                raise UnavailableError(f"{what}: the archive's answer is not a list: is the address its own?")
            before = len(seen)
            for entry in page:
                said = plain_values(entry)
                name = str(said.get("SOPInstanceUID") or said.get("SeriesInstanceUID"))
                if name not in seen:
                    seen.add(name)
                    yield said
            if len(seen) == before:
                return
            offset += len(page)

    @cached_property
    def _client(self) -> Any:
        return self._open(max_bytes())

    def _open(self, most_bytes: int) -> Any:
        try:
            from dicomweb_client import DICOMwebClient
        except ImportError:
            raise ConfigError("DICOMweb needs dicomweb-client: pip install 'clearmargin[batch]'") from None
        session = open_session(
            self.url, ca_file=self.ca_file, most_bytes=most_bytes, longest_s=self.longest_s
        )
        weakref.finalize(self, session.close)
        client = DICOMwebClient(self.url, session=session, timeout=self.timeout_s, permissive_uid=True)
        client.set_http_retry_params(retry=False)  # ours knows what is worth another try
        return client

    def ask(self, what: str, request: Callable[[Any], Any]) -> Any:
        """Return what a request of the client (dicomweb-client) returns, after a few tries.

        Raises:
            ClearMarginError: See `talking_to`.
        """
        return self.breaker.call(lambda: self.ask_once(what, request))

    def ask_once(self, what: str, request: Callable[[Any], Any]) -> Any:
        """Return what a request returns, at the first try: for a part of what is tried as a whole."""
        with talking_to(what):
            return request(self._client)


def _next(objects: Iterator[Any]) -> Any:
    """Return the next object; None after the last."""
    import requests

    try:
        return next(objects, None)
    except (ClearMarginError, requests.exceptions.RequestException):
        raise
    except Exception:  # noqa: BLE001 - whatever half an answer provokes
        raise UnavailableError("fetching a series: what the archive sent is damaged") from None


@dicom_boundary()
def _read(file: Path) -> Any:
    import pydicom

    return pydicom.dcmread(file)


def _store(client: Any, dataset: Any) -> Any:
    """Return the archive's answer; None if it cannot be understood: what is kept will show."""
    import requests

    try:
        return client.store_instances([dataset], study_instance_uid=str(dataset.StudyInstanceUID))
    except requests.exceptions.HTTPError as error:
        if status_of(error) != 409:
            raise
        refused = _failed_of(error.response)
        if refused is None:
            raise
        return refused
    except (ClearMarginError, requests.exceptions.RequestException):
        raise
    except Exception:  # noqa: BLE001 - an answer of no known form
        return None


def _failed_of(response: Any) -> Any:
    import pydicom

    try:
        return pydicom.Dataset.from_json(response.json())
    except Exception:  # noqa: BLE001 - whatever the body is, the status says enough
        return None


def _refuse_failures(answer: Any) -> None:
    """Raise if an archive's answer lists a failure (PS3.18, I.2); that it has the object already is none."""
    for failed in getattr(answer, "FailedSOPSequence", None) or ():
        code = int(failed.get("FailureReason") or 0)
        if code == _DUPLICATE:
            continue
        if code in _BUSY:
            raise UnavailableError(f"storing an object: the archive is out of room or busy (0x{code:04X})")
        words = (
            _FAILURES.get(code) or _FAILURES.get(code & 0xFF00) or _OTHER.get(code >> 12, "no reason given")
        )
        raise InputError(f"storing an object: the archive refuses it: {words} (0x{code:04X})")


def _retrieve(client: Any, dataset: Any) -> Any:
    """Return what the archive keeps of an object, uncompressed if it was sent so."""
    import requests
    from pydicom.uid import ExplicitVRLittleEndian

    sent_as = dataset.file_meta.TransferSyntaxUID
    syntax = str(ExplicitVRLittleEndian) if sent_as == ExplicitVRLittleEndian else "*"
    uids = (str(dataset[k].value) for k in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID"))
    try:
        return client.retrieve_instance(*uids, media_types=(("application/dicom", syntax),))
    except requests.exceptions.HTTPError as error:
        if status_of(error) in (404, 406, 410) and error.response is not None:
            error.response.close()
            raise UnavailableError("reading an object back: the archive does not show it yet") from None
        raise
    except (ClearMarginError, requests.exceptions.RequestException):
        raise
    except Exception:  # noqa: BLE001 - whatever half an answer provokes
        raise UnavailableError("reading an object back: what the archive sent is damaged") from None

"""A DICOMweb archive as a place for results: stored by STOW-RS, read back by WADO-RS, compared, and then confirmed."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from clearmargin.errors import ClearMarginError, ConfigError, InputError, UnavailableError
from clearmargin.formats.dicom.boundary import dicom_boundary
from clearmargin.formats.limits import max_bytes
from clearmargin.pacs.breaker import Breaker
from clearmargin.pacs.sameness import differences, digest_of
from clearmargin.pacs.web import checked_url, open_session, status_of, talking_to

__all__ = ["DicomWeb"]

_SMALL_ANSWER = 256 * 2**20
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
class DicomWeb:
    """An archive by its DICOMweb address (`predicting.items.Destination`); values, which go to any process.

    Credentials are none of its values: each process takes them from its environment (`credentials`).

    Attributes:
        url: The address below which ``studies`` lies.
        ca_file: Certificates that are trusted in place of the system's.
        timeout_s: How long the archive may say nothing.
        longest_s: How long one answer may take as a whole.
        tries: How often a request is made before it fails.
        failures: After so many failed tries in a row it is not asked any more.
        rest_s: For so long.
    """

    url: str
    ca_file: Path | None = None
    timeout_s: float = 60.0
    longest_s: float = 1800.0
    tries: int = 3
    failures: int = 6
    rest_s: float = 30.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "url", checked_url(self.url))

    def __getstate__(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @property
    def name(self) -> str:
        """What it is called in the ledger: its address."""
        return self.url

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
        ours, theirs = digest_of(dataset), digest_of(kept)
        if ours != theirs:
            changed = differences(dataset, kept)
            raise InputError(
                f"the archive took an object and shows another under its UID; different are: {', '.join(changed[:8])}"
            )
        return str(dataset.SOPInstanceUID), ours

    @cached_property
    def breaker(self) -> Breaker:
        """The archive's breaker, of this process."""
        return Breaker(tries=self.tries, failures=self.failures, rest_s=self.rest_s)

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

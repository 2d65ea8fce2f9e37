"""An archive by DIMSE as a place for results: stored by C-STORE; confirmed by C-GET, or by storage commitment."""

from __future__ import annotations

import logging
import ssl
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from functools import cached_property, partial
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from clearmargin.errors import ConfigError, InputError, UnavailableError
from clearmargin.formats.dicom.boundary import dicom_boundary
from clearmargin.pacs.breaker import Breaker
from clearmargin.pacs.sameness import differences, digest_of

__all__ = ["Dimse"]

_EXPECTED = "expected an archive's address such as dimse://CALLED@pacs.example.org:104?calling=OURS"
_SUCCESS = 0x0000
_DUPLICATE = 0x0111
_NOT_AUTHORISED = 0x0124
_WARNINGS = (0xB000, 0xB006, 0xB007)  # stored, with elements rewritten or left out: what is kept will show
_BUSY = range(0xA700, 0xA800)
_PUSH_MODEL = "1.2.840.10008.1.20.1"
_PUSH_INSTANCE = "1.2.840.10008.1.20.1.1"
_GET = "1.2.840.10008.5.1.4.1.2.2.3"


class _NoneAcceptedError(InputError):
    """Of what was proposed for an association nothing was accepted."""


@dataclass(frozen=True, kw_only=True)
class Dimse:
    """An archive by its application entity (`predicting.items.Destination`); values, which go to any process.

    Attributes:
        url: ``dimse://CALLED@HOST:PORT?calling=OURS``, or ``dimse+tls://...``.
        ca_file: For TLS: certificates that are trusted in place of the system's.
        timeout_s: How long the archive may say nothing.
        tries: How often the files of an item are sent before it fails.
        failures: After so many failed tries in a row the archive is not asked any more.
        rest_s: For so long.
    """

    url: str
    ca_file: Path | None = None
    timeout_s: float = 60.0
    tries: int = 3
    failures: int = 6
    rest_s: float = 30.0

    def __post_init__(self) -> None:
        _ = self._address  # refused now, not by a worker

    def __getstate__(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @property
    def name(self) -> str:
        """What it is called in the ledger: its address."""
        return self.url

    def check(self) -> None:
        """Ask for an answer (C-ECHO), so that a wrong address shows before any work.

        Raises:
            ConfigError: It does not know us, or its certificate is not trusted. UnavailableError: It does not answer.
        """
        self.breaker.call(self._echo)

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
        with self._associated(contexts) as association:
            for dataset in datasets:
                _store(association, dataset)
        try:
            confirmed = self._read_back(datasets)
        except _NoneAcceptedError:
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
            return _SUCCESS

        classes = {str(d.SOPClassUID): str(d.file_meta.TransferSyntaxUID) for d in datasets}
        contexts = [(uid, [syntax]) for uid, syntax in classes.items()]
        with self._associated(
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
                    code = _code(
                        status, "reading an object back by C-GET, which our AE title needs leave for"
                    )
                    if code_to_category(code) == "Failure" and code not in _BUSY:
                        return False  # it is not allowed, or not for such objects
        for dataset in datasets:
            mine = kept.get(str(dataset.SOPInstanceUID))
            if mine is None:
                raise UnavailableError("reading an object back: the archive does not show it yet")
            if digest_of(mine) != digest_of(dataset):
                changed = differences(dataset, mine)
                raise InputError(
                    "the archive took an object and shows another under its UID; different are: "
                    f"{', '.join(changed[:8])}"
                )
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
            return _SUCCESS, None

        proposed = [(_PUSH_MODEL, None)]
        try:
            with self._associated(proposed, handlers=[(evt.EVT_N_EVENT_REPORT, report)]) as association:
                status, _ = association.send_n_action(request, 1, _PUSH_MODEL, _PUSH_INSTANCE)
                if _code(status, "asking for storage commitment") != _SUCCESS:
                    raise UnavailableError(
                        "asking for storage commitment: the archive refuses for the moment"
                    )
                if not answered.wait(self.timeout_s):
                    raise UnavailableError("the archive did not report on storage commitment in time")
        except _NoneAcceptedError:
            raise ConfigError(
                "the archive can confirm nothing: it lets us read nothing back (C-GET), and offers no storage "
                "commitment; allow one of them for our AE title"
            ) from None
        if not {str(d.SOPInstanceUID) for d in datasets} <= committed:
            raise UnavailableError("the archive does not commit itself to all objects")

    def _echo(self) -> None:
        with self._associated([("1.2.840.10008.1.1", None)]) as association:
            if _code(association.send_c_echo(), "asking for an answer") != _SUCCESS:
                raise UnavailableError("the archive answers, but not to C-ECHO")

    @cached_property
    def breaker(self) -> Breaker:
        """The archive's breaker, of this process."""
        return Breaker(tries=self.tries, failures=self.failures, rest_s=self.rest_s)

    @cached_property
    def _address(self) -> tuple[str, str, int, str, bool]:
        """Called AE title, host, port, our AE title, and whether it speaks TLS."""
        try:
            parts = urlsplit(self.url)
            port = parts.port
            options = dict(parse_qsl(parts.query, strict_parsing=bool(parts.query)))
        except ValueError:
            raise ConfigError(_EXPECTED) from None
        called, ours = parts.username or "", options.pop("calling", "CLEARMARGIN")
        if (
            parts.scheme not in ("dimse", "dimse+tls")
            or not parts.hostname
            or not port
            or parts.password is not None
            or parts.path not in ("", "/")
            or options
            or not _is_title(called)
            or not _is_title(ours)
        ):
            raise ConfigError(_EXPECTED)
        return called, parts.hostname, port, ours, parts.scheme.endswith("tls")

    @contextmanager
    def _associated(
        self, contexts: Sequence[tuple[Any, Any]], *, roles: Sequence[Any] = (), handlers: Sequence[Any] = ()
    ) -> Iterator[Any]:
        """Yield an association; what goes wrong in it has a type and no identity."""
        try:
            from pynetdicom import AE
        except ImportError:
            raise ConfigError("DIMSE needs pynetdicom: pip install 'clearmargin[batch]'") from None
        # It logs UIDs and what the archive says, also from threads of its own.
        logging.getLogger("pynetdicom").setLevel(logging.CRITICAL + 1)
        called, host, port, ours, tls = self._address
        entity = AE(ae_title=ours)
        entity.acse_timeout = entity.dimse_timeout = entity.network_timeout = self.timeout_s
        entity.connection_timeout = self.timeout_s
        for uid, syntaxes in dict.fromkeys((str(uid), tuple(s or ())) for uid, s in contexts):
            entity.add_requested_context(uid, list(syntaxes) or None)
        association = entity.associate(
            host,
            port,
            ae_title=called,
            ext_neg=list(roles),
            evt_handlers=list(handlers),
            tls_args=(self._tls(), host) if tls else None,
        )
        try:
            _refuse_unassociated(association, tls)
            yield association
        except RuntimeError:
            raise UnavailableError("the archive dropped the association") from None
        finally:
            if association.is_established:
                association.release()

    def _tls(self) -> ssl.SSLContext:
        if self.ca_file is not None and not self.ca_file.is_file():
            raise ConfigError(f"no file '{self.ca_file}' with the certificates of the archive's authority")
        return ssl.create_default_context(cafile=None if self.ca_file is None else str(self.ca_file))


def _is_title(text: str) -> bool:
    """Return whether a text is an AE title (PS3.5, 6.2)."""
    return (
        len(text.strip()) > 0
        and len(text) <= 16
        and text.isascii()
        and text.isprintable()
        and "\\" not in text
    )


def _refuse_unassociated(association: Any, tls: bool) -> None:
    if association.is_established:
        return
    if association.is_rejected:
        primitive = association.acceptor.primitive
        if primitive is not None and primitive.result == 1:
            raise ConfigError(
                "the archive rejects us for good: check its AE title, ours (?calling=), and whether it knows ours"
            )
        raise UnavailableError("the archive rejects us for the moment")
    if association.acceptor.primitive is not None and not association.accepted_contexts:
        raise _NoneAcceptedError("the archive takes none of these kinds of objects")
    certificate = ", or its certificate is not trusted (--pacs-ca names its authority's)" if tls else ""
    raise UnavailableError(f"the archive cannot be reached, or dropped the association{certificate}")


def _store(association: Any, dataset: Any) -> None:
    try:
        status = association.send_c_store(dataset)
    except ValueError:
        raise InputError(
            "storing an object: the archive does not take such objects, or not so encoded"
        ) from None
    code = _code(status, "storing an object")
    if code in (_SUCCESS, _DUPLICATE, *_WARNINGS):
        return
    if code in _BUSY:
        raise UnavailableError(f"storing an object: the archive is out of room or busy (0x{code:04X})")
    if code == _NOT_AUTHORISED:
        raise ConfigError(
            "storing an object: the archive does not let us (0x0124): it has to allow our AE title"
        )
    raise InputError(f"storing an object: the archive refuses it (0x{code:04X})")


def _code(status: Any, what: str) -> int:
    """Return a status.

    Raises:
        UnavailableError: There is none: the association was dropped, or the time ran out.
    """
    if "Status" not in status:
        raise UnavailableError(f"{what}: the archive did not answer in time, or dropped the association")
    return int(status.Status)


@dicom_boundary()
def _read(file: Path) -> Any:
    import pydicom

    return pydicom.dcmread(file)

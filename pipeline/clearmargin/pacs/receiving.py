"""Objects that a peer sends by C-STORE: from named AE titles alone, and bounded in size."""

from __future__ import annotations

import errno
import ssl
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clearmargin.errors import ConfigError
from clearmargin.formats.dicom.boundary import quiet_pydicom
from clearmargin.formats.limits import max_bytes
from clearmargin.pacs.association import SUCCESS, need_pynetdicom

__all__ = ["OUT_OF_ROOM", "REFUSED", "Arrived", "bounds", "object_of", "receiver"]

OUT_OF_ROOM = 0xA700
REFUSED = 0xC000  # cannot understand
_MISMATCH = 0xA900  # the data set does not match its SOP class
_MOST_ASSOCIATIONS = 25


@dataclass(frozen=True, kw_only=True)
class Arrived:
    """An object that a peer sent.

    Attributes:
        title: The peer's AE title.
        host: Its address.
        sop_class: The object's SOPClassUID.
        uid: Its SOPInstanceUID. Private, as the next three.
        series: Its SeriesInstanceUID.
        study: Its StudyInstanceUID.
        description: Its SeriesDescription.
        save: Writes it to a draft, as it came.
    """

    title: str
    host: str
    sop_class: str
    uid: str
    series: str
    study: str
    description: str
    save: Callable[[Path], object]


def object_of(event: Any) -> Arrived | int:
    """Return what a C-STORE request (pynetdicom) brings, or the status that refuses it."""
    try:
        with quiet_pydicom():
            dataset = event.dataset
            said = [
                str(dataset[k].value) for k in ("SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID")
            ]
            description = str(dataset.get("SeriesDescription") or "")
    except Exception:  # noqa: BLE001 - whatever a peer sends
        return REFUSED
    asked = event.request
    if said[0] != str(asked.AffectedSOPInstanceUID) or not all(map(_is_uid, said)):
        return _MISMATCH
    return Arrived(
        title=event.assoc.requestor.ae_title.strip(),
        host=str(event.assoc.requestor.address),
        sop_class=str(asked.AffectedSOPClassUID),
        uid=said[0],
        series=said[1],
        study=said[2],
        description=description,
        save=lambda draft: draft.write_bytes(event.encoded_dataset()),
    )


def _is_uid(text: str) -> bool:
    return 0 < len(text) <= 64 and all(part.isdigit() and part.isascii() for part in text.split("."))


def bounds() -> list[Any]:
    """Return handlers (pynetdicom) that end an association if an object is larger than CLEARMARGIN_MAX_GIB."""
    from pynetdicom import evt

    most = max_bytes()
    sizes: dict[int, int] = {}

    def count(event: Any) -> None:
        values = getattr(event.pdu, "presentation_data_value_items", None)
        if values is None:
            return
        key = id(event.assoc)
        sizes[key] = sizes.get(key, 0) + sum(len(v.presentation_data_value) for v in values)
        if sizes[key] > most:
            event.assoc.abort(block=False)

    def message(event: Any) -> None:
        sizes.pop(id(event.assoc), None)

    return [(evt.EVT_PDU_RECV, count), (evt.EVT_DIMSE_RECV, message), (evt.EVT_CONN_CLOSE, message)]


@contextmanager
def receiver(
    place: tuple[str, int],
    title: str,
    callers: Sequence[str],
    store: Callable[[Any], int],
    *,
    timeout_s: float = 60.0,
    tls: ssl.SSLContext | None = None,
    refused: Callable[[str, str], object] = lambda title, host: None,
) -> Iterator[int]:
    """Accept C-STORE and C-ECHO for as long as the block runs; yield the port.

    Args:
        place: Host and port; port 0 takes a free one.
        title: Our AE title; a peer must call it.
        callers: AE titles that may call; no others.
        store: Called with each C-STORE request (`object_of`), from threads of ours; returns its status.
        timeout_s: How long a peer may say nothing.
        tls: For TLS.
        refused: Called with AE title and host of a caller whom we do not know.

    Raises:
        ConfigError: The port is taken, or may not be used.
    """
    entity_class = need_pynetdicom()
    from pynetdicom import ALL_TRANSFER_SYNTAXES, AllStoragePresentationContexts, evt

    entity = entity_class(ae_title=title)
    entity.require_called_aet = True
    entity.require_calling_aet = list(callers)
    entity.maximum_associations = _MOST_ASSOCIATIONS
    entity.maximum_pdu_size = 65536
    entity.acse_timeout = entity.dimse_timeout = entity.network_timeout = timeout_s
    entity.supported_contexts = [
        _any_syntax(c, ALL_TRANSFER_SYNTAXES) for c in AllStoragePresentationContexts
    ]
    entity.add_supported_context("1.2.840.10008.1.1")

    def rejected(event: Any) -> None:
        asked = event.assoc.requestor
        refused(str(asked.ae_title).strip(), str(asked.address))

    def echo(_: Any) -> int:
        return SUCCESS

    handlers = [
        (evt.EVT_C_STORE, store),
        (evt.EVT_C_ECHO, echo),
        (evt.EVT_REJECTED, rejected),
        *bounds(),
    ]
    try:
        server = entity.start_server(place, block=False, evt_handlers=handlers, ssl_context=tls)
    except OSError as error:
        why = "is taken" if error.errno == errno.EADDRINUSE else f"cannot be used ({error.strerror})"
        raise ConfigError(f"port {place[1]} of '{place[0]}' {why}: name another one") from None
    try:
        yield int(server.socket.getsockname()[1])
    finally:
        for association in entity.active_associations:
            association.abort()
        server.shutdown()


def _any_syntax(context: Any, syntaxes: Sequence[str]) -> Any:
    from pynetdicom.presentation import build_context

    return build_context(context.abstract_syntax, list(syntaxes))

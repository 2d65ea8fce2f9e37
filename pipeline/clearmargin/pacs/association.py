"""Associations with an application entity (DIMSE): TLS verified, silent in the log, errors without identity."""

from __future__ import annotations

import logging
import ssl
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from clearmargin.errors import ConfigError, InputError, UnavailableError

__all__ = [
    "SUCCESS",
    "Address",
    "NoneAcceptedError",
    "address_of",
    "associated",
    "code_of",
    "is_busy",
    "is_title",
    "need_pynetdicom",
]

SUCCESS = 0x0000
_BUSY = range(0xA700, 0xA800)
_EXPECTED = "expected an archive's address such as dimse://CALLED@pacs.example.org:104?calling=OURS"
_MATCHED = ("StudyDate", "ModalitiesInStudy", "AccessionNumber", "PatientID")


class NoneAcceptedError(InputError):
    """Of what was proposed for an association nothing was accepted."""


@dataclass(frozen=True, kw_only=True)
class Address:
    """An application entity, and how it is spoken to.

    Attributes:
        called: Its AE title.
        host: Its host.
        port: Its port.
        calling: Our AE title.
        tls: Whether it speaks TLS.
        move: Host and port at which we receive what it sends by C-MOVE; None for C-GET.
        matching: Values that studies must have, by keyword, as C-FIND matches them.
    """

    called: str
    host: str
    port: int
    calling: str = "CLEARMARGIN"
    tls: bool = False
    move: tuple[str, int] | None = None
    matching: dict[str, str] = field(default_factory=dict, repr=False)


def address_of(url: str) -> Address:
    """Return the application entity of ``dimse://CALLED@HOST:PORT?calling=OURS``, or of ``dimse+tls://...``.

    Raises:
        ConfigError: It is none.
    """
    try:
        parts = urlsplit(url)
        port = parts.port
        options = dict(parse_qsl(parts.query, strict_parsing=bool(parts.query)))
    except ValueError:
        raise ConfigError(_EXPECTED) from None
    called, ours = parts.username or "", options.pop("calling", "CLEARMARGIN")
    move = options.pop("move", None)
    matching = {keyword: options.pop(keyword) for keyword in _MATCHED if keyword in options}
    if (
        parts.scheme not in ("dimse", "dimse+tls")
        or not parts.hostname
        or not port
        or parts.password is not None
        or parts.path not in ("", "/")
        or options
        or not is_title(called)
        or not is_title(ours)
    ):
        raise ConfigError(_EXPECTED)
    return Address(
        called=called,
        host=parts.hostname,
        port=port,
        calling=ours,
        tls=parts.scheme.endswith("tls"),
        move=None if move is None else _place(move),
        matching=matching,
    )


def _place(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    if not port.isdigit() or not 0 < int(port) < 65536:
        raise ConfigError(
            f"?move={text}: expected the port at which we receive, such as ?move=11113 on this machine alone, or "
            "?move=0.0.0.0:11113"
        )
    return host or "127.0.0.1", int(port)


def is_title(text: str) -> bool:
    """Return whether a text is an AE title (PS3.5, 6.2)."""
    return (
        len(text.strip()) > 0
        and len(text) <= 16
        and text.isascii()
        and text.isprintable()
        and "\\" not in text
    )


def need_pynetdicom() -> Any:
    """Return pynetdicom's application entity, with its logger silent: it logs UIDs and what a peer says.

    Raises:
        ConfigError: It is not installed.
    """
    try:
        from pynetdicom import AE
    except ImportError:
        raise ConfigError("DIMSE needs pynetdicom: pip install 'clearmargin[batch]'") from None
    logging.getLogger("pynetdicom").setLevel(logging.CRITICAL + 1)  # also from threads of its own
    return AE


@contextmanager
def associated(
    address: Address,
    contexts: Sequence[tuple[Any, Any]],
    *,
    ca_file: Path | None,
    timeout_s: float,
    roles: Sequence[Any] = (),
    handlers: Sequence[Any] = (),
) -> Iterator[Any]:
    """Yield an association (pynetdicom); what goes wrong in it has a type and no identity.

    Args:
        address: Whom with.
        contexts: SOP classes, each with its transfer syntaxes, or None for the uncompressed ones.
        ca_file: For TLS: certificates that are trusted in place of the system's.
        timeout_s: How long it may say nothing.
        roles: Of pynetdicom, such as for C-GET.
        handlers: Of pynetdicom.

    Raises:
        ConfigError: It rejects us for good. UnavailableError: It is away, or drops the association.
        InputError: It accepts none of the contexts.
    """
    entity = need_pynetdicom()(ae_title=address.calling)
    entity.acse_timeout = entity.dimse_timeout = entity.network_timeout = timeout_s
    entity.connection_timeout = timeout_s
    proposed = dict.fromkeys((str(uid), tuple(map(str, syntaxes or ()))) for uid, syntaxes in contexts)
    association = entity.associate(
        address.host,
        address.port,
        contexts=[_context(uid, syntaxes) for uid, syntaxes in proposed],
        ae_title=address.called,
        ext_neg=list(roles),
        evt_handlers=list(handlers),
        tls_args=(_tls(ca_file), address.host) if address.tls else None,
    )
    try:
        _refuse_unassociated(association, address.tls)
        yield association
    except RuntimeError:
        raise UnavailableError("the archive dropped the association") from None
    finally:
        if association.is_established:
            association.release()


def _context(uid: str, syntaxes: Sequence[str]) -> Any:
    """Return a context of its own, also if the SOP class has another one with another transfer syntax."""
    from pynetdicom.presentation import build_context

    return build_context(uid, list(syntaxes) or None)


def _tls(ca_file: Path | None) -> ssl.SSLContext:
    if ca_file is not None and not ca_file.is_file():
        raise ConfigError(f"no file '{ca_file}' with the certificates of the archive's authority")
    return ssl.create_default_context(cafile=None if ca_file is None else str(ca_file))


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
        raise NoneAcceptedError("the archive takes none of these kinds of objects")
    certificate = ", or its certificate is not trusted (--pacs-ca names its authority's)" if tls else ""
    raise UnavailableError(f"the archive cannot be reached, or dropped the association{certificate}")


def is_busy(code: int) -> bool:
    """Return whether a status says that the peer is out of room or of other resources (PS3.4, B.2.3)."""
    return code in _BUSY


def code_of(status: Any, what: str) -> int:
    """Return a status.

    Raises:
        UnavailableError: There is none: the association was dropped, or the time ran out.
    """
    if "Status" not in status:
        raise UnavailableError(f"{what}: the archive did not answer in time, or dropped the association")
    return int(status.Status)

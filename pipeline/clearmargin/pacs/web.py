"""HTTP to an archive: bounded in time and size, TLS verified, no redirects; errors have a type and no identity."""

from __future__ import annotations

import ipaddress
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from clearmargin.errors import ClearMarginError, ConfigError, InputError, UnavailableError
from clearmargin.formats.limits import raise_it
from clearmargin.formats.quiet import hushed
from clearmargin.pacs.credentials import credentials

__all__ = ["checked_url", "is_loopback", "open_session", "status_of", "talking_to"]

_TRANSIENT = (408, 425, 429)
_AT_ONCE = 65536
_LET_IN = (401, 403, 407)
_LOGGERS = ("dicomweb_client.web", "dicomweb_client.uri", "urllib3.connectionpool", "urllib3.util.retry")


def checked_url(url: str) -> str:
    """Return an archive's address without a slash at its end.

    Raises:
        ConfigError: It is not an address, or holds a user, a password or a query.
    """
    try:
        parts = urlsplit(url)
        port_is_one = parts.port is None or parts.port > 0
    except ValueError:
        port_is_one, parts = False, urlsplit("")
    if parts.scheme not in ("http", "https") or not parts.hostname or not port_is_one:
        raise ConfigError("expected an archive's address such as https://pacs.example.org/dicom-web")
    if parts.username is not None or parts.password is not None or parts.query or parts.fragment:
        raise ConfigError(
            "an archive's address holds no user, password, query or fragment: set CLEARMARGIN_PACS_USER and "
            "CLEARMARGIN_PACS_PASSWORD, or CLEARMARGIN_PACS_TOKEN"
        )
    return url.rstrip("/")


def is_loopback(host: str) -> bool:
    """Return whether a host is this machine."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def open_session(url: str, *, ca_file: Path | None, most_bytes: int, longest_s: float) -> Any:
    """Return a session (requests) for an archive, with the credentials of the environment.

    Args:
        url: The archive's address. Credentials go over TLS, or to this machine.
        ca_file: Certificates that are trusted in place of the system's.
        most_bytes: The largest answer that is read, decompressed.
        longest_s: The longest time that one answer may take from its first byte to its last.

    Raises:
        ConfigError: Credentials would go over plain HTTP; the file of certificates is not there.
    """
    import requests
    from requests.auth import HTTPBasicAuth
    from requests.utils import get_environ_proxies

    parts = urlsplit(url)
    here = is_loopback(parts.hostname or "")
    access = credentials()
    if access and parts.scheme == "http" and not here:
        raise ConfigError("credentials are not sent over plain HTTP: give the archive's https:// address")
    if ca_file is not None and not ca_file.is_file():
        raise ConfigError(f"no file '{ca_file}' with the certificates of the archive's authority")
    session = requests.Session()
    # What .netrc says would take the place of the credentials that were meant, and end in no log of ours.
    session.trust_env = False
    session.proxies = {} if here else dict(get_environ_proxies(url))
    session.verify = True if ca_file is None else str(ca_file)
    session.max_redirects = 0
    session.headers["Accept"] = "application/dicom+json"
    if access.token:
        session.headers["Authorization"] = f"Bearer {access.token}"
    elif access.user:
        session.auth = HTTPBasicAuth(access.user.encode(), access.password.encode())
    adapter = _bounded_adapter(most_bytes, longest_s)
    session.mount("http://", adapter)
    session.mount("https://", adapter)
    return session


def _bounded_adapter(most_bytes: int, longest_s: float) -> Any:
    from requests.adapters import HTTPAdapter

    class Bounded(HTTPAdapter):
        """Reads no more than it was told, and no longer."""

        def send(self, request: Any, *arguments: Any, **options: Any) -> Any:
            request.headers.pop("Host", None)  # dicomweb-client leaves out the port
            response = super().send(request, *arguments, **options)
            end = time.monotonic() + longest_s

            def bounded(*_: Any, **__: Any) -> Iterator[bytes]:
                size = 0
                # What is there, and not so many bytes as are wanted: one that sends byte by byte is noticed.
                while chunk := response.raw.read1(_AT_ONCE, decode_content=True):
                    size += len(chunk)
                    if size > most_bytes:
                        response.close()
                        raise InputError(f"the archive's answer is too large: {raise_it()}")
                    if time.monotonic() > end:
                        response.close()
                        raise UnavailableError(f"the archive's answer took more than {longest_s:g} s")
                    yield chunk

            response.raw.stream = bounded
            return response

    return Bounded(max_retries=0)


@contextmanager
def talking_to(what: str) -> Iterator[None]:
    """Turn what goes wrong with an archive into our errors, without addresses, UIDs or what the archive says.

    Args:
        what: What was asked for, such as ``storing an object``.

    Raises:
        UnavailableError: Another try may succeed. InputError: The archive refuses. ConfigError: It does not let us in,
            or its certificate is not trusted.
    """
    import requests

    try:
        with hushed(*_LOGGERS):
            yield
    except ClearMarginError:
        raise
    except requests.exceptions.SSLError:
        raise ConfigError(
            f"{what}: the archive's certificate is not trusted, or it speaks no TLS; --pacs-ca names the "
            "certificates of its authority"
        ) from None
    except requests.exceptions.TooManyRedirects:
        raise InputError(f"{what}: the archive sends us to another address: give the final one") from None
    except requests.exceptions.Timeout:
        raise UnavailableError(f"{what}: the archive did not answer in time") from None
    except requests.exceptions.HTTPError as error:
        if error.response is not None:
            error.response.close()
        raise _of_status(what, status_of(error)) from None
    except (requests.exceptions.ConnectionError, requests.exceptions.ChunkedEncodingError):
        raise UnavailableError(f"{what}: the archive cannot be reached, or dropped the connection") from None
    except requests.exceptions.ContentDecodingError:
        raise UnavailableError(f"{what}: the archive's answer was damaged on the way") from None
    except requests.exceptions.JSONDecodeError:
        raise UnavailableError(
            f"{what}: the archive's answer is not DICOM JSON: is the address its own?"
        ) from None
    except requests.exceptions.RequestException as error:
        raise ConfigError(f"{what}: the request cannot be made ({type(error).__name__})") from None


def status_of(error: Any) -> int:
    """Return the status of an HTTP error; 0 without an answer."""
    return 0 if error.response is None else int(error.response.status_code)


def _of_status(what: str, status: int) -> ClearMarginError:
    try:
        words = f"{status} {HTTPStatus(status).phrase}"
    except ValueError:
        words = str(status)
    if status in _LET_IN:
        return ConfigError(
            f"{what}: the archive does not let us in ({words}): check CLEARMARGIN_PACS_TOKEN, or CLEARMARGIN_PACS_USER "
            "and CLEARMARGIN_PACS_PASSWORD, and what they may do"
        )
    if status >= 500 or status in _TRANSIENT:
        return UnavailableError(f"{what}: the archive failed for the moment ({words})")
    return InputError(f"{what}: the archive refuses ({words})")

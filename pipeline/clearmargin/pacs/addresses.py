"""Which archive an address means."""

from __future__ import annotations

from pathlib import Path

from clearmargin.errors import ConfigError
from clearmargin.pacs.archive import Archive
from clearmargin.pacs.dicomweb import DicomWeb
from clearmargin.pacs.dimse import Dimse

__all__ = ["archive_at", "is_address"]

_WEB = ("http", "https")
_DIMSE = ("dimse", "dimse+tls")


def archive_at(url: str, ca_file: Path | None = None) -> Archive:
    """Return the archive of an address, which has not been asked for anything yet.

    Raises:
        ConfigError: It is none.
    """
    scheme = url.partition("://")[0]
    if scheme in _WEB:
        return DicomWeb(url=url, ca_file=ca_file)
    if scheme in _DIMSE:
        return Dimse(url=url, ca_file=ca_file)
    raise ConfigError(
        "expected an archive's address: https://pacs.example.org/dicom-web, or dimse://CALLED@pacs.example.org:104"
    )


def is_address(source: Path | str) -> bool:
    """Return whether a source is an archive's address, not a path."""
    return isinstance(source, str) and source.partition("://")[0] in (*_WEB, *_DIMSE) and "://" in source

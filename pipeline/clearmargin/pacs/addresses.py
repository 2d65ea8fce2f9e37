"""Which archive an address means."""

from __future__ import annotations

from pathlib import Path

from clearmargin.errors import ConfigError
from clearmargin.pacs.dicomweb import DicomWeb
from clearmargin.pacs.dimse import Dimse

__all__ = ["destination_of"]


def destination_of(url: str, ca_file: Path | None = None) -> DicomWeb | Dimse:
    """Return the archive of an address, which has not been asked for anything yet.

    Raises:
        ConfigError: It is none.
    """
    scheme = url.partition("://")[0]
    if scheme in ("http", "https"):
        return DicomWeb(url=url, ca_file=ca_file)
    if scheme in ("dimse", "dimse+tls"):
        return Dimse(url=url, ca_file=ca_file)
    raise ConfigError(
        "expected an archive's address: https://pacs.example.org/dicom-web, or dimse://CALLED@pacs.example.org:104"
    )

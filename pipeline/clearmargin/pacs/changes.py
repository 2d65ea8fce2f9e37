"""Orthanc's change feed: which series have become stable there, since a cursor."""

from __future__ import annotations

import weakref
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from clearmargin.errors import UnavailableError
from clearmargin.pacs.archive import checked_uid
from clearmargin.pacs.breaker import Breaker
from clearmargin.pacs.dicomweb import DicomWeb
from clearmargin.pacs.web import checked_url, open_session, talking_to

__all__ = ["Changed", "Changes"]

_AT_ONCE = 100
_MOST_BYTES = 64 * 2**20


@dataclass(frozen=True, kw_only=True)
class Changed:
    """A series that has become stable, perhaps not for the first time.

    Attributes:
        study: Its StudyInstanceUID. Private, as the next.
        series: Its SeriesInstanceUID.
    """

    study: str = field(repr=False)
    series: str = field(repr=False)


@dataclass(frozen=True, kw_only=True)
class Changes:
    """The feed of an Orthanc by its address, such as ``http://127.0.0.1:8042``.

    Attributes:
        url: The address.
        ca_file: Certificates that are trusted in place of the system's.
        timeout_s: How long it may say nothing.
    """

    url: str
    ca_file: Path | None = None
    timeout_s: float = 30.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "url", checked_url(self.url))

    @cached_property
    def archive(self) -> DicomWeb:
        """Its series, by DICOMweb."""
        return DicomWeb(url=f"{self.url}/dicom-web", ca_file=self.ca_file)

    def newest(self) -> int:
        """Return the cursor after all that has happened so far.

        Raises:
            ClearMarginError: See `web.talking_to`.
        """
        return int(self._ask("/changes?last")["Last"])

    def since(self, cursor: int) -> tuple[list[Changed], int, bool]:
        """Return what became stable after a cursor, the cursor after it, and whether that was all.

        A series that was removed meanwhile is left out. If the feed was emptied, it is read from its beginning.

        Raises:
            ClearMarginError: See `web.talking_to`.
        """
        answer = self._ask(f"/changes?since={cursor}&limit={_AT_ONCE}")
        if int(answer["Last"]) < cursor:
            answer = self._ask(f"/changes?since=0&limit={_AT_ONCE}")
        ids = [c["ID"] for c in answer["Changes"] if c.get("ChangeType") == "StableSeries"]
        series = [self._series(name) for name in dict.fromkeys(ids)]
        return [s for s in series if s is not None], int(answer["Last"]), bool(answer["Done"])

    def _series(self, name: str) -> Changed | None:
        if not all(c in "0123456789abcdef-" for c in name):
            raise UnavailableError("reading changes: the archive's answer is not Orthanc's")
        said = self._ask(f"/series/{name}", missing=True)
        study = None if said is None else self._ask(f"/series/{name}/study", missing=True)
        if said is None or study is None:
            return None
        uids = said["MainDicomTags"] | study["MainDicomTags"]
        return Changed(
            study=checked_uid(uids, "StudyInstanceUID"), series=checked_uid(uids, "SeriesInstanceUID")
        )

    @cached_property
    def _breaker(self) -> Breaker:
        return Breaker(tries=3, failures=6, rest_s=30.0)

    @cached_property
    def _session(self) -> Any:
        session = open_session(
            self.url, ca_file=self.ca_file, most_bytes=_MOST_BYTES, longest_s=10 * self.timeout_s
        )
        session.headers["Accept"] = "application/json"
        weakref.finalize(self, session.close)
        return session

    def _ask(self, path: str, *, missing: bool = False) -> Any:
        return self._breaker.call(partial(self._get, path, missing))

    def _get(self, path: str, missing: bool) -> Any:
        with talking_to("reading changes"):
            answer = self._session.get(self.url + path, timeout=self.timeout_s)
            if missing and answer.status_code == 404:
                return None
            answer.raise_for_status()
            said = answer.json()
        if not isinstance(said, dict):
            raise UnavailableError("reading changes: the answer is not Orthanc's: is the address its own?")
        return said

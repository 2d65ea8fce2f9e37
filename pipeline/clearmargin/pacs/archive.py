"""An archive, whatever it speaks: its address, how often it is asked, what it lists, and a series fetched whole."""

from __future__ import annotations

import hashlib
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from clearmargin.errors import InputError, UnavailableError
from clearmargin.files import whole
from clearmargin.formats.dicom.boundary import dicom_boundary
from clearmargin.formats.limits import max_bytes, raise_it
from clearmargin.pacs.breaker import Breaker

__all__ = [
    "Archive",
    "ArchivedSeries",
    "Keep",
    "checked_uid",
    "digest_of_uids",
    "plain_values",
    "same_or_refused",
]

MOST_INSTANCES = 200_000
"""The most objects of a series that are listed."""

_UID = re.compile(r"[0-9]+(\.[0-9]+)*")

Keep = Callable[[str, Callable[[Path], object]], None]
"""Takes an object's UID, and what writes it to a path. It raises if no more is wanted."""


@dataclass(frozen=True, kw_only=True)
class ArchivedSeries:
    """A series that an archive lists.

    Attributes:
        study: Its StudyInstanceUID. Private, as all that follows.
        uid: Its SeriesInstanceUID.
        attributes: What the archive says of it, by keyword: texts, numbers, lists of these; absent values left out.
    """

    study: str = field(repr=False)
    uid: str = field(repr=False)
    attributes: dict[str, Any] = field(repr=False)


@dataclass(frozen=True, kw_only=True)
class Archive(ABC):
    """An archive by its address: a source and a destination; values, which go to any process.

    Credentials are none of its values: each process takes them from its environment (`credentials`).

    Attributes:
        url: Its address.
        ca_file: Certificates that are trusted in place of the system's.
        timeout_s: How long the archive may say nothing.
        tries: How often a request is made before it fails.
        failures: After so many failed tries in a row it is not asked any more.
        rest_s: For so long.
    """

    url: str
    ca_file: Path | None = None
    timeout_s: float = 60.0
    tries: int = 3
    failures: int = 6
    rest_s: float = 30.0

    def __getstate__(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @property
    def name(self) -> str:
        """What it is called in the ledger: its address."""
        return self.url

    @cached_property
    def breaker(self) -> Breaker:
        """The archive's breaker, of this process."""
        return Breaker(tries=self.tries, failures=self.failures, rest_s=self.rest_s)

    @abstractmethod
    def check(self) -> None:
        """Ask for an answer, so that a wrong address or password shows before any work.

        Raises:
            ConfigError: It does not let us in. UnavailableError: It does not answer.
        """

    @abstractmethod
    def send(self, files: Sequence[Path]) -> list[tuple[str, str]]:
        """Store DICOM files, and have each confirmed; see `predicting.items.Destination`."""

    @abstractmethod
    def list_series(
        self, keywords: Sequence[str] = (), *, study: str = "", series: str = ""
    ) -> Iterator[ArchivedSeries]:
        """Yield each series once.

        Args:
            keywords: Attributes that are asked for beside those that every archive gives.
            study: The StudyInstanceUID of the only study that is asked for; "" for all.
            series: The SeriesInstanceUID of the only series, of that study; "" for all.

        Raises:
            ClearMarginError: The archive is away, refuses, or names a series by what is no UID.
        """

    @abstractmethod
    def list_instances(self, series: ArchivedSeries) -> tuple[str, ...]:
        """Return the SOPInstanceUIDs of a series, sorted."""

    @abstractmethod
    def read_attributes(self, series: ArchivedSeries, instance: str) -> dict[str, Any]:
        """Return what one object of a series says of itself, as `ArchivedSeries.attributes`."""

    @abstractmethod
    def receive(self, study: str, series: str, keep: Keep) -> None:
        """Have a series' objects sent, at the first try, and give each to ``keep``."""

    def fetch_series(self, study: str, series: str, folder: Path, *, count: int, digest: str) -> list[Path]:
        """Write a series' objects into a folder, under names of ours, and return the files.

        Args:
            study: Its study.
            series: The series.
            folder: An empty, private folder.
            count: How many objects it had when it was listed.
            digest: Which ones (`digest_of_uids`).

        Raises:
            UnavailableError: Not all came. InputError: Others came, or more than the limit, or damaged ones.
        """
        return self.breaker.call(partial(self._fetch, study, series, folder, count, digest))

    def _fetch(self, study: str, series: str, folder: Path, count: int, digest: str) -> list[Path]:
        for left in folder.glob("*.dcm"):  # of a try that was cut off
            left.unlink()
        files: dict[str, Path] = {}
        size = 0

        def keep(uid: str, save: Callable[[Path], object]) -> None:
            nonlocal size
            if uid in files:
                return  # it came twice
            if len(files) == count:
                raise InputError("the series has grown since it was listed: run the batch again")
            files[uid] = _written(save, folder / f"{len(files):06d}.dcm")
            size += files[uid].stat().st_size
            if size > max_bytes():
                raise InputError(f"the series is too large: {raise_it()}")

        self.receive(study, series, keep)
        if len(files) < count:
            raise UnavailableError(f"{len(files)} of {count} objects of a series came from the archive")
        if digest_of_uids(list(files)) != digest:
            raise InputError("the series' objects are others than were listed: run the batch again")
        return list(files.values())


@dicom_boundary()
def _written(save: Callable[[Path], object], file: Path) -> Path:
    with whole(file) as draft:
        save(draft)
    file.chmod(0o600)
    return file


def digest_of_uids(uids: Sequence[str]) -> str:
    """Return a digest of which objects a series has."""
    return hashlib.sha256("\n".join(sorted(uids)).encode()).hexdigest()


def checked_uid(said: Mapping[str, Any], keyword: str) -> str:
    """Return a UID, which is about to be part of an address or a query.

    Raises:
        InputError: The archive lists what is none.
    """
    uid = str(said.get(keyword, ""))
    if len(uid) > 64 or not _UID.fullmatch(uid):
        raise InputError(f"the archive lists a {keyword} that is none")
    return uid


def plain_values(entry: Mapping[str, Any]) -> dict[str, Any]:
    """Return DICOM JSON (PS3.18, F.2) as keywords and plain values; sequences, binary and absent values left out."""
    from pydicom.datadict import keyword_for_tag

    plain: dict[str, Any] = {}
    for tag, content in entry.items():
        values = content.get("Value") if isinstance(content, dict) else None
        if not isinstance(values, list) or not values or not re.fullmatch("[0-9A-Fa-f]{8}", tag):
            continue
        keyword = keyword_for_tag(int(tag, 16))
        if keyword and all(isinstance(v, str | int | float) for v in values):
            plain[keyword] = values[0] if len(values) == 1 else values
    return plain


def same_or_refused(sent: Any, kept: Any) -> str:
    """Return the digest that what was sent and what an archive keeps have in common (`digest_of`).

    Raises:
        InputError: They differ; with the names of the attributes.
    """
    from clearmargin.pacs.sameness import differences, digest_of

    digest = digest_of(sent)
    if digest_of(kept) != digest:
        raise InputError(
            "the archive took an object and shows another under its UID; different are: "
            f"{', '.join(differences(sent, kept)[:8])}"
        )
    return digest

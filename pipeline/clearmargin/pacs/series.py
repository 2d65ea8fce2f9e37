"""Series in a DICOMweb archive: listed by QIDO-RS a page at a time, fetched whole by WADO-RS or not at all."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from clearmargin.errors import ClearMarginError, InputError, UnavailableError
from clearmargin.files import whole
from clearmargin.formats.dicom.boundary import dicom_boundary
from clearmargin.formats.limits import max_bytes, raise_it
from clearmargin.pacs.dicomweb import DicomWeb

__all__ = [
    "ArchivedSeries",
    "digest_of_uids",
    "fetch_series",
    "list_instances",
    "list_series",
    "read_attributes",
]

_PAGE = 500
_UID = re.compile(r"[0-9]+(\.[0-9]+)*")
_MOST_INSTANCES = 200_000


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


def list_series(archive: DicomWeb, keywords: Sequence[str], page: int = _PAGE) -> Iterator[ArchivedSeries]:
    """Yield each series of an archive once.

    Args:
        archive: The archive.
        keywords: Attributes that are asked for beside those that every archive gives.
        page: How many are asked for at once.

    Raises:
        ClearMarginError: The archive is away, refuses, or names a series by what is no UID.
    """

    def ask(offset: int) -> Callable[[Any], Any]:
        return lambda client: client.search_for_series(limit=page, offset=offset, fields=list(keywords))

    for said in _paged(archive, "listing series", ask):
        yield ArchivedSeries(
            study=_uid(said, "StudyInstanceUID"), uid=_uid(said, "SeriesInstanceUID"), attributes=said
        )


def list_instances(archive: DicomWeb, series: ArchivedSeries, page: int = 10 * _PAGE) -> tuple[str, ...]:
    """Return the SOPInstanceUIDs of a series, sorted."""

    def ask(offset: int) -> Callable[[Any], Any]:
        return lambda client: client.search_for_instances(
            study_instance_uid=series.study, series_instance_uid=series.uid, limit=page, offset=offset
        )

    uids: set[str] = set()
    for said in _paged(archive, "listing a series", ask):
        uids.add(_uid(said, "SOPInstanceUID"))
        if len(uids) > _MOST_INSTANCES:
            raise InputError(f"a series of the archive has more than {_MOST_INSTANCES} objects")
    return tuple(sorted(uids))


def read_attributes(archive: DicomWeb, series: ArchivedSeries, instance: str) -> dict[str, Any]:
    """Return what one object of a series says of itself (WADO-RS metadata), as `ArchivedSeries.attributes`."""
    said = archive.ask(
        "reading metadata",
        lambda client: client.retrieve_instance_metadata(series.study, series.uid, instance),
    )
    return _plain(said)


def digest_of_uids(uids: Sequence[str]) -> str:
    """Return a digest of which objects a series has."""
    return hashlib.sha256("\n".join(sorted(uids)).encode()).hexdigest()


def fetch_series(
    archive: DicomWeb, study: str, series: str, folder: Path, *, count: int, digest: str
) -> list[Path]:
    """Write a series' objects into a folder, under names of ours, and return the files.

    Args:
        archive: The archive.
        study: Its study.
        series: The series.
        folder: An empty, private folder.
        count: How many objects it had when it was listed.
        digest: Which ones (`digest_of_uids`).

    Raises:
        UnavailableError: Not all came. InputError: Others came, or more than the limit, or damaged ones.
    """
    return archive.breaker.call(lambda: _fetch(archive, study, series, folder, count, digest))


def _fetch(archive: DicomWeb, study: str, series: str, folder: Path, count: int, digest: str) -> list[Path]:
    for left in folder.glob("*.dcm"):  # of a try that was cut off
        left.unlink()
    files: dict[str, Path] = {}
    objects = archive.ask_once(
        "fetching a series",
        lambda client: client.iter_series(study, series, media_types=(("application/dicom", "*"),)),
    )
    size = 0
    while True:
        dataset = archive.ask_once("fetching a series", lambda _: _next(objects))
        if dataset is None:
            break
        uid, file = _write(dataset, folder / f"{len(files):06d}.dcm")
        if uid in files:
            file.unlink()  # it came twice
            continue
        files[uid] = file
        size += file.stat().st_size
        if size > max_bytes():
            raise InputError(f"the series is too large: {raise_it()}")
        if len(files) > count:
            raise InputError("the series has grown since it was listed: run the batch again")
    if len(files) < count:
        raise UnavailableError(f"{len(files)} of {count} objects of a series came from the archive")
    if digest_of_uids(list(files)) != digest:
        raise InputError("the series' objects are others than were listed: run the batch again")
    return list(files.values())


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
def _write(dataset: Any, file: Path) -> tuple[str, Path]:
    uid = str(dataset.SOPInstanceUID)
    with whole(file) as draft:
        dataset.save_as(draft, enforce_file_format=True)
    file.chmod(0o600)
    return uid, file


def _paged(
    archive: DicomWeb, what: str, ask: Callable[[int], Callable[[Any], Any]]
) -> Iterator[dict[str, Any]]:
    """Yield what pages list, each entry once, until one holds nothing new: some archives ignore the offset."""
    seen: set[str] = set()
    offset = 0
    while True:
        page = archive.ask(what, ask(offset))
        if not isinstance(page, list) or not all(isinstance(entry, dict) for entry in page):
            raise UnavailableError(f"{what}: the archive's answer is not a list: is the address its own?")
        before = len(seen)
        for entry in page:
            said = _plain(entry)
            name = str(said.get("SOPInstanceUID") or said.get("SeriesInstanceUID"))
            if name not in seen:
                seen.add(name)
                yield said
        if len(seen) == before:
            return
        offset += len(page)


def _uid(said: dict[str, Any], keyword: str) -> str:
    """Return a UID, which is about to be part of an address."""
    uid = str(said.get(keyword, ""))
    if len(uid) > 64 or not _UID.fullmatch(uid):
        raise InputError(f"the archive lists a {keyword} that is none")
    return uid


def _plain(entry: dict[str, Any]) -> dict[str, Any]:
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

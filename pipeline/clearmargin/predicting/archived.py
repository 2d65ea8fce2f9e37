"""What an archive holds, as inputs for a batch: each series of pictures once, and none that a batch wrote."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from clearmargin.errors import ConfigError, InputError
from clearmargin.formats.dicom.output import MANUFACTURER
from clearmargin.formats.opening import Opened
from clearmargin.jobs.ledger import Ledger
from clearmargin.pacs.archive import Archive, ArchivedSeries, digest_of_uids
from clearmargin.pacs.fetched import Fetched
from clearmargin.predicting.discovery import Found, Left, open_files
from clearmargin.predicting.selection import Selection
from clearmargin.privacy import case_id, record_cases

__all__ = ["archive_of", "find_archived", "open_archived"]

# Series that show no picture (PS3.3, C.7.3.1.1.1).
_NO_PICTURE = frozenset(
    (  # noqa: SIM905 - a list of words
        "ANN ASMT AU DOC ECG EEG EMG EOG EPS FID HD KO PLAN PR RESP RTDOSE RTINTENT RTPLAN RTRAD RTRECORD RTSEGANN "
        "RTSTRUCT REG RWV SEG SMR SR TEXTUREMAP"
    ).split()
)
_KEYWORDS = ("Manufacturer", "SeriesDescription", "Modality", "NumberOfSeriesRelatedInstances")


def find_archived(
    archive: Archive,
    *,
    ledger: Ledger,
    selection: Selection,
    left: Left,
    seen: Callable[[int], object] = lambda _: None,
    study: str = "",
    series: str = "",
) -> Iterator[Found]:
    """Yield every series of pictures in an archive, or the one that is named; as `find_inputs` does for folders.

    An input's content is which objects the series has: an object's UID stands for what is in it.

    Raises:
        UnavailableError: The archive is away. InputError: It refuses.
        ConfigError: It does not let us in; the selection asks for what only a series' pixels would show.
    """
    names = selection.names()
    if "kind" in names:
        raise ConfigError(
            "--select asks for 'kind', which is not known of a series in an archive: ask for SOPClassUID"
        )
    asked = sorted({*_KEYWORDS, *names} - {"slices", "files"})
    for listed in archive.list_series(asked, study=study, series=series):
        case = _input_of(archive, listed, ledger, selection, left, seen)
        if case is not None:
            yield case


def _input_of(
    archive: Archive,
    series: ArchivedSeries,
    ledger: Ledger,
    selection: Selection,
    left: Left,
    seen: Callable[[int], object],
) -> Found | None:
    """Return a series as an input; None if it shows no picture, was written by a batch, or is not selected."""
    said, names = series.attributes, selection.names()
    # A map is of a picture's modality: its description says who wrote it.
    is_map = str(said.get("SeriesDescription", "")).startswith(f"{MANUFACTURER} ")
    if said.get("Modality") in _NO_PICTURE or is_map:
        left.no_picture += 1
        return None
    instances = archive.list_instances(series)
    seen(len(instances))
    if not instances or ledger.is_own(instances[0]):
        left.no_picture += 1
        return None
    if not selection.takes(_attributes(archive, series, instances, names)):
        left.not_selected += 1
        return None
    return _found(archive, series, instances)


def open_archived(
    archive: Archive, source: Mapping[str, Any]
) -> tuple[Opened, dict[str, str | None], Fetched]:
    """Fetch a series; return it as `open_input` does, and what holds its files.

    Raises:
        UnavailableError: The archive is away, or not all came. InputError: The series is another one by now.
    """
    fetched = Fetched()
    files = archive.fetch_series(
        source["study"],
        source["uid"],
        fetched.path,
        count=source["count"],
        digest=source["digest"],
    )
    opened, which = open_files(files, source)
    return opened, which, fetched


def _attributes(
    archive: Archive, series: ArchivedSeries, instances: tuple[str, ...], names: frozenset[str]
) -> dict[str, Any]:
    """Return what a selection asks for; what the archive does not list is read of one object."""
    counted = {"files": len(instances), "slices": len(instances)}
    missing = names - series.attributes.keys() - {"files"}
    if not missing:
        return series.attributes | counted
    said = archive.read_attributes(series, instances[0])
    frames = said.get("NumberOfFrames")
    if isinstance(frames, str | int) and str(frames).isdigit():
        counted["slices"] = len(instances) * int(frames)
    return said | series.attributes | counted


def _found(archive: Archive, series: ArchivedSeries, instances: tuple[str, ...]) -> Found:
    case = case_id(series.uid)  # as the same series in a folder has it
    digest = digest_of_uids(instances)
    record_cases({case: f"{archive.name}/studies/{series.study}/series/{series.uid}"})
    content = hashlib.sha256(json.dumps([series.uid, len(instances), digest]).encode()).hexdigest()
    return Found(
        case=case,
        content=content,
        source={
            "kind": "archive",
            "archive": archive.name,
            "study": series.study,
            "uid": series.uid,
            "count": len(instances),
            "digest": digest,
            "series": hashlib.sha256(series.uid.encode()).hexdigest(),
            "volume": None,
        },
    )


def archive_of(archives: tuple[Archive, ...], source: Mapping[str, Any]) -> Archive:
    """Return the archive that an input lies in.

    Raises:
        InputError: This batch was not given it.
    """
    for archive in archives:
        if archive.name == source["archive"]:
            return archive
    raise InputError("its archive is not among the sources of this run: name it again, or withdraw the item")

"""What lies under a folder, a file or a zip, as inputs: each series, volume, picture or clip once.

Only names, headers and digests are kept, a folder at a time; what has not changed is not read again.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clearmargin.errors import ConfigError, InputError
from clearmargin.failures import reason_of
from clearmargin.files import check_readable, file_digest
from clearmargin.formats import Opened, open_source
from clearmargin.formats.listing import folders_below, kind_of_file, stat_of_file
from clearmargin.jobs.ledger import Ledger
from clearmargin.predicting.selection import Selection
from clearmargin.privacy import case_of_file, naming, record_case, record_cases

if TYPE_CHECKING:
    from clearmargin.formats.dicom.headers import Header
    from clearmargin.formats.dicom.index import SeriesEntry

__all__ = [
    "Found",
    "Left",
    "damaged_cases",
    "find_inputs",
    "holds_one_study",
    "is_the_only",
    "load_selection",
    "open_files",
    "open_input",
    "place_of",
]

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Found:
    """One input that was found.

    Attributes:
        case: Its case id.
        content: SHA-256 of its files' contents, whatever they are called.
        source: How `open_input` opens it, as plain data. Private: it holds paths.
    """

    case: str
    content: str
    source: Mapping[str, Any] = field(repr=False)


@dataclass
class Left:
    """What was left out, counted.

    Attributes:
        not_selected: Series that the selection does not take.
        no_picture: Series that show no picture.
        unreadable: Case id and reason of what cannot be read.
        other_files: Files of other kinds.
        results: Case folders that `predict` or a batch wrote.
    """

    not_selected: int = 0
    no_picture: int = 0
    unreadable: dict[str, str] = field(default_factory=dict)
    other_files: int = 0
    results: int = 0

    def see_results(self, _: Path) -> None:
        """Count a case folder."""
        self.results += 1

    def refuse(self, case: str, reason: str) -> str:
        """Note why an input is left out; return what it is called: with plain names several may have one name."""
        name, number = case, 2
        while name in self.unreadable:
            name, number = f"{case}-{number}", number + 1
        self.unreadable[name] = reason
        return name


def find_inputs(
    source: Path,
    *,
    ledger: Ledger,
    selection: Selection,
    left: Left,
    seen: Callable[[int], object] = lambda _: None,
    contents: bool = True,
) -> Iterator[Found]:
    """Yield every input under ``source``, in the order of the folders' names.

    A series whose files lie in several folders is one input, and is yielded last. Links are followed to files, not to
    folders. Case folders, which `predict` and a batch write, are left out.

    Args:
        source: A folder and all below it, a file, or a zip.
        ledger: Keeps what lies in each folder, so that an unchanged one costs a listing.
        selection: Which series are taken.
        left: Counts what is not yielded, with the reason.
        seen: Called with the number of files of each folder.
        contents: Whether all files are read for a digest of their contents; else `Found.content` is empty.

    Raises:
        InputError: There is no such path.
    """
    check_readable(source)
    parts: dict[str, list[dict[str, Any]]] = {}
    for folder, files in folders_below(source, left.see_results):
        seen(len(files))
        for entry in _of_folder(
            folder, files, ledger, left, _digest if contents else _no_digest, selection.names()
        ):
            if entry["kind"] != "dicom":
                yield Found(case=entry["case"], content=entry["content"], source=entry["source"])
                continue
            parts.setdefault(entry["series"], []).append(entry)
    for series in parts.values():
        yield from _of_series(series, selection, left)


def is_the_only(entry: Found, ledger: Ledger, left: Left) -> bool:
    """Return whether no other input has this one's plain name; else it is among those that are left out."""
    if naming() != "plain":
        return True
    source = entry.source
    identity = str(source.get("series") or [source.get("root"), source.get("names")])
    first = ledger.recall(f"name {entry.case}")
    if first is None:
        ledger.remember(f"name {entry.case}", identity)
    elif first != identity:
        left.refuse(entry.case, "another input is called so, too: leave out --names plain")
        return False
    return True


def holds_one_study(folder: Path) -> bool:
    """Return whether all that is read below a folder is DICOM of one study.

    It ends at the second study, or at the first file of another kind.
    """
    from clearmargin.formats.dicom.boundary import study_of

    studies = set()
    for _, files in folders_below(folder):
        for file in files:
            kind = kind_of_file(file)
            if kind in ("zip", "file"):
                return False
            study = study_of(file) if kind == "dicom" else None
            if study is not None:
                studies.add(study)
            if len(studies) > 1:
                return False
    return len(studies) == 1


def place_of(source: Mapping[str, Any]) -> Path:
    """Return where an input lies: its file, or the folder of its files."""
    root, names = Path(source["root"]), source["names"]
    return root / names[0] if len(names) == 1 else root


def open_input(source: Mapping[str, Any]) -> tuple[Opened, dict[str, str | None]]:
    """Return an input as it was found, opened, and which series and volume of it are meant.

    Raises:
        InputError: A file is gone or was changed since, or cannot be read.
    """
    root = Path(source["root"])
    for name, (size, modified) in zip(source["names"], source["stats"], strict=True):
        try:
            stat = (root / name).stat()
        except OSError:
            raise InputError("a file of it is gone since it was listed: run the batch again") from None
        if (stat.st_size, stat.st_mtime_ns) != (size, modified):
            raise InputError(
                "a file of it has changed since it was listed: run the batch again, which lists it anew"
            )
    files = [root / name for name in source["names"]]
    if source["kind"] != "dicom":
        return open_source(files[0]), {}
    return open_files(files, source)


def open_files(files: Sequence[Path], source: Mapping[str, Any]) -> tuple[Opened, dict[str, str | None]]:
    """Return the series of an input, opened from its files, and which series and volume of them are meant.

    Raises:
        InputError: They do not hold it, or cannot be read.
    """
    from clearmargin.formats.dicom.index import scan_dicom

    place: Path | list[Path] = files[0] if len(files) == 1 else list(files)
    scanned = tuple((e, h) for e, h in scan_dicom(place) if series_key(e.uid) == source["series"])
    if not scanned:
        raise InputError("its series is no longer in its files: run the batch again")
    is_clip = scanned[0][0].kind == "clip" and len(scanned[0][0].files) == 1
    opened = Opened(path=files[0].parent, kind="clip" if is_clip else "dicom", series=scanned)
    return opened, {"series": f"list:{scanned[0][0].number}", "volume": source["volume"]}


def damaged_cases(place: Path, damaged: Mapping[Path, str]) -> dict[str, str]:
    """Return case id and reason of DICOM files that cannot be read, and note the ids; those in a zip are one case.

    Args:
        place: The folder or the file, such as a zip, that holds them.
        damaged: What `formats.dicom.index.scan_dicom` found, with reasons.
    """
    if damaged and place.is_file():
        first = next(iter(damaged.values()))
        reasons = {
            place: f"{len(damaged)} DICOM file(s) in it cannot be read, and the others are taken; the first: {first}"
        }
    else:
        reasons = dict(damaged)
    cases = {case_of_file(file): file for file in reasons}
    record_cases(cases)
    return {case: reasons[file] for case, file in cases.items()}


def series_key(uid: str) -> str:
    """Return what a series is called in the ledger's lists: a digest of its UID."""
    return hashlib.sha256(uid.encode()).hexdigest()


def _of_folder(
    folder: Path,
    files: Sequence[Path],
    ledger: Ledger,
    left: Left,
    digest: Callable[[Sequence[Path]], str],
    asked: frozenset[str],
) -> list[dict[str, Any]]:
    """Return the inputs of one folder as plain data, from the ledger if its listing has not changed.

    The ledger keeps of headers what a selection asks for (``asked``), and no other text, which could name a patient.
    """
    stats = {f.name: (s.st_size, s.st_mtime_ns) for f in files if (s := stat_of_file(f)) is not None}
    listing = hashlib.sha256(
        json.dumps([naming(), stats, sorted(asked)], sort_keys=True).encode()
    ).hexdigest()
    place = str(folder.absolute()) if len(files) != 1 else str(files[0].absolute())
    known = ledger.known_place(place)
    if known is not None and known[0] == listing:
        entries = known[1]
    else:
        entries = _listed(folder, [folder / name for name in stats], stats, digest, asked)
        ledger.note_place(place, listing, entries)
    for entry in entries:
        if entry["kind"] == "left":
            left.other_files += entry["others"]
            for case, reason in entry["unreadable"].items():
                left.refuse(case, reason)
    inputs = [entry for entry in entries if entry["kind"] != "left"]
    record_cases({entry["case"]: place_of(entry["source"]) for entry in inputs})
    return inputs


def _listed(
    folder: Path,
    files: Sequence[Path],
    stats: Mapping[str, tuple[int, int]],
    digest: Callable[[Sequence[Path]], str],
    asked: frozenset[str],
) -> list[dict[str, Any]]:
    from clearmargin.formats.dicom.index import scan_dicom
    from clearmargin.formats.dicom.media import forget_unpacked

    entries: list[dict[str, Any]] = []
    unreadable: dict[str, str] = {}
    kinds = {file: kind_of_file(file) for file in files}
    for file, kind in kinds.items():
        case = case_of_file(file)
        if kind == "zip":
            damaged: dict[Path, str] = {}
            try:
                scanned = scan_dicom(file, damaged)
                content = digest([file])
                entries += [_dicom_entry(e, h, folder, [file], stats, content, asked) for e, h in scanned]
                unreadable |= damaged_cases(file, damaged)
            except Exception as error:  # noqa: BLE001 - said and counted
                unreadable[case] = reason_of(error).replace(file.name, "the zip")
                record_case(case, file)
            finally:
                forget_unpacked(file)
        elif kind == "file":
            source = _source("file", folder, [file], stats)
            entries.append({"kind": "file", "case": case, "content": digest([file]), "source": source})
    others = sum(kind == "other" and file.name.upper() != "DICOMDIR" for file, kind in kinds.items())
    dicom = [file for file, kind in kinds.items() if kind == "dicom"]
    if dicom:
        broken: dict[Path, str] = {}
        try:
            entries += [
                _dicom_entry(e, h, folder, e.files, stats, digest(e.files), asked)
                for e, h in scan_dicom(dicom, broken)
            ]
        except Exception as error:  # noqa: BLE001
            if len(broken) < len(dicom):
                case = case_of_file(folder)
                unreadable[case] = reason_of(error)
                record_case(case, folder)
        unreadable |= damaged_cases(folder, broken)
    if unreadable or others:
        entries.append({"kind": "left", "others": others, "unreadable": unreadable})
    return entries


def _dicom_entry(
    entry: SeriesEntry,
    headers: Sequence[Header],
    folder: Path,
    files: Sequence[Path],
    stats: Mapping[str, tuple[int, int]],
    content: str,
    asked: frozenset[str],
) -> dict[str, Any]:
    from clearmargin.formats.dicom.images import series_case

    return {
        "kind": "dicom",
        "series": series_key(entry.uid),
        "case": series_case(entry, headers[0]),
        "content": content,
        "source": _source("dicom", folder, files, stats),
        "what": entry.kind,
        "refused": entry.reason if entry.refused and entry.kind == "object" else "",
        "attributes": _attributes(entry, asked),
        "volumes": [
            {"number": str(v.number), "case": series_case(entry, headers[0], v.label)} for v in entry.volumes
        ]
        if len(entry.volumes) > 1
        else [],
    }


def _attributes(entry: SeriesEntry, asked: frozenset[str]) -> dict[str, Any]:
    """Return what a selection can ask for, of the series' first file."""
    from clearmargin.predicting.selection import attributes_of

    return attributes_of(entry.files[0], asked) | {
        "kind": entry.kind,
        "slices": entry.shape[0] if len(entry.shape) == 3 else len(entry.files),
        "files": len(entry.files),
    }


def _of_series(parts: Sequence[dict[str, Any]], selection: Selection, left: Left) -> Iterator[Found]:
    """Yield the inputs of one series, whose files may lie in several folders."""
    for part in parts:
        if part["refused"]:
            left.refuse(part["case"], part["refused"])
    parts = [part for part in parts if not part["refused"]]
    if not parts:
        return
    first = parts[0]
    if first["what"] == "object":
        left.no_picture += 1
        return
    attributes = first["attributes"] | {
        "slices": sum(p["attributes"]["slices"] for p in parts),
        "files": sum(p["attributes"]["files"] for p in parts),
    }
    if not selection.takes(attributes):
        left.not_selected += 1
        return
    content = hashlib.sha256("".join(sorted(p["content"] for p in parts)).encode()).hexdigest()
    source = _joined([p["source"] for p in parts]) | {"series": first["series"], "volume": None}
    if len(parts) == 1 and first["volumes"]:
        for volume in first["volumes"]:
            yield Found(case=volume["case"], content=content, source=source | {"volume": volume["number"]})
        return
    yield Found(case=first["case"], content=content, source=source)


def _source(
    kind: str, folder: Path, files: Sequence[Path], stats: Mapping[str, tuple[int, int]]
) -> dict[str, Any]:
    names = [file.name for file in files]
    return {
        "kind": kind,
        "root": str(folder.absolute()),
        "names": names,
        "stats": [list(stats[name]) for name in names],
    }


def _joined(sources: Sequence[dict[str, Any]]) -> dict[str, Any]:
    if len(sources) == 1:
        return dict(sources[0])
    root = os.path.commonpath([s["root"] for s in sources])
    names = [os.path.relpath(Path(s["root"]) / name, root) for s in sources for name in s["names"]]
    return {"kind": "dicom", "root": root, "names": names, "stats": [t for s in sources for t in s["stats"]]}


def _digest(files: Sequence[Path]) -> str:
    """Return a digest of files' contents, whatever their names and order; they are read side by side."""
    try:
        with ThreadPoolExecutor(max_workers=min(8, len(files))) as pool:
            digests = sorted(pool.map(file_digest, files))
    except OSError as error:
        raise InputError(f"a file cannot be read: {os.strerror(error.errno or 0)}") from None
    return digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()


def _no_digest(_: Sequence[Path]) -> str:
    return ""


def load_selection(path: Path | None) -> Selection:
    """Return the selection of a file; all series without one.

    Raises:
        ConfigError: The file does not fit.
    """
    from clearmargin.config import load_settings

    if path is None:
        return Selection()
    if not path.is_file():
        raise ConfigError(f"no file '{path}' for --select")
    return load_settings(path, Selection)

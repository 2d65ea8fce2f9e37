"""``deidentify``: folders of DICOM files become files without identity, and a report of what was done."""

from __future__ import annotations

import logging
import os
import shutil
import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path

from clearmargin.deidentification.file import Outcome, Rules, deidentify_file
from clearmargin.deidentification.key import Key, read_key, same_patient
from clearmargin.deidentification.report import Report
from clearmargin.errors import ClearMarginError, ConfigError, InputError
from clearmargin.files import check_readable
from clearmargin.formats.dicom.boundary import read_header
from clearmargin.formats.dicom.headers import Elements
from clearmargin.formats.dicom.index import looks_like_dicom
from clearmargin.formats.dicom.media import is_zip, unpacked_files
from clearmargin.formats.dicom.scan import quick_header
from clearmargin.privacy import case_id, record_cases
from clearmargin.report.progress import progress

__all__ = ["Deidentified", "deidentify"]

log = logging.getLogger(__name__)

_DRAFTS = ".unfinished"
_IDENTITY = {0x0020_000D: "StudyInstanceUID", 0x0010_0020: "PatientID"}
_AHEAD = 4  # files that each worker may be ahead of the one that is put in place


@dataclass(frozen=True, kw_only=True)
class Deidentified:
    """What came of a run.

    Attributes:
        files: How many files by status: written, duplicate, held back, refused, skipped.
        reasons: How many files by status and reason.
        folder: Where the results and the report are.
    """

    files: dict[str, int]
    reasons: dict[tuple[str, str], int]
    folder: Path

    @property
    def left_out(self) -> int:
        """Return how many DICOM files are not among the results."""
        return self.files.get("held back", 0) + self.files.get("refused", 0)


def deidentify(
    source: Path,
    out: Path,
    *,
    key: Path,
    quarantine: Path | None = None,
    pixels_reviewed: bool = False,
    look_for_text: bool = False,
    workers: int = 1,
) -> Deidentified:
    """De-identify a file, a zip, or a folder and all below it, by PS3.15's Basic Profile with shifted dates.

    The same key gives the same results in every run, file by file and byte by byte. A file that cannot be done
    is reported and does not end the run. Nothing under ``out`` holds a name, an id, a date or a path of the input.

    Args:
        source: What to de-identify; it is only read.
        out: Folder for the results: ``PSEUDONYM/STUDY/SERIES/INSTANCE.dcm``, ``report.json``, ``attributes.csv``,
            ``files.csv``.
        key: File with the secret (:func:`clearmargin.deidentification.key.write_new_key`).
        quarantine: Folder for files held back, de-identified but for what holds them back; without it they are not
            written.
        pixels_reviewed: Somebody has looked at all pictures: none is held back for what may be burned in.
        look_for_text: Search the pixels for text, too; needs the extra ``text``, and about a second per file.
        workers: How many processes.

    Raises:
        ConfigError: The key or the folders do not fit.
        InputError: There is nothing to read, or no DICOM file in it.
    """
    secret = read_key(key)
    rules = Rules(
        pixels_reviewed=pixels_reviewed, look_for_text=look_for_text, keep_held_back=quarantine is not None
    )
    if look_for_text:
        from clearmargin.deidentification.text import check_detector

        check_detector()
    _check_folders(source, out, key, quarantine)
    files = _files(source)
    rules = replace(rules, patients=_patients_of_studies(files))
    drafts = _fresh_drafts(out)
    try:
        with Report(out, rules) as report:
            _run(files, drafts, report, _Places(out, quarantine), secret, rules, workers)
    except OSError as error:
        raise ClearMarginError(
            f"the results cannot be written ({error.strerror}): what is finished is kept, run it again"
        ) from None
    finally:
        shutil.rmtree(drafts, ignore_errors=True)
    done = Deidentified(files=dict(report.statuses), reasons=dict(report.reasons), folder=out)
    if not done.files.get("written") and not done.left_out:
        raise InputError(f"there is no DICOM file in what was given ({len(files)} file(s))")
    return done


def _patients_of_studies(files: Iterable[Path]) -> dict[str, str]:
    """Return the PatientID of each study in which some files state none, and all others the same one."""
    stated: dict[str, set[str]] = {}
    without: set[str] = set()
    for path in files:
        try:
            header: Elements | None = quick_header(path, _IDENTITY, frozenset())
            if header is None and looks_like_dicom(path):
                header = read_header(path, tags=list(_IDENTITY.values()))
            if header is None:
                continue
            study, patient = (str(header.get(name) or "").strip("\0 ") for name in _IDENTITY.values())
        except Exception:  # noqa: BLE001 - it is refused, with its reason, when its turn comes
            continue
        if patient:
            stated.setdefault(study, set()).add(same_patient(patient))
        else:
            without.add(study)
    return {study: next(iter(ids)) for study, ids in stated.items() if study in without and len(ids) == 1}


def _run(
    files: list[Path], drafts: Path, report: Report, places: _Places, key: Key, rules: Rules, workers: int
) -> None:
    work = partial(_one, drafts=drafts, key=key, rules=rules)
    crosswalk: dict[str, Path] = {}
    try:
        with progress("deidentify", len(files)) as bar:
            for path, outcome in zip(files, _outcomes(work, files, workers), strict=True):
                case = case_id(str(path.resolve()))
                settled = places.settle(outcome)
                report.add(case, settled)
                if settled.status in ("held back", "refused"):
                    crosswalk[case] = path
                bar.advance(left_out=str(len(crosswalk)))
    finally:
        record_cases(crosswalk)  # the only place that says which file it was


def _one(numbered: tuple[int, Path], *, drafts: Path, key: Key, rules: Rules) -> Outcome:
    number, path = numbered
    return deidentify_file(path, drafts / f"{number}.dcm", key, rules)


class _Places:
    """Puts finished files where they belong: whole or not at all, and never one over another."""

    def __init__(self, out: Path, quarantine: Path | None) -> None:
        self._out, self._quarantine = out, quarantine
        self._taken: dict[str, bytes] = {}

    def settle(self, outcome: Outcome) -> Outcome:
        """Move a draft to its place, and return what came of it."""
        if outcome.draft is None:
            return outcome
        root = self._out if outcome.status == "written" else self._quarantine
        before = self._taken.get(outcome.place)
        if before == outcome.digest:
            outcome.draft.unlink()
            return replace(outcome, status="duplicate", reason="the same object was there before")
        if before is not None or root is None:
            outcome.draft.unlink()
            return replace(
                outcome,
                status="refused",
                reason="another file has the same SOP Instance UID and other contents",
            )
        self._taken[outcome.place] = outcome.digest
        place = root / outcome.place
        place.parent.mkdir(parents=True, exist_ok=True)
        try:
            outcome.draft.replace(place)
        except OSError:  # the quarantine may lie on another disk
            shutil.move(outcome.draft, place)
        return outcome


def _outcomes(
    work: Callable[[tuple[int, Path]], Outcome], files: list[Path], workers: int
) -> Iterator[Outcome]:
    """Yield outcomes in the files' order, with only a few files under way at once."""
    numbered: Iterable[tuple[int, Path]] = enumerate(files)
    if workers == 1:
        yield from map(work, numbered)
        return
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=_ignore_ctrl_c) as pool:
        ahead: deque[Future[Outcome]] = deque()
        try:
            for item in numbered:
                ahead.append(pool.submit(work, item))
                if len(ahead) >= _AHEAD * workers:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        finally:
            for waiting in ahead:
                waiting.cancel()


def _ignore_ctrl_c() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends the run; workers finish their file


def _check_folders(source: Path, out: Path, key: Path, quarantine: Path | None) -> None:
    check_readable(source)
    outputs = [folder.resolve() for folder in (out, quarantine) if folder is not None]
    whole = source.resolve()
    for folder in outputs:
        if folder == whole or whole in folder.parents or folder in whole.parents:
            raise ConfigError(
                f"OUT or --quarantine lies within the input '{source}', or the input within it: name another folder"
            )
        if folder in key.resolve().parents:
            raise ConfigError("--key lies among the results, and whoever gets them must not get it: move it")
    if len(outputs) == 2 and (outputs[0] == outputs[1] or outputs[0] in outputs[1].parents):
        raise ConfigError("--quarantine lies among the results: name a folder outside them")


def _fresh_drafts(out: Path) -> Path:
    drafts = out / _DRAFTS
    try:
        shutil.rmtree(drafts, ignore_errors=True)
        drafts.mkdir(parents=True)
    except OSError as error:
        raise ConfigError(f"the output folder cannot be made ({error.strerror})") from None
    return drafts


def _files(source: Path) -> list[Path]:
    if source.is_file():
        return unpacked_files(source) if is_zip(source) else [source]
    reasons = []
    for folder, folders, names in os.walk(source):
        folders.sort()
        reasons += [Path(folder, name) for name in sorted(names)]
    return [path for path in reasons if path.is_file()]

"""Series of an archive by DIMSE: listed by C-FIND, sent by C-GET, or by C-MOVE to a port of ours."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clearmargin.errors import ConfigError, InputError, UnavailableError
from clearmargin.formats.dicom.boundary import dicom_boundary
from clearmargin.pacs.archive import MOST_INSTANCES, ArchivedSeries, Keep, checked_uid, plain_values
from clearmargin.pacs.association import SUCCESS, Address, NoneAcceptedError, code_of, is_busy
from clearmargin.pacs.fetched import Fetched
from clearmargin.pacs.receiving import REFUSED, bounds, object_of, receiver

if TYPE_CHECKING:
    from clearmargin.pacs.dimse import Dimse

__all__ = [
    "find_instances",
    "find_series",
    "get_objects",
    "move_objects",
    "port_is_free",
    "read_object",
]

_FIND, _MOVE, _GET = (f"1.2.840.10008.5.1.4.1.2.2.{n}" for n in (1, 2, 3))  # study root
_PENDING = (0xFF00, 0xFF01)
_UNKNOWN_DESTINATION = 0xA801
_NOT_AUTHORISED = 0x0124
_MOST_STUDIES = 2_000_000
_MOST_CONTEXTS = 126
_STUDIES_AT_ONCE = 100
_WAIT_FOR_PORT_S = 1800.0


def find_series(
    archive: Dimse, keywords: Sequence[str], study: str = "", series: str = ""
) -> Iterator[ArchivedSeries]:
    """Yield each series of the studies that the archive's address chooses, some studies' worth in memory at a time.

    Args:
        archive: The archive.
        keywords: What is asked of each series.
        study: The only study that is asked for; "" for all.
        series: The only series; "" for all.
    """
    asked = {"StudyInstanceUID": study} | dict(archive.address.matching)
    studies = archive.breaker.call(partial(_find_all, archive, "STUDY", [asked], _MOST_STUDIES))
    uids = list(dict.fromkeys(checked_uid(said, "StudyInstanceUID") for said in studies))
    for start in range(0, len(uids), _STUDIES_AT_ONCE):
        queries = [
            dict.fromkeys(keywords, "") | {"StudyInstanceUID": uid, "SeriesInstanceUID": series}
            for uid in uids[start : start + _STUDIES_AT_ONCE]
        ]
        seen = set()
        for said in archive.breaker.call(partial(_find_all, archive, "SERIES", queries, MOST_INSTANCES)):
            of, uid = checked_uid(said, "StudyInstanceUID"), checked_uid(said, "SeriesInstanceUID")
            if uid not in seen:
                seen.add(uid)
                yield ArchivedSeries(study=of, uid=uid, attributes=said)


def find_instances(archive: Dimse, study: str, series: str) -> dict[str, str]:
    """Return each object's SOPInstanceUID with its SOPClassUID; "" if the archive does not say it."""
    query = dict.fromkeys(("SOPInstanceUID", "SOPClassUID"), "")
    query |= {"StudyInstanceUID": study, "SeriesInstanceUID": series}
    objects = {}
    for said in _find_all(archive, "IMAGE", [query], MOST_INSTANCES):
        objects[checked_uid(said, "SOPInstanceUID")] = str(said.get("SOPClassUID", ""))
    return objects


def _find_all(
    archive: Dimse, level: str, queries: Sequence[Mapping[str, str]], most: int
) -> list[dict[str, Any]]:
    """Return what the archive answers to queries of one level, on one association.

    Raises:
        InputError: It refuses, or answers more than ``most`` times. UnavailableError: It broke off.
    """
    answers: list[dict[str, Any]] = []
    what = "listing by C-FIND"
    try:
        with archive.associated([(_FIND, None)]) as association:
            for query in queries:
                for status, said in association.send_c_find(_identifier(level, query), _FIND):
                    code = code_of(status, what)
                    if code in _PENDING and said is not None:
                        # What an archive does not return of a key that it was asked for is as it was asked.
                        answers.append({k: v for k, v in query.items() if v} | _said(said))
                        if len(answers) > most:
                            association.abort()
                            raise InputError(
                                f"{what}: more than {most} answers: choose studies in the address, such as "
                                "&StudyDate=20260101-20260131"
                            )
                    elif code not in (SUCCESS, *_PENDING):
                        _refuse(code, what)
    except NoneAcceptedError:
        raise ConfigError(f"{what}: the archive offers no queries to our AE title (Study Root)") from None
    return answers


def get_objects(archive: Dimse, study: str, series: str, keep: Keep, instance: str = "") -> None:
    """Have a series' objects sent by C-GET, each as the archive keeps it.

    Raises:
        ConfigError: The archive offers no C-GET to our AE title.
    """
    from pynetdicom import ALL_TRANSFER_SYNTAXES, build_role, evt

    classes = sorted({c for c in find_instances(archive, study, series).values() if c}) or _IMAGE_CLASSES
    syntaxes = ALL_TRANSFER_SYNTAXES[: max(2, _MOST_CONTEXTS // len(classes))]
    # A context for each: the archive sends what it has, and need not choose one for all.
    contexts: list[tuple[str, Any]] = [(uid, [s]) for uid in classes for s in syntaxes][:_MOST_CONTEXTS]
    store = _Store(keep)
    what = "fetching by C-GET"
    try:
        with archive.associated(
            [(_GET, None), *contexts],
            roles=[build_role(uid, scp_role=True) for uid in classes],
            handlers=[(evt.EVT_C_STORE, store), *bounds()],
        ) as association:
            if _GET not in [c.abstract_syntax for c in association.accepted_contexts]:
                raise NoneAcceptedError
            query = _identifier("IMAGE" if instance else "SERIES", _which(study, series, instance))
            _await(association, association.send_c_get(query, _GET), what, store)
    except NoneAcceptedError:
        raise ConfigError(
            f"{what}: the archive offers none to our AE title: allow it there, or use C-MOVE (&move=PORT)"
        ) from None
    store.check()


def move_objects(archive: Dimse, study: str, series: str, keep: Keep, instance: str = "") -> None:
    """Have a series' objects sent by C-MOVE to a port of ours, from the archive's AE title alone.

    Raises:
        ConfigError: The archive does not know our AE title as a destination.
    """
    address = archive.address
    if address.move is None:
        raise ValueError("the address names no port for C-MOVE")
    store = _Store(keep, study=study, series=series)
    what = "fetching by C-MOVE"
    end = time.monotonic() + _WAIT_FOR_PORT_S
    while True:
        try:
            server = receiver(
                address.move, address.calling, [address.called], store, timeout_s=archive.timeout_s
            )
            server.__enter__()
            break
        except ConfigError as taken:  # another worker of this machine fetches: one after the other
            if time.monotonic() > end:
                raise UnavailableError(f"{what}: {taken}") from None
            time.sleep(0.1)
    try:
        with archive.associated([(_MOVE, None)]) as association:
            query = _identifier("IMAGE" if instance else "SERIES", _which(study, series, instance))
            _await(association, association.send_c_move(query, address.calling, _MOVE), what, store)
    except NoneAcceptedError:
        raise ConfigError(f"{what}: the archive offers none to our AE title") from None
    finally:
        server.__exit__(None, None, None)
    store.check()


def read_object(archive: Dimse, study: str, series: str, instance: str) -> dict[str, Any]:
    """Return the plain values of one object, which is fetched for it."""
    held = Fetched()
    file = held.path / "object.dcm"

    def keep(_: str, save: Callable[[Path], object]) -> None:
        if not file.exists():
            save(file)

    try:
        archive.receive(study, series, keep, instance)
        if not file.exists():
            raise UnavailableError("reading an object: the archive did not send it")
        return _header(file)
    finally:
        held.remove()


def port_is_free(address: Address) -> None:
    """Refuse a port for C-MOVE that another program has.

    Raises:
        ConfigError: It is taken, or may not be used.
    """
    if address.move is None:
        return
    with receiver(address.move, address.calling, [address.called], lambda _: REFUSED):
        pass


class _Store:
    """Answers C-STORE requests of one series' retrieval; what went wrong in one is raised at the end."""

    def __init__(self, keep: Keep, study: str = "", series: str = "") -> None:
        self._keep, self._study, self._series = keep, study, series
        self._lock = threading.Lock()
        self.error: Exception | None = None

    def __call__(self, event: Any) -> int:
        arrived = object_of(event)
        if isinstance(arrived, int):
            return arrived
        if self._series and (arrived.series, arrived.study) != (self._series, self._study):
            return REFUSED  # of another retrieval, or of another one's idea
        with self._lock:
            if self.error is not None:
                return REFUSED
            try:
                self._keep(arrived.uid, arrived.save)
            except Exception as error:  # noqa: BLE001 - raised by `check`, in the thread that asked
                self.error = error
                return REFUSED
        return SUCCESS

    def check(self) -> None:
        if self.error is not None:
            raise self.error


def _await(association: Any, answers: Iterator[tuple[Any, Any]], what: str, store: _Store) -> None:
    for status, _ in answers:
        if store.error is not None:
            association.abort()  # here: in the handler pynetdicom would still answer
            store.check()
        code = code_of(status, what)
        if code not in (SUCCESS, *_PENDING):
            _refuse(code, what)


def _refuse(code: int, what: str) -> None:
    if code == _UNKNOWN_DESTINATION:
        raise ConfigError(
            f"{what}: the archive does not know our AE title as a destination (0xA801): enter it there, with our host "
            "and port"
        )
    if code == _NOT_AUTHORISED:
        raise ConfigError(f"{what}: the archive does not let us (0x0124): it has to allow our AE title")
    if is_busy(code) or code >> 12 == 0xB or code == 0xFE00:
        raise UnavailableError(f"{what}: the archive could not do all of it (0x{code:04X})")
    raise InputError(f"{what}: the archive refuses (0x{code:04X})")


def _which(study: str, series: str, instance: str) -> dict[str, str]:
    which = {"StudyInstanceUID": study, "SeriesInstanceUID": series}
    return which | {"SOPInstanceUID": instance} if instance else which


@dicom_boundary()
def _identifier(level: str, values: Mapping[str, str]) -> Any:
    from pydicom import Dataset

    identifier = Dataset()
    identifier.QueryRetrieveLevel = level
    for keyword, value in values.items():
        setattr(identifier, keyword, value or None)
    return identifier


@dicom_boundary()
def _said(dataset: Any) -> dict[str, Any]:
    return plain_values(dataset.to_json_dict(suppress_invalid_tags=True))


@dicom_boundary()
def _header(file: Path) -> dict[str, Any]:
    import pydicom

    return _said(pydicom.dcmread(file, stop_before_pixels=True))


# Proposed if an archive does not say of which class its objects are (PS3.4, B.5).
_IMAGE_CLASSES = [
    f"1.2.840.10008.5.1.4.1.1.{tail}"
    for tail in (
        *("1", "1.1", "1.1.1", "1.2", "2", "2.1", "4", "4.1", "4.3", "6.1", "7", "12.1", "12.2", "20"),
        *("77.1.1", "77.1.2", "77.1.4", "128", "128.1", "130"),
    )
]

"""A worklist by DIMSE (Unified Procedure Step, Pull): work items are found, claimed, and completed or canceled."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime
from functools import cached_property, partial
from pathlib import Path
from typing import Any, TypeVar

from clearmargin.errors import ConfigError, InputError, UnavailableError
from clearmargin.formats.dicom.boundary import dicom_boundary
from clearmargin.pacs.archive import checked_uid
from clearmargin.pacs.association import (
    SUCCESS,
    Address,
    NoneAcceptedError,
    address_of,
    associated,
    code_of,
    is_busy,
)
from clearmargin.pacs.breaker import Breaker

__all__ = ["Output", "WorkInput", "Worklist"]

T = TypeVar("T")

_PUSH, _PULL = "1.2.840.10008.5.1.4.34.6.1", "1.2.840.10008.5.1.4.34.6.3"
_PENDING = (0xFF00, 0xFF01)
_CHANGE_STATE = 1  # action type (PS3.4, CC.2.1)
_NOT_OURS = (0xC300, 0xC301, 0xC302, 0xC303, 0xC307)  # another has it, it has ended, or it is gone
_ALREADY = (0xB304, 0xB306)  # it is in that state already
_MOST_ITEMS = 1000


@dataclass(frozen=True, kw_only=True)
class WorkInput:
    """A series that a work item is about.

    Attributes:
        study: Its StudyInstanceUID. Private, as the next two.
        series: Its SeriesInstanceUID.
        instances: Its objects' UIDs, if the work item names them.
    """

    study: str = field(repr=False)
    series: str = field(repr=False)
    instances: tuple[str, ...] = field(default=(), repr=False)


@dataclass(frozen=True, kw_only=True)
class Output:
    """An object that was made for a work item.

    Attributes:
        study: Its StudyInstanceUID. Private, as the next three.
        series: Its SeriesInstanceUID.
        uid: Its SOPInstanceUID.
        sop_class: Its SOPClassUID.
        title: The AE title of the archive that has it; "" if it has none.
        url: The archive's DICOMweb address; "" if it has none.
    """

    study: str = field(repr=False)
    series: str = field(repr=False)
    uid: str = field(repr=False)
    sop_class: str
    title: str = ""
    url: str = ""


@dataclass(frozen=True, kw_only=True)
class Worklist:
    """A worklist by its address, ``dimse://CALLED@HOST:PORT?calling=OURS`` or ``dimse+tls://...``.

    Attributes:
        url: The address.
        label: WorklistLabel of the work items that are taken; "" for all.
        ca_file: For TLS: certificates that are trusted in place of the system's.
        timeout_s: How long it may say nothing.
    """

    url: str
    label: str = ""
    ca_file: Path | None = None
    timeout_s: float = 30.0

    def __post_init__(self) -> None:
        _ = self.address  # refused now

    def __getstate__(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @cached_property
    def address(self) -> Address:
        """Whom with."""
        return address_of(self.url)

    @cached_property
    def _breaker(self) -> Breaker:
        return Breaker(tries=3, failures=6, rest_s=30.0)

    def scheduled(self) -> list[str]:
        """Return the UIDs of work items that nobody has claimed, at most a thousand."""
        return self._breaker.call(self._scheduled)

    def claim(self, uid: str, transaction: str) -> bool:
        """Take a work item, which is then IN PROGRESS; False if another has it.

        Args:
            uid: The work item.
            transaction: A UID that nobody else knows: the right to change it. With the one that it was claimed by it is
                still ours.
        """
        return self._breaker.call(partial(self._claim, uid, transaction))

    def inputs(self, uid: str) -> list[WorkInput]:
        """Return the series that a work item is about.

        Raises:
            InputError: It names none, or by what is no UID.
        """
        return self._breaker.call(partial(self._inputs, uid))

    def complete(
        self, uid: str, transaction: str, outputs: Sequence[Output], began: float, workitem: str
    ) -> bool:
        """Say what was made, and that it is COMPLETED; False if it is no longer ours.

        Args:
            uid: The work item.
            transaction: As it was claimed.
            outputs: What was made.
            began: When, in seconds since 1970.
            workitem: What was done, in words.
        """
        said = _performed(outputs, began, workitem)
        return self._breaker.call(partial(self._end, uid, transaction, said, "COMPLETED"))

    def cancel(self, uid: str, transaction: str, reason: str) -> bool:
        """Say why it cannot be done, and that it is CANCELED; False if it is no longer ours."""
        return self._breaker.call(partial(self._end, uid, transaction, _discontinued(reason), "CANCELED"))

    def _scheduled(self) -> list[str]:
        query = _dataset(
            ProcedureStepState="SCHEDULED", SOPInstanceUID=None, WorklistLabel=self.label or None
        )
        uids: list[str] = []

        def ask(association: Any) -> list[str]:
            for status, said in association.send_c_find(query, _PULL):
                code = code_of(status, "asking for work items")
                if code in _PENDING and said is not None and len(uids) < _MOST_ITEMS:
                    uids.append(
                        checked_uid({"SOPInstanceUID": said.get("SOPInstanceUID", "")}, "SOPInstanceUID")
                    )
                elif code not in (SUCCESS, *_PENDING):
                    _refuse(code, "asking for work items")
            return list(dict.fromkeys(uids))

        return self._associated(ask)

    def _claim(self, uid: str, transaction: str) -> bool:
        def ask(association: Any) -> bool:
            code = _change(association, uid, transaction, "IN PROGRESS")
            if code == SUCCESS:
                return True
            # It is in progress, perhaps by us, before a restart: then we may change it.
            progress = _dataset(ProcedureStepProgress=0)
            change = _dataset(TransactionUID=transaction, ProcedureStepProgressInformationSequence=[progress])
            return _set(association, uid, change)

        return self._associated(ask)

    def _inputs(self, uid: str) -> list[WorkInput]:
        from pydicom.tag import Tag

        def ask(association: Any) -> list[WorkInput]:
            tag = Tag("InputInformationSequence")
            status, said = association.send_n_get([tag], _PUSH, uid, meta_uid=_PULL)
            code = code_of(status, "reading a work item")
            if code not in (SUCCESS, 0x0001) or said is None:
                _refuse(code, "reading a work item")
            return _series_of(said)

        return self._associated(ask)

    def _end(self, uid: str, transaction: str, said: Any, state: str) -> bool:
        said.TransactionUID = transaction

        def ask(association: Any) -> bool:
            return _set(association, uid, said) and _change(association, uid, transaction, state) == SUCCESS

        return self._associated(ask)

    def _associated(self, ask: Callable[[Any], T]) -> T:
        try:
            with associated(
                self.address, [(_PULL, None)], ca_file=self.ca_file, timeout_s=self.timeout_s
            ) as association:
                return ask(association)
        except NoneAcceptedError:
            raise ConfigError(
                f"'{self.url.partition('?')[0]}' is not a worklist: it offers no Unified Procedure Steps (Pull)"
            ) from None


def _change(association: Any, uid: str, transaction: str, state: str) -> int:
    change = _dataset(ProcedureStepState=state, TransactionUID=transaction)
    status, _ = association.send_n_action(change, _CHANGE_STATE, _PUSH, uid, meta_uid=_PULL)
    code = code_of(status, "changing a work item")
    if code in _ALREADY:
        return SUCCESS
    if code not in (SUCCESS, *_NOT_OURS):
        _refuse(code, "changing a work item")
    return code


def _set(association: Any, uid: str, change: Any) -> bool:
    status, _ = association.send_n_set(change, _PUSH, uid, meta_uid=_PULL)
    code = code_of(status, "changing a work item")
    if code in _NOT_OURS:
        return False
    if code not in (SUCCESS, 0x0001):  # with attributes that were rewritten
        _refuse(code, "changing a work item")
    return True


def _refuse(code: int, what: str) -> None:
    if is_busy(code) or code == 0x0110:
        raise UnavailableError(f"{what}: the worklist failed for the moment (0x{code:04X})")
    raise InputError(f"{what}: the worklist refuses (0x{code:04X})")


@dicom_boundary()
def _series_of(said: Any) -> list[WorkInput]:
    series: dict[tuple[str, str], list[str]] = {}
    for item in said.get("InputInformationSequence") or ():
        uids = {k: str(item.get(k, "")) for k in ("StudyInstanceUID", "SeriesInstanceUID")}
        key = (checked_uid(uids, "StudyInstanceUID"), checked_uid(uids, "SeriesInstanceUID"))
        objects = series.setdefault(key, [])
        for one in item.get("ReferencedSOPSequence") or ():
            objects.append(str(one.get("ReferencedSOPInstanceUID", "")))
    if not series:
        raise InputError("the work item names no series as its input")
    return [WorkInput(study=k[0], series=k[1], instances=tuple(sorted(v))) for k, v in series.items()]


def _performed(outputs: Sequence[Output], began: float, workitem: str) -> Any:
    """Return the attributes of a completed work item (PS3.4, table CC.2.5-3)."""
    start = datetime.fromtimestamp(began, UTC)
    done = _dataset(
        PerformedStationNameCodeSequence=[_code("CLEARMARGIN", "Clear Margin")],
        PerformedWorkitemCodeSequence=[_code("SEGMENT", workitem[:64])],
        PerformedProcedureStepStartDateTime=_time(start),
        PerformedProcedureStepEndDateTime=_time(datetime.now(UTC)),
        OutputInformationSequence=[_output(o) for o in outputs],
    )
    return _dataset(UnifiedProcedureStepPerformedProcedureSequence=[done])


def _output(output: Output) -> Any:
    item = _dataset(
        TypeOfInstances="DICOM",
        StudyInstanceUID=output.study,
        SeriesInstanceUID=output.series,
        ReferencedSOPSequence=[
            _dataset(ReferencedSOPClassUID=output.sop_class, ReferencedSOPInstanceUID=output.uid)
        ],
    )
    if output.title:
        item.DICOMRetrievalSequence = [_dataset(RetrieveAETitle=output.title)]
    if output.url:
        item.WADORSRetrievalSequence = [_dataset(RetrieveURL=f"{output.url}/studies/{output.study}")]
    return item


def _discontinued(reason: str) -> Any:
    """Return the attributes of a canceled work item (PS3.4, table CC.2.5-3; codes of PS3.16, CID 9300)."""
    progress = _dataset(
        ProcedureStepCancellationDateTime=_time(datetime.now(UTC)),
        ReasonForCancellation=reason[:1024],
        ProcedureStepDiscontinuationReasonCodeSequence=[
            _code("110513", "Discontinued for unspecified reason")
        ],
    )
    return _dataset(ProcedureStepProgressInformationSequence=[progress])


def _code(value: str, meaning: str) -> Any:
    scheme = "DCM" if value.isdigit() else "99CLEARMARGIN"
    return _dataset(CodeValue=value, CodingSchemeDesignator=scheme, CodeMeaning=meaning)


def _time(moment: datetime) -> str:
    return moment.strftime("%Y%m%d%H%M%S.%f") + "+0000"


@dicom_boundary()
def _dataset(**values: Any) -> Any:
    from pydicom import Dataset

    dataset = Dataset()
    for keyword, value in values.items():
        setattr(dataset, keyword, value)
    return dataset

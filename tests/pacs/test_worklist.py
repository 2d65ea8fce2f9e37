"""Work items of a worklist (UPS): claimed by one of two services, completed, or canceled with a reason."""

import tempfile
import threading

import numpy as np
import pydicom
import pytest
from bright import bright_segmenter
from command import command
from listening import listening, until
from pynetdicom import AE, evt

from clearmargin.core import Grid, Image, Source
from clearmargin.datasets.phantom_study import write_ct_series
from clearmargin.errors import ConfigError, UnavailableError
from clearmargin.jobs.ledger import Ledger
from clearmargin.pacs.dicomweb import DicomWeb
from clearmargin.pacs.dimse import Dimse
from clearmargin.pacs.worklist import Worklist
from clearmargin.predicting.prepared import default_ledger

# pynetdicom leaves the socket of a refused connection to the garbage collector.
pytestmark = pytest.mark.filterwarnings(
    "ignore:Exception ignored in. <socket.socket:pytest.PytestUnraisableExceptionWarning"
)
SHAPE = (5, 48, 48)
GRID = Grid.from_spacing(SHAPE, (5.0, 0.8, 0.7))
SERIES = 4
PULL = "1.2.840.10008.5.1.4.34.6.3"


@pytest.fixture(autouse=True)
def own_places(monkeypatch, tmp_path):
    monkeypatch.setattr(
        "clearmargin.sampling.samples.load_segmenter", lambda *_, **__: bright_segmenter(0, 400)
    )
    monkeypatch.setattr("clearmargin.predicting.worklisted._ASK_EVERY_S", 0.2)
    monkeypatch.setattr("clearmargin.predicting.worklisted._MOST_CLAIMED", 2)
    monkeypatch.setenv("CLEARMARGIN_HOME", str(tmp_path / "home"))
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))


class Steps:
    """A worklist manager by the rules of PS3.4, CC.1.1: who knows the transaction's UID may change a step."""

    def __init__(self):
        self.items, self.lock, self.history, self.changed_hands = {}, threading.Lock(), [], False

    def add(self, uid, inputs, label=""):
        step = pydicom.Dataset()
        step.SOPInstanceUID, step.ProcedureStepState, step.WorklistLabel = uid, "SCHEDULED", label
        step.InputInformationSequence = inputs
        self.items[uid] = step

    def find(self, event):
        asked = event.identifier
        for uid, step in list(self.items.items()):
            labels = ("", None, step.WorklistLabel)
            if step.ProcedureStepState == asked.ProcedureStepState and asked.get("WorklistLabel") in labels:
                said = pydicom.Dataset()
                said.SOPInstanceUID = uid
                yield 0xFF00, said

    def get(self, event):
        step = self.items.get(event.request.RequestedSOPInstanceUID)
        if step is None:
            return 0xC307, None
        said = pydicom.Dataset()
        for tag in event.attribute_identifiers:
            if tag in step:
                said[tag] = step[tag]
        return 0x0000, said

    def set(self, event):
        with self.lock:
            step, change = self.items.get(event.request.RequestedSOPInstanceUID), event.modification_list
            if step is None:
                return 0xC307, None
            if step.ProcedureStepState != "IN PROGRESS":
                return 0xC300, None
            if change.get("TransactionUID") != step.get("TransactionUID"):
                return 0xC301, None
            step.update(change)
            return 0x0000, None

    def action(self, event):
        with self.lock:
            uid, asked = event.request.RequestedSOPInstanceUID, event.action_information
            step = self.items.get(uid)
            if step is None:
                return 0xC307, None
            now, state = step.ProcedureStepState, asked.ProcedureStepState
            if state == "IN PROGRESS" and now != "SCHEDULED":
                return (0xC302 if now == "IN PROGRESS" else 0xC300), None
            if state != "IN PROGRESS" and step.get("TransactionUID") != asked.TransactionUID:
                return 0xC301, None
            if state == "COMPLETED" and not step.get("UnifiedProcedureStepPerformedProcedureSequence"):
                return 0xC304, None
            step.ProcedureStepState, step.TransactionUID = state, asked.TransactionUID
            if self.changed_hands:
                step.TransactionUID = "1.2.3.4"
            self.history.append((uid, event.assoc.requestor.ae_title.strip(), state))
            return 0x0000, None

    def state(self, uid):
        return self.items[uid].ProcedureStepState


@pytest.fixture
def steps():
    running, entity = Steps(), AE(ae_title="STEPS")
    entity.add_supported_context(PULL)
    handlers = [
        (evt.EVT_C_FIND, running.find),
        (evt.EVT_N_GET, running.get),
        (evt.EVT_N_SET, running.set),
        (evt.EVT_N_ACTION, running.action),
    ]
    server = entity.start_server(("127.0.0.1", 0), block=False, evt_handlers=handlers)
    running.port = server.socket.getsockname()[1]
    yield running
    server.shutdown()


@pytest.fixture
def studies(server, tmp_path):
    """Series in the archive, each with its files' headers."""
    server.empty()
    series = []
    for number in range(1, SERIES + 1):
        values = np.full((1, *SHAPE), -50, np.int16)
        values[0, 1:4, 12:30, 8 + number : 28 + number] = 390
        image = Image(pixels=values, grid=GRID, source=Source(modality="CT"))
        write_ct_series(tmp_path / "studies" / str(number), image, number, 1)
        files = sorted((tmp_path / "studies" / str(number)).iterdir())
        server.stow(files)
        series.append([pydicom.dcmread(f) for f in files])
    return series


def input_of(headers, named=True):
    item = pydicom.Dataset()
    item.TypeOfInstances = "DICOM"
    item.StudyInstanceUID, item.SeriesInstanceUID = headers[0].StudyInstanceUID, headers[0].SeriesInstanceUID
    references = []
    for header in headers if named else ():
        one = pydicom.Dataset()
        one.ReferencedSOPClassUID, one.ReferencedSOPInstanceUID = header.SOPClassUID, header.SOPInstanceUID
        references.append(one)
    item.ReferencedSOPSequence = references
    return item


def working(server, steps, out, ours="FIRST", label="", to=None):
    archive = DicomWeb(url=f"{server.address}/dicom-web")
    worklist = Worklist(url=f"dimse://STEPS@127.0.0.1:{steps.port}?calling={ours}", label=label)
    return listening(
        out, worklist=worklist, archive=archive, destinations=[to or archive], write=["seg", "sr"]
    )


def references(step):
    (done,) = step.UnifiedProcedureStepPerformedProcedureSequence
    return {o.ReferencedSOPSequence[0].ReferencedSOPInstanceUID: o for o in done.OutputInformationSequence}


def test_each_is_claimed_by_one_of_two_and_completed_with_references(server, steps, studies, tmp_path):
    for number, headers in enumerate(studies):
        steps.add(f"1.2.3.{number}", [input_of(headers, named=number % 2 == 0)])
    with working(server, steps, tmp_path / "a"), working(server, steps, tmp_path / "b", "SECOND"):
        until(lambda: all(steps.state(uid) == "COMPLETED" for uid in steps.items), 120)
    claimed = [(uid, who) for uid, who, state in steps.history if state == "IN PROGRESS"]
    assert len(claimed) == len({uid for uid, _ in claimed}) == SERIES
    assert {(uid, who) for uid, who, state in steps.history if state == "COMPLETED"} == set(claimed)
    assert {who for _, who in claimed} == {"FIRST", "SECOND"}
    kept = server.files()
    for number, headers in enumerate(studies):
        outputs = references(steps.items[f"1.2.3.{number}"])
        assert len(outputs) == 2 and outputs.keys() <= kept.keys()
        for output in outputs.values():
            assert output.StudyInstanceUID == headers[0].StudyInstanceUID
            (place,) = output.WADORSRetrievalSequence
            assert place.RetrieveURL == f"{server.address}/dicom-web/studies/{headers[0].StudyInstanceUID}"
    assert server.count()["Instances"] == SERIES * (SHAPE[0] + 2)


@pytest.mark.parametrize("what", ["slice missing", "some objects", "nothing there", "no input"])
def test_what_cannot_be_done_is_canceled_with_the_reason(server, steps, studies, tmp_path, what):
    headers = studies[0]
    if what == "slice missing":
        server.empty()
        server.stow([f for f in sorted((tmp_path / "studies" / "1").iterdir()) if f.name != "0003.dcm"])
        inputs, reason = [input_of(headers, named=False)], "missing"
    elif what == "some objects":
        inputs, reason = [input_of(headers[:3])], "other objects"
    elif what == "nothing there":
        server.empty()
        inputs, reason = [input_of(headers)], "not in the archive"
    else:
        inputs, reason = [], "names no series"
    steps.add("1.2.3", inputs)
    with working(server, steps, tmp_path / "out") as service:
        until(lambda: steps.state("1.2.3") == "CANCELED")
        until(lambda: [a for a in service.audit(tmp_path / "out") if a["event"] == "canceled"])
    (progress,) = steps.items["1.2.3"].ProcedureStepProgressInformationSequence
    assert reason in progress.ReasonForCancellation and headers[0].SeriesInstanceUID not in str(progress)
    assert progress.ProcedureStepDiscontinuationReasonCodeSequence[0].CodeValue == "110513"


def test_what_was_claimed_goes_on_after_a_restart(server, steps, studies, tmp_path, monkeypatch):
    out = tmp_path / "out"
    steps.add("1.2.3", [input_of(studies[0])])
    with monkeypatch.context() as patched:
        patched.setattr(
            "clearmargin.pacs.worklist.Worklist.inputs",
            lambda *_: (_ for _ in ()).throw(UnavailableError("away")),
        )
        with working(server, steps, out):
            until(lambda: steps.state("1.2.3") == "IN PROGRESS")
    ledger = Ledger(default_ledger(out))
    assert list(ledger.recall(f"worklist dimse://STEPS@127.0.0.1:{steps.port}")) == ["1.2.3"]
    ledger.close()
    # Another service does not take it; the one that claimed it does it.
    with working(server, steps, tmp_path / "other", "SECOND"), working(server, steps, out):
        until(lambda: steps.state("1.2.3") == "COMPLETED")
    assert [who for _, who, _ in steps.history] == ["FIRST", "FIRST"]


def test_a_work_item_that_was_taken_away_is_forgotten(server, steps, studies, tmp_path, monkeypatch):
    steps.add("1.2.3", [input_of(studies[0])])
    out = tmp_path / "out"
    monkeypatch.setattr(steps, "changed_hands", True)
    with working(server, steps, out) as service:
        until(lambda: [a for a in service.audit(out) if a["event"] == "taken away"])
    ledger = Ledger(default_ledger(out))
    assert ledger.recall(f"worklist dimse://STEPS@127.0.0.1:{steps.port}") == {}
    ledger.close()
    assert steps.state("1.2.3") == "IN PROGRESS"


def test_only_those_of_the_label_are_taken(server, steps, studies, tmp_path):
    steps.add("1.2.1", [input_of(studies[0])], label="CLEAR MARGIN")
    steps.add("1.2.2", [input_of(studies[1])], label="ANOTHER")
    with working(server, steps, tmp_path / "out", label="CLEAR MARGIN"):
        until(lambda: steps.state("1.2.1") == "COMPLETED")
    assert steps.state("1.2.2") == "SCHEDULED"


def test_with_a_destination_by_dimse_its_title_is_named(server, steps, studies, tmp_path):
    steps.add("1.2.3", [input_of(studies[0])])
    to = Dimse(url=f"dimse://ORTHANC@127.0.0.1:{server.dicom_port}")
    with working(server, steps, tmp_path / "out", to=to):
        until(lambda: steps.state("1.2.3") == "COMPLETED")
    for output in references(steps.items["1.2.3"]).values():
        assert output.DICOMRetrievalSequence[0].RetrieveAETitle == "ORTHANC"


def test_what_is_no_worklist(server, tmp_path):
    with pytest.raises(ConfigError, match="not a worklist"):
        Worklist(url=f"dimse://ORTHANC@127.0.0.1:{server.dicom_port}").scheduled()
    with pytest.raises(UnavailableError, match="cannot be reached"):
        Worklist(url="dimse://STEPS@127.0.0.1:9", timeout_s=1).scheduled()
    (tmp_path / "m").mkdir()
    arguments = ("listen", "--model", tmp_path / "m", "--out", tmp_path / "o", "--worklist")
    code, said = command(*arguments, "http://127.0.0.1")
    assert code == 2 and "dimse://" in said
    code, said = command(*arguments, "dimse://STEPS@127.0.0.1:9")
    assert code == 2 and "--archive" in said

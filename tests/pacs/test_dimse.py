"""Results in an archive by DIMSE: confirmed by reading back, or by storage commitment; and what goes wrong."""

import contextlib
import pickle
import socket
import ssl
import threading
from pathlib import Path

import numpy as np
import pydicom
import pytest
from bright import bright_segmenter
from command import command
from faulty import make_certificate
from pacs import INSTALL, find_orthanc, running_orthanc
from pynetdicom import AE, AllStoragePresentationContexts, evt
from pynetdicom.sop_class import StorageCommitmentPushModel, Verification

from clearmargin.batch import batch
from clearmargin.core import Grid, Image, Source
from clearmargin.datasets.phantom_study import write_ct_series
from clearmargin.errors import ConfigError, InputError, UnavailableError
from clearmargin.jobs.ledger import Ledger
from clearmargin.pacs.dimse import Dimse
from clearmargin.pacs.sameness import digest_of
from clearmargin.predicting.predictor import Predictor
from clearmargin.predicting.prepared import default_ledger

# pynetdicom leaves the socket of a refused connection to the garbage collector.
pytestmark = pytest.mark.filterwarnings(
    "ignore:Exception ignored in. <socket.socket:pytest.PytestUnraisableExceptionWarning"
)


def uids(files):
    return {str(pydicom.dcmread(f).SOPInstanceUID) for f in files}


def place(port, called="ORTHANC", query="", **limits):
    quick = {"timeout_s": 5.0, "failures": 100, "tries": 2} | limits
    return Dimse(url=f"dimse://{called}@127.0.0.1:{port}{query}", **quick)


def test_what_is_confirmed_is_there_as_it_was_sent(orthanc, files):
    archive = place(orthanc.dicom_port)
    archive.check()
    sent = archive.send(files)
    assert {uid for uid, _ in sent} == uids(files) == set(orthanc.files())
    assert [digest for _, digest in sent] == [digest_of(pydicom.dcmread(f)) for f in files]
    assert place(orthanc.dicom_port, query="?calling=OURS").send(files) == sent
    assert orthanc.count()["Instances"] == len(files)
    assert pickle.loads(pickle.dumps(archive)) == archive


def test_who_is_not_known_is_told_so(orthanc, files):
    for archive in (
        place(orthanc.dicom_port, query="?calling=STRANGER"),
        place(orthanc.dicom_port, called="ANOTHER"),
    ):
        with pytest.raises(ConfigError, match="AE title"):
            archive.send(files)


def test_an_archive_that_hangs_up_on_reading_back_confirms_nothing(tmp_path, files):
    found = find_orthanc()
    if found is None:
        pytest.skip(f"no Orthanc with its DICOMweb plug-in here: {INSTALL}")
    allowed = {"AllowGet": False, "AllowStorageCommitment": False}
    with running_orthanc(tmp_path / "orthanc", *found, titles=["CLEARMARGIN"], **allowed) as running:
        with pytest.raises(UnavailableError, match="C-GET, which our AE title needs leave for") as told:
            place(running.dicom_port, tries=1).send(files)
        assert not any(uid in str(told.value) for uid in uids(files))


def test_results_of_a_batch_are_in_the_archive_once(orthanc, tmp_path, monkeypatch):
    monkeypatch.setattr(
        "clearmargin.sampling.samples.load_segmenter", lambda *_, **__: bright_segmenter(0, 400)
    )
    monkeypatch.setenv("CLEARMARGIN_HOME", str(tmp_path / "home"))
    values = np.full((1, 5, 48, 48), -50, np.int16)
    values[0, 1:4, 12:30, 10:30] = 390
    grid = Grid.from_spacing((5, 48, 48), (5.0, 0.8, 0.7))
    for number in (1, 2):
        image = Image(pixels=values, grid=grid, source=Source(modality="CT"))
        write_ct_series(tmp_path / "studies" / str(number), image, number, 1)
    out, archive = tmp_path / "out", place(orthanc.dicom_port)
    for _ in range(2):
        how = {"processes": 0, "track": False, "least_free_gib": 0}
        report = batch(
            [tmp_path / "studies"], out, Predictor(model=Path("any")), destinations=[archive], **how
        )
        assert report.counts["done"] == 2
        ledger = Ledger(default_ledger(out))
        sent = ledger.sent()
        ledger.close()
        assert {uid for _, uid, _ in sent} == set(orthanc.files()) and {to for *_, to in sent} == {
            archive.name
        }
        kinds = [row["00080060"]["Value"][0] for row in orthanc.get_json("/dicom-web/series?limit=99")]
        assert sorted(kinds) == ["SEG", "SEG", "SR", "SR"]


def test_the_command_asks_before_it_works(tmp_path):
    (tmp_path / "in").mkdir()
    arguments = ("batch", tmp_path / "in", "--model", tmp_path, "--out", tmp_path / "out", "--to")
    code, said = command(*arguments, "dimse://PEER@127.0.0.1:9")
    assert code == 4 and "cannot be reached" in said
    code, said = command(*arguments, "dimse://127.0.0.1:9")
    assert code == 2 and "dimse://CALLED@" in said


class Peer:
    """An archive of pynetdicom's that does as it is told; it offers no C-GET."""

    def __init__(self):
        self.kept, self.statuses, self.commits, self.abort = {}, [], "all", 0

    def store(self, event):
        if self.abort > 0:
            self.abort -= 1
            event.assoc.abort()
            return 0xC001
        status = self.statuses.pop(0) if self.statuses else 0x0000
        if status in (0x0000, 0xB000):
            self.kept[event.request.AffectedSOPInstanceUID] = event.dataset
        return status

    def action(self, event):
        asked = event.action_information
        items = list(asked.ReferencedSOPSequence)
        threading.Thread(
            target=self.report, args=(event.assoc, asked.TransactionUID, items), daemon=True
        ).start()
        return 0x0000, None

    def report(self, association, transaction, items):
        if self.commits == "nothing said":
            return
        said = pydicom.Dataset()
        said.TransactionUID = "1.2.3" if self.commits == "of another" else transaction
        kept = [i for i in items if i.ReferencedSOPInstanceUID in self.kept]
        said.ReferencedSOPSequence = kept[1:] if self.commits == "some" else kept
        with contextlib.suppress(RuntimeError):
            association.send_n_event_report(said, 1, StorageCommitmentPushModel, "1.2.840.10008.1.20.1.1")


@contextlib.contextmanager
def running_peer(certificate=None, commits=True):
    peer, entity = Peer(), AE(ae_title="PEER")
    entity.supported_contexts = AllStoragePresentationContexts[:100]
    for kind in ("2", "66.4", "88.34", "88.59"):  # CT, SEG, Comprehensive 3D SR, Key Object Selection
        entity.add_supported_context(f"1.2.840.10008.5.1.4.1.1.{kind}")
    if commits:
        entity.add_supported_context(StorageCommitmentPushModel)
    entity.add_supported_context(Verification)
    tls = None
    if certificate is not None:
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        tls.load_cert_chain(*certificate)
    handlers = [(evt.EVT_C_STORE, peer.store), (evt.EVT_N_ACTION, peer.action)]
    running = entity.start_server(("127.0.0.1", 0), block=False, evt_handlers=handlers, ssl_context=tls)
    peer.port = running.socket.getsockname()[1]
    yield peer
    running.shutdown()


@pytest.fixture
def peer():
    with running_peer() as running:
        yield running


def test_an_archive_without_c_get_and_commitment_confirms_nothing(files):
    with running_peer(commits=False) as peer, pytest.raises(ConfigError, match="can confirm nothing"):
        place(peer.port, "PEER").send(files)


def test_an_archive_that_takes_no_such_objects_refuses(peer, files):
    for file in files:
        dataset = pydicom.dcmread(file)
        dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.9999"
        dataset.save_as(file)
    with pytest.raises(InputError, match="takes none of these kinds"):
        place(peer.port, "PEER").send(files)


def test_certificates_are_verified(files, tmp_path):
    certificate, key = make_certificate(tmp_path)
    with running_peer((certificate, key)) as peer:
        url = f"dimse+tls://PEER@localhost:{peer.port}"
        with pytest.raises(UnavailableError, match="certificate"):
            Dimse(url=url, tries=1, timeout_s=5.0).send(files)
        assert peer.kept == {}
        archive = Dimse(url=url, tries=1, timeout_s=5.0, ca_file=certificate)
        assert {uid for uid, _ in archive.send(files)} == uids(files)
    with pytest.raises(ConfigError, match="no file"):
        Dimse(url=url, ca_file=tmp_path / "nowhere.pem").check()


def test_an_archive_that_commits_itself_confirms(peer, files):
    archive = place(peer.port, "PEER")
    archive.check()
    assert {uid for uid, _ in archive.send(files)} == uids(files) == set(peer.kept)


@pytest.mark.parametrize("commits", ["some", "nothing said", "of another"])
def test_what_is_not_committed_to_is_not_confirmed(peer, files, commits):
    peer.commits = commits
    with pytest.raises(UnavailableError, match="commit"):
        place(peer.port, "PEER", timeout_s=1.0, tries=1).send(files)


@pytest.mark.parametrize(
    ("status", "error", "words"),
    [
        (0xA700, UnavailableError, "busy"),
        (0xA900, InputError, "0xA900"),
        (0xC000, InputError, "0xC000"),
        (0x0124, ConfigError, "AE title"),
    ],
)
def test_a_refusal_has_its_kind(peer, files, status, error, words):
    peer.statuses = [status] * 2
    with pytest.raises(error, match=words) as told:
        place(peer.port, "PEER", tries=1).send(files)
    assert not any(uid in str(told.value) for uid in uids(files))


@pytest.mark.parametrize("status", [0xB000, 0x0111])
def test_a_warning_and_a_duplicate_are_no_failure_if_it_is_there(peer, files, status):
    place(peer.port, "PEER").send(files)
    peer.statuses = [status]
    assert len(place(peer.port, "PEER").send(files)) == len(files)


def test_faults_that_pass_are_passed_over(peer, files):
    peer.statuses = [0xA700]
    assert {uid for uid, _ in place(peer.port, "PEER").send(files)} == uids(files)
    peer.abort = 1
    assert {uid for uid, _ in place(peer.port, "PEER").send(files)} == uids(files)
    peer.abort = 10
    with pytest.raises(UnavailableError):
        place(peer.port, "PEER").send(files)


def test_an_archive_that_is_away_or_silent():
    with pytest.raises(UnavailableError, match="cannot be reached"):
        place(9, tries=1).check()
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        archive = place(silent.getsockname()[1], tries=1, timeout_s=0.5, failures=1, rest_s=3600)
        with pytest.raises(UnavailableError, match="cannot be reached"):
            archive.check()
        with pytest.raises(UnavailableError, match="not asked"):
            archive.check()


@pytest.mark.parametrize(
    "url",
    [
        "dimse://127.0.0.1:104",
        "dimse://A@127.0.0.1",
        "dimse://ABCDEFGHIJKLMNOPQ@pacs:104",
        "dimse://A:p4ss@pacs:104",
        "dimse://A@pacs:104/path",
        "dimse://A@pacs:104?called=B",
        "dimse://A@pacs:99999",
        "dicom://A@pacs:104",
    ],
)
def test_addresses_that_are_none(url):
    with pytest.raises(ConfigError, match="expected an archive's address") as told:
        Dimse(url=url)
    assert "p4ss" not in str(told.value)


def test_withdrawn_results_are_rejected_where_they_are(peer, orthanc, tmp_path, monkeypatch):
    """A note per result goes to each archive that has it, once; one that did not take it gets it the next time."""
    monkeypatch.setattr(
        "clearmargin.sampling.samples.load_segmenter", lambda *_, **__: bright_segmenter(0, 400)
    )
    monkeypatch.setenv("CLEARMARGIN_HOME", str(tmp_path / "home"))
    values = np.full((1, 5, 48, 48), -50, np.int16)
    values[0, 1:4, 12:30, 10:30] = 390
    image = Image(
        pixels=values, grid=Grid.from_spacing((5, 48, 48), (5.0, 0.8, 0.7)), source=Source(modality="CT")
    )
    for number in (1, 2):
        write_ct_series(tmp_path / "studies" / str(number), image, number, 1)
    out, address = tmp_path / "out", f"dimse://PEER@127.0.0.1:{peer.port}"
    how = {"processes": 0, "track": False, "least_free_gib": 0}
    archives = [place(peer.port, "PEER"), place(orthanc.dicom_port)]
    batch([tmp_path / "studies"], out, Predictor(model=Path("any")), destinations=archives, **how)
    results = set(peer.kept)
    assert len(results) == 4 and set(orthanc.files()) == results
    peer.statuses = [0x0000, 0xA900]
    code, said = command("batch", "withdraw", out, "--all", "--send", address)
    assert code == 3 and "2 results are withdrawn" in said and "2 Rejection Notes" in said
    assert sum(uid in said for uid in results) == 4 and len(set(peer.kept) - results) == 1
    code, said = command(
        "batch", "withdraw", out, "--all", "--send", address, "--send", f"{orthanc.address}/dicom-web"
    )
    assert code == 0 and "0 results are withdrawn" in said and "2 Rejection Notes" in said
    notes = {pydicom.dcmread(file).SOPInstanceUID: file for file in (out / "withdrawn").glob("*/*.dcm")}
    assert set(peer.kept) - results == set(notes) and len(notes) == 2
    # Orthanc has these results under its DIMSE address, and got no note by another one
    assert set(orthanc.files()) == results
    code, said = command(
        "batch", "withdraw", out, "--all", "--send", f"dimse://ORTHANC@127.0.0.1:{orthanc.dicom_port}"
    )
    assert code == 0 and "2 were sent" in said and set(orthanc.files()) == results | set(notes)
    for uid, file in notes.items():
        named = {
            r.ReferencedSOPInstanceUID
            for s in pydicom.dcmread(file)
            .CurrentRequestedProcedureEvidenceSequence[0]
            .ReferencedSeriesSequence
            for r in s.ReferencedSOPSequence
        }
        assert named < results and len(named) == 2 and peer.kept[uid].Modality == "KO"
    code, said = command("batch", "withdraw", out, "--all", "--send", address)
    assert code == 0 and "0 were sent" in said

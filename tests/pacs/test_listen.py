"""A service that segments what it receives: once, through restarts and refusals, and never what it wrote itself."""

import json
import os
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pydicom
import pytest
from bright import bright_segmenter
from children import read_line
from command import command
from faulty import make_certificate
from listening import get, listening, send, until

from clearmargin.core import Grid, Image, Source
from clearmargin.datasets.phantom_study import write_ct_series
from clearmargin.errors import ConfigError
from clearmargin.jobs.ledger import Ledger
from clearmargin.listen import Port, listen
from clearmargin.pacs.dicomweb import DicomWeb
from clearmargin.predicting.predictor import Predictor
from clearmargin.predicting.prepared import default_ledger

# pynetdicom leaves the socket of a refused connection to the garbage collector.
pytestmark = pytest.mark.filterwarnings(
    "ignore:Exception ignored in. <socket.socket:pytest.PytestUnraisableExceptionWarning"
)
SHAPE = (5, 48, 48)
GRID = Grid.from_spacing(SHAPE, (5.0, 0.8, 0.7))
HERE = Port(callers=("SENDER",), port=0)


@pytest.fixture(autouse=True)
def own_places(monkeypatch, tmp_path):
    monkeypatch.setattr(
        "clearmargin.sampling.samples.load_segmenter", lambda *_, **__: bright_segmenter(0, 400)
    )
    monkeypatch.setattr("clearmargin.predicting.arriving._ASK_EVERY_S", 0.2)
    monkeypatch.setenv("CLEARMARGIN_HOME", str(tmp_path / "home"))
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))


def write(folder, number):
    values = np.full((1, *SHAPE), -50, np.int16)
    values[0, 1:4, 12:30, 8 + number : 28 + number] = 390
    write_ct_series(folder, Image(pixels=values, grid=GRID, source=Source(modality="CT")), number, 1)
    return sorted(folder.iterdir())


@pytest.fixture
def studies(tmp_path):
    return [write(tmp_path / "studies" / str(number), number) for number in (1, 2)]


def items(out):
    ledger = Ledger(default_ledger(out))
    listed = list(ledger.items())
    ledger.close()
    return listed


def test_what_is_received_is_segmented_once_as_the_same_files_are(studies, tmp_path):
    from clearmargin.batch import batch

    out = tmp_path / "out"
    with listening(out, port=HERE) as service:
        for files in studies:
            assert send(service.port, files) == [0] * SHAPE[0]
        service.done(2)
        assert send(service.port, studies[0]) == [0] * SHAPE[0]  # again: nothing new
        until(lambda: service.figures()["clearmargin_series_not_stable"] == 0)
        figures = service.figures()
        assert figures['clearmargin_items{state="done"}'] == 2 and figures["clearmargin_queue_depth"] == 0
        assert figures['clearmargin_arrivals_total{what="received"}'] == 3 * SHAPE[0]
        assert figures["clearmargin_oldest_item_age_seconds"] == 0
        assert get(service.health, "/healthz") == (200, '{"status": "ok", "why": []}')
        assert get(service.health, "/elsewhere")[0] == 404
    assert service.report.counts["done"] == 2 and len(items(out)) == 2
    batch([tmp_path / "studies"], tmp_path / "batch", Predictor(model=Path("any")), processes=0, track=False)
    results = {p.parent.parent.name: p.read_bytes() for p in out.glob("case-*/current/seg.dcm")}
    expected = (tmp_path / "batch").glob("case-*/current/seg.dcm")
    assert results == {p.parent.parent.name: p.read_bytes() for p in expected} and len(results) == 2


def test_received_files_and_the_audit_log_are_private_and_complete(studies, tmp_path):
    out = tmp_path / "out"
    with listening(out, port=HERE) as service:
        send(service.port, studies[0])
        service.done(1)
        uids = {str(pydicom.dcmread(f).SOPInstanceUID) for f in studies[0]}
        lines = service.audit(out)
    assert {line["uid"] for line in lines if line["event"] == "received"} == uids
    assert all(line["peer"] == "SENDER" and line["time"].endswith("+00:00") for line in lines)
    assert (out / "audit.jsonl").stat().st_mode & 0o777 == 0o600
    assert (out / "inbox").stat().st_mode & 0o777 == 0o700
    kept = [p for p in (out / "inbox").rglob("*") if p.is_file()]
    assert len(kept) == SHAPE[0] and all(p.stat().st_mode & 0o777 == 0o600 for p in kept)
    assert not [p for p in (out / "inbox").rglob("*") if any(uid in p.name for uid in uids)]


def test_only_named_titles_may_send_and_strangers_are_noted(studies, tmp_path):
    with listening(tmp_path / "out", port=HERE) as service:
        assert send(service.port, studies[0], calling="STRANGER") is None
        assert send(service.port, studies[0], called="ANOTHER") is None
        rejected = until(lambda: [a for a in service.audit(tmp_path / "out") if a["event"] == "rejected"][1:])
        assert rejected and service.figures()['clearmargin_arrivals_total{what="rejected"}'] == 2
    assert items(tmp_path / "out") == []


def test_it_listens_on_this_machine_alone(tmp_path):
    with listening(tmp_path / "out", port=HERE) as service:
        listened = Path("/proc/net/tcp").read_text()
        for port in (service.port, service.health):
            assert f" 0100007F:{port:04X} " in listened and f" 00000000:{port:04X} " not in listened


def test_objects_that_are_not_as_they_should_be_are_refused(studies, tmp_path):
    def with_path(dataset):
        dataset["SeriesInstanceUID"]._value = "../../../evil"
        return dataset

    def another_under_its_uid(dataset):
        dataset.InstanceNumber = 4711
        return dataset

    def another_patient(dataset):
        dataset.PatientID = "somebody else"
        return dataset

    with listening(tmp_path / "out", port=HERE) as service:
        assert send(service.port, studies[0][:1], change=with_path) == [0xA900]
        send(service.port, studies[0])
        assert send(service.port, studies[0][:1], change=another_under_its_uid) == [0x0111]
        assert send(service.port, studies[0][:1], change=another_patient) == [0x0111]
        service.done(1)
        assert service.figures()['clearmargin_arrivals_total{what="refused"}'] == 3
    assert not list(tmp_path.rglob("*evil*"))
    assert [i.state for i in items(tmp_path / "out")] == ["done"]


def test_without_room_on_the_disk_nothing_is_taken(studies, tmp_path, monkeypatch):
    with listening(tmp_path / "out", port=HERE, least_free_gib=2**40) as service:
        assert send(service.port, studies[0]) == [0xA700] * SHAPE[0]  # the sender tries again
        assert not list((tmp_path / "out" / "inbox").iterdir())
        _, said = until(
            lambda: (get(service.health, "/healthz")[0] == 503) and get(service.health, "/healthz")
        )
        assert "GiB free" in said


def test_a_series_that_comes_in_pieces_has_one_current_result(studies, tmp_path):
    out = tmp_path / "out"
    with listening(out, port=HERE) as service:
        send(service.port, studies[0][:4])
        service.done(1)
        send(service.port, studies[0][4:])
        service.done(2)
    current = [i for i in items(out) if i.current]
    assert len(items(out)) == 2 and len(current) == 1 and current[0].predecessor is not None


def test_over_tls(studies, tmp_path):
    certificate, key = make_certificate(tmp_path)
    place = Port(callers=("SENDER",), port=0, certificate=certificate, key=key)
    with listening(tmp_path / "out", port=place) as service:
        assert send(service.port, studies[0]) is None
        tls = ssl.create_default_context(cafile=str(certificate))
        assert send(service.port, studies[0], tls=tls) == [0] * SHAPE[0]
        service.done(1)
    with pytest.raises(ConfigError, match="PEM"):
        Port(callers=("SENDER",), certificate=tmp_path / "none.pem", key=key).tls()


def test_results_go_back_and_are_no_input_when_they_return(server, studies, tmp_path):
    server.empty()
    out, url = tmp_path / "out", f"{server.address}/dicom-web"
    with listening(out, port=HERE, destinations=[DicomWeb(url=url)], write=["seg", "sr"]) as service:
        send(service.port, studies[0])
        service.done(1)
        assert server.count()["Instances"] == 2
        returned = sorted(out.glob("case-*/current/*.dcm"))
        assert send(service.port, returned) == [0, 0]
        until(lambda: service.figures()['clearmargin_arrivals_total{what="own"}'] == 2)
        sent = [a for a in service.audit(out) if a["event"] == "sent"]
        assert {a["uid"] for a in sent} == set(server.files()) and {a["peer"] for a in sent} == {url}
    assert len(items(out)) == 1
    # Its own also if the ledger is another one, as on a second machine.
    with listening(tmp_path / "another", port=HERE) as service:
        assert send(service.port, returned) == [0, 0]
        until(lambda: service.figures()['clearmargin_arrivals_total{what="own"}'] == 2)
    assert items(tmp_path / "another") == []


def test_the_alarm_is_raised_while_nothing_arrives(studies, tmp_path, caplog):
    with listening(tmp_path / "out", port=HERE, silent_after_s=2.0) as service:
        assert get(service.health, "/healthz")[0] == 200
        until(lambda: get(service.health, "/healthz")[0] == 503)
        assert "nothing has arrived" in get(service.health, "/healthz")[1]
        assert service.figures()["clearmargin_silent"] == 1
        until(lambda: "alarm: nothing has arrived" in caplog.text)
        send(service.port, studies[0])
        assert get(service.health, "/healthz")[0] == 200
        until(lambda: "something arrives again" in caplog.text)


def test_failures_are_counted_by_reason(studies, tmp_path):
    with listening(tmp_path / "out", port=HERE) as service:
        send(service.port, studies[0][:2] + studies[0][3:])  # a slice is missing
        service.done(1)
        assert service.figures()['clearmargin_failures{kind="GeometryError"}'] == 1


def follow(server, out, **options):
    return listening(out, follow=server.address, **options)


def test_the_change_feed_is_followed_from_now_on_and_after_a_restart(stable, studies, tmp_path):
    out = tmp_path / "out"
    stable.stow(studies[0])
    until(lambda: "StableSeries" in stable.get("/changes?limit=1000").decode())
    url = f"{stable.address}/dicom-web"
    with follow(stable, out, destinations=[DicomWeb(url=url)], write=["seg", "sr"]) as service:
        ledger = Ledger(default_ledger(out))
        until(lambda: ledger.recall(f"changes {stable.address}") is not None)
        ledger.close()
        stable.stow(studies[1])
        service.done(1)
    third = write(tmp_path / "studies" / "3", 3)
    stable.stow(third)  # while nobody listens
    with follow(stable, out, destinations=[DicomWeb(url=url)], write=["seg", "sr"]) as service:
        service.done(1)
        # Its own results become stable there, too: they are no input.
        cursor = stable.get_json("/changes?last")["Last"]
        ledger = Ledger(default_ledger(out))
        until(lambda: int(ledger.recall(f"changes {stable.address}")) >= cursor)
        ledger.close()
    assert [i.state for i in items(out)] == ["done", "done"]
    listed = [row["00080060"]["Value"][0] for row in stable.get_json("/dicom-web/series?limit=99")]
    assert sorted(listed) == ["CT", "CT", "CT", "SEG", "SEG", "SR", "SR"]


def test_a_feed_that_is_away_is_a_trouble_and_comes_back(tmp_path, monkeypatch):
    with follow(type("Away", (), {"address": "http://127.0.0.1:9"}), tmp_path / "out") as service:
        _, said = until(
            lambda: (get(service.health, "/healthz")[0] == 503) and get(service.health, "/healthz")
        )
        assert "cannot be reached" in said


SCRIPT = """
import sys
from pathlib import Path
from bright import bright_segmenter
import clearmargin.sampling.samples as samples
samples.load_segmenter = lambda *_, **__: bright_segmenter(0, 400)
from clearmargin.listen import Port, listen
from clearmargin.predicting.predictor import Predictor
report = listen(Path(sys.argv[1]), Predictor(model=Path("any")), port=Port(callers=("SENDER",), port=0), processes=0,
                stable_s=float(sys.argv[2]), least_free_gib=0, health_port=0,
                on_ready=lambda port, health: print(port, flush=True), on_event=lambda e: print(e.state, flush=True))
print("ended", report.interrupted, flush=True)
"""


def start(out, stable_s):
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[1]), *sys.path])}
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(out), str(stable_s)],
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
    )
    return process, int(read_line(process.stdout))


def test_killed_while_it_receives_it_keeps_what_it_answered_and_does_it_after_a_restart(studies, tmp_path):
    out = tmp_path / "out"
    process, port = start(out, 1000)
    assert send(port, studies[0] + studies[1][:3]) == [0] * 8
    process.kill()
    process.wait(60)
    process.stdout.close()
    process, port = start(out, 1.0)
    assert send(port, studies[1][3:]) == [0] * 2
    assert [read_line(process.stdout).strip() for _ in range(2)] == ["done", "done"]
    process.send_signal(signal.SIGINT)
    assert read_line(process.stdout).strip() == "ended True"
    assert process.wait(60) == 0
    process.stdout.close()
    listed = items(out)
    assert [i.state for i in listed] == ["done", "done"] and all(i.predecessor is None for i in listed)


def test_the_command_says_what_it_lacks(tmp_path):
    model = tmp_path / "model"
    model.mkdir()
    arguments = ("--model", model, "--out", tmp_path / "out")
    code, said = command("listen", *arguments)
    assert code == 2 and "--from" in said and "--follow" in said
    code, said = command("listen", *arguments, "--from", "MUCH TOO LONG A TITLE")
    assert code == 2 and "AE title" in said
    code, said = command("listen", *arguments, "--follow", "ftp://x")
    assert code == 2 and "address" in said


@pytest.mark.parametrize("which", ["port", "health_port"])
def test_a_port_that_is_taken(tmp_path, which):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        taken = other.getsockname()[1]
        how = {"port": HERE, "health_port": 0}
        how |= {"port": Port(callers=("A",), port=taken)} if which == "port" else {"health_port": taken}
        with pytest.raises(ConfigError, match=f"port {taken} .*taken"):
            listen(tmp_path / "out", Predictor(model=Path("any")), processes=0, least_free_gib=0, **how)


def test_json_lines_of_the_audit_log_hold_no_names(studies, tmp_path):
    out = tmp_path / "out"
    for file in studies[0]:
        dataset = pydicom.dcmread(file)
        dataset.PatientName, dataset.PatientID = "Canary^Anna", "CANARY-1"
        dataset.save_as(file)
    with listening(out, port=HERE) as service:
        send(service.port, studies[0])
        service.done(1)
        text = json.dumps(service.audit(out)) + get(service.health, "/metrics")[1]
    assert "Canary" not in text and "CANARY" not in text
    shutil.rmtree(out)


def test_a_series_of_which_nothing_could_be_kept_troubles_nobody(studies, tmp_path, monkeypatch):
    """The disk refuses one object: it is not answered with success, and comes again."""
    failing = [True]
    original = Path.mkdir

    def refused(path, *arguments, **options):
        if failing[0] and path.parent.name == "inbox":
            raise OSError(28, "No space left on device")
        return original(path, *arguments, **options)

    monkeypatch.setattr(Path, "mkdir", refused)
    with listening(tmp_path / "out", port=HERE) as service:
        assert send(service.port, studies[0]) == [0xA700] * SHAPE[0]
        until(lambda: service.figures()["clearmargin_series_not_stable"] == 0)
        assert get(service.health, "/healthz")[0] == 200
        failing[0] = False
        assert send(service.port, studies[0]) == [0] * SHAPE[0]
        service.done(1)

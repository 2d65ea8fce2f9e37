"""Identifiers planted in every text and every file name come out of no verb, whether it succeeds or fails."""

import contextlib
import os
import re
import shutil
import signal
import socket
import stat
import threading
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pydicom
import pytest
import typer
from canaries import BIRTH_DATE, FILE, MARK, PRIVATE, contents, damage, texts_below, write_inputs
from command import command
from listening import get, send, until
from pacs import INSTALL, find_orthanc, free_port, running_orthanc

from clearmargin.cli import app
from clearmargin.deidentification.key import write_new_key
from clearmargin.tracking.spool import spools

# pynetdicom leaves the socket of a refused connection to the garbage collector.
pytestmark = pytest.mark.filterwarnings(
    "ignore:Exception ignored in. <socket.socket:pytest.PytestUnraisableExceptionWarning"
)
MODEL, CARD = "runs/canaries/model", "data/card.yaml"
HERE = ("--processes", "0", "--free", "0")
INPUTS = (
    "data", "in", "others", "capture", "set", "mixed", "pictures", "predicted", "reference", "patients.csv",
    "config.yaml", "broken.yaml", "gate.yaml", "strict.yaml", "drafted.csv", "drafted.yaml", "orthanc",
)  # fmt: skip
"""What the user wrote or had drafted, which may name whom it likes."""


@dataclass(frozen=True)
class Step:
    """One command: its exit code, its words, and the lines in which it may show what was asked for."""

    code: int
    words: tuple[Any, ...]
    shown: str = ""

    @property
    def verb(self):
        first = self.words[0]
        return f"{first} {self.words[1]}" if first in ("data", "batch", "runs") else first


def fine(*words, code=0, shown=""):
    return Step(code, words, shown)


def bad(code, *words, shown=""):
    return Step(code, words, shown)


TRAINED = (
    fine("inspect", "in", "--out", "picture.png", shown="  description: "),
    fine(
        "data", "new", "set", "--out", "drafted.yaml", "--class", "lesion", "--group", "none", shown="  <-  "
    ),
    fine("data", "show", CARD, "--out", "sheet.png", shown="is mirrored"),
    fine("plan", CARD, "--out", "planned.yaml", "--minutes", "1"),
    fine("train", "config.yaml"),
    fine("evaluate", MODEL, "--card", CARD, "--out", "tables"),
    fine("calibrate", MODEL, "--card", CARD, "--alpha", "0.5", "--fit-share", "0.5", "--out", "calibrated"),
    fine("export", MODEL, "--format", "onnx", "--card", CARD, "--split", "validation"),
)
RESULTS = (
    fine(
        "predict", "in", "out", "--model", MODEL, "--uncertainty", "tta", "--write",
        "default,axes,rtstruct,masks,nifti,panoptic,maps,overlay,viewer",
    ),
    fine("predict", "others", "out-others", "--model", MODEL, "--force", "--write", "default,viewer"),
    fine("predict", "capture", "out-capture", "--model", MODEL, "--force", "--write", "default,viewer"),
    fine("report", "canaries", "--out", "page/report.html"),
    fine("replay", "evaluate-canaries-canaries-test", "--card", CARD),
    fine("promote", "evaluate-canaries-canaries-test", "--gate", "gate.yaml"),
    fine(
        "compare", "tables", "canaries", "--name", "a", "--name", "b", "--out", "compared", "--card", CARD,
        "--track",
    ),
    fine("deidentify", "in", "clean", "--key", "study.key", "--pixels-reviewed"),
    fine("deidentify", "capture", "clean-capture", "--key", "study.key", "--pixels-reviewed"),
    fine("batch", "run", "others", "--model", MODEL, "--out", "batch", *HERE,
         "--force"),
    fine("batch", "status", "batch"),
    fine("batch", "verify", "batch"),
    fine("batch", "withdraw", "batch", "--all"),
    fine("batch", "retry", "batch", "--withdrawn"),
    fine("cases", shown="case-"),
    fine("runs", "send"),
    fine("runs", "waiting"),
)  # fmt: skip
MEASURED = (
    fine(
        "measure",
        "predicted",
        "reference",
        "--out",
        "measured",
        "--track",
        "--cases",
        "patients.csv",
        "--figures",
    ),
)
REFUSED = (
    bad(4, "inspect", "pictures", shown="  description: "),
    bad(3, "inspect", "data", shown="  description: "),
    bad(4, "data", "new", "pictures", "--out", "drafted2.yaml"),
    bad(2, "data", "show", "broken.yaml"),
    bad(4, "plan", CARD, "--out", "planned2.yaml"),
    bad(4, "train", "config.yaml"),
    bad(2, "train", "broken.yaml"),
    bad(4, "evaluate", MODEL, "--card", CARD, "--split", "validation"),
    bad(4, "calibrate", MODEL, "--card", CARD, "--split", "train"),
    bad(4, "export", MODEL, "--format", "onnx", "--card", CARD, "--split", "validation"),
    bad(2, "crossvalidate", "config.yaml", "--folds", "7"),
    bad(4, "select", MODEL, "--card", CARD, "--budget-ms", "100"),
    bad(4, "predict", "pictures", "out2", "--model", MODEL),
    bad(4, "predict", "mixed", "out3", "--model", MODEL),
    bad(3, "predict", "data", "out4", "--model", MODEL),
    bad(4, "measure", "predicted", "pictures", "--out", "measured2"),
    bad(4, "compare", "tables", "measured", "--out", "compared2"),
    bad(4, "report", "no-such-run"),
    bad(4, "replay", "evaluate-canaries-canaries-test", "--card", CARD),
    bad(1, "promote", "evaluate-canaries-canaries-test", "--gate", "strict.yaml"),
    bad(3, "deidentify", "data", "clean2", "--key", "study.key"),
    bad(3, "deidentify", "pictures", "clean3", "--key", "study.key"),
    bad(3, "batch", "run", "pictures", "capture", "--model", MODEL, "--out", "batch2", *HERE),
    bad(4, "batch", "status", "tables"),
    bad(4, "batch", "retry", "tables"),
    bad(4, "batch", "verify", "tables"),
    bad(2, "batch", "withdraw", "batch2"),
    bad(4, "cases", "case-000000000000"),
    bad(2, "listen", "--model", MODEL, "--out", "received2", "--from", f"{'A' * 20}"),
    bad(2, "demo", "tables"),
)  # fmt: skip
AWAY = (
    fine("predict", "in", "out5", "--model", MODEL),
    fine("evaluate", MODEL, "--card", CARD, "--out", "tables2", "--split", "test"),
    fine("runs", "waiting"),
    bad(3, "runs", "send"),
)
"""While the tracking server does not answer."""
SERVICE = (
    fine(
        "listen", "--model", MODEL, "--out", "received", "--from", "SENDER", "--port", "{port}", "--health", "{health}",
        "--stable", "0.5", *HERE, "--force", code=130,
    ),
    bad(2, "listen", "--model", MODEL, "--out", "received3", "--from", "SENDER", "--port", "{taken}"),
)  # fmt: skip
LONG = (
    fine("crossvalidate", "config.yaml", "--folds", "2"),
    fine("select", MODEL, "--card", CARD, "--budget-ms", "100000", "--metric", "dice", "--out", "chosen"),
    fine("demo", "demonstration", "--steps", "2"),
    fine("review", "--port", "{port}"),
    bad(2, "review", "--port", "{taken}"),
)

ARCHIVED = (
    fine(
        "batch", "run", "{web}", "--model", MODEL, "--out", "batch", *HERE, "--force",
        "--to", "{web}", "--to", "{dimse}",
    ),
    fine("batch", "withdraw", "batch", "--all", "--send", "{web}"),
)  # fmt: skip
ARCHIVE_AWAY = (
    bad(4, "batch", "run", "in", "--model", MODEL, "--out", "batch2", *HERE, "--to", "{web}"),
    bad(4, "batch", "run", "{dimse}", "--model", MODEL, "--out", "batch2", *HERE),
)  # fmt: skip


def test_every_verb_succeeds_and_fails_here():
    """A new verb has to be added above."""
    steps = (*TRAINED, *RESULTS, *MEASURED, *REFUSED, *AWAY, *SERVICE, *LONG)
    verbs = set(_verbs(typer.main.get_command(app)))
    assert {step.verb for step in steps if step.code in (0, 130)} == verbs
    assert {step.verb for step in steps if step.code not in (0, 130)} >= verbs - {"runs waiting"}


def _verbs(group, before=()):
    for name, one in group.commands.items():
        if hasattr(one, "commands"):
            yield from _verbs(one, (*before, name))
        else:
            yield " ".join((*before, name))


class Story:
    """What was done in one folder, and what was said of it."""

    def __init__(self, folder, planted):
        self.folder, self.planted = folder, planted
        self.said = []
        self.names = defaultdict(str)

    def run(self, *steps):
        for step in steps:
            words = [self._filled(word) for word in step.words]
            code, text = command("-v", "--log-file", "log.txt", *words)
            assert code == step.code, (words, code, text[-3000:])
            assert "Traceback" not in text, text[-3000:]
            lines = text.splitlines()
            if step.shown:
                assert any(MARK in line for line in lines if step.shown in line), (words, text)
                lines = [line for line in lines if step.shown not in line]
            self.said.append((words, "\n".join(lines)))

    def _filled(self, word):
        return re.sub(r"\{(\w+)\}", lambda match: str(self.names[match[1]]), word)

    def check(self, log):
        """Search everything for every kind of secret."""
        secrets = [MARK, BIRTH_DATE, *(str(self.folder / name) for name in ("data", "others", "capture"))]
        secrets += [self.names["password"], *self.planted.uids]
        leaks = [(words, text) for words, text in self.said if _holds(text.encode(), secrets)]
        assert leaks == []
        assert not _holds(log.encode(), secrets)
        skipped = [self.folder / name for name in INPUTS]
        skipped += [self.folder / "home" / name for name in PRIVATE]
        private = [*self.folder.glob("*/ledger.sqlite*"), *self.folder.glob("*/audit.jsonl")]
        private += self.folder.glob("*/inbox")
        number = 0
        for path, data in texts_below(self.folder, [*skipped, *private]):
            if path.suffix == ".dcm" and not _holds(str(path.relative_to(self.folder)).encode(), [MARK]):
                continue  # `_check_what_is_copied`
            number += 1
            assert not _holds(data, secrets), (path, _holds(data, secrets))
        assert number > 100
        self._check_private_places(private)

    def _check_private_places(self, private):
        """Hold them against docs/privacy.md and docs/security.md: paths and UIDs, for nobody else's eyes."""
        for path in private:
            assert not stat.S_IMODE(path.stat().st_mode) & 0o077, path
            if path.is_file():
                for data in contents(path):
                    assert not _holds(data.replace(FILE.encode(), b""), [MARK, BIRTH_DATE]), path
        home = self.folder / "home"
        for path in (home, home / "key", home / "crosswalk.jsonl"):
            assert not stat.S_IMODE(path.stat().st_mode) & 0o077, path


def _holds(data, secrets):
    return [secret for secret in secrets if secret and secret.encode() in data]


@pytest.fixture
def story(tmp_path, monkeypatch, caplog):
    """A folder of inputs, a home, a user and a host that are the program's own; what `-v` logs is kept."""
    caplog.set_level("DEBUG", logger="clearmargin")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("CLEARMARGIN_HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir(mode=0o700)
    for name in ("USER", "LOGNAME"):
        monkeypatch.setenv(name, f"{MARK}user")
    monkeypatch.setattr(socket, "gethostname", lambda: f"{MARK}host")
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        story = Story(tmp_path, write_inputs(tmp_path))
        story.names["taken"] = other.getsockname()[1]
        yield story


def test_no_verb_gives_a_patient_away(story, caplog, monkeypatch, capfd):
    folder = story.folder
    write_new_key(folder / "study.key")
    story.run(*TRAINED, *RESULTS)
    (folder / "predicted").mkdir()
    (folder / "reference").mkdir()
    (seg,) = (folder / "out").rglob("seg.dcm")
    shutil.copy(seg, folder / "predicted" / f"{FILE}-4.dcm")
    shutil.copy(folder / "data" / f"{FILE}-4" / "truth.dcm", folder / "reference" / f"{FILE}-4.dcm")
    story.run(*MEASURED)
    _serve(story)
    with monkeypatch.context() as patched:
        story.names["password"] = f"{MARK}password"
        patched.setenv("MLFLOW_TRACKING_URI", f"http://{MARK}login:{MARK}password@127.0.0.1:{free_port()}")
        story.run(*AWAY)
    assert spools(), "what waits is searched, too"
    damage(folder)
    story.run(*REFUSED)
    assert len(story.planted.marks) > 150
    for file in (folder / "clean").rglob("*.dcm"):  # de-identified: not a canary in a byte of it
        assert MARK.encode() not in file.read_bytes() and BIRTH_DATE.encode() not in file.read_bytes()
    _check_what_is_copied(folder, story.planted.uids)
    story.check(caplog.text + "".join(capfd.readouterr()))
    assert (folder / "mlflow" / "mlflow.db").is_file()
    assert MARK in (folder / "home" / "crosswalk.jsonl").read_text()
    assert MARK in str(pydicom.dcmread(seg).PatientName)


def _serve(story):
    """Send a series to the service, and stop it."""
    story.names |= {"port": free_port(), "health": free_port()}
    files = sorted((story.folder / "in").iterdir())

    def use():
        until(lambda: _answers(story.names["health"]) and _is_open(story.names["port"]))
        assert set(send(story.names["port"], files)) == {0}
        until(lambda: 'clearmargin_items{state="done"} 1' in get(story.names["health"], "/metrics")[1])

    with _stopped_after(use):
        story.run(SERVICE[0])
    story.run(*SERVICE[1:])
    assert list((story.folder / "received").glob("case-*/current/seg.dcm"))


@contextlib.contextmanager
def _stopped_after(use):
    """Press Ctrl-C once another thread has used what the block runs; raise what went wrong in it."""
    errors = []

    def run():
        try:
            use()
        except Exception as error:  # noqa: BLE001 - raised below
            errors.append(error)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    yield
    thread.join(60)
    assert not errors, errors


def _answers(port, path="/healthz"):
    try:
        return get(port, path)[0]
    except OSError:
        return 0


def _is_open(port):
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
        return True
    return False


@pytest.mark.slow
def test_no_long_verb_and_no_archive_gives_a_patient_away(story, caplog, capfd):
    story.run(*TRAINED)
    story.names["port"] = free_port()
    for step in LONG:
        if step.verb == "review" and step.code == 0:
            with _stopped_after(lambda: until(lambda: _answers(story.names["port"], "/") == 200, 180)):
                story.run(step)
        else:
            story.run(step)
    orthanc = find_orthanc()
    if orthanc is None:
        pytest.skip(f"no Orthanc with its DICOMweb plug-in here: {INSTALL}")
    with running_orthanc(story.folder / "orthanc", *orthanc, titles=["OURS"]) as archive:
        archive.stow(sorted((story.folder / "in").iterdir()))
        story.names["web"] = f"{archive.address}/dicom-web"
        story.names["dimse"] = f"dimse://ORTHANC@127.0.0.1:{archive.dicom_port}?calling=OURS"
        story.run(*ARCHIVED)
    story.run(*ARCHIVE_AWAY)
    story.check(caplog.text + "".join(capfd.readouterr()))


def _documented():
    """The attributes that docs/privacy.md says our DICOM output copies."""
    page = (Path(__file__).parents[1] / "docs" / "privacy.md").read_text()
    table = page.split("## What DICOM output copies")[1].split("\n## ")[0]
    return {
        name for line in table.splitlines() for name in re.findall(r"^\| ([A-Z]\w+(?:, [A-Z]\w+)*) \|", line)
    }


def _check_what_is_copied(folder, uids):
    """Hold every DICOM file of a prediction against the page: nothing else of the source is in it."""
    documented = {name for names in _documented() for name in names.split(", ")}
    copied = set()
    for file in folder.glob("out*/**/*.dcm"):
        for element in pydicom.dcmread(file).iterall():
            values = (
                element.value
                if isinstance(element.value, list | pydicom.multival.MultiValue)
                else [element.value]
            )
            for value in map(str, values):
                if MARK in value or value == BIRTH_DATE or value in uids:
                    copied.add(element.keyword)
    assert copied <= documented, copied - documented
    assert {"PatientName", "PatientID", "PatientBirthDate", "StudyInstanceUID", "AccessionNumber"} <= copied

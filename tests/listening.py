"""A service in a thread of the test, and peers that send to it."""

import contextlib
import json
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

import pydicom
from pynetdicom import AE

from clearmargin.listen import listen
from clearmargin.predicting.predictor import Predictor

_direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def until(happens, seconds=60):
    """Wait until something is true, and return it."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        value = happens()
        if value:
            return value
        time.sleep(0.05)
    raise AssertionError("it did not happen in time")


def get(port, path):
    """Status and text of a monitor's request."""
    try:
        with _direct.open(f"http://127.0.0.1:{port}{path}", timeout=20) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


class Service:
    """A running `listen`: its ports, events and how it ended."""

    def __init__(self):
        self.port = self.health = 0
        self.events, self.ready, self.over = [], threading.Event(), threading.Event()
        self.report = self.error = None

    def began(self, port, health):
        self.port, self.health = port, health
        self.ready.set()

    def done(self, number):
        return until(lambda: sum(e.state in ("done", "refused", "failed") for e in self.events) >= number)

    def figures(self):
        status, text = get(self.health, "/metrics")
        assert status == 200
        return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in text.splitlines()}

    def audit(self, out):
        log = out / "audit.jsonl"
        lines = log.read_text().splitlines() if log.exists() else []
        return [json.loads(line) for line in lines]


@contextlib.contextmanager
def listening(out, **options):
    service = Service()
    how = {"processes": 0, "stable_s": 1.0, "least_free_gib": 0, "health_port": 0} | options

    def run():
        try:
            service.report = listen(
                out,
                Predictor(model=Path("any")),
                on_ready=service.began,
                on_event=service.events.append,
                stopped=service.over.is_set,
                **how,
            )
        except Exception as error:  # noqa: BLE001 - shown by the test
            service.error = error
        service.ready.set()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    assert service.ready.wait(60)
    if service.error is not None:
        raise service.error
    try:
        yield service
    finally:
        service.over.set()
        thread.join(60)
    assert not thread.is_alive() and service.error is None


def send(port, files, calling="SENDER", called="CLEARMARGIN", tls=None, change=lambda dataset: dataset):
    """Store files; return the statuses, or None if the association was rejected."""
    entity = AE(ae_title=calling)
    datasets = [change(pydicom.dcmread(f)) for f in files]
    for uid, syntax in {(d.SOPClassUID, d.file_meta.TransferSyntaxUID) for d in datasets}:
        entity.add_requested_context(uid, syntax)
    arguments = {} if tls is None else {"tls_args": (tls, "localhost")}
    association = entity.associate("127.0.0.1", port, ae_title=called, **arguments)
    if not association.is_established:
        return None
    statuses = [association.send_c_store(d) for d in datasets]
    association.release()
    return [s.get("Status") for s in statuses]

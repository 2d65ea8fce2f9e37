"""What a store that is away does not take is kept and sent later: none lost, none twice."""

from __future__ import annotations

import contextlib
import http.client
import http.server
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from children import LIMIT_S, child, read_line, wait_until
from typer.testing import CliRunner

from clearmargin.cli import app
from clearmargin.tracking import sending
from clearmargin.tracking.run import TrackedRun
from clearmargin.tracking.sending import send_waiting
from clearmargin.tracking.spool import Spool, spools
from clearmargin.tracking.store import find_run, open_client

WORKER = """
import sys, time
import numpy as np
from pathlib import Path
from clearmargin.tracking.run import TrackedRun
run = TrackedRun(name="outage", uri=sys.argv[1], pause_s=0.2)
run.on_start(params={"seed": 7}, tags={"verb": "train"})
with run:
    for step in range(40):
        run.log_metrics({"train/loss": float(step), "headline/pq": step / 40}, step=step)
        if step % 10 == 0:
            run.log_image("validation 1", np.full((8, 8, 3), step, np.uint8), step=step)
        print(step, flush=True)
        sys.stdin.readline()
    run.log_model(Path(sys.argv[2]))
    run.log_text("the last file", "last.txt")
print(run.run_id, flush=True)
"""


def _check_whole(client: Any, run_id: str) -> None:
    """Everything that the worker logged is there once."""
    run = client.get_run(run_id)
    assert (
        run.info.status == "FINISHED"
        and run.data.params == {"seed": "7"}
        and run.data.tags["verb"] == "train"
    )
    for name in ("train/loss", "headline/pq"):
        assert [m.step for m in client.get_metric_history(run_id, name)] == list(range(40))
    pictures = [f.path for f in client.list_artifacts(run_id, "images")]
    assert len(pictures) == 8, "a picture and its preview at four steps"
    assert len(run.outputs.model_outputs) == 1
    assert len(client.search_logged_models([run.info.experiment_id])) == 1
    assert {f.path for f in client.list_artifacts(run_id)} >= {"environment.txt", "hardware.json", "last.txt"}


@contextlib.contextmanager
def _served(store: str, port: int) -> Iterator[subprocess.Popen[str]]:
    """A real `mlflow server` in a group of its own, killed with all its workers."""
    folder = Path(store.removeprefix("sqlite:///")).parent
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port)]
    command += [
        "--workers",
        "1",
        "--backend-store-uri",
        store,
        "--artifacts-destination",
        str(folder / "files"),
    ]
    environment = {
        **os.environ,
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }
    with child(
        command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    ) as server:

        def answers() -> bool:
            with (
                contextlib.suppress(OSError),
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5),
            ):
                return True
            return False

        wait_until(answers, server)
        try:
            yield server
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(server.pid, signal.SIGKILL)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.mark.slow
@pytest.mark.parametrize("back", ["in the middle", "after the end"])
def test_a_server_that_is_killed_and_started_again_has_everything_once(
    back: str, store: str, folder_of_model: Path, tmp_path: Path
) -> None:
    port = _free_port()
    environment = {
        **os.environ, "PYTHONPATH": str(Path(__file__).parents[2] / "pipeline"), "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"
    }  # fmt: skip
    command = [sys.executable, "-W", "ignore", "-c", WORKER, f"http://127.0.0.1:{port}", folder_of_model]
    with child(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as worker:

        def steps(first: int, last: int) -> None:
            for step in range(first, last):
                assert read_line(worker.stdout) == f"{step}\n"
                assert worker.stdin is not None
                worker.stdin.write("\n")
                worker.stdin.flush()

        with _served(store, port):
            steps(0, 10)
        steps(10, 30)  # with nobody there
        with _served(store, port) if back == "in the middle" else contextlib.nullcontext():
            steps(30, 40)
            run_id = read_line(worker.stdout).strip()
            assert worker.wait(LIMIT_S) == 0
        if back == "after the end":
            assert [one.name for one in spools()] == ["outage"]
            said = CliRunner().invoke(app, ["runs", "send"])
            assert said.exit_code != 0, "the server is still away"
            with _served(store, port):
                said = CliRunner().invoke(app, ["runs", "send"])
                assert said.exit_code == 0 and "1 runs sent, 0 wait on" in said.output
                assert "0 runs sent" in CliRunner().invoke(app, ["runs", "send"]).output
    assert not spools()
    with _served(store, port):
        _check_whole(open_client(f"http://127.0.0.1:{port}"), run_id)


class _Relay(http.server.BaseHTTPRequestHandler):
    """Passes each request on, and then answers as ``mode`` says."""

    target = ""
    mode = "well"  # or "500", "hangs", "drops": the answer of a request that the server has carried out
    dropped: list[str] = []  # noqa: RUF012 - emptied by the fixture

    def _pass_on(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.mode == "500":
            self.send_response(500)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        if self.mode == "hangs":
            time.sleep(1.5)
            return
        host = self.target.removeprefix("http://")
        connection = http.client.HTTPConnection(host, timeout=60)
        headers = {k: v for k, v in self.headers.items() if k.lower() not in ("host", "connection")}
        connection.request(self.command, self.path, body, headers)
        answer = connection.getresponse()
        content = answer.read()
        connection.close()
        if (
            self.mode == "drops"
            and self.command in ("POST", "PUT", "PATCH")
            and self.path not in self.dropped
        ):
            self.dropped.append(self.path)  # once each: the same request may pass the next time
            self.close_connection = True
            return
        self.send_response(answer.status)
        for key, value in answer.getheaders():
            if key.lower() not in ("transfer-encoding", "content-length", "connection"):
                self.send_header(key, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _pass_on  # noqa: N815 - the library's names

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def bad_network(server: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, type[_Relay]]]:
    """The address of a relay before the server, and its class, whose ``mode`` is set."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
    monkeypatch.setattr(_Relay, "target", server)
    monkeypatch.setattr(_Relay, "mode", "well")
    monkeypatch.setattr(_Relay, "dropped", [])
    relay = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Relay)
    relay.daemon_threads = True
    thread = threading.Thread(target=relay.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{relay.server_address[1]}", _Relay
    relay.shutdown()
    relay.server_close()
    thread.join(LIMIT_S)


def test_an_answer_that_is_lost_makes_nothing_twice(
    server: str, bad_network: tuple[str, type[_Relay]], folder_of_model: Path
) -> None:
    """The server carries each kind of request out, and its first answer never arrives."""
    address, relay = bad_network
    relay.mode = "drops"
    run = TrackedRun(name="lost answers", experiment="lost answers", uri=address, pause_s=0.0)
    run.on_start(params={"seed": 7}, tags={"verb": "train"})
    with run:
        for step in range(40):
            run.log_metrics({"train/loss": float(step), "headline/pq": step / 40}, step=step)
            if step % 10 == 0:
                run.log_image("validation 1", np.full((8, 8, 3), step, np.uint8), step=step)
        run.log_model(folder_of_model)
        run.log_text("the last file", "last.txt")
    for _ in range(60):
        if not spools():
            break
        send_waiting()
    assert not spools()
    assert {path.rsplit("/", 1)[-1] for path in relay.dropped} >= {
        "create",
        "log-batch",
        "set-tag",
        "logged-models",
    }
    client = open_client(server)
    key = client.get_experiment_by_name("lost answers").experiment_id
    (one,) = client.search_runs([key])
    _check_whole(client, one.info.run_id)
    found = find_run(client, run.run_id)
    assert found is not None and found.info.run_id == one.info.run_id


@pytest.mark.parametrize("mode", ["500", "hangs"])
def test_a_server_that_fails_or_hangs_costs_a_warning_and_nothing_else(
    mode: str,
    server: str,
    bad_network: tuple[str, type[_Relay]],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    address, relay = bad_network
    monkeypatch.setattr(sending, "_PROBE_S", 0.2)
    relay.mode = mode
    with (
        caplog.at_level(logging.WARNING, logger="clearmargin"),
        TrackedRun(name=f"at {mode}", uri=address) as run,
    ):
        for step in range(500):
            run.log_metrics({"loss": 1.0}, step=step)
    assert len(caplog.records) == 2, "the first failure, and what waits"
    relay.mode = "well"
    with TrackedRun(name="next", uri=address) as following:
        pass
    assert not spools(), "the next run sends what waits"
    client = open_client(server)
    first = find_run(client, run.run_id)
    assert first is not None and len(client.get_metric_history(first.info.run_id, "loss")) == 500
    assert first.info.start_time < client.get_run(following.run_id).info.start_time


def test_a_quick_run_is_sent_by_the_next_one(store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    client = open_client(store)
    with TrackedRun(name="quick", uri=store, lazily=True) as run:
        run.log_metrics({"cases": 1.0}, step=0)
    (waiting,) = spools()
    assert waiting.folder.name == run.run_id and find_run(client, run.run_id) is None
    listed = CliRunner().invoke(app, ["runs", "waiting"])
    assert listed.exit_code == 0 and "quick" in listed.output
    with TrackedRun(name="slow", uri=store):
        pass
    sent = find_run(client, run.run_id)
    assert sent is not None and sent.data.metrics == {"cases": 1.0} and not spools()
    monkeypatch.setattr("clearmargin.tracking.run._QUICK_S", -1.0)
    with TrackedRun(name="lengthy", uri=store, lazily=True) as lengthy:
        pass
    assert client.get_run(lengthy.run_id).info.status == "FINISHED", "its own end sends it"


def test_a_parent_that_waits_has_its_children_later(store: str) -> None:
    with (
        TrackedRun(name="folds", uri=store, lazily=True) as parent,
        TrackedRun(name="fold", uri=store, lazily=True, parent=parent) as fold,
    ):
        pass
    assert send_waiting(store).runs == ("folds", "fold")
    client = open_client(store)
    above, below = find_run(client, parent.run_id), find_run(client, fold.run_id)
    assert above is not None and below is not None
    assert below.data.tags["mlflow.parentRunId"] == above.info.run_id


def test_a_refused_entry_is_counted_and_the_others_are_sent(
    store: str, caplog: pytest.LogCaptureFixture
) -> None:
    with TrackedRun(name="r", uri=store) as run:
        run.set_tag("x" * 300, "a key that MLFlow does not take")
        run.log_metrics({"loss": 1.0}, step=1)
    assert open_client(store).get_run(run.run_id).data.metrics == {"loss": 1.0}
    assert "not logged: 1 tags" in caplog.text and not spools()


def test_a_store_that_was_removed_is_not_made_anew(store: str, tmp_path: Path) -> None:
    with TrackedRun(name="gone", uri=store, lazily=True):
        pass
    shutil.rmtree(tmp_path / "mlflow")
    said = CliRunner().invoke(app, ["runs", "send"])
    assert "0 runs sent, 1 wait on" in said.output and "does not answer or is gone" in str(said.exception)
    assert not (tmp_path / "mlflow").exists()


def test_a_journal_that_was_cut_off_goes_on(tmp_path: Path) -> None:
    spool = Spool.begin("sqlite:///x.db", name="a", tags={})
    spool.add("tag", key="one", value="1")
    with (spool.folder / "journal.jsonl").open("ab") as journal:
        journal.write(b'{"do": "tag", "ke')  # killed here
    spool.close()
    again = Spool(spool.folder, new=False)
    again.add("end", status="FAILED", at=0)
    again.close()
    assert [e["do"] for e in Spool(spool.folder, new=False).entries] == ["begin", "tag", "end"]


def test_a_full_disk_costs_what_is_logged_and_not_the_work(
    store: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    with TrackedRun(name="full", uri=store) as run:
        with monkeypatch.context() as patched:
            patched.setattr(Spool, "add", full)
            run.log_metrics({"loss": 1.0}, step=1)
            run.log_text("x", "x.txt")
        run.log_metrics({"loss": 0.5}, step=2)
    assert open_client(store).get_run(run.run_id).data.metrics == {"loss": 0.5}
    assert "2 for which the disk had no room" in caplog.text


def test_a_login_is_not_written_down(monkeypatch: pytest.MonkeyPatch, private_home: Path) -> None:
    address = f"http://ann:hunter2@127.0.0.1:{_free_port()}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    with TrackedRun(name="login"):
        pass
    assert all("hunter2" not in path.read_text() for path in private_home.rglob("*") if path.is_file())
    assert sending._address(spools()[0].store) == address

"""The same over HTTP: a real server on 127.0.0.1, and what happens when it goes away."""

from __future__ import annotations

import logging
import os
import re
import shutil
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from children import LIMIT_S, child, read_line
from reviewing import REVIEW

from clearmargin.errors import ConfigError, InputError
from clearmargin.tracking.flavour import register
from clearmargin.tracking.resolve import model_folder
from clearmargin.tracking.review import review, runs_page, serving
from clearmargin.tracking.run import TrackedRun
from clearmargin.tracking.store import find_run, open_client


def test_a_run_over_http_and_its_model_fetched_back(
    server: str,
    folder_of_model: Path,
    monkeypatch: pytest.MonkeyPatch,
    private_home: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server)
    with TrackedRun(name="over-http") as run:
        run.log_metrics({"loss": 1.0}, step=1)
        run.log_image("a/b", np.zeros((4, 4, 3), np.uint8), step=1)
        uri = run.log_model(folder_of_model)
    assert capfd.readouterr() == ("", ""), "MLflow announces nothing"
    found = open_client().get_run(run.run_id)
    assert found.info.status == "FINISHED" and found.data.metrics == {"loss": 1.0}
    assert register(run.run_id, "over-http", "champion") == "models:/over-http/1"
    for reference in (run.run_id, str(uri), "models:/over-http@champion"):
        fetched = model_folder(reference)
        assert (fetched / "model.yaml").read_text() == "threshold: 0.5\n"
        assert private_home in fetched.parents, "a copy under CLEARMARGIN_HOME"


def test_review_opens_the_page_of_our_runs(server: str) -> None:
    run = TrackedRun(name="seen", uri=server)
    with run:
        pass
    number = open_client(server).get_run(run.run_id).info.experiment_id
    assert (
        runs_page(server)
        == f"{server}/#/experiments/{number}/runs?workflowType=machine_learning&viewStateShareKey=clearmargin"
    )
    assert runs_page("http://127.0.0.1:9") == "http://127.0.0.1:9"


def test_review_shows_the_pages(server: str) -> None:
    with urllib.request.urlopen(server, timeout=120) as answer:
        assert b"MLflow" in answer.read()


def test_an_unknown_run_over_http_is_the_users_fault(server: str) -> None:
    with pytest.raises(InputError, match="no run"):
        model_folder("0" * 32, uri=server)


def test_a_server_that_goes_down_costs_a_warning_and_metrics_arrive_later(
    server: str, relay: Any, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    direct = open_client(server)
    address = f"http://127.0.0.1:{relay.port}"
    with caplog.at_level(logging.WARNING, logger="clearmargin"):
        relay.open()
        with TrackedRun(name="outage", experiment="outage", uri=address, pause_s=0.0) as run:
            run.log_metrics({"loss": 3.0}, step=1)
            relay.close()
            run.log_metrics({"loss": 2.0}, step=2)
            run.log_image("late", np.zeros((4, 4, 3), np.uint8), step=2)
            relay.open()
            run.log_metrics({"loss": 1.0}, step=3)
            relay.close()
    steps = [m.step for m in direct.get_metric_history(run.run_id, "loss")]
    assert steps == [1, 2, 3], "what was pending came with the next batch"
    assert len(direct.list_artifacts(run.run_id, "images")) > 0, "and the picture before it"
    messages = [r.getMessage() for r in caplog.records if r.name.startswith("clearmargin")]
    assert len(messages) == 2, "one at the first failure, one at the end"
    assert "the work goes on" in messages[0]
    assert "1 entries wait" in messages[1]
    assert direct.get_run(run.run_id).info.status == "RUNNING"
    relay.open()
    with TrackedRun(name="next", experiment="outage", uri=address):
        pass
    status = direct.get_run(run.run_id).info.status
    assert status == "FINISHED", "the end that the server could not be told is told by the next run"


def test_a_port_that_is_taken_is_named(server: str) -> None:
    port = int(server.rsplit(":", 1)[1])
    with pytest.raises(ConfigError, match="is taken"), serving(port):
        pass


@pytest.mark.slow
def test_kill_leaves_no_server_behind(made_store: Path, tmp_path: Path) -> None:
    (tmp_path / "mlflow").mkdir()
    shutil.copy(made_store, tmp_path / "mlflow" / "mlflow.db")
    pipeline = str(Path(__file__).parents[2] / "pipeline")
    with child(
        [sys.executable, "-W", "ignore", "-u", "-c", REVIEW],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": pipeline},
        stdout=subprocess.PIPE,
    ) as process:
        address = re.search(r"127\.0\.0\.1:(\d+)", read_line(process.stdout))
        assert address is not None
        process.terminate()
        assert process.wait(LIMIT_S) == 143
    with pytest.raises(OSError, match="refused"):
        socket.create_connection(("127.0.0.1", int(address[1])), timeout=5).close()


@pytest.mark.slow
def test_a_store_without_a_driver_is_the_users_fault() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        free = probe.getsockname()[1]
    with pytest.raises(ConfigError, match="ended at once"), serving(free, uri="nodatabase://x"):
        pass
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", free))


def test_the_review_of_a_server_starts_none(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    monkeypatch.setattr("webbrowser.open", opened.append)
    with TrackedRun(name="waits", uri=server, lazily=True) as run:
        pass
    review(uri=server)
    assert opened == [runs_page(server)]
    assert find_run(open_client(server), run.run_id) is not None, "what waited is there when the page opens"
    review(uri=server, browser=False)
    assert opened == [runs_page(server)]

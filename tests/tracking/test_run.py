"""A run in a real SQLite store: what it holds, how it ends, and that it names nobody."""

from __future__ import annotations

import getpass
import json
import logging
import os
import re
import signal
import socket
import sqlite3
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from children import LIMIT_S, child, read_line

from clearmargin.errors import InputError
from clearmargin.tracking.run import TrackedRun
from clearmargin.tracking.spool import spools
from clearmargin.tracking.store import experiment_id, open_client
from clearmargin.tracking.trainings import weights_of

CHILD = """
import contextlib, sys, time
from clearmargin.tracking.run import TrackedRun
with contextlib.ExitStack() as stack:
    for name in sys.argv[2:]:
        run = stack.enter_context(TrackedRun(name=name, uri=sys.argv[1], experiment=name))
        run.log_metrics({"loss": 1.0}, step=1)
        print(run.run_id, flush=True)
    time.sleep(1000)
"""


def _child(store: str, *names: str, number: signal.Signals) -> tuple[int, list[str]]:
    """Stop a process in the middle of a run of each name; return its exit code and the runs' ids."""
    with child(
        [sys.executable, "-W", "ignore", "-c", CHILD, store, *names],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2] / "pipeline")},
    ) as process:
        ids = [read_line(process.stdout).strip() for _ in names]
        process.send_signal(number)
        return process.wait(LIMIT_S), ids


def test_a_run_holds_what_was_logged(store: str, folder_of_model: Path) -> None:
    run = TrackedRun(name="ct-phantom", uri=store)
    run.on_start(
        params={"model": {"network": "mask_rcnn", "sizes": [8, 16]}, "seed": 7},
        texts={"config.yaml": "seed: 7\n"},
        tags={"verb": "train"},
    )
    assert run.run_id == ""
    with run:
        for step in (1, 2):
            run.log_metrics({"train/loss": 1.0 / step, "ap50 (tumour)": 0.5}, step=step)
            run.log_image("validation/case-1", np.full((6, 8, 3), 40 * step, np.uint8), step=step)
        run.log_data("phantoms", "0123abcd")
        run.log_artifact(folder_of_model, "checkpoint")
    client = open_client(store)
    found = client.get_run(run.run_id)
    assert found.info.status == "FINISHED" and found.info.run_name == "ct-phantom"
    assert found.data.params == {"model.network": "mask_rcnn", "model.sizes": "[8, 16]", "seed": "7"}
    assert found.data.metrics == {"train/loss": 0.5, "ap50 _tumour_": 0.5}
    history = client.get_metric_history(run.run_id, "train/loss")
    assert [(m.step, m.value) for m in history] == [(1, 1.0), (2, 0.5)]
    assert found.data.tags["verb"] == "train"
    assert found.inputs.dataset_inputs[0].dataset.digest == "0123abcd"
    files = {f.path for f in client.list_artifacts(run.run_id)}
    assert files >= {"config.yaml", "environment.txt", "images", "checkpoint"}
    assert len(client.list_artifacts(run.run_id, "images")) == 4, "a picture and its preview at two steps"
    experiment = client.get_experiment(found.info.experiment_id)
    assert experiment.tags["mlflow.experimentKind"] == "custom_model_development"


def test_the_environment_is_in_the_run(store: str) -> None:
    with TrackedRun(name="e", uri=store) as run:
        pass
    client = open_client(store)
    path = Path(client.download_artifacts(run.run_id, "environment.txt"))
    text = path.read_text()
    assert f"numpy=={np.__version__}" in text and text.startswith("# clearmargin ")
    assert str(Path.home()) not in text


def test_the_git_commit_is_a_tag(store: str) -> None:
    here = Path(__file__).parent
    head = subprocess.run(
        ["git", "-C", here, "rev-parse", "HEAD"], capture_output=True, text=True, check=False
    )
    if head.returncode:
        pytest.skip("not a git checkout")
    with TrackedRun(name="g", uri=store) as run:
        pass
    tags = open_client(store).get_run(run.run_id).data.tags
    assert tags["mlflow.source.git.commit"] == head.stdout.strip()
    assert tags["git.dirty"] in ("true", "false")


def test_no_user_host_or_path_reaches_the_store(store: str, folder_of_model: Path) -> None:
    secret = folder_of_model / "record-4711.dcm"
    run = TrackedRun(name="private", uri=store)
    run.on_start(params={"input": secret, "more": {"in": [str(secret)]}}, tags={"file": str(secret)})
    with run:
        run.set_tag("again", str(secret))
        run.log_data("card", "ab" * 32)
    database = sqlite3.connect(store.removeprefix("sqlite:///"))
    rows: list[str] = []
    for table in ("tags", "params", "datasets", "inputs", "input_tags", "latest_metrics", "experiment_tags"):
        rows += [str(row) for row in database.execute(f"SELECT * FROM {table}")]
    rows += [
        str(r) for r in database.execute("SELECT user_id, source_name, entry_point_name, name FROM runs")
    ]
    database.close()
    everything = "\n".join(rows)
    assert "private" in everything
    for word in ("4711", "Doe", str(Path.home()), socket.gethostname(), str(secret.parent)):
        assert word not in everything
    assert f"'{getpass.getuser()}'" not in everything


def test_an_exception_ends_a_run_as_failed(store: str) -> None:
    run = TrackedRun(name="bad", uri=store)
    with pytest.raises(ZeroDivisionError), run:
        raise ZeroDivisionError
    assert open_client(store).get_run(run.run_id).info.status == "FAILED"


def test_ctrl_c_ends_a_run_as_killed(store: str) -> None:
    run = TrackedRun(name="stopped", uri=store)
    with pytest.raises(KeyboardInterrupt), run:
        raise KeyboardInterrupt
    assert open_client(store).get_run(run.run_id).info.status == "KILLED"


def test_sigterm_ends_a_run_as_killed(store: str) -> None:
    code, (run_id,) = _child(store, "a", number=signal.SIGTERM)
    assert code == 143
    assert open_client(store).get_run(run_id).info.status == "KILLED"


def test_a_process_that_was_killed_leaves_runs_that_are_closed_or_go_on(store: str) -> None:
    code, (dead, resumed) = _child(store, "a", "b", number=signal.SIGKILL)
    assert code == -9
    client = open_client(store)
    assert [client.get_run(r).info.status for r in (dead, resumed)] == ["RUNNING", "RUNNING"]
    elsewhere = client.create_run(experiment_id(client, "a"), run_name="another machine's").info.run_id
    with TrackedRun(name="next", experiment="a", uri=store) as run:
        assert client.get_run(dead).info.status == "FAILED"
        assert client.get_run(elsewhere).info.status == "RUNNING", "nothing is known about it here"
        assert client.get_run(run.run_id).info.status == "RUNNING"
    with TrackedRun(name="ignored", run_id=resumed, uri=store) as run:
        assert run.run_id == resumed and client.get_run(resumed).info.status == "RUNNING"
        run.log_metrics({"loss": 0.5}, step=2)
    assert client.get_run(resumed).info.status == "FINISHED"
    assert [m.step for m in client.get_metric_history(resumed, "loss")] == [1, 2]


def test_a_living_run_is_neither_closed_nor_taken_over(store: str) -> None:
    client = open_client(store)
    with TrackedRun(name="first", uri=store) as first:
        with TrackedRun(name="second", uri=store):
            assert client.get_run(first.run_id).info.status == "RUNNING"
        thief = TrackedRun(name="thief", run_id=first.run_id, uri=store)
        with pytest.raises(InputError, match="another process"):
            thief.__enter__()
    assert client.get_run(first.run_id).info.status == "FINISHED"


def test_a_resumed_run_keeps_its_parameters_and_notes_what_changed(store: str) -> None:
    first = TrackedRun(name="r", uri=store)
    first.on_start(params={"epochs": 10, "seed": 1})
    with first:
        pass
    again = TrackedRun(name="r", run_id=first.run_id, uri=store)
    again.on_start(params={"epochs": 20, "seed": 1, "new": True})
    with again:
        pass
    data = open_client(store).get_run(first.run_id).data
    assert data.params == {"epochs": "10", "seed": "1", "new": "True"}
    assert data.tags["resumed.epochs"] == "20" and "resumed.seed" not in data.tags


def test_a_run_that_the_store_does_not_know_is_made_anew(
    store: str, caplog: pytest.LogCaptureFixture
) -> None:
    with TrackedRun(name="moved", run_id="0" * 32, uri=store) as run:
        assert run.run_id not in ("", "0" * 32)
    assert "not in this tracking store" in caplog.text


def test_a_fold_lies_under_its_parent(store: str) -> None:
    with (
        TrackedRun(name="folds", uri=store) as parent,
        TrackedRun(name="fold-0", uri=store, parent=parent) as fold,
    ):
        pass
    assert open_client(store).get_run(fold.run_id).data.tags["mlflow.parentRunId"] == parent.run_id


def test_an_evaluation_is_joined_to_its_training(store: str, folder_of_model: Path) -> None:
    """By the hash of the weights: a copy of the folder elsewhere is joined, too."""
    training = TrackedRun(name="ct-phantom-3", uri=store)
    training.on_start(tags={"verb": "train"})
    with training:
        model = training.log_model(folder_of_model)
    with TrackedRun(name="evaluate-mask_rcnn-ct-test", uri=store) as run:
        run.log_model_used(weights_of(folder_of_model), "evaluate-{}-ct-test")
    with TrackedRun(name="evaluate-mask_rcnn-ct-test", uri=store) as stranger:
        stranger.log_model_used("0" * 64, "evaluate-{}-ct-test")
    client = open_client(store)
    joined, other = client.get_run(run.run_id), client.get_run(stranger.run_id)
    assert joined.data.tags["mlflow.parentRunId"] == joined.data.tags["training"] == training.run_id
    assert joined.info.run_name == "evaluate-ct-phantom-3-ct-test"
    assert [f"models:/{m.model_id}" for m in joined.inputs.model_inputs] == [model]
    assert "mlflow.parentRunId" not in other.data.tags and other.info.run_name == "evaluate-mask_rcnn-ct-test"


def test_the_run_list_opens_with_metrics_in_columns_of_old_experiments_too(store: str) -> None:
    client = open_client(store)
    client.create_experiment("clearmargin")
    with TrackedRun(name="t", uri=store):
        pass
    tags = client.get_experiment_by_name("clearmargin").tags
    view = json.loads(tags["mlflow.sharedViewState.clearmargin"])
    assert {"metrics.`headline/ap50`", "metrics.`headline/nsd`", "params.`split`"} <= set(
        view["selectedColumns"]
    )


def test_a_second_process_of_a_training_logs_nothing(tmp_path: Path) -> None:
    store = f"sqlite:///{tmp_path}/none/mlflow.db"
    with TrackedRun(name="rank 1", uri=store, enabled=False) as run:
        run.log_metrics({"loss": 1.0}, step=1)
        run.log_image("a", np.zeros((2, 2), np.uint8), step=1)
    assert run.run_id == "" and not (tmp_path / "none").exists()


def test_sigterm_handling_is_as_before(store: str) -> None:
    before = signal.getsignal(signal.SIGTERM)
    with TrackedRun(name="s", uri=store):
        pass
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_store_that_does_not_answer_costs_a_warning(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with caplog.at_level(logging.WARNING), TrackedRun(name="t", uri=f"http://127.0.0.1:{port}") as run:
        for step in range(50):
            run.log_metrics({"loss": 1.0}, step=step)
    assert [one.folder.name for one in spools()] == [run.run_id], "it waits under the name that the run had"
    ours = [r for r in caplog.records if r.name.startswith("clearmargin")]
    waiting = re.search(r"(\d+) entries wait", ours[1].getMessage())
    assert len(ours) == 2 and waiting is not None
    assert int(waiting[1]) > 50, "the metrics, and what a run says of itself at its beginning and end"
    assert str(port) not in caplog.text, "a store's address can hold credentials"

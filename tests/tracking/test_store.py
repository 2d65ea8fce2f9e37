"""The embedded store, taken up by several processes at once, and after processes that were killed."""

import signal
import subprocess
import sys

import mlflow
from children import LIMIT_S

from clearmargin.cli.app import say_run
from clearmargin.tracking.run import TrackedRun
from clearmargin.tracking.sending import send_waiting
from clearmargin.tracking.spool import spools

CODE = """
from clearmargin.tracking.run import TrackedRun
with TrackedRun(name="together") as run:
    run.log_metrics({"x": 1.0}, step=0)
raise SystemExit(0 if run.run_id else 1)
"""


def test_processes_that_start_together_share_a_new_store(tmp_path):
    started = [
        subprocess.Popen([sys.executable, "-W", "ignore", "-c", CODE], cwd=tmp_path, stderr=subprocess.PIPE)
        for _ in range(3)
    ]
    errors = [process.communicate(timeout=LIMIT_S)[1].decode() for process in started]
    assert [process.returncode for process in started] == [0, 0, 0], errors
    client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{tmp_path / 'mlflow' / 'mlflow.db'}")
    runs = client.search_runs([e.experiment_id for e in client.search_experiments()])
    assert [run.info.status for run in runs] == ["FINISHED"] * 3


KILLED_IN_MIGRATION = """
import os, signal, sqlalchemy
from sqlalchemy import event
steps = 0
@event.listens_for(sqlalchemy.engine.Engine, "before_cursor_execute")
def count(connection, cursor, statement, *_):
    global steps
    steps += statement.startswith("UPDATE alembic_version")
    if steps == 12:
        os.kill(os.getpid(), signal.SIGKILL)
"""
MLFLOW_ALONE = "import mlflow; mlflow.MlflowClient(tracking_uri='sqlite:///mlflow/mlflow.db')"


def killed_half_way(folder, code):
    (folder / "mlflow").mkdir(exist_ok=True)
    command = [sys.executable, "-W", "ignore", "-c", KILLED_IN_MIGRATION + code]
    said = subprocess.run(command, check=False, cwd=folder, capture_output=True, timeout=LIMIT_S)
    assert said.returncode == -signal.SIGKILL, said.stderr.decode()


def finished_runs(folder):
    client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{folder / 'mlflow' / 'mlflow.db'}")
    runs = client.search_runs([e.experiment_id for e in client.search_experiments()])
    return sorted(run.info.run_name for run in runs if run.info.status == "FINISHED")


def test_a_store_half_made_by_mlflow_is_set_aside_and_what_waits_is_sent(tmp_path, monkeypatch, caplog):
    killed_half_way(tmp_path, MLFLOW_ALONE)
    half_made = (tmp_path / "mlflow" / "mlflow.db").read_bytes()
    monkeypatch.chdir(tmp_path)
    with TrackedRun(name="waits", lazily=True):
        pass
    assert send_waiting().runs == ("waits",) and not spools()
    assert finished_runs(tmp_path) == ["waits"]
    assert (tmp_path / "mlflow" / "mlflow.db.half-made-1").read_bytes() == half_made
    assert "'mlflow.db' was left half made" in caplog.text


def test_a_process_killed_while_it_makes_the_store_leaves_none(tmp_path, monkeypatch, caplog):
    killed_half_way(tmp_path, CODE)
    assert not (tmp_path / "mlflow" / "mlflow.db").exists()
    monkeypatch.chdir(tmp_path)
    with TrackedRun(name="next"):
        pass
    assert finished_runs(tmp_path) == ["next"]  # and the killed one, closed as FAILED
    assert sorted(p.name for p in (tmp_path / "mlflow").iterdir()) == [".opening", "artifacts", "mlflow.db"]
    assert "half made" not in caplog.text


def test_a_file_that_is_no_database_is_told_and_stays(tmp_path, monkeypatch, caplog):
    (tmp_path / "mlflow").mkdir()
    (tmp_path / "mlflow" / "mlflow.db").write_bytes(b"not a database " * 100)
    monkeypatch.chdir(tmp_path)
    with TrackedRun(name="waits"):
        pass
    assert "'mlflow.db' is not an SQLite database, or is damaged: move it away" in caplog.text
    (tmp_path / "mlflow" / "mlflow.db").rename(tmp_path / "away")
    assert send_waiting().runs == ("waits",)


def test_the_first_run_of_a_folder_waits_and_is_sent_to_a_store_that_is_then_made(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    with TrackedRun(name="quick", lazily=True) as run:
        pass
    assert not (tmp_path / "mlflow").exists()
    say_run(run.run_id)
    assert send_waiting().runs == ("quick",)
    say_run(run.run_id)
    waits, shown = capsys.readouterr().out.splitlines()
    assert "`clearmargin runs send` sends it" in waits and "clearmargin review shows it" in shown
    assert finished_runs(tmp_path) == ["quick"]

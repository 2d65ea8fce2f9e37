"""The embedded store, taken up by several processes at once."""

import subprocess
import sys

import mlflow
from children import LIMIT_S

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

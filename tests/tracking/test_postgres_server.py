"""A group's server: MLflow before a real Postgres, and two runs that write at once."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from postgres import INSTALL, find_postgres, running_postgres

from clearmargin import runs
from clearmargin.tracking.review import serving
from clearmargin.tracking.store import open_client

WRITER = """
import sys
import numpy as np
from clearmargin.tracking.run import TrackedRun
with TrackedRun(name=sys.argv[1]) as run:
    for step in range(100):
        run.log_metrics({"train/loss": float(step), "headline/pq": step / 100}, step=step)
    run.log_text("x" * 1000, "notes.txt")
    run.log_image("picture", np.zeros((8, 8, 3), np.uint8), step=1)
print(run.run_id)
"""


@pytest.mark.slow
def test_two_runs_write_at_once_to_a_server_on_postgres(tmp_path, monkeypatch):
    programs = find_postgres()
    if programs is None:
        pytest.skip(f"no Postgres here: {INSTALL}")
    monkeypatch.chdir(tmp_path)
    with running_postgres(programs) as url:
        store = url.replace("postgresql://", "postgresql+pg8000://")
        with serving(0, uri=store) as server:
            kept = {**os.environ, "MLFLOW_TRACKING_URI": server}
            kept["PYTHONPATH"] = str(Path(__file__).parents[2] / "pipeline")
            writers = [
                subprocess.Popen(
                    [sys.executable, "-W", "ignore", "-c", WRITER, name],
                    env=kept,
                    stdout=subprocess.PIPE,
                    text=True,
                )
                for name in ("first", "second")
            ]
            ids = [writer.communicate(timeout=180)[0].strip() for writer in writers]
            assert all(writer.returncode == 0 for writer in writers)
            client = open_client(server)
            for run_id, name in zip(ids, ("first", "second"), strict=True):
                run = client.get_run(run_id)
                assert (run.info.run_name, run.info.status) == (name, "FINISHED")
                values = [m.value for m in client.get_metric_history(run_id, "train/loss")]
                assert sorted(values) == [float(k) for k in range(100)]  # none lost, none twice
                fetched = runs.load(run_id, uri=server).file("notes.txt")
                assert fetched.read_text() == "x" * 1000

"""`review` as a user meets it: a URL that answers, and Ctrl-C that leaves nothing behind."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

CHILD = """
import logging, sys
logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
from clearmargin.tracking.review import review
review(browser=False)
print("left", flush=True)
"""


def test_review_serves_the_store_of_the_working_folder_until_ctrl_c(made_store: Path, tmp_path: Path) -> None:
    (tmp_path / "mlflow").mkdir()
    (tmp_path / "mlflow" / "mlflow.db").write_bytes(made_store.read_bytes())
    root = Path(__file__).parents[2]
    environment = {k: v for k, v in os.environ.items() if k != "MLFLOW_TRACKING_URI"}
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-u", "-c", CHILD],
        cwd=tmp_path,
        env={**environment, "PYTHONPATH": str(root / "pipeline")},
        stdout=subprocess.PIPE,
        text=True,
    )
    if process.stdout is None:
        pytest.fail("no pipe")
    with process.stdout as output:
        said = output.readline()
        url = re.search(r"http://127\.0\.0\.1:\d+", said)
        assert url, said
        with urllib.request.urlopen(url[0], timeout=20) as answer:
            assert b"MLflow" in answer.read()
        process.send_signal(signal.SIGINT)
        assert output.readline() == "left\n"
    assert process.wait(30) == 0
    with pytest.raises(OSError), urllib.request.urlopen(url[0], timeout=5):
        pass

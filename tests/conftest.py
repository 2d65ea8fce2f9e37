"""What all tests share: the real data, where they are, and a home and a store that are not the user's."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

# A job in the background inherits SIGINT as ignored, and so would the processes that tests send Ctrl-C to.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def data_root() -> Path:
    """The folder of real data sets; tests that need it are skipped where it is absent."""
    default = Path(__file__).parents[2] / "shared" / "data"
    root = Path(os.environ.get("CLEARMARGIN_DATA", default)).resolve()
    if not root.is_dir():
        pytest.skip("no real data here: set CLEARMARGIN_DATA to the folder that holds them")
    os.environ["CLEARMARGIN_DATA"] = str(root)
    return root


@pytest.fixture(autouse=True, scope="session")
def private_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Keep case ids and the crosswalk of tests out of the user's home."""
    home = tmp_path_factory.mktemp("session-home")
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("CLEARMARGIN_HOME", str(home))
        patched.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{home / 'mlflow.db'}")
        yield home


@pytest.fixture(autouse=True, scope="module")
def room_on_disk(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Remove what a file's tests wrote, unless one of them failed: all files together write 10 GB."""
    base, failed = tmp_path_factory.getbasetemp(), request.session.testsfailed
    yield
    if request.session.testsfailed == failed:
        for folder in base.iterdir():
            if not folder.name.startswith("session-"):
                shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(autouse=True, scope="module")
def no_runs_waiting() -> Iterator[None]:
    """Let no run of another file's tests wait to be sent."""
    yield
    if "CLEARMARGIN_HOME" in os.environ:
        shutil.rmtree(Path(os.environ["CLEARMARGIN_HOME"]) / "spool", ignore_errors=True)


# A file's tests run in one process, so that the longest files begin first and no process waits for them at the end.
# `--no-loadscope-reorder` has pytest-xdist keep this order.
LONGEST = (
    "test_train.py", "test_select.py", "test_faults.py", "test_cli.py", "test_export.py", "test_canaries.py",
    "test_tracked_verbs.py", "test_guarantees.py", "test_calibrate.py", "test_store.py", "test_listen.py",
    "test_mask_rcnn_3d.py", "test_bundle.py", "test_networks.py", "test_landmarks_verbs.py", "test_archived.py",
    "test_parting.py", "test_crossvalidate.py", "test_semantic_cc_3d.py", "test_jpeg.py", "test_batch_cli.py",
    "test_batch_archives.py", "test_dicomweb.py", "test_reviewed_runs.py", "test_security.py", "test_tutorial.py",
    "test_monai_notebook.py", "test_hostile.py", "test_ohif.py",
)  # fmt: skip
RANK = {name: rank for rank, name in enumerate(LONGEST)}


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: RANK.get(item.path.name, len(RANK)))

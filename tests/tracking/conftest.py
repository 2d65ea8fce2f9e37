"""A real SQLite store, and a real server on it; nothing is faked but the network that segments."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from clearmargin.tracking.review import serving
from clearmargin.tracking.store import open_client


@pytest.fixture(scope="session")
def made_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store whose tables are made; making them takes seconds, copying nothing."""
    folder = tmp_path_factory.mktemp("store")
    open_client(f"sqlite:///{folder}/mlflow.db")
    return folder / "mlflow.db"


@pytest.fixture
def store(made_store: Path, tmp_path: Path) -> str:
    """The URI of an empty store of its own."""
    folder = tmp_path / "mlflow"
    folder.mkdir()
    shutil.copy(made_store, folder / "mlflow.db")
    return f"sqlite:///{folder}/mlflow.db"


@pytest.fixture(scope="session")
def server(made_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a server with an empty store; it is gone after the session."""
    folder = tmp_path_factory.mktemp("served")
    shutil.copy(made_store, folder / "mlflow.db")
    with serving(uri=f"sqlite:///{folder}/mlflow.db") as url:
        yield url


@pytest.fixture(autouse=True)
def private_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CLEARMARGIN_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return tmp_path / "home"


@pytest.fixture
def folder_of_model(tmp_path: Path) -> Path:
    """A model folder as far as tracking looks into one."""
    folder = tmp_path / "Doe^John" / "model"
    folder.mkdir(parents=True)
    (folder / "model.yaml").write_text("threshold: 0.5\n")
    (folder / "weights.safetensors").write_bytes(b"\x02\x00\x00\x00\x00\x00\x00\x00{}")
    return folder

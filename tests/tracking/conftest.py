"""A real SQLite store, and a real server on it; nothing is faked but the network that segments."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from children import LIMIT_S, child, read_line
from reviewing import REVIEW

from clearmargin.tracking.store import open_client


@pytest.fixture(scope="session")
def made_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store whose tables are made; making them takes seconds, copying nothing."""
    folder = tmp_path_factory.mktemp("session-store")
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
    """The URL of a server with an empty store, started by `review` and ended by Ctrl-C as a user would."""
    folder = tmp_path_factory.mktemp("session-reviewed")
    (folder / "mlflow").mkdir()
    shutil.copy(made_store, folder / "mlflow" / "mlflow.db")
    kept = {k: v for k, v in os.environ.items() if k != "MLFLOW_TRACKING_URI"}
    with child(
        [sys.executable, "-W", "ignore", "-u", "-c", REVIEW],
        cwd=folder,
        env={**kept, "PYTHONPATH": str(Path(__file__).parents[2] / "pipeline")},
        stdout=subprocess.PIPE,
    ) as process:
        try:
            said = read_line(process.stdout)
            url = re.search(r"http://127\.0\.0\.1:\d+", said)
            if url is None:
                pytest.fail(f"review said {said!r}")
            yield url[0]
        finally:
            process.send_signal(signal.SIGINT)
        assert read_line(process.stdout) == "left\n"
        assert process.wait(LIMIT_S) == 0
    port = int(url[0].rsplit(":", 1)[1])
    with pytest.raises(OSError, match="refused"):
        socket.create_connection(("127.0.0.1", port), timeout=5).close()


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


class Relay:
    """A TCP port that passes on to a server while it is open, and refuses connections otherwise."""

    def __init__(self, target: int) -> None:
        self._target = target
        self._listener: socket.socket | None = None
        self._open: list[socket.socket] = []
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = int(probe.getsockname()[1])

    def open(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", self.port))
        threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()

    def close(self) -> None:
        if self._listener is not None:
            with contextlib.suppress(OSError):
                self._listener.shutdown(socket.SHUT_RDWR)  # wakes the accepting thread
            self._listener.close()
            self._listener = None
        for end in self._open:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()
        self._open.clear()

    def _accept(self, listener: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = listener.accept()
                far = socket.create_connection(("127.0.0.1", self._target))
                self._open += [near, far]
                for pair in ((near, far), (far, near)):
                    threading.Thread(target=_pass_on, args=pair, daemon=True).start()


def _pass_on(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)


@pytest.fixture
def relay(server: str) -> Iterator[Relay]:
    """A relay to the server, closed at first."""
    made = Relay(int(server.rsplit(":", 1)[1]))
    yield made
    made.close()

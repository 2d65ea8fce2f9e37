"""The tracking UI on the right store."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.parse
import urllib.request
import webbrowser
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

from clearmargin.errors import ConfigError
from clearmargin.privacy import home
from clearmargin.tracking.ending import restore_sigterm, turn_sigterm_into_exception
from clearmargin.tracking.sending import send_waiting
from clearmargin.tracking.spool import spools, without_login
from clearmargin.tracking.store import (
    EXPERIMENT,
    VIEW_KEY,
    artifact_folder,
    make_at_need,
    set_quiet,
    tracking_uri,
)

__all__ = ["review", "runs_page", "serving"]

_log = logging.getLogger(__name__)
_START_LIMIT_S = 120.0  # a first start makes or migrates the store's tables: up to 30 s
_STOP_LIMIT_S = 10.0
_USUAL_PORT = 5000  # MLflow's own


def review(port: int | None = None, *, uri: str | None = None, browser: bool = True) -> None:
    """Show the tracking UI until Ctrl-C; the URL is logged, and opened in a browser if there is one.

    Runs that wait for the store are sent first. A store that is a server already (``http...``) has its own UI: its URL
    is opened, and nothing is started.

    Args:
        port: On 127.0.0.1; 0 for any free one; by default 5000, or any if that is taken.
        uri: The store; by default :func:`~clearmargin.tracking.store.tracking_uri`.
        browser: Whether to open one.

    Raises:
        ConfigError: If the port is taken or the server does not start.
    """
    store = uri or tracking_uri()
    if any(one.store == without_login(store) for one in spools()):
        send_waiting(store)
    if store.startswith(("http://", "https://")):
        _log.info("the tracking server shows its own pages")
        if browser:
            webbrowser.open(runs_page(store))
        return
    with serving(port, uri=store) as url, contextlib.suppress(KeyboardInterrupt):
        page = runs_page(url)
        _log.info("runs and models: %s (Ctrl-C ends it)", page)
        if browser and _has_display():
            webbrowser.open(page)
        while True:
            time.sleep(3600)


def runs_page(server: str) -> str:
    """Return the address of our runs at a tracking server, in MLflow's pages for training; its start page without runs.

    MLflow 3 opens its pages for language models in a browser that is new to it, unless the address says otherwise.
    """
    name = urllib.parse.quote(EXPERIMENT)
    try:
        with urllib.request.urlopen(
            f"{server}/api/2.0/mlflow/experiments/get-by-name?experiment_name={name}", timeout=10
        ) as answer:
            number = json.load(answer)["experiment"]["experiment_id"]
    except (OSError, ValueError, KeyError):  # no such experiment yet, or a server that wants a login
        return server
    return f"{server}/#/experiments/{number}/runs?workflowType=machine_learning&viewStateShareKey={VIEW_KEY}"


@contextlib.contextmanager
def serving(port: int | None = None, *, uri: str | None = None) -> Iterator[str]:
    """Serve a database store on 127.0.0.1 while the block runs; yield the URL.

    The server and all its workers are gone when the block is left, however it is left.

    Raises:
        ConfigError: If the port is taken or the server does not start.
    """
    store = uri or tracking_uri()
    if port is None:
        port = _USUAL_PORT if _is_free(_USUAL_PORT) else 0
    port = port or _free_port()
    if not _is_free(port):
        raise ConfigError(f"port {port} is taken: name another, or 0 for a free one")
    url = f"http://127.0.0.1:{port}"
    before = turn_sigterm_into_exception()  # else the server would outlive a `kill` of this process
    process = _start_server(store, port)
    try:
        _wait_until_it_answers(process, url)
        yield url
    finally:
        _stop(process)
        restore_sigterm(before)


def _start_server(store: str, port: int) -> subprocess.Popen[bytes]:
    set_quiet()
    if find_spec("mlflow") is None:  # the server is a process of its own, which would end with a traceback
        raise ModuleNotFoundError("No module named 'mlflow'", name="mlflow")
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--workers", "1", "--backend-store-uri", store]
    folder = artifact_folder(store)
    if folder is not None:
        make_at_need(store)
        command += ["--artifacts-destination", str(folder)]
    # No job workers: nothing here uses them, and each is a process.
    environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    environment.pop("MLFLOW_TRACKING_URI", None)
    with _log_file().open("wb") as output:  # private: it can hold the store's address and paths
        return subprocess.Popen(
            command,
            env=environment,
            cwd=folder.parent if folder is not None else home(),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C reaches this process alone, which then ends the whole group
        )


def _log_file() -> Path:
    return home() / "review.log"


def _wait_until_it_answers(process: subprocess.Popen[bytes], url: str) -> None:
    deadline = time.monotonic() + _START_LIMIT_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise ConfigError(
                f"the tracking server ended at once (exit code {process.returncode}): is the store's address "
                f"right, and its database driver installed? See {_log_file().name} in CLEARMARGIN_HOME"
            )
        if _answers(url):
            return
        time.sleep(0.2)
    raise ConfigError(f"the tracking server did not answer within {_START_LIMIT_S:.0f} s")


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=2) as answer:
            return bool(answer.status == 200)
    except OSError:  # URLError is one
        return False


def _stop(process: subprocess.Popen[bytes]) -> None:
    """End the server's whole process group: asked first, killed after a while."""
    for sign in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, sign)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_STOP_LIMIT_S)
            break
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def _has_display() -> bool:
    return sys.platform != "linux" or bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))

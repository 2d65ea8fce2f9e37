"""A real Postgres on this machine for the length of a test session."""

import contextlib
import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

INSTALL = "apt-get install postgresql"


def find_postgres() -> Path | None:
    """The folder of initdb and pg_ctl; None if there is none."""
    places = [*sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)]
    found = shutil.which("initdb")
    places += [Path(found).parent] if found else []
    return next((p for p in places if (p / "initdb").is_file() and (p / "pg_ctl").is_file()), None)


@contextlib.contextmanager
def running_postgres(programs: Path) -> Iterator[str]:
    """The URL of a fresh server on a free port of the loopback; it does not run as root, so neither does this."""
    as_user = (
        ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"] if os.getuid() == 0 else []
    )
    folder = Path(tempfile.mkdtemp(prefix="pg-"))
    if as_user:
        shutil.chown(folder, "postgres", "postgres")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    data = folder / "data"
    subprocess.run(
        [*as_user, programs / "initdb", "-D", data, "-U", "tester", "-A", "trust", "--no-sync"],
        check=True,
        capture_output=True,
        cwd=folder,
        timeout=120,
    )
    options = f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={folder} -c fsync=off"
    control = [*as_user, programs / "pg_ctl", "-D", data, "-w"]
    with (folder / "log").open("w") as log:  # it is inherited: a pipe would never close
        subprocess.run(
            [*control, "-o", options, "start"], check=True, stdout=log, stderr=log, cwd=folder, timeout=120
        )
    try:
        time.sleep(0.2)
        yield f"postgresql://tester@127.0.0.1:{port}/postgres"
    finally:
        subprocess.run([*control, "-m", "immediate", "stop"], check=False, capture_output=True, cwd=folder)
        shutil.rmtree(folder, ignore_errors=True)


def empty(url: str) -> None:
    """Remove a ledger's tables."""
    from sqlalchemy import create_engine, text

    engine = create_engine(f"postgresql+pg8000://{url.partition('://')[2]}")
    with engine.begin() as connection:
        for table in ("items", "counts", "kept", "sent", "places"):
            connection.execute(text(f"DROP TABLE IF EXISTS {table}"))
    engine.dispose()

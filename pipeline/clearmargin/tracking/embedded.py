"""The SQLite store of a working folder: made under another name, and put in its place whole.

MLflow makes its tables in some 50 steps over seconds and cannot go on with what a killed process left of them.
"""

from __future__ import annotations

import fcntl
import logging
import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Literal

from clearmargin.errors import InputError

__all__ = ["ensure_store"]

_log = logging.getLogger(__name__)
_BESIDE = ("", "-journal", "-wal", "-shm")  # SQLite's own files of a database
_KEPT = ("runs", "registered_models")


def ensure_store(database: Path, artifacts: Path) -> None:
    """Make an MLflow store if there is none; one that was left half made is set aside, with a warning.

    Processes that start at once make it one after the other, so the second finds it made.

    Args:
        database: The SQLite file.
        artifacts: The folder for the files of runs.

    Raises:
        InputError: The file is not an SQLite database, or a damaged one.
        OSError: The folder cannot be written.
    """
    artifacts.mkdir(parents=True, exist_ok=True)
    with _locked(database.parent / ".opening"):
        state = _state_of(database)
        if state == "whole":
            return
        if state == "half":
            aside = _free_name(database)
            for end in _BESIDE[::-1]:  # the database last: a kill in between leaves it to the next process
                if database.with_name(f"{database.name}{end}").exists():
                    database.with_name(f"{database.name}{end}").rename(aside.with_name(f"{aside.name}{end}"))
            _log.warning(
                "the tracking store '%s' was left half made by a process that was stopped: a new one is made. The old "
                "one lies beside it as '%s'; it holds no run and can be removed",
                database.name,
                aside.name,
            )
        _make(database, artifacts)


@contextmanager
def _locked(file: Path) -> Iterator[None]:
    with file.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _state_of(database: Path) -> Literal["none", "half", "whole"]:
    """Return what lies there. MLflow's last step is an experiment: tables without one, and without a run, are half."""
    if not database.exists():
        return "none"
    try:
        with closing(sqlite3.connect(database)) as connection:
            tables = {
                name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
            }
            if not tables:
                return "none"
            if "experiments" not in tables:
                return "whole"  # of another program: MLflow adds its tables, or says why not
            for table in ("experiments", *(name for name in _KEPT if name in tables)):
                if connection.execute(f"SELECT 1 FROM {table} LIMIT 1").fetchone():
                    return "whole"
    except sqlite3.OperationalError:  # in use, or not to be opened: MLflow waits, or says why
        return "whole"
    except sqlite3.DatabaseError:
        raise InputError(
            f"'{database.name}' is not an SQLite database, or is damaged: move it away, or name another store with "
            "MLFLOW_TRACKING_URI"
        ) from None
    return "half"


def _free_name(database: Path) -> Path:
    number = 1
    while (aside := database.with_name(f"{database.name}.half-made-{number}")).exists():
        number += 1
    return aside


def _make(database: Path, artifacts: Path) -> None:
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    draft = database.with_name(f".{database.name}.part")
    for end in _BESIDE:  # by a process that was killed: the lock is ours
        draft.with_name(f"{draft.name}{end}").unlink(missing_ok=True)
    with _unsafe_and_fast(draft):
        SqlAlchemyStore(f"sqlite:///{draft.as_posix()}", artifacts.as_uri()).engine.dispose()
    with draft.open("rb") as written:
        os.fsync(written.fileno())
    draft.replace(database)


@contextmanager
def _unsafe_and_fast(draft: Path) -> Iterator[None]:
    """Have SQLite wait for no disk while the draft is made: it may be lost, and MLflow's steps are some 200 commits."""
    from sqlalchemy import Engine, event

    def connected(connection: sqlite3.Connection, _: object) -> None:
        file = connection.execute("PRAGMA database_list").fetchone()[2]
        if file and draft.exists() and draft.samefile(file):  # not a store that another thread opens
            connection.execute("PRAGMA synchronous = OFF")
            connection.execute("PRAGMA journal_mode = MEMORY")

    event.listen(Engine, "connect", connected)
    try:
        yield
    finally:
        event.remove(Engine, "connect", connected)

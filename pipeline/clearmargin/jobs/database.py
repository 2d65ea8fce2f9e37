"""The ledger's database: SQLite in a private file, or Postgres by URL, and its tables."""

from __future__ import annotations

import errno
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from clearmargin.errors import ConfigError
from clearmargin.files import draft_of, refusal_to_write

__all__ = ["disk_refusal", "forget", "open_engine", "table_statements", "what_is_wrong"]


def table_statements(*, postgres: bool) -> list[str]:
    """Return the statements that make tables and indexes, if they are not there."""
    serial = "BIGSERIAL" if postgres else "INTEGER"
    real = "DOUBLE PRECISION" if postgres else "REAL"
    return [
        f"CREATE TABLE IF NOT EXISTS items (id {serial} PRIMARY KEY, key TEXT NOT NULL UNIQUE, "
        "recipe TEXT NOT NULL, case_id TEXT NOT NULL, source TEXT NOT NULL, state TEXT NOT NULL, "
        "owner TEXT NOT NULL DEFAULT '', "
        f"expires {real} NOT NULL DEFAULT 0, not_before {real} NOT NULL DEFAULT 0, "
        "tries INTEGER NOT NULL DEFAULT 0, "
        "reason TEXT NOT NULL DEFAULT '', kind TEXT NOT NULL DEFAULT '', folder TEXT NOT NULL DEFAULT '', "
        "files TEXT NOT NULL DEFAULT '{}', instances INTEGER NOT NULL DEFAULT 0, "
        "warned INTEGER NOT NULL DEFAULT 0, "
        f"seconds {real} NOT NULL DEFAULT 0, predecessor INTEGER, current INTEGER NOT NULL DEFAULT 0, "
        f"made {real} NOT NULL, changed {real} NOT NULL)",
        "CREATE INDEX IF NOT EXISTS items_due ON items (recipe, not_before, id) WHERE state = 'pending'",
        "CREATE INDEX IF NOT EXISTS items_leased ON items (owner, expires) WHERE state = 'leased'",
        "CREATE INDEX IF NOT EXISTS items_bad ON items (kind) WHERE state IN ('failed', 'refused')",
        "CREATE INDEX IF NOT EXISTS items_case ON items (case_id)",
        # The database itself refuses a second current result of a case.
        "CREATE UNIQUE INDEX IF NOT EXISTS items_current ON items (case_id) WHERE current = 1",
        "CREATE TABLE IF NOT EXISTS counts (recipe TEXT NOT NULL, state TEXT NOT NULL, n INTEGER NOT NULL, "
        "PRIMARY KEY (recipe, state))",
        "CREATE TABLE IF NOT EXISTS kept (name TEXT PRIMARY KEY, value TEXT NOT NULL)",
        "CREATE TABLE IF NOT EXISTS places (path TEXT PRIMARY KEY, stat TEXT NOT NULL, inputs TEXT NOT NULL)",
        "CREATE TABLE IF NOT EXISTS sent (item INTEGER NOT NULL, uid TEXT NOT NULL, digest TEXT NOT NULL, "
        f"destination TEXT NOT NULL, made {real} NOT NULL, PRIMARY KEY (uid, destination))",
        "CREATE INDEX IF NOT EXISTS sent_item ON sent (item, destination)",
    ]


def open_engine(place: str) -> Any:
    """Return SQLAlchemy's engine for a file, which is made with mode 0600, or a ``postgresql://`` URL.

    Raises:
        ConfigError: The driver is missing, the file cannot be made, or the URL is of another database.
        OSError: The disk is full.
    """
    try:
        from sqlalchemy import create_engine, event
    except ImportError:
        raise ConfigError("the ledger needs SQLAlchemy: pip install 'clearmargin[batch]'") from None
    if place.startswith(("postgresql://", "postgres://")):
        try:
            import pg8000  # noqa: F401
        except ImportError:
            raise ConfigError("a ledger in Postgres needs pg8000: pip install 'clearmargin[batch]'") from None
        return create_engine(f"postgresql+pg8000://{place.partition('://')[2]}", pool_pre_ping=True)
    if "://" in place:
        raise ConfigError(
            f"expected a file or postgresql://..., got '{place.partition('://')[0]}://...' as ledger"
        )
    path = Path(place)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))  # it holds paths and UIDs
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise ConfigError(f"the ledger '{path}' cannot be made: {os.strerror(error.errno or 0)}") from None
    engine = create_engine(
        f"sqlite:///{path.absolute()}", connect_args={"timeout": 60, "isolation_level": None}
    )

    @event.listens_for(engine, "connect")
    def _settings(connection: Any, _: Any) -> None:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = NORMAL")

    @event.listens_for(engine, "begin")
    def _begin(connection: Any) -> None:
        # The lock is taken at once: a reader that becomes a writer midway would be refused, not made to wait.
        reading = connection.get_execution_options().get("reading")
        connection.exec_driver_sql("BEGIN" if reading else "BEGIN IMMEDIATE")

    return engine


def disk_refusal(place: str) -> OSError | None:
    """Return the system's error if the disk of a ledger's file takes no more: SQLite has other words for that."""
    if "://" in place:
        return None
    probe = draft_of(Path(place))
    try:
        return refusal_to_write(probe)
    finally:
        with suppress(OSError):
            probe.unlink(missing_ok=True)


def forget(place: str) -> None:
    """Remove a ledger's file that could not be made whole, and what SQLite put beside it."""
    for end in ("-wal", "-shm", ""):
        with suppress(OSError):
            Path(f"{place}{end}").unlink(missing_ok=True)


def what_is_wrong(place: str) -> str:
    """Return the way out if a ledger cannot be opened; it shows neither user nor password."""
    if "://" in place:
        return "check the address, the user and the password of the ledger's database"
    return f"'{place}' is not a ledger, or lies on a disk that cannot lock files (network disks cannot)"

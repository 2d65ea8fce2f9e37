"""The ledger: what is to be done, by whom, and what came of it. SQLite on one machine, Postgres for several.

An item is one input under one recipe. Its key is made of content, weights, configuration and software, so that the
same work is one row however often it is asked for. Nothing is decided by whether a file exists.
"""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from clearmargin.errors import ConfigError, InputError

__all__ = ["Item", "Ledger", "NewItem", "Outcome", "State", "owner_here", "owner_is_alive"]

State = Literal["pending", "leased", "done", "failed", "refused", "withdrawn"]
"""``failed``: an error that another try may cure. ``refused``: the input's own fault; another try gives the same."""

_SCHEMA = 1
_BATCH = 1000  # rows in one transaction
_AT_ONCE = 200  # rows in one statement


@dataclass(frozen=True, kw_only=True)
class NewItem:
    """An input to be worked on.

    Attributes:
        key: SHA-256 of its content and of the recipe.
        recipe: Digest of the recipe.
        case_id: Its case id.
        source: How it is read, as plain data. Private: it holds paths or UIDs.
    """

    key: str
    recipe: str
    case_id: str
    source: Mapping[str, Any] = field(repr=False)


@dataclass(frozen=True, kw_only=True)
class Item(NewItem):
    """A row of the ledger.

    Attributes:
        id: Its number, in the order of arrival.
        state: What it is in.
        owner: Who works on it; "" if nobody.
        tries: How often it was begun.
        reason: Why it failed or was refused, without identity; "" otherwise.
        kind: The reason's kind: the error's type.
        folder: Where its results lie, below the output folder; "" if there are none.
        files: Name to SHA-256 of its results.
        predecessor: The item whose place it takes, as the series has grown; None if there is none.
        current: Whether its results are the ones that count for its case.
        seconds: How long the last try took.
    """

    id: int
    state: State
    owner: str = ""
    tries: int = 0
    reason: str = ""
    kind: str = ""
    folder: str = ""
    files: Mapping[str, str] = field(default_factory=dict)
    predecessor: int | None = None
    current: bool = False
    seconds: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of an item.

    Attributes:
        state: ``done``, ``failed`` or ``refused``.
        reason: Why not, without identity.
        kind: The error's type.
        folder: Where its results lie, below the output folder.
        files: Name to SHA-256 of its results.
        instances: How many instances were detected.
        warned: Whether the case differs from what the model was trained or calibrated on.
        seconds: How long it took.
        again_in_s: Of a failed one: try again so many seconds from now; None not at all.
        sent: SOPInstanceUID, SHA-256 and destination of each object that a destination confirmed.
    """

    state: Literal["done", "failed", "refused"]
    reason: str = ""
    kind: str = ""
    folder: str = ""
    files: Mapping[str, str] = field(default_factory=dict)
    instances: int = 0
    warned: bool = False
    seconds: float = 0.0
    again_in_s: float | None = None
    sent: tuple[tuple[str, str, str], ...] = ()


class Ledger:
    """A ledger in a SQLite file, or in Postgres by URL.

    Any number of processes may use it at once; a Ledger itself goes to none of them: each opens its own.
    """

    def __init__(self, place: Path | str) -> None:
        """Open the ledger, and make it if it is not there.

        Args:
            place: A file on a local disk (mode 0600), or ``postgresql://USER:PASSWORD@HOST/DATABASE``.

        Raises:
            ConfigError: It cannot be opened, is of another version, or the driver is missing.
        """
        self.place = str(place)
        self._engine = _engine(self.place)
        self._postgres = self._engine.dialect.name == "postgresql"
        self._prepare()

    def close(self) -> None:
        """Close all connections."""
        self._engine.dispose()

    def add(self, items: Iterable[NewItem]) -> tuple[int, int]:
        """Add items that are not there yet; return how many are new, and how many were known.

        An item of a case that has earlier results under another key names the newest of these as its predecessor.
        Keys are inserted in order, in batches: in random order a million of them take a minute and a half.
        """
        rows = sorted({item.key: item for item in items}.values(), key=lambda item: item.key)
        new = 0
        for start in range(0, len(rows), _BATCH):
            with self._write() as do:
                made: list[str] = []
                for first in range(start, min(start + _BATCH, len(rows)), _AT_ONCE):
                    made += self._insert(do, rows[first : min(first + _AT_ONCE, start + _BATCH)])
                for recipe in sorted(set(made)):
                    self._count(do, recipe, pending=made.count(recipe))
            new += len(made)
        return new, len(rows) - new

    @staticmethod
    def _insert(do: Any, items: Sequence[NewItem]) -> list[str]:
        """Insert items in one statement; return the recipes of those that were not there."""
        values: dict[str, Any] = {"now": time.time()}
        rows = []
        for k, item in enumerate(items):
            rows.append(
                f"(:key{k}, :recipe{k}, :case{k}, :source{k}, 'pending', :now, :now, (SELECT MAX(id) FROM items WHERE "
                f"case_id = :case{k} AND state = 'done'))"
            )
            source = json.dumps(item.source, sort_keys=True)
            values |= {
                f"key{k}": item.key,
                f"recipe{k}": item.recipe,
                f"case{k}": item.case_id,
                f"source{k}": source,
            }
        inserted = do(
            "INSERT INTO items (key, recipe, case_id, source, state, made, changed, predecessor) VALUES "
            f"{', '.join(rows)} ON CONFLICT (key) DO NOTHING RETURNING recipe",
            **values,
        )
        return [row[0] for row in inserted]

    def claim(self, owner: str, *, recipe: str, lease_s: float, now: float | None = None) -> Item | None:
        """Take the next pending item of a recipe for ``lease_s`` seconds; None if nothing is due now."""
        now = time.time() if now is None else now
        lock = " FOR UPDATE SKIP LOCKED" if self._postgres else ""
        with self._write() as do:
            row = (
                do(
                    "UPDATE items SET state = 'leased', owner = :owner, expires = :expires, tries = tries + 1, "
                    "changed = :now WHERE id = (SELECT id FROM items WHERE state = 'pending' AND recipe = :recipe AND "
                    "not_before <= :now "
                    f"ORDER BY not_before, id LIMIT 1{lock}) RETURNING *",
                    owner=owner,
                    recipe=recipe,
                    expires=now + lease_s,
                    now=now,
                )
                .mappings()
                .first()
            )
            if row is None:
                return None
            self._count(do, recipe, pending=-1, leased=1)
            return _item(row)

    def renew(self, owner: str, *, lease_s: float) -> None:
        """Extend all of an owner's leases: it is still alive."""
        with self._write() as do:
            do(
                "UPDATE items SET expires = :expires WHERE state = 'leased' AND owner = :owner",
                expires=time.time() + lease_s,
                owner=owner,
            )

    def finish(self, item: Item, outcome: Outcome) -> str | None:
        """Record what became of a leased item; its results become the current ones of its case, in the same step.

        Returns:
            The folder of the case's current results, "" if it has none; None if the lease was lost meanwhile: another
            process has the item, and nothing is changed.
        """
        now = time.time()
        state = "pending" if outcome.state == "failed" and outcome.again_in_s is not None else outcome.state
        with self._write() as do:
            changed = do(
                "UPDATE items SET state = :state, owner = '', reason = :reason, kind = :kind, folder = :folder, "
                "files = :files, instances = :instances, warned = :warned, seconds = :seconds, "
                "not_before = :later, changed = :now "
                "WHERE id = :id AND state = 'leased' AND owner = :owner AND tries = :tries",
                state=state,
                reason=outcome.reason,
                kind=outcome.kind,
                folder=outcome.folder,
                files=json.dumps(dict(outcome.files), sort_keys=True),
                instances=outcome.instances,
                warned=int(outcome.warned),
                seconds=outcome.seconds,
                later=now + (outcome.again_in_s or 0.0),
                now=now,
                id=item.id,
                owner=item.owner,
                tries=item.tries,
            ).rowcount
            if not changed:
                return None
            self._count(do, item.recipe, leased=-1, **{state: 1})
            if outcome.state == "done":
                # An older item that ends late does not take the place of a newer one.
                do(
                    "UPDATE items SET current = 0 WHERE case_id = :case AND current = 1 AND id < :id",
                    case=item.case_id,
                    id=item.id,
                )
                do(
                    "UPDATE items SET current = 1 WHERE id = :id AND NOT EXISTS "
                    "(SELECT 1 FROM items WHERE case_id = :case AND current = 1)",
                    id=item.id,
                    case=item.case_id,
                )
                self._note_sent(do, item.id, outcome.sent)
            current = do(
                "SELECT folder FROM items WHERE case_id = :case AND current = 1", case=item.case_id
            ).first()
            return str(current[0]) if current else ""

    def release(self, owner: str) -> int:
        """Give an owner's items back as if they had not been begun: it was asked to stop; return how many."""
        with self._write() as do:
            recipes = do(
                "UPDATE items SET state = 'pending', owner = '', tries = tries - 1 "
                "WHERE state = 'leased' AND owner = :owner RETURNING recipe",
                owner=owner,
            )
            return self._moved(do, [row[0] for row in recipes], "leased", "pending")

    def lost(self, *, most_tries: int) -> int:
        """Take back what is leased by processes that have ended, or whose lease has; return how many items.

        An item that was begun ``most_tries`` times fails: what ends a process each time (memory, a broken decoder) must
        not be tried for ever.
        """
        with self._read() as do:
            owners = [row[0] for row in do("SELECT DISTINCT owner FROM items WHERE state = 'leased'")]
        number = self._lost("expires < :now", most_tries, now=time.time())
        for owner in owners:
            if owner_is_alive(owner) is False:
                number += self._lost("owner = :owner", most_tries, owner=owner)
        return number

    def _lost(self, where: str, most_tries: int, **values: Any) -> int:
        with self._write() as do:
            failed = do(
                "UPDATE items SET state = 'failed', owner = '', kind = 'ProcessEnded', reason = :reason "
                f"WHERE state = 'leased' AND tries >= :most AND {where} RETURNING recipe",
                reason=f"the process that worked on it ended {most_tries} times: too little memory, or it was killed",
                most=most_tries,
                **values,
            )
            number = self._moved(do, [row[0] for row in failed], "leased", "failed")
            back = do(
                f"UPDATE items SET state = 'pending', owner = '' WHERE state = 'leased' AND {where} RETURNING recipe",
                **values,
            )
            return number + self._moved(do, [row[0] for row in back], "leased", "pending")

    def retry(self, *, states: Sequence[State] = ("failed",)) -> int:
        """Make failed items pending again, with their count of tries at 0; return how many."""
        marks = ", ".join(f"'{_known(state)}'" for state in states)
        with self._write() as do:
            ids = do(
                "UPDATE items SET state = 'pending', tries = 0, not_before = 0, reason = '', kind = '', "
                f"changed = :now WHERE state IN ({marks}) RETURNING id",
                now=time.time(),
            )
            number = len(list(ids))
        self.recount()
        return number

    def withdraw(self, ids: Sequence[int]) -> int:
        """Mark results as withdrawn: they are nobody's current ones any more; return how many."""
        number = 0
        for start in range(0, len(ids), _BATCH):
            part = ", ".join(str(int(i)) for i in ids[start : start + _BATCH])
            with self._write() as do:
                number += do(
                    f"UPDATE items SET state = 'withdrawn', current = 0, changed = :now WHERE state = 'done' "
                    f"AND id IN ({part})",
                    now=time.time(),
                ).rowcount
        self.recount()
        return number

    def counts(self, recipe: str | None = None) -> dict[State, int]:
        """Return the number of items in each state, of one recipe or of all: kept counters, not a scan."""
        where = "" if recipe is None else "WHERE recipe = :recipe "
        with self._read() as do:
            rows = do(
                f"SELECT state, SUM(n) FROM counts {where}GROUP BY state",
                **({"recipe": recipe} if recipe else {}),
            )
            known = {row[0]: int(row[1]) for row in rows}
        return {state: known.get(state, 0) for state in get_args(State)}

    def recount(self) -> None:
        """Set the counters anew by a scan."""
        with self._write() as do:
            do("DELETE FROM counts")
            do(
                "INSERT INTO counts (recipe, state, n) SELECT recipe, state, COUNT(*) FROM items "
                "GROUP BY recipe, state"
            )

    def items(self, *states: State, current: bool | None = None, recipe: str | None = None) -> Iterator[Item]:
        """Yield items in order of arrival, of some states or of all."""
        where = [f"state IN ({', '.join(repr(_known(s)) for s in states)})"] if states else []
        where += [] if current is None else [f"current = {int(current)}"]
        where += [] if recipe is None else ["recipe = :recipe"]
        chosen = {} if recipe is None else {"recipe": recipe}
        clause = f"WHERE {' AND '.join(where)} AND" if where else "WHERE"
        last = 0
        while True:
            with self._read() as do:
                rows = list(
                    do(
                        f"SELECT * FROM items {clause} id > :last ORDER BY id LIMIT {_BATCH}",
                        last=last,
                        **chosen,
                    ).mappings()
                )
            if not rows:
                return
            yield from map(_item, rows)
            last = rows[-1]["id"]

    def item(self, key: str) -> Item | None:
        """Return the item of a key; None if there is none."""
        with self._read() as do:
            row = do("SELECT * FROM items WHERE key = :key", key=key).mappings().first()
        return None if row is None else _item(row)

    def totals(self, recipe: str) -> dict[str, float]:
        """Return sums over the done items of a recipe: ``instances``, ``warned`` cases, and seconds of work."""
        with self._read() as do:
            row = do(
                "SELECT SUM(instances), SUM(warned), SUM(seconds) FROM items WHERE state = 'done' AND recipe = :recipe",
                recipe=recipe,
            ).first()
        return dict(
            zip(("instances", "warned", "seconds"), (float(v or 0) for v in row or (0, 0, 0)), strict=True)
        )

    def failures(self, recipe: str | None = None) -> dict[str, int]:
        """Return how many items failed or were refused, by the kind of reason."""
        where = "" if recipe is None else "AND recipe = :recipe "
        with self._read() as do:
            rows = do(
                f"SELECT kind, COUNT(*) FROM items WHERE state IN ('failed', 'refused') {where}"
                "GROUP BY kind ORDER BY 2 DESC",
                **({"recipe": recipe} if recipe else {}),
            )
            return {row[0] or "unknown": int(row[1]) for row in rows}

    def remember(self, name: str, value: Any) -> None:
        """Keep a value under a name, as JSON."""
        with self._write() as do:
            do(
                "INSERT INTO kept (name, value) VALUES (:name, :value) "
                "ON CONFLICT (name) DO UPDATE SET value = excluded.value",
                name=name,
                value=json.dumps(value, sort_keys=True),
            )

    def knows(self, keys: Sequence[str]) -> int:
        """Return how many of these keys there are items of."""
        number = 0
        for start in range(0, len(keys), _AT_ONCE):
            part = {f"k{n}": key for n, key in enumerate(keys[start : start + _AT_ONCE])}
            with self._read() as do:
                marks = ", ".join(f":{name}" for name in part)
                number += int(do(f"SELECT COUNT(*) FROM items WHERE key IN ({marks})", **part).scalar() or 0)
        return number

    def incomplete(self, recipe: str) -> int:
        """Return how many items of a recipe are done but for an output that could not be written."""
        with self._read() as do:
            row = do(
                "SELECT COUNT(*) FROM items WHERE state = 'done' AND reason <> '' AND recipe = :recipe",
                recipe=recipe,
            )
            return int(row.scalar() or 0)

    def redo(self, ids: Sequence[int]) -> int:
        """Make done items pending again, as their files are not as they were written; return how many."""
        number = 0
        for start in range(0, len(ids), _BATCH):
            part = ", ".join(str(int(i)) for i in ids[start : start + _BATCH])
            with self._write() as do:
                number += do(
                    f"UPDATE items SET state = 'pending', tries = 0, not_before = 0, current = 0, changed = :now "
                    f"WHERE state = 'done' AND id IN ({part})",
                    now=time.time(),
                ).rowcount
        self.recount()
        return number

    def recall(self, name: str) -> Any:
        """Return a value that was kept; None if there is none."""
        with self._read() as do:
            row = do("SELECT value FROM kept WHERE name = :name", name=name).first()
        return None if row is None else json.loads(row[0])

    def known_place(self, path: str) -> tuple[str, list[dict[str, Any]]] | None:
        """Return what was kept of a folder of inputs: its listing's digest and what lay in it; None if unknown."""
        with self._read() as do:
            row = do("SELECT stat, inputs FROM places WHERE path = :path", path=path).first()
        return None if row is None else (row[0], json.loads(row[1]))

    def note_place(self, path: str, stat: str, inputs: Sequence[Mapping[str, Any]]) -> None:
        """Keep what lies in a folder of inputs, so that it is not read again while its listing is the same."""
        with self._write() as do:
            do(
                "INSERT INTO places (path, stat, inputs) VALUES (:path, :stat, :inputs) ON CONFLICT (path) DO UPDATE "
                "SET stat = excluded.stat, inputs = excluded.inputs",
                path=path,
                stat=stat,
                inputs=json.dumps(list(inputs)),
            )

    def sent(self, item: Item | None = None) -> list[tuple[int, str, str]]:
        """Return what was confirmed at destinations: item, SOPInstanceUID, destination."""
        clause, values = ("WHERE item = :item", {"item": item.id}) if item else ("", {})
        with self._read() as do:
            rows = do(f"SELECT item, uid, destination FROM sent {clause} ORDER BY item, uid", **values)
            return [(int(r[0]), r[1], r[2]) for r in rows]

    def unsent(self, destination: str, recipe: str) -> list[Item]:
        """Return the current results of a recipe of which a destination has confirmed none."""
        with self._read() as do:
            rows = do(
                "SELECT * FROM items WHERE state = 'done' AND current = 1 AND recipe = :recipe AND NOT EXISTS "
                "(SELECT 1 FROM sent WHERE sent.item = items.id AND sent.destination = :to) ORDER BY id",
                recipe=recipe,
                to=destination,
            ).mappings()
            return [_item(row) for row in rows]

    def note_sent(self, item: Item, sent: Sequence[tuple[str, str, str]]) -> None:
        """Keep what a destination confirmed of a done item: SOPInstanceUID, SHA-256 and destination of each object."""
        with self._write() as do:
            self._note_sent(do, item.id, sent)

    @staticmethod
    def _note_sent(do: Any, item: int, sent: Sequence[tuple[str, str, str]]) -> None:
        for uid, digest, destination in sent:
            do(
                "INSERT INTO sent (item, uid, digest, destination, made) VALUES (:item, :uid, :digest, :to, "
                ":now) ON CONFLICT (uid, destination) DO UPDATE SET item = excluded.item, "
                "digest = excluded.digest, made = excluded.made",
                item=item,
                uid=uid,
                digest=digest,
                to=destination,
                now=time.time(),
            )

    def is_own(self, uid: str) -> bool:
        """Return whether an object was sent from here: a listener must not take it for an input."""
        with self._read() as do:
            return do("SELECT 1 FROM sent WHERE uid = :uid", uid=uid).first() is not None

    def _moved(self, do: Any, recipes: Sequence[str], before: State, after: State) -> int:
        """Count items that went from one state to another; return how many."""
        for recipe in sorted(set(recipes)):
            number = recipes.count(recipe)
            self._count(do, recipe, **{before: -number, after: number})
        return len(recipes)

    @staticmethod
    def _count(do: Any, recipe: str, **changes: int) -> None:
        # In one order, so that two transactions never wait for each other.
        for state, change in sorted(changes.items()):
            if change:
                do(
                    "INSERT INTO counts (recipe, state, n) VALUES (:recipe, :state, :n) "
                    "ON CONFLICT (recipe, state) DO UPDATE SET n = counts.n + excluded.n",
                    recipe=recipe,
                    state=_known(state),
                    n=change,
                )

    @contextmanager
    def _write(self) -> Iterator[Any]:
        from sqlalchemy import text

        with self._engine.begin() as connection:
            yield lambda sql, **values: connection.execute(text(sql), values)

    @contextmanager
    def _read(self) -> Iterator[Any]:
        from sqlalchemy import text

        with self._engine.connect().execution_options(reading=True) as connection:
            yield lambda sql, **values: connection.execute(text(sql), values)

    def _prepare(self) -> None:
        """Make the tables, by one process at a time."""
        from sqlalchemy.exc import DBAPIError

        serial = "BIGSERIAL" if self._postgres else "INTEGER"
        real = "DOUBLE PRECISION" if self._postgres else "REAL"
        statements = [
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
        try:
            with self._write() as do:
                if self._postgres:
                    do("SELECT pg_advisory_xact_lock(7246312)")
                for statement in statements:
                    do(statement)
            if self.recall("schema") is None:
                self.remember("schema", _SCHEMA)
        except DBAPIError as error:
            raise ConfigError(
                f"the ledger cannot be opened: {type(error.orig).__name__}: {_where(self.place)}"
            ) from None
        if self.recall("schema") != _SCHEMA:
            raise ConfigError(
                f"the ledger is of version {self.recall('schema')}, expected {_SCHEMA}: name another one with --ledger"
            )


def owner_here() -> str:
    """Return what a process is called in the ledger: machine, process number and its start, as numbers come again."""
    return f"{socket.gethostname()}:{os.getpid()}:{_started(os.getpid())}"


def owner_is_alive(owner: str) -> bool | None:
    """Return whether an owner's process runs; None if it is on another machine."""
    host, pid, started = [*owner.split(":"), "", ""][:3]
    if host != socket.gethostname() or not pid.isdigit():
        return None
    return _started(int(pid)) == started != ""


def _started(pid: int) -> str:
    """Return the kernel's start time of a process; "" if there is none, or it is dead and not yet collected."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] == "Z" else fields[19]


def _engine(place: str) -> Any:
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


def _where(place: str) -> str:
    if "://" in place:
        return "check the address, the user and the password of the ledger's database"
    return f"'{place}' is not a ledger, or lies on a disk that cannot lock files (network disks cannot)"


def _known(state: str) -> str:
    if state not in get_args(State):
        raise ValueError(f"no state '{state}'")
    return state


def _item(row: Mapping[str, Any]) -> Item:
    try:
        return Item(
            id=int(row["id"]),
            key=row["key"],
            recipe=row["recipe"],
            case_id=row["case_id"],
            source=json.loads(row["source"]),
            state=row["state"],
            owner=row["owner"],
            tries=int(row["tries"]),
            reason=row["reason"],
            kind=row["kind"],
            folder=row["folder"],
            files=json.loads(row["files"]),
            predecessor=row["predecessor"],
            current=bool(row["current"]),
            seconds=float(row["seconds"]),
        )
    except (KeyError, ValueError) as error:
        raise InputError(f"row {row.get('id')} of the ledger is damaged: {type(error).__name__}") from None

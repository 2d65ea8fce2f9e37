"""The ledger: what is to be done, by whom, and what came of it. SQLite on one machine, Postgres for several.

An item is one input under one recipe. Its key is made of content, weights, configuration and software, so that the
same work is one row however often it is asked for. Nothing is decided by whether a file exists.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

from clearmargin.errors import ConfigError
from clearmargin.jobs.database import disk_refusal, forget, open_engine, table_statements, what_is_wrong
from clearmargin.jobs.items import Item, NewItem, Outcome, State, item_of
from clearmargin.owners import owner_is_alive

__all__ = ["Ledger"]

_SCHEMA = 1
_BATCH = 1000  # rows in one transaction
_AT_ONCE = 200  # rows in one statement


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
            OSError: The disk is full; a ledger that was to be made is then not there.
        """
        self.place = str(place)
        is_new = "://" not in self.place and not Path(self.place).exists()
        self._engine = open_engine(self.place)
        self._postgres = self._engine.dialect.name == "postgresql"
        try:
            self._prepare()
        except BaseException:
            self.close()
            if is_new:
                forget(self.place)
            raise

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
            item = item_of(row)
            if item.predecessor is None:
                return item
            folder = do("SELECT folder FROM items WHERE id = :id", id=item.predecessor).scalar()
            return replace(item, predecessor_folder=str(folder or ""))

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
                "not_before = :later, tries = tries - :uncounted, changed = :now "
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
                uncounted=int(not outcome.counted),
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
        return self._change_done(ids, "state = 'withdrawn'")

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

    def oldest(self, recipe: str) -> float | None:
        """Return when the oldest item that has not ended was added, in seconds since 1970; None if all have."""
        with self._read() as do:
            row = do(
                "SELECT MIN(made) FROM items WHERE state IN ('pending', 'leased') AND recipe = :recipe",
                recipe=recipe,
            )
            made = row.scalar()
        return None if made is None else float(made)

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
        parameters = {} if recipe is None else {"recipe": recipe}
        clause = f"WHERE {' AND '.join(where)} AND" if where else "WHERE"
        last = 0
        while True:
            with self._read() as do:
                rows = list(
                    do(
                        f"SELECT * FROM items {clause} id > :last ORDER BY id LIMIT {_BATCH}",
                        last=last,
                        **parameters,
                    ).mappings()
                )
            if not rows:
                return
            yield from map(item_of, rows)
            last = rows[-1]["id"]

    def item(self, key: str) -> Item | None:
        """Return the item of a key; None if there is none."""
        with self._read() as do:
            row = do("SELECT * FROM items WHERE key = :key", key=key).mappings().first()
        return None if row is None else item_of(row)

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
        return self._change_done(ids, "state = 'pending', tries = 0, not_before = 0")

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
            return [item_of(row) for row in rows]

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

    def _change_done(self, ids: Sequence[int], change: str) -> int:
        """Change done items, which are then nobody's current results; return how many."""
        number = 0
        for start in range(0, len(ids), _BATCH):
            part = ", ".join(str(int(i)) for i in ids[start : start + _BATCH])
            with self._write() as do:
                number += do(
                    f"UPDATE items SET {change}, current = 0, changed = :now WHERE state = 'done' AND id IN ({part})",
                    now=time.time(),
                ).rowcount
        self.recount()
        return number

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
        from sqlalchemy.exc import OperationalError

        try:
            with self._engine.begin() as connection:
                yield lambda sql, **values: connection.execute(text(sql), values)
        except OperationalError:
            refusal = disk_refusal(self.place)
            if refusal is not None:
                raise refusal from None
            raise

    @contextmanager
    def _read(self) -> Iterator[Any]:
        from sqlalchemy import text

        with self._engine.connect().execution_options(reading=True) as connection:
            yield lambda sql, **values: connection.execute(text(sql), values)

    def _prepare(self) -> None:
        """Make the tables, by one process at a time."""
        from sqlalchemy.exc import DBAPIError

        try:
            with self._write() as do:
                if self._postgres:
                    do("SELECT pg_advisory_xact_lock(7246312)")
                for statement in table_statements(postgres=self._postgres):
                    do(statement)
            if self.recall("schema") is None:
                self.remember("schema", _SCHEMA)
        except DBAPIError as error:
            raise ConfigError(
                f"the ledger cannot be opened: {type(error.orig).__name__}: {what_is_wrong(self.place)}"
            ) from None
        if self.recall("schema") != _SCHEMA:
            raise ConfigError(
                f"the ledger is of version {self.recall('schema')}, expected {_SCHEMA}: name another one with --ledger"
            )


def _known(state: str) -> str:
    if state not in get_args(State):
        raise ValueError(f"no state '{state}'")
    return state

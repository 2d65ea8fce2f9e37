"""What a run logs, written down before it is sent: a journal and its files, in ``CLEARMARGIN_HOME/spool``.

Each entry of the journal is one thing that was logged. A run's process holds a lock of the kind ``flock`` on its
spool, which goes when the process does, however that ends. So a spool whose lock is free belongs to nobody, and
whoever takes the lock may send the rest; a journal without an end is of a process that was killed.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import time
import uuid
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from clearmargin.files import parse_json, write_text
from clearmargin.privacy import home

__all__ = ["EndStatus", "Spool", "Waiting", "spools", "without_login"]

EndStatus = Literal["FINISHED", "FAILED", "KILLED"]
_JOURNAL, _SENT, _LOCK, _FILES = "journal.jsonl", "sent.json", "lock", "files"


class Spool:
    """One run's journal, held by this process until it is closed.

    Attributes:
        token: Its name: 32 hexadecimal digits, which the run carries as a tag, too.
        entries: All of it.
        run_id: The run in the store; empty before the store has made it.
        position: How many entries the store has.
        tried: Whether the entry at ``position`` was sent once, without an answer: the store may have it.
        refused: How many of which kind the store would not take at all.
    """

    def __init__(self, folder: Path, *, new: bool) -> None:
        """Take a spool's lock and read it.

        Raises:
            BlockingIOError: A living process holds it. FileNotFoundError: It was sent meanwhile.
        """
        self.folder = folder
        self.token = folder.name
        if new:
            folder.mkdir(mode=0o700, parents=True)
        self._lock = os.open(folder / _LOCK, os.O_RDWR | (os.O_CREAT if new else 0), 0o600)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self.entries = _entries(folder)
            state = _state(folder)
        except BaseException:
            os.close(self._lock)
            raise
        self.run_id: str = state.get("run_id", "")
        self.position: int = state.get("position", 0)
        self.tried: bool = state.get("tried", False)
        self.refused: dict[str, int] = state.get("refused", {})

    @classmethod
    def begin(cls, store: str, **entry: Any) -> Spool:
        """Return a new spool of a run that is to lie in ``store``; logins in an address are not written down."""
        spool = cls(_folder() / uuid.uuid4().hex, new=True)
        spool.add("begin", store=without_login(store), at=_now(), **entry)
        return spool

    @property
    def store(self) -> str:
        """The store that it is for."""
        return str(self.entries[0]["store"]) if self.entries else ""

    @property
    def ended(self) -> bool:
        """Whether the run ended in its own words."""
        return bool(self.entries) and self.entries[-1]["do"] == "end"

    def add(self, do: str, **values: Any) -> None:
        """Write an entry down. A line that was cut off by a kill before is left behind.

        Raises:
            OSError: The disk is full.
        """
        entry = {"do": do, **values}
        with (self.folder / _JOURNAL).open("ab+") as journal:
            end = journal.seek(0, os.SEEK_END)
            journal.seek(max(0, end - 1))
            cut = journal.read(1) not in (b"", b"\n")
            journal.write(b"\n" * cut + json.dumps(entry).encode() + b"\n")
        self.entries.append(entry)

    def place(self, name: str) -> Path:
        """Return where to write a file or folder of this name that the next entry speaks of."""
        folder = self.folder / _FILES / str(len(self.entries))
        folder.mkdir(parents=True, exist_ok=True)
        return folder / name

    def keep(self, source: Path) -> str:
        """Copy a file, or a folder with all below it, and return where: the caller may remove its own."""
        target = self.place(source.name)
        if source.is_dir():
            shutil.copytree(source, target, dirs_exist_ok=True)
        else:
            shutil.copy(source, target)
        return target.relative_to(self.folder).as_posix()

    def sent(self, entries: int) -> None:
        """Note that the store has so many more, and forget their files."""
        for entry in self.entries[self.position : self.position + entries]:
            if "path" in entry:
                shutil.rmtree((self.folder / entry["path"]).parent, ignore_errors=True)
        self.position += entries
        self.tried = False
        self._note()

    def trying(self) -> None:
        """Note that the entry at ``position`` is about to be sent."""
        self.tried = True
        self._note()

    def refuse(self, kind: str, count: int) -> None:
        """Note that the store will never take the entry at ``position``."""
        self.refused[kind] = self.refused.get(kind, 0) + count
        self.sent(1)

    def close(self) -> None:
        """Let go; nothing is left of a spool that was sent to its end."""
        if self.ended and self.position == len(self.entries):
            shutil.rmtree(self.folder, ignore_errors=True)
        os.close(self._lock)

    def _note(self) -> None:
        state = {
            "run_id": self.run_id, "position": self.position, "tried": self.tried, "refused": self.refused
        }  # fmt: skip
        write_text(self.folder / _SENT, json.dumps(state))


@dataclass(frozen=True, kw_only=True)
class Waiting:
    """A spool, seen from outside.

    Attributes:
        folder: Where it lies; its name is the token.
        store: Where it is to go.
        name: Of the run.
        run_id: In the store; empty if it does not have it yet.
        start_s: When the run began, in seconds since 1970.
    """

    folder: Path
    store: str
    name: str
    run_id: str
    start_s: float


def spools() -> list[Waiting]:
    """Return every spool of this user, the oldest first."""
    known = []
    for folder in _folder().iterdir():
        first = next(iter(_entries(folder, most=1)), None)
        if first is not None:
            known.append(
                Waiting(
                    folder=folder,
                    store=first["store"],
                    name=first["name"],
                    run_id=_state(folder).get("run_id", ""),
                    start_s=first["at"] / 1000,
                )
            )
    return sorted(known, key=lambda one: one.start_s)


def without_login(store: str) -> str:
    """Return a store's address without a user's name and password.

    >>> without_login("https://ann:secret@host/x"), without_login("sqlite:///a/b@c.db")
    ('https://host/x', 'sqlite:///a/b@c.db')
    """
    return re.sub(r"^([\w+.-]+://)[^/@]+@", r"\1", store)


def _folder() -> Path:
    folder = home() / "spool"
    folder.mkdir(mode=0o700, exist_ok=True)
    return folder


def _entries(folder: Path, most: int | None = None) -> list[dict[str, Any]]:
    """Return the entries of a journal; a line that a kill or a full disk cut off is none."""
    entries: list[dict[str, Any]] = []
    with suppress(OSError), (folder / _JOURNAL).open("rb") as journal:
        for line in journal:
            with suppress(ValueError):
                entries.append(parse_json(line))
            if len(entries) == most:
                break
    return entries


def _state(folder: Path) -> dict[str, Any]:
    try:
        state: dict[str, Any] = parse_json((folder / _SENT).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return state


def _now() -> int:
    return int(time.time() * 1000)

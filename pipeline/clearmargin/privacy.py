"""Case ids: how a case is named wherever a name could be read by others.

A case id is a keyed hash of where a picture lies, or of the UIDs that it carries, so that one picture has one id in
every verb; the key and the crosswalk from ids to paths lie in ``CLEARMARGIN_HOME`` (default ``~/.clearmargin``),
readable by their owner alone. Logs, errors, tables and MLflow name case ids only. For public data, plain names take
their place.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import hmac
import json
import logging
import os
import re
import secrets
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Literal, get_args

from clearmargin.errors import ConfigError, InputError
from clearmargin.files import parse_json

__all__ = [
    "Naming",
    "case_id",
    "case_of_file",
    "home",
    "key_fingerprint",
    "keyed_id",
    "named_by_case",
    "naming",
    "paths_of_case",
    "plain_name",
    "record_case",
    "record_cases",
    "record_moved",
    "recorded_cases",
    "use_names",
]

Naming = Literal["hashed", "plain"]
"""What a case is called: a keyed hash, or for public data the plain name of its file or in its card."""

log = logging.getLogger(__name__)

_KEY_BYTES = 32
_NAMES = "CLEARMARGIN_NAMES"  # in the environment, so that processes that are started from here do likewise


def home() -> Path:
    """Return the private folder, made with mode 0700 where it does not exist yet.

    Raises:
        ConfigError: It cannot be made.
    """
    folder = Path(os.environ.get("CLEARMARGIN_HOME", Path.home() / ".clearmargin"))
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"the private folder '{folder}' cannot be made ({os.strerror(error.errno or 0)}): set CLEARMARGIN_HOME to "
            "a folder of your own"
        ) from None
    return folder


def case_id(*parts: str) -> str:
    """Return ``case-`` and 12 hex digits: HMAC-SHA256 of ``parts`` under this user's key.

    The same parts give the same id in every process of this user, and nothing to anyone without the key.
    """
    return keyed_id("case", *parts)


def keyed_id(kind: str, *parts: str) -> str:
    """Return ``kind``, a dash and 12 hex digits of ``parts``, as `case_id` does for cases; ``patient``, say."""
    message = json.dumps(parts).encode()
    return f"{kind}-{hmac.new(_key(), message, hashlib.sha256).hexdigest()[:12]}"


def key_fingerprint() -> str:
    """Return ``key-`` and 12 hex digits that tell this user's key from others, and nothing of it."""
    return keyed_id("key")


def naming() -> Naming:
    """Return how cases are named now: ``CLEARMARGIN_NAMES``, or ``hashed`` if it is not set."""
    value = os.environ.get(_NAMES) or "hashed"
    if value not in get_args(Naming):
        raise ConfigError(f"{_NAMES} is '{value}': expected {' or '.join(get_args(Naming))}")
    return "plain" if value == "plain" else "hashed"


def use_names(names: Naming) -> None:
    """Name cases so from here on, in this process and in those that it starts."""
    os.environ[_NAMES] = names
    naming()


def case_of_file(path: Path, *identity: str) -> str:
    """Return the case id of what lies in a file or a folder; with plain names, its name without suffix.

    Args:
        path: The file or folder.
        identity: What it carries within (DICOM's UIDs), which goes with it wherever it lies; else its place counts.
    """
    if naming() == "plain":
        return plain_name(
            path.name if path.is_dir() else path.name.removesuffix(".gz").rpartition(".")[0] or path.name
        )
    return case_id(*(identity or (str(_as_before(path.resolve())),)))


def plain_name(text: str) -> str:
    """Return a text as the name of a case: letters, digits, dots, hyphens and underscores.

    >>> plain_name("benign (1)")
    'benign_1'
    """
    return re.sub(r"[^\w.-]+", "_", text).strip("_.") or "case"


def record_moved(before: Path, now: Path) -> None:
    """Note that what lay under ``before`` lies under ``now``: its cases keep their ids.

    Raises:
        ConfigError: ``now`` is not there, or ``before`` still is.
    """
    if not now.is_dir():
        raise ConfigError(f"there is no folder '{now}'")
    if before.is_dir() and before.resolve() != now.resolve():
        raise ConfigError(f"'{before}' is still there: two folders cannot hold the same cases")
    moves = [*_moves(), (str(now.resolve()), str(_as_before(before.resolve())))]
    draft = home() / "moved.json.part"
    with _private(draft, os.O_TRUNC) as descriptor:
        os.write(descriptor, json.dumps(moves).encode())
    draft.replace(home() / "moved.json")


def _moves() -> list[tuple[str, str]]:
    path = home() / "moved.json"
    try:
        return (
            [(str(now), str(before)) for now, before in parse_json(path.read_text())] if path.exists() else []
        )
    except (ValueError, TypeError):
        raise ConfigError(
            f"'{path.name}' in the private folder is damaged: restore it from a backup, or move it away and say anew "
            "where folders were moved"
        ) from None


def _as_before(path: Path) -> Path:
    """Return where a path lay when its case was named first; the last move that fits counts."""
    for now, before in reversed(_moves()):
        if path.is_relative_to(now):
            return Path(before) / path.relative_to(now)
    return path


def record_case(case: str, path: Path) -> None:
    """Append ``case -> path`` to the private crosswalk (``crosswalk.jsonl``, mode 0600); once for each pair."""
    record_cases({case: path})


def record_cases(paths: Mapping[str, Path | str]) -> None:
    """Append many cases to the crosswalk, case id to path or address; what it holds already is not written again."""
    if not paths:
        return
    places = {case: str(p.resolve()) if isinstance(p, Path) else p for case, p in paths.items()}
    with _lock:
        known = _known()
        pairs = set(places.items()) - known.pairs
        if not pairs:
            return
        lines = [json.dumps({"case": c, "path": p}) + "\n" for c, p in places.items() if (c, p) in pairs]
        with _private(known.path, os.O_APPEND) as descriptor:
            fcntl.flock(descriptor, fcntl.LOCK_EX)  # other processes append, too
            end = os.fstat(descriptor).st_size
            whole = end == 0 or _last_byte(known.path) == b"\n"
            content = ("" if whole else "\n").encode() + "".join(lines).encode()
            while content:
                content = content[os.write(descriptor, content) :]


def recorded_cases() -> dict[str, str]:
    """Return the crosswalk, case id to the path that was recorded last; empty if nothing was recorded."""
    return {row["case"]: row["path"] for row in _rows()}


def paths_of_case(case: str) -> Sequence[str]:
    """Return every path that was recorded for a case, the last one first; none if the crosswalk does not know it.

    A frame of a clip (``case-0123456789ab-f20``) is looked up by itself, and then by its clip. The word ``case-``
    may be missing.
    """
    recorded: dict[str, dict[str, None]] = {}
    for row in reversed(_rows()):
        recorded.setdefault(row["case"], {}).setdefault(row["path"])
    for name in (case, f"case-{case}"):
        for known in (name, re.sub(r"(-f\d+)?(-\d+)?$", "", name)):
            if known in recorded:
                return list(dict.fromkeys(_as_now(path) for path in recorded[known]))
    return []


def _as_now(path: str) -> str:
    """Return where a recorded file lies after moves, if it is there and no longer if it was."""
    for now, before in reversed(_moves()):
        if not Path(path).exists() and Path(path).is_relative_to(before):
            moved = Path(now) / Path(path).relative_to(before)
            if moved.exists():
                return str(moved)
    return path


def _rows() -> list[dict[str, str]]:
    with _lock:
        return list(_known().rows)


@dataclass
class _Crosswalk:
    """What is known of a crosswalk: it is read once, and then only what has been appended since."""

    path: Path
    end: int = 0
    rows: list[dict[str, str]] = field(default_factory=list)
    pairs: set[tuple[str, str]] = field(default_factory=set)
    damaged: int = 0

    def read_on(self) -> None:
        """Take in the whole lines behind the last one that was read; damaged ones are counted and left out."""
        if not self.path.exists():
            self.__init__(self.path)  # type: ignore[misc]
            return
        size = self.path.stat().st_size
        if size < self.end:  # another file lies there now
            self.__init__(self.path)  # type: ignore[misc]
        if size == self.end:
            return
        with self.path.open("rb") as stream:
            stream.seek(self.end)
            content = stream.read()
        before = self.damaged
        for line in content.splitlines(keepends=True):
            if not line.endswith(b"\n"):  # a writer is not done with it, or was killed
                break
            self.end += len(line)
            if not line.strip():
                continue
            try:
                row = parse_json(line)
                row = {"case": str(row["case"]), "path": str(row["path"])}
            except (ValueError, KeyError, TypeError):
                self.damaged += 1
                continue
            self.rows.append(row)
            self.pairs.add((row["case"], row["path"]))
        if self.damaged > before:
            log.warning(
                "%d damaged line(s) in the private crosswalk were left out: their cases are recorded anew when "
                "they are next read",
                self.damaged - before,
            )


_lock = threading.RLock()
_crosswalks: dict[Path, _Crosswalk] = {}


def _known() -> _Crosswalk:
    path = home() / "crosswalk.jsonl"
    crosswalk = _crosswalks.setdefault(path, _Crosswalk(path))
    crosswalk.read_on()
    return crosswalk


def _last_byte(path: Path) -> bytes:
    with path.open("rb") as stream:
        stream.seek(-1, os.SEEK_END)
        return stream.read(1)


@contextlib.contextmanager
def named_by_case(case: str, what: str, *paths: Path) -> Iterator[None]:
    """Let an InputError from within name the case, and not a file that the user did not type.

    Args:
        case: The case id that the message begins with; the crosswalk is told its paths.
        what: What a file is to the case, in place of its name, which messages quote: ``its image``.
        paths: The files that are read within.

    Raises:
        InputError: In place of one from within, of the same kind.
    """
    try:
        yield
    except InputError as error:
        message = str(error)
        for path in paths:
            record_case(case, path)
            message = message.replace(f"'{path}'", what).replace(f"'{path.name}'", what)
        raise type(error)(f"{case}: {message} (`clearmargin cases {case}` gives the file)") from None


def _key() -> bytes:
    """Return this user's key, which is made if there is none.

    Raises:
        ConfigError: The key is not whole, or others may read it: ids made with it would protect nobody.
    """
    path = home() / "key"
    if not path.exists():
        # Written whole under another name and linked, so that two first processes agree on one key.
        draft = path.with_name(f"key.{os.getpid()}")
        with _private(draft, os.O_TRUNC) as descriptor:
            os.write(descriptor, secrets.token_bytes(_KEY_BYTES))
            os.fsync(descriptor)
        with contextlib.suppress(FileExistsError):
            os.link(draft, path)
        draft.unlink()
    return _checked_key(path, path.stat().st_mtime_ns)


@lru_cache(maxsize=8)
def _checked_key(path: Path, _modified: int) -> bytes:
    if path.stat().st_mode & 0o077:
        raise ConfigError(
            f"others may read the key in '{path.parent}', from which case ids are made: chmod 600 '{path}', or move "
            "it away for a new one if it may be known"
        )
    key = path.read_bytes()
    if len(key) != _KEY_BYTES:
        raise ConfigError(
            f"the key in '{path.parent}' has {len(key)} bytes, expected {_KEY_BYTES}: restore it from a backup, or "
            "move it away for a new one, under which every case has another id"
        )
    return key


@contextlib.contextmanager
def _private(path: Path, flags: int) -> Iterator[int]:
    """Open ``path`` for writing with mode 0600, whatever the umask."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | flags, 0o600)
    try:
        os.fchmod(descriptor, 0o600)
        yield descriptor
    finally:
        os.close(descriptor)

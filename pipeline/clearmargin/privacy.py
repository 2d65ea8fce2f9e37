"""Case ids: how a case is named wherever a name could be read by others.

A case id is a keyed hash; the key and the crosswalk from ids to paths lie in ``CLEARMARGIN_HOME`` (default
``~/.clearmargin``), readable by their owner alone. Logs, errors, tables and MLflow name case ids only.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import json
import os
import secrets
from collections.abc import Iterator, Mapping
from pathlib import Path

from clearmargin.errors import InputError

__all__ = ["case_id", "home", "keyed_id", "named_by_case", "record_case", "record_cases", "recorded_cases"]


def home() -> Path:
    """Return the private folder, made with mode 0700 where it does not exist yet."""
    folder = Path(os.environ.get("CLEARMARGIN_HOME", Path.home() / ".clearmargin"))
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
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


def record_case(case: str, path: Path) -> None:
    """Append ``case -> path`` to the private crosswalk (``crosswalk.jsonl``, mode 0600); once for each pair."""
    record_cases({case: path})


def record_cases(paths: Mapping[str, Path]) -> None:
    """Append many cases to the crosswalk, case id to path, reading it only once."""
    known = recorded_cases() if paths else {}
    entries = ({"case": case, "path": str(path.resolve())} for case, path in paths.items())
    lines = [json.dumps(entry) + "\n" for entry in entries if known.get(entry["case"]) != entry["path"]]
    if not lines:
        return
    with _private(home() / "crosswalk.jsonl", os.O_APPEND) as descriptor:
        content = "".join(lines).encode()
        while content:
            content = content[os.write(descriptor, content) :]


def recorded_cases() -> dict[str, str]:
    """Return the crosswalk, case id to path; empty where nothing was recorded."""
    crosswalk = home() / "crosswalk.jsonl"
    if not crosswalk.exists():
        return {}
    rows = (json.loads(line) for line in crosswalk.read_text().splitlines() if line)
    return {row["case"]: row["path"] for row in rows}


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
            message = message.replace(f"'{path.name}'", what)
        raise type(error)(f"{case}: {message} (the private crosswalk gives the file)") from None


def _key() -> bytes:
    path = home() / "key"
    if not path.exists():
        # Written whole under another name and linked, so that two first processes agree on one key.
        draft = path.with_name(f"key.{os.getpid()}")
        with _private(draft, os.O_TRUNC) as descriptor:
            os.write(descriptor, secrets.token_bytes(32))
        with contextlib.suppress(FileExistsError):
            os.link(draft, path)
        draft.unlink()
    return path.read_bytes()


@contextlib.contextmanager
def _private(path: Path, flags: int) -> Iterator[int]:
    """Open ``path`` for writing with mode 0600, whatever the umask."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | flags, 0o600)
    try:
        os.fchmod(descriptor, 0o600)
        yield descriptor
    finally:
        os.close(descriptor)

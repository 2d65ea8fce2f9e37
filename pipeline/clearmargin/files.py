"""Files: written whole or not at all, kept below their folder, and harmless as text in a table or a terminal."""

from __future__ import annotations

import csv
import errno
import functools
import hashlib
import json
import os
import re
import shutil
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal

from clearmargin.errors import ConfigError, InputError
from clearmargin.owners import is_abandoned, mark_here

__all__ = [
    "below",
    "cell",
    "check_readable",
    "csv_rows",
    "dict_rows",
    "draft_of",
    "drop_drafts",
    "file_digest",
    "made_folder",
    "one_run",
    "parse_json",
    "printable",
    "refusal_to_write",
    "shortened",
    "uncell",
    "whole",
    "write_text",
]

_PROBE = bytes(2**20)
_STARTS_A_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "|", "＝", "＋", "－", "＠")
# Controls, and the marks that turn the direction of a text over.
_BIDI = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\u2028\u2029")


def made_folder(folder: Path) -> Path:
    """Return a folder for results, made if it is not there.

    Raises:
        ConfigError: It cannot be made; with the system's reason.
        OSError: The disk is full.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
        why = os.strerror(error.errno or 0)
        raise ConfigError(f"'{folder}' cannot be made for the results ({why}): name another folder") from None
    return folder


def draft_of(path: Path, state: Literal["part", "old"] = "part") -> Path:
    """Return the name of a file or folder before it is whole, or of an older one: hidden, this process's own.

    So two processes that write one file each have their draft. Drafts of processes that were killed are removed.
    """
    _drop_drafts_once(path.parent)
    return path.with_name(f".{state}.{mark_here()}.{path.name}")


def drop_drafts(folder: Path) -> None:
    """Remove the drafts that killed processes left in a folder."""
    for left in folder.glob(".*"):
        if is_abandoned(left):
            if left.is_dir() and not left.is_symlink():
                shutil.rmtree(left, ignore_errors=True)
            else:
                with suppress(OSError):
                    left.unlink()


@functools.lru_cache(maxsize=4096)
def _drop_drafts_once(folder: Path) -> None:
    drop_drafts(folder)  # which lists the folder: not for each of thousands of files in it


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Give a name to write to, which takes the place of ``path`` once the block is left without an error.

    A reader sees the whole file or none of it, and an error leaves no draft. The file gets the mode of any new file,
    whatever its writer made of it.

    Raises:
        OSError: The disk is full, whatever words the writer found for that.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = draft_of(path)
    draft.unlink(missing_ok=True)
    try:
        with draft.open("xb") as made:
            mode = os.fstat(made.fileno()).st_mode & 0o777
        yield draft
        draft.chmod(mode)
        draft.replace(path)
    except BaseException as error:
        full = _full_disk(draft, error)
        with suppress(OSError):
            draft.unlink(missing_ok=True)
        if full is not None:
            raise full from None
        raise


@contextmanager
def one_run(folder: Path) -> Iterator[Path]:
    """Give an empty folder to write into, which takes the place of ``folder`` once everything is written.

    So a case folder holds the files of one run, whole: never some of an earlier one, and an earlier one stays if this
    one fails. Of two processes that write one folder at once, each has its own draft, and the last to end stays.
    """
    draft, old = draft_of(folder), draft_of(folder, "old")
    for left in (draft, old):
        shutil.rmtree(left, ignore_errors=True)
    draft.mkdir(parents=True)
    try:
        yield draft
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise
    while True:
        with suppress(FileNotFoundError):  # there is none, or another process has just taken it away
            folder.replace(old)
        try:
            draft.replace(folder)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            shutil.rmtree(old, ignore_errors=True)  # another process was faster: its folder is replaced
            continue
        break
    shutil.rmtree(old, ignore_errors=True)


def write_text(path: Path, text: str) -> None:
    """Write a text as UTF-8, whole or not at all; a text of the same name stays until then."""
    with whole(path) as draft:
        draft.write_text(text, encoding="utf-8")


def parse_json(text: str | bytes, each: Callable[[dict[str, Any]], Any] | None = None) -> Any:
    """Return the content of JSON.

    Args:
        text: JSON; bytes are UTF-8.
        each: Takes each object as soon as it is parsed, inner ones first, and gives what stands for it; None keeps
            all as dictionaries.

    Raises:
        ValueError: It is not JSON, or nests deeper than a parser follows.
    """
    try:
        return json.loads(text, object_hook=each)
    except RecursionError:
        raise ValueError("JSON that nests too deep") from None


def check_readable(path: Path) -> None:
    """Refuse what is neither a file nor a folder: a pipe or a device could be read for ever.

    Raises:
        InputError: It is neither, or there is nothing of the name.
    """
    if path.is_file() or path.is_dir():
        return
    if path.exists():
        raise InputError(
            f"'{path.name}' is a pipe, a socket or a device, expected a file or a folder: copy its content to a file"
        )
    if path.is_symlink():
        raise InputError(f"'{path.name}' is a link to nothing: what it leads to was moved or deleted")
    raise InputError(f"no file or folder '{path}' (looked for at {path.absolute()})")


def below(folder: Path, name: str) -> Path | None:
    """Return what ``name`` is in a folder; None if it leads out of it.

    Links are followed only where ``name`` climbs: who owns the folder may have linked its files to elsewhere.
    """
    path = folder / name
    parts = Path(name).parts
    climbs = Path(name).is_absolute() or ".." in parts or "\0" in name
    if not climbs:
        return path
    if "\0" in name or not path.resolve().is_relative_to(folder.resolve()):
        return None
    return path


def cell(value: Any) -> Any:
    """Return a value as a cell of a table: a text that a spreadsheet would calculate gets an apostrophe before it.

    >>> cell("=HYPERLINK(1)"), cell("-1.5"), cell("-x"), cell(-2)
    ("'=HYPERLINK(1)", '-1.5', "'-x", -2)
    """
    if not isinstance(value, str) or not value.lstrip(" ").startswith(_STARTS_A_FORMULA):
        return value
    if re.fullmatch(r"[+-]?\d+(\.\d*)?([eE][+-]?\d+)?", value):
        return value
    return f"'{value}"


def uncell(text: str) -> str:
    """Return what :func:`cell` made a cell of, as a table that the program reads again has it."""
    return text[1:] if text.startswith("'") and cell(text[1:]) == text else text


def csv_rows(stream: Any, rows: Iterable[Iterable[Any]], *, lineterminator: str = "\n") -> None:
    """Write rows of CSV; every table of the program goes through here (see :func:`cell`)."""
    writer = csv.writer(stream, lineterminator=lineterminator)
    for row in rows:
        writer.writerow([cell(value) for value in row])


def printable(text: str) -> str:
    r"""Return a text as a terminal may show it: controls other than line feed and tab are spelled out.

    >>> printable("organ\x1b]0;x\x07")
    'organ\\x1b]0;x\\x07'
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(c if c in "\n\t" or not _acts(c) else c.encode("unicode_escape").decode() for c in text)


def shortened(text: str) -> str:
    """Return a message without the rest of a word of over 500 characters, or of a line of over 4000.

    A file's values stand in messages, such as the name of a class, and may be of any length.

    >>> len(shortened("no class '" + 1000 * "x" + "'"))
    512
    """
    words = re.sub(r"(\S{500})\S+", r"\1...", text)
    return re.sub(r"(.{4000}).+", r"\1...", words)


def _acts(character: str) -> bool:
    return unicodedata.category(character) in ("Cc", "Cs") or character in _BIDI


def _full_disk(draft: Path, error: BaseException) -> OSError | None:
    """Return the system's own error if a write to the draft's disk fails now; libraries put it in words of theirs."""
    if not isinstance(error, Exception) or (isinstance(error, OSError) and error.errno is not None):
        return None
    return refusal_to_write(draft)


def refusal_to_write(probe: Path) -> OSError | None:
    """Return the system's error if a file cannot grow by 1 MiB now; None if it did, which is then cut to be empty."""
    try:
        with probe.open("ab") as stream:
            stream.write(_PROBE)
            stream.flush()
            os.fsync(stream.fileno())
            stream.truncate(0)
    except OSError as refusal:
        return refusal
    return None


def dict_rows(rows: Iterable[Mapping[str, Any]], columns: Iterable[str]) -> Iterator[list[Any]]:
    """Yield a header and the rows under it, as :func:`csv_rows` takes them; what a row lacks is empty."""
    names = list(columns)
    yield list(names)
    for row in rows:
        yield [row.get(name, "") for name in names]


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file's content in hexadecimal, read piece by piece."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()

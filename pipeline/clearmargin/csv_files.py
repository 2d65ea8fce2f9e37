"""Tables that are read: every CSV goes through here, so that a damaged one is told by its name and line."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from pathlib import Path

from clearmargin.errors import ClearMarginError, InputError

__all__ = ["parse_csv", "read_csv"]

_MOST_BYTES = 2**30
_LONGEST = 131_072  # a field, in characters: Python's own limit, stated so that no library moves it


def read_csv(
    path: Path,
    *,
    error: type[ClearMarginError] = InputError,
    dividers: str = ",",
    european: bool = False,
) -> list[dict[str, str]]:
    """Return the rows of a CSV file, each by column; a field that a row lacks at its end is empty.

    Args:
        path: The file; UTF-8, with or without the mark that spreadsheets begin it with.
        error: What is raised.
        dividers: Characters that may divide fields: the one that the header has most often does.
        european: A file that is not UTF-8 is read as Latin-1, as spreadsheets of Europe write it.

    Raises:
        ClearMarginError: ``error``: the file cannot be read, is not text, or not one table; with the line.
    """
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise error(f"'{path.name}' has over {_MOST_BYTES // 2**30} GiB: no table is so long")
        content = path.read_bytes()
    except OSError as refusal:
        raise error(
            f"'{path.name}' cannot be read ({refusal.strerror}): is it a file that you may read?"
        ) from None
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as damage:
        if not european or content.startswith((b"\xff\xfe", b"\xfe\xff")):
            line = content.count(b"\n", 0, damage.start) + 1
            raise error(f"'{path.name}' is not UTF-8 (line {line}): save it as 'CSV UTF-8'") from None
        text = content.decode("latin-1")
    head = text.partition("\n")[0]
    try:
        return parse_csv(text, divider=max(dividers, key=head.count))
    except ValueError as damage:
        raise error(f"'{path.name}': {damage}") from None


def parse_csv(text: str, *, divider: str = ",") -> list[dict[str, str]]:
    """Return the rows of a CSV text, each by column; of an empty text, and of a header alone, there are none.

    Raises:
        ValueError: It is not one table; says which line.
    """
    rows = list(_rows(text, divider))
    if not rows:
        return []
    (_, header), *rest = rows
    twice = sorted({name for name in header if name and header.count(name) > 1})
    if twice:
        raise ValueError(f"its header has the column '{_short(twice[0])}' more than once: rename one")
    table = []
    for line, row in rest:
        if any(row[len(header) :]):
            raise ValueError(
                f"line {line} has {len(row)} fields, its header {len(header)}: put a field that holds the divider "
                "into quotes"
            )
        table.append(dict(zip(header, (*row, *[""] * (len(header) - len(row))), strict=False)))
    return table


def _rows(text: str, divider: str) -> Iterator[tuple[int, list[str]]]:
    """Yield each row that is not blank, with the line where it begins."""
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise ValueError(f"line {line} holds NUL bytes: expected text, got binary data or a damaged file")
    begins = 1
    limit = csv.field_size_limit(_LONGEST)
    try:
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=divider, strict=True)
        for row in reader:
            if row:
                yield begins, row
            begins = reader.line_num + 1
    except csv.Error as damage:
        why = (
            "has a field that is too long" if "field larger" in str(damage) else "is not divided into fields"
        )
        raise ValueError(
            f"line {begins} {why}: is a quote left open, or not doubled within quotes?"
        ) from None
    finally:
        csv.field_size_limit(limit)


def _short(name: str) -> str:
    return name if len(name) <= 60 else f"{name[:57]}..."

"""A user's table of cases: which group each belongs to, and columns to split results by."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from clearmargin.csv_files import read_csv
from clearmargin.datasets.pairs import Listing
from clearmargin.errors import ConfigError, InputError, nearest
from clearmargin.metrics.strata import STRATA
from clearmargin.privacy import keyed_id

__all__ = ["CaseTable", "read_case_table"]


@dataclass(frozen=True, kw_only=True)
class CaseTable:
    """Groups and the requested columns, by case id; case and group ids are keyed hashes.

    Attributes:
        groups: Group of each case.
        columns: Value of each column, of each case.
        plain: What keyed groups are called in the table.
    """

    groups: Mapping[str, str] = field(default_factory=dict)
    columns: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    plain: Mapping[str, str] = field(default_factory=dict)


def read_case_table(path: Path | None, listing: Listing, by: Sequence[str]) -> CaseTable:
    """Return groups and the columns in ``by``, and no other column.

    Args:
        path: CSV with the columns ``case`` and ``group`` (or ``patient``), divided by comma, semicolon or tab; None for
            no table, which gives an empty one.
        listing: The cases; each needs a row.
        by: Strata of the program (``class`` and `STRATA`) or columns of the table.

    Raises:
        ConfigError: No such column.
        InputError: A case without a row or a group, or a table that cannot be read.
    """
    built_in = ("class", *STRATA)
    rows = [] if path is None else _csv_rows(path)
    columns = set(rows[0]) if rows else set()
    kind = next((name for name in ("group", "patient") if name in columns), "")
    if path is not None and (not kind or "case" not in columns):
        raise InputError(
            f"'{path.name}': expected at least one row with the columns 'case' and 'group' (or 'patient'), "
            f"got {', '.join(sorted(columns)) or 'no row'}"
        )
    known = (*built_in, *(name for name in (rows[0] if rows else ()) if name not in ("case", kind)))
    for column in by:
        if column not in known:
            raise ConfigError(f"no column '{column}' to split by: {nearest(column, known)}")
    if path is None:
        return CaseTable()
    asked = [name for name in by if name not in built_in]
    of_name = {row["case"]: row for row in rows}
    if len(of_name) < len(rows):
        raise InputError(
            f"'{path.name}' lists {len(rows) - len(of_name)} case(s) more than once: give each one row"
        )
    blank = sum(not (row[kind] or "").strip() for row in rows)
    if blank:
        raise InputError(
            f"'{path.name}' names no {kind} for {blank} of {len(rows)} cases: name one for each, if need be the case "
            "itself"
        )
    unlisted = [entry.case for entry in listing.entries if entry.name not in of_name]
    if unlisted:
        raise InputError(
            f"'{path.name}' does not list {len(unlisted)} cases, such as {unlisted[0]}: add them"
        )
    listed = {entry.case: of_name[entry.name] for entry in listing.entries}
    keyed = {row[kind]: keyed_id("patient", row[kind]) for row in listed.values()}
    return CaseTable(
        groups={case: keyed[row[kind]] for case, row in listed.items()},
        columns={case: {name: row[name] or "" for name in asked} for case, row in listed.items()},
        plain={key: name for name, key in keyed.items()},
    )


def _csv_rows(path: Path) -> list[dict[str, str]]:
    """Return the rows of a CSV whose fields are divided by comma, semicolon or tab."""
    if not path.is_file():
        raise InputError(f"expected a CSV with the columns case and group, found no file '{path.name}'")
    return read_csv(path, dividers=",;\t", european=True)

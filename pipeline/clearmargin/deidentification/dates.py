"""Dates moved by whole days, in the precision that they have (PS3.5, 6.2: DA, DT, TM)."""

from __future__ import annotations

import re
from datetime import date, timedelta

__all__ = ["is_time", "is_zone", "shift_date", "shift_datetime"]

_DATE = re.compile(r"(\d{4})(?:(\d{2})(\d{2})|\.(\d{2})\.(\d{2}))")  # with points before 1993
_DATETIME = re.compile(r"(\d{4})(?:(\d{2})(?:(\d{2})(.*))?)?", re.DOTALL)
_CLOCK = r"([01]\d|2[0-3])(:?[0-5]\d(:?([0-5]\d|60)(\.\d{1,6})?)?)?"
_ZONE = r"[+-](0\d|1[0-4])[0-5]\d"
_REST = re.compile(rf"(?:{_CLOCK.replace(':?', '')})?(?:{_ZONE})?")


def shift_date(text: str, days: int) -> str | None:
    """Return a DA value moved by ``days``; None if it is not a date.

    >>> shift_date("20240301", -1)
    '20240229'
    """
    match = _DATE.fullmatch(text)
    if match is None:
        return None
    year, *rest = (part for part in match.groups() if part is not None)
    moved = _moved(int(year), int(rest[0]), int(rest[1]), days)
    return None if moved is None else _digits(moved)


def shift_datetime(text: str, days: int) -> str | None:
    """Return a DT value moved by ``days``, its time of day and zone kept; None if it is not a date and time.

    A year or a month alone is moved from its middle, and stays a year or a month.

    >>> shift_datetime("20240301101112.5+0100", -1)
    '20240229101112.5+0100'
    >>> shift_datetime("2024", -365)
    '2023'
    """
    zone = re.search(rf"(?:{_ZONE})$", text)
    suffix = zone.group() if zone else ""
    match = _DATETIME.fullmatch(text.removesuffix(suffix))
    if match is None or not _REST.fullmatch(match.group(4) or ""):
        return None
    year, month, day, rest = match.groups()
    moved = _moved(int(year), int(month or 7), int(day or (15 if month else 1)), days)
    if moved is None:
        return None
    digits = 8 if day else 6 if month else 4
    return _digits(moved)[:digits] + (rest or "") + suffix


def is_time(text: str) -> bool:
    """Return whether ``text`` is a TM value."""
    return re.fullmatch(_CLOCK, text) is not None


def is_zone(text: str) -> bool:
    """Return whether ``text`` is an offset from UTC."""
    return re.fullmatch(_ZONE, text) is not None


def _moved(year: int, month: int, day: int, days: int) -> date | None:
    try:
        return date(year, month, day) + timedelta(days=days)
    except (ValueError, OverflowError):
        return None


def _digits(day: date) -> str:
    return f"{day.year:04d}{day.month:02d}{day.day:02d}"

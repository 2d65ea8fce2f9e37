"""How large a file's pixels may be: a header that claims more is refused before anything is allocated."""

from __future__ import annotations

import os
from pathlib import Path

from clearmargin.errors import ConfigError, InputError

__all__ = ["MOST_DEFLATED", "max_bytes", "raise_it", "refuse_cut_off", "refuse_size"]

MOST_DEFLATED = 1032
"""Bytes that one byte of a deflated stream can become, by zlib's own account of its best case."""

_VARIABLE = "CLEARMARGIN_MAX_GIB"
_DEFAULT_GIB = 4.0


def max_bytes() -> int:
    """Return the largest decoded size in bytes: ``CLEARMARGIN_MAX_GIB`` GiB, 4 if it is not set.

    Raises:
        ConfigError: The variable is not a positive number.
    """
    text = os.environ.get(_VARIABLE, "")
    try:
        gib = float(text) if text else _DEFAULT_GIB
    except ValueError:
        gib = 0.0
    if not 0 < gib < 2**20:
        raise ConfigError(f"{_VARIABLE}={text}: expected a number of GiB, such as 8")
    return int(gib * 2**30)


def raise_it() -> str:
    """Return the end of a refusal: what the limit is, and how it is raised."""
    return (
        f"more than the limit of {max_bytes() / 2**30:.3g} GiB; {_VARIABLE} raises it if there is the memory"
    )


def refuse_size(size: int, path: Path) -> None:
    """Refuse a picture of no bytes, or of more than the limit.

    Raises:
        InputError: With the size, the limit, and how it is raised.
    """
    if size < 1:
        raise InputError(f"'{path.name}' holds no pixel")
    if size > max_bytes():
        raise InputError(f"'{path.name}' claims {size / 2**30:.3g} GiB of pixels: {raise_it()}")


def refuse_cut_off(size: int, path: Path, packed: int) -> None:
    """Refuse a file that is too short for ``size`` bytes of pixels: nothing is allocated for it.

    Args:
        size: Bytes of pixels that the file claims.
        path: The file.
        packed: Bytes of pixels that one byte of the file holds at most.
    """
    if size > packed * path.stat().st_size:
        raise InputError(
            f"'{path.name}' claims more pixels than a file of its length can hold: it is cut off"
        )

"""The errors a user can meet: each says what was expected, what came, and the way out.

Messages never hold a patient's identifier or a path the user did not type (docs/privacy.md).
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = [
    "BatchError",
    "ClearMarginError",
    "ConfigError",
    "DifferenceError",
    "GeometryError",
    "InputError",
    "ParityError",
    "TrainingError",
    "UnavailableError",
    "nearest",
]


class ClearMarginError(Exception):
    """The user's fault, or the world's; never a bug of ours. ``exit_code`` is what the command ends with."""

    exit_code = 4


class ConfigError(ClearMarginError):
    """A configuration, an option or a data card does not fit its schema."""

    exit_code = 2


class InputError(ClearMarginError):
    """An input cannot be read, or reading it would be a guess."""

    exit_code = 4


class GeometryError(InputError):
    """The input's geometry is not one regular grid, or two grids that must agree do not."""


class TrainingError(ClearMarginError):
    """Training cannot go on; the last good checkpoint is kept."""

    exit_code = 4


class ParityError(ClearMarginError):
    """An exported model does not find what it found before; it is not written."""

    exit_code = 4


class UnavailableError(ClearMarginError):
    """A server is away, or failed for the moment; another try may succeed."""

    exit_code = 4


class BatchError(ClearMarginError):
    """Some inputs of a batch failed; the others are done and written."""

    exit_code = 3


class DifferenceError(ClearMarginError):
    """A run that was repeated gives other results than it did."""

    exit_code = 1


def nearest(name: str, known: Iterable[str]) -> str:
    """Return the hint that ends an "unknown name" message.

    >>> nearest("maskrcnn", ["mask_rcnn", "yolact"])
    "did you mean 'mask_rcnn'? (there are: mask_rcnn, yolact)"
    >>> nearest("x", ["mask_rcnn"])
    'there are: mask_rcnn'
    >>> nearest("x", [])
    'there are none'
    """
    names = sorted(known)
    listing = f"there are: {', '.join(names)}" if names else "there are none"
    close = difflib.get_close_matches(name, names, n=1)
    return f"did you mean '{close[0]}'? ({listing})" if close else listing

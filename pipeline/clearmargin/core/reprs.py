"""What an object says of itself in a notebook: sizes, not contents."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

__all__ = ["short_repr"]

_T = TypeVar("_T")
_MOST = 60


def short_repr(cls: type[_T]) -> type[_T]:
    """Give a dataclass a repr of one line: arrays by dtype and shape, long texts and tables cut, no paths."""

    def represent(self: Any) -> str:
        shown = [
            f"{f.name}={_brief(getattr(self, f.name))}"
            for f in dataclasses.fields(self)
            if f.repr and not isinstance(getattr(self, f.name), Path)
        ]
        return f"{type(self).__name__}({', '.join(shown)})"

    cls.__repr__ = represent  # type: ignore[method-assign]
    return cls


def _brief(value: Any) -> str:
    if isinstance(value, np.ndarray):
        return f"{value.dtype}{list(value.shape)}"
    if isinstance(value, Mapping):
        return f"<{', '.join(str(k) for k in list(value)[:8])}{', ...' * (len(value) > 8)}>"
    if isinstance(value, tuple) and len(value) > 4:
        return f"<{len(value)}>"
    text = repr(value)
    return text if len(text) <= _MOST else f"{text[:_MOST]}..."

"""A configuration as MLflow's flat parameters, without file paths."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import PurePath, PurePosixPath, PureWindowsPath
from typing import Any

__all__ = ["flatten", "plain", "safe_key", "without_path"]

_LONGEST_VALUE = 6000  # what MLflow 3 takes
_LONGEST_KEY = 250


def flatten(config: Mapping[str, Any]) -> dict[str, str]:
    """Return nested settings as ``a.b.c`` to text; lists become JSON, file paths become ``<path>``.

    >>> flatten({"model": {"name": "mask_rcnn", "sizes": [8, 16]}, "card": "/data/Doe^John/card.yaml"})
    {'model.name': 'mask_rcnn', 'model.sizes': '[8, 16]', 'card': '<path>'}
    """
    flat: dict[str, str] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            flat.update({f"{safe_key(key)}.{inner}": text for inner, text in flatten(value).items()})
        else:
            flat[safe_key(key)] = _text(value)
    return {key[:_LONGEST_KEY]: text for key, text in flat.items()}


def safe_key(name: str) -> str:
    """Return ``name`` with whatever MLflow refuses in a metric's, image's or parameter's name as ``_``.

    >>> safe_key("AP @ 0.5 (tumour)")
    'AP _ 0.5 _tumour_'
    """
    return re.sub(r"[^\w\-. /]", "_", str(name), flags=re.ASCII).strip("/") or "_"


def without_path(value: Any) -> Any:
    """Return ``value``, or ``<path>`` where it names a file or folder: such names hold record numbers.

    A path is a ``Path``, a text that begins as an absolute path, a home or a ``file:`` URI does, or one with
    a separator and a file's ending. Units such as ``mm/px`` and references such as ``models:/x@y`` stay.
    """
    if isinstance(value, PurePath):
        return "<path>"
    if not isinstance(value, str):
        return value
    absolute = PurePosixPath(value).is_absolute() or PureWindowsPath(value).is_absolute()
    if absolute or value.startswith(("~", "./", "../", "file:", "\\\\")):
        return "<path>"
    if re.match(r"(models|runs|mlflow-artifacts):/", value):
        return value
    if re.search(r"[/\\]", value) and re.search(r"\.[A-Za-z]\w{0,7}$", value):
        return "<path>"
    return value


def _text(value: Any) -> str:
    kept = without_path(value)
    if isinstance(kept, Sequence) and not isinstance(kept, str | bytes):
        kept = json.dumps([plain(item) for item in kept])
    text = str(kept)
    return text if len(text) <= _LONGEST_VALUE else text[: _LONGEST_VALUE - 3] + "..."


def plain(item: Any) -> Any:
    """Return ``item`` as JSON takes it, its paths replaced at any depth."""
    if isinstance(item, Mapping):
        return {str(key): plain(value) for key, value in item.items()}
    if isinstance(item, Sequence) and not isinstance(item, str | bytes):
        return [plain(value) for value in item]
    kept = without_path(item)
    return kept if isinstance(kept, str | int | float | bool | None) else str(kept)

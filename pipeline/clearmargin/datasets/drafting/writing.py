"""A card as a person writes it: short, one line per class."""

from __future__ import annotations

from typing import Any

import yaml

__all__ = ["card_text"]

_HEAD = """\
# A data card, drafted from a folder: correct what is wrong. docs/data-cards.md explains each key.
"""
_NOTES = {
    "classes": "codes are needed for DICOM output only",
    "cases": "the index has a row for each case; templates name its columns",
    "unit": "what never lies in two splits",
    "splits": "shares of the groups; the rest is for training",
}


def card_text(content: dict[str, Any]) -> str:
    """Return a card's YAML: a line for each key, class and setting as far as they fit."""
    lines = [_HEAD]
    for key, value in content.items():
        note = f"  # {_NOTES[key]}" if key in _NOTES else ""
        if key == "classes":
            lines.append(f"classes:{note}\n" + "".join(f"  - {_flow(entry)}\n" for entry in value))
        elif key in ("cases", "splits"):
            inner = "".join(f"  {name}: {_flow(item)}\n" for name, item in value.items())
            lines.append(f"{key}:{note}\n{inner}")
        else:
            lines.append(f"{key}: {_flow(value)}{note}\n")
    return "".join(lines)


def _flow(value: Any) -> str:
    """Return a value on one line (a long table on several), quoted as YAML needs it."""
    text = yaml.safe_dump(value, default_flow_style=True, sort_keys=False, allow_unicode=True, width=108)
    lines = text.removesuffix("...\n").rstrip("\n").split("\n")
    return "\n    ".join(line.strip() for line in lines)

"""Groups: what is independent of each other, so that splits, intervals and margins count it and not its images."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal

__all__ = ["PLURALS", "GroupKind"]

GroupKind = Literal["patient", "surgery", "image"]
"""What one group is; ``image`` if nothing better is known."""

PLURALS: Mapping[str, str] = MappingProxyType(
    {"patient": "patients", "surgery": "surgeries", "image": "images"}
)
"""What several groups of a kind are called."""

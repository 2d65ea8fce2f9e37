"""What a label id means: a name, a coded concept, a thing or stuff."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from clearmargin.errors import ConfigError, nearest

__all__ = ["Code", "LabelClass", "LabelMap"]


@dataclass(frozen=True, kw_only=True)
class Code:
    """A DICOM code triplet (PS3.3, 8.8), such as ``108369006, SCT, "Tumor"``."""

    value: str
    scheme: str
    meaning: str


@dataclass(frozen=True, kw_only=True)
class LabelClass:
    """One class of the label map.

    Attributes:
        id: Positive; 0 is the background.
        name: As tables and options call it.
        type: The segmented property type, coded; None until it is needed, which is when DICOM is written.
        category: The segmented property category, coded; None with ``type``.
        kind: ``thing`` is counted one by one; ``stuff`` is one region.
    """

    id: int
    name: str
    type: Code | None = None
    category: Code | None = None
    kind: Literal["thing", "stuff"] = "thing"

    @property
    def codes(self) -> tuple[Code, Code]:
        """Category and type, which DICOM cannot do without; ConfigError, with the way out, if the class has none."""
        if self.type is None or self.category is None:
            raise ConfigError(
                f"class '{self.name}' has no code, and DICOM needs one: add 'type' and 'category' to the class in "
                "model.yaml of the model folder ([value, scheme, meaning], such as ['10200004', SCT, Liver]) and in "
                "the data card, from which the next model takes them"
            )
        return self.category, self.type

    @property
    def code_text(self) -> str:
        """Value and scheme of the type, as tables show them; empty if the class has no code."""
        return "" if self.type is None else f"{self.type.value} {self.type.scheme}"


@dataclass(frozen=True)
class LabelMap:
    """The classes of a data set, in id order; ids are 1..K without a gap, as networks count them."""

    classes: tuple[LabelClass, ...]

    def __post_init__(self) -> None:
        ids = [c.id for c in self.classes]
        if ids != list(range(1, len(ids) + 1)):
            raise ConfigError(f"class ids are 1..{len(ids)} in order, not {ids}")
        names = [c.name for c in self.classes]
        if len(set(names)) != len(names):
            raise ConfigError(f"class names are unique, not {names}")

    def __repr__(self) -> str:
        return f"LabelMap({', '.join(f'{c.id} {c.name}' for c in self.classes)})"

    def __len__(self) -> int:
        return len(self.classes)

    @property
    def names(self) -> tuple[str, ...]:
        """Names in id order."""
        return tuple(c.name for c in self.classes)

    def by_id(self, label: int) -> LabelClass:
        """Return the class of id ``label``; ConfigError if there is none."""
        if not 1 <= label <= len(self.classes):
            raise ConfigError(f"no class with id {label}: there are 1..{len(self.classes)}")
        return self.classes[label - 1]

    def by_name(self, name: str) -> LabelClass:
        """Return the class called ``name``; ConfigError with the nearest name if there is none."""
        for c in self.classes:
            if c.name == name:
                return c
        raise ConfigError(f"no class '{name}': {nearest(name, self.names)}")

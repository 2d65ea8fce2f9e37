"""What a label id means: a name, a coded concept, a thing or stuff."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from clearmargin.errors import ConfigError, nearest

__all__ = ["Code", "LabelClass", "LabelMap", "PointType", "mirrored_order"]


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


@dataclass(frozen=True, kw_only=True)
class PointType:
    """One type of landmark.

    Attributes:
        name: As tables and options call it.
        code: What it is, coded; None until DICOM is written.
        mirror: The type that it becomes in a mirror, such as the right one of a left one; None for itself.
        falloff: COCO's ``k``: twice the standard deviation of labels, as a share of the object's size.
    """

    name: str
    code: Code | None = None
    mirror: str | None = None
    falloff: float = 0.05

    @property
    def coded(self) -> Code:
        """Its code, which DICOM cannot do without; ConfigError, with the way out, if it has none."""
        if self.code is None:
            raise ConfigError(
                f"point '{self.name}' has no code, and DICOM needs one: add 'code' to the point in model.yaml of the "
                "model folder ([value, scheme, meaning]) and in the data card, from which the next model takes it"
            )
        return self.code


def mirrored_order(types: tuple[PointType, ...]) -> list[int]:
    """Return which type each one is in a mirror: positions in ``types``."""
    names = [t.name for t in types]
    return [names.index(t.mirror or t.name) for t in types]


@dataclass(frozen=True)
class LabelMap:
    """The classes of a data set, in id order; ids are 1..K without a gap, as networks count them.

    Attributes:
        classes: The classes of instances.
        points: The types of landmarks, in the order that networks count them.
    """

    classes: tuple[LabelClass, ...]
    points: tuple[PointType, ...] = ()

    def __post_init__(self) -> None:
        ids = [c.id for c in self.classes]
        if ids != list(range(1, len(ids) + 1)):
            raise ConfigError(f"class ids are 1..{len(ids)} in order, not {ids}")
        names = [c.name for c in self.classes]
        if len(set(names)) != len(names):
            raise ConfigError(f"class names are unique, not {names}")
        by_name = {p.name: p for p in self.points}
        if len(by_name) != len(self.points):
            raise ConfigError(f"names of points are unique, not {[p.name for p in self.points]}")
        for point in self.points:
            other = by_name.get(point.mirror or point.name)
            if other is None or (other.mirror or other.name) != point.name:
                raise ConfigError(
                    f"point '{point.name}' has the mirror '{point.mirror}', which has to be a point whose mirror is "
                    f"'{point.name}'"
                )

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

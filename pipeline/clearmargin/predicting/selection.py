"""Which series of a study are taken: comparisons over DICOM attributes, as data; nothing in them is evaluated."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from pydantic import Field, field_validator

from clearmargin.config import Settings

__all__ = ["Condition", "Selection", "attributes_of"]

_ATTRIBUTES = (
    "Modality",
    "SeriesDescription",
    "StudyDescription",
    "ProtocolName",
    "BodyPartExamined",
    "ImageType",
    "Manufacturer",
    "ManufacturerModelName",
    "SOPClassUID",
    "SliceThickness",
    "SpacingBetweenSlices",
    "PixelSpacing",
    "Rows",
    "Columns",
    "ConvolutionKernel",
    "ContrastBolusAgent",
    "MagneticFieldStrength",
    "RepetitionTime",
    "EchoTime",
    "FlipAngle",
    "SequenceName",
    "ScanningSequence",
    "PatientPosition",
    "SeriesNumber",
    "SeriesInstanceUID",
    "StudyInstanceUID",
)
_OF_THE_SERIES = ("kind", "slices", "files")


class Condition(Settings):
    """What one attribute must be; every line that is given must hold.

    Attributes:
        equals: The value, or one of several.
        matches: A regular expression that is found in the value as text (several values are joined by a backslash).
        at_least: The least number.
        at_most: The largest number.
        absent: True: the attribute has no value. False: it has one.
    """

    equals: str | float | list[str | float] | None = None
    matches: str | None = None
    at_least: float | None = None
    at_most: float | None = None
    absent: bool | None = None

    @field_validator("matches")
    @classmethod
    def _compiles(cls, value: str | None) -> str | None:
        if value is not None:
            try:
                re.compile(value)
            except re.error as error:
                raise ValueError(f"'{value}' is not a regular expression: {error}") from None
        return value

    def holds(self, value: Any) -> bool:
        """Return whether a value fits; None is an absent one, which fits only ``absent: true``."""
        if self.absent is not None and self.absent != (value is None):
            return False
        if value is None:
            return self.absent is True
        if self.equals is not None:
            choices = self.equals if isinstance(self.equals, list) else [self.equals]
            values = value if isinstance(value, list) else [value]
            if not any(_same(v, choice) for v in [*values, value] for choice in choices):
                return False
        text = "\\".join(map(str, value)) if isinstance(value, list) else str(value)
        if self.matches is not None and not re.search(self.matches, text):
            return False
        numbers = [_number(v) for v in (value if isinstance(value, list) else [value])]
        if self.at_least is not None and not all(n is not None and n >= self.at_least for n in numbers):
            return False
        return self.at_most is None or all(n is not None and n <= self.at_most for n in numbers)


class Selection(Settings):
    """Which series are taken: those that fit a rule of ``take`` (all, if there is none) and no rule of ``skip``.

    A rule is a table of attributes, all of which must hold: DICOM keywords, and ``kind`` (volume, image, images, clip),
    ``slices`` and ``files`` of the series.
    """

    take: list[dict[str, Condition]] = Field(default_factory=list)
    skip: list[dict[str, Condition]] = Field(default_factory=list)

    @field_validator("take", "skip", mode="before")
    @classmethod
    def _short(cls, rules: Any) -> Any:
        """Let ``Modality: CT`` stand for ``Modality: {equals: CT}``."""
        if not isinstance(rules, list):
            return rules
        return [
            {k: v if isinstance(v, dict) else {"equals": v} for k, v in rule.items()}
            if isinstance(rule, dict)
            else rule
            for rule in rules
        ]

    @field_validator("take", "skip")
    @classmethod
    def _known(cls, rules: list[dict[str, Condition]]) -> list[dict[str, Condition]]:
        from clearmargin.errors import nearest

        for rule in rules:
            for name in rule:
                if name not in (*_ATTRIBUTES, *_OF_THE_SERIES):
                    raise ValueError(
                        f"no attribute '{name}': {nearest(name, [*_ATTRIBUTES, *_OF_THE_SERIES])}"
                    )
        return rules

    def names(self) -> frozenset[str]:
        """Return the attributes that the rules ask for."""
        return frozenset(name for rule in (*self.take, *self.skip) for name in rule)

    def takes(self, attributes: Mapping[str, Any]) -> bool:
        """Return whether a series with these attributes is taken."""

        def fits(rule: Mapping[str, Condition]) -> bool:
            return all(condition.holds(attributes.get(name)) for name, condition in rule.items())

        return (not self.take or any(map(fits, self.take))) and not any(map(fits, self.skip))


def attributes_of(file: Path, names: Collection[str]) -> dict[str, Any]:
    """Return what a selection asks for of one file's header, and nothing else; what is absent or empty is left out.

    Args:
        file: DICOM.
        names: As `Selection.names` gives them.
    """
    from clearmargin.formats.dicom.boundary import read_header

    asked = [name for name in _ATTRIBUTES if name in names]
    if not asked:
        return {}
    header = read_header(file, tags=asked)
    return {name: _plain(header.get(name)) for name in asked if header.get(name) not in (None, "")}


def _plain(value: Any) -> Any:
    if isinstance(value, str | int):
        return str(value) if isinstance(value, str) else int(value)
    try:
        return [_plain(v) for v in value] if not isinstance(value, float) else float(value)
    except TypeError:
        return str(value)


def _same(value: Any, choice: str | float) -> bool:
    if isinstance(choice, str):
        return str(value) == choice
    number = _number(value)
    return number is not None and number == float(choice)


def _number(value: Any) -> float | None:
    try:
        return float(value)
    except (TypeError, ValueError):
        return None

"""What a folder of images and masks turns out to be."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from clearmargin.core import Code
from clearmargin.errors import InputError

__all__ = ["DraftOptions", "Layout", "Objects", "QuestionError"]

Objects = Literal["parts", "values", "whole"]
"""What one object is in a mask: a connected part, a value, or everything of one class."""


class QuestionError(InputError):
    """What lies there can be read in more than one way; the message names the options that decide."""


@dataclass(frozen=True, kw_only=True)
class DraftOptions:
    """What a user may say instead of leaving it to a guess.

    Attributes:
        images: Folder, or pattern with ``*``, of the images, under the folder.
        masks: The same of the masks.
        classes: Names of the classes by value of the mask; value 0 names the only class.
        objects: What one object is in a mask.
        threshold: From which value on a blurred mask is object.
        group: What says which images belong to one patient: ``folder``, ``none``, or a regular expression, whose
            first group (or all of it) is the patient's name in the image's path.
    """

    images: str | None = None
    masks: str | None = None
    classes: Mapping[int, str] = field(default_factory=dict)
    objects: Objects | None = None
    threshold: int | None = None
    group: str | None = None

    @property
    def only_class(self) -> str | None:
        """The name of the only class, if it was given."""
        return self.classes.get(0)


@dataclass(kw_only=True)
class Layout:
    """Pairs of images and references, and how a card says so.

    Attributes:
        rows: A row for each case: ``id`` and the columns that the templates use; with ``group`` if it is known.
        images: Templates of the image, one for each channel.
        reference: Template of the reference.
        encoding: The card's ``encoding``.
        classes: Class names in the order of their ids.
        codes: Category and type of classes whose codes the files hold.
        modality: DICOM modality, ``OT`` if nothing says it.
        spacing: ``file`` or ``unknown``.
        pattern: What the pairs have in common, to be shown.
        guesses: What was guessed, by what it is about; each says what else it could be.
        left_out: Files without use by reason.
        template_label: Column of the index that names the class, if the class hangs on the case.
    """

    rows: list[dict[str, str]]
    images: tuple[str, ...] = ("{image}",)
    reference: str = "{reference}"
    encoding: dict[str, Any]
    classes: list[str]
    codes: dict[str, tuple[Code, Code]] = field(default_factory=dict)
    modality: str = "OT"
    spacing: Literal["file", "unknown"] = "unknown"
    pattern: str = ""
    guesses: dict[str, str] = field(default_factory=dict)
    left_out: dict[str, list[str]] = field(default_factory=dict)
    split_column: bool = False

    def leave_out(self, reason: str, *names: str) -> None:
        """Note files that the card does not use."""
        if names:
            self.left_out.setdefault(reason, []).extend(names)

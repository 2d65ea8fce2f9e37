"""What is known of a DICOM file before its pixels are read."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from clearmargin.formats.dicom.scan import QuickHeader

if TYPE_CHECKING:
    from pydicom.dataset import Dataset
    from pydicom.uid import UID

__all__ = ["Elements", "Header", "Stored", "syntax_of"]

_CSA_IMAGE_HEADER = (0x0029, 0x1010)  # private, of Siemens


class Stored(Protocol):
    """An element as it is stored: bytes, or converted already."""

    @property
    def value(self) -> Any:
        """The value, of a type that the element decides."""


class Elements(Protocol):
    """Values by keyword: what a ``pydicom.Dataset`` shares with a `QuickHeader`."""

    def __contains__(self, keyword: str, /) -> bool:
        """Return whether the element is there, if perhaps empty."""

    def get(self, keyword: str, default: Any = None, /) -> Any:
        """Return an element's value."""

    def get_item(self, keyword: str, /) -> Stored:
        """Return an element as it is stored."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Header:
    """A file's elements without its pixels.

    Attributes:
        file: The file. Private: paths may hold record numbers.
        elements: All elements, or the few that an index needs.
        pixels_at: Where in the file the pixel data element begins, in bytes.
    """

    file: Path
    elements: Dataset | QuickHeader
    pixels_at: int

    @cached_property
    def csa(self) -> dict[str, Any]:
        """The tags of Siemens's private image header; none if it is missing, unreadable, or left out by an index."""
        if isinstance(self.elements, QuickHeader) or _CSA_IMAGE_HEADER not in self.elements:
            return {}
        content = self.elements[_CSA_IMAGE_HEADER].value
        if not isinstance(content, bytes):
            return {}
        with warnings.catch_warnings():  # nibabel's remark that its DICOM readers are experimental
            warnings.simplefilter("ignore")
            from nibabel.nicom import csareader
        try:
            tags: dict[str, Any] = csareader.read(content)["tags"]
        except Exception:  # noqa: BLE001 - a damaged private header may provoke anything
            return {}
        return tags


def syntax_of(elements: Dataset | QuickHeader) -> UID | None:
    """Return the transfer syntax that a file names, None if it names none."""
    syntax: UID | None = getattr(getattr(elements, "file_meta", None), "TransferSyntaxUID", None)
    return syntax

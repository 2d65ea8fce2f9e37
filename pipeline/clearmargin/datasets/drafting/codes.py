"""Codes of common terms: what a class's name means in SNOMED CT."""

from __future__ import annotations

import functools
import re
from importlib import resources

from clearmargin.core import Code
from clearmargin.csv_files import parse_csv

__all__ = ["known_findings", "known_terms", "suggest_codes"]

_CATEGORIES = {  # PS3.16, CID 7150
    "anatomical structure": Code(value="91723000", scheme="SCT", meaning="Anatomical Structure"),
    "abnormal structure": Code(value="49755003", scheme="SCT", meaning="Morphologically Abnormal Structure"),
    "physical object": Code(value="260787004", scheme="SCT", meaning="Physical object"),
    "tissue": Code(value="85756007", scheme="SCT", meaning="Tissue"),
    "body substance": Code(value="91720002", scheme="SCT", meaning="Body Substance"),
}


def suggest_codes(name: str) -> tuple[Code, Code] | None:
    """Return category and type of a class's name; None if the table has no such term.

    Case, underscores, hyphens, and a side at either end (left, right) do not matter.

    >>> suggest_codes("Liver_Tumour") is None
    True
    >>> suggest_codes("left_kidney")[1].meaning
    'Kidney'
    """
    words = re.sub(r"[\W_]+", " ", name.lower()).strip()
    sideless = re.sub(r"^(left|right|l|r) | (left|right|l|r)$", "", words)
    table = _table()
    for term in (words, sideless, sideless.removesuffix("s")):
        if term in table:
            return table[term]
    return None


def known_terms() -> frozenset[str]:
    """Return every term of the table, in lower case."""
    return frozenset(_table())


def known_findings() -> frozenset[str]:
    """Return the terms that say what was outlined even in the name of a picture or of a whole data set.

    An organ's name there may only say what was imaged.
    """
    outlined = ("abnormal structure", "physical object")
    categories = {_CATEGORIES[c].value for c in outlined}
    terms = {term for term, (category, _) in _table().items() if category.value in categories}
    return frozenset(terms | {"nucleus", "nuclei", "cell", "cells"})


@functools.cache
def _table() -> dict[str, tuple[Code, Code]]:
    text = resources.files("clearmargin.datasets.drafting").joinpath("common_codes.csv").read_text("utf-8")
    table: dict[str, tuple[Code, Code]] = {}
    for row in parse_csv(text):
        code = Code(value=row["value"], scheme="SCT", meaning=row["meaning"])
        for word in row["words"].split("; "):
            table[word] = (_CATEGORIES[row["category"]], code)
    return table

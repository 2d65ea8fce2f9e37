"""What an image holds, as a hash: the same picture is known again under another name, card or user."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import numpy as np

from clearmargin.core import Image
from clearmargin.datasets.cases import Case, Dataset

__all__ = ["contents_of", "image_content"]

_DIGITS = 16


def image_content(image: Image) -> str:
    """Return 16 hex digits of the SHA-256 of an image's values and shape, whatever it is called and stored as.

    Values are taken as 32-bit floats, so that a change of the file format that keeps them keeps the hash; one that
    changes a value (another compression, another size) changes it. It is not keyed, so that every user has the same:
    who has the picture can tell whether a model has seen it, and nobody can tell what a picture was from it.
    """
    total = hashlib.sha256(repr(image.pixels.shape).encode())
    for channel in image.pixels:
        for plane in channel if channel.ndim > 2 else (channel,):
            total.update(np.ascontiguousarray(plane, "<f4").tobytes())
    return total.hexdigest()[:_DIGITS]


def contents_of(dataset: Dataset, cases: Iterable[Case]) -> list[str]:
    """Return the hash of each case's image, in order; the images are read once."""
    return [image_content(dataset.read(case)[0]) for case in cases]

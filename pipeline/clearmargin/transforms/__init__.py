"""MONAI in, MONAI out: transforms that load, tensors with geometry, label layers, intensity, one spatial resampling.

What a MONAI pipeline uses is here by name, and imported when it is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from clearmargin.errors import nearest

_PUBLIC = {
    "DicomReader": "transforms.readers",
    "FrameReader": "transforms.readers",
    "LoadCased": "datasets.loading",  # a card lies above this room, and is reached by its name alone
    "LoadPathd": "transforms.loading",
    "VolumeReader": "transforms.readers",
    "card_items": "datasets.loading",
    "image_of": "transforms.loading",
    "instances_of": "transforms.loading",
    "tensor_like": "transforms.loading",
}

__all__ = [  # noqa: PLE0604 - the names of the table above
    *_PUBLIC,
]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'clearmargin.transforms' has no '{name}': {nearest(name, _PUBLIC)}")
    return getattr(import_module(f"clearmargin.{_PUBLIC[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)

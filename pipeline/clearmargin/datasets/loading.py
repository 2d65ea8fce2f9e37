"""The cases of a data card as items of a MONAI data set, and the transform that loads them."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.transforms import Transform

from clearmargin.core import Image, InstanceSet
from clearmargin.datasets.card import SPLITS, Split
from clearmargin.datasets.cases import Case, Dataset, open_dataset
from clearmargin.errors import ConfigError, nearest
from clearmargin.transforms.loading import described
from clearmargin.transforms.samples import make_sample
from clearmargin.transforms.tensors import to_tensor

__all__ = ["LoadCased", "card_items", "case_sample"]


def card_items(card: str | PathLike[str], split: Split | None = None) -> list[dict[str, Any]]:
    """Return an item for each case of a card, as ``CacheDataset(card_items(card), LoadCased(card))`` wants them.

    Args:
        card: A data card.
        split: Split of the card; None for all of them.

    Returns:
        Of each case ``case`` (its id), ``group`` (a keyed hash), ``split``, and the card's strata under their names.

    Raises:
        ConfigError: The card does not fit, or has no case in the split.
        InputError: Files that it names are missing.
    """
    dataset = open_dataset(Path(card))
    if split is not None and split not in SPLITS:
        raise ConfigError(f"no split '{split}': {nearest(str(split), SPLITS)}")
    cases = dataset.cases if split is None else dataset.split(split)
    return [{**case.strata, "case": case.case, "group": case.group, "split": case.split} for case in cases]


class LoadCased(Transform):  # type: ignore[misc]
    """Load a case of a data card: its image, its instances as label layers, and what is left out of every number.

    An item with ``case`` gets:

    - ``image``: ``MetaTensor (C, *spatial)`` float32, as of `LoadPathd`.
    - ``layers``: ``MetaTensor (L, *spatial)`` float32 of whole numbers: the fewest layers in which no two instances
      share a pixel; ``i + 1`` marks instance ``i``. To be moved with ``mode="nearest"``.
    - ``labels``: ``(N,)`` int64, each instance's class in the card's label map.
    - ``anchors``: ``(N, ndim)`` float64, an element of each instance, by its index in what was loaded.
    - ``ignore``: ``MetaTensor (1, *spatial)`` float32, 1 in what no number counts (crowds too), else 0.

    `instances_of` turns a transformed item back into instances. It is pickled as the card's path and nothing else, so
    it goes to any process, and the path is what ``PersistentDataset(hash_transform=...)`` sees.
    """

    def __init__(self, card: str | PathLike[str]) -> None:
        """Name the card; it is opened when the first case is loaded, once in each process."""
        self.card = str(card)
        self._dataset: Dataset | None = None
        self._cases: dict[str, Case] = {}

    def __repr__(self) -> str:
        return f"LoadCased({self.card!r})"  # what MONAI's error says of it

    def __getstate__(self) -> dict[str, Any]:
        return {"card": self.card, "_dataset": None, "_cases": {}}

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the item with its case loaded.

        Raises:
            ConfigError: The card does not fit, or the item does not name one of its cases.
            InputError: A file does not hold what the card says. GeometryError: its reference lies elsewhere.
        """
        if self._dataset is None:
            self._dataset = open_dataset(Path(self.card))
            self._cases = {case.case: case for case in self._dataset.cases}
        if not isinstance(data, Mapping) or "case" not in data:
            raise ConfigError(
                "an item for LoadCased holds 'case', a case id: card_items(card) gives the items"
            )
        name = str(data["case"])
        if name not in self._cases:
            raise ConfigError(
                f"card '{self._dataset.card.name}' has no case '{name}': card_items(card) gives those it has"
            )
        image, instances = self._dataset.read(self._cases[name])
        return dict(data) | case_sample(image, instances)


def case_sample(image: Image, instances: InstanceSet) -> dict[Hashable, Any]:
    """Return what `LoadCased` makes of a case that was read."""
    sample = make_sample(image, instances)
    unmeasured = instances.unmeasured()
    ignore = np.zeros((1, *image.grid.shape), np.uint8)
    if unmeasured is not None:
        ignore[0][unmeasured.slices] = unmeasured.crop
    tensors = {"image": sample["image"], "layers": sample["layers"], "ignore": to_tensor(ignore, image.grid)}
    return {
        **{key: described(tensor, image, name=image.source.case) for key, tensor in tensors.items()},
        # copies: an item may outlive its case
        "labels": torch.from_numpy(sample["labels"].copy()),
        "anchors": torch.from_numpy(sample["anchors"].copy()),
    }

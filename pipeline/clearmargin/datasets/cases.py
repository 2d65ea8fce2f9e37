"""The cases of a card: found, split by unit, read with their reference instances."""

from __future__ import annotations

import csv
import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clearmargin.core import Grid, Image, InstanceSet, Mask
from clearmargin.datasets.card import SPLITS, Card, LabelImage, LabelVolume, Split, ValueMasks, read_card
from clearmargin.errors import ConfigError, GeometryError, InputError
from clearmargin.formats import read_image
from clearmargin.privacy import case_id

__all__ = ["Case", "Dataset", "open_dataset"]


@dataclass(frozen=True, kw_only=True)
class Case:
    """One image with its reference.

    Attributes:
        case: Keyed hash; the only name that leaves this process.
        unit: Keyed hash of the unit of independence.
        split: The split its unit belongs to.
        strata: Values of the card's stratifying columns.
    """

    case: str
    unit: str
    split: Split
    strata: dict[str, str]
    image: Path = field(repr=False)
    reference: Path = field(repr=False)
    ignore: Path | None = field(repr=False, default=None)
    row: dict[str, str] = field(repr=False, default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """A card and its cases, all splits together."""

    card: Card
    cases: tuple[Case, ...]

    def split(self, name: Split) -> tuple[Case, ...]:
        """Return the cases of one split; ConfigError where it is empty."""
        chosen = tuple(c for c in self.cases if c.split == name)
        if not chosen:
            counts = {s: sum(c.split == s for c in self.cases) for s in SPLITS}
            raise ConfigError(f"card '{self.card.name}' has no case in split '{name}' (it has {counts})")
        return chosen

    def read(self, case: Case) -> tuple[Image, InstanceSet]:
        """Return a case's image and its reference instances on the image's grid.

        Raises:
            InputError: A file is missing or does not hold what the card says; GeometryError: its reference
                lies on another grid.
        """
        image = read_image(case.image)
        image = replace(
            image,
            grid=_with_spacing(image.grid, self.card),
            source=replace(
                image.source, case=case.case, modality=image.source.modality or self.card.modality
            ),
        )
        reference = _REFERENCE_READERS[self.card.encoding.kind](self.card, case, image.grid)
        if case.ignore is not None:
            reference = replace(reference, ignore=Mask.from_dense(_read_labels(case.ignore, image.grid)))
        return image, reference

    def digest(self) -> str:
        """Return the SHA-256 over every image and reference file, in case order: what "the same data" means."""
        total = hashlib.sha256()
        for case in self.cases:
            total.update(f"{case.split}\0".encode())
            for path in (case.image, case.reference, case.ignore):
                for file in _files(path):
                    with file.open("rb") as stream:
                        total.update(hashlib.file_digest(stream, "sha256").digest())
        return total.hexdigest()


def open_dataset(card_path: Path) -> Dataset:
    """Read a card and find its cases.

    Raises:
        ConfigError: The card, its index or a template does not fit. InputError: files named by it are missing;
            all are counted.
    """
    card, root = read_card(card_path)
    rows = list(card.cases.rows) if card.cases.index is None else _read_index(root / card.cases.index, card)
    absent = [c for c in (*card.cases.strata, *filter(None, [card.splits.column])) if c not in rows[0]]
    if absent:
        raise ConfigError(f"card '{card.name}': the index has no column {absent}; it has {list(rows[0])}")
    units = [_fill(card.cases.unit, row, card) for row in rows]
    assigned = _assign_splits(card, rows, units)
    cases = []
    for row, unit in zip(rows, units, strict=True):
        cases.append(
            Case(
                case=case_id(card.name, _fill(card.cases.id, row, card)),
                unit=case_id(card.name, "unit", unit),
                split=assigned[unit],
                strata={name: row[name] for name in card.cases.strata},
                image=root / _fill(card.cases.image, row, card),
                reference=root / _fill(card.cases.reference, row, card),
                ignore=None if card.cases.ignore is None else root / _fill(card.cases.ignore, row, card),
                row=row,
            )
        )
    if len({c.case for c in cases}) != len(cases):
        raise ConfigError(f"card '{card.name}': cases.id gives the same id to several rows of the index")
    missing = [c.case for c in cases if not (c.image.exists() and c.reference.exists())]
    if missing:
        raise InputError(
            f"card '{card.name}': {len(missing)} of {len(cases)} cases lack a file (first: {missing[0]}); "
            "check cases.image and cases.reference"
        )
    return Dataset(card=card, cases=tuple(cases))


def _read_index(path: Path, card: Card) -> list[dict[str, str]]:
    if not path.is_file():
        raise ConfigError(f"card '{card.name}': no index '{path.name}' in its data folder")
    with path.open(newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    if not rows:
        raise ConfigError(f"card '{card.name}': the index '{path.name}' has no rows")
    return rows


def _fill(template: str, row: dict[str, str], card: Card) -> str:
    try:
        return template.format_map(row)
    except (KeyError, ValueError) as error:
        raise ConfigError(
            f"card '{card.name}': template '{template}' does not fit the index ({error}); it has {list(row)}"
        ) from None


def _assign_splits(card: Card, rows: Sequence[dict[str, str]], units: Sequence[str]) -> dict[str, Split]:
    """Return each unit's split: the shipped one, then shares carved out of train by a seeded order of units."""
    assigned: dict[str, Split] = {}
    for row, unit in zip(rows, units, strict=True):
        split: Split = "train"
        if card.splits.column is not None:
            value = row[card.splits.column]
            if value not in card.splits.values:
                raise ConfigError(f"card '{card.name}': split value '{value}' is not in splits.values")
            split = card.splits.values[value]
        if assigned.setdefault(unit, split) != split:
            raise ConfigError(
                f"card '{card.name}': one {card.unit} lies in two splits ({assigned[unit]}, {split}); "
                "splits must be disjoint by unit"
            )

    # A hash orders the units, so that a unit's place does not depend on which others are there.
    def order(unit: str) -> str:
        return hashlib.sha256(f"{card.splits.seed}:{unit}".encode()).hexdigest()

    train = sorted((u for u, s in assigned.items() if s == "train"), key=order)
    taken = 0
    for split, share in card.splits.carve.items():
        count = max(1, math.floor(share * len(train) + 0.5))
        for unit in train[taken : taken + count]:
            assigned[unit] = split
        taken += count
    if card.splits.carve and taken >= len(train):
        raise ConfigError(
            f"card '{card.name}': carving leaves no {card.unit} to train on ({len(train)} in all)"
        )
    return assigned


def _with_spacing(grid: Grid, card: Card) -> Grid:
    if card.spacing.source == "unknown":
        return Grid.from_spacing(grid.shape) if grid.unit == "mm" else grid
    if card.spacing.source == "constant":
        return Grid.from_spacing(grid.shape, card.spacing.mm)
    if grid.unit != "mm":
        raise GeometryError(f"card '{card.name}' says spacing comes from the file, but the file has none")
    return grid


def _read_labels(path: Path, grid: Grid) -> NDArray[np.integer[Any]]:
    from clearmargin.formats.raster import read_label_raster
    from clearmargin.formats.volume import read_label_volume

    labels, found = (read_label_raster(path), None) if grid.ndim == 2 else read_label_volume(path)
    if labels.shape != grid.shape or (found is not None and not found.same_as(grid)):
        raise GeometryError(
            f"a reference lies on another grid than its image: {found or labels.shape} and {grid}; "
            "resample one of them before it enters a card"
        )
    return labels


def _label_image(card: Card, case: Case, grid: Grid) -> InstanceSet:
    encoding = card.encoding
    if not isinstance(encoding, LabelImage):
        raise TypeError(encoding)
    found = InstanceSet.from_label_image(grid, _read_labels(case.reference, grid))
    if len(found) == 0:  # a class template may then name no class at all ("normal")
        return found
    label = card.label_map.by_name(_fill(encoding.label, case.row, card)).id
    return replace(found, labels=np.full(len(found), label))


def _value_table(card: Card, case: Case, grid: Grid) -> InstanceSet:
    encoding = card.encoding
    if not isinstance(encoding, ValueMasks | LabelVolume):
        raise TypeError(encoding)
    labels = _read_labels(case.reference, grid)
    if labels.min() < 0:
        raise InputError(f"{case.case}: its reference holds negative values; label values are 0 or more")
    values = [int(v) for v in np.unique(labels) if v != 0]
    unknown = [v for v in values if v not in encoding.values]
    if unknown:
        raise InputError(
            f"{case.case}: its reference holds the values {unknown} that card '{card.name}' does not list"
        )
    found = InstanceSet.from_label_image(grid, labels)
    classes = np.array([card.label_map.by_name(encoding.values[v]).id for v in values], np.int64)
    if isinstance(encoding, LabelVolume) and encoding.split_components:
        return _components(replace(found, labels=classes))
    return replace(found, labels=classes)


def _components(instances: InstanceSet) -> InstanceSet:
    """Return one instance for each face-connected component."""
    from scipy import ndimage

    masks, labels = [], []
    for mask, label in zip(instances.masks, instances.labels, strict=True):
        parts, count = ndimage.label(mask.crop)
        for k in range(1, count + 1):
            masks.append(Mask.from_crop(parts == k, mask.origin, mask.shape))
            labels.append(label)
    return InstanceSet(
        grid=instances.grid,
        masks=tuple(masks),
        labels=np.array(labels, np.int64),
        scores=np.ones(len(masks), np.float32),
    )


def _coco(card: Card, case: Case, grid: Grid) -> InstanceSet:
    from clearmargin.formats.coco import read_coco

    return read_coco(case.reference, image=case.image.name, grid=grid, label_map=card.label_map)


def _dicom_seg(card: Card, case: Case, grid: Grid) -> InstanceSet:
    from clearmargin.formats.dicom_seg_content import read_dicom_seg

    return read_dicom_seg(case.reference, grid=grid, label_map=card.label_map)


# A new encoding is one class in card.py, one reader here, one line.
_REFERENCE_READERS: dict[str, Callable[[Card, Case, Grid], InstanceSet]] = {
    "label_image": _label_image,
    "value_masks": _value_table,
    "label_volume": _value_table,
    "coco": _coco,
    "dicom_seg": _dicom_seg,
}


def _files(path: Path | None) -> list[Path]:
    if path is None:
        return []
    return sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]

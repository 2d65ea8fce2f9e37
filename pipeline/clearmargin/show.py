"""Look at a data set: counts, and a contact sheet of its cases with their reference instances."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from clearmargin.core import Grid, InstanceSet
from clearmargin.datasets.card import SPLITS
from clearmargin.datasets.cases import Case, Dataset, open_dataset
from clearmargin.formats.raster import write_raster
from clearmargin.report.annotated import class_keys, with_marks
from clearmargin.report.contact import contact_sheet
from clearmargin.report.overlay import overlay
from clearmargin.report.picture import enlargement
from clearmargin.report.progress import progress

__all__ = ["DatasetShown", "show_dataset"]


_TILES = ((3, 800), (12, 540))  # up to so many pictures, so wide each
_TILE = 360  # of more; 24, six in a row, are a sheet of 2200 x 1700: captions stay legible on a screen

_PLURAL = {"patient": "patients", "surgery": "surgeries", "image": "images"}


@dataclass(frozen=True, kw_only=True)
class DatasetShown:
    """What ``data show`` found: lines of text, and the contact sheet's file."""

    text: str
    sheet: Path


def show_dataset(card: Path, *, out: Path | None = None, cases: int = 24) -> DatasetShown:
    """Read every case of a card, count, and draw a contact sheet.

    Args:
        card: A data card.
        out: The sheet's file (PNG); None for ``NAME.png`` in the working directory.
        cases: How many cases the sheet shows, spread over all of them.

    Raises:
        ClearMarginError: The card, or a case, does not fit.
    """
    dataset = open_dataset(card)
    shown = set(
        np.linspace(0, len(dataset.cases) - 1, min(cases, len(dataset.cases))).round().astype(int).tolist()
    )
    tile = next((width for most, width in _TILES if len(shown) <= most), _TILE)
    pictures = []
    counted: list[tuple[Case, Grid, InstanceSet]] = []
    with progress("read", len(dataset.cases)) as bar:
        for index, case in enumerate(dataset.cases):
            image, reference = dataset.read(case)
            if index in shown:
                z = _fullest_slice(reference)
                scale = (
                    max(
                        enlargement((image.grid.shape[-2], image.grid.shape[-1])) * n
                        for n in image.grid.shape[-2:]
                    )
                    / tile
                )
                picture = overlay(image, reference, z=z, thickness=max(1, round(1.5 * scale)))
                marked = with_marks(
                    picture, image.grid, z, size=max(8, round((13 if tile == _TILE else 18) * scale))
                )
                held = f"{len(reference)} object{'' if len(reference) == 1 else 's'}"
                pictures.append((marked, f"{case.split} {case.case.removeprefix('case-')}: {held}"))
            counted.append((case, image.grid, reference))
            bar.advance()
    sheet = out or Path(f"{dataset.card.name}.png")
    card_shown = dataset.card
    drawn = contact_sheet(
        pictures, title=card_shown.title or card_shown.name, keys=class_keys(card_shown.label_map), tile=tile
    )
    write_raster(sheet, np.moveaxis(drawn, -1, 0))
    return DatasetShown(text=_describe(dataset, counted), sheet=sheet)


def _fullest_slice(reference: InstanceSet) -> int | None:
    """Return the slice that cuts most instances; None for a picture."""
    if reference.grid.ndim == 2:
        return None
    return int(np.argmax([len(reference.plane(z)[0]) for z in range(reference.grid.shape[0])]))


def _describe(dataset: Dataset, counted: list[tuple[Case, Grid, InstanceSet]]) -> str:
    card = dataset.card
    lines = [f"{card.title} ({card.name}, version {card.version}; {card.licence})"]
    lines.append(
        f"{'split':<12} {'cases':>6} {_PLURAL[card.unit]:>9} {'instances':>10} {'per case':>16} {'empty':>6}"
    )
    for split in SPLITS:
        here = [(case, reference) for case, _, reference in counted if case.split == split]
        if not here:
            lines.append(f"{split:<12} {0:>6}")
            continue
        counts = np.array([len(reference) for _, reference in here])
        spread = f"{counts.min()} / {int(np.median(counts))} / {counts.max()}"
        units = len({case.unit for case, _ in here})
        lines.append(
            f"{split:<12} {len(here):>6} {units:>9} {counts.sum():>10} {spread:>16} {int((counts == 0).sum()):>6}"
        )
    lines.append("(per case: least / median / most)")
    labels = Counter(int(label) for _, _, reference in counted for label in reference.labels)
    unit = counted[0][1].unit
    power = f"{unit}^{counted[0][1].ndim}"
    for c in card.label_map.classes:
        sizes = [
            mask.area * reference.grid.voxel_size
            for _, _, reference in counted
            for mask, label in zip(reference.masks, reference.labels, strict=True)
            if label == c.id
        ]
        spread = f"{min(sizes):.3g} / {np.median(sizes):.3g} / {max(sizes):.3g} {power}" if sizes else "-"
        lines.append(f"{c.name} ({c.kind}; {c.code_text or 'no code'}): {labels[c.id]} instances, {spread}")
    sizes_seen = Counter(str(grid) for _, grid, _ in counted)
    lines += [f"{count} x {grid}" for grid, count in sizes_seen.most_common(4)]
    if len(sizes_seen) > 4:
        lines.append(f"and {len(sizes_seen) - 4} other sizes")
    overlapping = sum(_overlaps(reference) for _, _, reference in counted)
    lines.append(f"cases with overlapping instances: {overlapping}")
    lines += [f"known fault: {fault}" for fault in card.faults]
    return "\n".join(lines)


def _overlaps(reference: InstanceSet) -> bool:
    from clearmargin.core.layers import pack_layers

    return len(pack_layers(reference)) > 1

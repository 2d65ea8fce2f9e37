"""Look at a data set: counts, and a contact sheet of its cases with their reference instances."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from clearmargin.core import Grid, InstanceSet, LabelClass
from clearmargin.core.groups import PLURALS
from clearmargin.core.landmarks import HIDDEN, SEEN
from clearmargin.datasets.card import SPLITS, Split
from clearmargin.datasets.cases import Case, Dataset, open_dataset
from clearmargin.datasets.far_points import FarPoint, far_points
from clearmargin.formats.raster import write_raster
from clearmargin.report.annotated import class_keys, with_marks
from clearmargin.report.contact import contact_sheet
from clearmargin.report.overlay import fullest_slice, overlay
from clearmargin.report.picture import enlargement
from clearmargin.report.progress import progress

__all__ = ["ClassCounts", "DatasetCounts", "DatasetShown", "PointCounts", "SplitCounts", "show_dataset"]


_TILES = ((3, 800), (12, 540))  # up to so many pictures, so wide each
_MOST_FAR = 20  # landmarks that are listed
_TILE = 360  # of more; 24, six in a row, are a sheet of 2200 x 1700: captions stay legible on a screen


@dataclass(frozen=True, kw_only=True)
class SplitCounts:
    """What a split holds.

    Attributes:
        split: Its name.
        cases: Number of cases.
        groups: Patients, surgeries or images, as the card counts them.
        instances: Reference instances of all cases.
        instances_per_case: Least, median and most; None without a case.
        empty: Cases without an instance.
    """

    split: Split
    cases: int
    groups: int
    instances: int
    instances_per_case: tuple[int, int, int] | None
    empty: int


@dataclass(frozen=True, kw_only=True)
class ClassCounts:
    """What a class holds.

    Attributes:
        name: Name of the class.
        kind: ``thing`` or ``stuff``.
        code: Its code as text; empty without one.
        instances: Number of reference instances.
        sizes: Least, median and largest size; None without an instance.
    """

    name: str
    kind: str
    code: str
    instances: int
    sizes: tuple[float, float, float] | None


@dataclass(frozen=True, kw_only=True)
class PointCounts:
    """What a type of landmark holds: its name, how many are seen and hidden, and in how many cases there are any."""

    name: str
    seen: int
    hidden: int
    cases: int


@dataclass(frozen=True, kw_only=True)
class DatasetCounts:
    """What a data set holds.

    Attributes:
        splits: Each split.
        classes: Each class of the card.
        size_unit: Unit of the sizes: ``mm^2``, ``mm^3``, ``px^2`` or ``px^3``.
        grids: Number of cases by their grid, the most frequent first.
        overlapping: Cases whose instances overlap.
        points: Each type of landmark of the card.
        far_points: Landmarks to look at, far from the other points of their object.
    """

    splits: tuple[SplitCounts, ...]
    classes: tuple[ClassCounts, ...]
    size_unit: str
    grids: Mapping[str, int]
    overlapping: int
    points: tuple[PointCounts, ...] = ()
    far_points: tuple[FarPoint, ...] = ()


@dataclass(frozen=True, kw_only=True)
class DatasetShown:
    """What ``data show`` found: lines of text, the numbers in them, and the contact sheet's file."""

    text: str
    counts: DatasetCounts
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
                z = fullest_slice(reference)
                plane = (image.grid.shape[-2], image.grid.shape[-1])
                factors = enlargement(plane, image.grid.spacing[-2] / image.grid.spacing[-1])
                scale = max(f * n for f, n in zip(factors, plane, strict=True)) / tile
                picture = overlay(image, reference, z=z, thickness=max(1, round(1.5 * scale)))
                marked = with_marks(
                    picture, image.grid, z, size=max(8, round((13 if tile == _TILE else 18) * scale))
                )
                held = f"{len(reference)} object{'' if len(reference) == 1 else 's'}"
                if reference.landmarks is not None:
                    held += f", {reference.landmarks.count} landmarks"
                pictures.append((marked, f"{case.split} {case.case.removeprefix('case-')}: {held}"))
            counted.append((case, image.grid, reference))
            bar.advance()
    sheet = out or Path(f"{dataset.card.name}.png")
    card_shown = dataset.card
    drawn = contact_sheet(
        pictures, title=card_shown.title or card_shown.name, keys=class_keys(card_shown.label_map), tile=tile
    )
    write_raster(sheet, np.moveaxis(drawn, -1, 0))
    counts = _count(dataset, counted)
    return DatasetShown(text=_describe(dataset, counts), counts=counts, sheet=sheet)


def _split_counts(split: Split, cases: Sequence[tuple[Case, InstanceSet]]) -> SplitCounts:
    counts = np.array([len(reference) for _, reference in cases], np.int64)
    return SplitCounts(
        split=split,
        cases=len(counts),
        groups=len({case.group for case, _ in cases}),
        instances=int(counts.sum()),
        instances_per_case=(int(counts.min()), int(np.median(counts)), int(counts.max()))
        if len(counts)
        else None,
        empty=int((counts == 0).sum()),
    )


def _class_counts(kind: LabelClass, references: Sequence[InstanceSet]) -> ClassCounts:
    sizes = [
        mask.area * reference.grid.voxel_size
        for reference in references
        for mask, label in zip(reference.masks, reference.labels, strict=True)
        if label == kind.id
    ]
    return ClassCounts(
        name=kind.name,
        kind=kind.kind,
        code=kind.code_text,
        instances=len(sizes),
        sizes=(min(sizes), float(np.median(sizes)), max(sizes)) if sizes else None,
    )


def _count(dataset: Dataset, counted: Sequence[tuple[Case, Grid, InstanceSet]]) -> DatasetCounts:
    references = [reference for _, _, reference in counted]
    grid = counted[0][1]
    return DatasetCounts(
        splits=tuple(
            _split_counts(split, [(case, reference) for case, _, reference in counted if case.split == split])
            for split in SPLITS
        ),
        classes=tuple(_class_counts(c, references) for c in dataset.card.label_map.classes),
        size_unit=f"{grid.unit}^{grid.ndim}",
        grids=dict(Counter(str(grid) for _, grid, _ in counted).most_common()),
        overlapping=sum(_overlaps(reference) for reference in references),
        points=_point_counts(dataset, references),
        far_points=tuple(
            far_points(
                [
                    (case.case, grid, reference.landmarks)
                    for case, grid, reference in counted
                    if reference.landmarks is not None
                ]
            )
        ),
    )


def _point_counts(dataset: Dataset, references: Sequence[InstanceSet]) -> tuple[PointCounts, ...]:
    sets = [r.landmarks for r in references if r.landmarks is not None]
    return tuple(
        PointCounts(
            name=point.name,
            seen=sum(int((one.visible[:, k] == SEEN).sum()) for one in sets),
            hidden=sum(int((one.visible[:, k] == HIDDEN).sum()) for one in sets),
            cases=sum(bool((one.visible[:, k] > 0).any()) for one in sets),
        )
        for k, point in enumerate(dataset.card.label_map.points)
    )


def _describe(dataset: Dataset, counts: DatasetCounts) -> str:
    card = dataset.card
    lines = [f"{card.title} ({card.name}, version {card.version}; {card.licence})"]
    lines.append(
        f"{'split':<12} {'cases':>6} {PLURALS[card.group]:>9} {'instances':>10} {'per case':>16} {'empty':>6}"
    )
    for one in counts.splits:
        if one.instances_per_case is None:
            lines.append(f"{one.split:<12} {0:>6}")
            continue
        spread = " / ".join(map(str, one.instances_per_case))
        lines.append(
            f"{one.split:<12} {one.cases:>6} {one.groups:>9} {one.instances:>10} {spread:>16} {one.empty:>6}"
        )
    lines.append("(per case: least / median / most)")
    for kind in counts.classes:
        spread = (
            "-" if kind.sizes is None else f"{' / '.join(f'{v:.3g}' for v in kind.sizes)} {counts.size_unit}"
        )
        lines.append(
            f"{kind.name} ({kind.kind}; {kind.code or 'no code'}): {kind.instances} instances, {spread}"
        )
    lines += [
        f"landmark {point.name}: {point.seen} seen, {point.hidden} hidden, in {point.cases} cases"
        for point in counts.points
    ]
    unit = counts.size_unit[:2]
    lines += [
        f"look at {one.case}, object {one.object}: {one.point} lies {one.away:.4g} {unit} from the object's other "
        f"points; nine in ten lie within {one.usual:.3g} {unit}"
        for one in counts.far_points[:_MOST_FAR]
    ]
    if len(counts.far_points) > _MOST_FAR:
        lines.append(f"and {len(counts.far_points) - _MOST_FAR} other landmarks")
    lines += [f"{count} x {grid}" for grid, count in list(counts.grids.items())[:4]]
    if len(counts.grids) > 4:
        lines.append(f"and {len(counts.grids) - 4} other sizes")
    lines.append(f"cases with overlapping instances: {counts.overlapping}")
    lines += [f"known fault: {fault}" for fault in card.faults]
    return "\n".join(lines)


def _overlaps(reference: InstanceSet) -> bool:
    from clearmargin.core.layers import pack_layers

    return len(pack_layers(reference)) > 1

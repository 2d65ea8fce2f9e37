"""Draft a data card from a folder: choose a layout, group, split, read every case, write card and index."""

from __future__ import annotations

import math
import os
import re
import textwrap
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clearmargin.config import validate
from clearmargin.datasets.card import SPLITS, Card, Split, note_folder
from clearmargin.datasets.cases import Case, build_dataset
from clearmargin.datasets.drafting.coco import coco_files, draft_coco
from clearmargin.datasets.drafting.codes import suggest_codes
from clearmargin.datasets.drafting.dicom import code_of, draft_dicom, holds_annotated_dicom
from clearmargin.datasets.drafting.folders import draft_folders
from clearmargin.datasets.drafting.groups import guess_groups, shipped_splits
from clearmargin.datasets.drafting.layout import DraftOptions, Layout
from clearmargin.datasets.drafting.nnunet import draft_nnunet, is_nnunet
from clearmargin.datasets.drafting.writing import card_text
from clearmargin.errors import ClearMarginError, ConfigError, InputError
from clearmargin.files import csv_rows, dict_rows, whole, write_text

__all__ = ["SHARES", "Drafted", "draft_card"]

SHARES: dict[Split, float] = {"validation": 0.15, "calibration": 0.15, "test": 0.2}

_SPECK = 10  # pixels or voxels
_MODALITIES = {
    "US": ("us", "ultrasound", "busi", "echo", "sonography", "doppler"),
    "CT": ("ct", "cbct"),
    "MR": ("mr", "mri", "flair", "t1", "t2"),
    "DX": ("xray", "cxr", "radiograph", "radiographs"),
    "ES": ("endoscopy", "laparoscopy", "laparoscopic", "endovis", "colonoscopy", "polyp", "polyps", "kvasir"),
    "SM": ("microscopy", "histology", "pathology", "nuclei", "cells", "dsb2018", "he"),
    "OP": ("fundus", "retina"),
    "XC": ("dermoscopy", "isic", "skin"),
}


@dataclass(frozen=True, kw_only=True)
class Drafted:
    """A card that was drafted.

    Attributes:
        card: The card.
        index: Its table with a row for each case.
        text: What was found, guessed and left out, to be read by a person.
        cases: How many there are.
        instances: How many there are of each class.
    """

    card: Path
    index: Path
    text: str
    cases: int
    instances: dict[str, int]


def draft_card(
    folder: Path,
    out: Path | None = None,
    *,
    options: DraftOptions | None = None,
    modality: str | None = None,
    spacing_mm: float | None = None,
    shares: Mapping[Split, float] | None = None,
    seed: int = 0,
    overwrite: bool = False,
    advance: Callable[[int], object] = lambda total: None,
) -> Drafted:
    """Write a data card, and the index beside it, for a folder of images with masks.

    The folder is read as nnU-Net's ``dataset.json``, DICOM with SEG or RTSTRUCT, COCO, or folders of images and masks,
    whichever is there. Every case is read once; what cannot be read is left out and said so.

    Args:
        folder: Only read.
        out: The card; by default ``NAME.yaml`` in the working directory, after the folder. The index gets its name.
        options: What is not to be guessed.
        modality: DICOM's word, such as ``US``; by default guessed from names and files.
        spacing_mm: Pixel spacing in millimetres, for pictures whose files do not state it.
        shares: Shares of the groups that go to validation, calibration and test; the rest is for training.
        seed: Random seed for splitting the data.
        overwrite: Replace a card that is there.
        advance: Called after each file with how many there are.

    Raises:
        ConfigError: An option does not fit, or the card is there. InputError: Nothing in the folder can be used;
            QuestionError: it can be read in more than one way, and the message names the option that decides.
    """
    options = options or DraftOptions()
    if not folder.is_dir():
        raise InputError(f"there is no folder '{folder}'")
    name = _name(out.stem if out else folder.resolve().name)
    target = out or Path(f"{name}.yaml")
    index = target.with_suffix(".csv")
    for path in (target, index):
        if path.exists() and not overwrite:
            raise ConfigError(f"'{path}' is there: --overwrite replaces it, --out writes elsewhere")
    layout = _layout(folder, options, advance)
    _group(layout, options)
    layout.modality = modality or _modality(layout, folder, options)
    content = _content(layout, name, folder, target, spacing_mm)
    content["splits"] = _splits(layout, dict(shares or SHARES), seed)
    sizes, empty = _read_all(layout, content, folder, advance)
    if not layout.rows:
        reasons = "; ".join(f"{len(v)} {k}" for k, v in layout.left_out.items())
        raise InputError(f"no case of '{folder}' can be used: {reasons}")
    content["splits"] = _splits(layout, dict(shares or SHARES), seed)  # of the cases that are left
    target.parent.mkdir(parents=True, exist_ok=True)
    _write_index(index, layout)
    note_folder(folder)
    write_text(target, card_text(content))
    dataset = build_dataset(validate(content, Card, name=target.name), folder, layout.rows)
    splits = {r["id"]: c.split for r, c in zip(layout.rows, dataset.cases, strict=True)}
    text = _describe(layout, content, target, index, sizes, empty, splits)
    return Drafted(
        card=target,
        index=index,
        text=text,
        cases=len(layout.rows),
        instances={k: len(v) for k, v in sizes.items()},
    )


def _layout(folder: Path, options: DraftOptions, advance: Callable[[int], object]) -> Layout:
    if options.images is None and options.masks is None and is_nnunet(folder):
        return draft_nnunet(folder, options)
    masks = folder / options.masks if options.masks else None
    if masks is not None and masks.suffix.lower() == ".json":
        if not masks.is_file():
            raise ConfigError(f"--masks {options.masks}: there is no such file under FOLDER")
        return draft_coco(folder, [masks], options)
    dicom = options.masks is None or options.masks.upper() in ("SEG", "RTSTRUCT")
    if options.images is None and dicom and holds_annotated_dicom(folder):
        return draft_dicom(folder, options)
    files = coco_files(folder) if options.images is None and options.masks is None else []
    if files:
        return draft_coco(folder, files, options)
    return draft_folders(folder, options, advance)


def _name(text: str) -> str:
    name = re.sub(r"[^a-z0-9]+", "_", text.lower()).strip("_")
    return name or "data"


def _group(layout: Layout, options: DraftOptions) -> None:
    """Give each row its group, and its split if folders say it."""
    paths = [row["image"] for row in layout.rows]
    shipped = None if layout.split_column else shipped_splits(paths)
    if shipped is not None:
        layout.split_column = True
        for row, split in zip(layout.rows, shipped, strict=True):
            row["split"] = split
    if layout.split_column:
        layout.guesses["splits shipped"] = "folders or files say what is for training and what is not"
    if all("group" in row for row in layout.rows) and options.group is None:
        layout.guesses["groups"] = "one for each PatientID"
        return
    groups, how = guess_groups(paths, options.group)
    layout.guesses["groups"] = how
    for k, row in enumerate(layout.rows):
        row["group"] = row["id"] if groups is None else groups[k]


def _modality(layout: Layout, folder: Path, options: DraftOptions) -> str:
    if layout.modality != "OT":
        return layout.modality
    texts = [*folder.resolve().parts[-2:], layout.rows[0]["image"], *layout.classes]
    words = [w for text in texts for w in re.findall(r"[a-z0-9]+", text.lower())]
    for modality, known in _MODALITIES.items():
        if any(w in known for w in words):
            layout.guesses["modality"] = f"{modality}, by a name (--modality says otherwise)"
            return modality
    layout.guesses["modality"] = "OT (other), since no name says it: --modality US, CT, MR, ES, SM, ..."
    return "OT"


def _content(
    layout: Layout, name: str, folder: Path, target: Path, spacing_mm: float | None
) -> dict[str, Any]:
    """Return the card, without splits, as a mapping."""
    classes = []
    uncoded = []
    for k, title in enumerate(layout.classes, start=1):
        entry: dict[str, Any] = {"id": k, "name": title}
        codes = layout.codes.get(title) or suggest_codes(title)
        if codes is None:
            uncoded.append(title)
        else:
            entry |= {"type": code_of(codes[1]), "category": code_of(codes[0])}
        classes.append(entry)
    if uncoded:
        layout.guesses["codes"] = (
            f"none is known for {', '.join(uncoded[:6])}{', ...' * (len(uncoded) > 6)}; only DICOM output needs one "
            "(docs/data-cards.md)"
        )
    if spacing_mm is not None and layout.spacing == "file":
        raise ConfigError("--spacing-mm is for pictures: volumes and DICOM say their spacing themselves")
    spacing: dict[str, Any] = {"source": layout.spacing}
    if spacing_mm is not None:
        spacing = {"source": "constant", "mm": [spacing_mm, spacing_mm]}
    elif layout.spacing == "unknown":
        layout.guesses["spacing"] = "unknown: results are in pixels (--spacing-mm if all pictures have one)"
    root = os.path.relpath(folder.resolve(), target.resolve().parent).replace(os.sep, "/")
    images = list(layout.images)
    cases: dict[str, Any] = {
        "index": f"./{target.with_suffix('.csv').name}",
        "id": "{id}",
        "image": images[0] if len(images) == 1 else images,
        "reference": layout.reference,
    }
    if any(row.get("series") for row in layout.rows):
        cases["series"] = "{series}"
    cases["group"] = "{group}"
    own = len({row["group"] for row in layout.rows}) == len(layout.rows)
    return {
        "schema": 1,
        "name": name,
        "modality": layout.modality,
        "classes": classes,
        "root": root if root.startswith(".") else f"./{root}",
        "cases": cases,
        "encoding": layout.encoding,
        "spacing": spacing,
        "group": "image" if own and layout.spacing == "unknown" else "patient",
    }


def _splits(layout: Layout, shares: dict[Split, float], seed: int) -> dict[str, Any]:
    """Return the card's splits: those that are shipped, and shares of the groups for the others."""
    content: dict[str, Any] = {}
    given: set[str] = set()
    groups = {row["group"] for row in layout.rows}
    if layout.split_column:
        given = {row["split"] for row in layout.rows}
        content |= {"column": "split", "values": {s: s for s in sorted(given)}}
        groups = {row["group"] for row in layout.rows if row["split"] == "train"}
    splits: list[Split] = [
        s for s in ("validation", "test", "calibration") if shares.get(s) and s not in given
    ]
    # As many splits as leave a group for training, the most needed first.
    kept = list(splits[: max(0, len(groups) - 1)])
    while kept and sum(max(1, math.floor(shares[s] * len(groups) + 0.5)) for s in kept) >= len(groups):
        kept.pop()
    carve = {s: shares[s] for s in SPLITS if s in kept}
    dropped = [s for s in splits if s not in kept]
    if dropped:
        layout.guesses["splits left empty"] = f"{', '.join(dropped)}: too few groups ({len(groups)})"
    return content | {"carve": carve, "seed": seed}


def _read_all(
    layout: Layout, content: dict[str, Any], folder: Path, advance: Callable[[int], object]
) -> tuple[dict[str, list[int]], int]:
    """Read each case, leave out what cannot be read, and return each class's sizes and how many cases are empty."""
    card = validate(content, Card, name="the draft")
    if layout.spacing == "file" and not _in_millimetres(card, folder, layout):
        layout.spacing = "unknown"
        content["spacing"] = {"source": "unknown"}
        card = validate(content, Card, name="the draft")
        layout.guesses["spacing"] = "unknown: the files do not say it"
    dataset = build_dataset(card, folder, layout.rows)
    sizes: dict[str, list[int]] = {name: [] for name in layout.classes}
    kept, empty = [], 0
    for row, case in zip(layout.rows, dataset.cases, strict=True):
        try:
            _, reference = dataset.read(case)
        except ClearMarginError as error:
            layout.leave_out(_reason(error, case), row["image"])
            continue
        finally:
            advance(len(layout.rows))
        kept.append(row)
        empty += len(reference) == 0
        for label, mask in zip(reference.labels, reference.masks, strict=True):
            sizes[card.label_map.by_id(int(label)).name].append(mask.area)
    layout.rows = kept
    specks = sum(area < _SPECK for areas in sizes.values() for area in areas)
    if specks and layout.encoding.get("split_components"):
        layout.guesses["specks"] = (
            f"{specks} objects have fewer than {_SPECK} px: parts that were drawn by accident? They count as objects "
            "(--objects whole: all of a mask is one)"
        )
    return sizes, empty


def _in_millimetres(card: Card, folder: Path, layout: Layout) -> bool:
    from clearmargin.formats import read_image

    for row in layout.rows[:3]:
        try:
            return read_image(folder / row["image"], series=row.get("series") or None).grid.unit == "mm"
        except ClearMarginError:
            continue
    return True


def _reason(error: ClearMarginError, case: Case) -> str:
    """Return why a case is left out, without its id and the way to the crosswalk: the list names the file."""
    text = str(error).removeprefix(f"{case.case}: ").split(" (`clearmargin cases")[0]
    text = re.sub(r"'[^']*\.[A-Za-z.]{2,8}'", "a file", text)
    return f"cases that cannot be read: {text}"


def _write_index(path: Path, layout: Layout) -> None:
    columns = list(dict.fromkeys(c for row in layout.rows for c in row))
    with whole(path) as draft, draft.open("w", newline="", encoding="utf-8") as stream:
        csv_rows(stream, dict_rows(layout.rows, columns))


def _describe(
    layout: Layout,
    content: dict[str, Any],
    card: Path,
    index: Path,
    sizes: dict[str, list[int]],
    empty: int,
    splits: dict[str, Split],
) -> str:
    rows = layout.rows
    lines = [f"{content['name']}: {len(rows)} cases, {layout.pattern}", ""]
    lines += [f"  {row['image']}  <-  {_shown(row['reference'])}" for row in rows[:3]]
    lines += ["  ..."] if len(rows) > 3 else []
    lines += ["", "guessed"]
    for what, how in layout.guesses.items():
        lines += textwrap.wrap(f"{what}: {how}", 110, initial_indent="  ", subsequent_indent="    ")
    lines += ["", "classes (sizes: least / median / largest)"]
    for entry in content["classes"]:
        code = entry.get("type")
        shown = f"{code['value']} {code.get('scheme', 'SCT')} ({code['meaning']})" if code else "no code"
        areas = sorted(sizes[entry["name"]])
        spread = f", {areas[0]} / {areas[len(areas) // 2]} / {areas[-1]} px" if areas else ""
        lines.append(f"  {entry['name']}: {len(areas)} objects{spread}; {shown}")
    lines.append(f"  cases without an object: {empty}") if empty else None
    lines += ["", f"splits, by {_grouped_by(content)} (seed {content['splits']['seed']})"]
    for split in SPLITS:
        here = [row for row in rows if splits[row["id"]] == split]
        lines.append(f"  {split}: {len(here)} cases, {len({row['group'] for row in here})} groups")
    if layout.left_out:
        lines += ["", "left out"]
        for reason, names in layout.left_out.items():
            more = f", and {len(names) - 3} more" if len(names) > 3 else ""
            shown = f"{len(names)} {reason}: {', '.join(names[:3])}{more}"
            lines += textwrap.wrap(shown, 110, initial_indent="  ", subsequent_indent="    ")
    lines += ["", f"card: {card} (its cases: {index}); correct there what is wrong"]
    lines.append(f"next: clearmargin data show {card}")
    return "\n".join(lines)


def _grouped_by(content: dict[str, Any]) -> str:
    return "group" if content["group"] == "patient" else "image"


def _shown(reference: str) -> str:
    names = reference.split(";")
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"

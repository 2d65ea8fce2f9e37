"""COCO files beside their pictures."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from clearmargin.datasets.drafting.groups import SPLIT_FOLDERS
from clearmargin.datasets.drafting.layout import DraftOptions, Layout, QuestionError
from clearmargin.errors import ConfigError, InputError
from clearmargin.files import parse_json
from clearmargin.formats import READERS

__all__ = ["coco_files", "draft_coco"]


def coco_files(folder: Path) -> list[Path]:
    """Return the COCO files below a folder that name pictures and annotations."""
    return [p for p in sorted(folder.rglob("*.json")) if p.is_file() and _is_coco(p)]


def draft_coco(folder: Path, files: list[Path], options: DraftOptions) -> Layout:
    """Return the layout of a folder's COCO files.

    Raises:
        InputError: No picture that they name is there. QuestionError: Several list the same pictures.
    """
    pictures: dict[str, list[str]] = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and READERS.get(path.suffix.lower(), "").startswith("raster"):
            pictures.setdefault(path.name, []).append(path.relative_to(folder).as_posix())
    layout = Layout(encoding={"kind": "coco"}, rows=[], classes=[], spacing="unknown")
    counts: Counter[str] = Counter()
    known: dict[str, str] = {}
    splits: list[str | None] = []
    for file in files:
        names, labelled, entries = _listed(file)
        annotated = Counter(image for image, _ in labelled)
        counts.update(names[category] for _, category in labelled if category in names)
        layout.classes += [n for _, n in sorted(names.items()) if n not in layout.classes]
        relative = file.relative_to(folder).as_posix()
        split = next((SPLIT_FOLDERS[w] for w in _words(relative) if w in SPLIT_FOLDERS), None)
        for number, name in entries:
            image = _picture(name, pictures, relative)
            if image is None:
                layout.leave_out("pictures that the COCO file names and that are not there", name)
                continue
            if image in known:
                raise QuestionError(
                    f"{known[image]} and {relative} list the same picture: name the file that counts, such as "
                    f"--masks {relative}"
                )
            known[image] = relative
            layout.rows.append({"id": image.rsplit(".", 1)[0], "image": image, "reference": relative})
            splits.append(split)
            if not annotated[number]:
                layout.guesses["empty"] = "pictures without annotations count as pictures without objects"
    if not layout.rows:
        raise InputError(
            f"none of the pictures that {', '.join(p.name for p in files)} name lies under the folder: give the "
            "folder that holds both"
        )
    others = [p for paths in pictures.values() for p in paths if p not in known]
    layout.leave_out("pictures that no COCO file lists", *others)
    layout.classes = [n for n in layout.classes if counts[n]] or layout.classes
    if options.classes:
        raise ConfigError("--class: a COCO file names its classes itself")
    if len(set(splits)) > 1 and None not in splits and "train" in splits:
        layout.split_column = True
        layout.rows = [r | {"split": str(s)} for r, s in zip(layout.rows, splits, strict=True)]
    layout.pattern = (
        f"{len(files)} COCO file(s), {', '.join(p.relative_to(folder).as_posix() for p in files[:3])}"
    )
    layout.guesses["masks"] = "each annotation is one object; crowds are ignored regions"
    return layout


def _picture(name: str, pictures: dict[str, list[str]], file: str) -> str | None:
    """Return the picture that an entry means: the one whose path ends like its name, nearest to the file."""
    places = pictures.get(name.rsplit("/", 1)[-1], [])
    ends = [p for p in places if f"/{p}".endswith(f"/{name}")] or (places if len(places) == 1 else [])
    if len(ends) > 1:
        words = set(_words(file))
        ends = [p for p in ends if set(_words(p)) & words & set(SPLIT_FOLDERS)] or ends
    return ends[0] if len(ends) == 1 else None


def _listed(file: Path) -> tuple[dict[Any, str], list[tuple[Any, Any]], list[tuple[Any, str]]]:
    """Return a COCO file's categories, each annotation's image and category, and its images with their names.

    Raises:
        InputError: One of them lacks what COCO asks for.
    """
    content = parse_json(file.read_text(encoding="utf-8"))
    try:
        names = {c["id"]: str(c["name"]) for c in content["categories"]}
        labelled = [(a["image_id"], a["category_id"]) for a in content["annotations"]]
        entries = [(e["id"], str(e["file_name"]).replace("\\", "/")) for e in content["images"]]
        hash((tuple(labelled), tuple(entries)))  # lists as ids could not be looked up
    except (KeyError, TypeError) as error:
        raise InputError(
            f"'{file.name}' is not a whole COCO file ({type(error).__name__}): expected id and name of categories, "
            "image_id and category_id of annotations, id and file_name of images"
        ) from None
    return names, labelled, entries


def _is_coco(path: Path) -> bool:
    try:
        content = parse_json(path.read_text(encoding="utf-8"))
        return isinstance(content, dict) and all(
            isinstance(content.get(k), list) for k in ("images", "annotations", "categories")
        )
    except (ValueError, OSError, RecursionError):
        return False


def _words(text: str) -> list[str]:
    cleaned = "".join(c if c.isalnum() else " " for c in text.lower())
    return ["".join(ch for ch in word if not ch.isdigit()) for word in cleaned.split()]

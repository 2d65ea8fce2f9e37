"""COCO files beside their pictures."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

from clearmargin.datasets.drafting.groups import SPLIT_FOLDERS
from clearmargin.datasets.drafting.layout import DraftOptions, Layout, QuestionError
from clearmargin.errors import ConfigError, InputError
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
        content = json.loads(file.read_text(encoding="utf-8"))
        names = {c["id"]: str(c["name"]) for c in content["categories"]}
        annotated = Counter(a["image_id"] for a in content["annotations"])
        counts.update(names[a["category_id"]] for a in content["annotations"] if a["category_id"] in names)
        layout.classes += [n for _, n in sorted(names.items()) if n not in layout.classes]
        relative = file.relative_to(folder).as_posix()
        split = next((SPLIT_FOLDERS[w] for w in _words(relative) if w in SPLIT_FOLDERS), None)
        for entry in content["images"]:
            name = str(entry["file_name"]).replace("\\", "/")
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
            if not annotated[entry["id"]]:
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


def _is_coco(path: Path) -> bool:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return isinstance(content, dict) and all(
            isinstance(content.get(k), list) for k in ("images", "annotations", "categories")
        )
    except (ValueError, OSError, RecursionError):
        return False


def _words(text: str) -> list[str]:
    cleaned = "".join(c if c.isalnum() else " " for c in text.lower())
    return ["".join(ch for ch in word if not ch.isdigit()) for word in cleaned.split()]

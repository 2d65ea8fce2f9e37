"""What a data set's masks hold: objects by value or by part, classes, or a blur."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clearmargin.datasets.drafting.codes import known_findings, known_terms
from clearmargin.datasets.drafting.layout import DraftOptions, QuestionError
from clearmargin.datasets.drafting.pairing import Pair, file_suffix
from clearmargin.errors import ClearMarginError, InputError

__all__ = ["MaskFacts", "Reading", "look_at_mask", "looks_like_masks", "read_masks"]

_VOLUMES = (".nii", ".nii.gz", ".nrrd", ".nhdr", ".mha", ".mhd")
_FLAT = 0.6  # of a label's pixels, so many lie in a square of four of their value; of a blur's, few do
_FEW = 24  # so many values can still be classes


@dataclass(frozen=True, kw_only=True)
class MaskFacts:
    """One mask file.

    Attributes:
        values: Distinct values that are not 0, in order.
        problem: Why it is not a mask as it is: ``blurred``, ``colour``, ``fractions`` or ``jpeg``; else empty.
        solid: Whether each value is one connected part, up to a hundredth of its area.
        touching: Whether two values touch.
        volume: Whether it is a volume.
    """

    values: tuple[int, ...]
    problem: str = ""
    solid: bool = True
    touching: bool = False
    volume: bool = False


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How masks are read: the card's encoding, the classes, a column of labels for each pair, and what was guessed."""

    encoding: dict[str, Any]
    classes: list[str]
    labels: list[str] | None
    guesses: dict[str, str]


def look_at_mask(path: Path) -> MaskFacts:
    """Return what a mask file holds.

    Raises:
        InputError: It cannot be read.
    """
    from clearmargin.formats import read_image

    if file_suffix(path.name) in _VOLUMES:
        return _facts(read_image(path).pixels[0], volume=True)
    image = read_image(path)  # with its palette applied: colours that mean values are seen as such
    if len(image.pixels) > 1 and not (image.pixels == image.pixels[:1]).all():
        from clearmargin.formats.raster import read_label_raster

        if path.suffix.lower() == ".png":
            try:  # a palette's indices
                return _facts(read_label_raster(path), volume=False)
            except InputError:
                pass
        return MaskFacts(values=(), problem="colour")
    facts = _facts(image.pixels[0], volume=image.grid.ndim == 3)
    if path.suffix.lower() in (".jpg", ".jpeg"):
        return MaskFacts(values=facts.values, problem="jpeg", volume=facts.volume)
    if not facts.problem:
        from clearmargin.formats.raster import read_label_raster

        return _facts(read_label_raster(path), volume=facts.volume)
    return facts


def _facts(array: NDArray[Any], *, volume: bool) -> MaskFacts:
    if not np.issubdtype(array.dtype, np.integer) and array.dtype != np.bool_:
        if not np.isfinite(array).all() or not np.array_equal(np.rint(array), array):
            return MaskFacts(values=(), problem="fractions", volume=volume)
        array = array.astype(np.int64)
    present, counts = np.unique(array, return_counts=True)
    values = tuple(int(v) for v in present if v != 0)
    if _is_blurred(array, present, counts):
        return MaskFacts(values=values, problem="blurred", volume=volume)
    solid, touching = _shape_of_values(array, values) if len(values) > 1 else (True, False)
    return MaskFacts(values=values, solid=solid, touching=touching, volume=volume)


def _is_blurred(array: NDArray[Any], present: NDArray[Any], counts: NDArray[Any]) -> bool:
    """Return whether values between the frequent ones lie scattered, as a codec's or a scaling's do."""
    frequent = set(present[np.argsort(counts)[::-1][:2]].tolist())
    rest = (array != 0) & ~np.isin(array, list(frequent))
    if len(present) < 5 or not rest.any():
        return False
    same = np.ones(tuple(n - 1 for n in array.shape[-2:]), bool)
    plane = array if array.ndim == 2 else array[array.shape[0] // 2]
    rest = rest if array.ndim == 2 else rest[array.shape[0] // 2]
    if not rest.any() or min(plane.shape) < 2:
        return False
    first = plane[:-1, :-1]
    for other in (plane[1:, :-1], plane[:-1, 1:], plane[1:, 1:]):
        same &= first == other
    flat = np.zeros(plane.shape, bool)
    for dy in (0, 1):
        for dx in (0, 1):
            flat[dy : dy + same.shape[0], dx : dx + same.shape[1]] |= same
    return bool((flat & rest).sum() < _FLAT * rest.sum())


def _shape_of_values(array: NDArray[Any], values: Sequence[int]) -> tuple[bool, bool]:
    """Return whether each value is one part, and whether two values touch."""
    from scipy import ndimage

    solid = True
    for value in values[:_FEW]:
        _, count = ndimage.label(array == value, np.ones((3,) * array.ndim))
        if count > 1:
            labelled, _ = ndimage.label(array == value, np.ones((3,) * array.ndim))
            sizes = np.bincount(labelled.ravel())[1:]
            solid &= bool(sizes.max() >= 0.99 * sizes.sum())
    touching = False
    for axis in range(array.ndim):
        a, b = np.moveaxis(array, axis, 0)[:-1], np.moveaxis(array, axis, 0)[1:]
        touching |= bool(((a != b) & (a != 0) & (b != 0)).any())
    return solid, touching


def looks_like_masks(paths: Sequence[Path]) -> bool:
    """Return whether a few files hold whole values in flat regions, mostly one of them."""
    try:
        facts = [look_at_mask(p) for p in paths]
    except ClearMarginError:
        return False
    return bool(facts) and all(
        not f.problem and 0 < len(f.values) < 500 for f in facts if f.values or f.problem
    )


def read_masks(
    pairs: Sequence[Pair], facts: Mapping[str, MaskFacts], options: DraftOptions, folder_words: Sequence[str]
) -> Reading:
    """Return how the masks of all pairs are read.

    Args:
        pairs: Images with their masks.
        facts: What each mask file holds, by path.
        options: What the user said.
        folder_words: Words of the folders' names, from which a single class takes its name.

    Raises:
        QuestionError: The masks can be read in several ways, or are blurred; the message names the options.
    """
    _refuse_problems(list(facts.values()), options)
    seen = sorted({v for f in facts.values() for v in f.values})
    if not seen:
        raise InputError(f"the {len(facts)} masks are all empty: there is nothing to learn from")
    several = any(len(p.masks) > 1 for p in pairs) or _tags_are_classes(pairs)
    if several:
        return _of_files(pairs, facts, options, folder_words)
    if options.threshold is not None or (
        all(len(f.values) <= 1 for f in facts.values()) and (len(seen) == 1 or set(seen) == {1, 255})
    ):
        return _of_one_value(pairs, facts, options, folder_words)
    return _of_values(pairs, facts, options, folder_words, seen)


def _refuse_problems(facts: Sequence[MaskFacts], options: DraftOptions) -> None:
    troubled = Counter(f.problem for f in facts if f.problem)
    if troubled["colour"]:
        raise InputError(
            f"{troubled['colour']} of {len(facts)} masks are in colour: a mask holds one value per pixel, 0 for "
            "background; write each colour as a value of its own, or each object as a mask of its own"
        )
    blurred = troubled["blurred"] + troubled["jpeg"] + troubled["fractions"]
    if blurred and options.threshold is None:
        most = max((len(f.values) for f in facts if f.problem), default=0)
        top = max((max(f.values, default=1) for f in facts if f.problem), default=255)
        why = {
            "jpeg": "are JPEG, whose compression blurs edges",
            "blurred": "hold values that lie scattered along edges, as after JPEG or a smooth resizing",
            "fractions": "hold fractions, as probabilities do",
        }
        reason = "; ".join(f"{troubled[k]} {text}" for k, text in why.items() if troubled[k])
        raise QuestionError(
            f"masks are blurred: of {len(facts)}, {reason} (up to {most} different values in one mask, which are not "
            f"so many objects). From which value on is a pixel object? --threshold {max(1, (top + 1) // 2)} takes half "
            "of the largest; better: give the masks as they were before"
        )


def _tags_are_classes(pairs: Sequence[Pair]) -> bool:
    """Return whether what stands beside the image's name is a class, since it comes back in other cases."""
    names = Counter(name for p in pairs for name in {_class_of(t) for t in p.tags})
    names.pop("", None)
    if not names:
        return False
    return all(n in known_terms() for n in names) or (len(pairs) > 1 and min(names.values()) > 1)


def _class_of(tag: str) -> str:
    """Return a tag without numbers at its end: ``liver_2`` is of class ``liver``."""
    return re.sub(r"[\s_\-.]+", "_", re.sub(r"[\s_\-.(]*\d*\)?$", "", tag)).strip("_").lower()


def _of_files(
    pairs: Sequence[Pair], facts: Mapping[str, MaskFacts], options: DraftOptions, words: Sequence[str]
) -> Reading:
    """Return the reading of mask files of their own."""
    many = [f for f in facts.values() if len(f.values) > 1]
    if many and options.threshold is None:
        raise QuestionError(
            f"images have several mask files, and {len(many)} of {len(facts)} hold more than one value: a mask file is "
            "one object, what is not 0; say --threshold N if they are blurred, or name one file per image with --masks"
        )
    parts = options.objects == "parts"
    encoding: dict[str, Any] = {"kind": "mask_files"}
    if _tags_are_classes(pairs) and options.only_class is None:
        labels = [";".join(_class_of(t) or "object" for t in p.tags) for p in pairs]
        classes = sorted({name for line in labels for name in line.split(";")})
        encoding["label"] = "{labels}"
        shown = ", ".join(classes[:8]) + ", ..." * (len(classes) > 8)
        what = f"each file is one object of the class in its name ({shown})"
    else:
        name, how = _single_class(options, words)
        labels, classes = None, [name]
        encoding["label"] = name
        what = f"each file is one object; {how}"
    if parts:
        encoding["split_components"] = True
        what += "; each connected part is an object of its own"
    if options.threshold is not None:
        encoding["threshold"] = options.threshold
    return Reading(encoding=encoding, classes=classes, labels=labels, guesses={"masks": what})


def _of_one_value(
    pairs: Sequence[Pair], facts: Mapping[str, MaskFacts], options: DraftOptions, words: Sequence[str]
) -> Reading:
    """Return the reading of masks that say object or not."""
    volume = any(f.volume for f in facts.values())
    objects = options.objects or ("whole" if volume else "parts")
    if objects == "values":
        raise QuestionError("--objects values: a mask holds one value only; say parts or whole")
    labels, classes, how = _classes_of_cases(pairs, options, words)
    encoding: dict[str, Any] = {"kind": "mask_files", "label": classes[0] if labels is None else "{labels}"}
    if objects == "parts":
        encoding["split_components"] = True
    if options.threshold is not None:
        encoding["threshold"] = options.threshold
    at = "not 0" if options.threshold is None else f"{options.threshold} or more"
    one, other = (
        ("each connected part", "whole: all of it is one object")
        if objects == "parts"
        else ("all of it", "parts: each connected part is one")
    )
    what = f"one mask an image; what is {at} is object, {one} is one object (--objects {other}); {how}"
    return Reading(encoding=encoding, classes=classes, labels=labels, guesses={"masks": what})


def _of_values(
    pairs: Sequence[Pair],
    facts: Mapping[str, MaskFacts],
    options: DraftOptions,
    words: Sequence[str],
    seen: Sequence[int],
) -> Reading:
    """Return the reading of masks of several values: classes, or objects."""
    named = {v: n for v, n in options.classes.items() if v}
    missing = [v for v in seen if v not in named]
    if named and missing:
        raise QuestionError(
            f"the masks hold the values {_short(missing)}, too: name them, such as --class {missing[0]}=NAME"
        )
    if options.objects is not None:
        reading, why = ("objects" if options.objects == "values" else "classes"), "you said so"
    elif named:
        reading, why = "classes", "you named them"
    elif options.only_class is not None:
        reading, why = "objects", "you named one class"
    else:
        reading, why = _classes_or_objects(list(facts.values()), seen)
    if reading == "objects":
        labels, classes, how = _classes_of_cases(pairs, options, words)
        most = max(len(f.values) for f in facts.values())
        what = (
            f"one mask an image; each value is one object (up to {most}): {why} (--objects parts or whole: values are "
            f"classes); {how}"
        )
        label = classes[0] if labels is None else "{labels}"
        return Reading(
            encoding={"kind": "label_image", "label": label},
            classes=classes,
            labels=labels,
            guesses={"masks": what},
        )
    table = named or {v: f"class_{v}" for v in seen}
    volume = any(f.volume for f in facts.values())
    objects = options.objects or ("whole" if volume else "parts")
    encoding: dict[str, Any] = {"kind": "label_volume" if volume else "value_masks", "values": table}
    if objects == "parts":
        encoding["split_components"] = True
    each = "each connected part of a value" if objects == "parts" else "all of a value"
    hint = "" if named else f"; name them with --class {seen[0]}=NAME --class {seen[1]}=NAME"
    what = (
        f"one mask an image; values are classes: {why} (--objects values: each value is one object); {each} is "
        f"one object (--objects {'whole' if objects == 'parts' else 'parts'} for the other){hint}"
    )
    classes = list(dict.fromkeys(table[v] for v in seen))
    return Reading(encoding=encoding, classes=classes, labels=None, guesses={"masks": what})


def _classes_or_objects(facts: Sequence[MaskFacts], seen: Sequence[int]) -> tuple[str, str]:
    """Return ``classes`` or ``objects`` and the reason.

    Raises:
        QuestionError: Both fit.
    """
    held = [f.values for f in facts if f.values]
    counted = sum(v == tuple(range(1, len(v) + 1)) for v in held) / len(held)
    most, least = max(map(len, held)), min(map(len, held))
    solid = all(f.solid for f in facts)
    touching = sum(f.touching for f in facts) / len(held)
    if len(seen) > _FEW:
        return "objects", f"there are {len(seen)} of them"
    if most == least and len(held) > 1 and most > 1:
        return "classes", "every mask holds the same ones"
    gaps = sum(v != tuple(seen[: len(v)]) for v in held) / len(held)
    if gaps >= 0.2:
        return "classes", "they come in any combination"
    if counted == 1 and solid and (touching < 0.1 or most > 8):
        return "objects", "they count from 1 in every mask, and each is one connected part"
    raise QuestionError(
        f"the masks hold the values {_short(seen)}, which could be classes or the numbers of objects. Say which: "
        "--objects values if each value is one object of one class, or --objects parts (each connected part of a "
        "value is an object) or whole, with a name for each: "
        + " ".join(f"--class {v}=NAME" for v in seen[:3])
        + (" ..." if len(seen) > 3 else "")
    )


def _classes_of_cases(
    pairs: Sequence[Pair], options: DraftOptions, words: Sequence[str]
) -> tuple[list[str] | None, list[str], str]:
    """Return the class of each case (None if there is only one), all classes, and how they were named."""
    if options.only_class is None:
        terms = known_findings() | {"normal", "healthy", "background", "negative"}
        for what, names in (
            ("folder", [_words_of(p.image.rsplit("/", 2)[-2]) if "/" in p.image else "" for p in pairs]),
            ("file name", [_words_of(re.split(r"[\s_\-.\d(]", p.name.rsplit("/", 1)[-1])[0]) for p in pairs]),
        ):
            if len(set(names)) > 1 and all(n in terms for n in names):
                empty = {"normal", "healthy", "background", "negative"}
                classes = sorted(set(names) - empty)
                if classes:
                    return (
                        names,
                        classes,
                        f"the class is the {what}'s ({', '.join(sorted(set(names)))}; --class NAME: one class)",
                    )
    name, how = _single_class(options, words)
    return None, [name], how


def _words_of(text: str) -> str:
    return re.sub(r"[\W_]+", " ", text).strip().lower()


def _single_class(options: DraftOptions, words: Sequence[str]) -> tuple[str, str]:
    if options.only_class is not None:
        return options.only_class, f"the class is '{options.only_class}'"
    for word in words:
        for term in (word.lower(), word.lower().removesuffix("s")):
            if term in known_terms():  # the folder's own words were sifted
                return term.replace(" ", "_"), f"the class is '{term}', after a folder's name (--class NAME)"
    return "object", "the class is called 'object' (--class NAME names it)"


def _short(values: Sequence[int]) -> str:
    shown = ", ".join(str(v) for v in values[:8])
    return f"{shown}, ... ({len(values)})" if len(values) > 8 else shown

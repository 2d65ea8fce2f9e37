"""Which file of a folder is an image and which are its masks, by the names of folders and files."""

from __future__ import annotations

import fnmatch
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from clearmargin.datasets.drafting.codes import known_terms
from clearmargin.datasets.drafting.layout import DraftOptions, QuestionError
from clearmargin.errors import ConfigError, InputError
from clearmargin.formats import READERS

__all__ = ["Pair", "Pairing", "file_suffix", "find_pairs"]

SUFFIXES = tuple(s for s, reader in READERS.items() if not reader.startswith("dicom"))

_MASK_WORDS = {
    *("mask", "masks", "label", "labels", "seg", "segs", "segmentation", "segmentations", "segmented"),
    *("annotation", "annotations", "gt", "groundtruth", "truth", "target", "targets", "manual", "labelstr"),
}
_MASK_ENDS = {*_MASK_WORDS, "labelmap", "manual1", "roi"} - {"target", "targets", "manual", "labelstr"}
_IMAGE_WORDS = {"image", "images", "img", "imgs", "imagestr", "input", "inputs", "raw", "frames", "original"}
_WORD = re.compile(r"[A-Za-z0-9]+")


@dataclass(frozen=True, kw_only=True)
class Pair:
    """An image, its masks, and what each mask's name says beside the image's: a number, a class, or nothing.

    ``further`` are the other sequences of the case, channels of one image, and ``sequences`` what all are called.
    """

    name: str
    image: str
    further: tuple[str, ...] = ()
    sequences: tuple[str, ...] = ()
    masks: tuple[str, ...]
    tags: tuple[str, ...]


@dataclass(kw_only=True)
class Pairing:
    """All pairs, in order; paths are relative to the folder."""

    pairs: list[Pair]
    pattern: str
    left_out: dict[str, list[str]] = field(default_factory=dict)


@dataclass(frozen=True)
class _File:
    path: str
    folder: str  # without folders that say what lies in them
    key: str  # the name without what says that it is a mask
    tag: str  # what stands behind it
    variant: str  # what else its mask folder is called: 'instrument' of masks_instrument


def find_pairs(
    folder: Path, options: DraftOptions, looks_like_masks: Callable[[Sequence[Path]], bool]
) -> Pairing:
    """Return the images below a folder with their masks.

    Args:
        folder: The folder.
        options: ``images`` and ``masks`` take the place of the guess.
        looks_like_masks: Asked of a few files if no name says which are the masks.

    Raises:
        InputError: There is no image, or no mask. QuestionError: There are several sets of masks.
    """
    paths = [
        p.relative_to(folder).as_posix()
        for p in sorted(folder.rglob("*"))
        if p.is_file() and file_suffix(p.name) in SUFFIXES
    ]
    paths = [p for p in paths if not any(part.startswith((".", "__")) for part in PurePosixPath(p).parts)]
    if not paths:
        raise InputError(
            f"'{folder}' holds no picture and no volume: expected DICOM, or files ending in {', '.join(SUFFIXES)}"
        )
    masks = _chosen(paths, options.masks, "--masks")
    images = _chosen(paths, options.images, "--images")
    if options.masks is None:
        masks = [_as_mask(p) for p in paths if _is_mask(p) and p not in {i.path for i in images}]
    if options.images is None:
        taken = {m.path for m in masks}
        images = [_as_image(p) for p in paths if p not in taken and not _is_mask(p)]
    if not masks and options.masks is None and options.images is None:
        images, masks = _by_content(paths, folder, looks_like_masks)
    if not masks or not images:
        raise InputError(
            f"'{folder}' holds {len(images)} images and {len(masks)} masks by their names: expected folders such as "
            "images and masks, or names such as X.png with X_mask.png; --images and --masks name a folder or a "
            "pattern each"
        )
    return _matched(images, masks)


def file_suffix(name: str) -> str:
    """Return the suffix in lower case, ``.nii.gz`` as one."""
    lower = name.lower()
    return ".nii.gz" if lower.endswith(".nii.gz") else PurePosixPath(lower).suffix


def _stem(path: str) -> str:
    name = PurePosixPath(path).name
    return name[: len(name) - len(file_suffix(name))]


def _words(text: str) -> list[str]:
    return [w.lower() for w in _WORD.findall(text)]


def _is_mask(path: str) -> bool:
    """Return whether a folder's or the file's own name says that it is a mask; the nearest folder decides."""
    for part in reversed(PurePosixPath(path).parent.parts):
        words = _words(part)
        if any(w in _MASK_WORDS for w in words) and not all(w in _IMAGE_WORDS for w in words):
            return True
        if words and all(w in _IMAGE_WORDS for w in words):
            return False
    return any(w in _MASK_ENDS for w in _words(_stem(path)))


def _as_mask(path: str) -> _File:
    kept, variant = [], ""
    for part in PurePosixPath(path).parent.parts:
        words = _words(part)
        if any(w in _MASK_WORDS for w in words):
            variant = " ".join(w for w in words if w not in _MASK_WORDS)
        elif not (words and all(w in _IMAGE_WORDS for w in words)):
            kept.append(part)
    stem = _stem(path)
    marks = [m for m in _WORD.finditer(stem) if m.group().lower() in _MASK_ENDS]
    key, tag = stem, ""
    if marks:
        before, after = stem[: marks[-1].start()].strip(" _-."), stem[marks[-1].end() :].strip(" _-.")
        key, tag = (before, after) if before else (after, "")
    return _File(path, "/".join(kept), key, tag, variant)


def _as_image(path: str) -> _File:
    kept = [p for p in PurePosixPath(path).parent.parts if not all(w in _IMAGE_WORDS for w in _words(p))]
    stem = _stem(path)
    words = list(_WORD.finditer(stem))
    if len(words) > 1 and words[-1].group().lower() in {"image", "img", "raw"}:
        stem = stem[: words[-1].start()].strip(" _-.")
    return _File(path, "/".join(kept), stem, "", "")


def _chosen(paths: Sequence[str], rule: str | None, option: str) -> list[_File]:
    """Return the files that a folder or a pattern picks; what the stars of a pattern hold is the key."""
    if rule is None:
        return []
    pattern = rule.strip("/")
    if "*" not in pattern:
        inside = [p for p in paths if p.startswith(f"{pattern}/")]
        files = [_as_mask(p[len(pattern) + 1 :]) for p in inside]
        files = [_File(p, f.folder, f.key, f.tag, "") for p, f in zip(inside, files, strict=True)]
    else:
        expression = re.compile("(.*?)".join(re.escape(part) for part in pattern.split("*")) + "$")
        matches = [(p, expression.match(p)) for p in paths if fnmatch.fnmatchcase(p, pattern)]
        texts = [(p, "_".join(m.groups()).rpartition("/")) for p, m in matches if m]
        files = [_File(p, head, key, "", "") for p, (head, _, key) in texts]
    if not files:
        raise ConfigError(
            f"{option} {rule}: no picture or volume fits; it is a folder or a pattern under FOLDER"
        )
    return files


def _by_content(
    paths: Sequence[str], folder: Path, looks_like_masks: Callable[[Sequence[Path]], bool]
) -> tuple[list[_File], list[_File]]:
    """Return images and masks if two kinds of files have one name each and one kind looks like masks."""
    groups: dict[tuple[str, str], dict[str, str]] = defaultdict(dict)
    for p in paths:
        groups[str(PurePosixPath(p).parent), file_suffix(p)][_stem(p)] = p
    kinds = list(groups)
    shared = [
        (len(groups[a].keys() & groups[b].keys()), a, b) for i, a in enumerate(kinds) for b in kinds[i + 1 :]
    ]
    for count, a, b in sorted(shared, reverse=True):
        if count < 2 or count < 0.5 * min(len(groups[a]), len(groups[b])):
            continue
        masks = [
            kind
            for kind in (a, b)
            if looks_like_masks([folder / p for p in sorted(groups[kind].values())[:5]])
        ]
        if len(masks) == 1:
            other = b if masks[0] == a else a
            return (
                [_File(p, "", _stem(p), "", "") for p in groups[other].values()],
                [_File(p, "", _stem(p), "", "") for p in groups[masks[0]].values()],
            )
    return [], []


def _matched(images: Sequence[_File], masks: Sequence[_File]) -> Pairing:
    by_place = {(i.folder, i.key): i for i in images}
    by_key: dict[str, list[_File]] = defaultdict(list)
    by_folder: dict[str, list[_File]] = defaultdict(list)
    for image in images:
        by_key[image.key].append(image)
        by_folder[image.folder].append(image)
    held: dict[str, list[tuple[_File, str]]] = defaultdict(list)
    sequences: dict[str, list[_File]] = {}
    orphans: list[str] = []
    for mask in masks:
        owner, tag = _owner(mask, by_place, by_key, by_folder)
        if owner is None:
            files = _sequences(mask, by_folder)
            if not files:
                orphans.append(mask.path)
                continue
            owner, tag = files[0], mask.tag or ("" if _starts(files[0].key, mask.key) else mask.key)
            sequences[owner.path] = files
        held[owner.path].append((mask, tag))
    _refuse_other_sequences([sequences.get(i.path, [i]) for i in images if i.path in held])
    used = {*held, *(f.path for files in sequences.values() for f in files)}
    variants = _variants(held)
    pairs = []
    names = Counter(i.key for i in images)
    for image in images:
        if image.path not in held:
            continue
        masks_of = sorted(held[image.path], key=lambda pair: _natural(pair[0].path))
        name = image.key if names[image.key] == 1 and image.key else f"{image.folder}/{image.key}".strip("/")
        group = sequences.get(image.path, [image])
        called = _called(group)
        if len(group) > 1 or image.path in sequences:
            name = image.key.removesuffix(called[0]).strip(" _-.") or image.folder or image.key
        tags = tuple(mask.variant if variants else tag for mask, tag in masks_of)
        pairs.append(
            Pair(
                name=name,
                image=image.path,
                further=tuple(f.path for f in group[1:]),
                sequences=tuple(called) if len(group) > 1 else (),
                masks=tuple(m.path for m, _ in masks_of),
                tags=tags,
            )
        )
    if not pairs:
        raise InputError(
            f"none of the {len(masks)} masks has the name of one of the {len(images)} images; --images and --masks "
            "take patterns such as 'photos/*.jpg' and 'drawn/*_m.png', whose stars must hold the same text"
        )
    left_out = {
        "images without a mask": [i.path for i in images if i.path not in used],
        "masks without an image": orphans,
    }
    first = pairs[0]
    shown = _shown(by_path(images)[first.image], [m for m, _ in held[first.image]])
    return Pairing(pairs=pairs, pattern=shown, left_out={k: v for k, v in left_out.items() if v})


def by_path(files: Sequence[_File]) -> dict[str, _File]:
    """Return files by path."""
    return {f.path: f for f in files}


def _owner(
    mask: _File,
    by_place: dict[tuple[str, str], _File],
    by_key: dict[str, list[_File]],
    by_folder: dict[str, list[_File]],
) -> tuple[_File | None, str]:
    """Return the image that a mask belongs to, and what its name says beside the image's."""
    same = by_place.get((mask.folder, mask.key))
    if same is not None:
        return same, mask.tag
    beside = by_folder.get(mask.folder, [])
    longer = [i for i in beside if i.key and re.match(re.escape(i.key) + r"[\s_\-.(]", mask.key)]
    if longer:
        image = max(longer, key=lambda i: len(i.key))
        return image, " ".join(filter(None, (mask.key[len(image.key) :].strip(" _-.()"), mask.tag)))
    parent, _, last = mask.folder.rpartition("/")
    named = by_place.get((parent, last))
    if named is not None:  # masks/x/1.png and images/x.png
        return named, " ".join(filter(None, (mask.key, mask.tag)))
    alike = by_key.get(mask.key, [])
    if len(alike) == 1:  # masks/liver/x.png and images/x.png
        image_parts = alike[0].folder.split("/")
        extra = [part for part in mask.folder.split("/") if part and part not in image_parts]
        return alike[0], " ".join(filter(None, (*extra, mask.tag)))
    if len(beside) == 1 and mask.folder:  # a folder of its own for each case
        return beside[0], " ".join(filter(None, (mask.key, mask.tag)))
    return None, ""


def _starts(longer: str, shorter: str) -> bool:
    """Return whether a name begins with another one and goes on behind a mark."""
    return bool(shorter) and bool(re.match(re.escape(shorter) + r"[\s_\-.(]", longer))


def _sequences(mask: _File, by_folder: dict[str, list[_File]]) -> list[_File]:
    """Return the images of a mask that is named like the beginning of theirs, or is in a folder of the case's own.

    ``case1_seg`` belongs to ``case1_ct``, or to ``case1_t1`` and ``case1_t2``.
    """
    beside = by_folder.get(mask.folder, [])
    starting = [i for i in beside if _starts(i.key, mask.key)]
    if not starting and mask.folder:
        starting = beside
    return sorted(starting, key=lambda i: _natural(i.path))


def _called(files: Sequence[_File]) -> list[str]:
    """Return what the names of a case's sequences do not share: ``t1`` and ``t2``."""
    keys = [f.key for f in files]
    if len(keys) == 1:
        return [re.split(r"[\s_\-.]", keys[0])[-1]]
    marks = [
        m.end()
        for m in re.finditer(r"[\s_\-.]", keys[0])
        if all(k[: m.end()] == keys[0][: m.end()] for k in keys)
    ]
    return [k[max(marks, default=0) :] for k in keys]


def _refuse_other_sequences(cases: Sequence[Sequence[_File]]) -> None:
    """Raise QuestionError if cases do not have the same sequences."""
    kinds = Counter(tuple(_called(files)) if len(files) > 1 else ("",) for files in cases)
    if len(kinds) > 1:
        shown = "; ".join(
            f"{n} with {', '.join(k) if k != ('',) else 'one image'}" for k, n in kinds.most_common(3)
        )
        raise QuestionError(
            f"cases have several images for one mask, and not the same ones ({shown}): --images '*_NAME.nii.gz' takes "
            "one of them"
        )


def _variants(held: dict[str, list[tuple[_File, str]]]) -> bool:
    """Return whether sets of masks are classes, by the names of their folders.

    Raises:
        QuestionError: They are several readings of the same images.
    """
    clashing = {
        mask.variant or PurePosixPath(mask.path).parent.name
        for pairs in held.values()
        for mask, tag in pairs
        if any(other is not mask and other_tag == tag for other, other_tag in pairs)
    }
    if not clashing:
        return False
    if len(clashing) > 1 and clashing <= known_terms():
        return True
    folders = sorted({str(PurePosixPath(m.path).parent) for pairs in held.values() for m, _ in pairs})[:6]
    raise QuestionError(
        f"images have several sets of masks, in {', '.join(folders)}: name the one that counts, "
        f"such as --masks {folders[0]}"
    )


def _shown(image: _File, masks: Sequence[_File]) -> str:
    """Return the pattern of a pair: ``images/NAME.png with masks/NAME_*.png``."""

    def pattern(file: _File, key: str) -> str:
        head, _, name = file.path.rpartition("/")
        if file.folder and head:
            head = head.replace(file.folder, "*") if "/" not in file.folder else head
        shown = name.replace(key, "NAME", 1) if key and key in name else f"*{file_suffix(name)}"
        return f"{head}/{shown}" if head else shown

    text = pattern(masks[0], image.key)
    if len(masks) > 1:
        text = re.sub(r"(NAME\D*?)[\s_\-.(]*\d+\)?(?=\.)", r"\1*", text)
    return f"{pattern(image, image.key)} with {text}"


def _natural(text: str) -> list[tuple[int, str]]:
    """Return a sort key by which 10 comes behind 9."""
    return [(int(p), "") if p.isdigit() else (-1, p) for p in re.split(r"(\d+)", text)]

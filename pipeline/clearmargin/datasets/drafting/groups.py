"""Which images belong together, such as those of one patient: guessed from names, and never silently."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import PurePosixPath

from clearmargin.datasets.drafting.codes import known_terms
from clearmargin.errors import ConfigError

__all__ = ["SPLIT_FOLDERS", "guess_groups", "shipped_splits"]

_PERSON = re.compile(
    r"(?:^|[^A-Za-z0-9])((?:patient|pat|pt|subject|subj|sub|person|p|s|op|surgery|case|study|video|vid|seq|clip)"
    r"[-_ ]?\d+)(?![A-Za-z0-9])",
    re.IGNORECASE,
)
_NOT_A_PERSON = {"img", "image", "im", "frame", "slice", "mask", "tile", "patch", "scan", "t1", "t2", "pic"}

SPLIT_FOLDERS = {
    "train": "train",
    "training": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "dev": "validation",
    "calibration": "calibration",
    "test": "test",
    "testing": "test",
}


def guess_groups(names: Sequence[str], rule: str | None) -> tuple[list[str] | None, str]:
    """Return the group of each image (None if each is its own) and how it was found.

    Args:
        names: Paths or names of the images, relative to the folder.
        rule: ``folder``, ``none``, a regular expression, or None for a guess.

    Raises:
        ConfigError: The rule is not an expression, or does not fit every name.
    """
    if rule == "none":
        return None, "each image is a group of its own (you said so)"
    if rule == "folder":
        return [str(PurePosixPath(n).parent) for n in names], "a folder is a group (you said so)"
    if rule is not None:
        return _by_rule(names, rule), f"what fits {rule!r} in a name is its group"
    for groups, how in (_by_person(names), _by_folder(names), _by_prefix(names)):
        if groups is not None and 1 < len(set(groups)) < len(names):
            example = next(g for g in groups if groups.count(g) > 1)
            return (
                groups,
                f"{how}, such as '{example}' (--group says otherwise: folder, none, or an expression)",
            )
    return None, (
        "no patient is evident in the names, so each image is a group of its own; if one patient has several images, "
        "say --group folder, or --group with an expression such as '^([^_]+)', or splits leak"
    )


def shipped_splits(paths: Sequence[str]) -> list[str] | None:
    """Return each image's split if folders such as ``train`` and ``test`` say it; else None."""
    groups = []
    for path in paths:
        names = [SPLIT_FOLDERS.get(part.lower()) for part in PurePosixPath(path).parent.parts]
        names = [n for n in names if n]
        if len(names) != 1:
            return None
        groups.append(str(names[0]))
    return groups if len(set(groups)) > 1 and "train" in groups else None


def _by_rule(names: Sequence[str], rule: str) -> list[str]:
    try:
        expression = re.compile(rule)
    except re.error as error:
        raise ConfigError(f"--group {rule}: neither 'folder', 'none' nor an expression ({error})") from None
    matches = [expression.search(n) or expression.search(n.rsplit("/", 1)[-1]) for n in names]
    if not all(matches):
        raise ConfigError(
            f"--group {rule}: fits {sum(map(bool, matches))} of {len(names)} names; it must fit all of them"
        )
    return [m.group(1) if m and m.groups() else m.group() if m else "" for m in matches]


def _by_person(names: Sequence[str]) -> tuple[list[str] | None, str]:
    matches = [_PERSON.search(n) for n in names]
    if not all(matches):
        return None, ""
    return [m.group(1) if m else "" for m in matches], "the group is what a name says of patient or sequence"


def _by_folder(names: Sequence[str]) -> tuple[list[str] | None, str]:
    skipped = known_terms() | set(SPLIT_FOLDERS) | {"images", "image", "imgs", "img", "normal", "data"}
    parts = [
        [p for p in PurePosixPath(n).parent.parts if re.sub(r"[\W_]+", " ", p).lower() not in skipped]
        for n in names
    ]
    groups = ["/".join(p) for p in parts]
    return (groups if all(groups) else None), "a folder is a group"


def _by_prefix(names: Sequence[str]) -> tuple[list[str] | None, str]:
    """Return the first letters and digits of each name, if they are not just a word for an image."""
    stems = [PurePosixPath(n).name for n in names]
    matches = [re.match(r"([A-Za-z]{1,12}\d+)[_\-. ].*\d", s) for s in stems]
    if not all(matches) or any(m and re.sub(r"\d", "", m.group(1)).lower() in _NOT_A_PERSON for m in matches):
        return None, ""
    return [m.group(1) if m else "" for m in matches], "the group is how a name begins"

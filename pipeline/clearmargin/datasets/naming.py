"""How the files of a folder are named: which case each is of, and which class or instance."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from clearmargin.errors import ConfigError, InputError
from clearmargin.files import parse_json
from clearmargin.formats.label_files import LABEL_SUFFIXES

__all__ = ["CaseFile", "LabelNames", "case_files", "read_label_names", "suggest_pattern"]

_PLACES = {"case": r"[^/]+?", "class": r"[^/]+?", "instance": r"[^/]+?"}


@dataclass(frozen=True, kw_only=True)
class CaseFile:
    """One file of a case.

    Attributes:
        path: The file.
        kind: Class that all of it is; None where its values say.
        instance: Whether the file is one object.
    """

    path: Path
    kind: str | None = None
    instance: bool = False


@dataclass(frozen=True, kw_only=True)
class LabelNames:
    """What the values of label files mean, as nnU-Net's ``dataset.json`` says it.

    Attributes:
        regions: Values that make up each class, by name; a value may be in several.
        ignore: The value that nobody labelled; None for none.
    """

    regions: Mapping[str, tuple[int, ...]]
    ignore: int | None = None


def read_label_names(path: Path) -> LabelNames:
    """Return the labels of an nnU-Net ``dataset.json``, of either version.

    Raises:
        InputError: No such file, or no labels in it.
    """
    if not path.is_file():
        raise InputError(f"there is no file '{path.name}'")
    try:
        labels = parse_json(path.read_text(encoding="utf-8"))["labels"]
        by_name = {
            (str(value) if _is_number(key) else str(key)): (key if _is_number(key) else value)
            for key, value in labels.items()
        }
        regions = {
            name: tuple(int(v) for v in (value if isinstance(value, list) else [value]))
            for name, value in by_name.items()
        }
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise InputError(
            f"'{path.name}' is not a dataset.json of nnU-Net ({type(error).__name__}): expected \"labels\" with "
            "names and "
            "values"
        ) from None
    ignore = regions.pop("ignore", None)
    regions = {
        name: values for name, values in regions.items() if name.lower() != "background" and any(values)
    }
    if not regions:
        raise InputError(f"'{path.name}' names no class but the background")
    return LabelNames(regions=regions, ignore=None if ignore is None else ignore[0])


def case_files(folder: Path, pattern: str | None) -> dict[str, list[CaseFile]]:
    """Return the label files of a folder by case.

    Args:
        folder: Of files, or of one folder per case.
        pattern: Where a case's files lie, such as ``{case}_seg.nii.gz``, ``{case}/segmentations/{class}.nii.gz`` or
            ``{case}/masks/{instance}.png``; ``*`` stands for anything, and without a suffix any label file fits.
            None for
            a file per case, or a folder per case with one label file or with TotalSegmentator's ``segmentations``.

    Raises:
        ConfigError: A pattern without ``{case}``, or with a place that is none of the three.
        InputError: No file fits, or two do for one case.
    """
    if pattern is None:
        return _by_name(folder)
    expression, wild = _translated(pattern)
    cases: dict[str, list[CaseFile]] = {}
    for path in sorted(folder.glob(wild)):
        relative = path.relative_to(folder).as_posix()
        match = expression.fullmatch(relative)
        if match is None or not path.is_file() or not relative.lower().endswith(LABEL_SUFFIXES):
            continue
        places = match.groupdict()
        file = CaseFile(path=path, kind=places.get("class"), instance="instance" in places)
        cases.setdefault(places["case"], []).append(file)
    if not cases:
        raise InputError(f"no label file in '{folder.name}' fits the pattern '{pattern}'")
    for files in cases.values():
        if len(files) > 1 and len({f.kind for f in files}) < len(files) and not files[0].instance:
            raise InputError(
                f"the pattern '{pattern}' fits {len(files)} files of one case in '{folder.name}': make it "
                "narrower, or say "
                "with {class} or {instance} what tells them apart"
            )
    return cases


def suggest_pattern(names: Sequence[str], cases: Sequence[str]) -> str:
    """Return the pattern under which ``names`` become ``cases``, if all of them do; else nothing.

    >>> suggest_pattern(["a_seg", "b_seg"], ["a", "b"])
    '{case}_seg'
    """
    first = min(cases, default="")
    for name in names:
        if first and first in name and name != first:
            before, _, after = name.partition(first)
            if {f"{before}{case}{after}" for case in cases} <= set(names):
                return f"{before}{{case}}{after}"
    return ""


def _by_name(folder: Path) -> dict[str, list[CaseFile]]:
    cases: dict[str, list[CaseFile]] = {}
    for path in sorted(folder.iterdir()):
        name = _stem(path.name)
        if name is None or not path.is_file():
            continue
        if name in cases:
            raise InputError(
                f"folder '{folder.name}' has two files for case '{name}', of different suffixes: keep one, or give a "
                "pattern with the suffix"
            )
        cases[name] = [CaseFile(path=path)]
    if cases:
        return cases
    for sub in sorted(path for path in folder.iterdir() if path.is_dir()):
        files = [p for p in sorted(sub.iterdir()) if p.is_file() and _stem(p.name) is not None]
        parts = sub / "segmentations"
        if parts.is_dir():
            files = [p for p in sorted(parts.iterdir()) if p.is_file() and _stem(p.name) is not None]
            cases[sub.name] = [CaseFile(path=p, kind=_stem(p.name)) for p in files]
        elif len(files) == 1:
            cases[sub.name] = [CaseFile(path=files[0])]
        elif files:
            general = sorted({f"{{case}}/{p.name.replace(sub.name, '{case}')}" for p in files})
            raise InputError(
                f"'{folder.name}' has a folder per case with {len(files)} label files each: say which by a "
                "pattern, such "
                f"as {' or '.join(general[:6])}"
            )
    if not cases:
        raise InputError(f"no label file in '{folder.name}': expected {', '.join(LABEL_SUFFIXES)}")
    return cases


def _stem(name: str) -> str | None:
    """Return a file's name without its suffix, None if it is not a label file."""
    suffix = next((s for s in LABEL_SUFFIXES if name.lower().endswith(s)), None)
    return None if suffix is None or name.startswith(".") else name[: -len(suffix)]


def _translated(pattern: str) -> tuple[re.Pattern[str], str]:
    """Return a pattern as an expression over a relative path, and as a wildcard."""
    if "{case}" not in pattern:
        raise ConfigError(
            f"the pattern '{pattern}' does not say where the case's name stands: write {{case}} there"
        )
    out, wild = "", ""
    seen: set[str] = set()
    for part in re.split(r"(\{[^}]*\}|\*)", pattern):
        name = part[1:-1] if part.startswith("{") else ""
        if part == "*":
            out, wild = out + r"[^/]*", wild + "*"
        elif name:
            if name not in _PLACES:
                raise ConfigError(
                    f"the pattern '{pattern}' has {{{name}}}: it may have {{case}}, {{class}} and {{instance}}"
                )
            out += f"(?P={name})" if name in seen else f"(?P<{name}>{_PLACES[name]})"
            wild += "*"
            seen.add(name)
        else:
            out, wild = out + re.escape(part), wild + part.replace("[", "[[]").replace("?", "[?]")
    if not pattern.lower().endswith(LABEL_SUFFIXES):
        out += f"(?:{'|'.join(re.escape(s) for s in LABEL_SUFFIXES)})"
        wild += "*"
    return re.compile(out), wild


def _is_number(text: str) -> bool:
    return str(text).lstrip("-").isdigit()

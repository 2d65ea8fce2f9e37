"""Folders of images and masks."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from clearmargin.datasets.drafting.codes import known_findings
from clearmargin.datasets.drafting.layout import DraftOptions, Layout
from clearmargin.datasets.drafting.masks import MaskFacts, look_at_mask, looks_like_masks, read_masks
from clearmargin.datasets.drafting.pairing import Pair, find_pairs
from clearmargin.errors import InputError

__all__ = ["draft_folders"]


def draft_folders(
    folder: Path, options: DraftOptions, advance: Callable[[int], object] = lambda total: None
) -> Layout:
    """Return the layout of a folder of pictures or volumes and their masks.

    Args:
        folder: The folder.
        options: What the user said.
        advance: Called after each mask with how many there are.

    Raises:
        InputError: There is nothing to pair. QuestionError: It can be read in more than one way.
    """
    pairing = find_pairs(folder, options, looks_like_masks)
    left_out = dict(pairing.left_out)
    facts: dict[str, MaskFacts] = {}
    pairs: list[Pair] = []
    total = sum(len(p.masks) for p in pairing.pairs)
    for pair in pairing.pairs:
        try:
            facts |= {mask: _looked_at(folder / mask, advance, total) for mask in pair.masks}
        except InputError:
            left_out.setdefault("images whose mask cannot be read", []).append(pair.image)
            continue
        pairs.append(pair)
    if not pairs:
        raise InputError(f"none of the {len(pairing.pairs)} masks can be read as a picture or a volume")
    used = {mask: facts[mask] for p in pairs for mask in p.masks}
    own = [w for w in re.findall(r"[a-z]+", folder.resolve().name.lower()) if w in known_findings()]
    words = [w for part in _folders(pairs) for w in re.findall(r"[A-Za-z]+", part)] + own
    reading = read_masks(pairs, used, options, words)
    rows: list[dict[str, str]] = []
    for k, pair in enumerate(pairs):
        row = {"id": pair.name, "image": pair.image, "reference": ";".join(pair.masks)}
        row |= {f"image_{n}": path for n, path in enumerate(pair.further, start=1)}
        rows.append(row | ({} if reading.labels is None else {"labels": reading.labels[k]}))
    encoding: dict[str, Any] = reading.encoding
    if any(";" in mask for p in pairs for mask in p.masks):
        raise InputError("names of masks hold ';', which parts them in a card: rename them")
    volume = any(f.volume for f in used.values())
    channels = max(1 + len(p.further) for p in pairs)
    if channels > 1:
        reading.guesses["channels"] = (
            f"{channels} images of a case, on one grid: {', '.join(pairs[0].sequences)}"
        )
    return Layout(
        rows=rows,
        images=("{image}", *(f"{{image_{n}}}" for n in range(1, channels))),
        encoding=encoding,
        classes=reading.classes,
        spacing="file" if volume else "unknown",
        pattern=pairing.pattern,
        guesses=reading.guesses,
        left_out=left_out,
    )


def _looked_at(path: Path, advance: Callable[[int], object], total: int) -> MaskFacts:
    facts = look_at_mask(path)
    advance(total)
    return facts


def _folders(pairs: list[Pair]) -> list[str]:
    """Return the names of the folders in which masks lie, nearest first, each once."""
    names = [part for p in pairs[:1] for part in Path(p.masks[0]).parent.parts[::-1]]
    return list(dict.fromkeys(names))

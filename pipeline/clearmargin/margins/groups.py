"""Units of independence: split so that nothing is fitted and judged on the same patient, or on what was trained on."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from clearmargin.errors import InputError
from clearmargin.sampling.seen import Seen

__all__ = ["check_unseen", "split_units"]


def split_units(units: Iterable[str], shares: Mapping[str, float], seed: int) -> dict[str, tuple[str, ...]]:
    """Divide units at random into named parts, such as one for thresholds and scaling and one for margins.

    Args:
        units: One name for each case or instance; repeats are one unit.
        shares: The share of the units that each part gets; together 1.
        seed: The same units and seed give the same parts, in whatever order the units come.

    Returns:
        The units of each part, sorted. Sizes are rounded so that they add up.

    Raises:
        InputError: A part would have no unit.
        ValueError: The shares do not add up to 1, or one is not positive.

    >>> {name: len(part) for name, part in split_units("abcdefghij", {"fit": 0.3, "margin": 0.7}, 0).items()}
    {'fit': 3, 'margin': 7}
    """
    if not shares or min(shares.values()) <= 0 or abs(sum(shares.values()) - 1) > 1e-9:
        raise ValueError(f"shares are positive and add up to 1, not {dict(shares)}")
    names = sorted(set(units))
    cuts = np.round(np.cumsum([0.0, *shares.values()]) * len(names)).astype(int)
    if np.diff(cuts).min() < 1:
        raise InputError(
            f"{len(names)} unit(s) cannot be split into {', '.join(shares)} with a unit in each: "
            "add patients to the calibration split of the data card"
        )
    order = np.random.default_rng(seed).permutation(len(names))
    return {
        part: tuple(sorted(names[i] for i in order[a:b]))
        for part, a, b in zip(shares, cuts[:-1], cuts[1:], strict=True)
    }


def check_unseen(units: Sequence[str], contents: Sequence[str], seen: Seen, *, key: str, card: str) -> str:
    """Return in a sentence how it was checked that a model saw none of the cases.

    Args:
        units: Keyed hash of the unit of each case.
        contents: Hash of the image of each case.
        seen: By the model.
        key: Fingerprint of the key of ``units``.
        card: Name of the card of ``units``.

    Raises:
        InputError: Some unit or image was trained on (their number is said, their names are not), or neither can be
            compared.
    """
    held_out = set(units)
    shared = {
        unit
        for unit, content in zip(units, contents, strict=True)
        if unit in seen.units or content in seen.contents
    }
    if shared:
        raise InputError(
            f"{len(shared)} of {len(held_out)} calibration units were also trained on: a margin fitted on them "
            "would be too narrow; give a calibration split of other patients (docs/data-cards.md)"
        )
    why = None
    if seen.keys != {key}:
        why = "the model was trained with another user's key, or records none"
    elif seen.cards != {card}:
        why = f"the model was trained on a card of another name than '{card}', or records none"
    if why is None and seen.contents:
        return "no unit was trained on, by name and by the content of its images"
    if why is None:
        return "no unit was trained on, by name; the images could not be compared: the model records none"
    if seen.contents:
        return (
            f"no image was trained on, by its content; units could not be compared by name ({why}): other images of "
            "the same patients would pass"
        )
    raise InputError(
        f"whether the model was trained on these units cannot be checked: {why}, and it does not record the content of "
        "its images: train it again"
    )

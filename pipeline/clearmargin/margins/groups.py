"""Groups, split so that nothing is fitted and judged on the same patient, or on what was trained on."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from clearmargin.errors import InputError
from clearmargin.sampling.seen import Seen

__all__ = ["check_unseen", "split_groups"]


def split_groups(groups: Iterable[str], shares: Mapping[str, float], seed: int) -> dict[str, tuple[str, ...]]:
    """Divide groups at random into named parts, such as one for thresholds and scaling and one for margins.

    Args:
        groups: One name for each case or instance; repeats are one group.
        shares: The share of the groups that each part gets; together 1.
        seed: The same groups and seed give the same parts, in whatever order the groups come.

    Returns:
        The groups of each part, sorted. Sizes are rounded so that they add up.

    Raises:
        InputError: A part would have no group.
        ValueError: The shares do not add up to 1, or one is not positive.

    >>> {name: len(part) for name, part in split_groups("abcdefghij", {"fit": 0.3, "margin": 0.7}, 0).items()}
    {'fit': 3, 'margin': 7}
    """
    if not shares or min(shares.values()) <= 0 or abs(sum(shares.values()) - 1) > 1e-9:
        raise ValueError(f"shares are positive and add up to 1, not {dict(shares)}")
    names = sorted(set(groups))
    cuts = np.round(np.cumsum([0.0, *shares.values()]) * len(names)).astype(int)
    if np.diff(cuts).min() < 1:
        raise InputError(
            f"{len(names)} group(s) cannot be split into {', '.join(shares)} with a group in each: "
            "add patients to the calibration split of the data card"
        )
    order = np.random.default_rng(seed).permutation(len(names))
    return {
        part: tuple(sorted(names[i] for i in order[a:b]))
        for part, a, b in zip(shares, cuts[:-1], cuts[1:], strict=True)
    }


def check_unseen(
    groups: Sequence[str],
    contents: Sequence[str],
    seen: Seen,
    *,
    key: str,
    card: str,
    what: str = "calibration",
) -> str:
    """Return in a sentence how it was checked that a model saw none of the cases.

    Args:
        groups: Keyed hash of the group of each case.
        contents: Hash of the image of each case.
        seen: By the model.
        key: Fingerprint of the key of ``groups``.
        card: Name of the card of ``groups``.
        what: What the message calls the groups: ``calibration`` or ``judged``.

    Raises:
        InputError: Some group or image was trained on (their number is said, their names are not), or neither can be
            compared.
    """
    held_out = set(groups)
    shared = {
        group
        for group, content in zip(groups, contents, strict=True)
        if group in seen.groups or content in seen.contents
    }
    if shared:
        raise InputError(
            f"the model was trained or chosen on {len(shared)} of {len(held_out)} {what} groups, and has learnt what "
            "is true of them: give a split of other patients (docs/data-cards.md)"
        )
    why = None
    if seen.keys != {key}:
        why = "the model was trained with another user's key, or records none"
    elif seen.cards != {card}:
        why = f"the model was trained on a card of another name than '{card}', or records none"
    if why is None and seen.contents:
        return "no group was trained on, by name and by the content of its images"
    if why is None:
        return "no group was trained on, by name; the images could not be compared: the model records none"
    if seen.contents:
        return (
            f"no image was trained on, by its content; groups could not be compared by name ({why}): other images of "
            "the same patients would pass"
        )
    raise InputError(
        f"whether the model was trained on these groups cannot be checked: {why}, and it does not record the content "
        "of its images: train it again"
    )

"""Units of independence: split so that nothing is fitted and judged on the same patient."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np

from clearmargin.errors import InputError

__all__ = ["refuse_shared_units", "split_units"]


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


def refuse_shared_units(calibration: Iterable[str], training: Iterable[str]) -> None:
    """Refuse calibration on units that the model was trained or chosen on.

    Raises:
        InputError: Some unit is in both; their number is said, their names are not.
    """
    held_out = set(calibration)
    shared = held_out & set(training)
    if shared:
        raise InputError(
            f"{len(shared)} of {len(held_out)} calibration units were also trained on: a margin fitted on them "
            "would be too narrow; give a calibration split of other patients (docs/data-cards.md)"
        )

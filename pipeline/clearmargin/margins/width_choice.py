"""Which width a margin has: each is fitted on half of the fit groups and measured on the other half, at equal loss."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from clearmargin.margins.guarantees import GUARANTEES, Guarantee
from clearmargin.margins.margins import BOTH, MatchedObject, Sides, losses_of, sides_of
from clearmargin.margins.requirement import SIDES, Side
from clearmargin.margins.width import Width, WidthKind, fit_predicted

__all__ = ["ChosenWidth", "choose_widths", "equal_groups", "weighted_quantile"]

_OFFSET = 0.5  # elements


@dataclass(frozen=True, kw_only=True)
class ChosenWidth:
    """A width, and what it was chosen by.

    Attributes:
        width: Fitted on all fit groups.
        lengths: Mean margin of each width that was tried, by its name, on the half that it was not fitted on and at the
            same loss; empty if there were too few groups to try.
    """

    width: Width
    lengths: dict[str, float]


def choose_widths(
    objects: Sequence[MatchedObject], alpha: float, element: float
) -> dict[tuple[Sides, Guarantee], ChosenWidth]:
    """Return for each margin the width with the smallest mean length at equal loss on groups it was not fitted on.

    Args:
        objects: Matched objects of the fit groups.
        alpha: The mean loss at which margins are compared.
        element: Edge length of an element, in the unit of length.
    """
    groups = sorted({one.group for one in objects})
    halves = [[one for one in objects if one.group in set(groups[k::2])] for k in range(2)]
    whole = _fitted(objects, alpha, element)
    of_halves = [_fitted(half, alpha, element) for half in halves] if all(halves) else []
    choices: dict[tuple[Sides, Guarantee], ChosenWidth] = {}
    for sides in BOTH:
        widths = _joined(whole, sides)
        tried = [_joined(of_half, sides) for of_half in of_halves]
        for guarantee in GUARANTEES:
            lengths = {
                name: float(
                    np.mean(
                        [
                            _mean_length(halves[1 - k], of_half[name], sides, guarantee, alpha)
                            for k, of_half in enumerate(tried)
                        ]
                    )
                )
                for name in widths
                if tried and all(name in of_half for of_half in tried)
            }
            best = min(lengths, key=lambda name: lengths[name]) if lengths else "constant"
            choices[sides, guarantee] = ChosenWidth(width=widths[best], lengths=lengths)
    return choices


def _fitted(objects: Sequence[MatchedObject], alpha: float, element: float) -> dict[str, dict[Side, Width]]:
    """Return the widths of each side that objects allow, by name; the constant one always."""
    weights = _weights(objects)
    floors = sorted({floor for one in objects for _, floor in one.needed if floor is not None})
    widths: dict[str, dict[Side, Width]] = {}
    for side in SIDES:
        for floor in (None, *floors):
            known = [
                (one.needed[side, floor].whole, weight)
                for one, weight in zip(objects, weights, strict=True)
                if (side, floor) in one.needed
            ]
            least = element if floor is None else 1.0
            level = max(weighted_quantile(known, 1 - alpha), least / 2) if known else least
            kind: WidthKind = "constant" if floor is None else "edge"
            name = kind if floor is None else f"edge {floor:g}"
            widths.setdefault(name, {})[side] = Width(
                kind=kind, level={side: level}, predicted={}, floor=floor
            )
        for floor in (None, *floors):
            known_objects = [
                (o, w) for o, w in zip(objects, weights, strict=True) if (side, floor) in o.needed
            ]
            offset = _OFFSET * (element if floor is None else element / floor)
            regression = fit_predicted(
                [one.features for one, _ in known_objects],
                [one.needed[side, floor].whole for one, _ in known_objects],
                [weight for _, weight in known_objects],
                1 - alpha,
                offset,
            )
            if regression is not None:
                name = "predicted" if floor is None else f"edge {floor:g}, predicted"
                widths.setdefault(name, {})[side] = Width(
                    kind="predicted" if floor is None else "edge",
                    level={},
                    predicted={side: regression},
                    offset=offset,
                    floor=floor,
                )
    return widths


def _joined(widths: dict[str, dict[Side, Width]], sides: Sides) -> dict[str, Width]:
    """Return the widths that hold for all of a margin's sides, by name."""
    asked = sides_of(sides)
    return {
        name: replace(
            own[asked[0]],
            level={side: length for one in asked for side, length in own[one].level.items()},
            predicted={side: fit for one in asked for side, fit in own[one].predicted.items()},
        )
        for name, own in widths.items()
        if all(side in own for side in asked)
    }


def _weights(objects: Sequence[MatchedObject]) -> list[float]:
    return equal_groups([one.group for one in objects])


def equal_groups(groups: Sequence[str]) -> list[float]:
    """Return a weight for each of the objects whose groups are named, so that each group has the same."""
    counts = Counter(groups)
    return [1 / counts[group] for group in groups]


def weighted_quantile(values: Sequence[tuple[float, float]], level: float) -> float:
    """Return the smallest value that at least ``level`` of the weight does not exceed."""
    lengths, weights = np.array(sorted(values)).T
    share = np.cumsum(weights) / weights.sum()
    return float(lengths[int(np.searchsorted(share, level - 1e-12))])


def _mean_length(
    objects: Sequence[MatchedObject], width: Width, sides: Sides, guarantee: Guarantee, alpha: float
) -> float:
    """Return the mean margin of objects, each group alike, with the least factor whose mean loss is ``alpha``."""
    losses = losses_of(objects, width, sides, guarantee)
    candidates = losses.candidates()
    kept = losses.at(candidates).mean(axis=1) <= alpha + 1e-12
    factor = float(candidates[int(np.argmax(kept))])
    floor = width.floor
    lengths = [
        sum(width.margin(side, one.features, factor) for side in sides_of(sides))
        * (1.0 if floor is None else one.mean_scale[floor])
        for one in objects
    ]
    return float(np.average(lengths, weights=_weights(objects)))

"""Which instances a person should look at, and why, in sentences.

Limits are defaults until a calibration fits them: on its fit groups, each so that it flags the smallest share of
instances after which 90 % of the others are right and within the risk limit (`metrics.failure.refer`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from clearmargin.core import Mask, Prediction
from clearmargin.core.slack import with_slack
from clearmargin.errors import ConfigError
from clearmargin.metrics.failure import refer

__all__ = [
    "LIMITED",
    "NOTHING",
    "WITHIN",
    "ReferralRules",
    "fit_rules",
    "point_reasons",
    "reasons",
    "touches_edge",
]

LIMITED = ("pairwise_dice", "predicted_nsd", "score")
"""What a fitted limit stands on; a value under its limit is flagged."""

WITHIN = 0.9
"""Share of the instances that are not flagged which shall be within the risk limit."""

MOST = 0.5
"""Share of the instances that a fitted limit may flag: a rule that flags nearly everything tells nothing."""


NOTHING = 0.0
"""A limit under which no value lies."""


@dataclass(frozen=True, kw_only=True)
class ReferralRules:
    """From where on an instance is flagged.

    Attributes:
        pairwise_dice: Members' mean pairwise Dice under this. 0.8: below it two outlines of a disc differ by more
            than a tenth of its radius all around.
        predicted_nsd: Predicted surface Dice under this. 0.8: more than a fifth of the edge is expected to be off.
        score: Scaled score under this. 0.6: little more than a coin toss.
        found_by: Share of the members that found it under this; not fitted. 0.6: fewer than three of five.
        region: Longest semi-axis of a landmark's region over this, in the calibration's unit; None: of any size.
        edge: Whether an instance at the image's edge is flagged; not fitted.
        fitted: How each limit was fitted, by name; a default has no entry.
    """

    pairwise_dice: float = 0.8
    predicted_nsd: float = 0.8
    score: float = 0.6
    found_by: float = 0.6
    region: float | None = None
    edge: bool = True
    fitted: Mapping[str, str] = field(default_factory=dict)

    def to_data(self) -> dict[str, Any]:
        """Return the rules as plain data, for YAML and JSON."""
        return asdict(self) | {"fitted": dict(self.fitted)}

    @staticmethod
    def from_data(content: Mapping[str, Any]) -> ReferralRules:
        """Return the rules that `to_data` gave.

        Raises:
            ConfigError: A field is unknown.
        """
        try:
            return ReferralRules(**content)
        except TypeError as error:
            raise ConfigError(f"these are not referral rules ({error}): run the calibration again") from None


def reasons(prediction: Prediction, i: int, rules: ReferralRules) -> list[str]:
    """Return why a person should look at instance ``i``; nothing where no rule speaks.

    Args:
        prediction: As `Calibration.apply` returns it, if there is a calibration. A rule whose column is not
            there says nothing.
        i: Position of the instance.
        rules: The limits. What concerns the case as a whole refers the case (`Assessment.refer_case`).
    """
    instances = prediction.instances
    columns = {name: float(column[i]) for name, column in instances.uncertainty.items()}
    sentences: list[str] = []
    dice = columns.get("pairwise_dice")
    if dice is not None and dice < rules.pairwise_dice:
        sentences.append(
            f"members disagree on its mask: pairwise Dice {dice:.2f}, under {rules.pairwise_dice:.2f}"
        )
    members = columns.get("found_by")
    if members is not None and members < rules.found_by:
        sentences.append(f"found by {100 * members:.0f} % of the members, under {100 * rules.found_by:.0f} %")
    nsd = columns.get("predicted_nsd")
    if nsd is not None and nsd < rules.predicted_nsd:
        sentences.append(
            f"its edge is expected to be off: predicted NSD {nsd:.2f}, under {rules.predicted_nsd:.2f}"
        )
    score = float(instances.scores[i])
    if score < rules.score:
        sentences.append(f"score near the threshold: {score:.2f}, under {rules.score:.2f}")
    if rules.edge and touches_edge(instances.masks[i]):
        sentences.append("reaches the image's edge: part of it may be outside")
    return sentences


def point_reasons(prediction: Prediction, rules: ReferralRules) -> dict[tuple[int, int], str]:
    """Return why a person should look at a landmark, by object and type; those that no rule refers are not in it."""
    landmarks, grid = prediction.instances.landmarks, prediction.instances.grid
    if rules.region is None or landmarks is None or landmarks.regions is None:
        return {}
    radii = {
        (int(i), int(k)): float(grid.semi_axes(landmarks.regions[i, k])[-1])
        for i, k in np.argwhere(landmarks.visible > 0)
    }
    return {
        place: f"its region reaches {radius:.3g} {grid.unit} from it, over {rules.region:g} {grid.unit}"
        for place, radius in radii.items()
        if radius > with_slack(rules.region)
    }


def touches_edge(mask: Mask) -> bool:
    """Return whether a mask holds an element of the image's outermost rows; along an axis of one element none is."""
    start, stop = mask.box
    return bool(mask.area) and any(
        n > 1 and (a == 0 or b == n) for a, b, n in zip(start, stop, mask.shape, strict=True)
    )


def fit_rules(columns: Mapping[str, ArrayLike], failed: ArrayLike) -> ReferralRules:
    """Return rules whose limits flag as few instances as `WITHIN` of the others needs to be good.

    Where that needs no flag at all, the limit is the smallest value seen, or the default if it is smaller:
    what is worse than all of these is still flagged. Where it would flag more than `MOST`, the limit is `NOTHING`, and
    that is said.

    Args:
        columns: ``(n,)`` values of the fit groups' instances, by name in `LIMITED`; scores are scaled.
        failed: ``(n,)`` bool: a false positive, or over the risk limit.
    """
    bad = np.asarray(failed, np.float64)
    limits: dict[str, float] = {}
    fitted: dict[str, str] = {}
    for name in LIMITED:
        if name not in columns or not bad.size:
            continue
        values = np.sort(np.asarray(columns[name], np.float64))
        done = refer(-np.asarray(columns[name], np.float64), bad, 0.0, within=WITHIN, name="failures")
        default = float(getattr(ReferralRules(), name))
        if done.referred > MOST * done.cases:
            fitted[name] = (
                f"flags nothing: a limit that leaves {100 * WITHIN:g} % good would flag {done.referred} of "
                f"{done.cases} instances, which tells nothing"
            )
            limits[name] = NOTHING
            continue
        limit = min(default, float(values[0]))
        if done.referred:
            limit = float(values[done.referred - 1] + values[done.referred]) / 2
        fitted[name] = (
            f"flags {done.referred} of {done.cases} instances, of the others {100 * done.within:.3g} % are good "
            f"(of all {100 * done.without:.3g} %)"
        )
        limits[name] = limit
    return ReferralRules.from_data(limits | {"fitted": fitted})

"""A score threshold under which few instances are missed, merged or cut, by conformal risk control.

The loss of a group at a threshold is the share of its reference instances that no kept prediction matches well
enough (or whether there is any). A prediction that holds two objects, or half of one, has an IoU near 0.5 with
either: it is matched from 0.5, and counts as missed under the IoU from which margins are promised.

Conformal risk control needs a loss that does not fall as the threshold rises, and here it never does:
`match_instances` takes predictions in order of score, so that leaving out those below a threshold changes no partner
of those above it, and a reference is found at a threshold exactly when its partner's score reaches it. (For
`match_optimally` the set of references that have a partner shrinks, too, but partners change, and with them the
margins.) Because it is monotone, risk control holds in expectation without the union bound and the grid of tests that
learn-then-test pays for losses that are not; the price is that it bounds the mean over calibrations and gives no
second probability.

Source: Angelopoulos, Bates, Fisch, Lei and Schuster, "Conformal risk control", ICLR 2024.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from clearmargin.core import InstanceSet
from clearmargin.core.groups import PLURALS
from clearmargin.errors import ConfigError, InputError
from clearmargin.metrics.matching import Matches, ignored_share, match_instances

__all__ = ["LOSSES", "Found", "Loss", "MissThreshold", "find_references", "fit_threshold"]

Loss = Literal["share", "any"]


@dataclass(frozen=True, kw_only=True)
class Found:
    """One reference instance of a calibration case.

    Attributes:
        group: The patient, surgery or image that it belongs to.
        score: Score of the prediction that it matches when all are kept; None if there is none.
        iou: With that prediction; 0 if there is none.
        label: Its class.
    """

    group: str
    score: float | None
    iou: float = 1.0
    label: int = 1


@dataclass(frozen=True, kw_only=True)
class MissThreshold:
    """A score threshold and what it promises.

    Attributes:
        threshold: Predictions with at least this score are kept.
        alpha: The mean loss of new groups is at most this.
        loss: ``share``: of a group's instances that are missed; ``any``: 1 where one is missed, else 0.
        n: Calibration groups with a reference instance.
        without: Calibration groups without one, which cannot miss any and are left out.
        risk: Mean loss of the n groups at the threshold.
        group: What a group is, such as ``patient``.
        match_iou: A reference whose prediction has a smaller IoU is missed.
    """

    threshold: float
    alpha: float
    loss: Loss
    n: int
    without: int
    risk: float
    group: str
    match_iou: float

    def __str__(self) -> str:
        group, most, bad = self.group, f"at most {100 * self.alpha:g} %", "missed, merged or cut"
        what = {
            "share": f"a new {group} has on average {most} of its instances {bad}",
            "any": f"a new {group} has any instance {bad} with a chance of {most}",
        }[self.loss]
        return (
            f"score threshold {self.threshold:.4g}: {what}, so that no prediction has an IoU of {self.match_iou:g} "
            f"with it (n = {self.n} {PLURALS[group]}, {self.without} more had no instance; {100 * self.risk:.3g} % "
            "there)."
        )


def _share(missed: NDArray[np.bool_]) -> float:
    return float(missed.mean())


def _any(missed: NDArray[np.bool_]) -> float:
    return float(missed.any())


LOSSES: dict[Loss, Callable[[NDArray[np.bool_]], float]] = {"share": _share, "any": _any}
"""From which of a group's references are missed to its loss, in [0, 1] and never lower for more misses."""


def find_references(
    group: str,
    predicted: InstanceSet,
    reference: InstanceSet,
    *,
    iou_threshold: float = 0.5,
    matches: Matches | None = None,
) -> list[Found]:
    """Return for each reference instance the score from which on it is missed.

    Args:
        group: The group that the image belongs to.
        predicted: All instances, down to the lowest score.
        reference: On the same grid. What lies in its ignored region as a whole is not asked for.
        iou_threshold: IoU from which a pair counts as the same object.
        matches: Matches of the two, if they are known.
    """
    matches = matches or match_instances(predicted, reference, iou_threshold=iou_threshold)
    partner = {int(j): int(i) for i, j in matches.pairs}
    ious = {int(j): float(iou) for (_, j), iou in zip(matches.pairs, matches.ious, strict=True)}
    return [
        Found(
            group=group,
            score=float(predicted.scores[partner[j]]) if j in partner else None,
            iou=ious.get(j, 0.0),
            label=int(reference.labels[j]),
        )
        for j, mask in enumerate(reference.masks)
        if j in partner or ignored_share(mask, reference.ignore) < 1
    ]


def fit_threshold(
    references: Sequence[Found],
    groups: Iterable[str],
    alpha: float,
    *,
    group: str,
    loss: Loss = "share",
    match_iou: float = 0.5,
) -> MissThreshold:
    """Return the highest threshold whose risk is controlled at ``alpha``: ``(n risk + 1) / (n + 1) <= alpha``.

    Args:
        references: All references of the calibration groups, `find_references`.
        groups: All calibration groups, with and without a reference.
        alpha: What the mean loss of new groups may be.
        group: What a group is, such as ``patient``.
        loss: See `LOSSES`.
        match_iou: A reference whose prediction has a smaller IoU is missed. Partners do not depend on it, so that the
            loss still never falls as the threshold rises.

    Raises:
        ConfigError: ``alpha`` is not between 0 and 1.
        InputError: Not even keeping every prediction reaches ``alpha``: the best reachable one is said.
    """
    if not 0 < alpha < 1:
        raise ConfigError(f"miss_alpha: expected a share between 0 and 1, got {alpha:g}")
    of_group: dict[str, list[float]] = {}
    for one in references:
        good = one.score is not None and one.iou >= match_iou
        of_group.setdefault(one.group, []).append(one.score if one.score is not None and good else -np.inf)
    scores = [np.array(v) for v in of_group.values()]
    n, rule = len(scores), LOSSES[loss]

    def risk(threshold: float) -> float:
        return float(np.mean([rule(s < threshold) for s in scores]))

    def controlled(threshold: float) -> bool:
        return (n * risk(threshold) + 1) / (n + 1) <= alpha + 1e-12

    if not n or not controlled(0.0):
        best = (
            f"{n} groups reach {(n * risk(0.0) + 1) / (n + 1):.3g} at best"
            if n
            else "no group has an instance"
        )
        raise InputError(
            f"no score threshold keeps misses at alpha {alpha:g}: with every prediction kept {best}; add "
            "calibration groups, ask for a larger alpha, or train a model that misses fewer"
        )
    # the loss only changes just above a score, and it rises with the threshold: bisect the scores
    steps = np.unique(np.concatenate([*scores, [0.0, 1.0]]))
    steps = steps[steps >= 0]
    low, high = 0, len(steps)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if controlled(float(steps[middle])) else (low, middle)
    threshold = float(steps[low])
    return MissThreshold(
        threshold=threshold,
        alpha=alpha,
        loss=loss,
        n=n,
        without=len(set(groups) - of_group.keys()),
        risk=risk(threshold),
        group=group,
        match_iou=match_iou,
    )

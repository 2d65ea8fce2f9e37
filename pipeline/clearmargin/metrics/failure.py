"""Whether uncertainty finds the cases that go wrong: what remains when the most doubtful are referred.

Every number here takes one uncertainty and one risk a case, such as 1 - mean pairwise Dice and HD95. Cases of
equal uncertainty are not told apart: what depends on their order is its mean over all orders, and they are
referred together.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from clearmargin.core.slack import with_slack
from clearmargin.errors import InputError

__all__ = ["Referral", "aurc", "ause", "e_aurc", "error_auroc", "refer", "risk_coverage"]

Column = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Referral:
    """Which share of the cases to refer so that the rest are good enough.

    Attributes:
        cases: Number of cases.
        referred: Number of them that are referred, the most uncertain.
        limit: What the risk of the rest does not exceed.
        name: Name of the risk, such as ``HD95``.
        unit: Unit of the risk, such as ``mm``; empty for none.
        within: Share of the rest that is within the limit: at least what was asked for; 1 for no rest.
        without: Share of all cases within the limit when none is referred.
        what: What one case is, in the plural.
    """

    cases: int
    referred: int
    limit: float
    name: str
    unit: str
    within: float
    without: float
    what: str = "cases"

    def __str__(self) -> str:
        share = 100 * self.referred / self.cases if self.cases else 0.0
        rest = "the rest have" if self.within == 1 else f"{100 * self.within:.3g} % of the rest have"
        limit = f"{self.limit:g} {self.unit}".strip()
        if self.referred == self.cases:
            return f"refer all {self.cases} {self.what}: no part of them has {self.name} of at most {limit}"
        return (
            f"refer {share:.3g} % of the {self.what} ({self.referred} of {self.cases}), {rest} {self.name} of at most "
            f"{limit} (of all {self.what} {100 * self.without:.3g} %)"
        )


def risk_coverage(uncertainty: ArrayLike, risk: ArrayLike) -> tuple[Column, Column]:
    """Return the coverages 1/n ... 1 and the mean risk of that share of the cases, the most certain ones.

    Args:
        uncertainty: ``(n,)`` finite, larger where more doubtful.
        risk: ``(n,)`` finite, larger where worse.

    Returns:
        Two ``(n,)`` arrays; empty for no case.

    Source: El-Yaniv and Wiener, JMLR 2010; ties as the mean over their orders.
    """
    doubt, loss = _columns(uncertainty, risk)
    n = len(doubt)
    _, group, size = np.unique(doubt, return_inverse=True, return_counts=True)
    mean = np.bincount(group, loss, len(size)) / np.maximum(size, 1)
    ranked = np.repeat(mean, size)
    k = np.arange(1, n + 1)
    return k / max(n, 1), np.cumsum(ranked) / k


def aurc(uncertainty: ArrayLike, risk: ArrayLike) -> float:
    """Return the area under the risk-coverage curve: the mean of its n points; 0 for no case.

    Source: Geifman, Uziel and El-Yaniv, ICLR 2019.
    """
    _, risks = risk_coverage(uncertainty, risk)
    return float(risks.mean()) if risks.size else 0.0


def e_aurc(uncertainty: ArrayLike, risk: ArrayLike) -> float:
    """Return the excess AURC: less that of the best order, by the risk itself; 0 is best, and for no case.

    Source: Geifman, Uziel and El-Yaniv, ICLR 2019.
    """
    return aurc(uncertainty, risk) - aurc(risk, risk)


def ause(uncertainty: ArrayLike, risk: ArrayLike) -> float:
    """Return the area under the sparsification error: as `e_aurc`, over the mean risk; 0 where no risk is.

    Sparsification takes the most uncertain away and looks at the mean risk of the others: the risk-coverage
    curve from its other end. Divided by the mean risk of all it has no unit.

    Raises:
        InputError: A risk is negative.

    Source: Ilg et al., ECCV 2018.
    """
    _, loss = _columns(uncertainty, risk)
    if loss.size and loss.min() < 0:
        raise InputError("a sparsification error needs risks of at least 0, such as distances or 1 - Dice")
    mean = float(loss.mean()) if loss.size else 0.0
    return e_aurc(uncertainty, risk) / mean if mean else 0.0


def error_auroc(uncertainty: ArrayLike, failed: ArrayLike) -> float | None:
    """Return the chance that a failed case is more uncertain than one that did not fail; ties count half.

    Args:
        uncertainty: ``(n,)`` finite.
        failed: ``(n,)`` bool, such as HD95 over a limit.

    Returns:
        0 to 1, 0.5 for no signal; None where no case failed or all did: then there is nothing to tell apart.

    Source: Hendrycks and Gimpel, ICLR 2017; the Mann-Whitney statistic.
    """
    from scipy.stats import rankdata

    doubt, wrong = _columns(uncertainty, failed)
    bad = wrong > 0
    n_bad, n_good = int(bad.sum()), int((~bad).sum())
    if not (n_bad and n_good):
        return None
    ranks = rankdata(doubt)
    return float((ranks[bad].sum() - n_bad * (n_bad + 1) / 2) / (n_bad * n_good))


def refer(
    uncertainty: ArrayLike,
    risk: ArrayLike,
    limit: float,
    *,
    within: float = 1.0,
    name: str = "a risk",
    unit: str = "",
    what: str = "cases",
) -> Referral:
    """Return the smallest referral after which ``within`` of the rest have a risk of at most ``limit``.

    Args:
        uncertainty: ``(n,)``; the most uncertain are referred, cases of equal uncertainty together.
        risk: ``(n,)``.
        limit: In the risk's unit.
        within: Share of the rest, in (0, 1].
        name: Name of the risk.
        unit: Unit of the risk.
        what: What one case is, in the plural.

    It describes these cases and promises nothing of others.
    """
    if not 0 < within <= 1:
        raise InputError(f"within: expected a share in (0, 1], got {within:g}")
    doubt, loss = _columns(uncertainty, risk)
    n = len(doubt)
    order = np.argsort(doubt, kind="stable")
    good = np.cumsum(loss[order] <= with_slack(limit))
    last_of_tie = np.diff(doubt[order], append=np.inf) > 0
    kept = np.arange(1, n + 1)
    enough = np.flatnonzero(last_of_tie & (good >= within * kept - 1e-9))
    rest = int(kept[enough[-1]]) if enough.size else 0
    return Referral(
        cases=n,
        referred=n - rest,
        limit=limit,
        name=name,
        unit=unit,
        within=float(good[rest - 1]) / rest if rest else 1.0,
        without=float(good[-1]) / n if n else 1.0,
        what=what,
    )


def _columns(first: ArrayLike, second: ArrayLike) -> tuple[Column, Column]:
    one, two = np.asarray(first, np.float64).ravel(), np.asarray(second, np.float64).ravel()
    if one.shape != two.shape:
        raise InputError(f"{len(one)} uncertainties and {len(two)} risks: give one of each per case")
    if not (np.isfinite(one).all() and np.isfinite(two).all()):
        raise InputError(
            "uncertainties and risks must be finite: a false negative counts its written value (docs/metrics.md)"
        )
    return one, two

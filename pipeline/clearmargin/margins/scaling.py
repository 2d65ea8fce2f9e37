"""Probabilities made to say what comes true: one temperature, or any rising function.

Both are fitted on other groups than the margins (`split_groups`), and on probabilities that were averaged before.
Instance scores come as arrays; the pixels of many images as cells: ``fit_temperature(*reliability.cells())``.
If there is nothing to fit the result is the identity, which says why.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from clearmargin.errors import ConfigError, InputError, nearest

__all__ = [
    "Identity",
    "Isotonic",
    "Scaling",
    "Temperature",
    "fit_isotonic",
    "fit_temperature",
    "scaling_from_data",
    "scaling_to_data",
]

Column = NDArray[np.float64]

_RANGE = (0.05, 20.0)  # of temperatures: beyond it every probability is nearly 0, 1 or one half


@dataclass(frozen=True, kw_only=True)
class Identity:
    """Probabilities as they are, because nothing could be fitted.

    Attributes:
        reason: Why.
        n: Number of events that there were.
    """

    reason: str
    n: int

    def apply(self, probabilities: NDArray[np.floating]) -> NDArray[np.floating]:
        """Return the probabilities."""
        return probabilities


@dataclass(frozen=True, kw_only=True)
class Temperature:
    """``sigmoid(logit(p) / T)``: above 1 less sure, below 1 more sure; 0, 1/2 and 1 stay what they are.

    Attributes:
        temperature: T.
        n: Number of events that it was fitted on.
        nll_before: Their mean negative log-likelihood before.
        nll_after: And after.
        at_limit: Whether T is at the end of the range that is searched: the events are told apart without an
            error, or not at all, and T means nothing more.
    """

    temperature: float
    n: int
    nll_before: float
    nll_after: float
    at_limit: bool

    def apply(self, probabilities: NDArray[np.floating]) -> NDArray[np.floating]:
        """Return scaled probabilities of the same shape and precision."""
        from scipy.special import expit, logit

        scaled: NDArray[np.floating] = expit(
            logit(probabilities) / probabilities.dtype.type(self.temperature)
        )
        return scaled


@dataclass(frozen=True, kw_only=True)
class Isotonic:
    """The rising function that fits best, linear between its points and level beyond them.

    Attributes:
        points: Probabilities, rising.
        values: What each becomes, not falling.
        n: Number of events that it was fitted on.
    """

    points: tuple[float, ...]
    values: tuple[float, ...]
    n: int

    def apply(self, probabilities: NDArray[np.floating]) -> NDArray[np.floating]:
        """Return scaled probabilities of the same shape and precision."""
        scaled = np.interp(probabilities, self.points, self.values)
        return np.asarray(scaled, probabilities.dtype)


Scaling = Identity | Temperature | Isotonic

_KINDS: dict[str, type[Identity] | type[Temperature] | type[Isotonic]] = {
    "identity": Identity,
    "temperature": Temperature,
    "isotonic": Isotonic,
}


def fit_temperature(
    probabilities: ArrayLike, outcomes: ArrayLike, count: ArrayLike | None = None
) -> Temperature | Identity:
    """Return the temperature of the highest likelihood.

    Args:
        probabilities: ``(n,)`` in [0, 1]. Exactly 0 and 1 stay under every temperature and are not looked at;
            where cells are made of pixels, leave them out (``Reliability.add(p, y, where=(p > 0) & (p < 1))``),
            or the background that nothing was found in outweighs the rest.
        outcomes: ``(n,)`` bool, or the share of each row's events that came true.
        count: ``(n,)`` events in each row; None for one.

    Raises:
        InputError: There is no event.

    Source: Platt 1999 with one parameter; Guo et al., "On calibration of modern neural networks", ICML 2017.
    """
    from scipy.optimize import minimize_scalar
    from scipy.special import log_expit, logit

    p, y, w = _events(probabilities, outcomes, count)
    n = round(float(w.sum()))
    doubtful = (p > 0) & (p < 1)
    if not doubtful.any():
        return Identity(reason="every probability is 0 or 1: a temperature changes neither", n=n)
    p, y, w = p[doubtful], y[doubtful], w[doubtful]
    if _one_outcome(y):
        return Identity(reason=_ONE_OUTCOME, n=n)
    x = logit(p)
    if not x.any():
        return Identity(reason="every probability is one half: a temperature does not change it", n=n)

    def nll(log_t: float) -> float:
        scaled = x / np.exp(log_t)
        return float(-(w * (y * log_expit(scaled) + (1 - y) * log_expit(-scaled))).sum() / w.sum())

    ends = np.log(_RANGE)
    optimum = minimize_scalar(nll, bounds=tuple(ends), method="bounded", options={"xatol": 1e-6})
    return Temperature(
        temperature=float(np.exp(optimum.x)),
        n=n,
        nll_before=nll(0.0),
        nll_after=float(optimum.fun),
        at_limit=bool(min(abs(optimum.x - ends)) < 1e-3),
    )


def fit_isotonic(
    probabilities: ArrayLike, outcomes: ArrayLike, count: ArrayLike | None = None
) -> Isotonic | Identity:
    """Return the rising function with the least squared error; arguments and refusals as `fit_temperature`.

    It needs more events than a temperature (hundreds), makes some scores equal, and
    gives neither 0 nor 1: their place is taken by 1 / (n + 2) and its complement.

    Source: Zadrozny and Elkan, KDD 2002; pool adjacent violators by ``scipy.optimize.isotonic_regression``.
    """
    from scipy.optimize import isotonic_regression

    p, y, w = _events(probabilities, outcomes, count)
    n = round(float(w.sum()))
    if _one_outcome(y):
        return Identity(reason=_ONE_OUTCOME, n=n)
    points, group = np.unique(p, return_inverse=True)
    weights = np.bincount(group, w)
    fitted = isotonic_regression(np.bincount(group, w * y) / weights, weights=weights)
    # between its ends a level block says nothing new
    ends = np.union1d(fitted.blocks[:-1], fitted.blocks[1:] - 1)
    return Isotonic(
        points=tuple(float(v) for v in points[ends]),
        # No event among n does not make the next one impossible (Laplace's rule of succession).
        values=tuple(float(v) for v in np.clip(fitted.x[ends], 1 / (n + 2), 1 - 1 / (n + 2))),
        n=n,
    )


def scaling_to_data(scaling: Scaling) -> dict[str, Any]:
    """Return a scaling as plain data, for YAML and JSON."""
    kind = next(name for name, cls in _KINDS.items() if isinstance(scaling, cls))
    return {"kind": kind} | {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(scaling).items()}


def scaling_from_data(content: Mapping[str, Any]) -> Scaling:
    """Return the scaling that `scaling_to_data` gave.

    Raises:
        ConfigError: The kind is not known, or a field is missing or unknown.
    """
    kind = str(content.get("kind", "none given"))
    if kind not in _KINDS:
        raise ConfigError(f"no scaling '{kind}': {nearest(kind, _KINDS)}")
    fields: dict[str, Any] = {
        k: tuple(v) if isinstance(v, list) else v for k, v in content.items() if k != "kind"
    }
    try:
        return _KINDS[kind](**fields)
    except TypeError as error:
        raise ConfigError(f"this is not a scaling of kind '{kind}' ({error}): fit it again") from None


_ONE_OUTCOME = "all events have the same outcome: nothing says how sure to be of the other"


def _one_outcome(outcomes: Column) -> bool:
    return bool((outcomes == 0).all() or (outcomes == 1).all())


def _events(
    probabilities: ArrayLike, outcomes: ArrayLike, count: ArrayLike | None
) -> tuple[Column, Column, Column]:
    p, y = np.asarray(probabilities, np.float64).ravel(), np.asarray(outcomes, np.float64).ravel()
    w = np.ones(p.shape) if count is None else np.asarray(count, np.float64).ravel()
    if not p.shape == y.shape == w.shape:
        raise ValueError(f"{len(p)} probabilities, {len(y)} outcomes, {len(w)} counts")
    if not w.sum() > 0:
        raise InputError(
            "no prediction to fit a scaling on: expected some on the calibration split of --card; add cases, or lower "
            "the score threshold"
        )
    for name, column in (("probabilities", p), ("outcomes", y)):
        if not (column.min() >= 0 and column.max() <= 1):
            raise ValueError(f"{name} lie in [0, 1]")
    return p[w > 0], y[w > 0], w[w > 0]

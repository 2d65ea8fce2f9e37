"""How wide a margin is for one object: what its factor is multiplied by, from what is known of the prediction alone.

Three ways, the narrowest of which is chosen on the fit groups at equal coverage:

- ``constant``: one margin for all objects;
- ``predicted``: from size, score, class, and the edge's standard deviation if there are samples, by linear quantile
  regression of the logarithm of the needed margin. So an easy object gets a narrow margin;
- ``edge``: wide where the samples' edges lie apart along the contour (`reach.EdgeScale`), with one level for all
objects or
  with one that is predicted like that.

Whatever the width, the factor is calibrated on other groups, so that the guarantee does not depend on how good it is.

Source: Koenker and Bassett, "Regression quantiles", Econometrica 1978; Romano, Patterson and Candes, "Conformalized
quantile regression", NeurIPS 2019 (there the margin is added to, here it is multiplied: needed margins spread as they
grow).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from clearmargin.errors import ConfigError
from clearmargin.margins.requirement import Side

__all__ = ["FEATURES", "PredictedWidth", "Width", "WidthKind", "features_of", "fit_predicted"]

WidthKind = Literal["constant", "predicted", "edge"]
FEATURES = ("log size", "score", "log edge sd")
"""What a width may be predicted from, beside ``class K``; the edge's only if samples of the prediction exist."""

_EACH = 10  # objects for each coefficient (Peduzzi et al., J Clin Epidemiol 1996)
_ROWS = 4000  # objects that a regression takes
_LEAST_SCORE = 1e-3

Features = Mapping[str, float]
Matrix = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class PredictedWidth:
    """The quantile regression of one side.

    Attributes:
        names: Names of the features, in order.
        centre: What is taken off each feature.
        spread: What each is then divided by.
        low: Least value of each standardised feature that the width follows; beyond, it stays.
        high: Likewise.
        coefficients: Coefficients of the intercept and of each feature.
    """

    names: tuple[str, ...]
    centre: tuple[float, ...]
    spread: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    coefficients: tuple[float, ...]

    def of(self, features: Features) -> float:
        """Return the needed margin that is predicted for an object, in the unit of the lengths fitted on."""
        values = np.array([features.get(name, 0.0) for name in self.names])
        standard = np.clip((values - self.centre) / np.asarray(self.spread), self.low, self.high)
        return float(np.exp(self.coefficients[0] + standard @ np.asarray(self.coefficients[1:])))


@dataclass(frozen=True, kw_only=True)
class Width:
    """What the factor of a margin is multiplied by.

    Attributes:
        kind: See the module.
        level: By side, the width that all objects share: a typical needed margin, in the unit of length
            (``constant``) or in scales of the edge (``edge``), so that factors of both sides are alike.
        predicted: By side, if it is predicted; else empty.
        offset: Length, or scales, added to a needed margin before it is compared with the predicted one, and taken
            off the margin that is applied: half an element, since needed margins of 0 have no logarithm.
        floor: Floor of the edge's scale (``edge``); None otherwise.
    """

    kind: WidthKind
    level: Mapping[Side, float]
    predicted: Mapping[Side, PredictedWidth]
    offset: float = 0.0
    floor: float | None = None

    def of(self, side: Side, features: Features) -> float:
        """Return the width of an object on one side."""
        return self.predicted[side].of(features) if side in self.predicted else self.level[side]

    def factor(self, side: Side, features: Features, needed: float | NDArray[np.float64]) -> Matrix:
        """Return the factor from which on a needed margin is had, of the shape of ``needed``; 0 for none needed."""
        lengths = np.asarray(needed, np.float64)
        return np.where(lengths > 0, (lengths + self.offset) / self.of(side, features), 0.0)

    def margin(self, side: Side, features: Features, factor: float) -> float:
        """Return the margin of an object: a length, or with a floor what the edge's scale is multiplied by."""
        return max(factor * self.of(side, features) - self.offset, 0.0)

    def to_data(self) -> dict[str, Any]:
        """Return it as plain data, for YAML and JSON."""
        return {
            "kind": self.kind,
            "level": dict(self.level),
            "predicted": {side: _plain(asdict(one)) for side, one in self.predicted.items()},
            "offset": self.offset,
            "floor": self.floor,
        }

    @staticmethod
    def from_data(content: Mapping[str, Any]) -> Width:
        """Return the width that `to_data` gave.

        Raises:
            ConfigError: A field is missing or unknown.
        """
        try:
            predicted = {
                side: PredictedWidth(**{name: tuple(value) for name, value in one.items()})
                for side, one in content["predicted"].items()
            }
            return Width(**{**content, "predicted": predicted})
        except (KeyError, TypeError, AttributeError) as error:
            raise ConfigError(f"this is not a margin's width ({error}): run the calibration again") from None

    def __str__(self) -> str:
        if self.kind == "constant":
            return "one margin for all objects"
        if self.kind == "edge":
            more = (
                f", and by {', '.join(next(iter(self.predicted.values())).names)}" if self.predicted else ""
            )
            return f"wide where the samples' edges lie apart{more}"
        return f"by {', '.join(next(iter(self.predicted.values())).names)}"


def _plain(content: Mapping[str, Any]) -> dict[str, Any]:
    return {name: list(value) for name, value in content.items()}


def features_of(
    *, size: float, score: float, label: int, edge_sd: float | None, element: float
) -> dict[str, float]:
    """Return what a width may be predicted from.

    Args:
        size: Size of the predicted object, in the grid's unit squared or cubed; positive.
        score: As predicted, in [0, 1].
        label: Its class.
        edge_sd: Mean standard deviation of its edge, in the grid's unit; None without samples.
        element: Edge length of an element, in the grid's unit.
    """
    p = float(np.clip(score, _LEAST_SCORE, 1 - _LEAST_SCORE))
    known = {"log size": float(np.log(size)), "score": float(np.log(p / (1 - p))), f"class {label}": 1.0}
    return known if edge_sd is None else known | {"log edge sd": float(np.log(edge_sd + element / 4))}


def fit_predicted(
    rows: Sequence[Features], needed: Sequence[float], weights: Sequence[float], level: float, offset: float
) -> PredictedWidth | None:
    """Return the regression of the ``level`` quantile of needed margins; None if there are too few objects.

    Classes with fewer than ten objects share the intercept of the others.

    Args:
        rows: Features of each object.
        needed: Needed margin of each, in the unit of length.
        weights: Weight of each object; those of a group add up to the same.
        level: Level of the quantile, in (0, 1).
        offset: Added to each needed margin, positive.
    """
    kinds = sorted({name for row in rows for name in row if name.startswith("class ")})
    large = [name for name in kinds if sum(name in row for row in rows) >= _EACH]
    # one class is the intercept
    names = [name for name in FEATURES if rows and all(name in row for row in rows)] + large[1:]
    if len(rows) < _EACH * (1 + len(names)):
        return None
    rows_used = np.arange(len(rows))
    if len(rows) > _ROWS:
        rows_used = np.random.default_rng(0).permutation(len(rows))[:_ROWS]
    table = np.array([[rows[int(k)].get(name, 0.0) for name in names] for k in rows_used])
    centre, spread = table.mean(axis=0), table.std(axis=0)
    spread[spread == 0] = 1.0
    standard = (table - centre) / spread
    low, high = np.quantile(standard, [0.01, 0.99], axis=0)
    design = np.column_stack([np.ones(len(rows_used)), np.clip(standard, low, high)])
    lengths = np.log(np.asarray(needed, np.float64)[rows_used] + offset)
    coefficients = _quantile_regression(design, lengths, np.asarray(weights, np.float64)[rows_used], level)
    return PredictedWidth(
        names=tuple(names),
        centre=_floats(centre),
        spread=_floats(spread),
        low=_floats(low),
        high=_floats(high),
        coefficients=_floats(coefficients),
    )


def _quantile_regression(design: Matrix, values: Matrix, weights: Matrix, level: float) -> Matrix:
    """Return the coefficients of the least weighted pinball loss: a linear programme."""
    from scipy.optimize import linprog
    from scipy.sparse import csc_matrix, eye, hstack

    n, p = design.shape
    share = weights / weights.sum()
    cost = np.concatenate([np.zeros(p), share * level, share * (1 - level)])
    equal = hstack([csc_matrix(design), eye(n), -eye(n)]).tocsc()
    bounds = [(None, None)] * p + [(0, None)] * (2 * n)
    solved = linprog(cost, A_eq=equal, b_eq=values, bounds=bounds, method="highs")
    coefficients: Matrix = solved.x[:p]
    return coefficients


def _floats(values: Matrix) -> tuple[float, ...]:
    return tuple(float(value) for value in values)

"""One scaling chosen of two: by how well each says what comes true in units that it was not fitted on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from clearmargin.errors import ConfigError
from clearmargin.metrics.calibration import Reliability
from clearmargin.uncertainty.scaling import (
    Scaling,
    fit_isotonic,
    fit_temperature,
    scaling_from_data,
    scaling_to_data,
)

__all__ = ["ChosenScaling", "Kind", "fit_scaling", "scaled_counts"]

Kind = Literal["temperature", "isotonic"]


@dataclass(frozen=True, kw_only=True)
class ChosenScaling:
    """Both scalings of one kind of probability, and which of them is applied.

    Attributes:
        chosen: Its name.
        why: The reason, in a sentence.
        temperature: Fitted on all fit units.
        isotonic: Likewise.
    """

    chosen: Kind
    why: str
    temperature: Scaling
    isotonic: Scaling

    def apply(self, probabilities: NDArray[np.floating]) -> NDArray[np.floating]:
        """Return probabilities by the chosen scaling, of the same shape and precision."""
        chosen = self.temperature if self.chosen == "temperature" else self.isotonic
        return chosen.apply(probabilities)

    def to_data(self) -> dict[str, Any]:
        """Return it as plain data, for YAML and JSON."""
        return {
            "chosen": self.chosen,
            "why": self.why,
            "temperature": scaling_to_data(self.temperature),
            "isotonic": scaling_to_data(self.isotonic),
        }

    @staticmethod
    def from_data(content: Mapping[str, Any]) -> ChosenScaling:
        """Return the scalings that `to_data` gave.

        Raises:
            ConfigError: A field is missing or unknown.
        """
        try:
            return ChosenScaling(
                chosen=content["chosen"],
                why=content["why"],
                temperature=scaling_from_data(content["temperature"]),
                isotonic=scaling_from_data(content["isotonic"]),
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise ConfigError(
                f"this is no choice of a scaling ({error}): run the calibration again"
            ) from None


def fit_scaling(units: Sequence[Reliability]) -> ChosenScaling:
    """Fit a temperature and a rising function, and choose.

    Each is fitted on every other unit and judged by the Brier score on those between, and the other way round.
    The rising function is chosen where its score is lower; the temperature where it is not, and where there are
    too few units or events to say.

    Args:
        units: Counts of each fit unit's events, in an order that says nothing of them.

    Raises:
        InputError: No unit has an event.
    """
    events = [unit for unit in units if unit.total]
    temperature, isotonic = (
        fit(*Reliability.together(events).cells()) for fit in (fit_temperature, fit_isotonic)
    )
    chosen: Kind = "temperature"
    if len(events) < 2:
        why = f"temperature: {len(events)} unit with an event cannot judge another"
    else:
        halves = [Reliability.together(events[k::2]) for k in range(2)]
        scores = {"temperature": 0.0, "isotonic": 0.0}
        for fitted, judged in (halves, halves[::-1]):
            for name, fit in (("temperature", fit_temperature), ("isotonic", fit_isotonic)):
                scores[name] += scaled_counts(judged, fit(*fitted.cells())).squares
        total = sum(half.total for half in halves)
        chosen = "isotonic" if scores["isotonic"] < scores["temperature"] * (1 - 1e-9) else "temperature"
        said = ", ".join(f"{name} {score / total:.4g}" for name, score in scores.items())
        why = f"{chosen}: Brier score on the half of the units that each was not fitted on: {said}"
    return ChosenScaling(chosen=chosen, why=why, temperature=temperature, isotonic=isotonic)


def scaled_counts(counts: Reliability, scaling: Scaling | ChosenScaling) -> Reliability:
    """Return what the counts are after a scaling, each cell by its mean probability.

    Cells are 1/6000 wide, so that little is lost; where it counts, scale probabilities and count again.
    """
    p, share, n = counts.cells()
    after = Reliability.zeros()
    if not len(p):
        return after
    q = np.asarray(scaling.apply(p), np.float64)
    cell = Reliability.cell(q)
    after.count += np.bincount(cell, n, len(after.count))
    after.said += np.bincount(cell, n * q, len(after.said))
    after.right += np.bincount(cell, n * share, len(after.right))
    after.squares = float((n * (q**2 - 2 * q * share + share)).sum())
    return after

"""Which scaling is applied, if any: by how well each says what comes true in groups that it was not fitted on."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from clearmargin.errors import ConfigError
from clearmargin.margins.scaling import (
    Identity,
    Isotonic,
    Scaling,
    Temperature,
    fit_isotonic,
    fit_temperature,
    scaling_from_data,
    scaling_to_data,
)
from clearmargin.metrics.calibration import Reliability

__all__ = ["ChosenScaling", "Kind", "fit_scaling", "scaled_counts"]

Kind = Literal["none", "temperature", "isotonic"]

EVENTS_NEEDED = 50
ISOTONIC_NEEDED = (
    200  # a rising function of fewer is mostly their noise: on 57 it put every score under 0.5 to 0
)
EACH_NEEDED = (
    10  # that came true, and that did not: ten per parameter (Peduzzi et al., J Clin Epidemiol 1996)
)


@dataclass(frozen=True, kw_only=True)
class ChosenScaling:
    """Both scalings of one kind of probability, and which of them is applied.

    Attributes:
        chosen: Its name; ``none`` leaves probabilities as they are.
        why: The reason, in a sentence.
        temperature: Fitted on all fit groups.
        isotonic: Likewise.
    """

    chosen: Kind
    why: str
    temperature: Scaling
    isotonic: Scaling

    def apply(self, probabilities: NDArray[np.floating]) -> NDArray[np.floating]:
        """Return probabilities by the chosen scaling, of the same shape and precision."""
        if self.chosen == "none":
            return probabilities
        scaling = self.temperature if self.chosen == "temperature" else self.isotonic
        return scaling.apply(probabilities)

    def least(self, scaled: float) -> float:
        """Return the least probability, in steps of 0.0001, that is at least ``scaled`` afterwards; 1 if none is."""
        if self.chosen == "none":
            return scaled
        grid = np.arange(10001, dtype=np.float64) / 10000
        enough = np.asarray(self.apply(grid), np.float64) >= scaled
        return float(grid[int(enough.argmax())]) if enough.any() else 1.0

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
                f"this is not a choice of a scaling ({error}): run the calibration again"
            ) from None


def fit_scaling(
    groups: Sequence[Reliability], judged: Sequence[Mapping[str, Reliability]] | None = None
) -> ChosenScaling:
    """Fit a temperature and a rising function, and choose.

    Each is fitted on every other group and judged by the Brier score on those between, and the other way round, beside
    the probabilities as they are. The one with the lowest score is chosen, the simpler one of equals. A temperature at
    the end of its range is never chosen. Nothing is scaled if there are fewer than `EVENTS_NEEDED` events or
    `EACH_NEEDED` of either outcome, or if only one group has an event; a rising function is not tried with fewer than
    `ISOTONIC_NEEDED`. A scaling is not chosen, either, if it made the
    Brier score or the ECE of any further counts worse, such as of the pixels near an edge.

    Args:
        groups: Counts of each fit group's events, in an order that says nothing of them.
        judged: Further counts of each of these groups, by name, on which nothing is fitted: of pixels all of them, and
            not only the doubtful ones that ``groups`` has. Probabilities of 0 and 1 then stay what they are.

    Raises:
        InputError: No group has an event.
    """
    kept = [k for k, group in enumerate(groups) if group.total]
    events = [groups[k] for k in kept]
    further = [judged[k] for k in kept] if judged is not None else []
    every = Reliability.together(events)
    reason = _too_few(every, len(events))
    if reason:
        nothing = Identity(reason=reason, n=round(every.total))
        return ChosenScaling(chosen="none", why=f"none: {reason}", temperature=nothing, isotonic=nothing)
    fits: dict[Kind, Callable[..., Scaling]] = {
        "none": lambda *_cells: Identity(reason="as predicted", n=0),
        "temperature": fit_temperature,
        "isotonic": _fit_never_certain if judged is None else _fit_between_ends,
    }
    if every.total < ISOTONIC_NEEDED:
        del fits["isotonic"]
    halves = [Reliability.together(events[k::2]) for k in range(2)]
    fitted = {name: fit(*every.cells()) for name, fit in fits.items()}
    unfitted = Identity(reason=f"fewer than {ISOTONIC_NEEDED} events", n=round(every.total))
    of_halves = {name: [fit(*half.cells()) for half in halves] for name, fit in fits.items()}
    errors = {
        name: sum(scaled_counts(halves[1 - k], one).squares for k, one in enumerate(of_halves[name]))
        / every.total
        for name in fits
        if not _at_limit(fitted[name])
    }
    worse = {name: _made_worse(of_halves[name], further) for name in errors if name != "none"}
    kind: Kind = "none"
    for name in ("temperature", "isotonic"):
        if name in errors and not worse[name] and errors[name] < errors[kind] * (1 - 1e-9):
            kind = name
    said = ", ".join(f"{name} {error:.4g}" for name, error in errors.items())
    why = f"{kind}: Brier score on the half of the groups that each was not fitted on: {said}"
    refused = [f"{name} made {', '.join(what)} worse" for name, what in worse.items() if what]
    if refused:
        why += f"; not applied: {'; '.join(refused)}"
    if "temperature" not in errors:
        why += "; the temperature lies at the end of its range and is not used"
    return ChosenScaling(
        chosen=kind, why=why, temperature=fitted["temperature"], isotonic=fitted.get("isotonic", unfitted)
    )


def _fit_never_certain(*cells: NDArray[np.float64]) -> Scaling:
    """Return the rising function with 1 / (n + 2) in place of 0, and its complement in place of 1.

    That no event among n came true does not make the next one impossible (Laplace's rule of succession).
    """
    fitted = fit_isotonic(*cells)
    if not isinstance(fitted, Isotonic):
        return fitted
    least = 1 / (fitted.n + 2)
    return replace(fitted, values=tuple(min(max(v, least), 1 - least) for v in fitted.values))


def _fit_between_ends(*cells: NDArray[np.float64]) -> Scaling:
    """Return the rising function that fits doubtful pixels, from 0 at 0 to 1 at 1: those were not fitted on."""
    fitted = fit_isotonic(*cells)
    if not isinstance(fitted, Isotonic):
        return fitted
    return replace(fitted, points=(0.0, *fitted.points, 1.0), values=(0.0, *fitted.values, 1.0))


def _made_worse(halves: Sequence[Scaling], judged: Sequence[Mapping[str, Reliability]]) -> list[str]:
    """Return which errors of which further counts rise, each half of the groups scaled by what fits the other."""
    worse = []
    for name in judged[0] if judged else ():
        before = Reliability.together(group[name] for group in judged)
        after = Reliability.together(
            scaled_counts(Reliability.together(group[name] for group in judged[1 - k :: 2]), one)
            for k, one in enumerate(halves)
        )
        if not before.total:
            continue
        errors: dict[str, Callable[[Reliability], float]] = {
            "Brier score": lambda counts: counts.squares / counts.total,
            "ECE": lambda counts: counts.ece(),
        }
        worse += [
            f"the {error} of {name}" for error, of in errors.items() if of(after) > of(before) * (1 + 1e-6)
        ]
    return worse


def _too_few(events: Reliability, groups: int) -> str | None:
    """Return why nothing can be fitted, with how much is needed; None if something can."""
    total = round(events.total)
    right = round(float(events.right.sum()))
    if total < EVENTS_NEEDED or min(right, total - right) < EACH_NEEDED:
        return (
            f"{total} events, of which {right} came true, are too few: {EVENTS_NEEDED} are needed, {EACH_NEEDED} of "
            "either outcome"
        )
    if groups < 2:
        return "one group with an event cannot judge another: two are needed"
    return None


def _at_limit(scaling: Scaling) -> bool:
    return isinstance(scaling, Temperature) and scaling.at_limit


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

"""Whether incoming cases look like those that the margins were calibrated on.

A margin holds for exchangeable data, and no check can prove that. This one looks at a few numbers a case
(intensities, scores, the number of instances) and says what differs. Silence is not a guarantee.

Source: Kolmogorov-Smirnov two-sample test over cases, with Holm's correction; for a single case the distance
from the median in robust standard deviations (Iglewicz and Hoaglin, 1993).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from clearmargin.errors import ConfigError, InputError
from clearmargin.metrics.statistics import holm

__all__ = [
    "Drift",
    "Fingerprint",
    "case_features",
    "check_drift",
    "fingerprint",
    "intensity_features",
    "score_features",
]

_QUANTILES = (5, 25, 50, 75, 95)
_MOST = 500  # values kept of each feature
_PIXELS = 1_000_000  # looked at in a case
_OUTLYING = 6.0  # robust standard deviations: of 1000 normal cases with seven features none

Features = Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class Fingerprint:
    """What calibration cases look like: each feature's values, sorted apart from the others.

    Nothing in it belongs to one case any more, and nothing identifies one.

    Attributes:
        cases: Number of cases.
        values: By feature, at most 500, rising; evenly spaced ones where there are more cases.
    """

    cases: int
    values: Mapping[str, tuple[float, ...]]

    def to_data(self) -> dict[str, Any]:
        """Return it as plain data, for YAML and JSON."""
        return asdict(self) | {"values": {k: list(v) for k, v in self.values.items()}}

    @staticmethod
    def from_data(content: Mapping[str, Any]) -> Fingerprint:
        """Return the fingerprint that `to_data` gave.

        Raises:
            ConfigError: A field is missing.
        """
        try:
            values = {str(k): tuple(float(x) for x in v) for k, v in content["values"].items()}
            return Fingerprint(cases=int(content["cases"]), values=values)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ConfigError(
                f"this is no fingerprint of calibration cases ({error}): calibrate again"
            ) from None


@dataclass(frozen=True, kw_only=True)
class Drift:
    """What differs; nothing in ``warnings`` where nothing was seen to.

    Attributes:
        cases: Incoming cases looked at.
        p_values: By feature, adjusted over the features.
        outlying: By position of the incoming case, the features that lie far out, with how far.
        warnings: Sentences, for the console and the report.
    """

    cases: int
    p_values: Mapping[str, float]
    outlying: Mapping[int, Mapping[str, float]]
    warnings: tuple[str, ...]


def case_features(pixels: NDArray[Any], scores: ArrayLike) -> dict[str, float]:
    """Return the numbers of one case: `intensity_features` and `score_features`."""
    return intensity_features(pixels) | score_features(scores)


def intensity_features(pixels: NDArray[Any]) -> dict[str, float]:
    """Return quantiles of the intensities of one case.

    Args:
        pixels: In the unit that the network takes them in (HU of a CT), any shape. Of large volumes about a
            million evenly spaced ones are looked at. What is not finite is left out; with no pixel left there
            are no intensities.
    """
    flat = np.asarray(pixels).ravel()
    flat = flat[:: (flat.size // _PIXELS) | 1].astype(
        np.float64
    )  # an odd step: not one column of an image alone
    flat = flat[np.isfinite(flat)]
    if not flat.size:
        return {}
    quantiles = np.percentile(flat, _QUANTILES)
    return {f"intensity p{q:02d}": float(v) for q, v in zip(_QUANTILES, quantiles, strict=True)}


def score_features(scores: ArrayLike) -> dict[str, float]:
    """Return number and mean score of the instances of one case; of none there is no mean score.

    Args:
        scores: Of instances above one threshold, in calibration and after.
    """
    values = np.asarray(scores, np.float64).ravel()
    found = {"instances": float(values.size)}
    return found | ({"mean score": float(values.mean())} if values.size else {})


def fingerprint(cases: Sequence[Features]) -> Fingerprint:
    """Return what calibration cases look like.

    Raises:
        InputError: There is no case.
    """
    if not cases:
        raise InputError("no calibration case to take a fingerprint of: give the card a calibration split")
    names = sorted({name for case in cases for name in case})
    return Fingerprint(
        cases=len(cases), values={n: _kept([case[n] for case in cases if n in case]) for n in names}
    )


def check_drift(known: Fingerprint, incoming: Sequence[Features], *, alpha: float = 0.01) -> Drift:
    """Compare incoming cases with those of the calibration.

    Args:
        known: Of the calibration cases.
        incoming: One or more cases; for none there is nothing to say.
        alpha: A batch of cases like the known ones is warned of with at most this probability, ties aside.
    """
    from scipy.stats import ks_2samp

    raw, notes = {}, {}
    for name, values in known.values.items():
        new = [case[name] for case in incoming if name in case]
        if new and values:
            test = ks_2samp(new, values, method="auto")
            raw[name] = float(test.pvalue)
            notes[name] = (
                f"{name} differs from the calibration cases (median {np.median(new):.4g} in {len(new)} incoming, "
                f"{np.median(values):.4g} in calibration; Kolmogorov-Smirnov {test.statistic:.2f})"
            )
    adjusted = holm(raw)
    outlying = {k: far for k, case in enumerate(incoming) if (far := _far_out(known, case))}
    warnings = [
        f"{notes[name]}, p = {p:.2g} over {len(raw)} features" for name, p in adjusted.items() if p < alpha
    ]
    warnings += [
        f"incoming case {k + 1}: "
        + ", ".join(f"{name} {z:+.3g} robust standard deviations" for name, z in far.items())
        for k, far in outlying.items()
    ]
    if warnings:
        warnings.append(
            "the margins, thresholds and scaling hold for data like the calibration data: calibrate on data like "
            "these, or let a person look"
        )
    return Drift(cases=len(incoming), p_values=adjusted, outlying=outlying, warnings=tuple(warnings))


def _far_out(known: Fingerprint, case: Features) -> dict[str, float]:
    """Return the intensities of a case that are far from the calibration cases' medians, with how far."""
    names = [name for name in known.values if name.startswith("intensity") and name in case]
    middles = {name: float(np.median(known.values[name])) for name in names}
    # where all calibration cases agree (a black background), a hundredth of the range of intensities counts
    least = 0.01 * (max(middles.values()) - min(middles.values())) if middles else 0.0
    out = {}
    for name in names:
        spread = 1.4826 * float(np.median(np.abs(np.asarray(known.values[name]) - middles[name])))
        away = case[name] - middles[name]
        scale = max(spread, least)
        z = away / scale if scale else math.copysign(math.inf, away) if away else 0.0
        if abs(z) > _OUTLYING:
            out[name] = z
    return out


def _kept(values: Sequence[float]) -> tuple[float, ...]:
    ordered = np.sort(np.asarray(values, np.float64))
    if len(ordered) > _MOST:
        ordered = ordered[np.linspace(0, len(ordered) - 1, _MOST).round().astype(int)]
    return tuple(float(v) for v in ordered)

"""Whether an incoming case looks like those that the margins were calibrated on.

A margin holds for exchangeable data, and no check can prove that. This one compares what the image looks like
(features) with the calibration cases: how far away its three nearest neighbours are, in relation to how far theirs
are. The relation, and not the distance, since the cases of a rare stain lie farther apart than
those of a common one. The rank of the relation among those of the calibration groups is a p-value: a case like the
calibration cases is warned of with at most the false alarm rate that is stated. Silence is not a guarantee.

A batch of cases is compared feature by feature, by the Kolmogorov-Smirnov two-sample test with Holm's correction.

Source: Bates, Candes, Lei, Romano and Sesia, "Testing for outliers with conformal p-values", Annals of Statistics 2023;
the relation is the nearest neighbour description of Tax, "One-class classification", thesis, Delft 2001.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from clearmargin.errors import ConfigError, InputError
from clearmargin.metrics.paired import holm

__all__ = [
    "FALSE_ALARMS",
    "Drift",
    "Features",
    "KnownCases",
    "case_features",
    "check_drift",
    "false_alarms",
    "foreign_p_value",
    "image_features",
    "known_cases",
    "score_features",
]

FALSE_ALARMS = 0.05
"""Share of the cases like the calibration cases that are warned of, at most."""

_QUANTILES = (5, 25, 50, 75, 95)
_MOST = 500  # cases kept
_PIXELS = 1_000_000  # looked at in a case
_MOST_CHANNELS = 4
_NEIGHBOURS = 3
_LEAST = 0.1  # of the median distance to a neighbour: twins say nothing of how close cases lie

Features = Mapping[str, float]
Table = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class KnownCases:
    """What calibration cases look like: a row of features for each, in random order. Nothing in it names a case.

    Attributes:
        groups: Number of each case's group, in random order; cases of one group are not compared with each other.
        values: By feature, a value for each case; NaN where a case has none.
        false_alarms: Share of the cases like these that are warned of.
        by_stratum: How many of the calibration cases of each of the card's strata would be warned of, and of how many:
            each against those of the other groups.
    """

    groups: tuple[int, ...]
    values: Mapping[str, tuple[float, ...]]
    false_alarms: float
    by_stratum: Mapping[str, tuple[int, int]]

    @property
    def cases(self) -> int:
        """Number of cases that are kept."""
        return len(self.groups)

    @property
    def reaches(self) -> bool:
        """Whether there are groups enough for a warning at the false alarm rate."""
        return 1 / (len(set(self.groups)) + 1) <= self.false_alarms

    def to_data(self) -> dict[str, Any]:
        """Return it as plain data, for YAML and JSON."""
        return asdict(self) | {
            "groups": list(self.groups),
            "values": {name: list(column) for name, column in self.values.items()},
            "by_stratum": {name: list(counts) for name, counts in self.by_stratum.items()},
        }

    @staticmethod
    def from_data(content: Mapping[str, Any]) -> KnownCases:
        """Return the known cases that `to_data` gave.

        Raises:
            ConfigError: A field is missing.
        """
        try:
            return KnownCases(
                groups=tuple(int(number) for number in content["groups"]),
                values={str(k): tuple(float(x) for x in v) for k, v in content["values"].items()},
                false_alarms=float(content["false_alarms"]),
                by_stratum={
                    str(name): (int(warned), int(count))
                    for name, (warned, count) in content["by_stratum"].items()
                },
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ConfigError(
                f"these are not the features of calibration cases ({error}): calibrate again"
            ) from None


@dataclass(frozen=True, kw_only=True)
class Drift:
    """What differs; nothing in ``warnings`` if nothing was seen to.

    Attributes:
        cases: Incoming cases looked at.
        p_values: By feature, adjusted over the features; of a batch of two or more.
        foreign: By position of the incoming case, its p-value, of those that are warned of.
        warnings: Sentences, for the console and the report.
    """

    cases: int
    p_values: Mapping[str, float]
    foreign: Mapping[int, float]
    warnings: tuple[str, ...]


def case_features(pixels: NDArray[Any], scores: ArrayLike) -> dict[str, float]:
    """Return the numbers of one case: `image_features` and `score_features`."""
    return image_features(pixels) | score_features(scores)


def image_features(pixels: NDArray[Any]) -> dict[str, float]:
    """Return quantiles of the intensities of one case, and the mean of each channel of a colour image.

    Args:
        pixels: In the unit that the network takes them in (HU of a CT), channels first. Of large volumes about a
            million evenly spaced ones are looked at. What is not finite is left out; with no pixel left there
            are no features.
    """
    every = np.asarray(pixels)
    flat = _finite(every)
    if not flat.size:
        return {}
    quantiles = np.percentile(flat, _QUANTILES)
    features = {f"intensity p{q:02d}": float(v) for q, v in zip(_QUANTILES, quantiles, strict=True)}
    if every.ndim > 2 and 1 < len(every) <= _MOST_CHANNELS:
        means = {f"channel {k + 1}": _finite(channel) for k, channel in enumerate(every)}
        features |= {name: float(values.mean()) for name, values in means.items() if values.size}
    return features


def _finite(values: NDArray[Any]) -> Table:
    flat = values.ravel()
    # an odd step: not one column of an image alone
    flat = flat[:: (flat.size // _PIXELS) | 1].astype(np.float64)
    finite: Table = flat[np.isfinite(flat)]
    return finite


def score_features(scores: ArrayLike) -> dict[str, float]:
    """Return number and mean score of the instances of one case; of none there is no mean score.

    Args:
        scores: Of instances above one threshold, in calibration and after.
    """
    values = np.asarray(scores, np.float64).ravel()
    features = {"instances": float(values.size)}
    return features | ({"mean score": float(values.mean())} if values.size else {})


def known_cases(
    cases: Sequence[Features],
    groups: Sequence[str],
    strata: Sequence[Mapping[str, str]] = (),
    *,
    false_alarms: float = FALSE_ALARMS,
    seed: int = 0,
) -> KnownCases:
    """Return what calibration cases look like.

    Args:
        cases: Features of each.
        groups: Groups of each.
        strata: Strata of each, of the card; nothing for none.
        false_alarms: Share of the cases like these that may be warned of.
        seed: Random seed for the order.

    Raises:
        InputError: There is no case.
    """
    if not cases:
        raise InputError(
            "--card has no calibration case to take a fingerprint of: give it a calibration split"
        )
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(cases))[:_MOST]
    names = sorted({name for case in cases for name in case})
    numbers = {
        group: int(k) for group, k in zip(sorted(set(groups)), rng.permutation(len(set(groups))), strict=True)
    }
    known = KnownCases(
        groups=tuple(numbers[groups[k]] for k in order),
        values={name: tuple(float(cases[k].get(name, np.nan)) for k in order) for name in names},
        false_alarms=false_alarms,
        by_stratum={},
    )
    if not strata:
        return known
    relations = _relations(_table(known), np.asarray(known.groups))
    warned = [_p_value(relations, np.asarray(known.groups), row) <= false_alarms for row in range(len(order))]
    counts: dict[str, tuple[int, int]] = {}
    for row, k in enumerate(order):
        for column, value in strata[k].items():
            before = counts.get(f"{column} {value}", (0, 0))
            counts[f"{column} {value}"] = (before[0] + int(warned[row]), before[1] + 1)
    return KnownCases(
        groups=known.groups,
        values=known.values,
        false_alarms=false_alarms,
        by_stratum=dict(sorted(counts.items())),
    )


def foreign_p_value(known: KnownCases, case: Features) -> float:
    """Return the share of groups whose cases lie as far from the others as this one does, itself among them.

    Of cases exchangeable with the calibration cases at most a share p has a value of p or less. Without a feature that
    both have it is 1.
    """
    shared = [name for name in _looks(known) if name in case]
    if not shared or not known.cases:
        return 1.0
    table = np.column_stack([known.values[name] for name in shared])
    rows = np.vstack([table, [case[name] for name in shared]])
    groups = np.append(known.groups, -1)
    return _p_value(_relations(_standard(rows), groups), groups, len(rows) - 1)


def false_alarms(known: KnownCases, cases: Sequence[Features]) -> list[bool]:
    """Return of each case whether it is warned of."""
    return [known.reaches and foreign_p_value(known, case) <= known.false_alarms + 1e-12 for case in cases]


def check_drift(known: KnownCases, incoming: Sequence[Features], *, alpha: float = 0.01) -> Drift:
    """Compare incoming cases with those of the calibration.

    Args:
        known: What is known of the calibration cases.
        incoming: One or more cases; for none there is nothing to say.
        alpha: A batch of cases like the known ones is warned of with at most this probability, ties aside.
    """
    alarms = false_alarms(known, incoming)
    foreign = {k: foreign_p_value(known, case) for k, case in enumerate(incoming) if alarms[k]}
    adjusted, notes = _compared(known, incoming) if len(incoming) > 1 else ({}, {})
    warnings = [
        f"{notes[name]}, p = {p:.2g} over {len(adjusted)} features"
        for name, p in adjusted.items()
        if p < alpha
    ]
    warnings += [
        f"{_named(k, incoming)} looks like no calibration case (p = {p:.2g}; {100 * known.false_alarms:g} % of the "
        "cases like those are warned of, too): margins, thresholds and scaling are not promised for it; let a person "
        "look, or calibrate on data like it"
        for k, p in foreign.items()
    ]
    return Drift(cases=len(incoming), p_values=adjusted, foreign=foreign, warnings=tuple(warnings))


def _named(k: int, incoming: Sequence[Features]) -> str:
    return "the case" if len(incoming) == 1 else f"incoming case {k + 1}"


def _compared(known: KnownCases, incoming: Sequence[Features]) -> tuple[dict[str, float], dict[str, str]]:
    """Return each feature's p-value over the batch, adjusted, and what is said of it."""
    from scipy.stats import ks_2samp

    raw, notes = {}, {}
    for name, column in known.values.items():
        new = [case[name] for case in incoming if name in case]
        values = [value for value in column if np.isfinite(value)]
        if new and values:
            test = ks_2samp(new, values, method="auto")
            raw[name] = float(test.pvalue)
            notes[name] = (
                f"{name} differs from the calibration cases (median {np.median(new):.4g} in {len(new)} incoming, "
                f"{np.median(values):.4g} in calibration; Kolmogorov-Smirnov {test.statistic:.2f})"
            )
    return dict(holm(raw)), notes


def _looks(known: KnownCases) -> list[str]:
    """Return the features of the image that all kept cases have."""
    return [
        name
        for name, column in known.values.items()
        if name not in ("instances", "mean score") and np.isfinite(column).all()
    ]


def _table(known: KnownCases) -> Table:
    names = _looks(known)
    if not names:
        return np.zeros((known.cases, 0))
    return _standard(np.column_stack([known.values[name] for name in names]))


def _standard(rows: Table) -> Table:
    """Return the rows, all features in the unit of the one that varies most: they are intensities, all of them."""
    spread = rows.std(axis=0).max(initial=0.0)
    return rows / spread if spread else rows


def _relations(rows: Table, groups: NDArray[np.int64]) -> Table:
    """Return each row's mean distance to its nearest neighbours of other groups, over that of these neighbours.

    Of three neighbours: by one alone, a single odd calibration case makes all that lies far out look like it.
    """
    apart = np.sqrt(((rows[:, None] - rows[None]) ** 2).sum(axis=-1))
    apart[groups[:, None] == groups[None]] = np.inf
    others = min(_NEIGHBOURS, int(np.isfinite(apart).sum(axis=1).min()))
    if not others:  # one group has no neighbour
        return np.ones(len(rows))
    nearest = np.argsort(apart, axis=1, kind="stable")[:, :others]
    distance = np.take_along_axis(apart, nearest, axis=1).mean(axis=1)
    least = _LEAST * float(np.median(distance))
    around = distance[nearest].mean(axis=1) + least
    relation: Table = np.divide(distance, around, out=np.ones(len(rows)), where=around > 0)
    return relation


def _p_value(relations: Table, groups: NDArray[np.int64], row: int) -> float:
    """Return the share of groups, each by its share of cases, whose relation is at least the row's; its own is 1."""
    far = relations >= relations[row] * (1 - 1e-12)
    shares = [
        1.0 if group == groups[row] else float(far[groups == group].mean()) for group in np.unique(groups)
    ]
    return float(np.mean(shares))

"""How far instances are from a landmark or a named neighbour: as predicted, between their margins, and as promised.

Distances are least distances in the grid's unit between element centres, of a point to the point itself: 0 if two
instances share an element. Two promises about two objects make one in either of two ways:

- **A score of its own** (`fit_clearance`). Each matched object asks for the length by which its predicted distance
  exceeds the true one to the nearest true target, detected or not. The least length that keeps the promise
  (`guarantees`) is taken off a predicted distance. One alpha, fitted directly on the distance.
- **Between margins** (`with_distances`). If both objects lie within their outer margins (a landmark within its region),
  they are at least as far apart as these. Margins by ``group`` hold for all matched objects of a group at once, so two
  instances need no second alpha, and an instance and a landmark the sum of both (the union bound). Margins by
  ``object`` or by ``risk`` are means over objects of every kind: they promise nothing of one pair.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from clearmargin.core import InstanceSet, LabelMap, Mask, Prediction, Thresholds
from clearmargin.core.grid import Unit
from clearmargin.core.groups import PLURALS
from clearmargin.errors import ConfigError, nearest
from clearmargin.margins.distances import distance_between, distance_to_ellipsoid, distance_to_point
from clearmargin.margins.guarantees import Demand, GroupLosses, Guarantee, coverage_range, least_factor
from clearmargin.margins.margins import CalibrationData

if TYPE_CHECKING:
    from clearmargin.margins.calibration import Calibration

__all__ = [
    "Apart",
    "Clearance",
    "apart_from",
    "check_targets",
    "clearance_losses",
    "column_of",
    "fit_clearance",
    "promise_between_margins",
    "with_distances",
]

Points = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, eq=False)
class Apart:
    """How far one matched object is from the targets of a name.

    Attributes:
        label: Of the targets' class; 0 for points.
        scores: ``(T,)`` of the predicted targets.
        distances: ``(T,)`` from the predicted object to each.
        true: From its partner to the nearest true target; infinite if there is none.
    """

    label: int
    scores: Points
    distances: Points
    true: float

    def predicted(self, thresholds: Thresholds) -> float | None:
        """Return the distance to the nearest target that reaches its threshold; None if there is none."""
        least = thresholds.of(self.label) if self.label else thresholds.landmarks
        kept = self.distances[self.scores >= np.float32(least)]
        return float(kept.min()) if kept.size else None


@dataclass(frozen=True, kw_only=True)
class Clearance:
    """What is taken off a predicted distance, and what that promises.

    Attributes:
        target: Name of a class or of a type of points.
        guarantee: ``object``: a share of a group's objects. ``group``: all objects of a share of the groups.
        alpha: What the mean loss of new groups may be.
        confidence: None, or the share of calibrations for which the loss is kept.
        length: What is taken off, in ``length_unit``.
        length_unit: ``mm`` or ``px``.
        n: Groups that it was calibrated on: with a matched object and a detected target.
        without: Further calibration groups.
        covered: Mean over calibrations, low and high (`guarantees.coverage_range`).
        data: Where it comes from.
    """

    target: str
    guarantee: Guarantee
    alpha: float
    confidence: float | None
    length: float
    length_unit: Unit
    n: int
    without: int
    covered: tuple[float, float, float]
    data: CalibrationData

    def to_data(self) -> dict[str, Any]:
        """Return the record as plain data, for YAML and JSON."""
        return asdict(self) | {"covered": list(self.covered)}

    @staticmethod
    def from_data(content: Mapping[str, Any]) -> Clearance:
        """Return the record that `to_data` gave.

        Raises:
            ConfigError: A field is missing or unknown.
        """
        try:
            mean, low, high = content["covered"]
            special = {"covered": (mean, low, high), "data": CalibrationData(**content["data"])}
            return Clearance(**{**content, **special})
        except (KeyError, TypeError, ValueError) as error:
            raise ConfigError(
                f"this is not a clearance's record ({error}): run the calibration again"
            ) from None

    def __str__(self) -> str:
        mean, low, high = (100 * share for share in self.covered)
        group, kept = self.data.group, f"{100 * (1 - self.alpha):g} %"
        least = f"at least as far from the nearest true '{self.target}' as their least distance says"
        what = (
            f"with a chance of at least {kept} all matched objects of a new {group} are {least}"
            if self.guarantee == "group"
            else f"at least {kept} of a new {group}'s matched objects are {least}, a mean over {PLURALS[group]}"
        )
        sure = "" if self.confidence is None else f", with a confidence of {100 * self.confidence:g} %"
        return (
            f"{what}{sure} (alpha {self.alpha:g}, n = {self.n} {PLURALS[group]}): the predicted distance less "
            f"{self.length:.3g} {self.length_unit}. Coverage of this one calibration: {low:.0f} to {high:.0f} % in 9 "
            f"of 10, {mean:.1f} % on average"
        )


def check_targets(names: Sequence[str], label_map: LabelMap) -> None:
    """Refuse a name that is neither a class nor a type of points.

    Raises:
        ConfigError: With the nearest name.
    """
    known = [*label_map.names, *(point.name for point in label_map.points)]
    for name in names:
        if name not in known:
            raise ConfigError(f"--towards {name}: no class and no point of that name: {nearest(name, known)}")


def apart_from(
    name: str, prediction: Prediction, i: int, reference: InstanceSet, partner: int
) -> Apart | None:
    """Return how far a matched object is from the targets of a name; None if it is one itself.

    Args:
        name: Of a class or a type of points.
        prediction: With every target, whatever its score.
        i: The object's position.
        reference: On the same grid.
        partner: Position of the object's partner in it.
    """
    ours, label_map, grid = prediction.instances, prediction.label_map, reference.grid
    label = 0
    if name in label_map.names:
        label = label_map.by_name(name).id
        if label in (int(ours.labels[i]), int(reference.labels[partner])):
            return None
        at = np.flatnonzero(ours.labels == label)
        scores = ours.scores[at].tolist()
        distances = [distance_between(ours.masks[i], ours.masks[j], grid) for j in at]
        true = [
            distance_between(reference.masks[partner], reference.masks[j], grid)
            for j in np.flatnonzero(reference.labels == label)
        ]
    else:
        places, scores = _points(ours, name, label_map)
        distances = [distance_to_point(ours.masks[i], place, grid) for place in places]
        true = [
            distance_to_point(reference.masks[partner], place, grid)
            for place in _points(reference, name, label_map)[0]
        ]
    return Apart(
        label=label,
        scores=np.asarray(scores, np.float64),
        distances=np.array(distances, np.float64),
        true=min(true, default=np.inf),
    )


def clearance_losses(
    rows: Iterable[tuple[str, Apart]], thresholds: Thresholds, guarantee: Guarantee
) -> GroupLosses:
    """Return the losses of the groups with an object whose target is detected, as functions of the length.

    Args:
        rows: Group and distances of each matched object.
        thresholds: Least scores of targets.
        guarantee: Which loss.
    """
    nothing = np.zeros(0)
    known = ((group, apart.predicted(thresholds), apart.true) for group, apart in rows)
    return GroupLosses(
        [
            Demand(group=group, whole=max(0.0, predicted - true), factors=nothing, outside=nothing)
            for group, predicted, true in known
            if predicted is not None
        ],
        guarantee,
    )


def fit_clearance(
    target: str,
    rows: Iterable[tuple[str, Apart]],
    groups: Iterable[str],
    thresholds: Thresholds,
    *,
    guarantee: Guarantee,
    alpha: float,
    confidence: float | None = None,
    length_unit: Unit,
    data: CalibrationData,
) -> Clearance:
    """Return what is taken off predicted distances so that the mean loss of new groups is at most ``alpha``.

    Args:
        target: Name of a class or of a type of points.
        rows: Group and distances of each matched object of the calibration groups.
        groups: All calibration groups.
        thresholds: Least scores of targets.
        guarantee: Which loss.
        alpha: What the mean loss may be.
        confidence: See `least_factor`.
        length_unit: Of the distances.
        data: Where the groups come from.

    Raises:
        InputError: Too few groups; the level that they reach is said.
    """
    losses = clearance_losses(rows, thresholds, guarantee)
    length = least_factor(losses, alpha, confidence=confidence, name=f"the distance to '{target}'")
    return Clearance(
        target=target,
        guarantee=guarantee,
        alpha=alpha,
        confidence=confidence,
        length=length,
        length_unit=length_unit,
        n=losses.n,
        without=len(set(groups)) - losses.n,
        covered=coverage_range(losses, length),
        data=data,
    )


@dataclass(frozen=True)
class _Target:
    """Where targets of a name are predicted, and what their margins reach."""

    masks: list[tuple[int, Mask]] = field(default_factory=list)
    points: list[Points] = field(default_factory=list)
    outer: list[tuple[int, Mask]] | None = None
    regions: list[tuple[Points, Points]] | None = None


def with_distances(
    prediction: Prediction, names: Sequence[str], clearances: Sequence[Clearance] = ()
) -> Prediction:
    """Return a prediction with columns of the distances to each target, with the grid's unit in their names.

    ``distance_to_NAME_mm``: to the nearest predicted target. ``margin_distance_to_NAME_mm``: between the outer margins
    of both, of a point its region; only if both were calibrated. ``least_distance_to_NAME_mm``: the promised one, of a
    target with a clearance. NaN for the targets themselves, and where no target is predicted.

    Args:
        prediction: As `Calibration.apply` returns it, if there is a calibration.
        names: Of classes or types of points.
        clearances: Those that are applied.
    """
    columns = dict(prediction.instances.uncertainty)
    unit = prediction.instances.grid.unit
    for name in dict.fromkeys(names):
        target = _target(name, prediction)
        apart = np.array([_nearest(prediction, i, target) for i in range(len(prediction.instances))])
        columns[f"distance_to_{column_of(name)}_{unit}"] = apart.astype(np.float32)
        if prediction.outer and (target.outer is not None or target.regions is not None):
            between = [_nearest_margin(prediction, i, target) for i in range(len(prediction.instances))]
            columns[f"margin_distance_to_{column_of(name)}_{unit}"] = np.array(between, np.float32)
        for clearance in clearances:
            if clearance.target == name:
                least = np.maximum(apart - clearance.length, 0)
                columns[f"least_distance_to_{column_of(name)}_{unit}"] = least.astype(np.float32)
    return replace(prediction, instances=replace(prediction.instances, uncertainty=columns))


def column_of(name: str) -> str:
    """Return a name as it stands in a column's: with underscores for blanks."""
    return "_".join(name.split())


def promise_between_margins(calibration: Calibration, name: str, label_map: LabelMap) -> str:
    """Return in a sentence what distances between margins promise; why nothing, if they do not."""
    outer = calibration.margin("outer")
    if outer is None:
        return f"distances between margins and '{name}' are not promised: there is no outer margin"
    if outer.guarantee != "group":
        return (
            f"distances between margins and '{name}' are not promised: a promise by {outer.guarantee} is a mean over "
            "objects; calibrate with --promise group, or with --towards"
        )
    group = calibration.data.group
    alpha, event = outer.alpha, f"all matched objects of a new {group} lie within their outer margins"
    if name not in label_map.names:
        around = calibration.applied_points()
        if around is None:
            return f"distances between margins and '{name}' are not promised: landmarks have no region"
        alpha += around.alpha
        event += f" and its detected landmarks in their regions (alpha {outer.alpha:g} + {around.alpha:g}, union bound)"
    return (
        f"with a chance of at least {100 * max(0.0, 1 - alpha):g} % {event}, and are at least as far from a matched "
        f"'{name}' as the distance between both"
    )


def _points(instances: InstanceSet, name: str, label_map: LabelMap) -> tuple[list[Points], list[float]]:
    landmarks = instances.landmarks
    if landmarks is None:
        return [], []
    k = [point.name for point in label_map.points].index(name)
    at = np.flatnonzero(landmarks.visible[:, k] > 0)
    return list(landmarks.points[at, k]), landmarks.scores[at, k].tolist()


def _target(name: str, prediction: Prediction) -> _Target:
    instances, label_map = prediction.instances, prediction.label_map
    if name in label_map.names:
        at = np.flatnonzero(instances.labels == label_map.by_name(name).id).tolist()
        outer = [(j, prediction.outer[j]) for j in at] if prediction.outer else None
        return _Target(masks=[(j, instances.masks[j]) for j in at], outer=outer)
    places, _ = _points(instances, name, label_map)
    landmarks = instances.landmarks
    regions = None
    if landmarks is not None and landmarks.regions is not None:
        k = [point.name for point in label_map.points].index(name)
        at = np.flatnonzero(landmarks.visible[:, k] > 0).tolist()
        regions = [(landmarks.points[j, k], landmarks.regions[j, k]) for j in at]
    return _Target(points=places, regions=regions)


def _nearest(prediction: Prediction, i: int, target: _Target) -> float:
    grid, mask = prediction.instances.grid, prediction.instances.masks[i]
    if any(j == i for j, _ in target.masks):
        return float("nan")
    distances = [distance_between(mask, other, grid) for _, other in target.masks]
    distances += [distance_to_point(mask, place, grid) for place in target.points]
    return min(distances, default=float("nan"))


def _nearest_margin(prediction: Prediction, i: int, target: _Target) -> float:
    grid, mask = prediction.instances.grid, prediction.outer[i]
    if not mask.area or any(j == i for j, _ in target.outer or ()):
        return float("nan")
    distances = [distance_between(mask, other, grid) for _, other in target.outer or ()]
    distances += [
        distance_to_ellipsoid(mask, place, squares, grid) for place, squares in target.regions or ()
    ]
    return min(distances, default=float("nan"))

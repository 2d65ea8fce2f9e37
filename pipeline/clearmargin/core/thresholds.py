"""Least scores of instances, by class."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from clearmargin.core.instances import InstanceSet
from clearmargin.core.labels import LabelMap

__all__ = ["Thresholds"]


@dataclass(frozen=True)
class Thresholds:
    """Least scores of instances and of landmarks.

    Attributes:
        every: Threshold of the labels that have none of their own, in [0, 1].
        by_label: Thresholds of the others, in [0, 1], by label.
        points: Threshold of landmarks, in [0, 1]; None if it is ``every``.
    """

    every: float
    by_label: Mapping[int, float] = field(default_factory=dict)
    points: float | None = None

    def __post_init__(self) -> None:
        for value in (self.every, *self.by_label.values(), self.landmarks):
            if not 0 <= value <= 1:
                raise ValueError(f"a score threshold lies in [0, 1], not {value}")

    @property
    def lowest(self) -> float:
        """The least of all of them."""
        return min(self.every, *self.by_label.values(), self.landmarks)

    @property
    def landmarks(self) -> float:
        """The least score of a landmark."""
        return self.every if self.points is None else self.points

    @property
    def stated(self) -> tuple[float, float]:
        """The least and the largest of the labels' own; of ``every`` if none has its own: what a person is told."""
        values = sorted(self.by_label.values()) or [self.every]
        return values[0], values[-1]

    def of(self, label: int) -> float:
        """Return the least score of a label."""
        return self.by_label.get(label, self.every)

    def reached(self, instances: InstanceSet) -> NDArray[np.int64]:
        """Return the positions of the instances whose score reaches the threshold of their label."""
        least = np.array([self.of(int(label)) for label in instances.labels], np.float64)
        return np.flatnonzero(instances.scores >= least).astype(np.int64)

    def named(self, label_map: LabelMap) -> dict[str, float]:
        """Return the least score of each class of a label map, by its name."""
        return {c.name: self.of(c.id) for c in label_map.classes}

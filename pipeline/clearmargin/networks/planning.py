"""What a network wants of a data set: the base of every network's configuration, which plans itself."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Literal, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from clearmargin.config import Settings
from clearmargin.networks.cores import Encode, TargetKind
from clearmargin.networks.losses import MaskLossSettings

__all__ = [
    "BORDER",
    "Choice",
    "Facts",
    "Learns",
    "NetworkSettings",
    "Sees",
    "Shown",
    "anchor_choices",
    "mask_loss_choice",
    "sides_across",
    "thin",
]


BORDER = 3.0
"""Default width of the border that parts objects, in network pixels."""

Sees = Literal["planes", "volumes"]
"""What a network is shown."""

Learns = Literal["masks", "landmarks"]
"""What a network learns from, and a card may hold."""


class Facts(Protocol):
    """What is known of the training cases (`clearmargin.datasets.fingerprint.Fingerprint`); lengths in pixels."""

    @property
    def of(self) -> int:
        """Training cases of the split."""
        ...

    @property
    def ndim(self) -> int:
        """2 or 3."""
        ...

    @property
    def shapes(self) -> NDArray[np.int64]:
        """``(cases, 2)`` extents of the planes."""
        ...

    @property
    def depths(self) -> NDArray[np.int64]:
        """``(cases,)`` slices; 1 for pictures."""
        ...

    @property
    def spacings(self) -> NDArray[np.float64]:
        """``(cases, 2)`` size of a pixel."""
        ...

    @property
    def distances(self) -> NDArray[np.float64]:
        """``(cases,)`` from slice to slice; the pixel size for pictures."""
        ...

    @property
    def unit(self) -> str:
        """``mm`` or ``px``, of spacings and distances."""
        ...

    @property
    def counts(self) -> NDArray[np.int64]:
        """Instances in each plane that has one."""
        ...

    @property
    def totals(self) -> NDArray[np.int64]:
        """``(cases,)`` instances of each case."""
        ...

    @property
    def boxes(self) -> NDArray[np.int64]:
        """``(N, 2)`` height and width of each instance."""
        ...

    @property
    def sides(self) -> NDArray[np.float64]:
        """``(N,)`` square root of each box's area."""
        ...

    @property
    def thickness(self) -> NDArray[np.float64]:
        """``(N,)`` diameter of the largest disc that fits into each instance."""
        ...

    @property
    def nested(self) -> float:
        """Share of instances that lie in another one."""
        ...

    @property
    def touching(self) -> float:
        """Share of instances that touch or overlap another one of their class."""
        ...

    @property
    def lost(self) -> Mapping[Sees, Mapping[TargetKind, float]]:
        """Share of the instances that each kind of targets cannot give back, in planes and in volumes."""
        ...

    @property
    def most_points(self) -> int:
        """Largest number of landmarks of one type in an image; 0 without landmarks."""
        ...

    @property
    def both_visibilities(self) -> bool:
        """Whether there are seen and hidden landmarks."""
        ...


class Shown(NamedTuple):
    """How the network is shown the data, and what there is for it.

    Attributes:
        scale: Network pixels per image pixel.
        crop: Training window of planes.
        device: ``cpu`` or ``cuda``.
        minutes: Of training; None if that is not limited.
        cores: That compute a step, of a CPU.
        memory_mb: For a training step.
    """

    scale: float
    crop: tuple[int, int]
    device: str
    minutes: float | None = None
    cores: int = 1
    memory_mb: int = 8_000


class Choice(NamedTuple):
    """A setting's path in the experiment, its value, and why."""

    setting: str
    value: Any
    reason: str


class NetworkSettings(Settings):
    """Base of every network's configuration.

    Attributes:
        unread: Paths of settings of the experiment that the network does not read.
        learns: What the training cases must hold.
        sees: What it is shown: planes, one by one, or windows of volumes.
    """

    unread: ClassVar[tuple[str, ...]] = ()
    learns: ClassVar[Learns] = "masks"
    sees: ClassVar[Sees] = "planes"

    def encode(self, classes: int) -> Encode | None:
        """Return what draws the network's further targets of a window with so many classes; None if it has none."""
        return None

    @classmethod
    def objection(cls, facts: Facts, scale: float) -> str | None:
        """Return why the network cannot work on such data; None if it can."""
        return None

    @classmethod
    def choices(cls, facts: Facts, shown: Shown) -> Iterator[Choice]:
        """Yield the settings that fit the data."""
        most = int((facts.totals if cls.sees == "volumes" else facts.counts).max())
        seen = "a volume" if cls.sees == "volumes" else "an image"
        yield Choice(
            "model.detections", max(20, 10 * math.ceil(1.5 * most / 10)), f"{seen} has up to {most} objects"
        )


def sides_across(facts: Facts, shown: Shown) -> tuple[float, float, str]:
    """Return the 5 and 95 % quantile of the objects' sides in network pixels, and the sentence that says so."""
    low, high = (float(v) for v in np.quantile(facts.sides * shown.scale, (0.05, 0.95)))
    return low, high, f"objects are {low:.0f} to {high:.0f} network px across (5 to 95 %)"


def anchor_choices(facts: Facts, shown: Shown) -> Iterator[Choice]:
    """Yield sizes and ratios of anchors."""
    low, high, said = sides_across(facts, shown)
    sizes = [4 * max(2, round(s / 4)) for s in np.geomspace(max(8.0, low), max(high, 4 * low, 64.0), 5)]
    yield Choice("model.anchor_sizes", [max(s, sizes[0] + 4 * k) for k, s in enumerate(sizes)], said)
    ratios = np.quantile(facts.boxes[:, 0] / facts.boxes[:, 1], (0.1, 0.5, 0.9))
    yield Choice(
        "model.anchor_ratios",
        sorted({round(float(r), 1) or 0.1 for r in ratios}),
        "height over width of the boxes: 10, 50 and 90 % of them",
    )


def mask_loss_choice(facts: Facts, shown: Shown, loss: MaskLossSettings) -> Iterator[Choice]:
    """Yield a loss with Dice if many objects are thin."""
    if float(np.quantile(facts.thickness * shown.scale, 0.25)) < 8:
        value = loss.model_dump() | {"cross_entropy": 1.0, "dice": 1.0}
        yield Choice(
            "model.mask_loss",
            value,
            "a quarter of the objects is thinner than 8 network px: Dice weighs them",
        )


def thin(facts: Facts, scale: float) -> str | None:
    """Return the objection of masks at a quarter of the resolution; None if few objects are thinner than a pixel."""
    share = float((facts.thickness * scale < 4).mean())
    if share < 0.1:
        return None
    return (
        f"{100 * share:.0f} % of the objects are thinner than a pixel of its masks, which have a quarter of the "
        "image's resolution"
    )

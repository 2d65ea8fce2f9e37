"""What a segmenter returns, and what a segmenter is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from clearmargin.core.image import Image
from clearmargin.core.instances import InstanceSet
from clearmargin.core.labels import LabelMap
from clearmargin.core.mask import Mask

__all__ = ["EdgeSpread", "Prediction", "Provenance", "Segmenter", "at_least"]


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """What made a prediction: enough to name the algorithm in DICOM and to make deterministic UIDs.

    Attributes:
        model: Name of the network, such as ``mask_rcnn``.
        weights_sha256: Of the weights file.
        config_sha256: Of the resolved configuration.
        software: ``clearmargin`` and its version.
        runtime: What computed it: ``torch``, or a runtime it was exported to.
    """

    model: str
    weights_sha256: str
    config_sha256: str
    software: str
    runtime: str = "torch"


@dataclass(frozen=True, kw_only=True, eq=False)
class EdgeSpread:
    """How far the samples of one instance's edge lie apart, and where along it.

    Attributes:
        points: ``(K, ndim)`` float64, array indices of the instance's edge elements; K is 0 for an empty mask.
        sigma: ``(K,)`` float64, standard deviation of the edge there, in the grid's unit; 0 where samples agree.
    """

    points: NDArray[np.float64]
    sigma: NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, eq=False)
class Prediction:
    """Instances on the source's grid, with maps and provenance.

    Attributes:
        instances: On the grid of the image that was segmented.
        label_map: What the labels mean.
        provenance: What made it.
        maps: float32 arrays of ``instances.grid.shape`` by name, such as ``foreground`` and ``entropy``.
        edges: One for each instance where it was sampled (``uncertainty.sampling``); empty where it was not.
        outer: What each instance's outer margin reaches, where it was calibrated; empty where it was not.
        inner: What each instance's inner margin leaves, likewise.
    """

    instances: InstanceSet
    label_map: LabelMap
    provenance: Provenance
    maps: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)
    edges: tuple[EdgeSpread, ...] = ()
    outer: tuple[Mask, ...] = ()
    inner: tuple[Mask, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "maps", MappingProxyType(dict(self.maps)))
        for column in ("edges", "outer", "inner"):
            if getattr(self, column) and len(getattr(self, column)) != len(self.instances):
                raise ValueError(
                    f"{len(getattr(self, column))} {column} for {len(self.instances)} instance(s)"
                )
        for name, values in self.maps.items():
            if values.shape != self.instances.grid.shape:
                raise ValueError(
                    f"map '{name}' of shape {values.shape} is not on {self.instances.grid.shape}"
                )


def at_least(prediction: Prediction, score: float) -> Prediction:
    """Return a prediction without the instances below a score."""
    kept = np.flatnonzero(prediction.instances.scores >= score)
    return replace(
        prediction,
        instances=prediction.instances.select(kept),
        edges=tuple(prediction.edges[k] for k in kept) if prediction.edges else (),
        outer=tuple(prediction.outer[k] for k in kept) if prediction.outer else (),
        inner=tuple(prediction.inner[k] for k in kept) if prediction.inner else (),
    )


class Segmenter(Protocol):
    """Image in, prediction out."""

    def __call__(self, image: Image) -> Prediction:
        """Segment one image or volume; the prediction lies on ``image.grid``."""
        ...

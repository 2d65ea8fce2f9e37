"""What a segmenter returns, and what a segmenter is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from importlib import import_module
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from clearmargin.core.image import Image
from clearmargin.core.instances import InstanceSet
from clearmargin.core.labels import LabelMap
from clearmargin.core.mask import Mask
from clearmargin.core.reprs import short_repr
from clearmargin.core.thresholds import Thresholds

__all__ = ["EdgeSpread", "Prediction", "Provenance", "Segmenter", "at_least", "chosen_instances"]


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


@short_repr
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
        edges: One for each instance if it was sampled (``sampling.samples``); empty if it was not.
        outer: What each instance's outer margin reaches, if it was calibrated; empty if it was not.
        inner: What each instance's inner margin leaves, likewise.
        image: The segmented image, needed for overlays and for DICOM headers; None if it is not known.
    """

    instances: InstanceSet
    label_map: LabelMap
    provenance: Provenance
    maps: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)
    edges: tuple[EdgeSpread, ...] = ()
    outer: tuple[Mask, ...] = ()
    inner: tuple[Mask, ...] = ()
    image: Image | None = None

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
        if self.image is not None and self.image.grid.shape != self.instances.grid.shape:
            raise ValueError(
                f"an image of {self.image.grid.shape} for instances on {self.instances.grid.shape}"
            )

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"maps": dict(self.maps)}  # a view cannot go to another process

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state | {"maps": MappingProxyType(state["maps"])})

    def save(
        self, path: Path | str, *, kind: str | None = None, image: Image | None = None
    ) -> tuple[Path, ...]:
        """Write the prediction, by the file's suffix or as ``kind`` says, and return the files.

        See `clearmargin.outputs.forms.save_prediction` for kinds, suffixes and what is raised.
        """
        written: tuple[Path, ...] = _above("outputs.forms", "save_prediction")(
            self, Path(path), kind=kind, image=image
        )
        return written

    def _repr_png_(self) -> bytes | None:
        """Return the overlay, as a notebook shows it; None without an image."""
        picture: bytes | None = _above("report.notebook", "prediction_png")(self)
        return picture

    def _repr_html_(self) -> str:
        """Return the overlay and the table of instances, as a notebook shows them."""
        page: str = _above("report.notebook", "prediction_html")(self)
        return page

    def __repr__(self) -> str:
        counts = Counter(int(label) for label in self.instances.labels)
        listed = ", ".join(f"{n} {self.label_map.by_id(k).name}" for k, n in sorted(counts.items()))
        maps = f", maps {', '.join(self.maps)}" if self.maps else ""
        margins = ", with margins" if self.outer or self.inner else ""
        if self.instances.landmarks is not None:
            listed = ", ".join(filter(None, (listed, f"{self.instances.landmarks.count} landmark(s)")))
        what = f"{listed or 'no instances'} on {self.instances.grid}{maps}{margins}"
        return f"Prediction({what}, by {self.provenance.model})"


def _above(module: str, function: str) -> Any:
    """Return a function of a room above this one, imported when it is called and not before.

    What a script wants from a prediction it looks for on the prediction. So its methods are doors, named by text: no
    import points up, core stays numpy, and who never saves loads no writer.
    """
    return getattr(import_module(f"clearmargin.{module}"), function)


def at_least(prediction: Prediction, thresholds: Thresholds) -> Prediction:
    """Return a prediction without the instances whose score is below the threshold of their class.

    And without the landmarks below theirs.
    """
    kept = chosen_instances(prediction, thresholds.reached(prediction.instances))
    if kept.instances.landmarks is None:
        return kept
    landmarks = kept.instances.landmarks.at_least(thresholds.landmarks)
    return replace(kept, instances=replace(kept.instances, landmarks=landmarks))


def chosen_instances(prediction: Prediction, positions: NDArray[np.int64]) -> Prediction:
    """Return a prediction with the instances at ``positions``, ``(n,)``, alone, in that order."""
    return replace(
        prediction,
        instances=prediction.instances.select(positions),
        edges=tuple(prediction.edges[k] for k in positions) if prediction.edges else (),
        outer=tuple(prediction.outer[k] for k in positions) if prediction.outer else (),
        inner=tuple(prediction.inner[k] for k in positions) if prediction.inner else (),
    )


class Segmenter(Protocol):
    """Image in, prediction out."""

    def __call__(self, image: Image) -> Prediction:
        """Segment one image or volume; the prediction lies on ``image.grid``."""
        ...

"""What is measured of one object: the table of metrics, the protocol, and the values with their unit."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from numpy.typing import ArrayLike

from clearmargin.core.grid import Unit
from clearmargin.errors import ConfigError, nearest
from clearmargin.metrics import boundary, overlap, surface
from clearmargin.metrics.pair import MaskPair, Status
from clearmargin.metrics.subvoxel import SubvoxelPair

__all__ = [
    "DEFAULT_METRICS",
    "DEFAULT_TOLERANCES",
    "METRICS",
    "OF_ONE_SIZE",
    "SET_METRICS",
    "Measurement",
    "MeasurementProtocol",
    "Metric",
    "measure_mask_pair",
    "measure_pair",
    "metric_of",
    "metric_title",
]


SurfaceModel = Literal["surface", "subvoxel"]

SURFACES: dict[str, Callable[[MaskPair], MaskPair]] = {
    "surface": lambda pair: pair,
    "subvoxel": SubvoxelPair.of,
}
"""From a pair to the pair whose distances are measured on the named surface model."""


@dataclass(frozen=True, kw_only=True)
class Metric:
    """What a number means.

    Attributes:
        title: What a paper calls it.
        better: ``higher``, ``lower``, or ``zero`` for signed errors.
        unit: ``""`` for a ratio or a count, ``grid`` for the grid's unit, ``grid^n`` for its square or cube.
        width: The length that it is measured at: ``tolerance`` (0 or more) or ``band`` (more than 0), and the option of
            a `MeasurementProtocol` that lists such lengths; empty if it has none. Names carry the length: ``nsd_2mm``.
        function: From a pair, and the length if it has one, to a number that is always finite. None for a number of a
            whole set of cases.
    """

    title: str
    better: Literal["higher", "lower", "zero"]
    unit: Literal["", "grid", "grid^n"] = ""
    width: Literal["", "tolerance", "band"] = ""
    function: Callable[..., float] | None = None

    def unit_on(self, unit: Unit, ndim: int) -> str:
        """Return the unit on a grid of ``ndim`` dimensions with lengths in ``unit``; empty for a ratio.

        Examples:
            >>> METRICS["volume_error"].unit_on("mm", 3), METRICS["dice"].unit_on("mm", 3)
            ('mm^3', '')
        """
        return {"": "", "grid": unit, "grid^n": f"{unit}^{ndim}"}[self.unit]

    def cost(self, value: float) -> float:
        """Return a number that is lower, the better ``value`` is."""
        return {"higher": -value, "lower": value, "zero": abs(value)}[self.better]


METRICS: dict[str, Metric] = {
    "dice": Metric(title="Dice", better="higher", function=overlap.dice),
    "iou": Metric(title="IoU", better="higher", function=overlap.iou),
    "precision": Metric(title="Precision", better="higher", function=overlap.precision),
    "recall": Metric(title="Recall", better="higher", function=overlap.recall),
    "hausdorff": Metric(title="Hausdorff", better="lower", unit="grid", function=surface.hausdorff),
    "hd95": Metric(title="HD95", better="lower", unit="grid", function=surface.hd95),
    "assd": Metric(title="ASSD", better="lower", unit="grid", function=surface.assd),
    "masd": Metric(title="MASD", better="lower", unit="grid", function=surface.masd),
    "surface_bias": Metric(title="Surface bias", better="zero", unit="grid", function=surface.surface_bias),
    "volume_error": Metric(title="Volume error", better="zero", unit="grid^n", function=overlap.volume_error),
    "relative_volume_error": Metric(
        title="Relative volume error", better="zero", function=overlap.relative_volume_error
    ),
    "diameter_error": Metric(
        title="Diameter error", better="zero", unit="grid", function=overlap.diameter_error
    ),
    "centroid_error": Metric(
        title="Centroid error", better="lower", unit="grid", function=overlap.centroid_error
    ),
    "nsd": Metric(title="NSD", better="higher", width="tolerance", function=surface.nsd),
    "boundary_iou": Metric(
        title="Boundary IoU", better="higher", width="band", function=boundary.boundary_iou
    ),
    "trimap_iou": Metric(title="Trimap IoU", better="higher", width="band", function=boundary.trimap_iou),
}
"""What is measured of one instance. A new one is a function and a line here."""

SET_METRICS: dict[str, Metric] = {
    "ap": Metric(title="AP", better="higher"),
    "ap50": Metric(title="AP50", better="higher"),
    "ap75": Metric(title="AP75", better="higher"),
    "pq": Metric(title="PQ", better="higher"),
    "semantic_dice": Metric(title="Semantic Dice", better="higher"),
    "f1": Metric(title="F1", better="higher"),
    "accuracy": Metric(title="TP / (TP + FP + FN)", better="higher"),
    "miss_rate": Metric(title="False negative rate", better="lower"),
    "detected": Metric(title="References detected", better="higher"),
    "false_positives": Metric(title="False positives per case", better="lower"),
}
"""What is measured of a set of cases; ``precision`` and ``recall`` of detections are as those of `METRICS`."""

OF_ONE_SIZE = tuple(name for name, metric in METRICS.items() if not metric.width)
"""Names of the metrics that are not measured at a length."""

DEFAULT_METRICS = ("dice", "iou", "hd95", "assd", "surface_bias", "volume_error")
"""What `evaluate` and `measure` give of each instance unless they are told otherwise, beside NSD."""

DEFAULT_TOLERANCES = (1.0, 2.0, 3.0)
"""Of NSD, in the grid's unit."""

_LENGTH = re.compile(r"_(?P<length>\d+(\.\d+)?(e[+-]?\d+)?)(?P<unit>mm|px)$")


def metric_of(name: str) -> Metric | None:
    """Return what a column or a number is, by its name; None for a name of neither table.

    A length, a class and an IoU are not looked at: ``nsd_2mm``, ``ap50/grasper`` and ``f1@0.5`` are known.

    Examples:
        >>> metric_of("nsd_2mm").title, metric_of("ap50/grasper").better
        ('NSD', 'higher')
    """
    name = _LENGTH.sub("", name.split("/", maxsplit=1)[0].split("@", maxsplit=1)[0])
    return METRICS.get(name) or SET_METRICS.get(name)


def metric_title(name: str, unit: str = "") -> str:
    """Return what a paper calls a metric, with its length and unit.

    Examples:
        >>> metric_title("hd95", "mm"), metric_title("nsd_2mm")
        ('HD95 (mm)', 'NSD at 2 mm')
    """
    metric, length = metric_of(name), _LENGTH.search(name)
    title = metric.title if metric else name
    if metric and length:
        title += f" at {length['length']} {length['unit']}"
    return f"{title} ({unit})" if unit else title


@dataclass(frozen=True, kw_only=True)
class MeasurementProtocol:
    """What to measure, fixed once for a whole table.

    Attributes:
        metrics: Names in ``OF_ONE_SIZE``.
        tolerances: NSD is given at each, in the grid's unit.
        bands: Boundary IoU is given at each band width, in the grid's unit.
        trimaps: Trimap IoU is given at each band width, in the grid's unit.
        distance_cap: What every distance of a false negative or a false positive counts, in the grid's unit; None
            for the grid's diagonal.
        surface: The surface model: ``surface`` equals surface-distance, ``subvoxel`` interpolates curved
            shapes.
    """

    metrics: tuple[str, ...] = OF_ONE_SIZE
    tolerances: tuple[float, ...] = DEFAULT_TOLERANCES
    bands: tuple[float, ...] = ()
    trimaps: tuple[float, ...] = ()
    distance_cap: float | None = None
    surface: SurfaceModel = "surface"

    def __post_init__(self) -> None:
        for name in self.metrics:
            if name not in OF_ONE_SIZE:
                raise ConfigError(f"no metric '{name}': {_way_to(name)}")
        if self.surface not in SURFACES:
            raise ConfigError(f"no surface model '{self.surface}': {nearest(self.surface, SURFACES)}")
        for name in ("metrics", "tolerances", "bands", "trimaps"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        for option, name in _AT_LENGTHS.items():
            kind = METRICS[name].width
            for length in getattr(self, option):
                if not math.isfinite(length) or length < 0 or (length == 0 and kind == "band"):
                    least = "0 or more" if kind == "tolerance" else "more than 0"
                    raise ConfigError(f"{option}: expected lengths of {least}, got {length:g}")
        cap = self.distance_cap
        if cap is not None and not (math.isfinite(cap) and cap > 0):
            raise ConfigError(f"distance_cap: expected a length of more than 0, got {cap:g}")


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """The numbers of one object.

    Attributes:
        status: ``tp`` (both masks hold something), ``fn``, ``fp`` or ``tn``.
        unit: Unit of the distances: ``mm``, or ``px`` where no spacing is known.
        values: By name; each is finite, whatever is empty. Names with a width carry it with its unit, such as
            ``nsd_2mm`` and ``boundary_iou_1.5px``.
    """

    status: Status
    unit: Unit
    values: Mapping[str, float]

    def __getitem__(self, name: str) -> float:
        return self.values[name]


_AT_LENGTHS = {"tolerances": "nsd", "bands": "boundary_iou", "trimaps": "trimap_iou"}


def _number(metric: Metric, *arguments: object) -> float:
    if metric.function is None:
        raise ValueError(f"{metric.title} is a number of a set, not of a pair")
    return float(metric.function(*arguments))


def _way_to(name: str) -> str:
    """Return what to ask for in place of a name that is not a metric of a pair."""
    metric = METRICS.get(_LENGTH.sub("", name.split("@", maxsplit=1)[0]))
    if metric is not None and metric.width:
        option = next(o for o, n in _AT_LENGTHS.items() if METRICS[n] is metric)
        return f"{metric.title} is measured at lengths, which {option} lists"
    return nearest(name, OF_ONE_SIZE)


def measure_mask_pair(pair: MaskPair, protocol: MeasurementProtocol | None = None) -> Measurement:
    """Measure one pair by ``protocol`` (None for the default one); distances are computed once for all metrics."""
    protocol = protocol or MeasurementProtocol()
    pair = SURFACES[protocol.surface](pair)
    values = {name: _number(METRICS[name], pair) for name in protocol.metrics}
    for option, name in _AT_LENGTHS.items():
        for length in getattr(protocol, option):
            values[f"{name}_{length:g}{pair.unit}"] = _number(METRICS[name], pair, length)
    return Measurement(status=pair.status, unit=pair.unit, values=MappingProxyType(values))


def measure_pair(
    predicted: ArrayLike,
    reference: ArrayLike,
    *,
    spacing: Sequence[float] | None = None,
    tolerances: Sequence[float] = (1.0, 2.0, 3.0),
    bands: Sequence[float] = (),
    trimaps: Sequence[float] = (),
    metrics: Sequence[str] = OF_ONE_SIZE,
    ignore: ArrayLike | None = None,
    distance_cap: float | None = None,
    surface_model: SurfaceModel = "surface",
) -> Measurement:
    """Measure a predicted against a reference mask of one object.

    Args:
        predicted: ``(Z, Y, X)`` or ``(Y, X)``, bool or integers 0 and 1; may be empty.
        reference: Reference of the same shape.
        spacing: Millimetres per axis, in array order. None where unknown: all lengths are then in px, and say
            so.
        tolerances: Of NSD, in mm (px without spacing).
        bands: Widths for boundary IoU, in the same unit.
        trimaps: Widths for trimap IoU, in the same unit.
        metrics: Names in ``OF_ONE_SIZE``.
        ignore: bool array of the same shape: if nothing is measured.
        distance_cap: What each distance counts where one mask is empty; None for the diagonal of the array.
        surface_model: ``surface`` equals surface-distance; ``subvoxel`` interpolates curved shapes.

    Returns:
        A finite value for every name. Both empty: perfect values, status ``tn``. One empty: 0 for overlaps
        and NSD, the distance cap for distances, status ``fn`` or ``fp``.

    Raises:
        InputError: The arrays are not two masks of one shape, or the spacing does not fit them.
        ConfigError: An unknown metric.

    Examples:
        >>> import numpy as np
        >>> predicted, reference = np.zeros((2, 20, 20), bool)
        >>> reference[5:15, 5:15] = True
        >>> predicted[5:15, 6:16] = True  # one pixel to the right
        >>> measured = measure_pair(predicted, reference, spacing=(0.5, 0.5), tolerances=[0.5])
        >>> measured["dice"], measured["hausdorff"], measured["nsd_0.5mm"], measured["centroid_error"]
        (0.9, 0.5, 1.0, 0.5)
    """
    protocol = MeasurementProtocol(
        metrics=tuple(metrics),
        tolerances=tuple(tolerances),
        bands=tuple(bands),
        trimaps=tuple(trimaps),
        distance_cap=distance_cap,
        surface=surface_model,
    )
    pair = MaskPair.from_arrays(predicted, reference, spacing, ignore=ignore, distance_cap=distance_cap)
    return measure_mask_pair(pair, protocol)

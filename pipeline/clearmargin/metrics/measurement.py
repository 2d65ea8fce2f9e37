"""What is measured of one object: the table of metrics, the protocol, and the values with their unit."""

from __future__ import annotations

import math
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

__all__ = ["METRICS", "Measurement", "Metric", "Protocol", "measure_mask_pair", "measure_pair"]


SurfaceModel = Literal["surface", "subvoxel"]

SURFACES: dict[str, Callable[[MaskPair], MaskPair]] = {
    "surface": lambda pair: pair,
    "subvoxel": SubvoxelPair.of,
}
"""From a pair to the pair whose distances are measured on the named surface model."""


@dataclass(frozen=True, kw_only=True)
class Metric:
    """One number of a pair.

    Attributes:
        function: From a pair to a number that is always finite.
        better: ``higher``, ``lower``, or ``zero`` for signed errors.
        unit: ``""`` for a ratio, ``grid`` for the grid's unit, ``grid^n`` for its square or cube.
    """

    function: Callable[[MaskPair], float]
    better: Literal["higher", "lower", "zero"]
    unit: Literal["", "grid", "grid^n"]


METRICS: dict[str, Metric] = {
    "dice": Metric(function=overlap.dice, better="higher", unit=""),
    "iou": Metric(function=overlap.iou, better="higher", unit=""),
    "precision": Metric(function=overlap.precision, better="higher", unit=""),
    "recall": Metric(function=overlap.recall, better="higher", unit=""),
    "hausdorff": Metric(function=surface.hausdorff, better="lower", unit="grid"),
    "hd95": Metric(function=surface.hd95, better="lower", unit="grid"),
    "assd": Metric(function=surface.assd, better="lower", unit="grid"),
    "masd": Metric(function=surface.masd, better="lower", unit="grid"),
    "surface_bias": Metric(function=surface.surface_bias, better="zero", unit="grid"),
    "volume_error": Metric(function=overlap.volume_error, better="zero", unit="grid^n"),
    "relative_volume_error": Metric(function=overlap.relative_volume_error, better="zero", unit=""),
    "diameter_error": Metric(function=overlap.diameter_error, better="zero", unit="grid"),
    "centroid_error": Metric(function=overlap.centroid_error, better="lower", unit="grid"),
}


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """What to measure, fixed once for a whole table.

    Attributes:
        metrics: Names in ``METRICS``.
        tolerances: NSD is given at each, in the grid's unit.
        bands: Boundary IoU is given at each band width, in the grid's unit.
        trimaps: Trimap IoU is given at each band width, in the grid's unit.
        distance_cap: What every distance of a miss or a spurious object counts, in the grid's unit; None for
            the grid's diagonal.
        surface: The surface model: ``surface`` equals surface-distance, ``subvoxel`` interpolates curved
            shapes.
    """

    metrics: tuple[str, ...] = tuple(METRICS)
    tolerances: tuple[float, ...] = (1.0, 2.0, 3.0)
    bands: tuple[float, ...] = ()
    trimaps: tuple[float, ...] = ()
    distance_cap: float | None = None
    surface: SurfaceModel = "surface"

    def __post_init__(self) -> None:
        for name in self.metrics:
            if name not in METRICS:
                raise ConfigError(f"no metric '{name}': {nearest(name, METRICS)}")
        if self.surface not in SURFACES:
            raise ConfigError(f"no surface model '{self.surface}': {nearest(self.surface, SURFACES)}")
        for name in ("metrics", "tolerances", "bands", "trimaps"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        for what, lengths in (("tolerance", self.tolerances), ("band", self.bands), ("trimap", self.trimaps)):
            for length in lengths:
                least = "at least 0" if what == "tolerance" else "over 0"
                if not math.isfinite(length) or length < 0 or (length == 0 and what != "tolerance"):
                    raise ConfigError(f"a {what} is a length {least}, not {length:g}")
        cap = self.distance_cap
        if cap is not None and not (math.isfinite(cap) and cap > 0):
            raise ConfigError(f"a distance cap is a length over 0, not {cap:g}")


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """The numbers of one object.

    Attributes:
        status: ``tp`` (both masks hold something), ``fn``, ``fp`` or ``tn``.
        unit: Of the distances: ``mm``, or ``px`` where no spacing is known.
        values: By name; each is finite, whatever is empty. Names with a width carry it with its unit, such as
            ``nsd_2mm`` and ``boundary_iou_1.5px``.
    """

    status: Status
    unit: Unit
    values: Mapping[str, float]

    def __getitem__(self, name: str) -> float:
        return self.values[name]


def measure_mask_pair(pair: MaskPair, protocol: Protocol | None = None) -> Measurement:
    """Measure one pair by ``protocol`` (None for the default one); distances are computed once for all metrics."""
    chosen = protocol or Protocol()
    pair = SURFACES[chosen.surface](pair)
    values = {name: float(METRICS[name].function(pair)) for name in chosen.metrics}
    for tolerance in chosen.tolerances:
        values[f"nsd_{tolerance:g}{pair.unit}"] = surface.nsd(pair, tolerance)
    for band in chosen.bands:
        values[f"boundary_iou_{band:g}{pair.unit}"] = boundary.boundary_iou(pair, band)
    for band in chosen.trimaps:
        values[f"trimap_iou_{band:g}{pair.unit}"] = boundary.trimap_iou(pair, band)
    return Measurement(status=pair.status, unit=pair.unit, values=MappingProxyType(values))


def measure_pair(
    predicted: ArrayLike,
    reference: ArrayLike,
    *,
    spacing: Sequence[float] | None = None,
    tolerances: Sequence[float] = (1.0, 2.0, 3.0),
    bands: Sequence[float] = (),
    trimaps: Sequence[float] = (),
    metrics: Sequence[str] = tuple(METRICS),
    ignore: ArrayLike | None = None,
    distance_cap: float | None = None,
    surface_model: SurfaceModel = "surface",
) -> Measurement:
    """Measure a predicted against a reference mask of one object.

    Args:
        predicted: ``(Z, Y, X)`` or ``(Y, X)``, bool or integers 0 and 1; may be empty.
        reference: Of the same shape.
        spacing: Millimetres per axis, in array order. None where unknown: all lengths are then in px, and say
            so.
        tolerances: Of NSD, in mm (px without spacing).
        bands: Widths for boundary IoU, in the same unit.
        trimaps: Widths for trimap IoU, in the same unit.
        metrics: Names in ``METRICS``.
        ignore: bool array of the same shape: where nothing is measured.
        distance_cap: What each distance counts where one mask is empty; None for the diagonal of the array.
        surface_model: ``surface`` equals surface-distance; ``subvoxel`` interpolates curved shapes.

    Returns:
        A finite value for every name. Both empty: perfect values, status ``tn``. One empty: 0 for overlaps
        and NSD, the distance cap for distances, status ``fn`` or ``fp``.

    Raises:
        InputError: The arrays are no masks of one shape, or the spacing does not fit them.
        ConfigError: An unknown metric.

    >>> import numpy as np
    >>> predicted, reference = np.zeros((2, 20, 20), bool)
    >>> reference[5:15, 5:15] = True
    >>> predicted[5:15, 6:16] = True  # one pixel to the right
    >>> found = measure_pair(predicted, reference, spacing=(0.5, 0.5), tolerances=[0.5])
    >>> found["dice"], found["hausdorff"], found["nsd_0.5mm"], found["centroid_error"]
    (0.9, 0.5, 1.0, 0.5)
    """
    protocol = Protocol(
        metrics=tuple(metrics),
        tolerances=tuple(tolerances),
        bands=tuple(bands),
        trimaps=tuple(trimaps),
        distance_cap=distance_cap,
        surface=surface_model,
    )
    pair = MaskPair.from_arrays(predicted, reference, spacing, ignore=ignore, distance_cap=distance_cap)
    return measure_mask_pair(pair, protocol)

"""Other tools' surface distances by their own conventions, so that published tables can be reproduced.

All three tools take as surface the elements of a mask that have a neighbour outside it (4 in the plane, 6 in
space), measure between element centres, and weigh every such element alike, whatever the spacing. They differ
in how the two directions are put together. They say NaN, 0 or raise where a mask is empty; here the empty
cases have the values of our own metrics (docs/metrics.md, "Empty cases").
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from clearmargin.core.reprs import short_repr
from clearmargin.metrics.pair import DirectedDistances, MaskPair

__all__ = ["CONVENTIONS", "VoxelPair", "voxel_nsd"]


@short_repr
@dataclass(frozen=True, kw_only=True, eq=False)
class VoxelPair(MaskPair):
    """A pair whose surfaces are edge elements, each of weight one; see `MaskPair` for its attributes."""

    @staticmethod
    def of(pair: MaskPair) -> VoxelPair:
        """Return ``pair`` with edge elements in place of surface elements; ignored regions are not supported.

        Raises:
            ValueError: The pair has an ignored region, which none of the tools knows.
        """
        if pair.ignored is not None:
            raise ValueError("monai, medpy and metrics_reloaded know no ignored region: measure without one")
        return VoxelPair(
            predicted=pair.predicted,
            reference=pair.reference,
            grid=pair.grid,
            distance_cap=pair.distance_cap,
            origin=pair.origin,
        )

    @cached_property
    def surfaces(self) -> tuple[DirectedDistances, DirectedDistances]:
        """Edge elements of each mask with their distances to the other's; sides are all 0."""
        from clearmargin.metrics.nearest import nearest_distances

        if self.either_empty:
            raise ValueError(f"a pair with status {self.status} has no distances: ask its status first")
        spatial = len(self.spacing) == 3
        depth, height, width = self.predicted.shape if spatial else (1, *self.predicted.shape)
        z, y, x = self.spacing if spatial else (1e9, *self.spacing)
        edges = [_edge_elements(mask) for mask in (self.predicted, self.reference)]
        directed = []
        for own, other in (edges, edges[::-1]):
            apart = nearest_distances(own, other, (depth, height, width), (z, y, x))
            directed.append(
                DirectedDistances(distances=apart, areas=np.ones(len(own)), sides=np.zeros(len(own), np.int8))
            )
        return directed[0], directed[1]


def _edge_elements(mask: NDArray[np.bool_]) -> NDArray[np.int32]:
    from scipy.ndimage import binary_erosion

    edge = mask & ~binary_erosion(mask)
    points = np.argwhere(edge if mask.ndim == 3 else edge[None])
    return points.astype(np.int32)


def _largest_percentile(pair: MaskPair) -> float:
    """Return the larger of the two directed 95th percentiles, linear between elements."""
    return _capped(pair, lambda a, b: max(np.percentile(a, 95), np.percentile(b, 95)))


def _pooled_percentile(pair: MaskPair) -> float:
    """Return the 95th percentile of both directions together, linear between elements."""
    return _capped(pair, lambda a, b: np.percentile(np.concatenate([a, b]), 95))


def _largest(pair: MaskPair) -> float:
    """Return the largest distance of either direction."""
    return _capped(pair, lambda a, b: max(a.max(), b.max()))


def _pooled_mean(pair: MaskPair) -> float:
    """Return the mean over the edge elements of both masks."""
    return _capped(pair, lambda a, b: np.concatenate([a, b]).mean())


def _mean_of_means(pair: MaskPair) -> float:
    """Return the mean of the two directed means."""
    return _capped(pair, lambda a, b: (a.mean() + b.mean()) / 2)


def _directed_mean(pair: MaskPair) -> float:
    """Return the mean distance from the predicted to the reference edge."""
    return _capped(pair, lambda a, b: a.mean())


CONVENTIONS: dict[str, dict[str, Callable[[MaskPair], float]]] = {
    "monai": {
        "hausdorff": _largest,
        "hd95": _largest_percentile,
        "asd": _directed_mean,
        "assd": _pooled_mean,
    },
    "medpy": {
        "hausdorff": _largest,
        "hd95": _pooled_percentile,
        "asd": _directed_mean,
        "assd": _pooled_mean,
    },
    "metrics_reloaded": {
        "hausdorff": _largest,
        "hd95": _largest_percentile,
        "assd": _pooled_mean,
        "masd": _mean_of_means,
    },
}
"""Functions from a `MaskPair` to the number that a tool gives, by tool and name.

``monai``: ``compute_hausdorff_distance`` (``percentile=95`` for hd95) and
``compute_average_surface_distance`` (``symmetric=True`` for assd). ``medpy``: ``medpy.metric.binary``.
``metrics_reloaded``: ``BinaryPairwiseMeasures``.
"""


def voxel_nsd(pair: MaskPair, tolerance: float) -> float:
    """Return NSD over edge elements, as monai (``use_subvoxels=False``) and metrics_reloaded count it.

    Both empty: 1. One empty: 0.
    """
    from clearmargin.metrics.surface import nsd

    return nsd(pair if pair.either_empty else VoxelPair.of(pair), tolerance)


def _capped(
    pair: MaskPair, join: Callable[[NDArray[np.float64], NDArray[np.float64]], float | np.floating]
) -> float:
    if pair.either_empty:
        return 0.0 if pair.status == "tn" else pair.distance_cap
    predicted, reference = VoxelPair.of(pair).surfaces
    return float(join(predicted.distances, reference.distances))

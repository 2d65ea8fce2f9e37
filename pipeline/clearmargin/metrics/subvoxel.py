"""The `subvoxel` surface model: an interpolated surface for curved shapes, as a pair that all metrics accept.

A mask of a curved object is a staircase, and distances between two staircases come out too small, because a
step of one meets a step of the other. Here the mask is smoothed a little, without moving any element's centre
to the other side, and cut at one half between elements; distances go from triangle centres to the other's
triangles.

Use it where the edge is a smooth anatomical surface; use the default model for numbers that must agree with
surface-distance.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from clearmargin.core.reprs import short_repr
from clearmargin.metrics.pair import DirectedDistances, MaskPair

__all__ = ["SubvoxelPair"]

_SIGMA = 0.55  # elements; tuned on capsules and L-shaped blocks, which no test of accuracy uses
_HOLD = 0.02  # how far from one half the field stays at centres that smoothing would move over
_MARGIN = 4  # elements around the joint box, more than the filter reaches
_CANDIDATES = 12  # triangles, by centre, that are tried for the nearest


@short_repr
@dataclass(frozen=True, kw_only=True, eq=False)
class SubvoxelPair(MaskPair):
    """A pair whose surfaces are interpolated between elements; see `MaskPair` for its attributes."""

    @staticmethod
    def of(pair: MaskPair) -> SubvoxelPair:
        """Return ``pair`` with the interpolated surface model in place of the default one."""
        return SubvoxelPair(
            predicted=pair.predicted,
            reference=pair.reference,
            grid=pair.grid,
            distance_cap=pair.distance_cap,
            origin=pair.origin,
            ignored=pair.ignored,
        )

    @cached_property
    def surfaces(self) -> tuple[DirectedDistances, DirectedDistances]:
        """Triangles (segments, in the plane) of each surface with the distances of their centres to the other.

        Source: Gaussian smoothing held at element centres, marching cubes (Lewiner et al., JGT 2003, by
        scikit-image), exact distance from point to triangle (Ericson, "Real-time collision detection", 2005).
        """
        from clearmargin.metrics.triangles import to_triangles

        if self.either_empty:
            raise ValueError(f"a pair with status {self.status} has no distances: ask its status first")
        fields = [_field(mask) for mask in (self.predicted, self.reference)]
        meshes = [_mesh(field, self.spacing) for field in fields]
        directed = []
        for own, other, field in ((meshes[0], meshes[1], fields[1]), (meshes[1], meshes[0], fields[0])):
            centres = own.mean(axis=1)
            areas = np.linalg.norm(np.cross(own[:, 1] - own[:, 0], own[:, 2] - own[:, 0]), axis=1) / 2
            if len(self.spacing) == 2:  # segments are triangles with two equal corners
                areas = np.linalg.norm(own[:, 1] - own[:, 0], axis=1)
                centres = (own[:, 0] + own[:, 1]) / 2
            places = centres[:, 3 - len(self.spacing) :] / self.spacing
            if self.ignored is not None:
                areas = np.where(_at(np.pad(self.ignored, _MARGIN), places, 0) > 0, 0.0, areas)
            outside = _at(field, places, 1) < 0.5
            directed.append(
                DirectedDistances(
                    distances=to_triangles(centres, other, _CANDIDATES),
                    areas=areas,
                    sides=np.where(outside, 1, -1).astype(np.int8),
                )
            )
        return directed[0], directed[1]


def _field(mask: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Return the smoothed mask with a margin, above one half exactly at the centres the mask holds."""
    from scipy.ndimage import gaussian_filter

    wide = np.pad(mask, _MARGIN)
    smooth = gaussian_filter(wide.astype(np.float32), _SIGMA, truncate=4.0)
    held = np.where(wide, np.maximum(smooth, 0.5 + _HOLD), np.minimum(smooth, 0.5 - _HOLD))
    return np.asarray(held, np.float32)


def _mesh(field: NDArray[np.float32], spacing: tuple[float, ...]) -> NDArray[np.float64]:
    """Return the triangles of the surface at one half, ``(n, 3, 3)`` in the grid's unit; segments in the plane."""
    from skimage.measure import find_contours, marching_cubes

    if field.ndim == 3:
        points, faces, _, _ = marching_cubes(field, 0.5, spacing=spacing, allow_degenerate=False)
        return np.asarray(points[faces], np.float64)
    lines = [np.pad(line * spacing, ((0, 0), (1, 0))) for line in find_contours(field, 0.5)]
    return np.concatenate([np.stack([line[:-1], line[1:], line[1:]], axis=1) for line in lines])


def _at(values: NDArray[np.generic], places: NDArray[np.float64], order: int) -> NDArray[np.float64]:
    from scipy.ndimage import map_coordinates

    return np.asarray(map_coordinates(values.astype(np.float32), places.T, order=order), np.float64)

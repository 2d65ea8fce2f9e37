"""The `subvoxel` surface model: an interpolated surface for curved shapes, as a pair that all metrics accept.

A mask of a curved object is a staircase, and distances between two staircases come out too small, because a
step of one meets a step of the other. Here the surface is that of the elements' faces; corners near a step of one
element are moved onto the level one half of the smoothed mask, and all others stay, so that boxes keep their edges.
Distances go from the faces' centres to the other's faces, and the largest also from their unmoved corners.

Use it where the edge is a smooth anatomical surface; use the default model for numbers that must agree with
surface-distance.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from clearmargin.metrics.pair import DirectedDistances, MaskPair

if TYPE_CHECKING:
    from clearmargin.metrics.mesh import Mesh

__all__ = ["SubvoxelPair"]


@dataclass(frozen=True, kw_only=True, eq=False)
class _FaceDistances(DirectedDistances):
    """Distances of faces, whose corners may lie farther from the other surface than their centres."""

    own: Mesh
    other: Mesh

    @cached_property
    def maximum(self) -> float:
        """Largest distance of a face that counts; 0 where none does.

        Of its centre, and of those corners that were not moved: what a staircase leaves of a moved corner's place
        averages out in the centre.
        """
        from clearmargin.metrics.mesh import mesh_distances

        largest = super().maximum
        farther = (self.areas > 0) & (self.distances + self.own.radii > largest)
        corners = self.own.faces[farther][self.own.exact[farther]]
        if not len(corners):
            return largest
        return max(largest, float(mesh_distances(corners, self.other)[0].max()))


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
        """Faces (sides of pixels, in the plane) of each surface with the distances of their centres to the other.

        Source: `clearmargin.metrics.mesh`.
        """
        from clearmargin.metrics.mesh import mesh_distances, mesh_of

        if self.either_empty:
            raise ValueError(f"a pair with status {self.status} has no distances: ask its status first")
        meshes = mesh_of((self.predicted, self.reference), self.spacing, self.ignored)
        directed = []
        for own, other, held in (
            (meshes[0], meshes[1], self.reference),
            (meshes[1], meshes[0], self.predicted),
        ):
            distances, sides = np.zeros(len(own.faces)), np.zeros(len(own.faces), np.int8)
            apart = ~own.shared
            points = own.centres[apart]
            distances[apart], near_sides = mesh_distances(points, other)
            far = distances[apart] > np.linalg.norm(self.spacing)
            sides[apart] = np.where(far, np.where(self._inside(points, held), -1, 1), near_sides)
            directed.append(
                _FaceDistances(distances=distances, areas=own.areas, sides=sides, own=own, other=other)
            )
        return directed[0], directed[1]

    def _inside(self, points: NDArray[np.float64], held: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Return whether the element that each point lies in is held."""
        n = len(self.spacing)
        index = np.floor(points[:, 3 - n :] / self.spacing).astype(np.int64)
        within = np.all((index >= 0) & (index < held.shape), axis=1)
        out = np.zeros(len(points), bool)
        out[within] = held[tuple(index[within].T)]
        return out

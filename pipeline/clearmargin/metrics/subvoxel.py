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

from clearmargin.core.reprs import short_repr
from clearmargin.metrics.pair import DirectedDistances, MaskPair

if TYPE_CHECKING:
    from clearmargin.metrics.mesh import Mesh

__all__ = ["SubvoxelPair"]


@dataclass(frozen=True, kw_only=True, eq=False)
class _FaceDistances(DirectedDistances):
    """Distances of faces, whose corners may lie farther from the other surface than their samples.

    Attributes:
        own: The faces.
        other: What the distances are to.
        face_maxima: ``(F,)`` float64, the largest distance of each face's samples.
    """

    own: Mesh
    other: Mesh
    face_maxima: NDArray[np.float64]

    @cached_property
    def maximum(self) -> float:
        """Largest distance of a face that counts; 0 if none does.

        Of its samples, and of those corners that were not moved: what a staircase leaves of a moved corner's place
        averages out in the centre.
        """
        from clearmargin.metrics.mesh import mesh_distances

        largest = super().maximum
        farther = (self.own.areas > 0) & (self.face_maxima + self.own.radii > largest)
        corners = self.own.faces[farther][self.own.exact[farther]]
        if not len(corners):
            return largest
        return max(largest, float(mesh_distances(corners, self.other)[0].max()))


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
        """Faces (sides of pixels, in the plane) of each surface with their distances to the other.

        Source: `clearmargin.metrics.mesh`.
        """
        from clearmargin.metrics.mesh import mesh_of

        if self.either_empty:
            raise ValueError(f"a pair with status {self.status} has no distances: ask its status first")
        meshes = mesh_of((self.predicted, self.reference), self.spacing, self.ignored)
        directed = []
        for own, other, held in (
            (meshes[0], meshes[1], self.reference),
            (meshes[1], meshes[0], self.predicted),
        ):
            directed.append(self._directed(own, other, held))
        return directed[0], directed[1]

    def _directed(self, own: Mesh, other: Mesh, held: NDArray[np.bool_]) -> _FaceDistances:
        """Return the distances of one mesh to another: of a face's centre, of a flat face's four quarters."""
        from clearmargin.metrics.mesh import mesh_distances

        flat = own.exact.all(axis=1) & ~own.shared
        single = np.flatnonzero(~flat & ~own.shared)
        quartered = np.flatnonzero(flat)
        quarters = (own.faces[quartered] + own.centres[quartered, None]) / 2
        points = np.concatenate([own.centres[single], quarters.reshape(-1, 3)])
        distances, sides = mesh_distances(points, other)
        far = distances > np.linalg.norm(self.spacing)
        sides = np.where(far, np.where(self._inside(points, held), -1, 1), sides).astype(np.int8)
        maxima = np.zeros(len(own.faces))
        maxima[single] = distances[: len(single)]
        if len(quartered):
            maxima[quartered] = distances[len(single) :].reshape(-1, 4).max(axis=1)
        shared = int(np.count_nonzero(own.shared))
        areas = [own.areas[single], np.repeat(own.areas[quartered] / 4, 4), own.areas[own.shared]]
        return _FaceDistances(
            distances=np.concatenate([distances, np.zeros(shared)]),
            areas=np.concatenate(areas),
            sides=np.concatenate([sides, np.zeros(shared, np.int8)]),
            own=own,
            other=other,
            face_maxima=maxima,
        )

    def _inside(self, points: NDArray[np.float64], held: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Return whether the element that each point lies in is held."""
        n = len(self.spacing)
        index = np.floor(points[:, 3 - n :] / self.spacing).astype(np.int64)
        within = np.all((index >= 0) & (index < held.shape), axis=1)
        out = np.zeros(len(points), bool)
        out[within] = held[tuple(index[within].T)]
        return out

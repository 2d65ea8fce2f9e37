"""The `subvoxel` surface of a mask: the faces between its elements and others, with corners moved off staircases.

Compiled. All coordinates are of corners: corner ``c`` of an axis lies before element ``c`` of the joint box. Images
have one plane, and their faces are the sides of pixels, written as faces whose corners coincide in pairs.
"""

# ruff: noqa: PLR0911, PLR0912, PLR1714 -- what is compiled is written flat

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from clearmargin.compiled import compiled

__all__ = ["Mesh", "mesh_distances", "mesh_of"]

MARGIN = 2  # empty elements around the joint box: as far as the field looks
_SIGMA = 0.9  # elements, of the field; tuned on capsules and L-shaped blocks, which no test of accuracy uses
_SPREAD = 0.99  # elements: the field's, with that of an element itself
_MOST = 0.45  # elements along an axis: no corner reaches an element's centre
_NEAR = 1  # elements from a step, along each axis, within which corners move
_LEAF = 8  # faces in a leaf of the tree


@dataclass(frozen=True, eq=False)
class Mesh:
    """F faces, in Morton order.

    Attributes:
        faces: ``(F, 4, 3)`` float64 corners around each face, in the grid's unit, counterclockwise seen from
            outside, the shorter diagonal from the first to the third.
        centres: ``(F, 3)`` float64.
        radii: ``(F,)`` float64, from the centre to the farthest corner.
        normals: ``(F, 3)`` float64, of length 1, outward; 0 for a face without area.
        bends: ``(F,)`` float64, how far corners lie beside the plane through the centre.
        areas: ``(F,)`` float64; lengths in an image; 0 where ignored.
        shared: ``(F,)`` bool, whether the other mask has the very same face.
        exact: ``(F, 4)`` bool, whether a corner stands where the elements have it.
    """

    faces: NDArray[np.float64]
    centres: NDArray[np.float64]
    radii: NDArray[np.float64]
    normals: NDArray[np.float64]
    bends: NDArray[np.float64]
    areas: NDArray[np.float64]
    shared: NDArray[np.bool_]
    exact: NDArray[np.bool_]


def mesh_of(
    masks: tuple[NDArray[np.bool_], NDArray[np.bool_]],
    spacing: tuple[float, ...],
    ignored: NDArray[np.bool_] | None,
) -> tuple[Mesh, Mesh]:
    """Return the meshes of two masks of one box, neither empty.

    Source: the faces of elements (Herman and Liu, "Three-dimensional display of human organs from computed tomograms",
    1979), their corners moved onto the level one half of a smoothed mask as in Gibson, "Constrained elastic surface
    nets", MICCAI 1998.
    """
    from clearmargin.metrics.elements import find_elements, padded

    planar = masks[0].ndim == 2
    steps = np.array((1.0, *spacing) if planar else spacing, np.float64)
    pads = [(0, 0), *[(MARGIN, MARGIN)] * 2] if planar else [(MARGIN, MARGIN)] * 3
    grids = [np.pad(mask[None] if planar else mask, pads).view(np.uint8) for mask in masks]
    hidden = np.zeros((0, 0, 0), np.uint8)
    if ignored is not None:
        hidden = np.pad(ignored[None] if planar else ignored, pads).view(np.uint8)
    extent = tuple(n - 2 * MARGIN + 1 for n in grids[0].shape[1:])
    lattice = (1, *extent) if planar else (grids[0].shape[0] - 2 * MARGIN + 1, *extent)
    built = []
    for grid, (places, _, _) in zip(grids, find_elements(padded(masks[0]), padded(masks[1])), strict=True):
        ordered = places[np.argsort(_morton_keys(places), kind="stable")]
        ids = np.full(lattice, -1, np.int32)
        ids[tuple(ordered.T)] = np.arange(len(ordered))
        built.append((grid, ids, ordered, _moved(grid, ids, ordered, _taps(), planar)))
    first, second = (
        Mesh(*_faces(*own, other[1], other[3], hidden, steps, planar)) for own, other in (built, built[::-1])
    )
    return first, second


def mesh_distances(points: NDArray[np.float64], mesh: Mesh) -> tuple[NDArray[np.float64], NDArray[np.int8]]:
    """Return each point's distance to the nearest of a mesh's faces, and its side of that face.

    Args:
        points: ``(n, 3)``; fast where neighbours in the array are neighbours in space.
        mesh: At least one face.

    Returns:
        ``(n,)`` float64, and ``(n,)`` int8: +1 outside, -1 inside; right where the surface is near.
    """
    from clearmargin.metrics.nearest import run_parts

    leaves = 1 << max(0, (len(mesh.faces) + _LEAF - 1) // _LEAF - 1).bit_length()
    boxes = _tree(mesh.faces, leaves)
    distances, sides = np.empty(len(points)), np.empty(len(points), np.int8)
    run_parts(
        lambda part: _search(
            points[part],
            mesh.faces,
            mesh.centres,
            mesh.radii,
            mesh.normals,
            mesh.bends,
            boxes,
            distances[part],
            sides[part],
        ),
        len(points),
        5_000,
    )
    return distances, sides


def _taps() -> NDArray[np.float64]:
    """Return the weights of the elements along an axis around a corner, and those of the slope, ``(2, 2 MARGIN)``."""
    offsets = np.arange(0.5 - MARGIN, MARGIN)
    weights = np.exp(-(offsets**2) / (2 * _SIGMA**2))
    weights /= weights.sum()
    return np.stack([weights, weights * offsets / (weights @ offsets**2)])


@compiled
def _is_step(grid: NDArray[np.uint8], z: int, y: int, x: int, along: int, across: int) -> bool:
    """Return whether the side between element ``(z, y, x)`` and the one before it along ``across`` is a step.

    A step is one element high along ``along``: the outline turns one way at its one end and the other way at its other.
    """
    dz, dy, dx = int(along == 0), int(along == 1), int(along == 2)
    az, ay, ax = int(across == 0), int(across == 1), int(across == 2)
    q, p = grid[z, y, x], grid[z - az, y - ay, x - ax]
    if p == q:
        return False
    before, after = grid[z - dz, y - dy, x - dx], grid[z + dz, y + dy, x + dx]
    return bool(
        before != after
        and grid[z - dz - az, y - dy - ay, x - dx - ax] == before
        and grid[z + dz - az, y + dy - ay, x + dx - ax] == after
    )


@compiled
def _moved(
    grid: NDArray[np.uint8],
    ids: NDArray[np.int32],
    places: NDArray[np.int32],
    taps: NDArray[np.float64],
    planar: bool,
) -> NDArray[np.float64]:
    """Return the corners ``(V, 3)``, in elements, those near a staircase on the level one half of the smoothed mask.

    What is flat, and edges and corners with no step of one element near them, stay: boxes are exact.
    """
    n = len(places)
    stairs = np.zeros(n, np.bool_)
    lead = 0 if planar else MARGIN
    for i in range(n):
        z, y, x = places[i, 0], places[i, 1], places[i, 2]
        for along in range(1 if planar else 0, 3):
            ez, ey, ex = z + int(along == 0), y + int(along == 1), x + int(along == 2)
            if ez >= ids.shape[0] or ey >= ids.shape[1] or ex >= ids.shape[2] or ids[ez, ey, ex] < 0:
                continue
            stair = False
            for across in range(1 if planar else 0, 3):
                if across == along or stair:
                    continue
                third = 3 - along - across
                for back in range(1 if planar else 2):
                    gz = z + lead - (back if third == 0 else 0)
                    gy = y + MARGIN - (back if third == 1 else 0)
                    gx = x + MARGIN - (back if third == 2 else 0)
                    if _is_step(grid, gz, gy, gx, along, across):
                        stair = True
                        break
            if stair:
                stairs[i] = True
                stairs[ids[ez, ey, ex]] = True
    corners = places.astype(np.float64)
    reach = 0 if planar else _NEAR
    for i in range(n):
        z, y, x = places[i, 0], places[i, 1], places[i, 2]
        near = stairs[i]
        if not near:
            for dz in range(-reach, reach + 1):
                for dy in range(-_NEAR, _NEAR + 1):
                    for dx in range(-_NEAR, _NEAR + 1):
                        qz, qy, qx = z + dz, y + dy, x + dx
                        if qz < 0 or qy < 0 or qx < 0:
                            continue
                        if qz >= ids.shape[0] or qy >= ids.shape[1] or qx >= ids.shape[2]:
                            continue
                        j = ids[qz, qy, qx]
                        if j >= 0 and stairs[j]:
                            near = True
        if not near:
            continue
        level, slope_z, slope_y, slope_x = 0.0, 0.0, 0.0, 0.0
        for c in range(1 if planar else 2 * MARGIN):
            weight_z = 1.0 if planar else taps[0, c]
            step_z = 0.0 if planar else taps[1, c]
            for b in range(2 * MARGIN):
                row, tilt = 0.0, 0.0
                for a in range(2 * MARGIN):
                    if grid[0 if planar else z + c, y + b, x + a]:
                        row += taps[0, a]
                        tilt += taps[1, a]
                level += weight_z * taps[0, b] * row
                slope_z += step_z * taps[0, b] * row
                slope_y += weight_z * taps[1, b] * row
                slope_x += weight_z * taps[0, b] * tilt
        length = np.sqrt(slope_z**2 + slope_y**2 + slope_x**2)
        if length < 1e-6:
            continue
        off = np.sqrt(2 * np.pi) * min(max(level - 0.5, -0.45), 0.45)
        away = _SPREAD * (off + off**3 / 6 + 7 * off**5 / 120) / length
        corners[i, 0] -= min(max(away * slope_z, -_MOST), _MOST)
        corners[i, 1] -= min(max(away * slope_y, -_MOST), _MOST)
        corners[i, 2] -= min(max(away * slope_x, -_MOST), _MOST)
    return corners


@compiled
def _faces(
    grid: NDArray[np.uint8],
    ids: NDArray[np.int32],
    places: NDArray[np.int32],
    corners: NDArray[np.float64],
    other_ids: NDArray[np.int32],
    others: NDArray[np.float64],
    hidden: NDArray[np.uint8],
    steps: NDArray[np.float64],
    planar: bool,
) -> tuple[
    NDArray[np.float64],
    NDArray[np.float64],
    NDArray[np.float64],
    NDArray[np.float64],
    NDArray[np.float64],
    NDArray[np.float64],
    NDArray[np.bool_],
    NDArray[np.bool_],
]:
    """Return what a `Mesh` holds; each face belongs to the corner at its lowest place."""
    lead = 0 if planar else MARGIN
    first = 1 if planar else 0
    most = 0
    for i in range(len(places)):
        gz, gy, gx = places[i, 0] + lead, places[i, 1] + MARGIN, places[i, 2] + MARGIN
        for normal in range(first, 3):
            before = grid[gz - int(normal == 0), gy - int(normal == 1), gx - int(normal == 2)]
            most += grid[gz, gy, gx] != before
    faces, centres = np.empty((most, 4, 3)), np.empty((most, 3))
    radii, areas, shared = np.empty(most), np.empty(most), np.zeros(most, np.bool_)
    exact = np.zeros((most, 4), np.bool_)
    normals, bends = np.empty((most, 3)), np.empty(most)
    picks = np.empty(4, np.int64)
    n = 0
    for i in range(len(places)):
        z, y, x = places[i, 0], places[i, 1], places[i, 2]
        gz, gy, gx = z + lead, y + MARGIN, x + MARGIN
        here = grid[gz, gy, gx]
        for normal in range(first, 3):
            bz, by, bx = gz - int(normal == 0), gy - int(normal == 1), gx - int(normal == 2)
            if grid[bz, by, bx] == here:
                continue
            u, v = (3 - normal, 0) if planar else ((normal + 1) % 3, (normal + 2) % 3)
            same = True
            for k in range(4):
                # counterclockwise seen from the side that is not held
                along_u = k == 1 or k == 2
                along_v = (k == 2 or k == 3) and not planar
                if planar:
                    along_u = along_u == bool(here)
                elif here:
                    along_u, along_v = along_v, along_u
                qz = z + int((along_u and u == 0) or (along_v and v == 0))
                qy = y + int((along_u and u == 1) or (along_v and v == 1))
                qx = x + int((along_u and u == 2) or (along_v and v == 2))
                picks[k] = ids[qz, qy, qx]
                j = other_ids[qz, qy, qx]
                for axis in range(3):
                    same = same and j >= 0 and corners[picks[k], axis] == others[j, axis]
            shared[n] = same
            turn = 0
            if not planar:
                across, along = 0.0, 0.0
                for axis in range(3):
                    across += ((corners[picks[2], axis] - corners[picks[0], axis]) * steps[axis]) ** 2
                    along += ((corners[picks[3], axis] - corners[picks[1], axis]) * steps[axis]) ** 2
                turn = int(along < across)
            for axis in range(3):
                centre = 0.0
                for k in range(4):
                    faces[n, k, axis] = corners[picks[(k + turn) % 4], axis] * steps[axis]
                    centre += faces[n, k, axis]
                centres[n, axis] = centre / 4
            radius = 0.0
            for k in range(4):
                j = picks[(k + turn) % 4]
                exact[n, k] = (
                    corners[j, 0] == places[j, 0]
                    and corners[j, 1] == places[j, 1]
                    and corners[j, 2] == places[j, 2]
                )
                squared = 0.0
                for axis in range(3):
                    squared += (faces[n, k, axis] - centres[n, axis]) ** 2
                radius = max(radius, squared)
            radii[n] = np.sqrt(radius)
            areas[n] = _plane(faces, centres, normals, bends, n, planar)
            if hidden.size and (hidden[gz, gy, gx] or hidden[bz, by, bx]):
                areas[n] = 0.0
            n += 1
    return faces, centres, radii, normals, bends, areas, shared, exact


@compiled
def _plane(
    faces: NDArray[np.float64],
    centres: NDArray[np.float64],
    normals: NDArray[np.float64],
    bends: NDArray[np.float64],
    i: int,
    planar: bool,
) -> float:
    """Write a face's normal and bend, and return its area from its diagonals; the length of a side in an image."""
    az, ay, ax = (
        faces[i, 2, 0] - faces[i, 0, 0],
        faces[i, 2, 1] - faces[i, 0, 1],
        faces[i, 2, 2] - faces[i, 0, 2],
    )
    bz, by, bx = (
        faces[i, 3, 0] - faces[i, 1, 0],
        faces[i, 3, 1] - faces[i, 1, 1],
        faces[i, 3, 2] - faces[i, 1, 2],
    )
    if planar:
        nz, ny, nx = 0.0, -ax, ay
    else:
        nz, ny, nx = ay * bx - ax * by, ax * bz - az * bx, az * by - ay * bz
    length = np.sqrt(nz * nz + ny * ny + nx * nx)
    scale = 1 / length if length > 0 else 0.0
    normals[i, 0], normals[i, 1], normals[i, 2] = nz * scale, ny * scale, nx * scale
    bend = 0.0
    for k in range(4):
        beside = 0.0
        for axis in range(3):
            beside += (faces[i, k, axis] - centres[i, axis]) * normals[i, axis]
        bend = max(bend, abs(beside))
    bends[i] = bend
    return float(length if planar else length / 2)


@compiled
def _morton_keys(points: NDArray[np.int32]) -> NDArray[np.uint64]:
    """Return the place of each lattice point of up to 21 bits along the Morton curve."""
    keys = np.empty(len(points), np.uint64)
    for i in range(len(points)):
        key = np.uint64(0)
        for axis in range(3):
            v = np.uint64(points[i, axis]) & np.uint64(0x1FFFFF)
            v = (v | (v << np.uint64(32))) & np.uint64(0x1F00000000FFFF)
            v = (v | (v << np.uint64(16))) & np.uint64(0x1F0000FF0000FF)
            v = (v | (v << np.uint64(8))) & np.uint64(0x100F00F00F00F00F)
            v = (v | (v << np.uint64(4))) & np.uint64(0x10C30C30C30C30C3)
            v = (v | (v << np.uint64(2))) & np.uint64(0x1249249249249249)
            key |= v << np.uint64(axis)
        keys[i] = key
    return keys


@compiled
def _tree(faces: NDArray[np.float64], leaves: int) -> NDArray[np.float64]:
    """Return ``(2 * leaves, 6)`` low and high corners; box ``i`` holds boxes ``2i`` and ``2i + 1``, leaves last."""
    boxes = np.empty((2 * leaves, 6))
    boxes[:, :3] = np.inf
    boxes[:, 3:] = -np.inf
    for i in range(len(faces)):
        node = leaves + i // _LEAF
        for k in range(4):
            for axis in range(3):
                v = faces[i, k, axis]
                boxes[node, axis] = min(boxes[node, axis], v)
                boxes[node, 3 + axis] = max(boxes[node, 3 + axis], v)
    for node in range(leaves - 1, 0, -1):
        for axis in range(3):
            boxes[node, axis] = min(boxes[2 * node, axis], boxes[2 * node + 1, axis])
            boxes[node, 3 + axis] = max(boxes[2 * node, 3 + axis], boxes[2 * node + 1, 3 + axis])
    return boxes


@compiled
def _to_box(z: float, y: float, x: float, boxes: NDArray[np.float64], node: int) -> float:
    dz = max(boxes[node, 0] - z, z - boxes[node, 3], 0.0)
    dy = max(boxes[node, 1] - y, y - boxes[node, 4], 0.0)
    dx = max(boxes[node, 2] - x, x - boxes[node, 5], 0.0)
    return float(dz * dz + dy * dy + dx * dx)


@compiled
def _search(
    points: NDArray[np.float64],
    faces: NDArray[np.float64],
    centres: NDArray[np.float64],
    radii: NDArray[np.float64],
    normals: NDArray[np.float64],
    bends: NDArray[np.float64],
    boxes: NDArray[np.float64],
    distances: NDArray[np.float64],
    sides: NDArray[np.int8],
) -> None:
    """Write each point's distance to the nearest face; every point starts from its neighbour's face."""
    leaves = len(boxes) // 2
    stack = np.empty(64, np.int64)
    bounds = np.empty(64, np.float64)
    nearest = 0
    for q in range(len(points)):
        z, y, x = points[q, 0], points[q, 1], points[q, 2]
        best = _to_face(z, y, x, faces, nearest)
        root = np.sqrt(best)
        top = 1
        stack[0] = 1
        bounds[0] = 0.0
        while top:
            top -= 1
            node = stack[top]
            if bounds[top] >= best:
                continue
            while node < leaves:  # go down the nearer side, keep the other for later
                left, right = 2 * node, 2 * node + 1
                to_left = _to_box(z, y, x, boxes, left)
                to_right = _to_box(z, y, x, boxes, right)
                near, far, to_near, to_far = left, right, to_left, to_right
                if to_right < to_left:
                    near, far, to_near, to_far = right, left, to_right, to_left
                if to_far < best:
                    stack[top] = far
                    bounds[top] = to_far
                    top += 1
                if to_near >= best:
                    break
                node = near
            else:
                start = (node - leaves) * _LEAF
                for i in range(start, min(len(faces), start + _LEAF)):
                    dz, dy, dx = z - centres[i, 0], y - centres[i, 1], x - centres[i, 2]
                    whole = dz * dz + dy * dy + dx * dx
                    within = root + radii[i]
                    if whole >= within * within:
                        continue
                    # a face lies about in a plane: no point of it is nearer than this
                    high = abs(dz * normals[i, 0] + dy * normals[i, 1] + dx * normals[i, 2])
                    flat = np.sqrt(max(whole - high * high, 0.0))
                    above, beside = max(high - bends[i], 0.0), max(flat - radii[i], 0.0)
                    if above * above + beside * beside >= best:
                        continue
                    d = _to_face(z, y, x, faces, i)
                    if d < best:
                        best = d
                        root = np.sqrt(best)
                        nearest = i
        distances[q] = np.sqrt(best)
        ahead = (z - centres[nearest, 0]) * normals[nearest, 0] + (y - centres[nearest, 1]) * normals[
            nearest, 1
        ]
        ahead += (x - centres[nearest, 2]) * normals[nearest, 2]
        sides[q] = 1 if ahead >= 0 else -1


@compiled
def _to_face(z: float, y: float, x: float, f: NDArray[np.float64], i: int) -> float:
    """Return the squared distance to a face, as two triangles along its first diagonal."""
    d = _to_triangle(z, y, x, f, i, 1)
    if f[i, 2, 0] == f[i, 3, 0] and f[i, 2, 1] == f[i, 3, 1] and f[i, 2, 2] == f[i, 3, 2]:
        return d
    return min(d, _to_triangle(z, y, x, f, i, 3))


@compiled
def _to_triangle(z: float, y: float, x: float, f: NDArray[np.float64], i: int, j: int) -> float:
    """Return the squared distance to the triangle of corners 0, 2 and ``j`` of face ``i``; corners may coincide.

    Source: Ericson, "Real-time collision detection", 2005.
    """
    az, ay, ax = f[i, 0, 0], f[i, 0, 1], f[i, 0, 2]
    bz, by, bx = f[i, 2, 0], f[i, 2, 1], f[i, 2, 2]
    cz, cy, cx = f[i, j, 0], f[i, j, 1], f[i, j, 2]
    abz, aby, abx = bz - az, by - ay, bx - ax
    acz, acy, acx = cz - az, cy - ay, cx - ax
    apz, apy, apx = z - az, y - ay, x - ax
    d1 = abz * apz + aby * apy + abx * apx
    d2 = acz * apz + acy * apy + acx * apx
    if d1 <= 0 and d2 <= 0:
        return float(apz * apz + apy * apy + apx * apx)
    bpz, bpy, bpx = z - bz, y - by, x - bx
    d3 = abz * bpz + aby * bpy + abx * bpx
    d4 = acz * bpz + acy * bpy + acx * bpx
    if d3 >= 0 and d4 <= d3:
        return float(bpz * bpz + bpy * bpy + bpx * bpx)
    vc = d1 * d4 - d3 * d2
    if vc <= 0 and d1 >= 0 and d3 <= 0:
        t = d1 / (d1 - d3)
        return float((apz - t * abz) ** 2 + (apy - t * aby) ** 2 + (apx - t * abx) ** 2)
    cpz, cpy, cpx = z - cz, y - cy, x - cx
    d5 = abz * cpz + aby * cpy + abx * cpx
    d6 = acz * cpz + acy * cpy + acx * cpx
    if d6 >= 0 and d5 <= d6:
        return float(cpz * cpz + cpy * cpy + cpx * cpx)
    vb = d5 * d2 - d1 * d6
    if vb <= 0 and d2 >= 0 and d6 <= 0:
        t = d2 / (d2 - d6)
        return float((apz - t * acz) ** 2 + (apy - t * acy) ** 2 + (apx - t * acx) ** 2)
    va = d3 * d6 - d5 * d4
    if va <= 0 and d4 - d3 >= 0 and d5 - d6 >= 0:
        t = (d4 - d3) / ((d4 - d3) + (d5 - d6))
        return float((bpz - t * (cz - bz)) ** 2 + (bpy - t * (cy - by)) ** 2 + (bpx - t * (cx - bx)) ** 2)
    scale = 1 / (va + vb + vc)
    v, w = vb * scale, vc * scale
    return float(
        (apz - v * abz - w * acz) ** 2 + (apy - v * aby - w * acy) ** 2 + (apx - v * abx - w * acx) ** 2
    )

"""The phantom's body around the organ: wall, lungs, bones, vessels and what else an abdominal CT shows.

Positions are millimetres ``(z, y, x)`` from the body's axis; values are HU, portal venous phase.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from clearmargin.datasets.phantom_shapes import Canvas, Field, Point, Space, ellipse, ellipsoid, smooth_field

__all__ = ["Torso", "paint_body", "paint_chest", "paint_neighbours"]

AIR, LUNG, FAT, MUSCLE, MARROW, CORTEX = -1000.0, -845.0, -102.0, 58.0, 190.0, 520.0


@dataclass(frozen=True, kw_only=True)
class Torso:
    """The fields that every part of the body is held against, on one slice's coordinates.

    Attributes:
        cavity: ``(Z, Y, X)`` float32, signed distance in mm to the wall of chest and belly, negative inside.
        diaphragm: ``(1, Y, X)`` float32, its height z in mm.
    """

    cavity: Field
    diaphragm: Field


def paint_body(canvas: Canvas, rng: np.random.Generator) -> Torso:
    """Paint skin, fat, muscles, ribs, spine and the table; return what bounds the organs."""
    space = canvas.space
    size = rng.uniform(0.96, 1.04)
    half_x, half_y = 137.0 * size, 102.0 * size
    polar_r = np.hypot(space.y, space.x)
    angle = np.arctan2(space.y / half_y, space.x / half_x)
    cos, sin = np.abs(np.cos(angle)), np.abs(np.sin(angle))
    outline = np.hypot(half_x * np.cos(angle), half_y * np.sin(angle)) / (cos**2.35 + sin**2.35) ** (1 / 2.35)
    for order in (2, 3, 4):
        turn = angle * order + rng.uniform(0, 6.28) + space.z * np.float32(rng.uniform(-0.004, 0.004))
        outline = outline + rng.uniform(0.6, 1.8) * np.cos(turn)
    habitus = rng.uniform(0.7, 1.35)
    front = np.sin(angle) < 0
    fat = habitus * (11 + 7 * cos**2 + np.where(front, 3.0, 0.0) * sin**4)
    wall = 9.0 + 5.0 * cos**1.5 - np.where(front, 3.5 * np.exp(-((angle + np.pi / 2) ** 2) / 0.012), 0)
    skin = (polar_r - outline).astype(np.float32)
    muscle = (skin + fat).astype(np.float32)
    cavity = (muscle + wall).astype(np.float32)
    layers = np.abs(muscle + 0.5 * wall) - 0.7  # fat between the muscles of the flank
    for distance, value in ((skin, 18.0), (skin + 2.2, FAT), (muscle, MUSCLE), (cavity, FAT)):
        canvas.paint(space, canvas.occupancy(distance), value)
    between = canvas.occupancy(layers.astype(np.float32)) * (cos > 0.55) * np.float32(0.6)
    canvas.paint(space, between, FAT)
    _strands(canvas, skin + 4, rng)
    _ribs(canvas, cavity, angle, outline - fat - wall, rng)
    _back(canvas, rng)
    table = np.abs(np.hypot(space.y + 330.0, space.x) - (330.0 + half_y + 8.0)) - 1.6
    bench = np.where(np.abs(space.x) < 145, table, 9.0).astype(np.float32)
    canvas.paint(space, canvas.occupancy(bench) * (canvas.hu < -900), 40.0)

    domes = [
        top - 55.0 * (((space.x - x) / ax) ** 2 + ((space.y - y) / ay) ** 2)
        for top, x, y, ax, ay in (
            (rng.uniform(52, 64), -56.0, -4.0, 64.0, 74.0),
            (rng.uniform(42, 52), 62.0, -4.0, 60.0, 74.0),
            (rng.uniform(36, 44), 6.0, -18.0, 58.0, 60.0),
        )
    ]
    cavity = np.maximum(cavity, -np.minimum(_back_muscles(space), _spine(space)))
    return Torso(cavity=cavity, diaphragm=np.maximum.reduce(domes).astype(np.float32))


def paint_chest(canvas: Canvas, torso: Torso, rng: np.random.Generator) -> None:
    """Paint the bases of the lungs with their vessels, and the heart, above the diaphragm."""
    space = canvas.space
    above = torso.diaphragm - space.z
    if float(above.min()) > 2:
        return
    middle = ellipse(space, (-4.0, 8.0), (92.0, 40.0))
    lung = np.maximum(np.maximum(torso.cavity + 1.5, above + 1.0), -middle)
    texture = smooth_field(rng, space, 7.0)
    vessels = np.clip((texture - 1.55) * 900, 0, 780) + 25 * smooth_field(rng, space, 14.0)
    canvas.paint(space, canvas.occupancy(lung), LUNG + vessels)
    limit = np.maximum(torso.cavity + 5, above + 2.0)
    canvas.ellipsoid((72.0, -34.0, 26.0), (44.0, 38.0, 54.0), 62.0, limit)
    canvas.ellipsoid((76.0, -32.0, 30.0), (40.0, 31.0, 46.0), 118.0, limit)
    canvas.ellipsoid((78.0, -26.0, 36.0), (34.0, 20.0, 26.0), 168.0, limit)


def paint_neighbours(canvas: Canvas, torso: Torso, rng: np.random.Generator) -> Field:
    """Paint spleen, kidneys, stomach, bowel, pancreas and great vessels below the diaphragm.

    Returns:
        ``(Z, Y, X)`` float32: signed distance in mm to what the organ must not grow into.
    """
    space = canvas.space
    limit = np.maximum(torso.cavity + 3.0, space.z - torso.diaphragm + 3.0)

    def near(z: float, y: float, x: float) -> Point:
        return (z + float(rng.normal(0, 5)), y + float(rng.normal(0, 3)), x + float(rng.normal(0, 3)))

    stomach, spleen = near(26.0, -26.0, 62.0), near(26.0, 30.0, 92.0)
    right_kidney, left_kidney = near(-34.0, 44.0, -60.0), near(-26.0, 42.0, 65.0)
    gall, pancreas = near(-34.0, -30.0, -46.0), near(-6.0, -10.0, 0.0)
    for _ in range(26):
        loop = (rng.uniform(-88, 0), rng.uniform(-64, 2), rng.uniform(-70, 90))
        radii = (rng.uniform(12, 28), rng.uniform(9, 16), rng.uniform(10, 23))
        content = float(rng.choice([30.0, 24.0, 45.0, 60.0, 190.0]))
        _hollow(canvas, loop, radii, limit, content=content, gas=float(rng.uniform(-0.5, 0.5)))
    for x, lobe in ((-8.0, 13.0), (10.0, 12.0), (30.0, 11.0), (48.0, 10.0)):
        at = (pancreas[0] + x / 4, pancreas[1] + x / 4, x)
        canvas.ellipsoid(at, (11.0, lobe * 0.85, lobe * 1.15), 92.0 + rng.normal(0, 4), limit)
    _hollow(canvas, stomach, (44.0, 30.0, 38.0), limit, content=30.0, gas=rng.uniform(0.25, 0.6))
    apart = np.maximum(limit, -ellipsoid(space, left_kidney, (47.0, 27.0, 26.0)))
    canvas.ellipsoid(spleen, (36.0, 40.0, 25.0), 122.0, apart)
    for centre, side in ((right_kidney, 1.0), (left_kidney, -1.0)):
        z, y, x = centre
        canvas.ellipsoid(centre, (45.0, 25.0, 24.0), 182.0, limit)
        canvas.ellipsoid((z, y, x + 4 * side), (36.0, 17.0, 15.0), 138.0, limit)
        canvas.ellipsoid((z, y - 4, x + 13 * side), (22.0, 11.0, 12.0), -70.0, limit)
        canvas.ellipsoid((z, y - 6, x + 16 * side), (13.0, 5.0, 9.0), 60.0, limit)
    sway = np.float32(rng.uniform(2, 4)) * np.sin(space.z / 38 + np.float32(rng.uniform(0, 6)))
    aorta = np.hypot(space.y - 9 - 0.5 * sway, space.x - 13 - sway) - 10.5
    cava = (np.hypot((space.y - 10) / 0.8, space.x + 24 - 0.6 * sway) - 12.0 + 0.4 * sway) * 0.9
    canvas.paint(space, canvas.occupancy(aorta.astype(np.float32)), 172.0)
    canvas.paint(space, canvas.occupancy(cava.astype(np.float32)), 148.0)
    canvas.ellipsoid(gall, (26.0, 21.0, 15.0), FAT, limit)
    canvas.ellipsoid(gall, (24.0, 19.0, 13.0), 55.0, limit)
    canvas.ellipsoid(gall, (22.5, 17.5, 11.5), 8.0, limit)
    bounds = np.maximum(torso.cavity + 3.5, space.z - torso.diaphragm + 3.0)
    np.maximum(bounds, -ellipse(space, (12.0, -24.0), (11.0, 14.0)), out=bounds)
    for centre, radii in (
        (gall, (26.0, 21.0, 15.0)),
        ((right_kidney[0], right_kidney[1] + 17.0, right_kidney[2]), (51.0, 45.0, 29.0)),  # open to the back
        (stomach, (44.0, 30.0, 38.0)),
    ):
        where = space.box(centre, (radii[0] + 2, radii[1] + 2, radii[2] + 2))
        part = bounds[where.window]
        np.maximum(part, -ellipsoid(where, centre, radii), out=part)
    limits: Field = bounds
    return limits


def _spine(space: Space) -> Field:
    return ellipse(space, (40.0, 0.0), (24.0, 26.0))


def _strands(canvas: Canvas, beneath_skin: Field, rng: np.random.Generator) -> None:
    """Lay septa and small vessels into fat, which no patient has without."""
    streaks = np.clip(0.16 - np.abs(smooth_field(rng, canvas.space, 13.0)), 0, 0.16) * 260
    streaks += np.clip(smooth_field(rng, canvas.space, 6.0) - 1.7, 0, 1) * 160
    hu = canvas.hu
    hu += streaks * ((beneath_skin < 0) & (hu < -60))


def _hollow(canvas: Canvas, centre: Point, radii: Point, limit: Field, *, content: float, gas: float) -> None:
    """Paint a hollow viscus: wall, content, and gas that floats to the front (``gas`` 0..1 of its depth)."""
    space = canvas.space.box(centre, (radii[0] + 2, radii[1] + 2, radii[2] + 2))
    outer = np.maximum(ellipsoid(space, centre, radii), limit[space.window])
    canvas.paint(space, canvas.occupancy(outer), 78.0)
    canvas.paint(space, canvas.occupancy(outer + 3.0), content)
    level = centre[1] - radii[1] + 2 * radii[1] * min(max(gas, 0.0), 0.55)
    canvas.paint(space, canvas.occupancy(np.maximum(outer + 3.0, space.y - np.float32(level))), -900.0)


def _ribs(canvas: Canvas, cavity: Field, angle: Field, radius: Field, rng: np.random.Generator) -> None:
    """Paint the ribs where the slanting arcs cross the wall, cortex around marrow."""
    z = canvas.space.z
    pitch = 0.47
    turn = np.arctan2(np.sin(angle), np.abs(np.cos(angle)))  # 0 at the flank, pi/2 at the back, on both sides
    lean = np.where(np.cos(angle) > 0, rng.uniform(0, 0.05), 0)  # no body is symmetric
    slant = (turn + lean - rng.uniform(0, pitch)).astype(np.float32) - z * np.float32(0.011)
    number = np.round(slant / np.float32(pitch))
    along = (slant - np.float32(pitch) * number) * radius.astype(np.float32)
    soft = np.where(number < -1, np.float32(0.25), np.float32(1))  # in front there is cartilage
    squeezed = np.sqrt((along / 10.0) ** 2 + ((cavity - 4.6) / 3.4) ** 2)
    distance = ((squeezed - 1) * 3.4 + np.where(np.abs(number) > 2, 20, 0)).astype(np.float32)
    canvas.paint(canvas.space, canvas.occupancy(distance), MUSCLE + (CORTEX - MUSCLE) * soft)
    canvas.paint(canvas.space, canvas.occupancy(distance + 1.7), MUSCLE + (MARROW - MUSCLE) * soft)


def _back_muscles(space: Space) -> Field:
    """Return the signed distance to the muscles along the spine, on both sides."""
    return np.minimum(ellipse(space, (70.0, 29.0), (18.0, 27.0)), ellipse(space, (70.0, -29.0), (18.0, 27.0)))


def _back(canvas: Canvas, rng: np.random.Generator) -> None:
    """Paint the muscles of the back, the psoas, and vertebrae with discs, canal and processes."""
    space, z = canvas.space, canvas.space.z
    streaky = MUSCLE - 22 * np.clip(smooth_field(rng, space, 5.0) - 0.6, 0, 2)
    canvas.paint(space, canvas.occupancy(_back_muscles(space)), streaky)
    for side in (-1.0, 1.0):
        grown = np.clip((20 - z) / 60, 0.05, 1.3)
        psoas = np.hypot((space.y - 46) / 1.1, space.x - side * 37) - 14.0 * grown
        canvas.paint(space, canvas.occupancy(psoas.astype(np.float32)), MUSCLE)
    level = np.abs((z + np.float32(rng.uniform(0, 34))) % 34 - 17)  # 0 mid-vertebra, 17 mid-disc
    body = np.hypot((space.y - 38) / 0.82, space.x) - 22.5 + 1.5 * np.cos(level * np.float32(np.pi / 17))
    body = body.astype(np.float32)
    canvas.paint(space, canvas.occupancy(body), 92.0)
    bone = np.maximum(body, level - 13.5).astype(np.float32)
    canvas.paint(space, canvas.occupancy(bone), CORTEX * 0.85)
    trabecular = MARROW + 22 * smooth_field(rng, space, 4.0)
    canvas.paint(space, canvas.occupancy(bone + 2.0), trabecular)
    arch = np.hypot(space.y - 63, space.x / 1.15) - 14.0
    reach = np.abs(space.x)
    wings = np.maximum(np.abs(space.y - 57 - 0.22 * reach) - 4.6 + 0.07 * reach, reach - 34)
    wings = np.maximum(wings, level - 4)
    spine = np.maximum(np.abs(space.x) - 2.8, np.abs(space.y - 79) - 11) + np.clip(level - 9, 0, 20)
    rear = np.minimum.reduce(np.broadcast_arrays(np.maximum(arch, level - 12), wings, spine)).astype(
        np.float32
    )
    canvas.paint(space, canvas.occupancy(rear), CORTEX * 0.9)
    canvas.paint(space, canvas.occupancy(rear + 2.2), MARROW)
    canal = np.hypot(space.y - 61.5, space.x / 1.15) - 8.5
    canvas.paint(space, canvas.occupancy(canal.astype(np.float32)), 22.0)

"""The interpolated surface against closed forms; it was tuned on capsules and L-shaped blocks, not these."""

import numpy as np
import pytest
from scipy.spatial import cKDTree

from clearmargin.metrics import MaskPair
from clearmargin.metrics.subvoxel import SubvoxelPair
from clearmargin.metrics.surface import assd, hausdorff, hd95, nsd, surface_bias

from .shapes import ball, block

N = 48
CENTRES = np.stack(np.meshgrid(*[np.arange(N)] * 3, indexing="ij"), -1).astype(float)


def sphere_points(n: int = 30_000) -> np.ndarray:
    """Return points spread evenly over the unit sphere (Fibonacci lattice)."""
    i = np.arange(n) + 0.5
    polar, turn = np.arccos(1 - 2 * i / n), np.pi * (1 + 5**0.5) * i
    return np.stack([np.cos(turn) * np.sin(polar), np.sin(turn) * np.sin(polar), np.cos(polar)], -1)


class Ellipsoid:
    def __init__(self, centre, axes, turn):
        self.centre, self.axes, self.turn = centre, np.asarray(axes), turn

    def mask(self):
        return ((((CENTRES - self.centre) @ self.turn.T) / self.axes) ** 2).sum(-1) <= 1

    def surface(self):
        unit = sphere_points()
        return (unit * self.axes) @ self.turn + self.centre, np.linalg.norm(unit / self.axes, axis=1)


class Torus:
    def __init__(self, centre, ring, tube, turn):
        self.centre, self.ring, self.tube, self.turn = centre, ring, tube, turn

    def mask(self):
        p = (CENTRES - self.centre) @ self.turn.T
        return np.hypot(np.hypot(p[..., 0], p[..., 1]) - self.ring, p[..., 2]) <= self.tube

    def surface(self):
        u, v = (a.ravel() for a in np.meshgrid(*[np.linspace(0, 2 * np.pi, n, False) for n in (400, 120)]))
        far = self.ring + self.tube * np.cos(v)
        points = np.stack([far * np.cos(u), far * np.sin(u), self.tube * np.sin(v)], -1)
        return points @ self.turn + self.centre, far


class Box:
    def __init__(self, centre, half):
        self.centre, self.half = np.asarray(centre, float), np.asarray(half, float)

    def mask(self):
        return (np.abs(CENTRES - self.centre) <= self.half).all(-1)

    def surface(self):
        u, v = (a.ravel() for a in np.meshgrid(*[(np.arange(80) + 0.5) / 40 - 1] * 2))
        points, weights = [], []
        for axis in range(3):
            for side in (-1.0, 1.0):
                face = np.insert(np.stack([u, v], -1), axis, side, axis=1) * self.half
                points.append(face + self.centre)
                weights.append(np.full(len(u), np.prod(np.delete(self.half, axis))))
        return np.concatenate(points), np.concatenate(weights)


def exact_assd(a, b):
    (pa, wa), (pb, wb) = a.surface(), b.surface()
    wa, wb = wa / wa.sum() * area(a), wb / wb.sum() * area(b)
    return (cKDTree(pb).query(pa)[0] @ wa + cKDTree(pa).query(pb)[0] @ wb) / (wa.sum() + wb.sum())


def area(shape):
    if isinstance(shape, Box):
        x, y, z = 2 * shape.half
        return 2 * (x * y + y * z + z * x)
    if isinstance(shape, Torus):
        return 4 * np.pi**2 * shape.ring * shape.tube
    unit = sphere_points()
    return 4 * np.pi * np.prod(shape.axes) * np.linalg.norm(unit / shape.axes, axis=1).mean()


def pairs(kind, n):
    rng = np.random.default_rng(11)
    for _ in range(n):
        centre, shift = N / 2 + rng.uniform(-0.5, 0.5, 3), rng.uniform(-2, 2, 3)
        turn = np.linalg.qr(rng.normal(size=(3, 3)))[0]
        if kind == "spheres":
            r, more = rng.uniform(7, 15), rng.uniform(0.5, 3)
            yield Ellipsoid(centre, [r] * 3, turn), Ellipsoid(centre + shift, [r + more] * 3, turn)
        elif kind == "ellipsoids":
            axes = rng.uniform(6, 15, 3)
            yield Ellipsoid(centre, axes, turn), Ellipsoid(centre + shift, axes + rng.uniform(0.5, 3), turn)
        elif kind == "tori":
            ring, tube = rng.uniform(9, 13), rng.uniform(4, 6)
            yield (
                Torus(centre, ring, tube, turn),
                Torus(centre + shift, ring + rng.uniform(0, 1.5), tube + 1, turn),
            )
        else:  # element faces lie halfway between centres: a box of whole elements has half sides k + 1/2
            half = rng.integers(4, 12, 3) + 0.5
            yield Box([N / 2] * 3, half), Box(N / 2 + rng.integers(-2, 3, 3), half + rng.integers(1, 3, 3))


@pytest.mark.parametrize(
    ("kind", "limit"), [("boxes", 0.05), ("spheres", 0.09), ("ellipsoids", 0.09), ("tori", 0.09)]
)
def test_mean_error_of_assd_against_closed_form(kind, limit):
    errors = [
        assd(SubvoxelPair.of(MaskPair.from_arrays(a.mask(), b.mask(), (1.0, 1.0, 1.0)))) - exact_assd(a, b)
        for a, b in pairs(kind, 3)
    ]
    assert np.abs(errors).mean() < limit


def test_anisotropic_spheres():
    spacing = (2.5, 0.8, 0.8)
    small, large = (ball((24, 64, 64), (28, 25, 25), r, spacing) for r in (14, 17))
    pair = SubvoxelPair.of(MaskPair.from_arrays(large, small, spacing))
    assert assd(pair) == pytest.approx(3, abs=0.2)
    assert surface_bias(pair) == pytest.approx(3, abs=0.2)
    assert hd95(pair) == pytest.approx(3, abs=0.6)
    assert nsd(pair, 2.0) < 0.1
    assert nsd(pair, 4.0) > 0.9


def test_circles_in_the_plane():
    spacing = (0.5, 0.5)
    small, large = (ball((80, 80), (20, 20), r, spacing) for r in (9, 11))
    pair = SubvoxelPair.of(MaskPair.from_arrays(small, large, spacing))
    assert assd(pair) == pytest.approx(2, abs=0.04)
    assert surface_bias(pair) == pytest.approx(-2, abs=0.04)


@pytest.mark.parametrize("shape", [(9, 9), (9, 9, 9)])
def test_one_element_and_thin_lines_keep_their_surface(shape):
    dot = block(shape, (4,) * len(shape), (5,) * len(shape))
    line = block(shape, (4,) * (len(shape) - 1) + (1,), (5,) * (len(shape) - 1) + (8,))
    pair = SubvoxelPair.of(MaskPair.from_arrays(dot, line, (1.0,) * len(shape)))
    assert hausdorff(pair) == pytest.approx(3, abs=0.3)
    same = SubvoxelPair.of(MaskPair.from_arrays(dot, dot, (1.0,) * len(shape)))
    assert hausdorff(same) == pytest.approx(0, abs=1e-6)


def test_ignored_parts_do_not_weigh():
    reference, predicted = block((20, 20), (5, 5), (10, 10)), block((20, 20), (5, 5), (10, 16))
    ignore = block((20, 20), (0, 10), (20, 20))
    everywhere = MaskPair.from_arrays(predicted, reference, (1.0, 1.0))
    ignoring = MaskPair.from_arrays(predicted, reference, (1.0, 1.0), ignore=ignore)
    assert assd(SubvoxelPair.of(ignoring)) < 0.5 * assd(SubvoxelPair.of(everywhere))

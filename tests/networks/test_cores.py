"""What parts objects that touch: cores by hand, in planes and in space, and the way back to instances."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clearmargin.core import Grid, InstanceSet
from clearmargin.datasets.separability import lost_instances
from clearmargin.models.placing import place_volume
from clearmargin.networks.components import connected_components
from clearmargin.networks.cores import CoreMaps

KINDS = ("border", "distance")


def cores_of(masks, kind, spacing, *, border=3.0, labels=None, classes=1):
    masks = np.asarray(masks).astype(np.uint8)
    labels = np.ones(len(masks), np.int64) if labels is None else np.array(labels)
    return CoreMaps(kind=kind, classes=classes, border=border)(masks, labels, spacing)


def box(shape, low, high):
    mask = np.zeros(shape, bool)
    mask[tuple(slice(a, b) for a, b in zip(low, high, strict=True))] = True
    return mask


def balls(shape, spacing, spheres):
    """Return a mask for each ball ``(centre, radius)``, in the spacing's unit; what two hold, the deeper one has."""
    where = np.stack([(i + 0.5) * s for i, s in zip(np.indices(shape), spacing, strict=True)], -1)
    beyond = np.stack([np.linalg.norm(where - c, axis=-1) - r for c, r in spheres])
    return [(beyond[k] < 0) & (beyond.argmin(0) == k) for k in range(len(spheres))]


def dense(component, shape):
    whole = np.zeros(shape, bool)
    place = tuple(
        slice(o, o + n) for o, n in zip(component.origin, component.probabilities.shape, strict=True)
    )
    whole[place] = component.probabilities >= 0.5
    return whole


def parted(masks, cores, smallest=1):
    union = np.logical_or.reduce(masks).astype(np.float32)
    components, _ = connected_components(union, smallest, cores)
    return [dense(component, union.shape) for component in components]


def test_depths_of_a_box_in_thick_slices_by_hand():
    """5 slices of 3, 9 x 9 pixels of 1: the middle lies 5 pixels from the outside and 9 from it through slices."""
    mask = box((9, 15, 15), (2, 3, 3), (7, 12, 12))
    (border,), (distance,) = (cores_of([mask], kind, (3.0, 1.0, 1.0), border=2.0) for kind in KINDS)
    assert border[4, 7, 7] == 1  # 5 less half an element is beyond twice the border
    assert border[2, 7, 7] == pytest.approx(2.5 / 4)  # one slice of 3 to the outside
    assert border[4, 3, 7] == border[4, 7, 11] == pytest.approx(0.5 / 4)
    assert border[3, 5, 7] == pytest.approx(2.5 / 4)  # three pixels, nearer than two slices of 3
    (thin,) = cores_of([mask], "border", (3.0, 1.0, 1.0), border=8.0)
    np.testing.assert_allclose(thin, distance)  # its deepest is its core
    assert distance[4, 7, 7] == 1 and distance[2, 7, 7] == pytest.approx(2.5 / 4.5)
    assert not border[~mask].any() and not distance[~mask].any()
    twice = cores_of([mask], "border", (6.0, 2.0, 2.0), border=2.0)[0]
    np.testing.assert_allclose(twice, border)  # the width counts finest pixels, in whatever unit


def test_what_the_windows_edge_cuts_has_no_border_there():
    mask = box((12, 40), (0, 0), (12, 20))
    (cores,) = cores_of([mask], "border", (1.0, 1.0))
    assert (cores[:, 0] == 1).all() and cores[0, 19] == pytest.approx(0.5 / 6)
    full = cores_of([np.ones((5, 6))], "distance", (1.0, 1.0))[0]
    assert (full == 1).all()
    assert not cores_of(np.zeros((1, 5, 6)), "border", (1.0, 1.0)).any()
    assert cores_of(np.zeros((0, 5, 6)), "border", (1.0, 1.0), classes=3).shape == (3, 5, 6)


def test_faces_that_touch_are_no_core_in_slices_of_any_thickness():
    """In slices of 10 the next object is 9.5 pixels from an element's middle: by depth alone they would be one."""
    lower, upper = box((8, 20, 20), (1, 4, 4), (4, 16, 16)), box((8, 20, 20), (4, 4, 4), (7, 16, 16))
    for kind in KINDS:
        (cores,) = cores_of([lower, upper], kind, (10.0, 1.0, 1.0))
        assert (cores[3:5] == 0).all() and cores[2, 10, 10] == 1
        for truth, mask in zip((lower, upper), parted([lower, upper], cores), strict=True):
            assert (truth == mask).all() or (truth == parted([lower, upper], cores)[1]).all()
    other = cores_of([lower, upper], "border", (10.0, 1.0, 1.0), labels=[1, 2], classes=2)
    assert other[0][3].max() == other[1][4].max() == 1  # classes do not part each other


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (2.5, 1.0, 1.0), (1.0, 0.7, 1.4)])
def test_two_balls_that_touch_in_space_are_two(kind, spacing):
    shape = tuple(round(n / s) for n, s in zip((30, 36, 56), spacing, strict=True))
    masks = balls(shape, spacing, [((15, 18, 18), 11), ((15, 18, 36), 8)])
    union = np.logical_or(*masks).astype(np.float32)
    assert len(connected_components(union, 1)[0]) == 1
    (cores,) = cores_of(masks, kind, spacing)
    found = parted(masks, cores)
    assert len(found) == 2
    for truth in masks:
        assert min((truth ^ mask).sum() for mask in found) == 0


@settings(deadline=None, max_examples=60)
@given(
    kind=st.sampled_from(KINDS),
    slices=st.sampled_from([None, 1.0, 2.0]),
    seed=st.integers(0, 10_000),
    count=st.integers(2, 5),
)
def test_known_targets_give_the_instances_back(kind, slices, seed, count):
    """Balls laid side by side, discs in the plane: each comes back, but for elements at the faces that touch."""
    rng = np.random.default_rng(seed)
    axes = 2 if slices is None else 3
    spacing = (1.0, 1.0) if slices is None else (slices, 1.0, 1.0)
    room = np.array([40.0, 90.0][-axes:] if axes == 2 else [30.0, 40.0, 70.0])
    spheres = [(room / 2 * (1, 0.5) if axes == 2 else room / 2 * (1, 1, 0.4), rng.uniform(6, 9))]
    for _ in range(count - 1):
        centre, radius = spheres[-1]
        step = rng.normal(size=axes) * ([0.3, 1] if axes == 2 else [0.2, 0.4, 1])
        new = rng.uniform(6, 9)
        middle = centre + np.abs(step) / np.linalg.norm(step) * (radius + new - 1.5)
        if (middle > room - 3).any() or any(np.linalg.norm(middle - c) < r + new - 1.6 for c, r in spheres):
            continue
        spheres.append((middle, new))
    masks = balls(tuple(int(n / s) for n, s in zip(room, spacing, strict=True)), spacing, spheres)
    (cores,) = cores_of(masks, kind, spacing)
    found = parted(masks, cores)
    assert len(found) == len(masks)
    for truth in masks:
        ious = [(truth & mask).sum() / (truth | mask).sum() for mask in found]
        assert max(ious) > 0.97
    assert (np.sum(found, axis=0) == np.logical_or.reduce(masks)).all()  # none is lost, none is in two


def test_what_the_targets_cannot_give_back_is_known():
    """Three beads on a rod are three objects by depth; of crossing bars one is cut; discs that touch are right."""
    grid = Grid.from_spacing((60, 120))
    y, x = np.indices(grid.shape) + 0.5
    beads = np.min([np.hypot(y - 30, x - at) for at in (15, 45, 75)], axis=0) < 11
    beads |= (abs(y - 30) < 4.5) & (x > 15) & (x < 75)
    disc = (np.hypot(y - 30, x - 97) < 11.5) & ~beads
    assert lost_instances(InstanceSet.from_dense(grid, [beads, disc])) == {
        "classes": 1,  # the one object that is made of both is the beads, more or less
        "border": 0,
        "distance": 1,
    }
    bars = [abs(y - 30) < 3, abs(x - 60) < 3]
    assert lost_instances(InstanceSet.from_dense(grid, bars))["border"] == 1  # the longer one is two halves
    discs = [np.hypot(y - 30, x - 30) < 10, (np.hypot(y - 30, x - 50) < 10.5) & (x > 40)]
    assert lost_instances(InstanceSet.from_dense(grid, discs)) == {"classes": 1, "border": 0, "distance": 0}
    assert lost_instances(InstanceSet.from_dense(grid, discs, labels=[1, 2]))["classes"] == 0


def test_a_basin_that_is_too_small_goes_to_its_neighbour_and_no_core_is_an_object_still():
    probabilities = np.zeros((20, 60), np.float32)
    probabilities[5:15, 5:25] = probabilities[5:15, 35:55] = 0.9
    cores = np.zeros_like(probabilities)
    cores[8:12, 8:20], cores[13, 23] = 0.9, 0.8  # a second core of one pixel; the right one has none
    found, specks = connected_components(probabilities, 16, cores)
    assert sorted(c.low[1] for c in found) == [5, 35] and specks == 0
    assert all(dense(c, probabilities.shape).sum() == 200 for c in found)
    assert len(connected_components(probabilities, 1, cores)[0]) == 3
    cores[13, 23] = 0.55  # no core is so unsure everywhere
    assert len(connected_components(probabilities, 1, cores)[0]) == 2


@pytest.mark.parametrize("finer", [1, 2, 3])
def test_between_parts_there_is_neither_gap_nor_overlap_on_a_finer_grid(finer):
    """The edge of the union is where the whole map has it; each point of it has one part."""
    rng = np.random.default_rng(3)
    spacing, shape = (1.0, 1.0, 1.0), (14, 20, 34)
    masks = balls(shape, spacing, [((7, 10, 10), 6.5), ((7, 10, 22), 6.5)])
    soft = (np.logical_or(*masks) * rng.uniform(0.55, 1, shape)).astype(np.float32)
    (cores,) = cores_of(masks, "distance", spacing)
    parts, _ = connected_components(soft, 1, cores)
    assert len(parts) == 2
    fine = tuple(n * finer for n in shape)
    matrix = np.diag([finer, finer, finer, 1.0])
    matrix[:3, 3] = finer / 2 - 0.5

    def placed(samples, origin):
        crop, low = place_volume(samples, origin, matrix, fine)
        whole = np.zeros(fine, np.float32)
        whole[tuple(slice(o, o + n) for o, n in zip(low, crop.shape, strict=True))] = crop
        return whole

    held = np.sum([placed(c.probabilities, c.origin) >= 0.5 for c in parts], axis=0)
    whole = placed(soft, (0, 0, 0)) >= 0.5
    assert held.max() == 1
    assert (held[~whole] == 0).all()
    assert (whole & (held == 0)).sum() < 0.003 * whole.sum()  # the union's rim, where three meet

"""Distances between surfaces: by hand, in closed form, by property, and against surface-distance."""

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from clearmargin.metrics import MaskPair, measure_pair
from clearmargin.metrics.surface import assd, hausdorff, hd95, masd, nsd, surface_bias

from .shapes import ball, block


def test_a_square_shifted_by_one_pixel_by_hand():
    shape = (12, 12)
    pair = MaskPair.from_arrays(block(shape, (3, 4), (7, 8)), block(shape, (3, 3), (7, 7)), (1.0, 1.0))
    # Each contour: 4 corners of sqrt(1/2) and 4 sides of 3. Of the predicted one, the right side (3 + 2
    # corners) lies 1 outside, the left side inside by 1 but for its ends, which lie on the other's top and
    # bottom.
    side = 2 * np.sqrt(0.5)
    total = 4 * np.sqrt(0.5) + 12
    assert hausdorff(pair) == 1
    assert nsd(pair, 0.5) == pytest.approx(1 - (3 + side + 3) / total)
    assert nsd(pair, 1.0) == 1
    assert assd(pair) == pytest.approx((3 + side + 3) / total)
    assert masd(pair) == pytest.approx((3 + side + 3) / total)
    assert surface_bias(pair) == pytest.approx(0)  # as much outside as inside


def test_a_shell_of_constant_width_gives_that_width():
    spacing = (0.5, 0.5, 0.5)
    shape = (60, 60, 60)
    small, large = (ball(shape, (15, 15, 15), r, spacing) for r in (8, 11))
    pair = MaskPair.from_arrays(large, small, spacing)
    for value in (hausdorff(pair), hd95(pair), assd(pair), masd(pair), surface_bias(pair)):
        assert value == pytest.approx(3, abs=0.5)  # one voxel
    assert surface_bias(MaskPair.from_arrays(small, large, spacing)) == pytest.approx(-3, abs=0.5)


def test_anisotropic_spacing_counts_along_the_right_axis():
    shape = (10, 10, 10)
    low, high = block(shape, (2, 2, 2), (4, 8, 8)), block(shape, (2, 2, 2), (5, 8, 8))
    assert hausdorff(MaskPair.from_arrays(high, low, (5.0, 1.0, 1.0))) == 5
    assert hausdorff(MaskPair.from_arrays(high, low, (1.0, 5.0, 1.0))) == 1


def test_holes_count():
    shape = (20, 20)
    full = block(shape, (2, 2), (18, 18))
    holed = full & ~block(shape, (8, 8), (12, 12))
    assert hausdorff(MaskPair.from_arrays(holed, full, (1.0, 1.0))) == 6  # from the hole's rim to the edge


def test_identical_masks_are_perfect():
    found = measure_pair(*[ball((9, 9, 9), (4, 4, 4), 3, (1, 1, 1))] * 2, spacing=(1, 2, 3), tolerances=[0.0])
    assert found["dice"] == found["nsd_0mm"] == 1
    assert found["hausdorff"] == found["assd"] == found["surface_bias"] == 0


def test_ignored_elements_do_not_weigh_but_stay_targets():
    shape = (20, 20)
    reference = block(shape, (5, 5), (10, 10))
    predicted = block(shape, (5, 5), (10, 15))
    everywhere = MaskPair.from_arrays(predicted, reference, (1.0, 1.0))
    ignoring = MaskPair.from_arrays(predicted, reference, (1.0, 1.0), ignore=block(shape, (0, 11), (20, 20)))
    assert hausdorff(everywhere) == 5
    assert hausdorff(ignoring) == 2  # from the middle of the reference's right side to the row above or below
    assert assd(ignoring) < assd(everywhere)


masks_3d = st.tuples(*[st.integers(2, 9)] * 3).flatmap(
    lambda shape: st.tuples(
        *[st.integers(0, 2**32 - 1).map(lambda s: np.random.default_rng(s).random(shape) < 0.3)] * 2
    )
)
spacings = st.tuples(*[st.sampled_from([0.5, 0.7, 1.0, 2.5])] * 3)


@settings(max_examples=40, deadline=None)
@given(masks_3d, spacings)
def test_symmetry_flips_axis_order_padding_and_scale(masks, spacing):
    a, b = masks
    assume(a.any() and b.any())
    names = ("hausdorff", "hd95", "assd", "masd", "surface_bias")

    def values(p, r, s):
        found = measure_pair(p, r, spacing=s, metrics=names, tolerances=[1.0], distance_cap=1e6)
        return np.array([found[n] for n in (*names, "nsd_1mm")])

    base = values(a, b, spacing)
    swapped = values(b, a, spacing)
    np.testing.assert_allclose(swapped[[0, 1, 2, 3, 5]], base[[0, 1, 2, 3, 5]], atol=1e-9)
    assert swapped[4] == pytest.approx(-base[4])
    padded = [np.pad(m, ((3, 1), (0, 2), (4, 9))) for m in (a, b)]
    np.testing.assert_allclose(values(*padded, spacing), base, atol=1e-9)
    doubled = values(a, b, tuple(2 * s for s in spacing))
    np.testing.assert_allclose(doubled[:5], 2 * base[:5], atol=1e-9)


@settings(max_examples=40, deadline=None)
@given(masks_3d, spacings)
def test_distances_do_not_depend_on_flips_or_axis_order(masks, spacing):
    a, b = masks
    assume(a.any() and b.any())
    far = [hausdorff(MaskPair.from_arrays(a, b, spacing))]
    far.append(hausdorff(MaskPair.from_arrays(a[::-1, :, ::-1], b[::-1, :, ::-1], spacing)))
    far.append(
        hausdorff(
            MaskPair.from_arrays(a.transpose(2, 0, 1), b.transpose(2, 0, 1), [spacing[k] for k in (2, 0, 1)])
        )
    )
    assert far[0] == pytest.approx(far[1]) == pytest.approx(far[2])


@pytest.mark.filterwarnings("ignore")
@settings(max_examples=60, deadline=None)
@given(masks_3d, spacings, st.booleans())
def test_equal_to_surface_distance(masks, spacing, planar):
    oracle = pytest.importorskip("surface_distance")
    a, b = masks
    if planar:
        a, b, spacing = a[0], b[0], spacing[1:]
    assume(a.any() and b.any())
    theirs = oracle.compute_surface_distances(b, a, spacing)
    pair = MaskPair.from_arrays(a, b, spacing)
    assert hausdorff(pair) == pytest.approx(oracle.compute_robust_hausdorff(theirs, 100), abs=1e-9)
    # where a share of the surface is 95 % to the last digit, rounding decides which side of it their sum lies on
    low, high = (oracle.compute_robust_hausdorff(theirs, 95 + nudge) for nudge in (-1e-9, 1e-9))
    assert low - 1e-9 <= hd95(pair) <= high + 1e-9
    assert masd(pair) == pytest.approx(np.mean(oracle.compute_average_surface_distance(theirs)), abs=1e-9)
    for tolerance in (0.0, 0.7, 1.0, 2.2):
        expected = oracle.compute_surface_dice_at_tolerance(theirs, tolerance)
        assert nsd(pair, tolerance) == pytest.approx(expected, abs=1e-9)


@pytest.mark.filterwarnings("ignore")
def test_equal_to_surface_distance_on_large_blobs_with_threads():
    oracle = pytest.importorskip("surface_distance")
    spacing = (2.5, 0.8, 0.8)
    a = ball((40, 160, 160), (50, 64, 64), 45, spacing) & ~ball((40, 160, 160), (50, 40, 64), 12, spacing)
    b = ball((40, 160, 160), (48, 60, 66), 46, spacing)
    theirs = oracle.compute_surface_distances(b, a, spacing)
    pair = MaskPair.from_arrays(a, b, spacing)
    assert len(pair.surfaces[0].distances) > 20_000
    assert hd95(pair) == pytest.approx(oracle.compute_robust_hausdorff(theirs, 95), abs=1e-9)
    assert masd(pair) == pytest.approx(np.mean(oracle.compute_average_surface_distance(theirs)), abs=1e-9)


def test_a_negative_tolerance_is_refused():
    pair = MaskPair.from_arrays(np.ones((2, 2), bool), np.ones((2, 2), bool))
    with pytest.raises(ValueError, match="at least 0"):
        nsd(pair, -1)


@pytest.mark.parametrize("shape", [(9, 11), (6, 7, 8), (1, 5, 6), (3, 16, 16)])
@pytest.mark.parametrize("seed", range(4))
def test_small_masks_are_measured_as_large_ones_are(shape, seed, monkeypatch):
    """Bit for bit: the one compiled call for small joint boxes, and the passes for all others."""
    rng = np.random.default_rng(seed)
    spacing = tuple(rng.uniform(0.3, 4, len(shape)))
    masks = [rng.random(shape) < share for share in (0.15, 0.4)]
    masks[0].flat[0] = masks[1].flat[-1] = True
    small = MaskPair.from_arrays(*masks, spacing).surfaces
    monkeypatch.setattr("clearmargin.metrics.small.MOST_ELEMENTS", 0)
    large = MaskPair.from_arrays(*masks, spacing).surfaces
    for one, other in zip(small, large, strict=True):
        assert one.in_order and not other.in_order
        rows = [
            np.array(sorted(zip(s.distances, s.areas, s.sides, strict=True)), np.float64)
            for s in (one, other)
        ]
        np.testing.assert_array_equal(*rows)

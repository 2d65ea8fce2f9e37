"""The interpolated surface on shapes with known distances, at tolerances that equal one of them."""

import numpy as np
import pytest

from clearmargin.metrics import measure_pair

from .closed_forms import Box, closed_forms

DISTANCES = ("hausdorff", "hd95", "assd", "masd")


def measured(case):
    predicted, reference = case.masks()
    return measure_pair(
        predicted, reference, spacing=case.spacing, tolerances=case.tolerances, metrics=DISTANCES,
        surface_model="subvoxel",
    ).values  # fmt: skip


@pytest.mark.parametrize(
    "case", [c for c in closed_forms() if isinstance(c.predicted, Box)], ids=lambda c: c.name
)
def test_boxes_are_exact(case):
    found, truth = measured(case), case.truth()
    # a distance that changes within a face is cut into quarters of it
    grain = max(case.spacing)
    assert found["hausdorff"] == pytest.approx(truth["hausdorff"], abs=1e-6)
    assert found["hd95"] == pytest.approx(truth["hd95"], abs=0.3 * grain)
    for name in ("assd", "masd"):
        assert found[name] == pytest.approx(truth[name], abs=0.04 * grain)
    for tolerance in case.tolerances:
        name = f"nsd_{tolerance:g}mm"
        assert found[name] == pytest.approx(truth[name], abs=0.03)


@pytest.mark.parametrize(
    "case", [c for c in closed_forms() if not isinstance(c.predicted, Box)], ids=lambda c: c.name
)
def test_curved_shapes_are_near(case):
    found, truth = measured(case), case.truth()
    grain = max(case.spacing)
    for name, share in (("hausdorff", 0.9), ("hd95", 0.4), ("assd", 0.08), ("masd", 0.08)):
        assert found[name] == pytest.approx(truth[name], abs=share * grain), name
    for tolerance in case.tolerances:
        name = f"nsd_{tolerance:g}mm"
        assert found[name] == pytest.approx(truth[name], abs=0.01)


def test_nested_squares_at_a_tolerance_that_is_their_distance():
    inner, outer = np.zeros((2, 40, 40), bool)
    inner[16:24, 16:24] = True
    outer[14:26, 14:26] = True
    found = measure_pair(inner, outer, spacing=(1.0, 1.0), tolerances=[2.0], surface_model="subvoxel")
    # 4 x 8 of the inner outline and as much of the outer one lie 2 mm away; the outlines are 32 and 48 mm long
    assert found["nsd_2mm"] == pytest.approx(64 / 80)
    assert found["hausdorff"] == pytest.approx(8**0.5)
    assert found["surface_bias"] < -2

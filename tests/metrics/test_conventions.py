"""Other tools' numbers, stored with their versions and the command that made them."""

import json
from pathlib import Path

import numpy as np
import pytest

from clearmargin.metrics import MaskPair
from clearmargin.metrics.conventions import CONVENTIONS, VoxelPair, voxel_nsd
from clearmargin.metrics.surface import hausdorff, hd95, masd, nsd

from .cases import golden_pairs

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "surface_conventions.json").read_text())


@pytest.mark.parametrize("name", golden_pairs())
@pytest.mark.parametrize("tool", CONVENTIONS)
def test_conventions_equal_the_tools_they_are_named_after(tool, name):
    pair = MaskPair.from_arrays(*golden_pairs()[name])
    golden = dict(GOLDEN["tools"][tool]["values"][name])
    if "nsd" in golden:
        assert voxel_nsd(pair, GOLDEN["tolerance"]) == pytest.approx(golden.pop("nsd"), rel=1e-5)
    assert {key: f(pair) for key, f in CONVENTIONS[tool].items()} == pytest.approx(golden, rel=1e-5)


@pytest.mark.parametrize("name", golden_pairs())
def test_the_default_equals_surface_distance(name):
    pair = MaskPair.from_arrays(*golden_pairs()[name])
    found = {
        "hausdorff": hausdorff(pair),
        "hd95": hd95(pair),
        "masd": masd(pair),
        "nsd": nsd(pair, GOLDEN["tolerance"]),
    }
    assert found == pytest.approx(GOLDEN["tools"]["surface_distance"]["values"][name], abs=1e-9)


def test_the_tools_do_not_agree_with_each_other():
    values = {tool: GOLDEN["tools"][tool]["values"]["notch"]["hd95"] for tool in GOLDEN["tools"]}
    assert len({round(v, 3) for v in values.values()}) == 3  # 2.5, 2.744 and 3.402 mm for one pair


@pytest.mark.parametrize("tool", CONVENTIONS)
def test_empty_cases_are_ours(tool):
    empty, full = np.zeros((4, 4), bool), np.ones((4, 4), bool)
    for function in CONVENTIONS[tool].values():
        assert function(MaskPair.from_arrays(empty, empty)) == 0
        assert function(MaskPair.from_arrays(empty, full, distance_cap=9.0)) == 9
    assert voxel_nsd(MaskPair.from_arrays(empty, full), 1.0) == 0
    assert voxel_nsd(MaskPair.from_arrays(empty, empty), 1.0) == 1


def test_ignored_regions_are_refused():
    full = np.ones((4, 4), bool)
    with pytest.raises(ValueError, match="ignored region"):
        VoxelPair.of(MaskPair.from_arrays(full, full, ignore=full))

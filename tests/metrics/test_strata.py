"""Strata of instances: by hand."""

from clearmargin.core import Grid, InstanceSet
from clearmargin.metrics import evaluate_instances
from clearmargin.metrics.strata import instance_strata

from .shapes import block

SHAPE = (30, 30)


def test_each_row_has_its_stratum():
    parts = block(SHAPE, (20, 0), (22, 2)) | block(SHAPE, (20, 4), (22, 6))
    masks = [
        block(SHAPE, (0, 0), (10, 10)),  # overlapped by the next
        block(SHAPE, (0, 8), (4, 12)),
        block(SHAPE, (0, 13), (3, 16)),  # one free column beside it: two elements, centre to centre
        parts,
        block(SHAPE, (26, 26), (30, 30)),
    ]
    grid = Grid.from_spacing(SHAPE, (0.5, 0.5))
    reference = InstanceSet.from_dense(grid, masks)
    predicted = InstanceSet.from_dense(grid, [masks[4], block(SHAPE, (14, 14), (16, 16))])
    rows = evaluate_instances(predicted, reference)
    found = instance_strata([(reference, rows)])
    assert [r.status for r in rows] == ["tp", "fn", "fn", "fn", "fn", "fp"]
    assert [f["crowding"] for f in found] == [
        "apart", "touching", "touching", "touching", "apart", "no reference",
    ]  # fmt: skip
    assert [f["occlusion"] for f in found] == [
        "whole", "overlapped", "overlapped", "whole", "in pieces", "no reference",
    ]  # fmt: skip
    assert found[1]["size"].startswith("large")
    assert found[5]["size"].startswith("small")


def test_only_what_is_wanted_and_nothing_for_nothing():
    empty = InstanceSet.empty(Grid.from_spacing(SHAPE, (0.5, 0.5)))
    rows = evaluate_instances(empty, empty)
    assert instance_strata([(empty, rows)], names=("crowding", "stain")) == [{"crowding": "no reference"}]
    assert instance_strata([]) == []

"""Instance tables: numbers worked by hand, and no millimetre where there is none."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from clearmargin.core import (
    Code,
    Grid,
    InstanceSet,
    LabelClass,
    LabelMap,
    Mask,
    Prediction,
    Provenance,
    Source,
)
from clearmargin.report.tables import instance_rows, write_rows_csv, write_rows_json

TUMOUR = Code(value="108369006", scheme="SCT", meaning="Neoplasm")
LABELS = LabelMap((LabelClass(id=1, name="tumour", type=TUMOUR, category=TUMOUR),))
MADE_BY = Provenance(model="", weights_sha256="", config_sha256="", software="")


def _prediction(grid: Grid, *boxes: tuple[slice, ...]) -> Prediction:
    masks = []
    for box in boxes:
        dense = np.zeros(grid.shape, bool)
        dense[box] = True
        masks.append(Mask.from_dense(dense))
    n = len(masks)
    instances = InstanceSet(
        grid=grid,
        masks=tuple(masks),
        labels=np.ones(n, np.int64),
        scores=np.full(n, 0.75, np.float32),
        uncertainty={"mean_entropy": np.linspace(0.125, 0.25, n, dtype=np.float32)},
    )
    return Prediction(instances=instances, label_map=LABELS, provenance=MADE_BY)


def _volume_grid() -> Grid:
    """Slices 5 mm apart, pixels 2 x 1 mm, the first voxel at (10, 20, 30)."""
    affine = Grid.from_spacing((4, 5, 6), (5.0, 2.0, 1.0)).affine.copy()
    affine[:3, 3] = (10, 20, 30)
    return Grid(shape=(4, 5, 6), affine=affine, unit="mm")


def test_a_box_of_twelve_voxels_by_hand() -> None:
    prediction = _prediction(_volume_grid(), (slice(1, 3), slice(0, 2), slice(2, 5)))
    (row,) = instance_rows(Source(case="case-1"), prediction)
    assert row == {
        "case": "case-1",
        "instance": 1,
        "label": 1,
        "name": "tumour",
        "code": "108369006 SCT",
        "score": 0.75,
        "volume_voxels": 12,
        "volume_mm3": 120.0,
        "long_axis_mm": 5.0,
        "short_axis_mm": 3.75,
        "z_first": 1,
        "z_last": 2,
        "y_first": 0,
        "y_last": 1,
        "x_first": 2,
        "x_last": 4,
        "centroid_x_mm": 13.0,
        "centroid_y_mm": 21.0,
        "centroid_z_mm": 37.5,
        "mean_entropy": 0.125,
    }


def test_a_picture_without_spacing_has_no_millimetres() -> None:
    prediction = _prediction(Grid.from_spacing((4, 5)), (slice(1, 3), slice(2, 3)))
    (row,) = instance_rows(Source(case="c", frame=7, time_s=0.28), prediction)
    assert not [name for name in row if "mm" in name]
    assert row["area_px"] == 2 and row["centroid_y_px"] == 1.5 and row["centroid_x_px"] == 2.0
    assert row["long_axis_px"] == pytest.approx(5**0.5, rel=1e-5)
    assert row["frame"] == 7 and row["time_s"] == 0.28


def test_a_picture_in_millimetres_has_an_area() -> None:
    prediction = _prediction(Grid.from_spacing((4, 5), (0.5, 0.5)), (slice(0, 2), slice(0, 2)))
    (row,) = instance_rows(Source(), prediction)
    assert row["area_mm2"] == 1.0 and row["area_px"] == 4 and "volume_mm3" not in row


def test_an_empty_mask_has_no_place() -> None:
    prediction = _prediction(_volume_grid(), (slice(0, 0),))
    (row,) = instance_rows(Source(), prediction)
    assert row["volume_mm3"] == 0.0 and row["z_first"] is None and row["centroid_x_mm"] is None


def test_files_read_back_and_mixed_grids_leave_cells_empty(tmp_path: Path) -> None:
    volume = _prediction(_volume_grid(), (slice(0, 1),) * 3, (slice(1, 2),) * 3)
    picture = _prediction(Grid.from_spacing((4, 5)), (slice(0, 1),) * 2)
    written = instance_rows(Source(case="a"), volume) + instance_rows(Source(case="b", frame=0), picture)
    write_rows_csv(tmp_path / "new" / "i.csv", written)
    with (tmp_path / "new" / "i.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [r["case"] for r in rows] == ["a", "a", "b"]
    assert list(rows[0])[:3] == ["case", "instance", "label"]
    assert rows[2]["volume_mm3"] == "" and rows[2]["frame"] == "0" and rows[0]["volume_mm3"] == "10.0"
    write_rows_json(tmp_path / "i.json", written)
    assert json.loads((tmp_path / "i.json").read_text()) == written
    assert not list(tmp_path.glob("**/.*"))


def test_nothing_found_is_a_header_and_an_empty_list(tmp_path: Path) -> None:
    rows = instance_rows(Source(), _prediction(_volume_grid()))
    write_rows_csv(tmp_path / "i.csv", rows)
    assert (tmp_path / "i.csv").read_text() == "case,instance,label,name,code,score\n"
    write_rows_json(tmp_path / "i.json", rows)
    assert json.loads((tmp_path / "i.json").read_text()) == []


def test_a_score_is_written_as_it_was_meant() -> None:
    prediction = _prediction(_volume_grid(), (slice(0, 1),) * 3)
    assert instance_rows(Source(), prediction)[0]["score"] == pytest.approx(0.75)

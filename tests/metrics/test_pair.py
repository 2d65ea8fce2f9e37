"""Empty cases, refusals and units."""

import math

import numpy as np
import pytest

from clearmargin.core import Grid, Mask
from clearmargin.errors import ConfigError, GeometryError, InputError
from clearmargin.metrics import METRICS, MaskPair, measure_pair
from clearmargin.metrics.measurement import OF_ONE_SIZE

from .shapes import block

SHAPE = (6, 8, 10)
EMPTY = np.zeros(SHAPE, bool)
FULL = block(SHAPE, (1, 1, 1), (5, 6, 7))
DIAGONAL = math.hypot(6 * 2.0, 8.0, 10.0)
EXTRA = {"tolerances": [1.0], "bands": [2.0], "trimaps": [2.0]}

WRITTEN = {  # name: both empty, false negative, false positive
    "dice": (1, 0, 0),
    "iou": (1, 0, 0),
    "precision": (1, 0, 0),
    "recall": (1, 0, 0),
    "hausdorff": (0, DIAGONAL, DIAGONAL),
    "hd95": (0, DIAGONAL, DIAGONAL),
    "assd": (0, DIAGONAL, DIAGONAL),
    "masd": (0, DIAGONAL, DIAGONAL),
    "surface_bias": (0, -DIAGONAL, DIAGONAL),
    "volume_error": (0, -240, 240),
    "relative_volume_error": (0, -1, 1),
    "diameter_error": (0, -math.hypot(8, 5, 6), math.hypot(8, 5, 6)),
    "centroid_error": (0, DIAGONAL, DIAGONAL),
    "nsd_1mm": (1, 0, 0),
    "boundary_iou_2mm": (1, 0, 0),
    "trimap_iou_2mm": (1, 0, 0),
}


@pytest.mark.parametrize(
    ("case", "predicted", "reference", "status"),
    [(0, EMPTY, EMPTY, "tn"), (1, EMPTY, FULL, "fn"), (2, FULL, EMPTY, "fp")],
)
def test_every_empty_case_has_its_written_value(case, predicted, reference, status):
    found = measure_pair(predicted, reference, spacing=(2, 1, 1), **EXTRA)
    assert found.status == status
    assert dict(found.values) == pytest.approx({name: values[case] for name, values in WRITTEN.items()})
    assert set(OF_ONE_SIZE) <= set(WRITTEN)


def test_the_cap_is_what_a_miss_counts_and_the_most_a_distance_counts():
    far = block(SHAPE, (0, 0, 0), (1, 1, 1)), block(SHAPE, (5, 7, 9), (6, 8, 10))
    names = ("hausdorff", "hd95", "assd", "masd", "centroid_error")
    assert all(measure_pair(*far, distance_cap=3.0, metrics=names)[n] == 3 for n in names)
    assert all(measure_pair(EMPTY, FULL, distance_cap=3.0, metrics=names)[n] == 3 for n in names)


def test_an_object_inside_the_ignored_region_is_a_true_negative():
    found = measure_pair(EMPTY, FULL, ignore=np.ones(SHAPE, bool))
    assert found.status == "tn"
    assert found["dice"] == 1


def test_missing_spacing_is_px_everywhere():
    found = measure_pair(FULL, FULL, **EXTRA)
    assert found.unit == "px"
    assert not any("mm" in name for name in found.values)


@pytest.mark.parametrize(
    ("predicted", "message"),
    [
        (np.zeros(SHAPE), "threshold it first"),
        (np.full(SHAPE, 3), "expected a mask of 0 and 1"),
        (np.zeros((6, 8)), "shape|threshold"),
        (np.zeros((6, 8), bool), "resample"),
        (np.zeros((1, *SHAPE), bool), "drop or split"),
    ],
)
def test_what_is_no_mask_is_refused_with_the_way_out(predicted, message):
    with pytest.raises(InputError, match=message):
        measure_pair(predicted, FULL)


@pytest.mark.parametrize("spacing", [(1, 1), (1, 1, 0), (1, -1, 1)])
def test_spacing_that_does_not_fit_is_refused(spacing):
    with pytest.raises(InputError, match="one positive number per axis"):
        measure_pair(FULL, FULL, spacing=spacing)


def test_an_unknown_metric_names_the_nearest():
    with pytest.raises(ConfigError, match="did you mean 'hd95'"):
        measure_pair(FULL, FULL, metrics=["hd_95"])


def test_a_sheared_grid_is_refused():
    affine = np.eye(4)
    affine[1, 0] = 0.3
    grid = Grid(shape=SHAPE, affine=affine, unit="mm")
    with pytest.raises(GeometryError, match="resample"):
        MaskPair.from_masks(Mask.from_dense(FULL), Mask.from_dense(FULL), grid)


def test_crops_and_arrays_give_the_same():
    grid = Grid.from_spacing(SHAPE, (2, 1, 1))
    other = block(SHAPE, (2, 2, 2), (6, 8, 9))
    by_mask = MaskPair.from_masks(Mask.from_dense(other), Mask.from_dense(FULL), grid)
    by_array = MaskPair.from_arrays(other, FULL, (2, 1, 1))
    for metric in METRICS.values():
        length = (1.0,) if metric.width else ()
        assert metric.function(by_mask, *length) == metric.function(by_array, *length)


def test_uint8_and_integer_masks_are_masks():
    assert measure_pair(FULL.astype(np.uint8), FULL.astype(np.int32))["dice"] == 1


def test_memory_layout_does_not_matter():
    assert measure_pair(np.asfortranarray(FULL), FULL[::-1][::-1])["dice"] == 1

"""What is public is documented, and importing the metrics stays light."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from clearmargin import metrics
from clearmargin.errors import ConfigError
from clearmargin.metrics import (
    METRICS,
    SET_METRICS,
    MeasurementProtocol,
    measure_pair,
    metric_of,
    metric_title,
)

from .shapes import ball

DOCS = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text(encoding="utf-8")


def test_every_metric_is_defined_in_the_documentation():
    missing = [name for name in METRICS if f"`{name}`" not in DOCS and f"`{name}_" not in DOCS]
    assert not missing


def test_every_metric_names_its_source_and_its_empty_case():
    for metric in METRICS.values():
        text = " ".join((metric.function.__doc__ or "").split())
        assert "Source:" in text
        assert "Both empty" in text


def test_all_names_exist_and_are_sorted():
    assert all(hasattr(metrics, name) for name in metrics.__all__)


def test_importing_the_metrics_imports_nothing_heavy():
    heavy = ("numba", "scipy", "hotcoco", "skimage", "torch")
    code = f"import sys, clearmargin.metrics; print([m for m in {heavy} if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True,
                           env={"PYTHONPATH": str(Path(metrics.__file__).parents[2])})  # fmt: skip
    assert found.stdout.strip() == "[]"


@pytest.mark.parametrize("name", METRICS)
def test_better_says_which_way_is_better(name):
    """Growing a ball by more and more makes every metric worse, by its own word."""
    shape, spacing = (24, 24, 24), (1.0, 1.0, 1.0)
    reference = ball(shape, (11, 11, 11), 6, spacing)
    column = f"{name}_1mm" if METRICS[name].width else name
    values = [
        measure_pair(
            ball(shape, (11 + (r - 6) / 2, 11, 11), r, spacing),
            reference,
            spacing=spacing,
            bands=[1.0],
            trimaps=[1.0],
        )[column]
        for r in (6, 7, 9)
    ]
    rule = {"higher": lambda v: -v, "lower": lambda v: v, "zero": abs}[METRICS[name].better]
    badness = [rule(v) for v in values]
    assert badness == sorted(badness)
    assert badness[0] < badness[-1] or name == "recall"  # a larger ball misses nothing
    assert badness == [METRICS[name].cost(v) for v in values]


def test_every_number_that_a_verb_writes_is_in_a_table():
    """By its own name, with a length, a class, or an IoU; another name is no metric."""
    for name in (
        *METRICS,
        *SET_METRICS,
        "nsd_0.5px",
        "boundary_iou_1e-05mm",
        "ap50/grasper",
        "precision@0.5",
    ):
        assert metric_of(name) is not None, name
    assert metric_of("reference_id") is None and metric_of("nsd_2cm") is None
    assert metric_title("trimap_iou_1.5px") == "Trimap IoU at 1.5 px"


def test_a_metric_with_a_length_says_which_option_lists_the_lengths():
    with pytest.raises(ConfigError, match="NSD is measured at lengths, which tolerances lists"):
        MeasurementProtocol(metrics=("dice", "nsd_2mm"))
    with pytest.raises(ConfigError, match="did you mean 'hd95'"):
        MeasurementProtocol(metrics=("hd96",))


def test_an_unknown_surface_model_names_the_nearest():
    with pytest.raises(ConfigError, match="did you mean 'subvoxel'"):
        MeasurementProtocol(surface="subvoxels")


def test_models_differ_on_curved_shapes_and_both_are_finite():
    shape, spacing = (24, 24, 24), (1.0, 1.0, 1.0)
    pair = ball(shape, (11, 11, 11), 8, spacing), ball(shape, (11, 11, 11), 6, spacing)
    default = measure_pair(*pair, spacing=spacing)
    smooth = measure_pair(*pair, spacing=spacing, surface_model="subvoxel")
    assert abs(smooth["assd"] - 2) < 0.15
    assert abs(default["assd"] - 2) > 0.3
    assert all(np.isfinite(v) for v in (*default.values.values(), *smooth.values.values()))
    assert default["dice"] == smooth["dice"]

"""What is public is documented, and importing the metrics stays light."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from clearmargin import metrics
from clearmargin.errors import ConfigError
from clearmargin.metrics import METRICS, Protocol, measure_pair

from .shapes import ball

DOCS = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text(encoding="utf-8")


def test_every_metric_is_defined_in_the_documentation():
    missing = [name for name in METRICS if f"`{name}`" not in DOCS]
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
    values = [
        measure_pair(ball(shape, (11 + (r - 6) / 2, 11, 11), r, spacing), reference, spacing=spacing)[name]
        for r in (6, 7, 9)
    ]
    rule = {"higher": lambda v: -v, "lower": lambda v: v, "zero": abs}[METRICS[name].better]
    badness = [rule(v) for v in values]
    assert badness == sorted(badness)


def test_an_unknown_surface_model_names_the_nearest():
    with pytest.raises(ConfigError, match="did you mean 'subvoxel'"):
        Protocol(surface="subvoxels")


def test_models_differ_on_curved_shapes_and_both_are_finite():
    shape, spacing = (24, 24, 24), (1.0, 1.0, 1.0)
    pair = ball(shape, (11, 11, 11), 8, spacing), ball(shape, (11, 11, 11), 6, spacing)
    default = measure_pair(*pair, spacing=spacing)
    smooth = measure_pair(*pair, spacing=spacing, surface_model="subvoxel")
    assert abs(smooth["assd"] - 2) < 0.15
    assert abs(default["assd"] - 2) > 0.3
    assert all(np.isfinite(v) for v in (*default.values.values(), *smooth.values.values()))
    assert default["dice"] == smooth["dice"]

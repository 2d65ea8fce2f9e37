"""Write surface_conventions.json: what other tools say of the pairs in tests/metrics/cases.py.

Run from the repository's root, with the tools installed beside clearmargin's dependencies:

    python tests/golden/surface_conventions.py

A tool that cannot be imported keeps the numbers it has.
"""

from __future__ import annotations

import json
import sys
import warnings
from importlib import import_module
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.metrics.cases import golden_pairs

TARGET = Path(__file__).with_suffix(".json")
TOLERANCE = 1.0


def monai(predicted, reference, spacing):
    import torch
    from monai.metrics import (
        compute_average_surface_distance,
        compute_hausdorff_distance,
        compute_surface_dice,
    )

    a, b = (torch.as_tensor(m[None, None].astype(np.float32)) for m in (predicted, reference))
    step = list(spacing)
    return {
        "hausdorff": compute_hausdorff_distance(a, b, include_background=True, spacing=step).item(),
        "hd95": compute_hausdorff_distance(a, b, include_background=True, percentile=95, spacing=step).item(),
        "asd": compute_average_surface_distance(a, b, include_background=True, spacing=step).item(),
        "assd": compute_average_surface_distance(
            a, b, include_background=True, symmetric=True, spacing=step
        ).item(),
        "nsd": compute_surface_dice(a, b, [TOLERANCE], include_background=True, spacing=step).item(),
    }


def medpy(predicted, reference, spacing):
    from medpy.metric import binary

    names = {"hausdorff": "hd", "hd95": "hd95", "asd": "asd", "assd": "assd"}
    return {name: float(getattr(binary, f)(predicted, reference, spacing)) for name, f in names.items()}


def metrics_reloaded(predicted, reference, spacing):
    from MetricsReloaded.metrics.pairwise_measures import BinaryPairwiseMeasures

    found = BinaryPairwiseMeasures(
        predicted.astype(int), reference.astype(int), pixdim=list(spacing), dict_args={"nsd": TOLERANCE}
    )
    return {
        "hausdorff": float(found.measured_hausdorff_distance()),
        "hd95": float(found.measured_hausdorff_distance_perc()),
        "assd": float(found.measured_average_distance()),
        "masd": float(found.measured_masd()),
        "nsd": float(found.normalised_surface_distance()),
    }


def surface_distance(predicted, reference, spacing):
    import surface_distance as tool

    found = tool.compute_surface_distances(reference, predicted, spacing)
    return {
        "hausdorff": float(tool.compute_robust_hausdorff(found, 100)),
        "hd95": float(tool.compute_robust_hausdorff(found, 95)),
        "masd": float(np.mean(tool.compute_average_surface_distance(found))),
        "nsd": float(tool.compute_surface_dice_at_tolerance(found, TOLERANCE)),
    }


def main() -> None:
    kept = json.loads(TARGET.read_text()) if TARGET.exists() else {"tolerance": TOLERANCE, "tools": {}}
    for module, tool in (("monai", monai), ("medpy", medpy), ("MetricsReloaded", metrics_reloaded),
                         ("surface_distance", surface_distance)):  # fmt: skip
        try:
            loaded = import_module(module)
        except ImportError:
            continue
        from importlib.metadata import PackageNotFoundError, version

        try:
            number = version(module.replace("_", "-"))
        except PackageNotFoundError:
            number = str(getattr(loaded, "__version__", "unknown"))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            values = {name: tool(*pair) for name, pair in golden_pairs().items()}
        kept["tools"][tool.__name__] = {
            "version": number,
            "command": "python tests/golden/surface_conventions.py",
            "values": values,
        }
    TARGET.write_text(json.dumps(kept, indent=1) + "\n")


if __name__ == "__main__":
    main()

"""How far heat maps are off on phantoms whose points are known exactly, in the plane and in space.

    PYTHONPATH=tests python benchmarks/landmark_phantoms.py

Discs in pictures and balls in volumes of 2 x 1 x 1 mm, noise on both, at places between the pixels. A network is
trained for 250 steps on 30 of them and finds the points of 40 others. Printed: the bias (mean signed error) along each
axis in pixels, and the radial error.
"""

import tempfile
from pathlib import Path

import numpy as np
import yaml
from landmarks import write_points_set, write_volume_points_set

from clearmargin.datasets.cases import open_dataset
from clearmargin.models import load_segmenter
from clearmargin.train import train

SPLITS = ("train",) * 30 + ("validation",) * 2 + ("test",) * 40
MODELS = {
    "discs, heatmap": {"network": "heatmap", "fpn_channels": 16, "sigma": 3.0},
    "balls, heatmap_3d": {
        "network": "heatmap_3d", "filters": 8, "levels": 3, "patch": [16, 32, 32], "sigma_mm": 2.0,
    },
}  # fmt: skip


def learnt(folder, card, model):
    """Train and return the segmenter."""
    flat = model["network"] == "heatmap"
    experiment = {
        "name": model["network"],
        "card": str(card),
        "model": model,
        "image": {"intensity": {"kind": "window", "low": 0, "high": 255}}
        | ({"crop": [96, 128]} if flat else {"channels": 1}),
        # mirrors would be exact whatever the network does
        "augment": {"flip_x": False, "flip_y": False, "rotate90": False, "rotate_degrees": 5, "scale": 1.1},
        "training": {
            "epochs": 5, "steps_per_epoch": 50, "learning_rate": 3e-3, "workers": 0, "threads": 1, "snapshots": 0,
            "validate_every": 5,
        },
    }  # fmt: skip
    (folder / "experiment.yaml").write_text(yaml.safe_dump(experiment))
    return load_segmenter(train(folder / "experiment.yaml", runs=folder / "runs", track=False).model)


def main():
    for name, model in MODELS.items():
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch)
            card = (
                write_points_set(folder / "data", SPLITS)
                if model["network"] == "heatmap"
                else write_volume_points_set(folder / "data", SPLITS, exact=True)
            )
            segmenter, dataset = learnt(folder, card, model), open_dataset(card)
            errors, missed, world = [], 0, []
            for case in dataset.split("test"):
                image, reference = dataset.read(case)
                found, truth = segmenter(image).instances.landmarks, reference.landmarks
                for i, k in np.argwhere(truth.visible > 0):
                    rows = np.flatnonzero(found.visible[:, k])
                    missed += not len(rows)
                    for row in rows[:1]:
                        errors.append(found.points[row, k] - truth.points[i, k])
                        world.append(errors[-1] * image.grid.spacing)
            bias = ", ".join(f"{v:+.3f}" for v in np.mean(errors, axis=0))
            spread = np.std(errors, axis=0).max() / np.sqrt(len(errors))
            radial = np.linalg.norm(world, axis=1)
            print(
                f"{name}: {len(errors)} points, {missed} missed; bias {bias} px (standard error {spread:.3f}); "
                f"radial error {radial.mean():.3f} {image.grid.unit} (95 % within {np.quantile(radial, 0.95):.3f})",
                flush=True,
            )


if __name__ == "__main__":
    main()

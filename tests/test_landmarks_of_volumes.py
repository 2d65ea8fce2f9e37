"""Landmarks of volumes through the verbs, on balls whose label map says where they are."""

import csv
import json

import numpy as np
import pytest
import yaml
from landmarks import SPACING, write_volume_points_set

from clearmargin.core import Grid, Image
from clearmargin.datasets.cases import open_dataset
from clearmargin.errors import ConfigError, InputError
from clearmargin.evaluate import evaluate, render
from clearmargin.export import export
from clearmargin.formats.markups import read_markups
from clearmargin.models import load_segmenter
from clearmargin.plan import plan
from clearmargin.predict import predict
from clearmargin.train import train

MODEL = {
    "network": "heatmap_3d", "filters": 8, "levels": 3, "patch": [16, 32, 32], "sigma_mm": 2.0, "overlap": 0.25,
}  # fmt: skip


def experiment(folder, card, **training):
    settings = {
        "name": "balls",
        "card": str(card),
        "model": MODEL,
        "image": {"intensity": {"kind": "window", "low": 0, "high": 255}, "channels": 1},
        "augment": {"rotate_degrees": 0, "scale": 1.05, "flip_x": False, "flip_y": False, "rotate90": False},
        "training": {
            "epochs": 2, "steps_per_epoch": 3, "warmup_steps": 2, "workers": 0, "threads": 1, "snapshots": 2,
            **training,
        },
        "prediction": {"score_threshold": 0.0},
    }  # fmt: skip
    (folder / "balls.yaml").write_text(yaml.safe_dump(settings))
    return folder / "balls.yaml"


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("balls")
    card = write_volume_points_set(folder / "data")
    return card, train(experiment(folder, card), runs=folder / "runs").model


def test_a_plan_of_volumes_with_landmarks(tmp_path):
    card = write_volume_points_set(tmp_path / "data")
    done = plan(card)
    model = done.experiment.model
    assert model["network"] == "heatmap_3d" and model["sigma_mm"] == 2.0 and model["most"] == 1
    assert "--network semantic_cc_3d" in done.reasons["model.network"]
    assert plan(card, network="semantic_cc_3d").experiment.model["network"] == "semantic_cc_3d"
    with pytest.raises(ConfigError, match="heatmap_3d sees them"):
        plan(card, network="heatmap")


def test_evaluate_measures_points_in_mm_and_no_masks(trained, tmp_path):
    card, model = trained
    found = evaluate(model, card, out=tmp_path / "out", track=False)
    assert found.numbers["landmarks/tp"] + found.numbers["landmarks/fn"] == 3
    assert found.unit == "mm" and found.rows == () and "ap50" not in found.numbers
    assert "radial error, mean [95 %] (mm)" in render(found)
    sampled = evaluate(model, card, uncertainty="checkpoints", track=False)
    assert sampled.numbers["landmarks/tp"] + sampled.numbers["landmarks/fn"] == 3


def test_predict_writes_points_on_the_volumes_grid(trained, tmp_path):
    card, model = trained
    predict(card.parent / "v5.nii.gz", tmp_path / "out", model=model, write=("landmarks", "overlay"))
    (table,) = (tmp_path / "out").rglob("landmarks.csv")
    rows = list(csv.DictReader(table.read_text().splitlines()))
    (lists,) = (tmp_path / "out").rglob("landmarks.mrk.json")
    assert len(rows) == 3 and list((tmp_path / "out").rglob("*.png"))
    image, _ = open_dataset(card).read(open_dataset(card).split("test")[0])
    for row, (point,) in zip(rows, [[p] for one in read_markups(lists) for p in one], strict=True):
        at = [float(row[axis]) for axis in "zyx"]
        world = image.grid.to_world(np.array(at))
        assert [float(row[f"{axis}_mm"]) for axis in "xyz"] == pytest.approx(world, abs=0.01)
        assert point.position == pytest.approx(world, abs=0.01)
        assert 0 < float(row["sd_minor_mm"]) <= float(row["sd_major_mm"])


def test_an_export_finds_the_same_points(trained):
    card, model = trained
    done = export(model, card, format="onnx")
    stated = json.loads((done.folder / "parity.json").read_text())
    assert stated["points"] > 0 and stated["moved"] < 0.02 and stated["lost"] == 0
    with pytest.raises(ConfigError, match="a bundle gives masks"):
        export(model, card, format="bundle")


def test_a_width_in_mm_needs_a_spacing_and_a_volume_is_needed(trained):
    segmenter = load_segmenter(trained[1])
    volume = Image(pixels=np.zeros((1, 16, 32, 32), np.uint8), grid=Grid.from_spacing((16, 32, 32)))
    with pytest.raises(InputError, match="give it one, or train with"):
        segmenter(volume)
    with pytest.raises(InputError, match="is a picture"):
        segmenter(Image(pixels=np.zeros((1, 32, 32), np.uint8), grid=Grid.from_spacing((32, 32))))


@pytest.mark.slow
def test_centres_are_learnt_to_a_fraction_of_a_voxel(tmp_path):
    card = write_volume_points_set(
        tmp_path / "data", splits=("train",) * 24 + ("validation",) * 4 + ("test",) * 12
    )
    config = experiment(tmp_path, card, epochs=8, steps_per_epoch=25, learning_rate=3e-3)
    model = train(
        config, overrides=["prediction.score_threshold=0.5"], runs=tmp_path / "runs", track=False
    ).model
    segmenter, dataset = load_segmenter(model), open_dataset(card)
    errors = []
    for case in dataset.split("test"):
        image, reference = dataset.read(case)
        found = segmenter(image).instances.landmarks
        for k in range(2):  # the centres; an end jumps by a slice
            (row,) = np.flatnonzero(found.visible[:, k])
            errors.append((found.points[row, k] - reference.landmarks.points[0, k]) * SPACING)
    assert np.linalg.norm(errors, axis=1).mean() < 0.8
    assert np.abs(np.mean(errors, axis=0)).max() < 0.25

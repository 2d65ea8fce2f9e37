"""Landmarks through the verbs: plan, train, evaluate, predict, on pictures whose points are known."""

import csv
import json

import numpy as np
import pytest
import yaml
from landmarks import TYPES, write_points_set

from clearmargin.calibrate import calibrate
from clearmargin.core import Landmarks
from clearmargin.crossvalidate import crossvalidate
from clearmargin.errors import ConfigError
from clearmargin.evaluate import evaluate, render
from clearmargin.export import export
from clearmargin.models.parity import compare_points
from clearmargin.plan import plan
from clearmargin.predict import predict
from clearmargin.selecting import select
from clearmargin.train import train


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("points")
    card = write_points_set(folder / "data")
    experiment = {
        "name": "points",
        "card": str(card),
        "model": {"network": "heatmap", "fpn_channels": 16, "separable": True},
        "image": {"intensity": {"kind": "window", "low": 0, "high": 255}, "crop": [64, 96]},
        "training": {
            "epochs": 2, "steps_per_epoch": 3, "warmup_steps": 2, "workers": 0, "threads": 1, "snapshots": 2,
        },
        "prediction": {"score_threshold": 0.0},
    }  # fmt: skip
    (folder / "points.yaml").write_text(yaml.safe_dump(experiment))
    return card, train(folder / "points.yaml", runs=folder / "runs").model


def test_a_plan_of_landmarks_is_a_heat_map(tmp_path):
    card = write_points_set(tmp_path / "data")
    done = plan(card)
    assert done.experiment.model["network"] == "heatmap" and done.experiment.model["most"] == 1
    assert done.experiment.training.early_stopping is None
    with pytest.raises(ConfigError, match="the card has no masks; heatmap can"):
        plan(card, network="mask_rcnn")


def test_evaluate_counts_every_point(trained, tmp_path):
    card, model = trained
    found = evaluate(model, card, out=tmp_path / "out", track=False)
    rows = list(csv.DictReader((tmp_path / "out" / "landmark_rows.csv").read_text().splitlines()))
    references = list(csv.DictReader((card.parent / "points.csv").read_text().splitlines()))
    expected = sum(r["case"] == "p8" for r in references)
    assert found.numbers["landmarks/tp"] + found.numbers["landmarks/fn"] == expected
    assert len(rows) == expected + found.numbers["landmarks/fp"]
    assert "radial error, mean" in render(found) and "ap50" not in found.numbers
    strata = list(csv.DictReader((tmp_path / "out" / "landmarks.csv").read_text().splitlines()))
    assert {s["stratum"] for s in strata} >= {"all", "point = left", "point = right"}
    assert json.loads((tmp_path / "out" / "numbers.json").read_text())["numbers"]["landmarks/tp"] >= 0
    assert (tmp_path / "out" / "report.html").is_file()


def test_predict_writes_points_of_the_picture(trained, tmp_path):
    card, model = trained
    (done,) = predict(card.parent / "p8.png", tmp_path / "out", model=model).done
    (table,) = (tmp_path / "out").rglob("landmarks.csv")
    rows = list(csv.DictReader(table.read_text().splitlines()))
    assert done.by_class == {
        "disc": 0, **{name: sum(r["point"] == name for r in rows) for name in ("left", "right", "tip")}
    }  # fmt: skip
    for row in rows:
        assert -0.5 <= float(row["y"]) <= 95.5 and -0.5 <= float(row["x"]) <= 127.5
        assert 0 <= float(row["score"]) <= 1
    assert {row["point"] for row in rows} <= {"left", "right", "tip"}
    assert np.isfinite([float(row["sd_major_px"]) for row in rows]).all()


def test_samples_of_landmarks_are_measured(trained):
    card, model = trained
    alone = evaluate(model, card, track=False)
    for mode in ("tta", "checkpoints"):
        found = evaluate(model, card, uncertainty=mode, track=False)
        references = [found.numbers[f"landmarks/{s}"] for s in ("tp", "fn")]
        assert sum(references) == alone.numbers["landmarks/tp"] + alone.numbers["landmarks/fn"]
    with pytest.raises(ConfigError, match="without dropout"):
        evaluate(model, card, uncertainty="dropout", track=False)


def test_an_export_finds_the_same_points(trained):
    card, model = trained
    done = export(model, card, format="onnx")
    assert done.parity.points > 0 and done.parity.lost == 0 and done.parity.moved < 0.02
    assert done.parity.instances == 0
    with pytest.raises(ConfigError, match="a bundle gives masks"):
        export(model, card, format="bundle")


def test_an_export_that_moves_points_is_refused():
    one, two = (Landmarks.of(TYPES, [[at, at, at]], [[2, 0, 1]]) for at in ((5.0, 6.0), (5.0, 6.5)))
    moved = compare_points(one, two, floor=0.5)
    assert moved.points == 2 and moved.moved == 0.5 and moved.problems == ("moved 0.5 (at most 0.02)",)
    missing = compare_points(one, two.at_least(1.0).only(np.array([[True, False, False]])), floor=0.5)
    assert missing.lost == 1 and missing.points == 1
    assert compare_points(None, None, floor=0.5).problems == ()


@pytest.mark.slow
def test_select_compares_success_of_landmarks(trained, tmp_path):
    card, model = trained
    done = select(
        [model], card, budget_ms=1e6, metric="success@40px", out=tmp_path / "out", cases=1, track=False
    )
    assert done.chosen and done.metric == "success_40px"
    assert all(0 <= one.interval.estimate <= 1 for one in done.candidates)
    with pytest.raises(ConfigError, match="no metric 'success_2mm'"):
        select([model], card, budget_ms=1e6, metric="success@2mm", track=False)


@pytest.mark.slow
def test_crossvalidation_pools_the_points_of_all_folds(trained, tmp_path):
    card = trained[0]
    done = crossvalidate(card.parents[1] / "points.yaml", folds=2, runs=tmp_path, track=False)
    strata = list(csv.DictReader((done.folder / "landmarks.csv").read_text().splitlines()))
    held = sum(one["landmarks/tp"] + one["landmarks/fn"] for one in done.numbers.values())
    assert int(strata[0]["tp"]) + int(strata[0]["fn"]) == held
    assert not (done.folder / "pooled.csv").exists() and done.pooled == ()
    found = evaluate(done.folder, card, uncertainty="ensemble", track=False)
    assert found.points


def test_what_is_not_for_landmarks_is_refused(trained):
    card, model = trained
    with pytest.raises(ConfigError, match="margins are of masks"):
        calibrate(model, card, track=False)
    text = card.read_text().replace("- name: tip", "- name: apex")
    (card.parent / "other.yaml").write_text(text)
    with pytest.raises(ConfigError, match="the model knows the points left, right, tip"):
        evaluate(model, card.parent / "other.yaml", track=False)

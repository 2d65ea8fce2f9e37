"""Landmarks through the verbs: plan, train, evaluate, predict, on pictures whose points are known."""

import csv
import json
import shutil

import numpy as np
import pytest
import yaml
from landmarks import TYPES, write_points_set

from clearmargin.calibrate import calibrate, render_calibration
from clearmargin.core import Landmarks
from clearmargin.crossvalidate import crossvalidate
from clearmargin.errors import ConfigError
from clearmargin.evaluate import evaluate, render
from clearmargin.export import export
from clearmargin.formats import read_image
from clearmargin.formats.video import video_writer
from clearmargin.margins.calibration import load_calibration
from clearmargin.models.parity import compare_points
from clearmargin.outputs.folder import read_case, read_clip
from clearmargin.plan import plan
from clearmargin.predict import predict
from clearmargin.selecting import select
from clearmargin.train import train


def write_experiment(file, card, **training):
    """Write the configuration of a small network of landmarks, of two epochs."""
    experiment = {
        "name": file.stem,
        "card": str(card),
        "model": {"network": "heatmap", "fpn_channels": 16, "separable": True},
        "image": {"intensity": {"kind": "window", "low": 0, "high": 255}, "crop": [64, 96]},
        "training": {"epochs": 2, "warmup_steps": 2, "workers": 0, "threads": 1} | training,
    }
    file.write_text(yaml.safe_dump(experiment))
    return file


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("points")
    card = write_points_set(folder / "data")
    config = write_experiment(folder / "points.yaml", card, steps_per_epoch=3, snapshots=2)
    content = yaml.safe_load(config.read_text()) | {"prediction": {"score_threshold": 0.0}}
    config.write_text(yaml.safe_dump(content))
    return card, train(config, runs=folder / "runs").model


def test_a_plan_of_landmarks_is_a_heat_map(tmp_path):
    card = write_points_set(tmp_path / "data")
    done = plan(card)
    assert done.experiment.model["network"] == "heatmap" and done.experiment.model["most"] == 1
    assert done.experiment.training.early_stopping.metric == "landmark_quality"
    with pytest.raises(ConfigError, match="the card has no masks; heatmap can"):
        plan(card, network="mask_rcnn")


def test_the_threshold_of_landmarks_is_chosen_on_the_validation_split(tmp_path, caplog):
    """It is the model's: evaluating with it named gives the same numbers, and no other one a better quality."""
    card = write_points_set(tmp_path / "data", ("train",) * 4 + ("validation",) * 5)
    stopping = {"metric": "landmark_quality", "patience": 9}
    config = write_experiment(
        tmp_path / "chosen.yaml", card, steps_per_epoch=12, learning_rate=0.005, early_stopping=stopping
    )
    with caplog.at_level("INFO"):
        model = train(config, runs=tmp_path / "runs", track=False).model
    saved = yaml.safe_load((model / "model.yaml").read_text())["prediction"]
    threshold = saved["landmark_threshold"]
    assert 0 < threshold < 0.5 and saved["score_threshold"] is None
    assert f"best for landmark_quality on 5 validation cases: {threshold:g}" in caplog.text

    def quality(score_threshold):
        done = evaluate(model, card=card, split="validation", score_threshold=score_threshold, track=False)
        rows = done.points
        near = [max(0.0, 1 - r.error / 20) for r in rows if r.status == "tp" and r.error <= 20]
        halves = sum((r.status != "fp") + (r.status != "fn") for r in rows) / 2
        return sum(near) / halves, len(rows)

    best = quality(None)
    assert best == quality(threshold)
    assert all(quality(other)[0] <= best[0] + 1e-9 for other in (0.0, 0.01, 0.5))


def test_the_best_epoch_by_landmarks_is_kept(trained, tmp_path, caplog):
    card = trained[0]
    config = card.parents[1] / "points.yaml"
    stopping = "training.early_stopping={metric: landmark_quality, patience: 1}"
    for metric, network in (("ap50", "heatmap"), ("landmark_quality", "mask_rcnn")):
        wrong = [f"training.early_stopping={{metric: {metric}}}", f"model={{network: {network}}}"]
        with pytest.raises(ConfigError, match=f"early_stopping.metric is {metric}, and this {network} finds"):
            train(config, overrides=wrong, runs=tmp_path, track=False)
    with caplog.at_level("INFO"):
        done = train(config, overrides=[stopping, "training.epochs=4"], runs=tmp_path, track=False)
    assert 0 <= done.best["landmark_quality"] <= 1 and done.best["epoch"] <= done.epochs
    assert "score threshold of landmarks, as configured: 0" in caplog.text
    (card.parent / "points.csv").rename(card.parent / "kept.csv")
    rows = (card.parent / "kept.csv").read_text().splitlines()
    (card.parent / "points.csv").write_text("\n".join(r for r in rows if not r.startswith("p6,")))
    with pytest.raises(ConfigError, match="none of the 1 validation cases holds a landmark"):
        train(config, overrides=[stopping], runs=tmp_path, track=False)
    (card.parent / "kept.csv").rename(card.parent / "points.csv")


def test_evaluate_counts_every_point(trained, tmp_path, monkeypatch):
    card, model = trained
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    found = evaluate(model, card, out=tmp_path / "out")
    assert found.run_id
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
    gallery = list(csv.DictReader((tmp_path / "out" / "gallery.csv").read_text().splitlines()))
    (first,) = (r for r in gallery if r["list"].startswith("largest radial error"))
    errors = [float(r["error"]) for r in rows if r["error"]]
    assert float(first["value"]) == pytest.approx(np.mean(errors), abs=1e-3)
    assert list((tmp_path / "out" / "viewers").iterdir())


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


@pytest.fixture(scope="module")
def calibrated(trained, tmp_path_factory):
    """The model with regions at alpha 0.2, fitted on nine further pictures and judged on four."""
    _, model = trained
    folder = tmp_path_factory.mktemp("calibrated")
    shutil.copytree(model, folder / "model")
    splits = ("train",) * 6 + ("validation",) + ("calibration",) * 9 + ("test",) * 4
    more = write_points_set(folder / "more", splits)
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder / 'mlflow.db'}")
        done = calibrate(
            folder / "model", more, alphas=[0.2], judge_on="test", region_limit=3.0, out=folder / "out"
        )
    return more, folder / "model", done, folder / "out"


def test_calibrate_fits_regions_and_tracks_them(calibrated):
    from mlflow import MlflowClient

    _, model, done, out = calibrated
    region = done.calibration.applied_points()
    assert region.alpha == 0.2 and region.n == 6 and region.length_unit == "px"
    assert load_calibration(model, "none", done.calibration.weights_sha256) == done.calibration
    assert "detected landmarks lie in their regions" in render_calibration(done)
    assert done.judged.points[0].groups == 4 and (out / "landmark_strata.csv").is_file()
    run = MlflowClient(f"sqlite:///{out.parent / 'mlflow.db'}").get_run(done.run_id)
    assert {"headline/landmark_radius", "headline/coverage_landmarks"} <= set(run.data.metrics)
    assert run.data.params["region_limit"] == "3.0" and run.data.params["alphas"] == "[0.2]"


def test_predict_applies_regions_to_a_picture(calibrated, tmp_path):
    card, model, done, _ = calibrated
    region = done.calibration.applied_points()
    (one,) = predict(card.parent / "p10.png", tmp_path / "out", model=model).done
    rows = list(csv.DictReader((one.folder / "landmarks.csv").read_text().splitlines()))
    prediction = read_case(one.folder)
    landmarks = prediction.instances.landmarks
    assert len(rows) == landmarks.count and landmarks.regions is not None
    for row, (i, k) in zip(rows, np.argwhere(landmarks.visible > 0), strict=True):
        axes = np.sqrt(np.linalg.eigvalsh(landmarks.regions[i, k]))
        assert float(row["region_minor_px"]) == pytest.approx(axes[0], abs=1e-3)
        assert float(row["region_major_px"]) == pytest.approx(axes[1], abs=1e-3)
        assert float(row["region_area_px"]) == pytest.approx(np.pi * axes.prod(), rel=1e-3)
        assert bool(row["refer_because"]) == (axes[1] > 3.0)
    summary = json.loads((one.folder / "summary.json").read_text())
    assert summary["landmarks"] == len(rows)
    assert summary["landmarks_referred"] == sum(bool(r["refer_because"]) for r in rows) == one.referred
    assert summary["calibration"]["promises"] == [str(region)]


def test_predict_applies_regions_to_each_frame_of_a_clip(calibrated, tmp_path):
    card, model, _, _ = calibrated
    with video_writer(tmp_path / "clip.mp4", 2.0) as add:
        for number in (8, 9, 10, 11):
            add(read_image(card.parent / f"p{number}.png").pixels.astype(np.uint8))
    (one,) = predict(tmp_path / "clip.mp4", tmp_path / "out", model=model, force=True).done
    rows = list(csv.DictReader((one.folder / "landmarks.csv").read_text().splitlines()))
    frames = read_clip(one.folder)
    assert {int(r["frame"]) for r in rows} == set(frames) and len(frames) == 4
    assert {"region_major_px", "region_minor_px", "refer_because"} <= set(rows[0])
    for number, prediction in frames.items():
        own = [
            float(r["region_major_px"]) for r in rows if int(r["frame"]) == number and r["region_major_px"]
        ]
        regions = prediction.instances.landmarks.regions
        assert len(own) == (0 if regions is None else prediction.instances.landmarks.count)
    summary = json.loads((one.folder / "summary.json").read_text())
    assert summary["landmarks"] == len(rows)
    assert summary["landmarks_referred"] == sum(bool(r["refer_because"]) for r in rows) == one.referred
    assert (one.folder / "overlay.mp4").is_file() and list((one.folder / "overlay").glob("frame-*.png"))


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
    for options, named in (
        ({"promise": "risk"}, "--promise risk"),
        ({"miss_alpha": 0.2, "sides": "both"}, "--sides both, --miss-alpha"),
        ({"match_iou": 0.7}, "--match-iou"),
    ):
        with pytest.raises(ConfigError, match=f"{named} is about masks"):
            calibrate(model, card, track=False, **options)
    text = card.read_text().replace("- name: tip", "- name: apex")
    (card.parent / "other.yaml").write_text(text)
    with pytest.raises(ConfigError, match="the model knows the points left, right, tip"):
        evaluate(model, card.parent / "other.yaml", track=False)

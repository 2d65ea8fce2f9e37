"""Masks and landmarks in one network, on rods that have a tip and an end: whose they are, and whether they are seen."""

import csv
import json

import numpy as np
import pytest
import torch
import yaml
from landmarks import rods, write_rods_set

from clearmargin.core import Grid, Image
from clearmargin.datasets.cases import open_dataset
from clearmargin.errors import ConfigError
from clearmargin.evaluate import evaluate, render
from clearmargin.export import export
from clearmargin.models import load_segmenter
from clearmargin.networks import build_network, network_config
from clearmargin.plan import plan
from clearmargin.predict import predict
from clearmargin.sampling.samples import augmented
from clearmargin.train import train
from clearmargin.training.experiment import read_experiment

MODEL = {
    "network": "mask_rcnn", "fpn_channels": 16, "box_features": 32, "mask_channels": 16, "mask_layers": 1,
    "landmarks": {"sigma": 3.0, "most": 2, "visibility": True},
}  # fmt: skip


def experiment(folder, card, **training):
    settings = {
        "name": "rods",
        "card": str(card),
        "model": MODEL,
        "image": {"intensity": {"kind": "window", "low": 0, "high": 255}, "crop": [96, 128]},
        "training": {
            "epochs": 1, "steps_per_epoch": 3, "warmup_steps": 2, "workers": 0, "threads": 1, "snapshots": 2,
            **training,
        },
        "prediction": {"score_threshold": 0.05},
    }  # fmt: skip
    (folder / "rods.yaml").write_text(yaml.safe_dump(settings))
    return folder / "rods.yaml"


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rods")
    card = write_rods_set(folder / "data")
    return card, train(experiment(folder, card), runs=folder / "runs", track=False).model


def test_a_plan_of_masks_and_landmarks(tmp_path):
    card = write_rods_set(tmp_path / "data")
    model = plan(card).experiment.model
    assert model["network"] == "mask_rcnn"
    assert model["landmarks"]["most"] == 2 and model["landmarks"]["visibility"] is True
    assert plan(card, network="heatmap").experiment.model["visibility"] is True
    config = experiment(tmp_path, card)
    with pytest.raises(ConfigError, match="copy_paste pastes masks without their landmarks"):
        read_experiment(config, ["augment.copy_paste=0.5"])
    with pytest.raises(ConfigError, match="the card has no points"):
        build_network(network_config(MODEL), classes=1, pretrained=False)


def test_one_network_learns_and_finds_both(trained):
    card, model = trained
    dataset = open_dataset(card)
    network = load_segmenter(model).network
    from clearmargin.datasets.samples import Windows
    from clearmargin.transforms.settings import AugmentSettings, ImageSettings

    windows = Windows(
        dataset,
        dataset.split("train"),
        ImageSettings(crop=(96, 128)),
        AugmentSettings(),
        seed=0,
        cache_bytes=2**28,
    )
    pixels, targets = windows[0]
    losses = network.losses(pixels[None], [targets])
    assert {"masks", "classes", "heat", "hidden"} <= set(losses)
    sum(losses.values()).backward()
    assert all(p.grad is not None for p in network.heat.parameters())
    with torch.inference_mode():
        (found,) = network.detect(pixels[None])
    assert found.landmarks is not None and len(found.landmarks.types) <= 4


def test_evaluate_prints_masks_and_landmarks(trained, tmp_path):
    card, model = trained
    found = evaluate(model, card, out=tmp_path / "out", track=False)
    assert {"ap50", "landmarks/tp", "landmarks/visibility_f1", "landmarks/oks_ap"} <= set(found.numbers)
    assert found.numbers["landmarks/tp"] + found.numbers["landmarks/fn"] == 4
    assert "per instance" in render(found) and "radial error" in render(found)
    assert (tmp_path / "out" / "instances.csv").is_file() and (tmp_path / "out" / "landmarks.csv").is_file()
    assert evaluate(model, card, uncertainty="tta", track=False).points


def test_predict_says_whose_point_it_is(trained, tmp_path):
    card, model = trained
    predict(
        card.parent / "p8.png", tmp_path / "out", model=model, write=("tables", "landmarks", "prediction")
    )
    (table,) = (tmp_path / "out").rglob("landmarks.csv")
    rows = list(csv.DictReader(table.read_text().splitlines()))
    (content,) = (json.loads(p.read_text()) for p in (tmp_path / "out").rglob("landmarks_coco.json"))
    owned = [row for row in rows if row["instance"]]
    assert rows and "instance" in rows[0]
    for row in owned:  # one point of a type per instance
        assert sum(r["instance"] == row["instance"] and r["point"] == row["point"] for r in owned) == 1
    assert sorted({int(r["instance"]) for r in owned}) == sorted(
        a["instance"] for a in content["annotations"] if "instance" in a
    )


@pytest.mark.slow
def test_an_export_finds_both(trained):
    card, model = trained
    done = export(model, card, format="onnx", cases=1)
    assert done.parity.points > 0 and done.parity.moved < 0.02


@pytest.mark.slow
def test_tips_belong_to_their_rods(tmp_path):
    card = write_rods_set(tmp_path / "data", splits=("train",) * 30 + ("validation",) * 6 + ("test",) * 12)
    config = experiment(tmp_path, card, epochs=10, steps_per_epoch=40)
    overrides = ["prediction.score_threshold=0.5", "model.landmarks.weight=1"]
    model = train(config, overrides=overrides, runs=tmp_path / "runs", track=False).model
    found = evaluate(model, card, track=False)
    assert found.numbers["ap50"] > 0.8
    assert found.numbers["landmarks/success_5px"] > 0.8
    assert found.numbers["landmarks/hidden_f1"] > 0.6 and found.numbers["landmarks/visibility_f1"] > 0.8
    segmenter, rng, right, owned = load_segmenter(model), np.random.default_rng(99), 0, 0
    for _ in range(10):
        pixels, labels, _ = rods(rng)
        instances = segmenter(Image(pixels=pixels, grid=Grid.from_spacing(labels.shape))).instances
        for at, visible, owner in zip(
            instances.landmarks.points, instances.landmarks.visible, instances.landmarks.owners, strict=True
        ):
            for y, x in np.rint(at[visible > 0]).astype(int):
                owned += 1
                right += owner >= 0 and bool(
                    instances.masks[owner].dense()[labels == labels[y, x]].mean() > 0.5
                )
    assert owned > 25 and right / owned > 0.9
    tilted = augmented(segmenter)(Image(pixels=pixels, grid=Grid.from_spacing(labels.shape))).instances
    assert (
        tilted.landmarks.owners is not None
        and np.isfinite(tilted.landmarks.covariance[0, tilted.landmarks.visible[0] > 0]).all()
    )

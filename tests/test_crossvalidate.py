"""Every case is measured by a model that never saw it; a stopped cross-validation goes on."""

import csv
import logging

import mlflow
import pytest
import yaml
from toy import write_toy_experiment, write_toy_set

from clearmargin import crossvalidate as verb
from clearmargin.crossvalidate import crossvalidate
from clearmargin.datasets.cases import open_dataset
from clearmargin.datasets.folds import in_fold
from clearmargin.errors import ConfigError, InputError


@pytest.fixture
def config(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return write_toy_experiment(tmp_path, write_toy_set(tmp_path / "data"), epochs=1, steps_per_epoch=2)


def test_folds_are_trained_measured_and_shown_under_one_run(config, tmp_path, monkeypatch):
    measured = []
    original = verb.evaluate_cases
    monkeypatch.setattr(
        verb,
        "evaluate_cases",
        lambda s, d, cases, **k: (measured.append(cases), original(s, d, cases, **k))[1],
    )
    done = crossvalidate(config, folds=3)
    dataset = open_dataset(tmp_path / "data" / "card.yaml")
    pool = {c.case for c in dataset.cases if c.split in ("train", "validation")}
    assert sorted(c.case for cases in measured for c in cases) == sorted(pool)
    assert list(done.numbers) == ["fold-1-seed-0", "fold-2-seed-0", "fold-3-seed-0"]
    rows = list(csv.DictReader((done.folder / "members.csv").read_text().splitlines()))
    assert [r["member"] for r in rows] == [*done.numbers, "mean", "sd"]
    assert float(rows[3]["semantic_dice"]) == pytest.approx(
        sum(float(r["semantic_dice"]) for r in rows[:3]) / 3, abs=1e-4
    )
    members = yaml.safe_load((done.folder / "ensemble.yaml").read_text())["members"]
    assert all((done.folder / m / "model.yaml").is_file() for m in members) and len(members) == 3
    client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{tmp_path / 'mlflow' / 'mlflow.db'}")
    nested = client.search_runs(["1"], f"tags.mlflow.parentRunId = '{done.run_id}'")
    assert {r.info.run_name for r in nested} == set(done.numbers)
    assert client.get_run(done.run_id).data.metrics["mean/semantic_dice"] == pytest.approx(
        done.spread()["semantic_dice"][0]
    )


def test_a_stopped_cross_validation_goes_on_where_it_was(config, monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    trained = []
    original = verb.train

    def stop_at_second(*arguments, **options):
        if len(trained) == 1:
            raise KeyboardInterrupt
        trained.append(1)
        return original(*arguments, **options)

    monkeypatch.setattr(verb, "train", stop_at_second)
    with pytest.raises(KeyboardInterrupt):
        crossvalidate(config, folds=2, seeds=1)
    (folder,) = config.parent.glob("runs/toy-folds")
    assert "`clearmargin crossvalidate --resume runs/toy-folds` goes on from there" in caplog.text
    first = (folder / "fold-1-seed-0" / "model" / "weights.safetensors").read_bytes()
    monkeypatch.setattr(verb, "train", original)
    done = crossvalidate(resume=folder)
    assert len(done.numbers) == 2 and done.folder == folder
    assert (folder / "fold-1-seed-0" / "model" / "weights.safetensors").read_bytes() == first
    assert not (config.parent / "runs" / "toy-folds-2").exists()


def test_seeds_alone_are_measured_on_the_validation_split(config, tmp_path):
    done = crossvalidate(config, folds=1, seeds=2)
    assert list(done.numbers) == ["seed-0", "seed-1"]
    assert done.folder.name == "toy-seeds"
    weights = [(done.folder / n / "model" / "weights.safetensors").read_bytes() for n in done.numbers]
    assert weights[0] != weights[1]


def test_what_cannot_be_is_said_before_the_first_training(config, tmp_path):
    with pytest.raises(ConfigError, match=r"too few for 9 folds"):
        crossvalidate(config, folds=9)
    assert not (tmp_path / "runs").exists()
    with pytest.raises(ConfigError, match="at least 1"):
        crossvalidate(config, folds=0)
    with pytest.raises(InputError, match="not a folder of a cross-validation"):
        crossvalidate(resume=tmp_path)
    dataset = open_dataset(tmp_path / "data" / "card.yaml")
    held = in_fold(dataset, verb.FoldSettings(number=1, of=3), validate=False)
    assert not any(c.split == "calibration" for c in held.cases)

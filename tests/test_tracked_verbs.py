"""What each verb's run holds so that it can be repeated; a quick prediction is one run, which opens no store."""

import csv
import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from command import command
from toy import write_toy_experiment, write_toy_set

from clearmargin import runs
from clearmargin.tracking.sending import send_waiting
from clearmargin.tracking.spool import spools
from clearmargin.tracking.store import open_client
from clearmargin.train import train


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A toy model; the working folder, with a store and a home of its own, while the tests of this file run."""
    folder = tmp_path_factory.mktemp("tracked")
    (folder / "home").mkdir()
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(folder)
        patched.setenv("CLEARMARGIN_HOME", str(folder / "home"))
        patched.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder / 'mlflow' / 'mlflow.db'}")
        (folder / "mlflow").mkdir()
        card = write_toy_set(folder / "data")
        config = write_toy_experiment(folder, card, epochs=1)
        train(config, overrides=["prediction.score_threshold=0.0"])  # so that there is something to compare
        yield folder


def _newest(verb):
    send_waiting()
    client = open_client()
    key = client.get_experiment_by_name("clearmargin").experiment_id
    found = client.search_runs([key], f"tags.verb = '{verb}'", order_by=["attributes.start_time DESC"])
    return [runs.load(one.info.run_id) for one in found]


def _sha256(path):
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def _check_capsule(run, model):
    """The parts that every verb's capsule has."""
    capsule = run.capsule()
    assert capsule["verb"] == run.verb
    assert capsule["packages"]["numpy"] and capsule["hardware"]["cpu"] and capsule["software"]
    assert [c["name"] for c in capsule["label_map"]] == ["disc"]
    assert capsule["label_map"][0]["type"]["value"] == "108369006", "with its code"
    weights = [digest for file, digest in capsule["model"].items() if file.endswith("weights.safetensors")]
    assert _sha256(model / "weights.safetensors") in weights
    for name in ("environment.txt", "hardware.json"):
        assert run.file(name).is_file()
    return capsule


def test_a_training_holds_what_repeats_it(place):
    run = runs.load("toy")
    capsule = _check_capsule(run, place / "runs" / "toy" / "model")
    assert capsule["settings"]["training"]["epochs"] == 1 and capsule["seeds"] == {"training": 0}
    assert capsule["card"]["card"] == "toy" and len(capsule["card"]["digest"]) == 64
    assert {case["split"] for case in capsule["cases"].values()} == {"train", "validation"}
    image = place / "data" / "t0.png"
    expected = hashlib.sha256(hashlib.sha256(image.read_bytes()).digest()).hexdigest()
    assert expected in {case["image"] for case in capsule["cases"].values()}
    assert "t0" not in json.dumps(capsule["cases"]) and str(place) not in json.dumps(capsule)
    card = run.file("model_card.md").read_text()
    assert "mask_rcnn" in card and "author must answer" in card


def test_a_prediction_of_many_files_is_one_run_with_counts(place):
    many = place / "many"
    many.mkdir()
    for k in range(25):
        shutil.copy(place / "data" / f"t{k % 8}.png", many / f"Doe^Jane-{k}.png")
    (many / "Doe^Jane-broken.png").write_bytes(b"not a picture")
    code, said = command("predict", "many", "out", "--model", "runs/toy")
    assert code == 3, said
    assert [one.name.startswith("predict-mask_rcnn-") for one in spools()] == [True], (
        "it waits: MLflow was not started"
    )
    (run,) = _newest("predict")
    assert run.numbers["predict/cases"] == 25 and run.numbers["predict/failed"] == 1
    assert run.name == "predict-toy" and run.tags["training"] == runs.load("toy").run_id
    capsule = _check_capsule(run, place / "runs" / "toy" / "model")
    assert capsule["settings"]["uncertainty"] == "none" and capsule["settings"]["kind"] == "folder"
    rows = list(csv.DictReader(io.StringIO(run.file("cases.csv").read_text())))
    assert len(rows) == 26 and sum(row["state"] == "failed" for row in rows) == 1
    assert rows[0]["input_sha256"] in {_sha256(many / f"Doe^Jane-{k}.png") for k in range(25)}
    assert (
        sum(int(row["instances"]) for row in rows if row["state"] == "done")
        == run.numbers["predict/instances"]
    )
    assert run.file("model_card.md").is_file()
    for file in Path(run.location.removeprefix("file://")).rglob("*"):
        if file.is_file() and file.suffix != ".npz":
            assert b"Doe" not in file.read_bytes() and b"many" not in file.read_bytes().replace(
                b"how many", b""
            ), file


def test_a_refused_prediction_has_the_name_of_the_others(place):
    (place / "broken.png").write_bytes(b"no picture")
    code, said = command("predict", "broken.png", "refused", "--model", "runs/toy")
    assert code == 4, said
    run = _newest("predict")[0]
    assert (run.name, run.status) == ("predict-toy", "FAILED")


def test_plain_names_reach_no_run(place, monkeypatch):
    monkeypatch.setenv("CLEARMARGIN_NAMES", "plain")
    code, said = command("predict", "many/Doe^Jane-1.png", "plain", "--model", "runs/toy")
    assert code == 0 and "Jane" in said, said
    table = _newest("predict")[0].file("cases.csv").read_text()
    assert "Jane" not in table and "case-" in table


def test_no_track_leaves_the_run_out(place):
    before = len(_newest("predict"))
    code, said = command("predict", "data/t0.png", "untracked", "--model", "runs/toy", "--no-track")
    assert code == 0, said
    assert not spools() and len(_newest("predict")) == before


def test_an_export_a_calibration_and_a_selection_hold_what_repeats_them(place):
    for arguments in (
        ("export", "runs/toy", "--format", "onnx", "--card", "data/card.yaml"),
        ("select", "runs/toy", "--card", "data/card.yaml", "--budget-ms", "100000", "--metric", "dice"),
    ):
        code, said = command(*arguments)
        assert code == 0, said
    model = place / "runs" / "toy" / "model"
    run = _newest("export")[0]
    capsule = _check_capsule(run, model)
    assert run.name == "export-toy-onnx" and run.numbers["export/instances"] > 0
    parts = {name: digest for name, digest in capsule["card"].items() if name.startswith("onnx/")}
    assert parts and all(_sha256(model / name) == digest for name, digest in parts.items())
    assert {case["split"] for case in capsule["cases"].values()} == {"validation"}
    assert (
        json.loads(run.file("export/parity.json").read_text())["instances"] == run.numbers["export/instances"]
    )
    capsule = _check_capsule(_newest("select")[0], model)
    assert capsule["settings"]["metric"] == "dice"


def test_a_batch_holds_what_repeats_it(place):
    code, said = command("batch", "data", "--model", "runs/toy", "--out", "batch", "--processes", "0")
    assert code in (0, 3), said
    run = _newest("batch")[0]
    _check_capsule(run, place / "runs" / "toy" / "model")
    rows = list(csv.DictReader(io.StringIO(run.file("cases.csv").read_text())))
    assert sum(row["state"] == "done" for row in rows) == run.numbers["batch/done"]
    assert len({row["item"] for row in rows}) == len(rows)


@pytest.mark.slow
def test_a_quick_prediction_opens_no_store(place):
    program = (
        "import sys; from clearmargin.predict import predict; from pathlib import Path;"
        "predict(Path('data/t0.png'), Path('quick'), model=Path('runs/toy/model'));"
        "print(sorted({m.partition('.')[0] for m in sys.modules} & {'sqlalchemy', 'alembic'}))"
    )
    pipeline = str(Path(__file__).parents[1] / "pipeline")
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program],
        capture_output=True, text=True, check=True, env={**os.environ, "PYTHONPATH": pipeline}, timeout=300,
    )  # fmt: skip
    assert done.stdout.strip().endswith("[]")
    assert len(spools()) == 1


def test_models_of_one_network_have_names_of_their_own(place):
    """In a store that knows neither's training."""
    other = place / "other"
    shutil.copytree(place / "runs" / "toy" / "model", other)
    settings = yaml.safe_load((other / "model.yaml").read_text())
    from safetensors.numpy import load_file, save_file

    weights = load_file(other / "weights.safetensors")
    name = next(iter(weights))
    save_file(weights | {name: weights[name] + 1}, other / "weights.safetensors")
    assert settings["model"]["network"] == "mask_rcnn"
    titles = set()
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{place / 'elsewhere' / 'mlflow.db'}")
        for model, out in (("runs/toy", "one"), (other, "two")):
            code, said = command(
                "evaluate",
                model,
                "--card",
                "data/card.yaml",
                "--split",
                "test",
                "--out",
                out,
                "--gallery",
                "0",
            )
            assert code == 0, said
            page = Path(out, "report.html").read_text()
            titles.add(page.partition("<title>")[2].partition("</title>")[0])
        names = {run.name for run in _newest("evaluate")}
    assert len(titles) == len(names) == 2

"""``clearmargin batch`` as a user runs it: worker processes, a model, exit codes, what is printed and tracked."""

import json
from pathlib import Path

import numpy as np
import pytest
from command import command
from toy import train_toy

from clearmargin.formats.raster import write_raster
from clearmargin.tracking.store import EXPERIMENT, open_client


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    return train_toy(tmp_path_factory.mktemp("toy"))


@pytest.fixture
def studies(toy, tmp_path, monkeypatch):
    folder, _, model = toy
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    root = tmp_path / "Canary Anna"
    (root / "deep" / "deeper").mkdir(parents=True)
    for k, place in enumerate((root, root / "deep", root / "deep" / "deeper")):
        (place / f"t{k}.png").write_bytes((folder / "data" / f"t{k}.png").read_bytes())
    (root / "deep" / "damaged.png").write_bytes(b"\x89PNG\r\n\x1a\n junk")
    (root / "deep" / "damaged.dcm").write_bytes(b"\0" * 128 + b"DICM" + b"junk" * 50)
    write_raster(
        root / "deep" / "colour.png", np.stack([np.full((40, 40), v, np.uint8) for v in (255, 10, 10)])
    )
    return root, model, tmp_path


def lines_of(said):
    return [json.loads(line) for line in said.splitlines() if line.startswith("{")]


def test_a_batch_from_start_to_end(studies):
    root, model, folder = studies
    out = folder / "out"
    code, said = command(
        "--json", "batch", root, "--model", model, "--out", out, "--processes", "2", "--free", "0"
    )
    assert code == 3 and "2 of 5 items failed, were refused, or lack an output" in said
    assert "1 inputs could not be taken" in said
    assert "Canary" not in said.replace(str(out), "").replace(str(root), "") and "t1.png" not in said
    events = [line for line in lines_of(said) if "state" in line]
    assert sorted(e["state"] for e in events) == ["done", "done", "done", "refused", "refused"]
    (report,) = [line for line in lines_of(said) if "counts" in line]
    assert report["counts"]["done"] == 3 and report["new"] == 5
    # the run in MLflow: counts, rates and failures, and nobody's name
    client = open_client(None)
    experiment = client.get_experiment_by_name(EXPERIMENT)
    runs = client.search_runs([experiment.experiment_id], filter_string="attributes.run_name LIKE 'batch%'")
    assert [run.info.run_id for run in runs] == [report["run_id"]]
    metrics = runs[0].data.metrics
    assert (
        metrics["batch/done"] == 3 and metrics["batch/refused"] == 2 and metrics["batch/kind_InputError"] == 2
    )
    assert metrics["batch/latency_p50_s"] > 0 and metrics["batch/items_per_hour"] > 0
    assert "Canary" not in str(runs[0].data.to_dictionary())
    # again: nothing to do, and the same answer
    code, said = command("batch", root, "--model", model, "--out", out, "--free", "0")
    assert code == 3 and "0 new, 5 known" in said
    code, said = command("batch", "status", out)
    assert code == 0 and "3 done" in said and said.count("InputError") == 2
    code, said = command("batch", "verify", out)
    assert code == 0 and "3 results are as they were written" in said
    code, said = command("batch", "retry", out, "--refused")
    assert code == 0 and "2 items are pending again" in said
    code, said = command("batch", "withdraw", out, "--weights", "abc")
    assert code == 2 and "six digits" in said
    code, said = command("batch", "withdraw", out, "--all")
    assert code == 0 and "3 results are withdrawn" in said
    next(out.glob("case-*/*/summary.json")).write_text("{}")
    assert command("batch", "verify", out)[0] == 0  # withdrawn results are nobody's any more


def test_usage_is_said(studies):
    root, model, folder = studies
    for words, code, part in (
        (["batch", root / "nowhere", "--model", model, "--out", folder / "o"], 4, "no file or folder"),
        (["batch", root, "--model", folder / "none", "--out", folder / "o"], 4, "none"),
        (["batch", root, "--model", model, "--out", folder / "o", "--shard", "3/2"], 2, "expected I/N"),
        (
            ["batch", root, "--model", model, "--out", folder / "o", "--write", "segs"],
            2,
            "did you mean 'seg'",
        ),
        (["batch", root, "--model", model, "--out", folder / "o", "--select", "no.yaml"], 2, "no file"),
        (["batch", "status", folder / "o2"], 4, "no ledger"),
    ):
        ended, said = command(*words)
        assert ended == code and part in said, (words, ended, said)
    assert not Path(folder / "o2").exists()


def test_an_unreadable_input_alone_makes_a_batch_end_with_3(studies):
    root, model, folder = studies
    for name in ("damaged.png", "colour.png"):
        (root / "deep" / name).unlink()
    words = ["batch", root, "--model", model, "--out", folder / "out", "--free", "0", "--processes", "0"]
    code, said = command(*words)
    assert code == 3 and "3 done" in said and "1 inputs could not be taken" in said
    assert command(*words, "--dry-run")[0] == 0
    (root / "deep" / "damaged.dcm").unlink()
    assert command(*words)[0] == 0

"""Ctrl-C in the middle of evaluate and measure: what was measured stays, marked; later the whole takes its place."""

import json
from dataclasses import replace

import numpy as np
import pytest
from bright import CATEGORY, CODE, bright_segmenter
from command import command
from toy import write_toy_set

from clearmargin.core import Grid, LabelClass, LabelMap
from clearmargin.formats.volume import write_volume
from clearmargin.metrics.case_result import measure_case
from clearmargin.tracking.store import EXPERIMENT, open_client


class Impatient:
    """Call a function, and press Ctrl-C at the n-th call."""

    def __init__(self, function, calls):
        self.function, self.left = function, calls

    def __call__(self, *arguments, **options):
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt
        return self.function(*arguments, **options)


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CLEARMARGIN_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    return tmp_path


def cases_of(folder):
    lines = (folder / "instances.csv").read_text().splitlines()
    column = lines[0].split(",").index("case")
    return {line.split(",")[column] for line in lines[1:]}


def test_an_evaluation_keeps_the_cases_that_were_done(place, monkeypatch, caplog):
    write_toy_set(place / "data", cases=8)
    (place / "model").mkdir()
    (place / "model" / "model.yaml").write_text("{}")
    labels = LabelMap((LabelClass(id=1, name="disc", type=CODE, category=CATEGORY),))
    segmenter = replace(bright_segmenter(0, 255), label_map=labels)
    monkeypatch.setattr("clearmargin.evaluate.open_segmenter", lambda *_, **__: segmenter)
    monkeypatch.setattr("clearmargin.evaluate.log_model_card", lambda *_: None)
    words = ["evaluate", "model", "--card", "data/card.yaml", "--split", "train", "--out", "tables"]
    with monkeypatch.context() as patched:
        patched.setattr(
            "clearmargin.evaluate.measure_case",
            Impatient(measure_case, 4),
        )
        code, said = command(*words)
    assert code == 130 and "interrupted; what was finished is kept" in said
    assert "interrupted after 3 of 5 cases: their tables are in 'tables/partial'" in caplog.text
    assert [p.name for p in (place / "tables").iterdir()] == ["partial"]
    numbers = json.loads((place / "tables" / "partial" / "numbers.json").read_text())
    assert numbers["partial"] == "3 of 5 cases: interrupted" and numbers["counts"]["cases"] == 3
    client = open_client()
    experiment = client.get_experiment_by_name(EXPERIMENT).experiment_id
    (run,) = client.search_runs([experiment])
    assert run.info.status == "KILLED" and not run.data.metrics, "its numbers are not those of the split"
    assert "partial/numbers.json" in [f.path for f in client.list_artifacts(run.info.run_id, "partial")]
    three = cases_of(place / "tables" / "partial")
    (place / "tables" / "partial").rename(place / "early")
    code, said = command(*words)
    assert code == 0 and not (place / "tables" / "partial").exists(), said
    assert three < cases_of(place / "tables")
    code, said = command("compare", "tables", "early")
    assert (
        code == 4 and "'early' is not of all cases (3 of 5 cases: interrupted)" in said and "--force" in said
    )
    assert command("compare", "tables", "early", "--force")[0] == 0


def test_a_measurement_keeps_the_cases_that_were_done(place, monkeypatch, caplog):
    from clearmargin import measure

    grid = Grid.from_spacing((4, 16, 16), (2, 1, 1))
    for side in ("predicted", "reference"):
        (place / side).mkdir()
        for k in range(4):
            values = np.zeros(grid.shape, np.uint8)
            values[1:3, 4:12, 4 : 12 - (side == "predicted")] = 1
            write_volume(place / side / f"{k}.nii.gz", values, grid)
    words = ["measure", "predicted", "reference", "--out", "tables", "--workers", "1"]
    command(*words, "--objects", "classes")
    whole = (place / "tables" / "instances.csv").read_bytes()
    with monkeypatch.context() as patched:
        patched.setattr(measure, "_measure_pair", Impatient(measure._measure_pair, 3))
        code, _ = command(*words)
    assert code == 130 and "interrupted after 2 of 4 cases" in caplog.text
    assert (place / "tables" / "instances.csv").read_bytes() == whole, "an earlier result is not touched"
    assert len(cases_of(place / "tables" / "partial")) == 2
    assert command(*words)[0] == 0 and not (place / "tables" / "partial").exists()


def test_nothing_measured_leaves_nothing(place, monkeypatch):
    from clearmargin import measure

    grid = Grid.from_spacing((4, 16, 16), (2, 1, 1))
    for side in ("predicted", "reference"):
        (place / side).mkdir()
        write_volume(place / side / "a.nii.gz", np.ones(grid.shape, np.uint8), grid)
    monkeypatch.setattr(measure, "_measure_pair", Impatient(measure._measure_pair, 1))
    assert command("measure", "predicted", "reference", "--out", "tables", "--workers", "1")[0] == 130
    assert list((place / "tables").iterdir()) == []

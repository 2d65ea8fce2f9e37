"""A training and its evaluation as a reviewer meets them: pages, comparison, replay, promotion, tables in Python."""

import json
import os
import shutil
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import yaml
from browsing import browsing
from command import command
from PIL import Image as Pillow
from toy import write_toy_experiment, write_toy_set

from clearmargin import runs
from clearmargin.compare import compare
from clearmargin.errors import InputError
from clearmargin.replay import replay
from clearmargin.report.gallery import case_marks, worst_cases
from clearmargin.tracking.review import runs_page, serving
from clearmargin.tracking.store import open_client


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A toy model, trained and evaluated; the working folder while the tests of this file run."""
    folder = tmp_path_factory.mktemp("reviewed")
    (folder / "home").mkdir()
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(folder)
        patched.setenv("CLEARMARGIN_HOME", str(folder / "home"))
        patched.setenv(
            "MLFLOW_TRACKING_URI", f"sqlite:///{folder / 'mlflow' / 'mlflow.db'}"
        )  # of no other test
        (folder / "mlflow").mkdir()
        card = write_toy_set(folder / "data", cases=10)
        config = write_toy_experiment(folder, card, epochs=2, steps_per_epoch=20, learning_rate=0.003)
        for arguments in (
            ("train", config, "--set", "prediction.score_threshold=0.3"),
            ("evaluate", "runs/toy", "--card", card, "--split", "train", "--out", "tables", "--gallery", "3"),
        ):
            code, said = command(*arguments)
            assert code == 0, said
        yield folder


@pytest.fixture
def evaluation(place):
    return runs.load("evaluate-toy-toy-train")


def test_an_evaluation_leaves_figures_a_gallery_viewers_and_a_report(place, evaluation):
    for folder in (place / "tables", evaluation.folder):
        viewers = {p.stem for p in (folder / "viewers").glob("*.html")}
        listed = (folder / "gallery.csv").read_text()
        assert viewers and all(case in listed for case in viewers)
        assert {p.stem for p in (folder / "figures").glob("*.png")} == {
            "precision_recall", "froc", "reliability", "risk_coverage", "forest", "confusion", "count_errors",
        }  # fmt: skip
        report = (folder / "report.html").read_text()
        assert report.count("data:image/png") == 7 and "default-src 'none'" in report
        assert {p.stem for p in (folder / "predictions").glob("*.npz")} == set(evaluation.instances["case"])
    assert set(evaluation.numbers) == {
        f"headline/{name}" for name in ("ap50", "pq", "semantic_dice", "miss_rate", "nsd")
    }
    worst = evaluation.tags["mlflow.note.content"].splitlines()[0]
    assert f"/runs/{evaluation.run_id}/artifacts/evaluation/viewers/case-" in worst


def test_without_leave_of_the_card_there_is_no_picture(place, tmp_path):
    content = yaml.safe_load((place / "data" / "card.yaml").read_text())
    shutil.copytree(place / "data", tmp_path / "data")
    (tmp_path / "data" / "card.yaml").write_text(yaml.safe_dump(content | {"show_in_tracking": False}))
    code, said = command(
        "evaluate", "runs/toy", "--card", tmp_path / "data" / "card.yaml", "--split", "test", "--out",
        tmp_path / "tables", "--no-track",
    )  # fmt: skip
    assert code == 0 and "run:" not in said
    assert (
        not (tmp_path / "tables" / "viewers").exists() and not (tmp_path / "tables" / "predictions").exists()
    )
    page = (tmp_path / "tables" / "gallery.html").read_text()
    assert "numbers alone" in page and "data:image" not in page


def test_nothing_is_tracked_that_shall_not_be(place):
    before = len(open_client().search_runs(["1"], max_results=100))
    code, said = command(
        "train", "toy.yaml", "--no-track", "--set", "name=quiet", "--set", "training.epochs=1",
        "--set", "training.steps_per_epoch=1",
    )  # fmt: skip
    assert code == 0 and "run:" not in said, said
    assert len(open_client().search_runs(["1"], max_results=100)) == before


def test_the_gallery_ranks_by_each_number(evaluation):
    marks = case_marks(evaluation.rows, {})
    lists = worst_cases(marks, 2)
    frame = evaluation.instances
    metric = marks[0].metric
    means = frame.groupby("case")[metric].mean().sort_values()
    assert lists["lowest NSD at 1 px"][0][0].case == means.index[0]
    assert all(m.false_positives for m, _ in lists["most false positives"])


def test_a_run_is_read_as_pandas_tables(place, evaluation):
    facts = evaluation.facts()
    frame = evaluation.instances
    assert (frame.status != "fp").sum() == facts["counts"]["references"]
    assert evaluation.summary.set_index(["stratum", "metric"]).loc[("all", "dice"), "mean"] == pytest.approx(
        frame.groupby("group").dice.mean().mean()
    )
    training = runs.load("toy")
    history = training.history("validation/ap50")
    assert list(history.step) == [1, 2] and "<table>" in training._repr_html_()
    assert training.folder == evaluation.folder  # a training's tables are those of its newest evaluation
    with pytest.raises(InputError, match="did you mean 'toy'"):
        runs.load("toyy")
    with pytest.raises(InputError, match="no metric 'validation/ap5': did you mean"):
        training.history("validation/ap5")


def test_the_report_of_a_training_adds_curves_and_the_model_card(place):
    code, said = command("report", "toy", "--out", "page/report.html")
    assert code == 0, said
    page = (place / "page" / "report.html").read_text()
    for words in (
        "Learning curves",
        "Model card",
        "CLAIM 2024",
        "author must answer",
        "CC0-1.0",
        "mask_rcnn",
    ):
        assert words in page
    assert list((place / "page" / "viewers").glob("*.html"))
    code, said = command("report", "toy", "--out", "page/other.html")
    assert code == 4 and "of another report" in said and not Path("page/other.html").exists(), said
    assert command("report", "toy", "--out", "page/report.html")[0] == 0  # its own is written anew


def test_a_model_is_not_told_from_itself_and_data_must_agree(place, evaluation, tmp_path):
    other = tmp_path / "same"
    shutil.copytree(evaluation.folder, other)
    done = compare([evaluation.run_id, other], out=tmp_path / "out", card=place / "data" / "card.yaml")
    assert {row.verdict for row in done.sets.metrics} == {"not distinguishable"}
    assert {row.comparison.p_false for row in done.sets.metrics} == {0.5}
    assert set(done.costs["same"]) == {"seconds per case", "megabytes"}
    facts = json.loads((other / "numbers.json").read_text())
    facts["data"]["split"] = "test"
    (other / "numbers.json").write_text(json.dumps(facts))
    with pytest.raises(InputError, match=r"different data \(split train and test"):
        compare([evaluation.run_id, other])
    assert compare([evaluation.run_id, other], force=True).sets.objects


def test_a_run_is_repeated_bit_for_bit_and_what_changed_is_named(place, evaluation, tmp_path):
    code, said = command("replay", evaluation.run_id, "--card", "data/card.yaml")
    assert code == 0 and "it is repeated, bit for bit" in said, said
    model = tmp_path / "model"
    shutil.copytree(place / "runs" / "toy" / "model", model)
    weights = model / "weights.safetensors"
    content = bytearray(weights.read_bytes())
    content[-2] ^= 0x40
    weights.write_bytes(bytes(content))
    done = replay(evaluation.run_id, place / "data" / "card.yaml", model=model)
    assert any("weights.safetensors of the model is another file" in why for why in done.differences)
    case = json.loads(evaluation.file("capsule.json").read_text())["cases"]
    picture = place / "data" / "t0.png"
    kept = picture.read_bytes()
    try:
        pixels = np.asarray(Pillow.open(picture)).copy()
        pixels[:8] = 255 - pixels[:8]
        Pillow.fromarray(pixels).save(picture)
        code, said = command("replay", evaluation.run_id, "--card", "data/card.yaml")
    finally:
        picture.write_bytes(kept)
    assert code == 1 and "the image of case-" in said and "t0" not in said.replace("toy", "")
    assert len(case) == 7


def test_a_gate_decides_and_the_registry_remembers(place, evaluation):
    gate = {
        "name": "discs", "card": "toy", "split": "train", "replay": False,
        "metrics": [{"metric": "dice", "mean": 0.999}], "numbers": [{"number": "ap50", "at_least": 0.1}],
    }  # fmt: skip
    (place / "gate.yaml").write_text(yaml.safe_dump(gate))
    code, said = command("promote", evaluation.run_id, "--as", "champion", "--gate", "gate.yaml")
    assert code == 1 and "mean of dice at least 0.999" in said
    client = open_client()
    for wrong, message in (
        ({"numbers": [{"number": "ap5", "at_least": 0.1}]}, "no number 'ap5': did you mean"),
        ({"metrics": [{"metric": "dicee", "mean": 0.5}]}, "no metric 'dicee': did you mean"),
        (
            {"metrics": [{"metric": "dice", "mean": 0.5, "stratum": "class = disk"}]},
            "no stratum 'class = disk'",
        ),
    ):
        (place / "wrong.yaml").write_text(yaml.safe_dump(gate | {"name": "discs"} | wrong))
        code, said = command("promote", evaluation.run_id, "--as", "champion", "--gate", "wrong.yaml")
        assert code == 2 and message in said, said
    code, said = command("promote", evaluation.run_id, "--as", "v1", "--gate", "gate.yaml")
    assert code == 2 and "no alias: 'v1'" in said
    assert len(client.search_model_versions("name = 'discs'")) == 1, "what was refused registers nothing"
    gate["metrics"], gate["replay"] = [], True
    (place / "gate.yaml").write_text(yaml.safe_dump(gate))
    code, said = command(
        "promote", evaluation.run_id, "--as", "champion", "--gate", "gate.yaml", "--card", "data/card.yaml"
    )
    assert code == 0 and "models:/discs/1 is now 'champion'" in said, said
    version = open_client().get_model_version_by_alias("discs", "champion")
    assert str(version.version) == "1", "the model keeps its version"
    assert version.tags["verdict"] == "passed" and "replay gives the same" in version.tags["reason"]
    gate["metrics"], gate["replay"] = [{"metric": "dice", "mean": 0.999}], False
    (place / "gate.yaml").write_text(yaml.safe_dump(gate))
    code, said = command("promote", evaluation.run_id, "--as", "champion", "--gate", "gate.yaml")
    assert code == 1 and "models:/discs/1 does not pass, and keeps 'champion'" in said
    assert client.get_model_version("discs", "1").tags["verdict"] == "not passed"
    code, said = command("predict", "data/t9.png", "out", "--model", "models:/discs@champion")
    assert code == 0, said


def test_the_notebook_of_runs_runs(place, evaluation, monkeypatch):
    nbclient = pytest.importorskip("nbclient")
    nbformat = pytest.importorskip("nbformat")
    monkeypatch.setenv("CLEARMARGIN_RUN", evaluation.run_id)
    pipeline = str(Path(__file__).parents[1] / "pipeline")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([pipeline, os.environ.get("PYTHONPATH", "")]))
    notebook = nbformat.read(Path(__file__).parents[1] / "docs" / "runs.ipynb", as_version=4)
    done = nbclient.NotebookClient(
        notebook, timeout=120, kernel_name="python3", resources={"metadata": {"path": str(place)}}
    ).execute()
    shown = [output for cell in done.cells for output in cell.get("outputs", ()) if "data" in output]
    assert "not distinguishable" in shown[-1]["data"]["text/html"]
    assert any("image/png" in output["data"] for output in shown)


@pytest.mark.slow
def test_a_reviewer_is_two_clicks_from_the_worst_case(place, evaluation):
    with serving(0) as url, browsing(size=(1400, 900), own=(url,)) as watched:
        with urllib.request.urlopen(f"{url}/health") as answer:
            assert answer.status == 200
        page = watched.open(runs_page(url)).page
        page.click(f"text={evaluation.name[:16]}", timeout=60_000)
        with page.context.expect_page() as opened:
            page.click("a[href*='viewers']", timeout=60_000)
        frame = opened.value.wait_for_selector("iframe.mlflow-html-iframe", timeout=60_000).content_frame()
        said = {}
        for _ in range(300):
            said = frame.evaluate("() => ({...document.documentElement.dataset})")
            if "readyMs" in said or "failed" in said:
                break
            opened.value.wait_for_timeout(200)
        assert "readyMs" in said, said
        assert not watched.requests


def test_every_page_opens_without_a_complaint(place, tmp_path):
    compare(["tables", "tables"], names=["a", "b"], out=tmp_path / "comparison")
    pages = [
        place / "tables" / "report.html", place / "tables" / "gallery.html",
        tmp_path / "comparison" / "comparison.html",
    ]  # fmt: skip
    with browsing() as watched:
        for path in pages:
            watched.open(path.as_uri())
            assert watched.page.title()
        watched.open((place / "tables" / "gallery.html").as_uri())
        watched.page.click("text=open the viewer")
        watched.ready()
        assert not watched.complaints and not watched.requests
